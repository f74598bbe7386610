from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from te_workloads import chain, conv2d, matmul

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout, TensorType
from toolchain.core.target import Target
from toolchain.te.expr import Broadcast, Index, Load, Ramp
from toolchain.te.loop_ir import Buffer, PrimFunc, Store
from toolchain.te.lower import lower

AVX2 = Target("avx2", "x86", features=("+avx2", "+fma"), vector_bits=256)


def one(fn, x: np.ndarray, dtype: str = "float32") -> np.ndarray:
    X = te.placeholder(x.shape, dtype, name="X")
    Y = te.compute(x.shape, lambda i: fn(X[i]), name="Y")
    return te.interpret(te.create_schedule(Y).func, {"X": x})["Y"]


def test_functions_are_numpys():
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    for fn, reference in ((te.exp, np.exp), (te.tanh, np.tanh), (te.floor, np.floor), (te.round, np.rint), (te.abs, np.abs)):
        np.testing.assert_array_equal(one(fn, x), reference(x))
    np.testing.assert_allclose(one(te.sigmoid, x), 1 / (1 + np.exp(-x)), rtol=1e-6)         # one rounding more or less
    np.testing.assert_allclose(one(te.erf, x)[[0, 4, 8]], [-0.995322265, 0, 0.995322265], rtol=1e-6)


