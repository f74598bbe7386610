"""The kernels that measure the machine compute what they say, spill nothing, and their times become facts."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from toolchain import te
from toolchain.core.target import Target
from toolchain.report.facts import MachineFacts, from_json
from toolchain.targets import presets
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.load import run
from toolchain.targets.llvm.object import assembly, spills
from toolchain.tasks import machine
from toolchain.te.lower import lower

HOST = presets.target("host")


def test_the_kernels_compute_what_they_are_named_for() -> None:
    """Against the interpreter: sums of products in another order differ by rounding."""
    random = np.random.default_rng(0)
    for func in (machine.peak_kernel(HOST, 3), machine.read_kernel(HOST, 5, 2), machine.copy_kernel(HOST, 5)):
        arrays = {t.name: random.standard_normal(t.shape).astype(np.float32) for t in func.params if t not in func.stages}
        found = run(func, HOST, arrays)
        for name, expected in te.interpret(func, arrays).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_the_peak_is_measured_without_spills(name: str) -> None:
    target = presets.PRESETS[name]
    lowered = lower(machine.peak_kernel(target, 10), target, LLVM.passes)
    text = assembly(str(LLVM.stages[0].run(lowered, "k", {}, target)), target)
    assert "vfmadd" in text and not spills(text)


def test_places_leave_out_caches_that_are_hardly_larger() -> None:
    def names(**sizes: int) -> list[tuple[str, int]]:
        return [(p.name, p.used_bytes >> 20) for p in machine.places(Target("t", "x86", **sizes), 2)]

    assert names(l2_bytes=1 << 20, l3_bytes=32 << 20) == [("L2", 0), ("L3", 8), ("memory", 64)]
    assert names(l2_bytes=2 << 20, l3_bytes=4 << 20) == [("L2", 1), ("memory", 32)]
    assert names(l2_bytes=2 << 20, l3_bytes=0) == [("L2", 1), ("memory", 32)]
    assert names(l2_bytes=1 << 20, l3_bytes=1 << 30)[-1] == ("memory", 512)


def test_the_best_round_counts() -> None:
    """Two threads start together; the round is as long as its slower thread."""
    seen: list[int] = []
    ticks = iter(range(100))

    def call(n: int) -> None:
        seen.append(n)

    assert machine.best_s([lambda: call(0), lambda: call(1)], rounds=3, clock=lambda: float(next(ticks))) > 0
    assert sorted(seen) == [0, 0, 0, 1, 1, 1] and threading.active_count() == 1


def test_facts_of_this_machine(tmp_path, monkeypatch) -> None:
    smaller = {"ROUNDS": 1, "FLOPS_PER_ROUND": 1_000_000, "BYTES_PER_ROUND": 1, "MEMORY_BYTES": (1 << 20, 1 << 20)}
    for name, value in smaller.items():
        monkeypatch.setattr(machine, name, value)
    result = machine.measure_machine({"threads": 2, "host": ""}, {}, tmp_path)
    facts = from_json(MachineFacts, json.loads((tmp_path / machine.FACTS_FILE).read_text()))
    assert [s.threads for s in facts.speeds] == [1, 2] and result.meta["peak_gflops"] == facts.speeds[1].peak_gflops
    for speed in facts.speeds:
        assert speed.peak_gflops > 0 and speed.levels[-1].name == "memory" and speed.levels[0].name == "L2"
        assert all(level.read_gb_s > 0 and level.copy_gb_s > 0 for level in speed.levels)
