"""Runs what must run, in order, side by side, once. The policy of a build; mechanisms are in the modules it imports.

For every task, as soon as its inputs are done: ingredients -> key -> trace in the store and its blobs right? Then it is
done. Otherwise it runs, when a worker, its resource, and the lock on its key are free. The key's lock is the kernel's, so of
several processes that build the same thing one does and the others find it done. After a task has run, its sources are
looked at again: had they changed meanwhile, the result is thrown away and the task decided about anew. Failures leave no
trace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toolchain.build.blobs import DamagedBlob
from toolchain.build.events import (
    Planned,
    Progress,
    RunFinished,
    RunStarted,
    TaskFailed,
    TaskFinished,
    TaskSkipped,
    TaskStarted,
    TaskWaiting,
)
from toolchain.build.export import export
from toolchain.build.folders import fresh_name, remove_tree
from toolchain.build.frontier import Frontier, Node, State
from toolchain.build.job import Job
from toolchain.build.journal import Journal, Listener, critical_path
from toolchain.build.keys import Change, changes, describe, ingredients, key_of
from toolchain.build.locks import Lock, hold
from toolchain.build.store import FOUND, Entry, Store, Trace
from toolchain.build.task import MACHINE, Task
from toolchain.core.artifact import Artifact
from toolchain.core.errors import TaskError, ToolchainError, refused_by_system

if TYPE_CHECKING:
    from toolchain.build.pool import Died, Pool
    from toolchain.build.worker import Damaged, Made, Outcome, Work

_POLL_S = 0.02              # how often a lock that another process holds is tried
_HEALINGS = 3               # how often a task's damaged output is made anew before the disk is blamed


class Build(NamedTuple):
    """What came of a build. `failed` holds the error of each task that failed, `skipped` those that needed them; `sources`
    the digest of each source file, as the tasks read it."""

    artifacts: Mapping[str, Artifact]
    failed: Mapping[str, ToolchainError]
    skipped: tuple[str, ...]
    summary: RunFinished
    record: Path | None
    sources: Mapping[Path, str]

    @property
    def exit_code(self) -> int:
        """0, or the code of the first failure."""
        return next((e.exit_code for e in self.failed.values()), 0)

    def check(self) -> Build:
        """Itself, if all went well. Raises the first failure's error."""
        for error in self.failed.values():
            raise error
        return self


