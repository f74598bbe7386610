"""Candidates on an emulated device: static cycles, results compared by running them, costs that never pass for times."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from programs import program

from toolchain.build.records import Choice, GraphChoice, Records, TrialRow
from toolchain.core.errors import UsageError
from toolchain.core.layout import TensorType
from toolchain.core.unit import STATIC_CYCLES
from toolchain.graph.ir import Graph, Node
from toolchain.remote.board import Board
from toolchain.remote.facts import BoardFacts
from toolchain.targets.llvm import mca
from toolchain.targets.presets import PRESETS
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.tuning import emulated
from toolchain.tasks.tuning.candidates import space_of
from toolchain.tasks.tuning.confirm import confirm
from toolchain.tasks.tuning.emulated import StaticMeasurer, is_emulated
from toolchain.tasks.tuning.graphs import HeavyNode, costs
from toolchain.tasks.tuning.local import Job
from toolchain.tasks.tuning.static_cost import workload_cost
from toolchain.te.tune.session import Standing
from toolchain.te.tune.space import Space

A53 = PRESETS["cortex-a53"]


@pytest.fixture(autouse=True)
def installed() -> None:
    program("llvm-mca")
    program("qemu-aarch64-static")
    mca.mca_path.cache_clear()


def body() -> Graph:
    types = {"x": TensorType.plain((16, 64), "float32"), "w": TensorType.plain((64, 64), "float32"),
             "y": TensorType.plain((16, 64), "float32")}
    return Graph("body", (Node("MatMul", ("x", "w"), ("y",), {}, "m"),), ("x", "w"), ("y",), types, {})


@pytest.fixture(scope="module")
def space() -> Space:
    _, facts = compile_workload(body(), A53)
    return space_of(body(), A53, facts["answers"])


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board("emulator", host="local", folder=str(tmp_path), exec_prefix="qemu-aarch64-static -cpu cortex-a53")


def test_costs_are_counted_and_results_compared(board, space, monkeypatch):
    points = [space.default, *space.neighbours(space.default)[:4]]
    with StaticMeasurer([Job("task", body(), A53, (1,))], board) as m:
        trials = list(m.measure("task", points, math.inf))
        assert [len(t.samples) for t in trials] == [1] * 5 and not any(t.error for t in trials)
        symbol, cost = workload_cost(body(), A53, {})
        assert trials[0].samples == (cost.cycles,) and symbol.startswith("k_")
        assert [t.samples for t in m.measure("task", points, math.inf)] == [t.samples for t in trials]    # no noise
        best = min(points, key=lambda p: trials[points.index(p)].best_cost)
        found = confirm("task", space.default, [best], m)
        assert found.tuned_cost == min(t.best_cost for t in trials) if found.winner else best == space.default
    monkeypatch.setattr(emulated.Seat, "run", lambda *_: [([], "wrong: output 0 differs by 3")])
    with StaticMeasurer([Job("task", body(), A53, (1,))], board) as m:
        (trial,) = m.measure("task", [space.default], math.inf)
        assert trial.error == "wrong: output 0 differs by 3" and math.isinf(trial.best_cost)
        assert confirm("task", space.default, points[1:2], m).error == "wrong: output 0 differs by 3"


def test_emulated_devices_and_boards_do_not_mix(board, monkeypatch):
    real = replace(board, name="real")
    facts = BoardFacts("aarch64", "", "", "", 1, 0, 0)
    monkeypatch.setattr(emulated, "board_facts",
                        lambda session: replace(facts, emulated="" if session.board is real else "runs in an emulator"))
    assert is_emulated([board], A53) and not is_emulated([real], A53)
    with pytest.raises(UsageError, match="emulator: emulated, beside boards that are not: times and static"):
        is_emulated([board, real], A53)


def choice(us: float, at: float, unit: str = "") -> Choice:
    return Choice("w", "t", {"tile": f"{us:g}"}, "conv", 9.0, us, at, {"unit": unit} if unit else {})


def test_what_was_timed_takes_the_place_of_a_declared_cost_and_never_the_other_way(tmp_path):
    with Records(tmp_path) as records:
        records.choose([choice(5, 10, STATIC_CYCLES)])
        assert records.choices("t")["w"].unit == STATIC_CYCLES
        records.choose([choice(4, 5)])                              # timed earlier, and timed
        assert records.choices("t")["w"].tuned_cost == 4
        records.choose([choice(3, 20, STATIC_CYCLES)])
        assert records.choices("t")["w"].tuned_cost == 4
        records.choose([choice(2, 30)])
        assert records.choices("t")["w"].tuned_cost == 2
        records.choose_graphs([GraphChoice("g", "t", {}, "net", 9, 9, 1)])
        records.choose_graphs([GraphChoice("g", "t", {}, "net", 9, 5, 2, {"unit": STATIC_CYCLES})])
        assert records.graph_choices("t")[0].tuned_cost == 9


def test_models_learn_from_trials_in_their_own_unit(tmp_path):
    with Records(tmp_path) as records:
        for session, provenance in (("timed", {}), ("counted", {"unit": STATIC_CYCLES})):
            records.begin(session, provenance)
            records.append(session, TrialRow("w", {}, (1.0,), "", 0.1, sample="1:1.0:0:"))
        assert records.trial_counts() == {"timed": 1} and records.trial_counts(STATIC_CYCLES) == {"counted": 1}


def test_graphs_are_decided_in_the_unit_of_what_nobody_measured():
    """Cycles beside conversions in microseconds: as long as they take at the clock of the model that these come from."""
    ways = {name: SimpleNamespace(key=name) for name in ("direct", "winograd")}
    node = HeavyNode("conv", ways, {"direct": 1.0, "winograd": 2.0}, 1.0, {("g", "t")})       # type: ignore[arg-type]
    standings = {name: Standing(name, 4, cost, cost, None, Counter(), False)
                 for name, cost in (("direct", 6000.0), ("winograd", 1500.0))}
    assert costs([node], standings) == {("g", "t"): {"conv": {"direct": 6000.0, "winograd": 3000.0}}}
    assert costs([node], standings, STATIC_CYCLES) == {("g", "t"): {"conv": {"direct": 2.0, "winograd": 1.0}}}
