"""place_init: text, meaning, refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import rewrite
from toolchain.core.target import Target
from toolchain.te.loop_ir import For, PrimFunc, Update, block, loops, statements
from toolchain.te.lower.place_init import place_init
from toolchain.te.substitute import substitute

TARGET = Target("test", "x86")


def matmul(m: int = 5, n: int = 6, k: int = 7) -> tuple[te.Tensor, te.Schedule]:
    a, b, bias = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B"), te.placeholder((n,), name="bias")
    r = te.reduce_axis(k, name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r, init=bias[j]), name="C")
    return c, te.create_schedule(c)


def inputs(func: PrimFunc, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in func.params if t not in func.stages}


def same_result(func: PrimFunc, seed: int = 0) -> None:
    arrays = inputs(func, seed)
    before, after = (te.interpret(f, arrays) for f in (func, place_init(func, TARGET)))
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])      # exact: only the init moves


def test_init_stands_before_the_outermost_reduction_loop(golden):
    c, s = matmul()
    (i, j), (k,) = c.op.axis, c.op.reduce_axis
    s[c].reorder(i, k, j)
    golden(te.to_text(place_init(s.func, TARGET)))


def test_guards_stay_as_far_as_they_are_spatial(golden):
    c, s = matmul()
    (i, j), (k,) = c.op.axis, c.op.reduce_axis
    _, ji = s[c].split(j, factor=4)
    ko, ki = s[c].split(k, factor=3)
    s[c].reorder(ko, ki, i, ji)
    golden(te.to_text(place_init(s.func, TARGET)))
    same_result(s.func)


def test_a_stage_moved_into_its_reader_starts_in_each_iteration(golden):
    a = te.placeholder((4, 6), name="A")
    k = te.reduce_axis(6, "k")
    total = te.compute((4,), lambda i: te.sum(a[i, k], axis=k), name="S")
    out = te.compute((4, 6), lambda i, j: a[i, j] / total[i], name="R")
    s = te.create_schedule(out)
    s[total].compute_at(s[out], out.op.axis[0])
    golden(te.to_text(place_init(s.func, TARGET)))
    same_result(s.func)


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3), order=st.permutations(range(6)), factors=st.tuples(*[st.integers(1, 6)] * 3),
    cut=st.booleans(), combiner=st.sampled_from(["sum", "max", "min", "prod"]),
)
def test_keeps_the_result(sizes, order, factors, cut, combiner):
    m, n, k = sizes
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis(k, name="k")
    c = te.compute((m, n), lambda i, j: getattr(te, combiner)(a[i, r] - b[r, j], axis=r), name="C")
    s = te.create_schedule(c)
    axes = [
        x for axis, f in zip((*c.op.axis, *c.op.reduce_axis), factors, strict=True)
        for x in s[c].split(axis, factor=min(f, axis.extent))
    ]
    s[c].reorder(*(axes[n] for n in order))
    if cut:
        s[c].partition(axes[4])
    same_result(s.func)


def test_a_partitioned_reduction_is_started_once(golden):
    c, s = matmul(2, 3, 7)
    ko, _ = s[c].split(c.op.reduce_axis[0], factor=4)
    s[c].partition(ko)
    golden(te.to_text(place_init(s.func, TARGET)))
    same_result(s.func)


def test_pieces_with_pending_inits_are_one_reduction():
    """Two sibling loops that both still carry the init: the second one only accumulates."""
    _, s = matmul(1, 3, 4)
    func = s.func
    loop = next(x for x in loops(func.body) if isinstance(x.body, Update))
    body = rewrite(func.body, lambda n: block(loop, renamed(loop)) if n is loop else None)
    arrays = inputs(func)
    got = te.interpret(place_init(replace(func, body=body), TARGET), arrays)["C"]
    want = arrays["bias"] + 2 * (arrays["A"].astype(np.float64) @ arrays["B"])
    np.testing.assert_allclose(got, want, rtol=1e-5)                  # eight float32 products


def renamed(loop: For) -> For:
    """The same loop with another variable."""
    var = te.Var(loop.var.name + "_again", loop.var.extent)
    return For(var, substitute(loop.body, {loop.var: var}), loop.kind)


def test_refuses_pieces_that_overlap():
    a = te.placeholder((8, 4), name="A")
    k = te.reduce_axis(4, "k")
    c = te.compute((8,), lambda i: te.sum(a[i, k], axis=k), name="C")
    func = te.create_schedule(c).func
    (outer,) = statements(func.body)
    x, y = te.Var("x", 5), te.Var("y", 5)
    first = For(x, substitute(outer.body, {outer.var: x}))
    second = For(y, renamed(substitute(outer.body, {outer.var: y + 2})))
    with pytest.raises(CodegenError, match="two pieces of C overlap only in part"):
        place_init(replace(func, body=block(first, second)), TARGET)
