"""Measuring on this machine: what crashes, hangs, lies or writes where it may not costs its own trial and no other."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from toolchain import te
from toolchain.core.errors import TuneError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.cpu import host_target
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.tuning import trial_run
from toolchain.tasks.tuning.candidates import space_of
from toolchain.tasks.tuning.confirm import confirm
from toolchain.tasks.tuning.local import Job, LocalMeasurer
from toolchain.tasks.tuning.trial_run import (
    HOPELESS,
    Timing,
    WrongError,
    check,
    interleave,
    prepare,
    red_zoned,
    time_candidate,
    warm_up,
    zones_intact,
)
from toolchain.tasks.tuning.worker import in_children
from toolchain.te.ir_builder import IRBuilder
from toolchain.te.loop_ir import ForKind
from toolchain.te.tune.space import Made, Point, Space

HOST = host_target(cores=2)
pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")
QUICK = Timing(repeat=2, min_repeat_ms=0.2, timeout_s=20)
ROWS, TERMS = 40, 30


def body() -> Graph:
    """y = x @ w, w a constant of the network."""
    types = {"x": TensorType.plain((ROWS, TERMS), "float32"), "w": TensorType.plain((TERMS, 64), "float32"),
             "y": TensorType.plain((ROWS, 64), "float32")}
    return Graph("body", (Node("MatMul", ("x", "w"), ("y",), {}, "m"),), ("x", "w"), ("y",), types, {})


def product(terms: int = TERMS, rows: int = ROWS) -> Kernel:
    """The kernel of `body`; fewer terms: one that drops a tail; more rows: one that writes (zeros) behind its result."""
    x, w = te.placeholder((ROWS, TERMS), name="x0"), te.placeholder((TERMS, 64), name="x1")
    b = IRBuilder()
    y = te.placeholder((rows, 64), name="y")
    with b.loop("i", rows) as i, b.loop("j", 64) as j:
        b.store(y, (i, j), te.const(0.0, "float32"))
    with b.loop("i2", ROWS) as i, b.loop("j2", 64) as j, b.loop("k", terms) as k:
        b.store(y, (i, j), y[i, j] + x[i, k] * w[k, j])
    return compile_kernel(b.function("product", inputs=[x, w], outputs=[y]), HOST)


def sums() -> Graph:
    """y[i] = x[0] + ... + x[i]"""
    t = TensorType.plain((ROWS, 64), "float32")
    node = Node("CumSum", ("x", "axis"), ("y",), {"exclusive": 0, "reverse": 0}, "c")
    return Graph("body", (node,), ("x",), ("y",), {"x": t, "y": t, "axis": TensorType.plain((), "int64")},
                 {"axis": np.array(0, np.int64)})


def racy() -> Kernel:
    """`sums` over rows in pieces, each of which adds to what the one before it has left: right in order, on one core."""
    x, y = te.placeholder((ROWS, 64), name="x0"), te.placeholder((ROWS, 64), name="y")
    b = IRBuilder()
    with b.loop("i", ROWS, kind=ForKind.PARALLEL) as i, b.loop("j", 64) as j:
        b.store(y, (i, j), x[i, j])
        with b.when(te.index(i) > 0):
            b.store(y, (i, j), y[i, j] + y[i - 1, j])
    return compile_kernel(b.function("racy", inputs=[x], outputs=[y]), HOST)


def workload() -> trial_run.Workload:
    return prepare(body(), (1,), 0)


# -- wrong kernels ----------------------------------------------------------------------------------------------------


def test_the_right_kernel_passes():
    check(product(), workload())


@pytest.mark.parametrize(("kernel", "what"), [
    (lambda: product(terms=TERMS - 1), "wrong: output 0 differs by"),
    (lambda: product(rows=ROWS + 1), "bounds: it writes beyond its buffers"),
], ids=["dropped tail", "out of bounds"])
def test_a_planted_miscompilation_is_rejected(kernel, what):
    with pytest.raises(WrongError, match=what):
        check(kernel(), workload())


def test_a_racy_reduction_is_rejected():
    """It is right in order: a check that runs its pieces one after the other does not find it."""
    run_on, kernel = prepare(sums(), (), 0), racy()
    trial_run.load(kernel)(*run_on.copies[0])
    np.testing.assert_allclose(run_on.copies[0][1].reshape(ROWS, 64), run_on.expected[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(WrongError, match="wrong: "):
        check(kernel, run_on)


def test_red_zones_notice_either_side():
    for at in (-1, 7):
        array = red_zoned(7)
        assert zones_intact(array) and array.size == 7 and array.ctypes.data % 64 == 0
        ctypes.c_ubyte.from_address(array.ctypes.data + at).value = 1
        assert not zones_intact(array)


def test_weights_are_rotated():
    """As many copies as the cache is large; activations lie where they lay."""
    run_on = prepare(body(), (1,), rotate_bytes=3 * TERMS * 64 * 4)
    first, *others = run_on.copies
    assert len(others) == 2
    for copy in others:
        assert copy[0] is first[0] and copy[2] is first[2] and copy[1] is not first[1]
        np.testing.assert_array_equal(copy[1], first[1])


# -- timing -----------------------------------------------------------------------------------------------------------


class Clock:
    """Time passes only while a fake kernel runs: each call takes the next of `us`, the last one for ever."""

    def __init__(self, us: Sequence[float]) -> None:
        self.now_s, self.us, self.calls = 0.0, list(us), 0

    def __call__(self) -> float:
        return self.now_s

    def call(self, n: int) -> None:
        for _ in range(n):
            self.now_s += (self.us.pop(0) if len(self.us) > 1 else self.us[0]) / 1e6
            self.calls += 1


def test_a_hopeless_candidate_gets_two_samples():
    clock = Clock([100.0])
    assert time_candidate(clock.call, Timing(repeat=5), 100 / HOPELESS - 1, clock) == (pytest.approx([100.0] * 2), True)
    assert clock.calls == 2 + 2 * 40                                 # warm-up, how many make 4 ms, and those twice


def test_a_core_that_still_speeds_up_condemns_nobody():
    """The first sample is three times too long; times fall from sample to sample, and are taken until they do not."""
    falling = Clock([300.0, 120.0, 110.0, 108.5, 107.0, 106.0, 106.5])
    samples, stopped = time_candidate(falling.call, Timing(number=1, repeat=2), 105.0, falling)
    assert not stopped and min(samples) == pytest.approx(106.0) and samples[-1] == pytest.approx(106.5)


def test_a_candidate_near_the_best_is_measured_until_steady():
    unsteady = Clock([140.0, 130.0, 120.0, 110.0, 100.0, 101.0])
    samples, stopped = time_candidate(unsteady.call, Timing(number=1, repeat=2), 125.0, unsteady)
    assert not stopped and len(samples) > 2 and sorted(samples)[1] <= min(samples) * 1.02
    far = Clock([140.0])
    assert len(time_candidate(far.call, Timing(number=1, repeat=3), 100.0, far)[0]) == 3


def test_a_kernel_is_warm_before_it_is_timed():
    """Each copy of the weights once, however long ago it was made; then the clock's rise; and an end to both."""
    def calls(copies: int, each_s: float) -> int:
        now, made = [0.0], []

        def call(n: int) -> None:
            now[0] += each_s
            made.append(n)
        warm_up(call, copies, lambda: now[0])
        return len(made)
    assert calls(8, 1e-3) == 10                 # 10 ms are more than a run on each copy
    assert calls(8, 3e-3) == 8
    assert calls(32, 3e-3) == 14                # 40 ms at most
    assert calls(4, 1.0) == 1


