"""Reductions by a combiner of the user's: of one value, of several at once, of several types."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.layout import Layout
from toolchain.core.rewrite import rewrite
from toolchain.targets.llvm.load import run
from toolchain.targets.presets import PRESETS
from toolchain.te.expr import Const, Index, Load
from toolchain.te.loop_ir import For, PrimFunc, Store, Together, Update, block, leaves
from toolchain.te.lower import lower, verify
from toolchain.te.lower.factor_lanes import factor_lanes

TARGETS = [PRESETS[name] for name in ("x86-64-v3", "x86-64-v4")]


def first_largest(x, y):
    better = te.any(x[0] > y[0], te.all(x[0].equal(y[0]), x[1] < y[1]))
    return te.select(better, x[0], y[0]), te.select(better, x[1], y[1])


argmax = te.comm_reducer(first_largest, lambda value, at: (te.min_value(value), te.max_value(at)), name="argmax")
moments = te.comm_reducer(lambda x, y: (x[0] + y[0], x[1] + y[1]), lambda a, b: (te.const(0, a), te.const(0, b)),
                          name="moments")
welford = te.comm_reducer(
    lambda x, y: (x[0] + y[0], x[1] + (y[1] - x[1]) * te.select((x[0] + y[0]).equal(0.0), 0.0, y[0] / (x[0] + y[0])),
                  x[2] + y[2] + (y[1] - x[1]) * (y[1] - x[1])
                  * te.select((x[0] + y[0]).equal(0.0), 0.0, x[0] * y[0] / (x[0] + y[0]))),
    lambda *kinds: tuple(te.const(0, k) for k in kinds), name="welford")


def rows(n: int, m: int) -> tuple[te.Tensor, ...]:
    X, k = te.placeholder((n, m), name="X"), te.reduce_axis(m, "k")
    return te.compute((n,), lambda i: argmax((X[i, k], k), axis=k), name="B")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def check(func: PrimFunc, x: np.ndarray) -> None:
    """Exactly equal: whatever the order, the first of the largest is one."""
    got = te.interpret(func, {"X": x})
    names = [t.name for t in func.outputs]
    for name, want in zip(("B.v0", "B.v1"), (x.max(1), x.argmax(1))):
        if name in names:
            np.testing.assert_array_equal(got[name], want)


def test_a_definition_of_two_tensors(golden):
    best, at = rows(3, 8)
    assert (best.dtype, at.dtype) == ("float32", "int64")
    assert best.op is at.op and best.op.outputs == (best, at)
    s = te.create_schedule([best, at])
    assert str(te.create_schedule(best.op)) == str(s)
    golden(te.to_text(s.func))
    check(s.func, numbers(3, 8))


def test_one_that_nobody_asked_for_is_scratch():
    best, at = rows(3, 8)
    s = te.create_schedule(at)
    assert s.func.outputs == (at,) and best in s.func.buffers
    check(s.func, numbers(3, 8))


def test_a_combiner_of_one_value():
    X, k = te.placeholder((3, 8), name="X"), te.reduce_axis(8, "k")
    xor = te.comm_reducer(lambda x, y: te.select(x > y, x - y, y - x), lambda kind: te.const(0, kind), name="gap")
    C = te.compute((3,), lambda i: xor(X[i, k], axis=k), name="C")
    assert isinstance(C, te.Tensor)
    s = te.create_schedule(C)
    assert "C[i] = gap(C[i], X[i, k])  init 0.0" in str(s)
    x = numbers(3, 8)
    want = np.zeros(3, np.float32)
    for column in x.T:
        want = abs(want - column)
    np.testing.assert_array_equal(te.interpret(s.func, {"X": x})["C"], want)


def test_several_values_without_a_reduction():
    X = te.placeholder((5,), name="X")
    low, high = te.compute((5,), lambda i: (te.minimum(X[i], 0.0), te.maximum(X[i], 0.0)), name="P")
    D = te.compute((5,), lambda i: high[i] - low[i], name="D")
    s = te.create_schedule(D)
    assert "(P.v0[i], P.v1[i]) = (min(X[i], 0.0), max(X[i], 0.0))" in str(s)
    s[low].compute_inline()
    assert "P" not in str(s)
    np.testing.assert_array_equal(te.interpret(s.func, {"X": numbers(5)})["D"], abs(numbers(5)))


def test_starts_from_given_values():
    X, k = te.placeholder((2, 3), name="X"), te.reduce_axis(3, "k")
    B = te.compute((2,), lambda i: argmax((X[i, k], k), axis=k, init=(2.0, 7)), name="B")
    got = te.interpret(te.create_schedule(B).func, {"X": np.float32([[1, 5, 5], [0, 2, 1]])})
    assert got["B.v0"].tolist() == [5, 2] and got["B.v1"].tolist() == [1, 1]


def test_partial_tuples_in_lanes(golden):
    B = rows(3, 35)
    s = te.create_schedule(B)
    _, ki = s[B[0]].split("k", 8)
    R = s.rfactor(B, ki)
    assert [r.shape for r in R] == [(8, 3)] * 2 and s.func.stages[R[0]] is s.func.stages[R[1]]
    lane, i = s[R[0]].op.axis
    s[R[1]].reorder(*s[R[1]].op.reduce_axis, i, lane)
    s[R[0]].vectorize(lane)
    golden(te.to_text(s.func))
    check(s.func, numbers(3, 35))
    for target in TARGETS:
        check(lower(s.func, target), numbers(3, 35))


def test_a_reduction_over_lanes(golden):
    B = rows(2, 12)
    s = te.create_schedule(B)
    _, ki = s[B[0]].split("k", 4)
    s[B[0]].vectorize(ki)
    func = factor_lanes(s.func, TARGETS[0])
    golden(te.to_text(func))
    check(func, numbers(2, 12))


@given(n=st.integers(1, 5), m=st.integers(1, 40), f=st.integers(1, 17), both=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_lanes_alone_and_inside(n, m, f, both, seed):
    B = rows(n, m)
    s = te.create_schedule(B if both else B[1])
    _, ki = s[B[0]].split("k", f)
    s[B[0]].vectorize(ki)
    for target in TARGETS:
        check(lower(s.func, target), numbers(n, m, seed=seed))


@given(n=st.integers(1, 40), m=st.integers(1, 9), f=st.integers(1, 17), order=st.booleans(), cut=st.booleans())
@settings(max_examples=40)
def test_spatial_loops_in_lanes(n, m, f, order, cut):
    B = rows(n, m)
    s = te.create_schedule(B)
    io, ii = s[B[0]].split("i", f)
    if order:
        s[B[0]].reorder("k", ii)
    s[B[0]].vectorize(ii)
    s[B[0]].parallel(io)
    if cut:
        s[B[0]].partition(io)
    check(s.func, numbers(n, m))
    for target in TARGETS:
        check(lower(s.func, target), numbers(n, m))


@given(n=st.integers(1, 6), m=st.integers(1, 20), f=st.integers(1, 20), at=st.sampled_from([0, -1]), outer=st.booleans())
@settings(max_examples=40)
def test_rfactor_keeps_the_result(n, m, f, at, outer):
    B = rows(n, m)
    s = te.create_schedule(B)
    ko, ki = s[B[1]].split("k", min(f, m))
    best = s.rfactor(B[0], ko if outer else ki, at)
    assert best.dtype == "float32"
    check(s.func, numbers(n, m))


def test_cache_write_moves_all_of_them(golden):
    B = rows(8, 6)
    s = te.create_schedule(B)
    local = s.cache_write(B, "local")
    io, _ = s[B[0]].split(B[0].op.axis[0], 4)
    s[local[1]].compute_at(s[B[1]], io)
    s[local[0]].reorder(*s[local[0]].op.reduce_axis, *s[local[0]].op.axis)
    golden(te.to_text(s.func))
    assert s.func.buffers[local[0]].type.shape == s.func.buffers[local[1]].type.shape == (4,)
    check(s.func, numbers(8, 6))
    steps = te.steps_from_json(json.loads(json.dumps(te.steps_to_json(s.steps))))
    assert str(te.replay(te.create_schedule(B).func, steps)) == str(s)


def test_moved_into_its_reader():
    best, at = rows(6, 5)
    D = te.compute((6, 2), lambda i, j: best[i] * 10.0 + at[i].astype("float32") + te.index(j).astype("float32"), name="D")
    s = te.create_schedule(D)
    s[at].compute_at(s[D], D.op.axis[0])
    for t in (best, at):
        s[t].set_scope("local")
    x = numbers(6, 5)
    want = (x.max(1) * 10 + x.argmax(1))[:, None] + np.float32([0, 1])
    np.testing.assert_array_equal(te.interpret(s.func, {"X": x})["D"], want)
    for target in TARGETS:
        np.testing.assert_array_equal(te.interpret(lower(s.func, target), {"X": x})["D"], want)
    np.testing.assert_array_equal(run(s.func, TARGETS[0], {"X": x})["D"], want)


def test_windows_decomposition_and_cache_read():
    B = rows(4, 12)
    s = te.create_schedule(B)
    ko, ki = s[B[0]].split("k", 4)
    s[B[0]].reorder(ko, "i", ki)
    window, load_axes, store_axes = s.cache_window(B[1], "local", ko)
    assert window.dtype == "int64" and len(load_axes) == len(store_axes) == 1
    s.cache_read(*B[0].op.input_tensors, "local")
    check(s.func, numbers(4, 12))
    s = te.create_schedule(B)
    s[B[1]].decompose_reduction()
    assert "(B.v0[i_init], B.v1[i_init]) = (-inf, 9223372036854775807)" not in str(s)     # inside i: no loop of its own
    assert "(B.v0[i], B.v1[i]) = (-inf, 9223372036854775807)" in str(s)
    check(s.func, numbers(4, 12))


def test_each_has_its_own_layout():
    B = rows(10, 5)
    s = te.create_schedule(B)
    s.set_layout(B[1], Layout.parse("A4a", axes="A"))
    io, ii = s[B[0]].split("i", 4)
    s[B[0]].reorder(io, "k", ii)
    s[B[0]].vectorize(ii)
    check(s.func, numbers(10, 5))
    for target in TARGETS:
        check(lower(s.func, target), numbers(10, 5))


@given(n=st.integers(1, 4), m=st.integers(2, 300), f=st.sampled_from([4, 8, 16]))
@settings(max_examples=25)
def test_welford(n, m, f):
    """Mean and variance in one pass; rounding only: a relative error of a few float32 ulps times the depth of the joins."""
    X, k = te.placeholder((n, m), name="X"), te.reduce_axis(m, "k")
    count, mean, square = te.compute((n,), lambda i: welford((te.const(1.0), X[i, k], te.const(0.0)), axis=k), name="W")
    s = te.create_schedule((count, mean, square))
    _, ki = s[mean].split(k, f)
    s[mean].vectorize(ki)
    x = (np.random.default_rng(m).standard_normal((n, m)) + 100).astype(np.float32)
    for func in (s.func, lower(s.func, TARGETS[1])):
        got = te.interpret(func, {"X": x})
        np.testing.assert_array_equal(got[count.name], m)
        np.testing.assert_allclose(got[mean.name], x.astype(np.float64).mean(1), rtol=1e-6)
        np.testing.assert_allclose(got[square.name] / m, x.astype(np.float64).var(1), rtol=2e-4)


def test_stores_happen_at_once():
    """(A, B) = (B, A) exchanges them, interpreted and compiled, in registers and in memory."""
    A = te.compute((4,), lambda i: te.index(i).astype("float32"), name="A")
    B = te.compute((4,), lambda i: te.index(i).astype("float32") + 9.0, name="B")
    func = te.create_schedule([A, B]).func
    i = te.Var("x", 4)
    at = (Index(((i, 1),)),)
    swap = For(i, Together((Store(A, at, Load(B, at)), Store(B, at, Load(A, at)))))
    func = replace(func, body=block(func.body, swap))
    for got in (te.interpret(func, {}), te.interpret(lower(func, TARGETS[0]), {}), run(func, TARGETS[0], {})):
        assert got["A"].tolist() == [9, 10, 11, 12] and got["B"].tolist() == [0, 1, 2, 3]


def test_refusals():
    X, k = te.placeholder((3, 8), name="X"), te.reduce_axis(8, "k")
    with pytest.raises(ScheduleError, match=r"argmax of \(float32, int64\) starts from \(float32, float32\)"):
        te.compute((3,), lambda i: argmax((X[i, k], k), axis=k, init=(0.0, te.const(0.0))))
    short = te.comm_reducer(lambda x, y: x[0] + y[0], lambda a, b: (te.const(0, a), te.const(0, b)), name="short")
    with pytest.raises(ScheduleError, match=r"short of \(float32, float32\) combines to \(float32\)"):
        te.compute((3,), lambda i: short((X[i, k], X[i, k]), axis=k))
    leak = te.comm_reducer(lambda x, y: x + y + te.index(k).astype("float32"), lambda a: te.const(0, a), name="leak")
    with pytest.raises(ScheduleError, match="leak depends on more than the values it combines"):
        te.compute((3,), lambda i: leak(X[i, k], axis=k))
    B = rows(3, 8)
    s = te.create_schedule(B)
    for step in (lambda: s[B[1]].compute_at(s[B[0]], "i"), lambda: s[B[1]].compute_inline()):
        with pytest.raises(ScheduleError, match=r"B\.v0 is an output"):
            step()
    with pytest.raises(ScheduleError, match=r"loop 'k' reduces into B\.v0"):
        s[B[0]].parallel("k")
    with pytest.raises(ScheduleError, match=r"B\.v1 is computed with B\.v0, which is among the inputs"):
        te.create_schedule(B[1], inputs=[*B[0].op.input_tensors, B[0]])
    out = te.compute((4,), lambda i: (te.const(1.0), te.const(2.0)), name="O")
    with pytest.raises(ScheduleError, match=r"intrin two: O\.v0 is one of several results"):
        te.intrin("two", out[0])
    meaning = te.intrin("dot", te.compute((1,), lambda i: te.sum(te.placeholder((8,), name="a")[k], axis=k), name="c"))
    with pytest.raises(ScheduleError, match="several results or a combiner of its own"):
        s[B[0]].tensorize("k", meaning)


def test_verify():
    B = rows(3, 8)
    func = te.create_schedule(B).func
    (update,) = leaves(func.body)
    assert isinstance(update, Update)

    def with_leaf(new):
        return replace(func, body=rewrite(func.body, lambda n: new if n is update else None))
    with pytest.raises(CodegenError, match=r"\(int64, int64\) reduced into"):
        verify(with_leaf(replace(update, value=replace(update.value, values=(Const(1, "int64"),) * 2))))
    twice = tuple(Store(B[0], update.index, Const(n, "float32")) for n in (1.0, 2.0))
    with pytest.raises(CodegenError, match=r"B\.v0 is stored twice at once"):
        verify(with_leaf(Together(twice)))
    with pytest.raises(CodegenError, match=r"\(float32, float32\) stored to B\.v0"):
        verify(with_leaf(Store(B[0], update.index, replace(update.value, values=(Const(1.0), Const(1.0))))))
