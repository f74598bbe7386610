"""Candidates measured on boards behind a real sshd: times, mistakes of candidates, boards that are lost, emulated ones."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import World
from loopback import Sshd, processes_of, program

from toolchain.core.errors import TuneError, UsageError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.targets import presets
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.tuning import boards
from toolchain.tasks.tuning.boards import BoardMeasurer, candidate_library
from toolchain.tasks.tuning.candidates import compile_candidate, space_of
from toolchain.tasks.tuning.local import Job
from toolchain.tasks.tuning.trial_run import Timing
from toolchain.te.tune.space import Space

TARGET = presets.target("x86-64-v2")
QUICK = Timing(repeat=2, min_repeat_ms=0.5, timeout_s=5.0)
ROWS, TERMS, COLUMNS = 16, 64, 64


def body() -> Graph:
    types = {"x": TensorType.plain((ROWS, TERMS), "float32"), "w": TensorType.plain((TERMS, COLUMNS), "float32"),
             "y": TensorType.plain((ROWS, COLUMNS), "float32")}
    return Graph("body", (Node("MatMul", ("x", "w"), ("y",), {}, "m"),), ("x", "w"), ("y",), types, {})


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_CONFIG", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def space() -> Space:
    _, facts = compile_workload(body(), TARGET)
    return space_of(body(), TARGET, facts["answers"])


def measurer(*worlds: Sshd, **more: object) -> BoardMeasurer:
    used = [sshd.board(name=f"board{n}") for n, sshd in enumerate(worlds)]
    return BoardMeasurer([Job("task", body(), TARGET, (1,))], used, QUICK, **more)      # type: ignore[arg-type]


def test_candidates_are_timed_on_the_board(world: World, space: Space):
    points = [space.default, *space.neighbours(space.default)[:5]]
    with measurer(world.sshd) as m:
        trials = list(m.measure("task", points, math.inf))
        samples = m.compare("task", points[:2], 3)
    assert [t.answers for t in trials] == [p.answers for p in points]
    for trial in trials:
        assert trial.error == "" and len(trial.samples) >= 2 and min(trial.samples) > 0 and trial.cost_s > 0
    assert [len(s) for s in samples] == [3, 3] and all(us > 0 for s in samples for us in s)


def test_a_candidate_that_is_wrong_or_dies_loses_only_itself(world: World, space: Space, monkeypatch: pytest.MonkeyPatch):
    others = {p.signature: p for p in space.neighbours(space.default) if p.signature != space.default.signature}
    points = [space.default, *list(others.values())[:3]]
    good = compile_candidate(body(), TARGET, space.default.answers)
    real, made = candidate_library, []

    def library(kernel, workload, target, runtime):
        import board_models

        from toolchain.targets.llvm.link import compile_c
        made.append(kernel)
        bad = {2: "hang", 3: "crash", 4: "nothing"}.get(len(made))
        if bad is None:
            return real(kernel, workload, target, runtime)
        source = board_models.SOURCE.replace("((const float *)b[0])[0] == 0", "0") + (
            "\nvoid nothing(void *const *b, int64_t lo, int64_t hi, void *scratch) {}\n")
        code = compile_c(source, target, name="bad.c", includes={})
        return real(type(good)(bad, code, ((bad, 1),), 3, (), 0), workload, target, runtime)

    monkeypatch.setattr(boards, "candidate_library", library)
    monkeypatch.setattr(boards, "ThreadPoolExecutor", OneByOne)
    with BoardMeasurer([Job("task", body(), TARGET, (1,))], [world.sshd.board()],
                       Timing(repeat=2, min_repeat_ms=0.5, timeout_s=0.5)) as m:
        trials = list(m.measure("task", points, math.inf))
    assert [t.cause for t in trials] == ["", "timeout", "crash", "wrong"]
    assert "SIGSEGV" in trials[2].error


class OneByOne:
    def __init__(self, workers: int) -> None:
        pass

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function, items) -> Iterator[None]:
        return map(function, items)


def test_a_board_that_is_lost_is_tried_again(world: World, space: Space):
    points = [space.default, *space.neighbours(space.default)[:5]]
    told: list[str] = []
    with measurer(world.sshd, told=told.append, waits_s=(0.0, 0.5)) as m:
        list(m.measure("task", points[:1], math.inf))
        for pid in processes_of(world.sshd.board_folder):
            os.kill(pid, signal.SIGKILL)
        trials = list(m.measure("task", points[1:], math.inf))
    assert not any(t.error for t in trials)
    assert any("was lost" in text and "trying again" in text for text in told)


def test_a_board_that_stays_away_leaves_its_work_to_the_others(world: World, space: Space, tmp_path: Path):
    points = [space.default, *space.neighbours(space.default)[:11]]
    told: list[str] = []
    other = Sshd(tmp_path / "other")
    try:
        with measurer(other, world.sshd, told=told.append, waits_s=(0.0,)) as m:
            list(m.measure("task", points[:1], math.inf))
            timer = threading.Timer(0.05, other.power_off)
            timer.start()
            trials = list(m.measure("task", points[1:], math.inf))
            timer.join()
            trials += m.measure("task", space.neighbours(points[1])[:8], math.inf)
    finally:
        other.close()
    assert not any(t.error for t in trials)
    assert any("board0 is set aside for this run" in text for text in told)


def test_no_board_left_is_an_error_that_says_so(world: World, space: Space):
    with measurer(world.sshd, waits_s=(0.0,)) as m:
        list(m.measure("task", [space.default], math.inf))
        world.sshd.power_off()
        begun = time.monotonic()
        with pytest.raises(TuneError, match="no device is left: board0: ") as caught:
            list(m.measure("task", space.neighbours(space.default)[:3], math.inf))
        assert time.monotonic() - begun < 20 and "goes on" in caught.value.fix


def test_an_emulated_board_has_no_times_to_tune_by(world: World):
    program("qemu-aarch64-static")
    target = presets.target("cortex-a53")
    board = world.sshd.board(exec_prefix="qemu-aarch64-static -cpu cortex-a53")
    with pytest.raises(UsageError, match=r"is emulated .* no times to tune by"):
        BoardMeasurer([Job("task", body(), target, (1,))], [board], QUICK)


def test_weights_are_rotated_and_outputs_compared():
    """A library of a candidate has an input for each copy of the weights, and one call for each."""
    from toolchain.tasks.tuning.trial_run import prepare

    workload = prepare(body(), (1,), 3 * 4 * TERMS * COLUMNS)
    inputs, outputs, calls = boards.plan_of(workload)
    assert (len(inputs), len(outputs), calls) == (4, 1, [[0, 1], [0, 2], [0, 3]])
    assert [len(b) for b in boards.input_bytes(workload)] == [4 * ROWS * TERMS] + 3 * [4 * TERMS * COLUMNS]
    right = workload.expected[0].astype(np.float32)
    boards.compare_output(workload, 0, right.tobytes())
    with pytest.raises(boards.WrongError, match="wrong: output 0 differs"):
        boards.compare_output(workload, 0, (right + 1).tobytes())
