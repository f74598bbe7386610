"""Compiled kernels against the loop-IR interpreter: dtypes, operators and accesses, on each instruction set this CPU has and
on an emulated board."""

from __future__ import annotations

import emulation
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm import load
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.emit import emit
from toolchain.targets.llvm.limits import MAX_INSTRUCTIONS, instructions, peak_live_vectors
from toolchain.targets.llvm.split_tasks import split_tasks
from toolchain.targets.presets import PRESETS
from toolchain.te.expr import Bin
from toolchain.te.lower import lower

HOST = host_target()
HERE = [t for t in PRESETS.values() if set(t.features) <= set(HOST.features)]
BOARD = PRESETS["cortex-a53"]               # emulated
NUMBERS = [d for d in dtypes.DTYPES if d != "bool"]
FLOATS = ["float32", "float64"]

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")


@pytest.fixture(params=[*HERE, BOARD], ids=lambda t: t.name)
def target(request) -> Target:
    return request.param


def run(func: te.PrimFunc, target: Target, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return load.run(func, target, arrays) if target.kind == HOST.kind else emulation.run(func, target, arrays)


def values(dtype: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(np.bool_)
    kind = dtypes.to_numpy(dtype)
    if dtypes.is_float(dtype):
        x = (rng.standard_normal(n) * 10.0 ** rng.integers(-2, 3, n)).astype(kind)
        x[: 4] = np.array([0.0, -0.0, 1.0, -2.5]).astype(kind)
        return x
    info = np.iinfo(kind)
    x = rng.integers(max(info.min, -100), min(info.max, 100), n, endpoint=True).astype(kind)
    x[:4] = [info.min, info.max, 0, 1]
    return x


def elementwise(fn, *dtypes_: str, n: int = 32, lanes: int = 16) -> te.PrimFunc:
    inputs = [te.placeholder((n,), d, name=f"A{k}") for k, d in enumerate(dtypes_)]
    c = te.compute((n,), lambda i: fn(*(a[i] for a in inputs)), name="C")
    s = te.create_schedule(c)
    if lanes:
        _, inner = s[c].split(c.op.axis[0], factor=lanes)
        s[c].vectorize(inner)
    return s.func


def agree(func: te.PrimFunc, target: Target, *arrays: np.ndarray, exact: bool = True) -> None:
    named = {f"A{k}": a for k, a in enumerate(arrays)}
    want, got = te.interpret(func, named)["C"], run(func, target, named)["C"]
    assert got.dtype == want.dtype
    wide = np.float64 if want.dtype.kind in "fV" or want.dtype == ml_dtypes.bfloat16 else want.dtype
    if exact:
        np.testing.assert_array_equal(got.astype(wide), want.astype(wide))
    else:
        np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=1e-6)     # functions: a few ulp


def all_at_once(ops: tuple[str, ...], *dtypes_: str, lanes: int, n: int = 32) -> te.PrimFunc:
    """One kernel with a row per operator: compiling is what takes the time."""
    inputs = [te.placeholder((n,), d, name=f"A{k}") for k, d in enumerate(dtypes_)]

    def row(k, i):
        result = Bin(ops[0], *(a[i] for a in inputs))
        for number, op in enumerate(ops[1:], 1):
            result = te.select(k < number, result, Bin(op, *(a[i] for a in inputs)))
        return result

    c = te.compute((len(ops), n), row, name="C")
    s = te.create_schedule(c)
    s[c].unroll(c.op.axis[0])                    # decides every select
    if lanes:
        _, inner = s[c].split(c.op.axis[1], factor=lanes)
        s[c].vectorize(inner)
    return s.func


@pytest.mark.parametrize("dtype", NUMBERS)
def test_arithmetic(dtype, target):
    a, b = values(dtype, 32), values(dtype, 32, 1)
    for lanes in (0, 16):
        agree(all_at_once(("+", "-", "*", "max", "min"), dtype, dtype, lanes=lanes), target, a, b)
        agree(all_at_once(("<", "<=", ">", ">=", "==", "!="), dtype, dtype, lanes=lanes), target, a, b)


@pytest.mark.parametrize("lanes", [0, 8])
@pytest.mark.parametrize("dtype", [d for d in NUMBERS if "int" in d])
def test_integer_division(dtype, lanes):
    a, b = values(dtype, 32), np.where(values(dtype, 32, 1) == 0, 3, values(dtype, 32, 1)).astype(dtype)
    agree(all_at_once(("//", "%"), dtype, dtype, lanes=lanes), HOST, a, b)
    agree(elementwise(lambda x, y: x / y, dtype, dtype, n=28, lanes=lanes // 2), HOST, a[4:], b[4:])   # |lowest| overflows


def test_division_by_zero_does_not_trap():
    zero = np.zeros(32, np.int32)
    for op in ("/", "//", "%"):
        func = elementwise(lambda x, y, op=op: Bin(op, x, y), "int32", "int32")
        assert (run(func, HOST, {"A0": values("int32", 32), "A1": zero})["C"] == 0).all()
    lowest = np.full(32, -2**31, np.int32)
    assert run(elementwise(lambda x, y: x // y, "int32", "int32"), HOST, {"A0": lowest, "A1": zero - 1})["C"][0] == -2**31


@pytest.mark.parametrize("source", dtypes.DTYPES)
def test_conversions(source):
    x = np.abs(values(source, 32)) if "uint" not in source and source != "bool" else values(source, 32)
    x[:4] = np.array([0, 1, 1, 0]).astype(x.dtype)
    for to in dtypes.DTYPES:
        keep = x if dtypes.bits(to) >= 16 or not dtypes.is_float(source) else np.minimum(x, np.array(100).astype(x.dtype))
        for lanes in (0, 16):
            agree(elementwise(lambda v, to=to: v.astype(to), source, lanes=lanes), HOST, keep)


@pytest.mark.parametrize("lanes", [0, 4, 16])
def test_every_float16_is_widened(target, lanes):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    func = elementwise(lambda v: v.astype("float32"), "float16", n=2**16, lanes=lanes)
    got, want = run(func, target, {"A0": halves})["C"], halves.astype(np.float32)
    nan = np.isnan(halves)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))


@pytest.mark.parametrize("lanes", [0, 4, 16])
def test_narrowing_to_float16_rounds_to_even(target, lanes):
    """Each float16, each tie between two of them, the floats beside both, and floats of all sizes, with both signs."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    edges = np.concatenate([halves, (halves[:-1] + halves[1:]) / 2, [65520, 65536, 1e-45, 2.0**-25, 2.0**-26, 3e38, np.inf]])
    beside = [np.nextafter(edges, np.float32(to), dtype=np.float32) for to in (-np.inf, np.inf)]
    random = np.random.default_rng(0).integers(0, 0x7F800000, 100_000, np.uint32).view(np.float32)
    nans = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF], np.uint32).view(np.float32)
    x = np.concatenate([edges.astype(np.float32), *beside, random, nans])
    x = np.concatenate([x, -x])
    x = np.resize(x, -(-len(x) // 16) * 16)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    got = run(elementwise(lambda v: v.astype("float16"), "float32", n=len(x), lanes=lanes), target, {"A0": x})["C"]
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint16), want[~nan].view(np.uint16))


def test_bfloat16_rounds_to_even_and_keeps_nan():
    x = np.frombuffer(np.array([0x3F808000, 0x3F818000, 0x7F800001, 0xFFC00000, 0x7F7FFFFF, 0x3F807FFF] * 4, np.uint32),
                      np.float32)
    got = run(elementwise(lambda v: v.astype("bfloat16"), "float32", n=24, lanes=8), HOST, {"A0": x})["C"]
    with np.errstate(invalid="ignore"):
        want = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.isnan(got.astype(np.float32)), np.isnan(want.astype(np.float32)))
    np.testing.assert_array_equal(got[~np.isnan(x)].view(np.uint16), want[~np.isnan(x)].view(np.uint16))


@pytest.mark.parametrize("name", ["abs", "floor", "ceil", "trunc", "round", "sqrt", "isnan", "isinf"])
def test_functions_that_are_instructions(name, target):
    x = np.abs(values("float32", 32)) if name == "sqrt" else values("float32", 32)
    x[4:9] = [0.5, 1.5, 2.5, np.nan, np.inf]
    for lanes in (0, 16):
        agree(elementwise(lambda v: getattr(te, name)(v), "float32", lanes=lanes), target, x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [
    "exp", "log", "tanh", "sigmoid", "erf", "sin", "cos", "tan", "atan", "sinh", "cosh", "rsqrt",
])
def test_functions(name, dtype, target):
    x = np.linspace(0.01 if name in ("log", "rsqrt") else -6, 6, 32).astype(dtype)
    agree(elementwise(lambda v: getattr(te, name)(v), dtype), target, x, exact=False)


def test_the_normal_distribution(target):
    """Beside the interpreter's, which is exact: float32 to an ulp of 1."""
    x = np.linspace(-9, 9, 64, dtype=np.float32)
    func = elementwise(te.normal_cdf, "float32", n=64)
    want, got = te.interpret(func, {"A0": x})["C"], run(func, target, {"A0": x})["C"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_below_zero(dtype, target):
    x = np.concatenate([np.linspace(-90, 0, 29), [-1000, -np.inf, np.nan]]).astype(dtype)
    func = elementwise(te.exp_nonpositive, dtype)
    want, got = te.interpret(func, {"A0": x})["C"], run(func, target, {"A0": x})["C"]
    np.testing.assert_allclose(got, want, rtol=1.2e-5, atol=0)      # without fma 1.2e-7 |x|


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid", "erf", "normal_cdf", "sin", "acos", "rsqrt"])
def test_special_values(name):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0, 89.0, -104.0, 2.0, -2.0,
                  0.5], "f")
    if name == "sin":
        x[7:9] = 1e9
    func = elementwise(lambda v: getattr(te, name)(v), "float32", n=16)
    want, got = te.interpret(func, {"A0": x})["C"], run(func, HOST, {"A0": x})["C"]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-45)


def test_pow_like_numpy():
    base = np.array([0.0, 1.0, -1.0, 2.0, -2.0, np.inf, -np.inf, np.nan, 0.5, -3.0, 0.25, 10.0, 1.5, -0.5, 7.0, 100.0])
    a, b = (v.ravel() for v in np.meshgrid(base, base))
    for dtype in FLOATS:
        func = elementwise(lambda x, y: te.pow(x, y), dtype, dtype, n=256)
        x, y = a.astype(dtype), b.astype(dtype)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(run(func, HOST, {"A0": x, "A1": y})["C"], np.power(x, y), rtol=1e-6)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -0.5, -1.0, 1.0, 7.0, 2.5])
