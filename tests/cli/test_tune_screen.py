"""What `tc tune` shows while it runs."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest

from toolchain.cli import tune
from toolchain.cli.screen import Style
from toolchain.te.tune.measure import Trial

A, B = SimpleNamespace(key="a"), SimpleNamespace(key="b")


@pytest.fixture
def screen(monkeypatch):
    """Two kernels of three; the default of `a`, a faster one, a failure, a slower one."""
    err = io.StringIO()
    monkeypatch.setattr(tune.sys, "stderr", err)
    screen = tune.Screen(Style(False, False, 100), 60.0, begun=0.0)
    screen.begin({"a": "conv_relu", "b": "matmul"}, 3)
    for task, trial in ((A, Trial({}, (2000.0,))), (B, Trial({}, (30.0, 31.0))), (A, Trial({}, (1600.0,))),
                        (B, Trial({}, (), "crash: killed by SIGSEGV")), (A, Trial({}, (1700.0,)))):
        screen.trial(task, trial)
    return screen, err


def test_lines_without_a_terminal(screen):
    assert screen[1].getvalue().splitlines() == [
        "tuning 2 of 3 kernels (the others leave nothing to choose)", "conv_relu: 1.60 ms, 1.25x, trial 2"]


def test_the_table_on_a_terminal(screen):
    assert list(screen[0].lines(10.0)) == [
        " 1.25x    1.60 ms     3 trials  conv_relu", " 1.00x    30.0 us     2 trials  matmul",
        "5 trials, 0.5/s, failed: 1 crash, 50.0 s left"]


def test_a_failed_default_has_no_times(screen):
    shown, _ = screen
    shown.begin({"c": "pool"}, 1)
    shown.trial(SimpleNamespace(key="c"), Trial({}, (), "timeout: running took more than 10 s"))
    assert next(shown.lines(1.0)).split() == ["1", "trials", "pool"] and math.isinf(Trial({}, (), "x: y").best_cost)