class Executor:
    """Builds goals for one project with one store.

    project: where the run record goes, and what history belongs to; None: neither (a compile in memory).
    jobs: worker processes; 0: steps run in this process, one after the other; None: one per available core.
    preload: modules the workers' fork server imports first. on_event: called with every event. pool: workers made ready
    beforehand, in place of its own; they end with the build.
    """

    def __init__(self, store: Store, project: Path | None = None, *, jobs: int | None = None, keep_going: bool = False,
                 on_event: Listener | None = None, preload: Sequence[str] = (), pool: Pool | None = None) -> None:
        self.store, self.project, self.keep_going, self.preload = store, project and project.absolute(), keep_going, preload
        self.jobs = available_cores() if jobs is None else jobs
        self.on_event, self.pool = on_event, pool

    def build(self, goals: Sequence[Task], exports: Mapping[Path, Task] | None = None) -> Build:
        """Make the goals' artifacts, and put those of `exports` into project folders.

        A failing task does not raise: it is in the Build. Raises TaskError: the plan is wrong (a cycle, two tasks of one
        name), or the store cannot be used; KeyboardInterrupt: after workers have ended and the record is complete.
        """
        shared = hold(self.store.locks / "store", shared=True, wait_s=600)         # gc waits for builds, builds for gc
        try:
            return _Run(self, goals, exports or {}).go()
        except OSError as e:
            if (refused := refused_by_system(e, str(self.store.root))) is not None:
                raise refused from e
            raise
        finally:
            shared.release(unlink=False)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Run:
    """The state of one build."""

    def __init__(self, executor: Executor, goals: Sequence[Task], exports: Mapping[Path, Task]) -> None:
        self.executor, self.store, self.goals, self.exports = executor, executor.store, goals, exports
        self.project = str(executor.project or "")
        self.frontier = Frontier()
        self.queue: list[Job] = []                      # decided: they must run
        self.running: dict[str, Job] = {}               # by task name
        self.keys: dict[str, list[Node]] = {}           # key in work -> tasks of the same key that wait for it
        self.ran: dict[Node, float] = {}                # seconds
        self.cached: dict[Node, Trace] = {}
        self.failed: dict[str, ToolchainError] = {}
        self.skipped: list[str] = []
        self.made: list[tuple[Node, str, Trace]] = []   # with their keys: committed, not yet put where they are wanted
        self.healed: dict[Node, int] = {}
        self.sources: dict[Path, str] = {}              # file -> digest
        self.notes: list[Entry] = []
        self.planned = 0
        self.pool = executor.pool
        self.temp: tuple[Path, Lock] | None = None
        self.journal = Journal(executor.project, executor.on_event)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def go(self) -> Build:
        status = "failed"
        try:
            self._start()
            while self._step():
                pass
            self.store.note(self.notes, self.cached.values())
            status = "failed" if self.failed else "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self._release_everything()
            summary = self._finish(status)
        done = {n.name: n.artifact for n in self.frontier.nodes.values() if n.artifact is not None}
        return Build(done, self.failed, tuple(self.skipped), summary, self.journal.folder, self.sources)

    def _start(self) -> None:
        wall = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        goals = tuple(goal.name for goal in self.goals)
        self.journal.emit(RunStarted(self.journal.now(), self.journal.run_id, wall, self.project, str(self.store.root),
                                     goals, self.executor.jobs))
        self.store.load(self.project)
        for goal in (*self.goals, *self.exports.values()):
            self.frontier.want(goal)

    def _step(self) -> bool:
        """Decide what can be decided, start what can be started, hear what happened. False: nothing is left to do."""
        self._report_plan()
        while not self._stopping and (node := self.frontier.pop()):
            self._decide(node)
        self._report_plan()
        started = self._dispatch()
        started |= self._export_made()                  # copies of large files do not hold up those who read them here
        self._report_lost()
        if self.running:
            self._listen()
        elif not started and self.queue and not self._stopping:
            time.sleep(_POLL_S)                         # other processes hold the locks
        elif not started:
            self._check_stuck()
            return False
        return True

    @property
    def _stopping(self) -> bool:
        return bool(self.failed) and not self.executor.keep_going

    def _report_plan(self) -> None:
        if len(self.frontier.nodes) != self.planned:
            self.planned = len(self.frontier.nodes)
            self.journal.emit(Planned(self.journal.now(), self.planned))

    def _check_stuck(self) -> None:
        if not self._stopping and (cycle := self.frontier.cycle()):
            raise TaskError(f"tasks need each other: {' -> '.join(cycle)}", where=f"task {cycle[0]!r}")

    # -- deciding -----------------------------------------------------------------------------------------------------

    def _decide(self, node: Node) -> None:
        """Take the task's result from the store, or put it into the queue with the reason why."""
        if node.error is not None:
            self._fail(node, _plan_error(node), 0.0)
            return
        try:
            facts = self._facts(node.task, node)
        except ToolchainError as e:
            self._fail(node, e, 0.0)
            return
        key = key_of(facts)
        reason = ""
        if trace := self.store.find(key):
            if not (reason := self.store.intact(trace)):
                self._take(node, key, trace, facts)
                return
            self.store.drop(key)
        self._enqueue(node, key, facts, reason)

    def _facts(self, task: Task, node: Node) -> dict[str, str]:
        files = {name: self.store.source_digest(path, self.project) for name, path in task.files.items()}
        self.sources.update((path, files[name]) for name, path in task.files.items())
        return ingredients(task, {name: child.digest for name, child in node.inputs.items()}, files)

    def _enqueue(self, node: Node, key: str, facts: Mapping[str, str], damage: str) -> None:
        past = self.store.past(self.project, node.name)
        changed = changes(past.ingredients, facts) if past else ()
        if not damage:
            damage = describe(changed) if changed else "not in the store" if past else "not built before"
        estimate_s = self.store.estimate_s(node.name, node.task.run)
        inputs = {name: child.artifact for name, child in node.inputs.items() if child.artifact is not None}
        self.queue.append(Job(node, key, facts, damage, changed, estimate_s, inputs))

    def _take(self, node: Node, key: str, trace: Trace, facts: Mapping[str, str]) -> None:
        """The store has it."""
        artifact = trace.artifact
        if not self._export(node, artifact, trace.digest):
            self._heal(node, key)
            return
        if node not in self.ran:
            self.cached[node] = trace
            self.journal.emit(TaskFinished(self.journal.now(), node.name, True, trace.duration_s, trace.digest), flush=False)
        if self.store.last_key(self.project, node.name) != key:
            past = self.store.past(self.project, node.name)
            changed = changes(past.ingredients, facts) if past else ()
            self.notes.append(self._entry(node, key, facts, FOUND, changed))
        self.frontier.finish(node, artifact, trace.digest)

    # -- running ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> bool:
        """Start as many queued tasks as may run now, the longest first. True: something was started or decided anew."""
        self.queue.sort(key=lambda job: (job.node.task.resource == MACHINE, -(job.estimate_s or 0)))
        moved = False
        for job in list(self.queue):
            if self._stopping or (self.running and len(self.running) >= self.executor.jobs):
                break
            if any(child.state is not State.DONE for child in job.node.inputs.values()):
                self.queue.remove(job)                      # an input's files are damaged: it is being made anew
                self.frontier.again(job.node)
                moved = True
            elif job.key in self.keys:                      # another task with the same key is running: share its result
                self.queue.remove(job)
                self.keys[job.key].append(job.node)
            elif self._resource_is_free(job.node.task.resource) and self._lock(job):
                self.queue.remove(job)
                moved = True
                self._start_or_take(job)
        return moved

    def _resource_is_free(self, resource: str) -> bool:
        held = [job.node.task.resource for job in self.running.values()]
        if resource == MACHINE:
            return not held
        return MACHINE not in held and (not resource or resource not in held)

    def _lock(self, job: Job) -> bool:
        """Take the job's locks; while another process has one, say so once."""
        if busy := job.lock(self.store.locks):
            if not job.waiting:
                job.waiting = True
                self.journal.emit(TaskWaiting(self.journal.now(), job.node.name, busy))
            return False
        return True

    def _start_or_take(self, job: Job) -> None:
        """Run the task, unless another process has done so since it was decided about."""
        if (trace := self.store.find(job.key, fresh=True)) and not self.store.intact(trace):
            job.release()
            self._take(job.node, job.key, trace, job.facts)
            return
        job.attempt += 1
        job.begun_s = self.journal.now()
        self.running[job.node.name] = job
        self.keys[job.key] = []
        self.journal.emit(TaskStarted(job.begun_s, job.node.name, job.reason, job.estimate_s, job.attempt))
        work = self._work(job)
        if self.executor.jobs == 0:
            self._perform_here(work)
            return
        if self.pool is None:
            from toolchain.build.pool import Pool  # a build that runs nothing does not pay for it

            self.pool = Pool(self.executor.jobs, self.executor.preload)
        self.pool.start(work)

    def _work(self, job: Job) -> Work:
        from toolchain.build.worker import Work

        folder = self._temporary()
        log = self.journal.log_path(job.node.name, folder)
        task = job.node.task
        return Work(task.name, task.run, task.params, job.inputs, {n: p.absolute() for n, p in task.files.items()},
                    folder / fresh_name("out"), log, self.store.root)

    def _temporary(self) -> Path:
        """This run's folder for step outputs."""
        if self.temp is None:
            folder = self.store.temp / fresh_name("run")
            self.temp = folder, hold(Path(f"{folder}.lock"))
            folder.mkdir()
        return self.temp[0]

    def _perform_here(self, work: Work) -> None:
        from toolchain.build.worker import logged_streams, perform

        def report(done: float, total: float, text: str) -> None:
            self.journal.emit(Progress(self.journal.now(), work.task, done, total, text))

        with logged_streams(work.log):
            outcome = perform(work, self.store.blobs, report)
        self._conclude(work, outcome)

    def _listen(self) -> None:
        if self.pool is None:
            return
        from toolchain.build.pool import Said

        timeout_s = _POLL_S if any(job.waiting for job in self.queue) and len(self.running) < self.executor.jobs else None
        for work, said in self.pool.events(timeout_s):
            if isinstance(said, Said):
                self.journal.emit(Progress(self.journal.now(), work.task, said.done, said.total, said.text))
            else:
                self._conclude(work, said)

    # -- concluding ---------------------------------------------------------------------------------------------------

    def _conclude(self, work: Work, outcome: Outcome | Died) -> None:
        """A running task has come to an end, one way or another."""
        from toolchain.build.pool import Died
        from toolchain.build.worker import Damaged, Failed, Made

        job = self.running.pop(work.task)
        same = self.keys.pop(job.key)
        duration_s = self.journal.now() - job.begun_s
        try:
            match outcome:
                case Made():
                    self._commit(job, outcome, work)
                case Damaged():
                    self._remake(job, outcome)
                case Failed():
                    self._fail(job.node, outcome.error, outcome.duration_s, work)
                case Died() if job.attempt < 2:
                    remove_tree(work.out)
                    self.journal.warn(job.node.name, f"{outcome}; trying once more")
                    self.queue.append(job)
                case Died():
                    remove_tree(work.out)
                    self._fail(job.node, TaskError(str(outcome), where=f"task {work.task!r}", fix=f"see {work.log}"),
                               duration_s, work)
        finally:
            job.release()
            for node in same:
                self.frontier.again(node)

    def _commit(self, job: Job, made: Made, work: Work) -> None:
        node = job.node
        if self._facts(node.task, node) != job.facts:
            self.journal.warn(node.name, "its source files changed while it ran; once more")
            self.frontier.again(node)
            return
        entry = self._entry(node, job.key, job.facts, job.reason, job.changes)
        trace = self.store.commit(entry, made.artifact, made.signatures, made.duration_s)
        self.ran[node] = self.ran.get(node, 0.0) + made.duration_s
        self.cached.pop(node, None)
        self.journal.emit_log(work.task, work.log)
        self.journal.emit(TaskFinished(self.journal.now(), node.name, False, made.duration_s, trace.digest,
                                       made.artifact.size_bytes))
        self.made.append((node, job.key, trace))
        self.frontier.finish(node, made.artifact, trace.digest)

    def _export_made(self) -> bool:
        """Put what has been made where it is wanted. True: the store's copy of something is damaged, it is made again."""
        made, self.made = self.made, []
        damaged = [(node, key) for node, key, trace in made if not self._export(node, trace.artifact, trace.digest)]
        for node, key in damaged:
            self._heal(node, key)
        return bool(damaged)

    def _remake(self, job: Job, damage: Damaged) -> None:
        """Inputs turned out damaged when they were to be read: forget them, make them anew, then decide again."""
        damaged = [job.node.inputs[name] for name in damage.inputs]
        self.journal.warn(job.node.name, f"{damage.what}; making it again")
        for name, child in zip(damage.inputs, damaged, strict=True):
            if child.state is State.DONE and child.digest == job.inputs[name].digest:
                self.store.drop(key_of(self._facts(child.task, child)))
        if any(self._is_hopeless(child) for child in damaged):
            self._fail(job.node, TaskError(f"{damage.what}, again and again", where=str(self.store.root),
                                           fix="check that disk, or set TC_STORE to another"), 0.0)
        else:
            self.frontier.again(job.node, damaged)

    def _heal(self, node: Node, key: str) -> None:
        """The task's own files turned out damaged when they were to be exported."""
        self.store.drop(key)
        if self._is_hopeless(node):
            self._fail(node, TaskError("its files in the store are damaged again and again", where=str(self.store.root),
                                       fix="check that disk, or set TC_STORE to another"), 0.0)
        else:
            self.frontier.again(node)

    def _is_hopeless(self, node: Node) -> bool:
        self.healed[node] = self.healed.get(node, 0) + 1
        return self.healed[node] > _HEALINGS

    def _export(self, node: Node, artifact: Artifact, digest: str) -> bool:
        """Put the task's files where they are wanted. False: the store's copies are damaged."""
        for folder, task in self.exports.items():
            if task.name == node.name:
                try:
                    done = export(self.store, artifact, folder, self.project, digest)
                except DamagedBlob:
                    return False
                if done == "restored":
                    self.journal.warn(node.name, f"{folder} had been changed by hand; restored")
        return True

    def _fail(self, node: Node, error: ToolchainError, duration_s: float, work: Work | None = None) -> None:
        log = repro = ""
        if work is not None:
            log = str(work.log)
            self.journal.emit_log(work.task, work.log)
            if self.executor.project:
                from toolchain.build import failed

                repro = str(failed.keep(self.executor.project, self.store, work, error))
        self.failed[node.name] = error
        self.frontier.fail(node)
        self.journal.emit(TaskFailed(self.journal.now(), node.name, type(error).__name__, error.what, error.where,
                                     error.fix, duration_s, log, repro, node.task.about))

    def _report_lost(self) -> None:
        for node, because in self.frontier.lost:
            self.skipped.append(node.name)
            self.journal.emit(TaskSkipped(self.journal.now(), node.name, because))
        self.frontier.lost.clear()

    def _entry(self, node: Node, key: str, facts: Mapping[str, str], reason: str, changed: tuple[Change, ...]) -> Entry:
        return Entry(self.project, node.name, node.task.run, key, facts, reason, changed, self.journal.run_id)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _release_everything(self) -> None:
        if self.pool is not None:
            self.pool.close()
        for job in self.running.values():
            job.release()
        if self.temp is not None:
            folder, lock = self.temp
            remove_tree(folder)
            lock.release()
        for path in self.store.temp.glob("*.lock"):             # of killed runs: the kernel has released their locks
            if stale := Lock.acquire(path):
                remove_tree(path.with_suffix(""))
                stale.release()
        if self.executor.project and self.ran:
            from toolchain.build import failed

            failed.forget(self.executor.project, [node.name for node in self.ran])

    def _finish(self, status: str) -> RunFinished:
        path = critical_path(self.ran)
        summary = RunFinished(
            self.journal.now(), status, len(self.ran), len(self.cached), len(self.failed), len(self.skipped),
            wall_s=self.journal.now(), saved_s=sum(trace.duration_s for trace in self.cached.values()),
            critical_s=sum(seconds for _, seconds in path), critical_path=path,
            log=str(self.journal.folder or ""))
        self.journal.emit(summary)
        self.journal.close()
        return summary


def _plan_error(node: Node) -> ToolchainError:
    """What `needs` raised, in the user's words."""
    if isinstance(node.error, ToolchainError):
        return node.error
    error = TaskError(f"cannot tell what it needs: {type(node.error).__name__}: {node.error}", where=f"task {node.name!r}")
    error.__cause__ = node.error
    return error
