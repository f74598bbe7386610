"""`tc build`, and `execute`, which every command that makes something goes through."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.build.caret import printable
from toolchain.build.executor import Build, Executor, available_cores
from toolchain.build.load import was_checked
from toolchain.build.lockfile import Lock, lock_path, read, update
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.cli.commands import command, known_names, project_options
from toolchain.cli.project import Project, find_deployfile, open_project
from toolchain.cli.screen import make_screen
from toolchain.core.settings import settings
from toolchain.tasks.lock import declared, locked_tuning, pinned, results
from toolchain.tasks.plan import BuildTasks

if TYPE_CHECKING:
    from toolchain.build.pool import Pool

PRELOAD = ("toolchain.tasks.steps", "toolchain.tasks.verify")       # imported once, by the workers' fork server


@command("build")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("-j", "--jobs", type=click.IntRange(1), help="Tasks side by side.  [default: one per core]")
@click.option("--keep-going", is_flag=True, help="After a failure, go on with what does not depend on it.")
@click.option("--locked", is_flag=True, help="Build exactly what deployfile.lock says, or fail and show what differs.")
@click.option("--dry-run", is_flag=True, help="Show what would run, as `tc plan` does, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line, and nothing else, on standard output.")
def build_command(
    names: tuple[str, ...], file: Path | None, folder: Path | None, jobs: int | None, keep_going: bool, locked: bool,
    dry_run: bool, as_json: bool,
) -> int:
    """Make everything the deployfile declares, or the builds NAMES means; only what changed runs.

    NAMES are builds (resnet18@x86), models, or targets. Artifacts are verified; those that pass are put below the
    output folder, and locked: deployfile.lock keeps what each was made from, and its digest. Commit that file.

    With --locked nothing is compiled unless models, data, targets and tools are the locked ones (else exit 2), and an
    artifact that comes out differently fails (exit 3). The lock file stays as it is.

    \b
    Example:
      tc build                       everything
      tc build resnet18 -j 4         all builds of one model, four tasks side by side
      tc build --locked              in CI: what was committed, or nothing
      tc build --json > events.jsonl
    """
    workers = None if dry_run else prepared_workers(find_deployfile(file, folder), jobs)
    project = open_project(file, folder)
    if dry_run:
        from toolchain.cli.planned import print_plan

        return print_plan(project, names, as_json, locked=locked)
    lock = read(lock_path(project.file))
    tasks = project.tasks(names, locked_tuning(lock) if locked else None)
    if locked and (code := check_locked(project, lock, tasks, jobs=jobs, json=as_json)):
        return code
    goals = {b.name: b.goals for b in tasks}
    built = execute(project, goals, exports_of(project, tasks), jobs=jobs, keep_going=keep_going, json=as_json,
                    pool=workers)
    withdraw_unverified(project, tasks, built)
    for b in tasks:
        if not b.runs and b.module.name in built.artifacts:
            print(f"{printable(b.name)}: not verified: this machine does not run its code", file=sys.stderr)
    if locked:
        check_artifacts(project, lock, tasks, built)
    elif (told := write_lock(project, lock, tasks, built)) and not as_json:
        print(told, file=sys.stderr)
    return built.exit_code


def prepared_workers(deployfile: Path, jobs: int | None) -> Pool | None:
    """Workers that load their modules while this process reads the deployfile and plans. None where the deployfile was read
    before as it is: perhaps there is nothing to do, and that must cost nothing."""
    if was_checked(deployfile):
        return None
    from toolchain.build.pool import Pool

    pool = Pool(jobs or available_cores(), PRELOAD)
    click.get_current_context().call_on_close(pool.close)
    pool.prepare()
    return pool


def exports_of(project: Project, tasks: Sequence[BuildTasks]) -> dict[Path, Task]:
    """Which folder gets which artifact: <output>/<build>."""
    return {project.output / b.name: b.module for b in tasks}


def withdraw_unverified(project: Project, tasks: Sequence[BuildTasks], built: Build) -> None:
    """`withdraw` artifacts of which a shape bucket failed its verification, or could not be verified."""
    withdraw(project, [b for b in tasks if any(t.name in (*built.failed, *built.skipped) for t in b.verifications)])


def withdraw(project: Project, builds: Sequence[BuildTasks]) -> None:
    """Take artifacts out of the output folder. They stay in the store, and a failed task's folder has what is needed to look
    into it."""
    if not builds:
        return
    from toolchain.build.export import remove_exported

    store = Store(settings().store)
    try:
        for b in builds:
            remove_exported(store, project.output / b.name)
    finally:
        store.close()


def write_lock(project: Project, lock: Lock, tasks: Sequence[BuildTasks], built: Build) -> str:
    """Lock those of the builds that were made and verified, and forget what the deployfile no longer declares.

    Returns what has changed, in a line; empty: nothing.
    """
    done = made_and_verified(tasks, built)
    inputs = pinned(done, project.deployfile, built.artifacts, built.sources) if done else {}
    changed = update(lock, {**inputs, **results(done, inputs, built.artifacts)}, declared(project.deployfile))
    names = [printable(name) for kind, name in changed if kind == "builds"]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{lock.path.name}: locked {', '.join(names[:5])}{more}" if names else ""


def made_and_verified(tasks: Sequence[BuildTasks], built: Build) -> list[BuildTasks]:
    """Verified where something here runs them."""
    return [b for b in tasks if all(task.name in built.artifacts for task in (b.module, *b.verifications))]


def check_locked(
    project: Project, lock: Lock, tasks: Sequence[BuildTasks], *, jobs: int | None = None, json: bool = False,
) -> int:
    """Compare what the builds would be made from with the lock file. What only a recipe, a download or a look at the
    processor can tell is made first, and nothing else. Returns 0, or the exit code of that.

    Raises LockfileError: something differs.
    """
    from toolchain.cli.locked import check_inputs

    if not (first := check_inputs(project, lock, tasks)):
        return 0
    built = execute(project, {task.name: (task,) for task in first}, jobs=jobs, json=json, noun="inputs", is_result=False)
    if not built.exit_code:
        check_inputs(project, lock, tasks)
    return built.exit_code


def check_artifacts(project: Project, lock: Lock, tasks: Sequence[BuildTasks], built: Build) -> None:
    """Compare what came out with the lock file; what differs leaves the output folder. Raises VerificationError."""
    from toolchain.cli.locked import differing, not_reproduced

    if found := differing(lock, made_and_verified(tasks, built), built.artifacts):
        withdraw(project, [b for b in tasks if b.name in found])
        raise not_reproduced(lock, found)


def execute(
    project: Project, goals: Mapping[str, Sequence[Task]], exports: Mapping[Path, Task] | None = None, *,
    jobs: int | None = None, keep_going: bool = False, json: bool = False, noun: str = "builds", is_result: bool = True,
    pool: Pool | None = None,
) -> Build:
    """Run the tasks of `goals` (what the user asked for -> the tasks it takes), shown on the right screen. pool: workers
    that were made ready beforehand."""
    screen = make_screen({name: [t.name for t in tasks] for name, tasks in goals.items()}, json=json, settings=settings(),
                         term=os.environ.get("TERM", ""), noun=noun, is_result=is_result)
    store = Store(settings().store)
    try:
        executor = Executor(store, project.folder, jobs=jobs, keep_going=keep_going, on_event=screen.take, preload=PRELOAD,
                            pool=pool)
        return executor.build([t for tasks in goals.values() for t in tasks], exports)
    finally:
        screen.close()
        store.close()
