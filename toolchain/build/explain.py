"""Why a task would run, or did; and what a build would do. Reads the store and the source files, runs nothing.

    $ tc explain compile:resnet18@x86
    compile:resnet18@x86 would run
      input graph changed: 3fa9c1d2e4b5 -> 77ab01c3d2e1
        optimize:resnet18@x86 ran in 20260101-120000-77
          param level changed: 2 -> 3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from toolchain.build.frontier import Frontier, Node
from toolchain.build.keys import Change, changes, describe, ingredients, key_of
from toolchain.build.store import FOUND, Past, Store
from toolchain.build.task import Task
from toolchain.core.artifact import Artifact
from toolchain.core.errors import ToolchainError, UsageError


class PlannedTask(NamedTuple):
    """What a build would do with one task.

    certain: False when it runs only if what tasks before it make is not what they made last time. open_ended: it has dynamic
    needs that are not known before its inputs are made, so there will be more tasks than are listed.
    """

    name: str
    would_run: bool
    reason: str
    estimated_s: float | None
    certain: bool
    open_ended: bool
    inputs: tuple[str, ...]
    resource: str


class _Verdict(NamedTuple):
    """What is known about one task. changes: since its last build here. waits: those of its inputs (by name) whose tasks
    would run before it. problem: why it cannot be decided about, or what is wrong with its files in the store."""

    node: Node
    up_to_date: bool
    past: Past | None
    changes: tuple[Change, ...] = ()
    waits: tuple[str, ...] = ()
    problem: str = ""

    @property
    def certain(self) -> bool:
        return bool(self.problem or self.changes or not self.waits or self.past is None)

    @property
    def reason(self) -> str:
        if self.up_to_date or self.problem:
            return self.problem
        if not self.certain:
            return f"if {' or '.join(self.node.inputs[name].name for name in self.waits[:3])} changes"
        return describe(self.changes) if self.changes else "not in the store" if self.past else "not built before"


class _Planner:
    """Decides about tasks as the executor does, with nothing ever run: what a task would make is unknown."""

    def __init__(self, store: Store, project: Path | None, goals: Iterable[Task]) -> None:
        self.store, self.project = store, str(project.absolute()) if project else ""
        self.frontier = Frontier()
        self.verdicts: dict[str, _Verdict] = {}
        store.load(self.project)
        for goal in goals:
            self.frontier.want(goal)
        while node := self.frontier.pop():
            self.verdicts[node.name] = verdict = self._verdict(node)
            if not verdict.up_to_date:
                self.frontier.finish(node, None, "")

    def _verdict(self, node: Node) -> _Verdict:
        past = self.store.past(self.project, node.name)
        if node.error is not None:
            return _Verdict(node, False, past, problem=str(node.error))
        waits = tuple(name for name, child in node.inputs.items() if not child.digest)
        assumed = past.ingredients if past else {}          # an input still to be made may come out as last time
        inputs = {n: c.digest or assumed.get(f"input {n}", "") for n, c in node.inputs.items()}
        try:
            files = {n: self.store.source_digest(path, self.project) for n, path in node.task.files.items()}
            facts = ingredients(node.task, inputs, files)
        except ToolchainError as e:
            return _Verdict(node, False, past, waits=waits, problem=str(e))
        changed = changes(assumed, facts) if past else ()
        if node.task.needs is not None and not node.expanded:       # dynamic inputs are not gone, only not known yet
            changed = tuple(c for c in changed if not (c.ingredient.startswith("input ") and c.new is None))
        if waits:
            return _Verdict(node, False, past, changed, waits)
        if (trace := self.store.find(key_of(facts))) is None:
            return _Verdict(node, False, past, changed)
        if problem := self.store.intact(trace):
            return _Verdict(node, False, past, changed, problem=problem)
        self.frontier.finish(node, trace.artifact, trace.digest)
        return _Verdict(node, True, past)


def plan(goals: Sequence[Task], store: Store, project: Path | None = None) -> list[PlannedTask]:
    """What a build of `goals` would do, inputs before those that read them. Tasks that are up to date are listed too."""
    planner = _Planner(store, project, goals)
    return [_planned(verdict, store) for verdict in planner.verdicts.values()]


def up_to_date(goals: Sequence[Task], store: Store, project: Path | None = None) -> dict[str, Artifact]:
    """What those of the goals' tasks made that would not run, and all that they need: found in the store, by name."""
    nodes = _Planner(store, project, goals).frontier.nodes
    return {name: node.artifact for name, node in nodes.items() if node.artifact is not None}


