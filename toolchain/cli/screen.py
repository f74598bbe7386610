"""A build's events as a person reads them: the one place that decides what goes to the terminal while tasks run.

    JsonLines   --json: one event per line on standard output, nothing else
    Plain       no terminal: one line per task that ran, on standard error
    Live        a terminal: the same lines, above a changing block of the tasks that run now

Colour and animation are decided apart (forced colour in CI prints no spinner frames), and rich is imported when the first
task runs, never for a build with nothing to do. Failures are shown again at the end, above the summary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TextIO

from toolchain.build.caret import printable, printable_lines
from toolchain.build.events import (
    Event,
    Planned,
    Progress,
    RunFinished,
    TaskFailed,
    TaskFinished,
    TaskLog,
    TaskSkipped,
    TaskStarted,
    TaskWaiting,
    Warned,
    line,
)
from toolchain.core import errors
from toolchain.core.settings import Settings

Goals = Mapping[str, Sequence[str]]

MAX_ANNOTATIONS = 10            # GitHub shows no more per step
SHOWN_RUNNING = 8
CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class Style(NamedTuple):
    """How to write to one stream: with colour, with animation, and how wide."""

    colour: bool
    animate: bool
    width: int

    def paint(self, text: str, colour: str) -> str:
        return f"\033[{CODES[colour]}m{text}\033[0m" if self.colour else text


def style_of(stream: TextIO, settings: Settings, term: str) -> Style:
    """Decide for a stream. NO_COLOR wins over FORCE_COLOR; only a real terminal outside CI is animated."""
    terminal = stream.isatty() and term != "dumb"
    colour = not settings.no_color and (settings.force_color or terminal)
    return Style(colour, terminal and not settings.ci, width_of(stream) if terminal else 100)


def width_of(stream: TextIO) -> int:
    """Columns of the terminal behind a stream, at least 20."""
    try:
        return max(20, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        return 100


class Screen(Protocol):
    """Takes the events of a run, one by one; `close` is called once at the end, also after an exception."""

    def take(self, event: Event) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """Every event as one line of JSON."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def take(self, event: Event) -> None:
        print(line(event), file=self.out, flush=True)

    def close(self) -> None:
        self.out.flush()


class Plain:
    """One line per task that ran, failed, or was held up; then the failures again, and the summary."""

    def __init__(self, goals: Goals, out: TextIO, progress: TextIO, style: Style, *, github: bool = False,
                 noun: str = "builds") -> None:
        self.goals, self.out, self.progress, self.style, self.github, self.noun = goals, out, progress, style, github, noun
        self.total = self.done = 0
        self.finished: set[str] = set()
        self.failures: list[TaskFailed] = []
        self.skipped: list[TaskSkipped] = []

    def take(self, event: Event) -> None:
        match event:
            case Planned():
                self.total = event.tasks
            case TaskFinished():
                self.done += 1
                self.finished.add(event.task)
                if not event.cached:
                    self.line("done", "green", f"{event.task}  {seconds(event.duration_s)}")
            case TaskFailed():
                self.done += 1
                self.failures.append(event)
                first, *_ = event.what.split("\n")
                self.line("failed", "red", f"{event.task}  {first}")
            case TaskSkipped():
                self.skipped.append(event)
            case TaskWaiting():
                self.line("wait", "yellow", f"{event.task}: {event.what}")
            case Warned():
                self.line("warning", "yellow", f"{event.task}: {event.text}" if event.task else event.text)
            case RunFinished():
                self.finish(event)
            case TaskLog() | TaskStarted() | Progress():
                pass

    def line(self, word: str, colour: str, text: str) -> None:
        """One line of progress: [12/40] done     optimize:resnet18@x86  0.31 s"""
        counter = f"[{self.done}/{max(self.total, self.done)}]"
        shown = cut(printable(text), self.style.width - len(counter) - 10) if self.style.animate else printable(text)
        self.write(f"{counter} {self.style.paint(f'{word:<8}', colour)} {shown}")

    def write(self, text: str) -> None:
        print(text, file=self.progress, flush=True)

    def finish(self, event: RunFinished) -> None:
        for n, failure in enumerate(self.failures):
            self.write("\n" + failure_text(failure, self.style))
            if self.github and n < MAX_ANNOTATIONS:
                self.write(annotation(failure))
        if self.skipped:
            self.write("\n" + skipped_text(self.skipped))
        text, colour = self.summary(event)
        self.progress.flush()
        print(self.style.paint(text, colour) if self.out.isatty() else text, file=self.out, flush=True)

    def summary(self, event: RunFinished) -> tuple[str, str]:
        """The last line, and its colour."""
        made = sum(1 for tasks in self.goals.values() if self.finished.issuperset(tasks))
        text = f"built {made} of {len(self.goals)} {self.noun}: {count(event.ran, 'tasks')} ran, {event.cached} cached"
        text += f", {event.failed} failed" if event.failed else ""
        text += f", {event.skipped} not reached" if event.skipped else ""
        text += f", {seconds(event.wall_s)}"
        text += f" (saved {seconds(event.saved_s)})" if event.saved_s >= 0.05 else ""
        if event.critical_path:
            longest = sorted(event.critical_path, key=lambda step: -step[1])[:3]
            steps = ", ".join(f"{printable(task)} {seconds(s)}" for task, s in event.critical_path if (task, s) in longest)
            text += f"; critical path: {steps}"
        if event.status == "interrupted":
            text = f"interrupted; {text}; the next build goes on from here"
        return text, "green" if event.status == "done" else "red"

    def close(self) -> None:
        self.progress.flush()