def test_interleaved_samples_take_turns():
    order: list[int] = []
    calls = [lambda n, k=k: order.append(k) for k in range(3)]       # type: ignore[misc]
    samples = interleave(calls, Timing(number=1), 2, lambda: 0.0)
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1] and [len(s) for s in samples] == [2, 2, 2]       # the first round is dropped


# -- children ---------------------------------------------------------------------------------------------------------


def test_children_crash_hang_and_lie_each_for_itself():
    def crash() -> dict:
        ctypes.string_at(0)
        return {}

    def hang() -> dict:
        time.sleep(60)
        return {}

    def raises() -> dict:
        raise ValueError("no")
    answers = in_children([crash, lambda: {"error": "", "n": 1}, hang, raises, lambda: os._exit(3)], 2, 1.0, "running")
    assert [a["error"] for a in answers] == [
        "crash: killed by SIGSEGV while running", "", "timeout: running took more than 1 s", "crash: ValueError: no",
        "crash: exit code 3 while running"]
    assert answers[1]["n"] == 1


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[LocalMeasurer, Space]]:
    _, facts = compile_workload(body(), HOST)
    space = space_of(body(), HOST, facts["answers"])
    with LocalMeasurer([Job("task", body(), HOST, (1,), 2 * ROWS * TERMS * 64)], QUICK) as measurer:
        yield measurer, space


def test_candidates_are_built_and_timed(measured):
    measurer, space = measured
    points = [space.default, *space.neighbours(space.default)[:2]]
    trials = list(measurer.measure("task", points, math.inf))
    assert [t.answers for t in trials] == [p.answers for p in points]
    for trial in trials:
        assert trial.error == "" and len(trial.samples) >= 1 and min(trial.samples) > 0 and trial.cost_s > 0
    samples = measurer.compare("task", points[:2], 3)
    assert [len(s) for s in samples] == [3, 3]