def _planned(verdict: _Verdict, store: Store) -> PlannedTask:
    node, would_run = verdict.node, not verdict.up_to_date
    return PlannedTask(
        node.name, would_run, verdict.reason, store.estimate_s(node.name, node.task.run) if would_run else None,
        verdict.certain, node.task.needs is not None and not node.expanded,
        tuple(child.name for child in node.inputs.values()), node.task.resource)


def find_task(goals: Sequence[Task], name: str, store: Store, project: Path | None = None) -> Task:
    """The task of that name among the goals and all they need, as far as that is known.

    Raises UsageError: there is none; it suggests the nearest names.
    """
    nodes = _Planner(store, project, goals).frontier.nodes
    if name in nodes:
        return nodes[name].task
    import difflib  # only to help after a typing error

    near = difflib.get_close_matches(name, nodes, n=3, cutoff=0.5)
    raise UsageError(f"no task {name!r}", fix=f"did you mean {' or '.join(map(repr, near))}?" if near else "see `tc plan`")


# -- explaining -------------------------------------------------------------------------------------------------------


def explain(task: Task, store: Store, project: Path | None = None) -> list[str]:
    """Why the task would run, down to what changed first; when it is up to date, why it last ran."""
    planner = _Planner(store, project, [task])
    verdict = planner.verdicts.get(task.name)
    if verdict is None:
        cycle = planner.frontier.cycle()
        return [f"{task.name} cannot be built: tasks need each other: {' -> '.join(cycle)}"]
    return list(_Story(planner).of(verdict))


class _Story:
    """Tells about each task once."""

    def __init__(self, planner: _Planner) -> None:
        self.planner = planner
        self.told: set[str] = set()

    def of(self, verdict: _Verdict) -> Iterator[str]:
        name = verdict.node.name
        if name in self.told:
            yield f"{name}: see above"
            return
        self.told.add(name)
        if verdict.up_to_date:
            yield f"{name} is up to date"
            yield from _indented(self._last_build(verdict))
            return
        yield f"{name} would run" if verdict.certain else f"{name} would run if what it reads comes out differently"
        yield from _indented(self._causes(verdict))

    def _causes(self, verdict: _Verdict) -> Iterator[str]:
        if verdict.problem:
            yield verdict.problem
        elif verdict.past is None:
            yield "not built before"
        elif not verdict.changes and not verdict.waits:
            yield "not in the store"
        yield from self._changes(verdict.node, verdict.changes)
        for name in verdict.waits:
            child = verdict.node.inputs[name]
            if (waiting := self.planner.verdicts.get(child.name)) is not None:
                yield f"input {name}:"
                yield from _indented(self.of(waiting))

    def _changes(self, node: Node, changed: Iterable[Change]) -> Iterator[str]:
        """Each change, and below a changed input why that one changed."""
        for change in changed:
            yield str(change)
            kind, _, name = change.ingredient.partition(" ")
            child = node.inputs.get(name) if kind == "input" else None
            if child is not None and child.name not in self.told and child.name in self.planner.verdicts:
                self.told.add(child.name)
                yield from _indented(self._last_build(self.planner.verdicts[child.name]))

    def _last_build(self, verdict: _Verdict) -> Iterator[str]:
        past, name = verdict.past, verdict.node.name
        if past is None:
            yield f"{name} was found in the store; this project has not built it"
            return
        done = "was found" if past.reason == FOUND else "ran"
        yield f"{name} {done} in {past.run_id}" if past.run_id else f"{name} {done}"
        if past.changes:
            yield from _indented(self._changes(verdict.node, past.changes))
        elif past.reason != FOUND:
            yield f"  {past.reason}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)
