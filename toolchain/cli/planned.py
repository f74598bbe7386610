"""What a build would do, as text: `tc plan`, and `tc build --dry-run`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence

from toolchain.build.caret import printable
from toolchain.build.explain import PlannedTask, plan
from toolchain.build.lockfile import lock_path, read
from toolchain.build.store import Store
from toolchain.cli.locked import check_inputs
from toolchain.cli.project import Project
from toolchain.cli.screen import count, cut, seconds, style_of
from toolchain.core.settings import settings
from toolchain.tasks.lock import locked_tuning


def print_plan(
    project: Project, names: Sequence[str], as_json: bool, *, show_all: bool = False, locked: bool = False,
) -> int:
    """Print what `tc build NAMES` would do, on standard output. Raises LockfileError: `locked`, and something differs."""
    lock = read(lock_path(project.file))
    builds = project.tasks(names, locked_tuning(lock) if locked else None)
    open_questions = check_inputs(project, lock, builds) if locked else ()
    with_store = Store(settings().store)
    tasks = plan([t for b in builds for t in b.goals], with_store, project.folder)
    with_store.close()
    if as_json:
        for task in tasks:
            print(json.dumps(task._asdict()))
        return 0
    style = style_of(sys.stdout, settings(), os.environ.get("TERM", ""))
    for line in plan_lines(tasks, show_all=show_all, width=style.width if sys.stdout.isatty() else 0):
        print(line)
    if open_questions:
        print(f"compared with the lock file once they have run: {', '.join(printable(t.name) for t in open_questions)}")
    return 0


def plan_lines(tasks: Sequence[PlannedTask], *, show_all: bool = False, width: int = 0) -> Iterator[str]:
    """One line per task, then a summary. width: of the terminal, 0 where lines may be of any length."""
    shown = [t for t in tasks if show_all or t.would_run]
    names = min(max((len(t.name) for t in shown), default=0), 60)
    for t in shown:
        mark = "=" if not t.would_run else "+" if t.certain else "?"
        cost = f" ({seconds(t.estimated_s)})" if t.estimated_s is not None else ""
        line = printable(f"{mark} {t.name:<{names}}  {t.reason if t.would_run else 'up to date'}{cost}")
        yield cut(line, width) if width else line
    run = [t for t in tasks if t.would_run]
    if not run:
        yield f"nothing to do: {count(len(tasks), 'tasks')} up to date"
        return
    known = [t.estimated_s for t in run if t.estimated_s is not None]
    unknown = len(run) - len(known)
    text = f"{count(len(run), 'tasks')} would run, {len(tasks) - len(run)} up to date"
    text += f"; about {seconds(sum(known))} of work" if known else ""
    text += f", and {unknown} never timed" if unknown and known else ""
    if any(t.open_ended for t in run):
        text += "; kernels are known when their graph has been optimized"
    yield text


__all__ = ["plan_lines", "print_plan"]
