"""The code itself: hot loops without spills, limits, tasks, text, targets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import toolchain
import toolchain.te as te
from toolchain.core.errors import CodegenError, UsageError
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.targets.base import BACKENDS, compile_kernel, kernel_symbol
from toolchain.targets.features import with_features, with_vector_facts
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.cpu import cache_sizes, host_target
from toolchain.targets.llvm.limits import MAX_INSTRUCTIONS, instructions, peak_live_vectors
from toolchain.targets.llvm.load import aligned, load, run
from toolchain.targets.llvm.object import assembly, innermost_loops, spills
from toolchain.targets.llvm.spelling import constant, intrinsic
from toolchain.targets.presets import PRESETS, target
from toolchain.te.lower import lower

ARM = Target("arm", "aarch64", triple="aarch64-unknown-linux-gnu", cpu="generic", features=("+neon",), vector_registers=32)


def tiled_conv(lanes: int, rows: int, vectors: int, channels: int = 64, size: int = 28) -> te.Schedule:
    """3x3, stride 1, blocked and halo-padded: a register tile of rows x vectors, 4 input channels unrolled."""
    x = te.placeholder((channels, size, size), name="X")
    w = te.placeholder((channels, channels, 3, 3), name="W", constant=True)
    bias = te.placeholder((channels,), name="bias", constant=True)
    ic, kh, kw = te.reduce_axis(channels, "ic"), te.reduce_axis(3, "kh"), te.reduce_axis(3, "kw")

    def padded(c, y, x_):
        return te.select(te.all_of(y >= 0, y < size, x_ >= 0, x_ < size), x[c, y, x_], 0.0)

    y = te.compute((channels, size, size), lambda o, y, x_: te.sum(
        padded(ic, y + kh - 1, x_ + kw - 1) * w[o, ic, kh, kw], axis=(ic, kh, kw), init=bias[o]), name="Y")
    r = te.compute((channels, size, size), lambda o, y_, x_: te.maximum(y[o, y_, x_], 0.0), name="R")
    s = te.create_schedule(r)
    o, row, col = r.op.axis
    group, o = s[r].split(o, factor=lanes * vectors)
    n, lane = s[r].split(o, factor=lanes)
    tile, m = s[r].split(col, factor=rows)
    s[r].reorder(row, group, tile, m, n, lane)
    s[y].set_scope("local")
    s[y].compute_at(s[r], tile)
    (oc, yc, xc), (ic, kh, kw) = s[y].op.axis, s[y].op.reduce_axis
    n2, lane2 = s[y].split(oc, factor=lanes)
    block, inner = s[y].split(ic, factor=lanes)
    io, ii = s[y].split(inner, factor=4)
    s[y].reorder(block, kh, kw, io, ii, yc, xc, n2, lane2)
    for loop in (ii, yc, xc, n2):
        s[y].unroll(loop)
    for loop in (m, n):
        s[r].unroll(loop)
    s[r].vectorize(lane)
    s[y].vectorize(lane2)
    s[r].parallel(row)
    for t in (x, r):
        s.set_layout(t, Layout("ABC", ((0, 0), (1, 0), (2, 0), (0, lanes)), ((0, 0), (1, 1), (1, 1))))
    s.set_layout(w, Layout("ABCD", ((0, 0), (1, 0), (2, 0), (3, 0), (1, lanes), (0, lanes * vectors)), ((0, 0),) * 4))
    s.set_layout(y, Layout("ABC", ((1, 0), (2, 0), (0, 0), (0, lanes)), ((0, 0),) * 3))
    return s


def code(func: te.PrimFunc, t: Target) -> str:
    lowered = lower(func, t, LLVM.passes)
    return assembly(str(LLVM.stages[0].run(lowered, "k", {}, t)), t)


@pytest.mark.parametrize("preset,rows,vectors,register", [("x86-64-v4", 14, 2, "zmm"), ("x86-64-v3", 4, 2, "ymm")])
def test_the_hot_loop_of_a_convolution_has_no_spill(preset, rows, vectors, register):
    t = PRESETS[preset]
    text = code(tiled_conv(t.lanes(), rows, vectors).func, t)
    assert spills(text) == []
    (hot,) = [loop for loop in innermost_loops(text) if any("vfmadd" in line for line in loop)]
    assert sum("vfmadd" in line for line in hot) == 4 * rows * vectors
    assert len(set(re.findall(rf"%{register}\d+", "".join(hot)))) >= rows * vectors
    stores = [line for line in hot if re.search(rf"v?movup?s\s+%{register}\d+, .*\(", line)]
    assert stores == []                          # the tile leaves its registers after the loop only


@pytest.mark.parametrize("preset,rows,vectors", [("x86-64-v3", 12, 1), ("x86-64-v3", 6, 2), ("x86-64-v4", 9, 3)])
def test_sums_stay_in_their_registers(preset, rows, vectors):
    """Rows of one vector, where LLVM would rather overwrite the broadcast, and tiles that leave two registers free."""
    t = PRESETS[preset]
    text = code(tiled_conv(t.lanes(), rows, vectors, 48, 2 * rows).func, t)
    assert spills(text) == []
    (hot,) = [loop for loop in innermost_loops(text) if any("vfmadd" in line for line in loop)]
    sums = [line.split("#")[0].rsplit("%", 1)[1].strip() for line in hot if "vfmadd231ps" in line]
    assert len(sums) == 4 * rows * vectors and len(set(sums)) == rows * vectors


def test_overlapping_windows_do_not_share_their_loads():
    """kx unrolled around a tile with stride 2: without the separation AVX2 code moves vectors to the stack 19 times."""
    t = PRESETS["x86-64-v3"]
    x, w = te.placeholder((3, 29, 29), name="X"), te.placeholder((16, 3, 3, 3), name="W", constant=True)
    ic, ky, kx = te.reduce_axis(3, "ic"), te.reduce_axis(3, "ky"), te.reduce_axis(3, "kx")
    y = te.compute((16, 12, 12), lambda o, r, c: te.sum(x[ic, 2 * r + ky, 2 * c + kx] * w[o, ic, ky, kx], axis=(ic, ky, kx)),
                   name="Y")
    out = te.compute((16, 12, 12), lambda o, r, c: te.maximum(y[o, r, c], 0.0), name="R")
    s = te.create_schedule(out)
    o, row, col = out.op.axis
    n, lane = s[out].split(o, factor=8)
    tile, m = s[out].split(col, factor=6)
    s[out].reorder(row, tile, m, n, lane)
    s[y].set_scope("local")
    s[y].compute_at(s[out], tile)
    (oc, yc, xc), (ic, ky, kx) = s[y].op.axis, s[y].op.reduce_axis
    n2, lane2 = s[y].split(oc, factor=8)
    s[y].reorder(ic, ky, kx, yc, xc, n2, lane2)
    for loop in (kx, yc, xc, n2):
        s[y].unroll(loop)
    for loop in (m, n):
        s[out].unroll(loop)
    s[y].vectorize(lane2)
    s[out].vectorize(lane)
    s.set_layout(w, Layout("ABCD", ((1, 0), (2, 0), (3, 0), (0, 0), (0, 16)), ((0, 0),) * 4))
    s.set_layout(y, Layout("ABC", ((1, 0), (2, 0), (0, 0), (0, 8)), ((0, 0),) * 3))
    s.set_layout(out, Layout("ABC", ((0, 0), (1, 0), (2, 0), (0, 8)), ((0, 0),) * 3))
    assert spills(code(s.func, t)) == []


@pytest.mark.parametrize(("name", "rows", "loads"), [
    ("x86-64-v4", 8, 3 * 10),          # ten rows for eight, column by column
    ("x86-64-v3", 4, 3 * 6),
    ("x86-64-v3", 8, 3 * 24),          # eight sums and ten rows are more than 16 registers
])
def test_windows_that_registers_hold_are_loaded_once(name, rows, loads):
    """ky unrolled around rows: neighbouring rows read the same."""
    t, lanes = PRESETS[name], PRESETS[name].vector_bits // 32
    x, w = te.placeholder((34, 70), name="X"), te.placeholder((3, 3), name="W", constant=True)
    ky, kx = te.reduce_axis(3, "ky"), te.reduce_axis(3, "kx")
    y = te.compute((32, 64), lambda r, c: te.sum(x[r + ky, c + kx] * w[ky, kx], axis=(ky, kx)), name="Y")
    out = te.compute((32, 64), lambda r, c: te.maximum(y[r, c], 0.0), name="R")
    s = te.create_schedule(out)
    _, co, ri, ci = s[out].tile(*out.op.axis, rows, lanes)
    s[y].set_scope("local")
    s[y].compute_at(s[out], co)
    (yr, yc), (ky, kx) = s[y].op.axis, s[y].op.reduce_axis
    s[y].reorder(kx, ky, yr, yc)
    for loop in (kx, ky, yr):
        s[y].unroll(loop)
    s[out].unroll(ri)
    s[y].vectorize(yc)
    s[out].vectorize(ci)
    text = code(s.func, t)
    register = "zmm" if lanes == 16 else "ymm"
    read = [line for line in text.splitlines()
            if re.search(rf"{register}\d+", line) and re.search(r"\(%r", line) and "broadcast" not in line]
    stores = [line for line in read if re.search(r"%[xyz]mm\d+, -?\w*\(", line)]
    assert spills(text) == [] and len(read) - len(stores) == loads


def test_spills_are_seen():
    """A tile too large for AVX2: the limit refuses it, and the assembly shows why."""
    t = PRESETS["x86-64-v3"]
    func = tiled_conv(8, 14, 2).func
    with pytest.raises(CodegenError, match=r"main keeps 28 vectors alive in its hot loop, x86-64-v3 has 16"):
        compile_kernel(func, t)
    roomy = replace(t, vector_registers=64)      # the limit is told otherwise, the machine is not
    assert spills(code(func, roomy))


def test_arm_code_has_no_spill_and_multiplies_by_element():
    text = code(tiled_conv(4, 4, 4, 16, 8).func, ARM)
    assert spills(text) == []
    assert re.search(r"fmla\s+v\d+\.4s", text)


def test_convolution_is_right_on_this_machine():
    host = host_target()
    func = tiled_conv(host.lanes(), 14 if host.vector_bits == 512 else 4, 2).func
    rng = np.random.default_rng(0)
    arrays = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in func.params if t not in func.stages}
    x = np.pad(arrays["X"].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    want = arrays["bias"][:, None, None] + sum(
        np.einsum("oc,cyx->oyx", arrays["W"][:, :, i, j].astype(np.float64), x[:, i:i + 28, j:j + 28])
        for i in range(3) for j in range(3))
    np.testing.assert_allclose(run(func, host, arrays)["R"], np.maximum(want, 0), atol=2e-4)   # 576 products of size one


def test_unrolling_has_a_limit():
    a = te.placeholder((4000,), name="A")
    c = te.compute((4000,), lambda i: te.tanh(a[i]), name="C")
    s = te.create_schedule(c)
    s[c].unroll(c.op.axis[0])
    with pytest.raises(CodegenError, match=rf"main would unroll to about \d+ instructions, the limit is {MAX_INSTRUCTIONS}"):
        compile_kernel(s.func, host_target())


def test_estimates():
    t = PRESETS["x86-64-v4"]
    lowered = lower(tiled_conv(16, 14, 2).func, t)
    lines = str(LLVM.stages[0].run(lowered, "k", {}, t)).count("\n")
    assert lines * 0.8 < instructions(lowered, t) < lines * 2
    assert peak_live_vectors(lowered, t) == 28


def sums_of_squares(parallel: bool = True) -> te.Schedule:
    a = te.placeholder((6, 5), name="A")
    k = te.reduce_axis(5, "k")
    squares = te.compute((6, 5), lambda i, j: a[i, j] * a[i, j], name="B")
    c = te.compute((6,), lambda i: te.sum(squares[i, k], axis=k), name="C")
    s = te.create_schedule(c)
    if parallel:
        s[squares].parallel(squares.op.axis[0])
        s[c].parallel(c.op.axis[0])
    return s


def test_each_root_nest_is_a_phase_and_intermediate_tensors_are_workspace():
    kernel = compile_kernel(sums_of_squares().func, host_target())
    assert [extent for _, extent in kernel.phases] == [6, 6]
    assert kernel.workspace == (128,)            # 30 floats, in whole lines
    assert (kernel.n_params, kernel.scratch_bytes) == (2, 0)
    assert [extent for _, extent in compile_kernel(sums_of_squares(False).func, host_target()).phases] == [1]


def test_parts_of_a_phase_make_the_whole():
    kernel = compile_kernel(sums_of_squares().func, host_target())
    loaded = load(kernel)
    x = np.arange(30, dtype=np.float32).reshape(6, 5)
    a, c = aligned(30, "float32"), aligned(6, "float32")
    a[:] = x.reshape(-1)
    table = loaded.table((a, c))
    for task, extent in loaded.phases:
        for lo, hi in ((4, extent), (0, 1), (2, 2), (1, 4)):
            task(table, lo, hi, None)
    np.testing.assert_array_equal(c, (x * x).sum(1))


def test_lane_scratch():
    a = te.placeholder((6, 40), name="A")
    b = te.compute((6, 40), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((6, 40), lambda i, j: b[i, j] * b[i, 39 - j], name="C")
    s = te.create_schedule(c)
    s[b].set_scope("lane")
    s[b].compute_at(s[c], c.op.axis[0])
    s[c].parallel(c.op.axis[0])
    kernel = compile_kernel(s.func, host_target())
    assert kernel.scratch_bytes == 192           # one row, in whole lines
    x = np.arange(240, dtype=np.float32).reshape(6, 40)
    np.testing.assert_array_equal(run(s.func, host_target(), {"A": x})["C"], (x + 1) * (x + 1)[:, ::-1])


def test_symbols_are_made_of_the_code_and_the_target():
    def symbol(n: int, name: str, t: Target) -> str:
        a = te.placeholder((n,), name=name)
        c = te.compute((n,), lambda i: a[i] * 2.0, name=name + "_out")
        return kernel_symbol(lower(te.create_schedule(c).func, t), t)

    v3, v4 = PRESETS["x86-64-v3"], PRESETS["x86-64-v4"]
    assert symbol(8, "a", v3) == symbol(8, "other", v3)
    assert len({symbol(8, "a", v3), symbol(9, "a", v3), symbol(8, "a", v4)}) == 3


def test_equal_kernels_have_equal_bytes():
    one, two = (compile_kernel(sums_of_squares().func, PRESETS["x86-64-v3"]) for _ in range(2))
    assert one == two


def test_objects_import_nothing():
    """Kernels call no function of any library, whatever they compute."""
    a = te.placeholder((64,), name="A")
    c = te.compute((64,), lambda i: te.pow(te.erf(a[i]), te.tanh(a[i])) + te.round(a[i]) + te.sin(a[i]) % 2.0, name="C")
    for t in (*PRESETS.values(), ARM):
        text = code(te.create_schedule(c).func, t)
        calls = set(re.findall(r"\s(?:callq?|bl|jal|tail)\s+(\S+)", text))
        assert all(name.startswith("k_0.task") for name in calls), (t.name, calls)


def test_no_llvm_text_outside_of_its_package():
    root = Path(toolchain.__file__).parent
    spelled = re.compile(r"getelementptr|<\d+ x (?:float|i\d+)>|@llvm\.|\bfmuladd\b")
    found = [
        str(p.relative_to(root)) for p in sorted(root.rglob("*.py"))
        if not p.is_relative_to(root / "targets" / "llvm") and spelled.search(p.read_text())
    ]
    assert found == []


def test_unknown_intrinsics_are_refused_before_llvm_aborts():
    assert intrinsic("fmuladd", "<16 x float>") == "llvm.fmuladd.v16f32"
    with pytest.raises(CodegenError, match=r"llvm\.exp is not on the emitter's list"):
        intrinsic("exp", "float")


@pytest.mark.parametrize("value,dtype,text", [
    (0.1, "float32", "0x3FB99999A0000000"), (0.1, "float64", "0x3FB999999999999A"),
    (float("inf"), "float32", "0x7FF0000000000000"), (1.0, "float16", "0xH3C00"), (1.0, "bfloat16", "16256"),
    (-1, "int8", "-1"), (True, "bool", "true"),
])
def test_constants_are_exact(value, dtype, text):
    assert constant(value, dtype) == text


def test_presets_and_their_errors():
    assert target("x86-64-v3").vector_bits == 256
    assert target({"preset": "x86-64-v4", "cores": 8}).cores == 8
    for preset in PRESETS.values():
        assert with_vector_facts(preset) == preset
    narrow = with_features(PRESETS["x86-64-v4"], ["-avx512vl"])
    assert (narrow.vector_bits, narrow.vector_registers, narrow.has("avx512vl")) == (256, 16, False)
    assert target(PRESETS["x86-64-v2"]).has_fma is False
    double_pumped = with_features(PRESETS["x86-64-v4"], ["+clzero"])            # Zen 4; Zen 5 has the next feature too
    assert double_pumped.fma_per_cycle == 1 and with_features(PRESETS["x86-64-v3"], ["+clzero"]).fma_per_cycle == 2
    assert with_features(double_pumped, ["+avx512vp2intersect"]).fma_per_cycle == 2
    vectors = with_features(PRESETS["rv64gc"], ["+v", "+zvl256b"])
    assert (vectors.vector_bits, vectors.vector_registers) == (256, 32)
    assert set(BACKENDS) >= {t.kind for t in PRESETS.values()}
    with pytest.raises(UsageError, match="no target 'x86-64-v5'") as e:
        target("x86-64-v5")
    assert "did you mean 'x86-64-v" in str(e.value)
    with pytest.raises(UsageError, match="a target has no corse"):
        target({"corse": 2})
    with pytest.raises(CodegenError, match="no code generator for targets of kind vta"):
        compile_kernel(sums_of_squares().func, Target("v", "vta"))


def test_the_host_is_described_by_its_features(tmp_path):
    host = host_target(cores=3)
    assert host.cores == 3
    assert host.vector_bits == 512 or not all(host.has(f) for f in ("avx512f", "avx512dq", "avx512bw", "avx512vl"))
    for n, (level, kind, size) in enumerate([("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]):
        folder = tmp_path / f"index{n}"
        folder.mkdir()
        for name, content in (("level", level), ("type", kind), ("size", size), ("coherency_line_size", "64")):
            (folder / name).write_text(content + "\n")
    assert cache_sizes(tmp_path) == {"l1d_bytes": 48 << 10, "l2_bytes": 2 << 20, "line_bytes": 64}
