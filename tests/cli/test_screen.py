"""How events become a screen: on a pipe, on a terminal, in colour or not, narrow or wide."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import pytest

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
    Warned,
)
from toolchain.cli.screen import (
    JsonLines,
    Live,
    Plain,
    Style,
    annotation,
    cut,
    is_user_error,
    seconds,
    size,
    style_of,
)
from toolchain.core.settings import Settings, settings

GOALS = {"net@x86": ("link:net@x86", "verify:net@x86"), "other@x86": ("link:other@x86",)}
PLAIN, COLOURED = Style(colour=False, animate=False, width=100), Style(colour=True, animate=False, width=100)
EVENTS = (
    RunStarted(0.0, "run", "2026-01-01T00:00:00Z", "/p", "/s", ("link:net@x86",), 2),
    Planned(0.0, 5),
    TaskFinished(0.0, "import:net", True, 2.0, "d"),
    TaskStarted(0.1, "link:net@x86", "not built before", None, 1),
    TaskWaiting(0.2, "tune:a", "another process builds it"),
    Progress(0.3, "link:net@x86", 3, 10, "kernels"),
    Warned(0.4, "", "the disk is nearly full"),
    TaskFinished(1.5, "link:net@x86", False, 1.4, "d", 1000),
    TaskFinished(1.6, "verify:net@x86", False, 0.02, "d", 10),
    TaskFailed(2.0, "link:other@x86", "CodegenError", "no schedule\nfits", "kernel 'conv\x1b[31m1'", "try again", 0.3,
               "/no/such/log", "/no/such/repro", "conv1, relu1 of other"),
    TaskSkipped(2.0, "verify:other@x86", "link:other@x86"),
    RunFinished(2.1, "failed", 2, 1, 1, 1, 2.1, 2.0, 1.4, (("link:net@x86", 1.4), ("verify:net@x86", 0.02))),
)


def shown(kind: type[Plain], style: Style, events=EVENTS, **options: object) -> tuple[str, str]:
    out, progress = io.StringIO(), io.StringIO()
    screen = kind(GOALS, out, progress, style, **options)
    for event in events:
        screen.take(event)
    screen.close()
    return out.getvalue(), progress.getvalue()


def test_plain(golden):
    out, progress = shown(Plain, PLAIN)
    golden(f"{progress}--- standard output\n{out}")


def test_plain_text_has_no_control_codes():
    assert "\x1b" not in "".join(shown(Plain, PLAIN))


def test_colour_without_animation_draws_nothing_twice():
    out, progress = shown(Plain, COLOURED)
    assert "\x1b[31mfailed" in progress and "\x1b[32mdone" in progress
    assert "\r" not in progress and "\x1b[2K" not in progress and "\x1b[1A" not in progress
    assert "\x1b" not in out                    # a pipe


def test_names_cannot_colour_the_screen():
    assert "\x1b[31m1" not in shown(Plain, COLOURED)[1]


def test_a_terminal_shows_the_same_lines_and_the_running_tasks():
    out, progress = shown(Live, Style(colour=False, animate=True, width=60))
    for line in ("[2/5] done     link:net@x86  1.4 s", "warning  the disk is nearly full", "failed: link:other@x86"):
        assert line in progress
    assert out == shown(Plain, PLAIN)[0]


def test_the_running_tasks_are_shown_while_they_run():
    progress = io.StringIO()
    screen = Live(GOALS, io.StringIO(), progress, Style(colour=False, animate=True, width=60))
    for event in EVENTS[:6]:
        screen.take(event)
    screen.live.refresh()
    screen.close()
    assert "link:net@x86  30 % kernels" in progress.getvalue()
    assert f"{'━' * 8}{'─' * 32} 1/5" in progress.getvalue()


def test_without_a_task_that_runs_nothing_is_animated():
    finished = RunFinished(0.1, "done", 0, 3, 0, 0, 0.1, 9.0, 0.0, ())
    cached = tuple(TaskFinished(0.0, t, True, 3.0, "d") for tasks in GOALS.values() for t in tasks)
    out, progress = shown(Live, Style(colour=True, animate=True, width=60), (*cached, finished))
    assert (out, progress) == ("built 2 of 2 builds: 0 tasks ran, 3 cached, 0.1 s (saved 9.0 s)\n", "")


def test_an_interrupted_build_says_it_can_go_on():
    finished = RunFinished(0.1, "interrupted", 1, 0, 0, 0, 0.1, 0.0, 0.0, ())
    assert shown(Plain, PLAIN, (finished,))[0].startswith("interrupted; built 0 of 2 builds: 1 task ran")
    assert shown(Plain, PLAIN, (finished,))[0].endswith("the next build goes on from here\n")


def test_at_most_ten_annotations():
    failed = [TaskFailed(0.0, f"t{n}", "TaskError", "no", "", "", 0.1, "", "") for n in range(15)]
    progress = shown(Plain, PLAIN, (*failed, EVENTS[-1]), github=True)[1]
    assert progress.count("::error ") == 10


def test_annotations_are_escaped():
    failure = TaskFailed(0.0, "a:b,c", "TaskError", "50 %\nno::more", "", "", 0.1, "", "")
    assert annotation(failure) == "::error title=a%3Ab%2Cc::50 %25%0Ano::more"


def test_json_lines():
    out = io.StringIO()
    screen = JsonLines(out)
    for event in EVENTS:
        screen.take(event)
    screen.close()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [e["event"] for e in lines][:3] == ["run_started", "planned", "task_finished"]
    assert len(lines) == len(EVENTS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def with_environment(**changes: object) -> Settings:
    base = settings()
    fields = {"debug": 0, "dump": None, "only": "*", "check": False, "store": base.store, "no_color": False}
    return Settings(**{**fields, **changes})


@pytest.mark.parametrize(("stream", "environment", "term", "colour", "animate"), [
    (Terminal(), {}, "xterm", True, True),
    (io.StringIO(), {}, "xterm", False, False),
    (Terminal(), {"no_color": True}, "xterm", False, True),
    (Terminal(), {"no_color": True, "force_color": True}, "xterm", False, True),
    (io.StringIO(), {"force_color": True}, "xterm", True, False),
    (Terminal(), {"ci": True}, "xterm", True, False),
    (io.StringIO(), {"ci": True, "force_color": True}, "", True, False),
    (Terminal(), {}, "dumb", False, False)])
def test_colour_and_animation_are_decided_apart(stream, environment, term, colour, animate):
    style = style_of(stream, with_environment(**environment), term)
    assert (style.colour, style.animate) == (colour, animate)


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 ms"), (0.0344, "34 ms"), (0.0994, "99 ms"), (0.0996, "0.1 s"), (3.14, "3.1 s"), (99.44, "99.4 s"),
    (99.6, "1 min 40 s"), (192, "3 min 12 s"), (7500, "2 h 5 min")])
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_600, "1.0 MB"), (123_456_789, "123 MB"), (5e9, "5.0 GB"),
    (2e12, "2000 GB")])
def test_sizes(value, text):
    assert size(value) == text


def test_cut():
    assert (cut("abcdef", 6), cut("abcdefg", 6), cut("abcdefg", 0)) == ("abcdef", "abc...", "a...")


def test_error_classes():
    assert is_user_error("CodegenError") and is_user_error("LimitExceeded")
    assert not is_user_error("BugError") and not is_user_error("InternalError")


@pytest.mark.parametrize("columns", ["24", "120"])
def test_on_a_real_terminal(columns):
    """The whole program on a pseudo-terminal: what it prints fits the width, and the cursor is given back."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from test_screen import EVENTS, GOALS; "
            "from toolchain.cli.screen import make_screen; from toolchain.core.settings import settings; "
            "s = make_screen(GOALS, json=False, settings=settings(), term='xterm'); [s.take(e) for e in EVENTS]; s.close()")
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", columns, "rows", "24"], stdin=theirs, check=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
    command = [sys.executable, "-c", code, os.path.dirname(__file__)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"})
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:                     # Linux says so when the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 0
    shown = text.decode()
    assert "built 1 of 2 builds" in shown and "\x1b[" in shown
    assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
