"""What reductions promise beyond the operators' cases: rounding errors on long rows, NaN, ties, whole vectors."""

from __future__ import annotations

import numpy as np
import pytest
from running import HOST, RUNNABLE, compiled, defined, expected, one_node

from toolchain import te
from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.rows import contiguous_axis
from toolchain.kernels.sketches.select import sketch

RNG = np.random.default_rng(5)
EPS = float(np.finfo(np.float32).eps)
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def normalized(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    wide = x.astype(np.float64)
    return (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)


@pytest.mark.parametrize("shape, axis, outputs", [
    ((2, 17_000), 1, 1), ((17_000,), 0, 1), ((2, 17_000), 1, 3), ((170, 100), 0, 1), ((2, 170, 100), 1, 3),
    ((1, 1 << 20), 1, 1), ((2, 1 << 20), 1, 3),
])
def test_layer_norm_of_long_rows(shape, axis, outputs):
    """Against float64: a few ulps of the largest values, whatever the length (plain sums were 1e-3 off at 2**20)."""
    x = (RNG.standard_normal(shape) + 3).astype(np.float32)
    ones = np.ones(shape[axis:], np.float32)
    body, arrays = one_node("LayerNormalization", [x, ones, 0 * ones], {"axis": axis}, outputs=outputs)
    got = compiled(body, arrays)
    want = normalized(x, tuple(range(axis, len(shape))))
    assert abs(got[0] - want).max() <= 16 * EPS * abs(want).max() / 2
    if outputs > 1:
        np.testing.assert_allclose(got[1].reshape(-1), x.astype(np.float64).reshape(got[1].size, -1).mean(1), rtol=4 * EPS)


@pytest.mark.parametrize("n", [17_000, 1 << 20])
@pytest.mark.parametrize("op, meaning", [
    ("ReduceSum", lambda x: x.sum(1)), ("ReduceMean", lambda x: x.mean(1)), ("ReduceL2", lambda x: np.sqrt((x * x).sum(1))),
])
def test_sums_of_long_rows(op, meaning, n):
    x = (RNG.standard_normal((1, n)) + 3).astype(np.float32)
    body, arrays = one_node(op, [x, np.array([1])], {"keepdims": 0}, constants=[1])
    for target in RUNNABLE:
        np.testing.assert_allclose(compiled(body, arrays, target)[0], meaning(x.astype(np.float64)), rtol=8 * EPS)


def test_a_long_sum_in_blocks(golden):
    body, _ = one_node("ReduceSum", [np.zeros((2, 40_000), np.float32), np.array([1])], {"keepdims": 0}, constants=[1])
    golden(te.to_text(schedule(body, RUNNABLE[1], sketch).func))


def with_nans(shape: tuple[int, ...]) -> np.ndarray:
    """Some rows without NaN, others with one at the start, in the middle, at the end, and one of nothing else."""
    x = RNG.standard_normal(shape).astype(np.float32)
    flat = x.reshape(-1, shape[-1])
    for row, place in ((1, 0), (2, shape[-1] // 2), (3, -1), (4, slice(None))):
        flat[row, place] = np.nan
    flat[5, 0], flat[5, -1] = np.inf, np.nan
    flat[6] = -np.inf
    return x


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin", "ArgMax", "ArgMin"])
@pytest.mark.parametrize("shape, axis", [((7, 5), 1), ((7, 40), 1), ((8, 333), 1), ((9, 40), 0), ((3, 7, 21), 1)])
def test_nan_is_found(op, shape, axis, target):
    """As NumPy: the result is NaN, its position that of the first one."""
    x = with_nans(shape)
    if op.startswith("Arg"):
        cases = [({"axis": axis, "select_last_index": last}, []) for last in (0, 1)]
    else:
        cases = [({"keepdims": 1}, [np.array([axis])])]
    for attrs, more in cases:
        body, arrays = one_node(op, [x, *more], attrs, constants=range(1, 1 + len(more)))
        for made in (defined(body, arrays), compiled(body, arrays, target)):
            np.testing.assert_array_equal(made[0], expected(body, arrays)[0])


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("op, attrs", [("MaxPool", WINDOW), ("GlobalMaxPool", {})])
def test_nan_passes_pools(op, attrs, target):
    x = RNG.standard_normal((2, 3, 9, 20)).astype(np.float32)
    x[0, 0, 4, 3] = x[0, 1, 0, 0] = x[1, 2, 8, 19] = np.nan
    body, arrays = one_node(op, [x], attrs)
    np.testing.assert_array_equal(compiled(body, arrays, target)[0], expected(body, arrays)[0])


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_ties(op, last):
    """Zeros of both signs, infinities, and long runs of equal values: the first, or the last."""
    x = RNG.integers(-1, 2, (6, 300)).astype(np.float32)
    x[0], x[1], x[2], x[3, ::7] = 0.0, -np.inf, np.inf, -0.0
    x[0, ::3] = -0.0
    body, arrays = one_node(op, [x], {"axis": 1, "select_last_index": last})
    for target in RUNNABLE:
        np.testing.assert_array_equal(compiled(body, arrays, target)[0], expected(body, arrays)[0])


def test_arg_max_is_one_reduction():
    body, _ = one_node("ArgMax", [np.zeros((4, 100), np.float32)], {"axis": 1, "keepdims": 0})
    text = te.to_text(schedule(body, HOST, sketch).func)
    assert "first_largest((" in text and text.count("x0[") == 2        # whole vectors, and the rest


@pytest.mark.parametrize("shape, axes", [
    ((2, 100, 1, 100), (1, 2, 3)), ((64, 40, 50), (0, 2)), ((3, 5, 4, 80), (0, 2, 3)), ((500, 6), (0,)), ((500, 3), (0,)),
    ((4, 9, 8), (1,)), ((1, 2000, 1), (0, 1, 2)),
])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax"])
def test_axes_here_and_there(op, shape, axes):
    """Each is what the first sketch makes of it, exact on small integers."""
    x = RNG.integers(-8, 9, shape).astype(np.float32)
    body, arrays = one_node(op, [x, np.array(axes)], {"keepdims": 0}, constants=[1])
    for target in RUNNABLE:
        np.testing.assert_array_equal(compiled(body, arrays, target, [sketch])[0], expected(body, arrays)[0])


def test_what_lies_together():
    A, v = te.placeholder((6, 40), name="A"), te.placeholder((40,), name="v")
    B = te.placeholder((40, 6), name="B")
    k = te.reduce_axis(40, "k")
    rows = te.compute((6,), lambda i: te.sum(A[i, k] * v[k], axis=k), name="R")
    columns = te.compute((6,), lambda i: te.sum(B[k, i] * v[k], axis=k), name="C")
    s = te.create_schedule([rows, columns])
    assert contiguous_axis(s, s.func.stages[rows]) is k
    assert contiguous_axis(s, s.func.stages[columns]) is not k
