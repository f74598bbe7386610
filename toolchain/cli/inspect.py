"""Commands that look and run nothing: `tc plan`, `tc explain`, `tc show`, `tc graph`, `tc check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from toolchain.build.caret import printable, printable_lines
from toolchain.build.explain import PlannedTask, explain, find_task, plan
from toolchain.build.failed import failed_folder, last_error
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.cli.build import execute
from toolchain.cli.commands import command, known_names, project_options
from toolchain.cli.planned import print_plan
from toolchain.cli.project import Project, open_project
from toolchain.cli.screen import near
from toolchain.core.settings import settings
from toolchain.tasks.plan import BuildTasks


@command("plan")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("--all", "show_all", is_flag=True, help="List the tasks that are up to date, too.")
@click.option("--locked", is_flag=True, help="Fail where models, data, targets or tools are not those of the lock file.")
@click.option("--json", "as_json", is_flag=True, help="Print one task per line as JSON.")
def plan_command(
    names: tuple[str, ...], file: Path | None, folder: Path | None, show_all: bool, locked: bool, as_json: bool,
) -> int:
    """Show which tasks a build would run, in order, why, and how long each took before.

    A line that begins with ? runs only if what the tasks before it make is not what they made last time.

    \b
    Example:
      tc plan resnet18
    """
    return print_plan(open_project(file, folder), names, as_json, show_all=show_all, locked=locked)


@command("explain")
@click.argument("task", shell_complete=known_names)
@project_options
def explain_command(task: str, file: Path | None, folder: Path | None) -> int:
    """Say why TASK would run now, down to what changed first; or, when it is up to date, why it ran last time.

    TASK is a name that `tc plan --all` lists, or a build.

    \b
    Example:
      tc explain optimize:resnet18@x86
    """
    project = open_project(file, folder)
    store = Store(settings().store)
    found = resolve(project, store, task)
    for line in explain(found, store, project.folder):
        print(printable(line))
    store.close()
    if error := last_error(project.folder, found.name):
        print(printable(f"it failed last time: {error}"))
        print(printable(f"reproduce: {near(str(failed_folder(project.folder, found.name)))}/run.sh"))
    return 0


def resolve(project: Project, store: Store, name: str) -> Task:
    """The task users mean by its name, or by the name of the build it finishes. Raises UsageError with the nearest names."""
    tasks = project.tasks(())
    by_build = {b.name: b.module for b in tasks}
    if name in by_build:
        return by_build[name]
    measures = [bucket.measure for b in tasks for bucket in b.buckets]
    goals = [t for b in tasks for t in b.goals]
    return find_task([*goals, *measures, *(b.machine for b in tasks)], name, store, project.folder)


@command("graph")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("--format", "form", type=click.Choice(["dot", "mermaid"]), default="dot", show_default=True)
def graph_command(names: tuple[str, ...], file: Path | None, folder: Path | None, form: str) -> int:
    """Print the task graph. Tasks that would run are drawn bold.

    \b
    Example:
      tc graph | dot -Tsvg > tasks.svg
      tc graph --format mermaid
    """
    project = open_project(file, folder)
    store = Store(settings().store)
    tasks = plan([t for b in project.tasks(names) for t in b.goals], store, project.folder)
    store.close()
    print("\n".join(dot(tasks) if form == "dot" else mermaid(tasks)))
    return 0


def dot(tasks: Sequence[PlannedTask]) -> Iterator[str]:
    """The graph in Graphviz's language; edges go from what is made first to what reads it."""
    yield "digraph tasks {"
    yield "  rankdir=LR;"
    yield '  node [shape=box, fontname="sans-serif"];'
    for t in tasks:
        yield f"  {_dot_text(t.name)}{' [penwidth=2]' if t.would_run else ''};"
    for t in tasks:
        for name in t.inputs:
            yield f"  {_dot_text(name)} -> {_dot_text(t.name)};"
    yield "}"


def _dot_text(name: str) -> str:
    escaped = printable(name).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def mermaid(tasks: Sequence[PlannedTask]) -> Iterator[str]:
    """The graph as Mermaid, which GitHub draws inside Markdown."""
    ids = {t.name: f"t{n}" for n, t in enumerate(tasks)}
    yield "flowchart LR"
    for t in tasks:
        label = printable(t.name).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        yield f'  {ids[t.name]}["{label}"]'
    for t in tasks:
        for name in t.inputs:
            yield f"  {ids[name]} --> {ids[t.name]}"
    if bold := [ids[t.name] for t in tasks if t.would_run]:
        yield f"  style {','.join(bold)} stroke-width:3px" if len(bold) == 1 else f"  class {','.join(bold)} run"
    if len(bold) > 1:
        yield "  classDef run stroke-width:3px"


@command("show")
@click.argument("task", shell_complete=known_names)
@click.argument("member", required=False)
@project_options
@click.option("--after", "pass_name", metavar="PASS", help="What was there after that pass; 'list' names the passes.")
def show_command(task: str, member: str | None, file: Path | None, folder: Path | None, pass_name: str | None) -> int:
    """Print what TASK made: a graph, a schedule, a plan, code; or one file (MEMBER) of it. TASK as for `tc explain`.

    \b
    Example:
      tc show optimize:resnet18@x86                       the optimized graph
      tc show optimize:resnet18@x86 --after fold_batch_norm
      tc show resnet18@x86 resnet18.h                     a file of the artifact
    """
    from toolchain.cli.show import show

    project = open_project(file, folder)
    store = Store(settings().store)
    found = resolve(project, store, task)
    for text in show(project, store, found, after=pass_name, member=member):
        print(printable_lines(text))
    store.close()
    return 0


@command("check")
@click.argument("names", nargs=-1, shell_complete=known_names)
@project_options
@click.option("--json", "as_json", is_flag=True, help="Print one model per line as JSON.")
def check_command(names: tuple[str, ...], file: Path | None, folder: Path | None, as_json: bool) -> int:
    """Import the models of the builds NAMES means; show each model's operators, or those that no kernel covers.

    Operators come with their number of nodes and their share of the model's floating-point operations.

    \b
    Example:
      tc check
    """
    from toolchain.cli.coverage import coverage, lines

    project = open_project(file, folder)
    models: dict[str, BuildTasks] = {}
    for build in project.tasks(names):
        models.setdefault(build.build.model, build)
    goals = {name: (build.buckets[0].graph,) for name, build in models.items()}
    built = execute(project, goals, keep_going=True, noun="models", is_result=False)
    store = Store(settings().store)
    for name, (task,) in goals.items():
        if task.name in built.artifacts:
            found = coverage(name, store.blobs.paths(built.artifacts[task.name].files))
            print(json.dumps(found) if as_json else "\n".join(lines(found)))
        elif as_json:
            print(json.dumps({"model": name, "covered": False, "error": str(built.failed.get(task.name, "not reached"))}))
    store.close()
    return built.exit_code