def test_integers_wrap_floor_and_truncate():
    x = np.array([-128, -7, -1, 0, 5, 127], np.int8)
    np.testing.assert_array_equal(one(lambda v: v + 1, x, "int8"), x + np.int8(1))
    np.testing.assert_array_equal(one(lambda v: v // 2, x, "int8"), x // 2)
    np.testing.assert_array_equal(one(lambda v: v / 2, x, "int8"), [-64, -3, 0, 0, 2, 63])
    np.testing.assert_array_equal(one(lambda v: v.astype("int32") * v.astype("int32"), x, "int8"), x.astype(np.int32) ** 2)


def test_bfloat16_rounds_every_operation():
    x = np.array([1.0, 1.0078125, 3.0], ml_dtypes.bfloat16)
    y = one(lambda v: v * v + v, x, "bfloat16")
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, (x * x) + x)


def test_fma_rounds_once():
    a = np.array([1 + 2**-12], np.float32)                # a*a needs 25 bits
    np.testing.assert_array_equal(one(lambda v: te.fma(v, v, -1.0), a), np.float32([2**-11 + 2**-24]))
    np.testing.assert_array_equal(one(lambda v: v * v - 1.0, a), np.float32([2**-11]))


def test_a_select_is_lazy():
    X = te.placeholder((4,), name="X")
    Y = te.compute((6,), lambda i: te.select(te.all(i >= 1, i < 5), X[i - 1], 0.0), name="Y")
    x = np.arange(4, dtype=np.float32) + 1
    np.testing.assert_array_equal(te.interpret(te.create_schedule(Y).func, {"X": x})["Y"], [0, 1, 2, 3, 4, 0])


def test_a_condition_may_guard_a_load_in_the_next_one():
    X = te.placeholder((4,), name="X")
    Y = te.compute((6,), lambda i: te.select(te.all(i < 4, X[i] > 2.0), 1.0, 0.0), name="Y")
    x = np.array([1, 3, 2, 5], np.float32)
    np.testing.assert_array_equal(te.interpret(te.create_schedule(Y).func, {"X": x})["Y"], [0, 1, 0, 1, 0, 0])


def test_dynamic_indices_keep_their_promise():
    X, at = te.placeholder((5,), name="X"), te.placeholder((3,), "int64", name="at")
    Y = te.compute((3,), lambda i: X[te.index(at[i], 0, 4)], name="Y")
    func = te.create_schedule(Y).func
    x = np.arange(5, dtype=np.float32) * 10
    np.testing.assert_array_equal(te.interpret(func, {"X": x, "at": np.array([4, 0, 2])})["Y"], [40, 0, 20])
    with pytest.raises(ScheduleError, match=r"a dynamic index is 7, promised \[0, 4\]"):
        te.interpret(func, {"X": x, "at": np.array([4, 7, 2])})


def test_what_nobody_wrote_is_nan():
    X = te.placeholder((4,), name="X")
    Y = te.compute((4,), lambda i: X[i], name="Y")
    func = te.create_schedule(Y).func
    half = PrimFunc(func.name, func.params, Store(Y, (Index((), 1),), X[1]), func.buffers, func.stages)
    out = te.interpret(half, {"X": np.ones(4, np.float32)})["Y"]
    np.testing.assert_array_equal(np.isnan(out), [True, False, True, True])


def test_wrong_inputs_are_refused():
    func = te.create_schedule(matmul(2, 3, 4).output).func
    with pytest.raises(ScheduleError, match="input B is missing"):
        te.interpret(func, {"A": np.zeros((2, 4), np.float32)})
    with pytest.raises(ScheduleError, match=r"A is float32\[2, 4\], given float64\[2, 4\]"):
        te.interpret(func, {"A": np.zeros((2, 4)), "B": np.zeros((4, 3), np.float32)})


def test_an_access_out_of_bounds_names_buffer_and_index():
    X = te.placeholder((4,), name="X")
    Y = te.compute((4,), lambda i: X[i + 1], name="Y")
    with pytest.raises(ScheduleError, match=r"X: index 4 of dimension 0 is outside \[0, 4\)"):
        te.interpret(te.create_schedule(Y).func, {"X": np.zeros(4, np.float32)})


def test_lanes_are_reduced_in_halves():
    X = te.placeholder((2, 8), name="X")
    k = te.reduce_axis(8, "k")
    for reduce, reference in ((te.sum, np.sum), (te.max, np.max), (te.prod, np.prod)):
        Y = te.compute((2,), lambda i, reduce=reduce: reduce(X[i, k], axis=k), name="Y")
        s = te.create_schedule(Y)
        s[Y].vectorize(k)
        lowered = lower(s.func, AVX2)
        assert "reduce_" in te.to_text(lowered)
        x = np.random.default_rng(0).integers(-3, 4, (2, 8)).astype(np.float32)
        np.testing.assert_array_equal(te.interpret(lowered, {"X": x})["Y"], reference(x, axis=1))


def test_lanes_and_masks():
    X, Y = te.placeholder((8,), name="X"), te.placeholder((8,), name="Y")
    ramp = Ramp(Index((), 2), 1, 4)
    value = Load(X, (Ramp(Index((), 7), -1, 4),)) + Broadcast(te.const(1.0), 4)
    store = Store(Y, (ramp,), value, Load(X, (ramp,)) < Broadcast(te.const(5.0), 4))
    buffers = {t: Buffer(TensorType.plain((8,))) for t in (X, Y)}
    func = PrimFunc("lanes", (X, Y), store, buffers)
    out = te.interpret(func, {"X": np.arange(8, dtype=np.float32)})["Y"]
    np.testing.assert_array_equal(out[2:5], [8, 7, 6])
    assert np.isnan(out[[0, 1, 5, 6, 7]]).all()


@pytest.mark.parametrize(
    "work", [matmul(5, 12, 7), conv2d(1, 3, 5, 6, 8, 3, 1, 1), chain(3, 8)], ids=["matmul", "conv", "chain"]
)
def test_every_stage_of_lowering_means_the_same(work):
    s = te.create_schedule(work.output)
    axis = work.output.op.axis[1]
    _, lane = s[work.output].split(axis, 4)
    if not s[work.output].op.reduce_axis:
        s[work.output].vectorize(lane)
    work.check(s.func)
    work.check(lower(s.func, AVX2))


def test_layouts_survive_flattening():
    work = conv2d(1, 8, 6, 6, 8, 3, 1, 1)
    s = te.create_schedule(work.output)
    s.set_layout(work.inputs[0], Layout.parse("NCHW4c+h1"))
    s.set_layout(work.output, Layout.parse("NCHW4c+h1"))
    work.check(lower(s.func, AVX2))