def test_a_session_that_goes_on_takes_no_candidate_for_the_default(measured):
    """Its default's time is in the log; the first point that a new process measures is another one."""
    _, space = measured
    other, *_ = (p for p in space.neighbours(space.default) if not p.refused)
    with LocalMeasurer([Job("task", body(), HOST, (1,))], QUICK) as measurer:
        (trial,) = measurer.measure("task", [other], math.inf)
    assert trial.error == "" and trial.default_cost == 0.0
    with LocalMeasurer([Job("task", body(), HOST, (1,))], QUICK) as measurer:
        (trial,) = measurer.measure("task", [space.default], math.inf)
    assert 0 < trial.default_cost <= trial.best_cost


def test_all_cores_are_those_a_target_has_here(measured):
    _, space = measured
    for cores, threads in ((1, 1), (1000, len(os.sched_getaffinity(0)))):
        job = Job("task", body(), replace(HOST, cores=cores), (1,))
        with LocalMeasurer([job], QUICK, all_cores=True) as measurer:
            assert measurer._timing("task")["threads"] == threads
            (trial,) = measurer.measure("task", [space.default], math.inf)
            assert trial.error == "" and [len(s) for s in measurer.compare("task", [space.default] * 2, 3)] == [3, 3]


def test_a_refused_build_is_a_failed_trial(measured):
    measurer, space = measured
    (tile,) = (q for q in space.default.questions if q.name == "tile")
    nonsense = replace(space.default, questions=(replace(tile, answer="1x1x1"),), signature="nonsense")
    measurer._files[("task", "nonsense")] = measurer.file("task", nonsense)         # "built", but no kernel lies there
    (trial,) = measurer.measure("task", [nonsense], math.inf)
    assert trial.cause == "crash" and "FileNotFoundError" in trial.error and math.isinf(trial.best_cost)


def test_a_worker_that_is_killed_is_replaced(measured):
    measurer, space = measured
    list(measurer.measure("task", [space.default], math.inf))
    process = measurer._process
    process.kill()
    process.wait()
    (lost,) = measurer.measure("task", [space.default], math.inf)
    (trial,) = measurer.measure("task", [space.default], math.inf)
    assert "crash: the measuring process ended" in lost.error or not lost.error
    assert not trial.error and measurer._process is not process


def test_a_kernel_without_a_reference_is_refused_and_the_next_one_measured(measured):
    _, space = measured
    strange = replace(body(), nodes=(Node("NoSuchOperator", ("x", "w"), ("y",), {}, "n"),))
    with LocalMeasurer([Job("strange", strange, HOST), Job("task", body(), HOST, (1,))], QUICK) as measurer:
        (refused,) = measurer.measure("strange", [space.default], math.inf)
        (trial,) = measurer.measure("task", [space.default], math.inf)
    assert refused.error.startswith("refused: no inputs, or no reference: ") and not trial.error


def test_what_is_faster_than_the_machine_is_implausible(measured):
    _, space = measured
    asked: list[int] = []

    def peak() -> float:
        asked.append(1)
        return 1e-6                                             # GFLOP/s: nothing is that slow
    with LocalMeasurer([Job("task", body(), HOST, (1,), 2 * ROWS * TERMS * 64)], QUICK, peak=peak) as measurer:
        (trial,) = measurer.measure("task", [space.default], math.inf)
    assert trial.cause == "implausible" and math.isinf(trial.best_cost) and trial.samples and len(asked) == 2


# -- confirming -------------------------------------------------------------------------------------------------------


class Samples:
    """Compares by fixed numbers."""

    def __init__(self, *samples: Sequence[float]) -> None:
        self.samples = [list(s) for s in samples]

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]:
        if not self.samples:
            raise TuneError("crash: killed by SIGSEGV while running")
        return self.samples


def points() -> list[Point]:
    space = Space(lambda choices: Made(str(choices.one_of("tile", (1, 2, 3), 1))))
    return list(space.all())


def test_only_what_beats_the_default_side_by_side_wins():
    default, a, b = points()
    fast, faster, noisy = [9.0] * 12, [8.0] * 12, [5.0] * 5 + [11.0] * 7
    slow = [10.0] * 12
    assert confirm("t", default, [a, b], Samples(slow, fast, faster)).winner == b
    assert confirm("t", default, [a, b], Samples(slow, noisy, fast)).winner == b
    lost = confirm("t", default, [a, b], Samples(slow, [9.95] * 12, [10.5] * 12))
    assert lost.winner is None and (lost.default_cost, lost.tuned_cost) == (10.0, 10.0)
    assert confirm("t", default, [a, b], Samples()).error.startswith("crash: ")
