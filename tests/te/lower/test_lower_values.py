"""flatten_buffers, widen_half, contract_fma, lower_intrinsics, verify."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core.errors import CodegenError
from toolchain.core.layout import Layout
from toolchain.core.rewrite import rewrite
from toolchain.core.target import Target
from toolchain.te.expr import Bin, Call, Ramp
from toolchain.te.loop_ir import For, ForKind, Store, block
from toolchain.te.lower import lower
from toolchain.te.lower.contract_fma import contract_fma
from toolchain.te.lower.flatten_buffers import flatten_buffers
from toolchain.te.lower.lower_intrinsics import lower_intrinsics
from toolchain.te.lower.place_init import place_init
from toolchain.te.lower.shared import nodes
from toolchain.te.lower.verify import verify
from toolchain.te.lower.widen_half import widen_half

TARGET = Target("test", "x86")


def compute(fn, *dtypes: str, n: int = 8) -> te.PrimFunc:
    inputs = [te.placeholder((n,), dtype, name=f"A{k}") for k, dtype in enumerate(dtypes)]
    return te.create_schedule(te.compute((n,), lambda i: fn(*(a[i] for a in inputs)), name="C")).func


def test_flatten_text(golden):
    x = te.placeholder((1, 32, 6, 6), name="X")
    c = te.compute((1, 32, 4, 4), lambda n, ch, y, x_: x[n, ch, y + 2, x_], name="C")
    s = te.create_schedule(c)
    s.set_layout(x, Layout.parse("NCHW16c+h1"))
    golden(te.to_text(flatten_buffers(s.func, TARGET)))


LAYOUTS = ["AB", "BA", "AB4b", "BA2a", "AB2a4b", "AB3b2a2b"]


@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 9)), a=st.sampled_from(LAYOUTS), c=st.sampled_from(LAYOUTS))
def test_flatten_keeps_the_result(shape, a, c):
    x = te.placeholder(shape, name="A")
    out = te.compute(shape[::-1], lambda i, j: x[j, i] * 2.0, name="C")
    s = te.create_schedule(out)
    s.set_layout(x, Layout.parse(a, axes="AB"))
    s.set_layout(out, Layout.parse(c, axes="AB"))
    array = {"A": np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)}
    np.testing.assert_array_equal(te.interpret(flatten_buffers(s.func, TARGET), array)["C"], 2 * array["A"].T)


def test_half_text(golden):
    golden(te.to_text(widen_half(compute(lambda a, b: te.select(a < b, te.exp(a) + b, a), "bfloat16", "bfloat16"), TARGET)))


def test_half_prefetch_stays_one():
    """It names a place in memory, no number: as a number, a network in float16 could not be built."""
    x = te.placeholder((64, 64), "float16", name="A")
    out = te.compute((64, 64), lambda i, j: x[i, j] * 2.0, name="C")
    s = te.create_schedule(out)
    s[out].prefetch(x, s[out].op.axis[0], 1)
    assert "prefetch(A[" in te.to_text(widen_half(s.func, TARGET))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", ["+", "-", "*", "/", "max", "min"])
def test_half_arithmetic_rounds_once(dtype, op):
    func = compute(lambda a, b: Bin(op, a, b), dtype, dtype, n=256)
    kind = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    arrays = {f"A{k}": (rng.standard_normal(256) * 10.0 ** rng.integers(-3, 3, 256)).astype(kind) for k in range(2)}
    want, got = te.interpret(func, arrays)["C"], te.interpret(widen_half(func, TARGET), arrays)["C"]
    np.testing.assert_array_equal(got, want)


def test_fma_text(golden):
    a, b = te.placeholder((4, 4), name="A"), te.placeholder((4, 4), name="B")
    k = te.reduce_axis(4, "k")
    c = te.compute((4, 4), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    golden(te.to_text(contract_fma(place_init(te.create_schedule(c).func, TARGET), TARGET)))


def test_no_fma_without_the_instruction_nor_on_integers():
    floats, ints = compute(lambda a, b: a * b + a, "float32", "float32"), compute(lambda a, b: a * b + a, "int32", "int32")
    assert contract_fma(floats, replace(TARGET, has_fma=False)) is floats
    assert contract_fma(ints, TARGET) is ints
    assert any(isinstance(n, Call) and n.name == "fma" for n in nodes(contract_fma(floats, TARGET).body))


def test_expansions_share_their_parts():
    """A chain of functions: the tree doubles at each step, the graph of nodes does not."""
    def chain(x):
        for _ in range(6):
            x = te.tanh(te.sigmoid(x) + x)
        return x

    lowered = lower_intrinsics(compute(chain, "float32"), TARGET)
    assert sum(1 for _ in nodes(lowered.body)) < 1000
    assert not any(isinstance(n, Call) and n.name in ("tanh", "sigmoid", "exp") for n in nodes(lowered.body))


@pytest.mark.parametrize("name,low,high,ulps", [
    ("exp", -110, 95, 1), ("log", 0, 1e6, 1), ("tanh", -10, 10, 5), ("sigmoid", -80, 80, 3), ("erf", -5, 5, 1),
    ("sin", -100, 100, 1), ("cos", -100, 100, 1), ("atan", -50, 50, 1), ("asin", -1, 1, 1), ("acos", -1, 1, 1),
    ("sinh", -80, 80, 1), ("cosh", -80, 80, 1),
])
def test_the_expansions_themselves_in_the_interpreter(name, low, high, ulps):
    """What the pass writes, run by NumPy: the same polynomials the machine runs (tests/targets compare those)."""
    n = 512
    func = lower_intrinsics(compute(getattr(te, name), "float32", n=n), TARGET)
    x = np.linspace(low, high, n, dtype=np.float32)
    want = te.interpret(compute(getattr(te, name), "float64", n=n), {"A0": x.astype(np.float64)})["C"]
    with np.errstate(over="ignore"):
        rounded = want.astype(np.float32)
    got = te.interpret(func, {"A0": x})["C"]
    inside = np.isfinite(rounded)
    np.testing.assert_array_equal(got[~inside], rounded[~inside])
    error = np.abs(got[inside] - want[inside]) / np.spacing(np.abs(rounded[inside])).astype(np.float64)
    assert error.max() <= ulps + 0.5           # half an ulp more: without fma the polynomials round more often


@pytest.mark.parametrize("features", [("+avx2", "+fma"), ("+avx2", "+avx512vl", "+fma")])
def test_exp_below_zero(features):
    """To 2 ulp near 0, and as exact as a difference of floats is below; in one rounding where the result is subnormal."""
    target = replace(TARGET, features=features, has_fma=True)
    x = np.concatenate([np.linspace(-110, 0, 2045), [-np.inf, np.nan, -0.0]]).astype(np.float32)
    func = contract_fma(lower_intrinsics(compute(te.exp_nonpositive, "float32", n=len(x)), target), target)
    made = te.interpret(func, {"A0": x})["C"]
    assert np.isnan(made[-2]) and made[-1] == 1.0 and made[-3] == 0.0
    got, exact = made[:-2], np.exp(x[:-2].astype(float))
    size = np.minimum(np.abs(x[:-2].astype(float)), 104)
    assert (np.abs(got - exact) <= (2 * 2.0**-23 + 1.5e-8 * size) * exact + 2.0**-149).all()


def test_the_normal_distribution_keeps_its_tail():
    """Above 0 to 1e-7; below 0 relative to itself, where (1 + erf(x/sqrt(2)))/2 has no digit left; 0 and 1 at the ends."""
    x = np.concatenate([np.linspace(-9, 9, 1021), [-15, 15, np.nan]]).astype(np.float32)
    func = lower_intrinsics(compute(te.normal_cdf, "float32", n=len(x)), TARGET)
    got = te.interpret(func, {"A0": x})["C"]
    want = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    assert np.abs(got - want)[:-1].max() < 1.2e-7
    assert got[-3] == 0.0 and got[-2] == 1.0 and np.isnan(got[-1])
    error = np.abs(got[:-3] / want[:-3] - 1)
    assert error[x[:-3] >= -6].max() < 2e-4 and error[x[:-3] >= -8].max() < 2e-3


def test_functions_of_integers_are_refused():
    with pytest.raises(CodegenError, match="exp of int32"):
        lower_intrinsics(compute(te.exp, "int32"), TARGET)
    with pytest.raises(CodegenError, match="pow of int32"):
        lower_intrinsics(compute(te.pow, "int32", "int32"), TARGET)


def test_verify_names_what_is_wrong():
    func = compute(lambda a: a + 1.0, "float32")
    assert isinstance(func.body, For)
    twice = replace(func, body=block(func.body, func.body))
    with pytest.raises(CodegenError, match=r"kernel main: loop variable i is not unique"):
        verify(twice)
    with pytest.raises(CodegenError, match="i used outside of its loop"):
        verify(replace(func, body=func.body.body))
    with pytest.raises(CodegenError, match="C has no buffer"):
        verify(replace(func, buffers={t: b for t, b in func.buffers.items() if t.name != "C"}))
    store = func.body.body
    assert isinstance(store, Store)
    with pytest.raises(CodegenError, match="float64 stored to C, which is float32"):
        verify(replace(func, body=replace(func.body, body=replace(store, value=te.const(1.0, "float64")))))
    with pytest.raises(CodegenError, match="lanes before vectorize_loops"):
        verify(replace(func, body=replace(func.body, body=replace(store, index=(Ramp(te.index(0), 1, 4),)))))


def a_sum_inside_of(loop: str) -> te.Schedule:
    """for i: for j: C_b = sum(A*B over k); C[i, j] = C_b"""
    A, B = te.placeholder((4, 3), name="A"), te.placeholder((3, 5), name="B")
    k = te.reduce_axis(3, "k")
    C = te.compute((4, 5), lambda i, j: te.sum(A[i, k] * B[k, j], axis=k), name="C")
    s = te.create_schedule(C)
    s[s.cache_write(C, "b")].compute_at(s[C], loop)
    return s


@pytest.mark.parametrize("loop", ["i", "j"])
def test_verify_refuses_iterations_that_share_scratch(loop):
    s = a_sum_inside_of(loop)
    s["C_b"].set_scope("global")
    verify(s.func)
    s["C"].parallel("i")
    with pytest.raises(CodegenError, match="every iteration of parallel loop i stores to the same place of C_b: a race"):
        lower(s.func, TARGET)
    s["C_b"].set_scope("lane")
    lower(s.func, TARGET)


def test_verify_refuses_lanes_that_share_a_sum():
    func = a_sum_inside_of("j").func
    assert isinstance(func.body, For)
    with pytest.raises(CodegenError, match="C_b is reduced inside vectorized loop i, in one place for all lanes"):
        verify(replace(func, body=replace(func.body, kind=ForKind.VECTORIZED)))


def test_check_interprets_after_every_pass(monkeypatch):
    def wrong(func, target):
        return replace(func, body=rewrite(func.body, lambda n: Bin("-", n.a, n.b) if isinstance(n, Bin) else None))

    func = compute(lambda a, b: a + b, "float32", "float32")
    lower(func, TARGET, (wrong,))                                      # nobody looks
    monkeypatch.setenv("TC_CHECK", "1")
    lower(compute(lambda a: te.exp(te.sigmoid(a)), "float32"), TARGET)
    with pytest.raises(CodegenError, match="TC_CHECK: wrong changed C of main, by up to"):
        lower(func, TARGET, (wrong,))


def test_dumps_one_file_per_pass(tmp_path):
    lower(compute(lambda a: te.exp(a), "float32"), TARGET, dump=tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0] == "00.scheduled.txt"
    assert names[-1].endswith(".contract_fma.txt")
    assert (tmp_path / names[0]).read_text().startswith("main(A0: float32[8]) -> (C: float32[8]):")
