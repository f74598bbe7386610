"""Loads in bursts, multiply-adds by lane: what the inner loops of a board's kernels look like, and that they stay right."""

from __future__ import annotations

import re

import numpy as np
import pytest
from emulation import run
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain import te
from toolchain.core.target import Target
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.object import assembly, innermost_loops, spills
from toolchain.targets.presets import PRESETS
from toolchain.te.lower import lower

A53, A72 = PRESETS["cortex-a53"], PRESETS["cortex-a72"]
LANES = 4


def product(points: int, vectors: int, unrolled: int, steps: int = 32) -> te.Schedule:
    """A register tile of points x vectors, some steps in a block: y[p, c] = sum of x[p, k] * w[k, c]."""
    x, w = te.placeholder((points, steps), name="x"), te.placeholder((steps, vectors * LANES), name="w")
    k = te.reduce_axis(steps, "k")
    y = te.compute((points, vectors * LANES), lambda p, c: te.sum(x[p, k] * w[k, c], axis=k), name="y")
    return in_registers(te.create_schedule(y), y, k, unrolled)


def window(points: int, taps: int, stride: int, rows: int = 8) -> te.Schedule:
    """A row of a convolution from plain planes: y[p, c] = sum of x[r, stride*p + t] * w[r, t, c], all taps in a block."""
    x, w = te.placeholder((rows, stride * (points - 1) + taps), name="x"), te.placeholder((rows, taps, 2 * LANES), name="w")
    r, t = te.reduce_axis(rows, "r"), te.reduce_axis(taps, "t")
    y = te.compute((points, 2 * LANES), lambda p, c: te.sum(x[r, stride * p + t] * w[r, t, c], axis=(r, t)), name="y")
    return in_registers(te.create_schedule(y), y, t, taps)


def in_registers(s: te.Schedule, y: te.Tensor, axis: te.Var, unrolled: int) -> te.Schedule:
    acc = s.cache_write(y, "local")
    p, c = s[y].op.axis
    cv, cl = s[y].split(c, factor=LANES)
    s[y].unroll(p)
    s[y].unroll(cv)
    s[y].vectorize(cl)
    ap, ac = s[acc].op.axis
    *outer, k = s[acc].op.reduce_axis
    ko, ki = s[acc].split(k, factor=unrolled)
    av, al = s[acc].split(ac, factor=LANES)
    s[acc].reorder(*outer, ko, ki, ap, av, al)
    for loop in (ki, ap, av):
        s[acc].unroll(loop)
    s[acc].vectorize(al)
    return s


def inner(s: te.Schedule, target: Target) -> list[str]:
    """The one loop with multiply-adds."""
    code = assembly(str(LLVM.stages[0].run(lower(s.func, target, LLVM.passes), "k", {}, target)), target)
    assert not spills(code)
    (loop,) = (loop for loop in innermost_loops(code) if any("fmla" in line for line in loop))
    return [line.strip() for line in loop]


def runs(loop: list[str]) -> str:
    """The order of loads and multiply-adds: "LF" is all loads, then all multiply-adds."""
    kinds = ["F" if line.startswith("fmla") else "L" for line in loop if line.startswith(("fmla", "ld"))]
    return re.sub(r"(.)\1*", r"\1", "".join(kinds))


@pytest.mark.parametrize(("points", "vectors", "order"), [(8, 2, "LF"), (5, 3, "LF"), (6, 3, "LFLF"), (5, 4, "LFLFLFLF")])
def test_as_many_steps_as_registers_hold_are_loaded_at_once(points: int, vectors: int, order: str):
    loop = inner(product(points, vectors, 4), A53)
    assert runs(loop) == order
    assert sum(line.startswith("fmla") for line in loop) == 4 * points * vectors
    assert not [x for x in loop if x.startswith(("dup", "ld1r")) or re.match(r"ld\w+\s+s", x)], "scalars are lanes"


def test_a_core_out_of_order_gets_lanes_and_its_own_order():
    loop = inner(product(8, 2, 4), A72)
    assert not [line for line in loop if line.startswith(("dup", "ld1r"))] and len(runs(loop)) > 2


@pytest.mark.parametrize(("taps", "loads"), [(4, 4), (7, 5), (5, 4)])
def test_elements_of_a_window_are_loaded_once(taps: int, loads: int):
    """Six points with stride 2 read 10 + taps neighbours: whole vectors, the last one early."""
    loop = inner(window(6, taps, 2), A53)
    x = [line for line in loop if re.match(r"ld[pu]?r?\s+[qds]", line)]
    vectors = sum(2 if line.startswith("ldp") else 1 for line in x) - 2 * taps
    assert vectors == loads, x


@settings(max_examples=25)
@given(points=st.integers(1, 8), vectors=st.integers(1, 4), unrolled=st.sampled_from([1, 2, 4, 8]))
def test_products_stay_right(points: int, vectors: int, unrolled: int):
    agree(product(points, vectors, unrolled))


@settings(max_examples=25)
@given(points=st.integers(1, 7), taps=st.integers(1, 9), stride=st.integers(1, 4))
def test_windows_stay_right_and_read_nothing_beyond(points: int, taps: int, stride: int):
    """Every buffer ends where its last page does."""
    agree(window(points, taps, stride))


def agree(s: te.Schedule) -> None:
    rng = np.random.default_rng(0)
    arrays = {t.name: rng.integers(-9, 9, t.shape).astype(np.float32) for t in s.func.inputs}
    np.testing.assert_array_equal(run(s.func, A53, arrays)["y"], te.interpret(s.func, arrays)["y"])