def test_pow_of_constants(exponent):
    x = np.linspace(0.1, 5, 32, dtype=np.float32)
    func = elementwise(lambda v: te.pow(v, exponent), "float32")
    np.testing.assert_allclose(run(func, HOST, {"A0": x})["C"], np.power(x, np.float32(exponent)), rtol=1e-6)


ACCESSES = {
    "stride2": lambda a, i: a[2 * i], "stride3_back": lambda a, i: a[93 - 3 * i], "stride7": lambda a, i: a[7 * i],
    "reversed": lambda a, i: a[31 - i], "broadcast": lambda a, i: a[5], "halves": lambda a, i: a[i // 2],
    "modulo": lambda a, i: a[(i + 3) % 7], "shifted_floor": lambda a, i: a[(i - 5) // 3 + 2],
    "guarded_before": lambda a, i: te.select(i >= 20, a[i - 20], -1.0),
    "guarded_after": lambda a, i: te.select(i < 9, a[i + 215], a[i]),
    "guarded_stride": lambda a, i: te.select(te.all_of(i >= 2, i < 26), a[9 * i - 18], 0.0),
    "guarded_broadcast": lambda a, i: te.select(i < 3, a[0], 2.0),
    "never": lambda a, i: te.select(i >= 40, a[i], 1.0),
}


@pytest.mark.parametrize("name", ACCESSES)
@pytest.mark.parametrize("lanes", [0, 5, 16])
def test_accesses(name, lanes, target):
    a = te.placeholder((224,), name="A0")
    c = te.compute((32,), lambda i: ACCESSES[name](a, i), name="C")
    s = te.create_schedule(c)
    if lanes:
        _, inner = s[c].split(c.op.axis[0], factor=lanes)
        s[c].vectorize(inner)
    agree(s.func, target, np.arange(224, dtype=np.float32))


@pytest.mark.parametrize("unrolled", [False, True])
def test_reads_at_run_time_indices(target, unrolled):
    a, at = te.placeholder((9, 6), name="A0"), te.placeholder((8,), "int32", name="A1")
    c = te.compute((8, 6), lambda i, j: a[te.index(at[i], 0, 8), (j + i) % 6], name="C")
    s = te.create_schedule(c)
    s[c].vectorize(c.op.axis[1])
    if unrolled:
        s[c].unroll(c.op.axis[0])
    agree(s.func, target, np.arange(54, dtype=np.float32).reshape(9, 6), np.array([3, 1, 4, 1, 5, 8, 2, 6], np.int32))


@pytest.mark.parametrize("stride", [-4, -3, -2, -1, 2, 3, 4])
@pytest.mark.parametrize("wanted", ["all", "first_lanes", "some_lanes", "by_row"])
def test_strided_loads_read_nothing_beyond_their_last_element(stride, wanted, target):
    """The storage ends with the last element wanted: reading further would fail under a checker, and yields junk here."""
    rows, n = 3, 16
    last = 11 if wanted == "first_lanes" else n - 1
    a = te.placeholder((rows, abs(stride) * last + 1), "float32", name="A0")

    def body(i, j):
        value = a[i, j * stride] if stride > 0 else a[i, (j - last) * stride]
        conditions = {"first_lanes": j < 12, "some_lanes": te.all_of(j >= 3, j < 9), "by_row": te.all_of(i >= 1, j < 16 - i)}
        return value if wanted == "all" else te.select(conditions[wanted], value, -1.0)

    c = te.compute((rows, n), body, name="C")
    s = te.create_schedule(c)
    s[c].vectorize(c.op.axis[1])
    agree(s.func, target, values("float32", rows * a.shape[1]).reshape(a.shape))


@pytest.mark.parametrize("layout", ["AB", "BA", "AB4b", "BA2a", "AB3b"])
def test_stores_contiguous_strided_and_scattered(layout, target):
    a = te.placeholder((10, 7), name="A0")
    c = te.compute((10, 7), lambda i, j: a[i, j] + 1.0, name="C")
    s = te.create_schedule(c)
    s.set_layout(c, Layout.parse(layout, axes="AB"))
    i, j = c.op.axis
    fused = s[c].fuse(i, j)
    _, inner = s[c].split(fused, factor=16)
    s[c].vectorize(inner)
    agree(s.func, target, np.arange(70, dtype=np.float32).reshape(10, 7))


def test_bool_tensors_are_bytes_in_memory(target):
    func = elementwise(lambda x, y: te.all_of(x, y), "bool", "bool")
    agree(func, target, values("bool", 32), values("bool", 32, 1))
    chosen = elementwise(lambda x, v: te.select(x, v, -v), "bool", "float32")
    agree(chosen, target, values("bool", 32), values("float32", 32))


@settings(max_examples=50)
@given(
    m=st.integers(1, 9), n=st.integers(1, 20), k=st.integers(1, 9), order=st.permutations(range(6)), data=st.data(),
    kinds=st.lists(st.sampled_from(["", "unroll"]), min_size=6, max_size=6), lane=st.integers(0, 5), scope=st.booleans(),
    on=st.sampled_from([HOST, BOARD]),
)
def test_random_schedules_of_a_product(m, n, k, order, data, kinds, lane, scope, on):
    """Any loop order, unrolled or not, any one loop in lanes (reductions too), result in registers or not."""
    a, b = te.placeholder((m, k), name="A0"), te.placeholder((k, n), name="A1")
    r = te.reduce_axis(k, "k")
    y = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="Y")
    c = te.compute((m, n), lambda i, j: te.maximum(y[i, j], 0.5), name="C")
    s = te.create_schedule(c)
    if scope:
        s[y].set_scope("local")
        s[y].compute_at(s[c], c.op.axis[0])
    loops = [
        x for axis in (*s[y].op.axis, *s[y].op.reduce_axis)
        for x in s[y].split(axis, factor=data.draw(st.integers(1, axis.extent)))
    ]
    s[y].reorder(*(loops[p] for p in order))
    for position, (loop, kind) in enumerate(zip(loops, kinds, strict=True)):
        if position == lane:
            s[y].vectorize(loop)
        elif kind:
            s[y].unroll(loop)
    lowered = lower(s.func, on)
    assume(instructions(lowered, on) < MAX_INSTRUCTIONS and peak_live_vectors(lowered, on) <= on.vector_registers)
    rng = np.random.default_rng(0)
    agree(s.func, on, *(rng.integers(-9, 9, shape).astype(np.float32) for shape in ((m, k), (k, n))))


def test_registers_do_not_outlive_the_phase_that_fills_them():
    """Two nests fill a local tensor, in parallel and not; a third reads it. Only shared storage can do that."""
    x = te.placeholder((20,), name="x")
    c = te.compute((23,), lambda i: te.select(te.index(i) < 20, x[i], 1.0), name="C")
    s = te.create_schedule(c)
    local = s.cache_write(c, "local")
    first, _ = s[local].partition("i_c")
    s[local].parallel(first)
    with pytest.raises(CodegenError, match=r"C_local \(local\) is read in a phase that does not compute it"):
        compile_kernel(s.func, HOST)
    s[local].set_scope("global")
    a = values("float32", 20)
    np.testing.assert_array_equal(run(s.func, HOST, {"x": a})["C"], [*a, 1, 1, 1])


def test_a_gather_is_not_remembered_as_masked(target):
    """Both branches read one far-strided place, in bounds in every lane: what one loaded is not all there."""
    x, c = te.placeholder((16, 100), name="x"), te.placeholder((16,), "bool", name="c")
    y = te.compute((16,), lambda i: te.select(c[i], x[i, 3], x[i, 3]), name="C")
    s = te.create_schedule(y)
    s[y].vectorize("i")
    a = np.arange(1600, dtype=np.float32).reshape(16, 100) + 1
    made = run(s.func, target, {"x": a, "c": np.arange(16) % 3 == 0})["C"]
    np.testing.assert_array_equal(made, a[:, 3])


@pytest.mark.parametrize("dtype", dtypes.DTYPES)
def test_neighbours_at_known_distances(target, dtype):
    """x // 3, x % 4 and both together of lanes: one wide load and a shuffle, in storage with no room to spare; the last
    lanes of 21 are guarded."""
    x = te.placeholder((2, 24), dtype, name="x")
    where = {"third": lambda j: j // 3 + 3, "wave": lambda j: j % 4 + 20, "back": lambda j: 23 - j // 8,
             "both": lambda j: (j // 4) * 2 + j % 2 + 8, "far": lambda j: j % 8 * 3 + 2}
    a = values(dtype, 48).reshape(2, 24)
    for name, at in where.items():
        for length in (48, 32, 21):
            y = te.compute((2, length), lambda i, j, at=at: x[i, at(j) % 24], name=name)
            s = te.create_schedule(y)
            _, lane = s[y].split(y.op.axis[1], factor=16)
            s[y].vectorize(lane)
            made = run(s.func, target, {"x": a})[name]
            places = np.array([at(j) % 24 for j in range(length)])
            np.testing.assert_array_equal(made.view(np.uint8), np.ascontiguousarray(a[:, places]).view(np.uint8))


def test_guards_do_not_repeat_what_they_guard(target):
    """Eight times `where v < 0: v + 1, else sin v`, its last vector ragged: each sine once, not once per path to it."""
    x = te.placeholder((3, 22), name="x")
    v, want = x, (a := values("float32", 66).reshape(3, 22)).astype(np.float64)
    for n in range(8):
        v = te.compute((3, 22), lambda i, j, v=v: te.select(v[i, j] < 0.0, v[i, j] + 1.0, te.sin(v[i, j])), name=f"v{n}")
        want = np.where(want < 0, want + 1, np.sin(want))
    s = te.create_schedule(v)
    for n in range(7):
        s[f"v{n}"].compute_inline()
    outer, lanes = s[v].split(v.op.axis[1], factor=target.lanes(32))
    s[v].vectorize(lanes)
    s[v].partition(outer)
    np.testing.assert_allclose(run(s.func, target, {"x": a})[v.name], want, rtol=1e-4, atol=1e-5)
    lowered = lower(s.func, target)
    assert emit(lowered, target, split_tasks(lowered), "k").count("\n") < 3000


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lanes", [2, 3, 8, 16, 20, 40])
def test_exp_in_vectors_of_any_width(dtype, lanes, target):
    """vscalefps works on whole registers: vectors are padded, or taken apart and joined; ends, infinities and NaN hold."""
    ends = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 88.5, -87.0, -100.0, 89.5, 1e-40, 709.5, -740.0, -750.0]
    x = np.resize(np.array(ends), 2 * lanes).astype(dtype)
    A = te.placeholder((2 * lanes,), dtype, name="A")
    C = te.compute((2 * lanes,), lambda i: te.exp(A[i]), name="C")
    s = te.create_schedule(C)
    _, inner = s[C].split(s[C].op.axis[0], factor=lanes)
    s[C].vectorize(inner)
    got = run(s.func, target, {"A": x})["C"]
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(x.astype(np.longdouble))
        want = exact.astype(dtype)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    ulps = 1.0 if target.has_fma else 1.5          # the polynomial rounds more often without
    assert (np.abs(got[finite] - exact[finite]) <= ulps * np.spacing(want[finite])).all()
