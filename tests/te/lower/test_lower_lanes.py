"""vectorize_loops and factor_lanes: text, meaning, refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core.errors import CodegenError
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.te.expr import Broadcast, Ramp
from toolchain.te.loop_ir import For, ForKind, PrimFunc, loops
from toolchain.te.lower import lower
from toolchain.te.lower.factor_lanes import factor_lanes
from toolchain.te.lower.flatten_buffers import flatten_buffers
from toolchain.te.lower.place_init import place_init
from toolchain.te.lower.shared import nodes
from toolchain.te.lower.vectorize_loops import vectorize_loops

TARGET = Target("test", "x86")


def passes(func: PrimFunc, *steps) -> PrimFunc:
    for step in steps:
        func = step(func, TARGET)
    return func


def vectorized(func: PrimFunc) -> PrimFunc:
    return passes(func, factor_lanes, place_init, flatten_buffers, vectorize_loops)


def inputs(func: PrimFunc, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for t in func.params:
        if t not in func.stages:
            floats = rng.integers(-8, 8, t.shape)          # small whole numbers: sums are exact in any order
            made[t.name] = floats.astype(t.dtype)
    return made


def same_result(func: PrimFunc, seed: int = 0) -> PrimFunc:
    after = vectorized(func)
    assert not any(loop.kind is ForKind.VECTORIZED for loop in loops(after.body))
    arrays = inputs(func, seed)
    want, got = te.interpret(func, arrays), te.interpret(after, arrays)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    return after


def elementwise(n: int, fn) -> te.Schedule:
    a = te.placeholder((n,), name="A")
    c = te.compute((n,), lambda i: fn(a, i), name="C")
    s = te.create_schedule(c)
    _, inner = s[c].split(c.op.axis[0], factor=4)
    s[c].vectorize(inner)
    return s


ACCESSES = {
    "contiguous": lambda a, i: a[i] * 2.0,
    "reversed": lambda a, i: a[7 - i],
    "broadcast": lambda a, i: a[0] + 1.0,
    "division": lambda a, i: a[i // 3],
    "lane_as_value": lambda a, i: te.index(i).astype("float32") * a[i],
    "guarded_read": lambda a, i: te.select(i >= 1, a[i - 1], 0.0),
}


@pytest.mark.parametrize("name", ACCESSES)
def test_accesses(golden, name):
    golden(te.to_text(same_result(elementwise(8, ACCESSES[name]).func)))


def test_a_tail_becomes_a_mask(golden):
    golden(te.to_text(same_result(elementwise(6, lambda a, i: a[i] + 1.0).func)))


def row_sum(m: int, n: int, lanes: int, combiner: str = "sum") -> te.Schedule:
    a = te.placeholder((m, n), name="A")
    k = te.reduce_axis(n, "k")
    c = te.compute((m,), lambda i: getattr(te, combiner)(a[i, k], axis=k), name="C")
    s = te.create_schedule(c)
    _, inner = s[c].split(c.op.reduce_axis[0], factor=lanes)
    s[c].vectorize(inner)
    return s


def test_a_reduction_over_lanes_keeps_one_sum_per_lane(golden):
    golden(te.to_text(same_result(row_sum(3, 10, 4).func)))


def test_accumulators_of_several_rows(golden):
    a = te.placeholder((6, 8), name="A")
    k = te.reduce_axis(8, "k")
    c = te.compute((6,), lambda i: te.max(a[i, k], axis=k), name="C")
    s = te.create_schedule(c)
    ko, ki = s[c].split(c.op.reduce_axis[0], factor=4)
    io, ii = s[c].split(c.op.axis[0], factor=3)
    s[c].reorder(io, ko, ii, ki)
    s[c].unroll(ii)
    s[c].vectorize(ki)
    golden(te.to_text(same_result(s.func)))


@given(m=st.integers(1, 4), n=st.integers(1, 20), lanes=st.integers(1, 9), combiner=st.sampled_from(["sum", "max", "min"]))
def test_reductions_keep_the_result(m, n, lanes, combiner):
    same_result(row_sum(m, n, min(lanes, n), combiner).func)


@given(
    m=st.integers(1, 5), n=st.integers(1, 9), k=st.integers(1, 5), factor=st.integers(1, 9), dim=st.integers(0, 1),
    layout=st.sampled_from(["AB", "BA", "AB4b", "AB2a4b"]),
)
def test_any_loop_of_any_layout(m, n, k, factor, dim, layout):
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis(k, "r")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="C")
    s = te.create_schedule(c)
    s.set_layout(c, Layout.parse(layout, axes="AB"))
    axis = c.op.axis[dim]
    _, inner = s[c].split(axis, factor=min(factor, axis.extent))
    s[c].vectorize(inner)
    same_result(s.func)


def test_loads_at_indices_read_at_run_time():
    a, at = te.placeholder((9,), name="A"), te.placeholder((8,), "int64", name="at")
    c = te.compute((8,), lambda i: a[te.index(at[i], 0, 8)], name="C")
    s = te.create_schedule(c)
    s[c].vectorize(c.op.axis[0])
    arrays = {"A": np.arange(9, dtype=np.float32), "at": np.array([3, 1, 4, 1, 5, 8, 2, 6])}
    np.testing.assert_array_equal(te.interpret(vectorized(s.func), arrays)["C"], arrays["A"][arrays["at"]])


def test_refuses_a_vectorized_loop_inside_another():
    s = elementwise(8, lambda a, i: a[i])
    func = passes(s.func, place_init, flatten_buffers)
    assert isinstance(func.body, For)
    both = replace(func, name="two", body=replace(func.body, kind=ForKind.VECTORIZED))
    with pytest.raises(CodegenError, match="two: vectorized loop i_1 inside vectorized loop i_0"):
        vectorize_loops(both, TARGET)


def test_refuses_a_place_that_every_lane_stores():
    a = te.placeholder((4,), name="A")
    c = te.compute((1,), lambda i: a[i], name="C")
    func = passes(te.create_schedule(c).func, flatten_buffers)
    store = next(n for n in nodes(func.body) if type(n).__name__ == "Store")
    lane = te.Var("l", 4)
    wrong = type(store)(store.tensor, store.index, a[lane])
    with pytest.raises(CodegenError, match="every lane of vectorized loop l stores to one place of C"):
        vectorize_loops(PrimFunc("one", func.params, For(lane, wrong, ForKind.VECTORIZED), func.buffers), TARGET)


def test_nothing_has_lanes_before():
    func = passes(elementwise(8, lambda a, i: a[i]).func, place_init, flatten_buffers)
    assert not any(isinstance(n, Ramp | Broadcast) for n in nodes(func.body))
    assert any(isinstance(n, Ramp) for n in nodes(lower(elementwise(8, lambda a, i: a[i]).func, TARGET).body))


@pytest.mark.parametrize("combiner", ["sum", "max"])
def test_lanes_that_a_guard_excludes_stay_out_of_the_join(combiner):
    """Three windows in eight lanes: place_init starts three accumulators, and no more than those may be joined."""
    X = te.placeholder((5, 4, 3), name="A")
    c, w = te.reduce_axis(4, "c"), te.reduce_axis(3, "w")
    C = te.compute((5,), lambda i: getattr(te, combiner)(X[i, c, w], axis=(c, w)), name="C")
    s = te.create_schedule(C)
    _, lane = s[C].split(w, 8)
    s[C].vectorize(lane)
    func = s.func
    x = np.random.default_rng(0).integers(-4, 5, (5, 4, 3)).astype(np.float32)
    for lowered in (vectorized(func), lower(func, TARGET)):
        np.testing.assert_array_equal(te.interpret(lowered, {"A": x})["C"], getattr(x, combiner)((1, 2)))


def test_pieces_of_a_reduction_share_one_start():
    """The first piece in lanes, the second not: both accumulate on what the first one starts."""
    X = te.placeholder((6, 4, 3), name="A")
    c, w = te.reduce_axis(4, "c"), te.reduce_axis(3, "w")
    C = te.compute((6,), lambda i: te.sum(te.select(te.index(w) < 2, X[i, c, w], 2.0), axis=(c, w)), name="C")
    s = te.create_schedule(C)
    s[C].vectorize(w)
    s[C].partition(w)
    x = np.random.default_rng(0).integers(-4, 5, (6, 4, 3)).astype(np.float32)
    want = x[..., :2].sum((1, 2)) + 8
    for func in (s.func, vectorized(s.func), lower(s.func, TARGET)):
        np.testing.assert_array_equal(te.interpret(func, {"A": x})["C"], want)
