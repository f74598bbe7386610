"""`tc build`, and `execute`, which every command that makes something goes through."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from toolchain.build.executor import Build, Executor
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.cli.commands import command, project_options
from toolchain.cli.later import not_yet
from toolchain.cli.project import Project, open_project
from toolchain.cli.screen import make_screen
from toolchain.core.settings import settings
from toolchain.tasks.plan import BuildTasks

PRELOAD = ("toolchain.tasks.steps", "toolchain.tasks.verify")       # imported once, by the workers' fork server


@command("build")
@click.argument("names", nargs=-1)
@project_options
@click.option("-j", "--jobs", type=click.IntRange(1), help="Tasks side by side.  [default: one per core]")
@click.option("--keep-going", is_flag=True, help="After a failure, go on with what does not depend on it.")
@click.option("--locked", is_flag=True, help="Fail where models, tools or schedules are not those of the lock file.")
@click.option("--dry-run", is_flag=True, help="Show what would run, as `tc plan` does, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one event per line, and nothing else, on standard output.")
def build_command(
    names: tuple[str, ...], file: Path | None, folder: Path | None, jobs: int | None, keep_going: bool, locked: bool,
    dry_run: bool, as_json: bool,
) -> int:
    """Make everything the deployfile declares, or the builds NAMES means; only what changed runs.

    NAMES are builds (resnet18@x86), models, or targets. Artifacts are verified; those that pass are put below the
    output folder.

    \b
    Example:
      tc build                       everything
      tc build resnet18 -j 4         all builds of one model, four tasks side by side
      tc build --json > events.jsonl
    """
    if locked:
        raise not_yet("lock files", "wheels are pinned by their SHA-256 in the deployfile; leave --locked out")
    project = open_project(file, folder)
    if dry_run:
        from toolchain.cli.inspect import print_plan

        return print_plan(project, names, as_json)
    tasks = project.tasks(names)
    goals = {b.name: (b.module, b.verify) for b in tasks}
    built = execute(project, goals, exports_of(project, tasks), jobs=jobs, keep_going=keep_going, json=as_json)
    withdraw_unverified(project, tasks, built)
    return built.exit_code


def goals_of(tasks: Sequence[BuildTasks]) -> list[Task]:
    """The tasks `tc build` asks for: each build made and verified."""
    return [task for b in tasks for task in (b.module, b.verify)]


def exports_of(project: Project, tasks: Sequence[BuildTasks]) -> dict[Path, Task]:
    """Which folder gets which artifact: <output>/<build>."""
    return {project.output / b.name: b.module for b in tasks}


def withdraw_unverified(project: Project, tasks: Sequence[BuildTasks], built: Build) -> None:
    """Take artifacts out of the output folder that failed their verification, or could not be verified. They stay in the
    store, and the failed task's folder has what is needed to look into them."""
    unverified = [b for b in tasks if b.verify.name in (*built.failed, *built.skipped)]
    if not unverified:
        return
    from toolchain.build.export import remove_exported

    store = Store(settings().store)
    try:
        for b in unverified:
            remove_exported(store, project.output / b.name)
    finally:
        store.close()


def execute(
    project: Project, goals: Mapping[str, Sequence[Task]], exports: Mapping[Path, Task] | None = None, *,
    jobs: int | None = None, keep_going: bool = False, json: bool = False, noun: str = "builds", is_result: bool = True,
) -> Build:
    """Run the tasks of `goals` (what the user asked for -> the tasks it takes), shown on the right screen."""
    screen = make_screen({name: [t.name for t in tasks] for name, tasks in goals.items()}, json=json, settings=settings(),
                         term=os.environ.get("TERM", ""), noun=noun, is_result=is_result)
    store = Store(settings().store)
    try:
        executor = Executor(store, project.folder, jobs=jobs, keep_going=keep_going, on_event=screen.take, preload=PRELOAD)
        return executor.build([t for tasks in goals.values() for t in tasks], exports)
    finally:
        screen.close()
        store.close()