class Live(Plain):
    """Plain's lines above a block of the running tasks, redrawn in place by rich."""

    def __init__(self, goals: Goals, out: TextIO, progress: TextIO, style: Style, *, github: bool = False,
                 noun: str = "builds") -> None:
        super().__init__(goals, out, progress, style, github=github, noun=noun)
        self.running: dict[str, TaskStarted] = {}
        self.fraction: dict[str, Progress] = {}
        self.live: Any = None

    def take(self, event: Event) -> None:
        match event:
            case TaskStarted():
                self.running[event.task] = event
                self._start()
            case Progress():
                self.fraction[event.task] = event
            case TaskFinished() | TaskFailed():
                self.running.pop(event.task, None)
                self.fraction.pop(event.task, None)
            case RunFinished():
                self.close()
        super().take(event)
        if self.live is not None:
            self.live.update(self._block())

    def write(self, text: str) -> None:
        if self.live is None:
            super().write(text)
        else:
            from rich.text import Text

            self.live.console.print(Text.from_ansi(text), soft_wrap=True)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
        super().close()

    def _start(self) -> None:
        if self.live is not None:
            return
        from rich.console import Console
        from rich.live import Live as RichLive

        colour: Any = "standard" if self.style.colour else None
        console = Console(file=self.progress, color_system=colour, no_color=not self.style.colour, highlight=False,
                          force_terminal=True, width=self.style.width)
        self.live = RichLive(console=console, refresh_per_second=8, transient=True)
        self.live.start()

    def _block(self) -> Any:
        """The tasks that run now, the longest-running first, each with what it says about its progress."""
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        lines: list[Any] = []
        for task in list(self.running)[:SHOWN_RUNNING]:
            note = ""
            if (progress := self.fraction.get(task)) is not None:
                share = f"{100 * progress.done / progress.total:.0f} % " if progress.total else ""
                note = f"  {share}{printable(progress.text)}"
            lines.append(Spinner("dots", Text(cut(f"{printable(task)}{note}", self.style.width - 4))))
        if len(self.running) > SHOWN_RUNNING:
            lines.append(Text(f"  and {len(self.running) - SHOWN_RUNNING} more"))
        width = min(40, self.style.width - 14)
        if width >= 10 and self.total:
            filled = width * self.done // max(self.total, self.done)
            lines.append(Text(f"{'━' * filled}{'─' * (width - filled)} {self.done}/{self.total}"))
        return Group(*lines)


def make_screen(
    goals: Goals, *, json: bool, settings: Settings, term: str, noun: str = "builds", is_result: bool = True,
) -> Screen:
    """The screen for this process's standard streams. goals: what the user asked for -> names of the tasks it takes.
    is_result: the summary is what the command was run for, and goes to standard output."""
    if json:
        return JsonLines(sys.stdout)
    style = style_of(sys.stderr, settings, term)
    kind: Callable[..., Screen] = Live if style.animate else Plain
    return kind(goals, sys.stdout if is_result else sys.stderr, sys.stderr, style, github=settings.github, noun=noun)


def failure_text(failure: TaskFailed, style: Style) -> str:
    """A failed task with all that helps: the error, its place, the fix, the log, the reproduction."""
    head = f"{'failed' if is_user_error(failure.error) else 'this is a bug in the toolchain'}: {printable(failure.task)}"
    what = printable_lines(f"{failure.where}: {failure.what}" if failure.where else failure.what)
    rows = [style.paint(head, "red"), *(f"  {line}" for line in what.split("\n"))]
    repro = failure.repro and f"{failure.repro}/run.sh"
    fix = failure.fix if failure.fix != f"see {failure.log}" else ""
    for word, value in (("for", failure.about), ("fix", fix), ("log", near(failure.log)), ("reproduce", near(repro))):
        if value:
            rows.append(f"  {word}: {printable(value)}")
    return "\n".join(rows)


def near(path: str) -> str:
    """A path as it is shortest to type from here."""
    relative = os.path.relpath(path) if path else ""
    return relative if len(relative) < len(path) else path


def skipped_text(skipped: list[TaskSkipped]) -> str:
    """not reached because compile:a failed: link:a, verify:a"""
    by_cause: dict[str, list[str]] = {}
    for event in skipped:
        by_cause.setdefault(event.because, []).append(printable(event.task))
    rows = []
    for cause, tasks in by_cause.items():
        more = f" and {len(tasks) - 5} more" if len(tasks) > 5 else ""
        rows.append(f"not reached because {printable(cause)} failed: {', '.join(tasks[:5])}{more}")
    return "\n".join(rows)


def annotation(failure: TaskFailed) -> str:
    """A failure as GitHub Actions shows it beside the commit."""
    def escape(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    title = escape(failure.task).replace(",", "%2C").replace(":", "%3A")
    return f"::error title={title}::{escape(printable_lines(failure.what))}"


def is_user_error(error: str) -> bool:
    """Whether the class of that name is one a person can act on. Everything else is our bug."""
    kind = getattr(errors, error, errors.ToolchainError)    # a class defined elsewhere derives from one there
    return issubclass(kind, errors.ToolchainError) and not issubclass(kind, errors.BugError)


def seconds(value: float) -> str:
    """0.034 -> 34 ms, 3.14 -> 3.1 s, 192 -> 3 min 12 s, 7500 -> 2 h 5 min"""
    if value < 0.0995:
        return f"{value * 1000:.0f} ms"
    if value < 99.5:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(value: float) -> str:
    """1536 -> 1.5 kB, as the deployfile's sizes: powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def count(n: int, plural: str) -> str:
    return f"{n} {plural if n != 1 else plural.removesuffix('s')}"


def cut(text: str, width: int) -> str:
    """`text` in at most `width` characters, its end replaced by ... where it is longer."""
    return text if len(text) <= max(width, 4) else text[: max(width, 4) - 3] + "..."
