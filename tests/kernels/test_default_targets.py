"""What the analytic policy chooses for machines that are not here: AVX2 and AVX-512, 4 to 64 cores, small caches; boards.

Each layer has its real shape and is scheduled as a build does it, alone. Checked are facts of the code, not its speed:

    no refusal   the first sketch takes it with its default tile
    registers    accumulators fit, and no loop of multiply-adds moves a vector to or from the stack
    vectors      those loops multiply whole vectors
    cores        what is worth sharing has work for three quarters of the cores (of Winograd the cost model weighs that)

Depthwise convolutions and pools stand behind a 3x3 convolution and work in its blocked layout.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from programs import program
from running import Arrays, agree
from test_default_schedules import RUNNABLE, random_inputs, recipe

from toolchain.core.target import Target
from toolchain.graph import winograd
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph
from toolchain.kernels.algorithms import Geometry, winograd_parts
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.flops import flops
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.kernels.tiling import conv_tiles, fits, matmul_tiles
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.limits import peak_live_vectors
from toolchain.targets.llvm.object import assembly, innermost_loops, spills
from toolchain.targets.llvm.split_tasks import split_tasks
from toolchain.targets.presets import PRESETS
from toolchain.tasks.optimize import optimize_graph
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices

V3, V4 = PRESETS["x86-64-v3"], PRESETS["x86-64-v4"]
TARGETS = {
    "avx2, 4 cores": replace(V3, cores=4, l2_bytes=256 << 10, l3_bytes=8 << 20),
    "avx2, 64 cores": replace(V3, cores=64, l2_bytes=512 << 10, l3_bytes=256 << 20),
    "avx2, small caches": replace(V3, cores=4, l1d_bytes=16 << 10, l2_bytes=128 << 10, l3_bytes=0),
    "avx512, 32 cores": replace(V4, cores=32, l2_bytes=2 << 20, l3_bytes=64 << 20),
    **{name: PRESETS[name] for name in ("cortex-a53", "cortex-a72")},
}
# By bits of a vector: what multiplies and adds, as it does with one element, whole vectors
MULTIPLY_ADDS = {512: ("vfm", r"vfm\w+ss\b", "zmm"), 256: ("vfm", r"vfm\w+ss\b", "ymm"),
                 128: ("fmla", r"\bfmadd\b|fmla\s+s", ".4s")}
WORTH_SHARING = 5e6          # operations: about 50 us of one core

Layer = Callable[[Path], None]


def conv(channels: int, outputs: int, size: int, kernel: int, stride: int = 1, groups: int = 1, rows: int = 0) -> Layer:
    """rows: as many as columns where it is 0."""
    def write(out: Path) -> None:
        net, x = recipe().Network("layer", seed=1), "x"
        if groups > 1:
            x = net.conv(x, "before", channels, channels, 3, pad=1)
        x = net.conv(x, "conv", channels, outputs, kernel, stride=stride, pad=kernel // 2, groups=groups, bias=True)
        net.relu(x)
        height = rows or size
        shape = [1, outputs, -(-height // stride), -(-size // stride)]
        net.write(out, {"x": (1, [1, channels, height, size])}, {"y": shape})
    return write


def deconv(channels: int, outputs: int, size: int) -> Layer:
    def write(out: Path) -> None:
        net = recipe().Network("layer", seed=1)
        net.relu(net.deconv("x", "deconv", channels, outputs, 4, 2, 1))
        net.write(out, {"x": (1, [1, channels, size, size])}, {"y": [1, outputs, 2 * size, 2 * size]})
    return write


def pool(channels: int, size: int) -> Layer:
    def write(out: Path) -> None:
        net = recipe().Network("layer", seed=1)
        x = net.conv("x", "before", channels, channels, 3, pad=1)
        net.op("MaxPool", "pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        net.write(out, {"x": (1, [1, channels, size, size])}, {"y": [1, channels, size // 2, size // 2]})
    return write


def matmul(rows: int, inner: int, columns: int) -> Layer:
    def write(out: Path) -> None:
        net = recipe().Network("layer", seed=1)
        net.linear("x", "fc", inner, columns)
        net.write(out, {"x": (1, [rows, inner])}, {"y": [rows, columns]})
    return write


LAYERS: dict[str, Layer] = {
    "first 7x7/2": conv(3, 64, 224, 7, 2), "first 3x3/2": conv(3, 24, 224, 3, 2),
    "3x3/2": conv(64, 128, 56, 3, 2), "1x1": conv(128, 128, 28, 1),
    "1x1 of 14x14": conv(512, 512, 14, 1), "7x7 pixels": conv(256, 512, 7, 1), "winograd": conv(64, 64, 56, 3),
    "5x5": conv(16, 32, 28, 5), "depthwise": conv(512, 512, 14, 3, groups=512), "depthwise/2": conv(64, 64, 112, 3, 2, 64),
    "one line": conv(480, 60, 48, 3, rows=1), "deconv": deconv(128, 64, 16), "max pool": pool(64, 112),
    "128 tokens": matmul(128, 384, 384), "one row": matmul(1, 512, 1000),
}


def kernels(layer: Layer, target: Target, folder: Path) -> list[tuple[Graph, PrimFunc]]:
    """Each kernel of a layer's network, lowered, by the first sketch with its default answers (else an error)."""
    layer(folder / "model.onnx")
    _, workloads = optimize_graph(import_onnx(folder / "model.onnx"), target)
    bodies = [w.body for w in workloads.values()]
    return [(b, lower(schedule(b, target, SKETCHES[0], Choices()).func, target, LLVM.passes)) for b in bodies]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_default_schedules_are_sane(layer: Layer, target: Target, tmp_path: Path) -> None:
    for body, func in kernels(layer, target, tmp_path):
        name, work = anchor_name(body), sum(flops(n, body.types) for n in body.nodes)
        assert peak_live_vectors(func, target) <= target.vector_registers, name
        code = assembly(str(LLVM.stages[0].run(func, "k", {}, target)), target)     # raises where code is over its limits
        assert not spills(code), name
        product, single, register = MULTIPLY_ADDS[target.vector_bits]
        multiplying = [loop for loop in innermost_loops(code) if any(product in line for line in loop)]
        assert not [line for loop in multiplying for line in loop if re.search(single, line)], name
        assert all(any(register in line for line in loop if product in line) for loop in multiplying), name
        if work > WORTH_SHARING and "winograd" not in name:
            assert multiplying or "pool" in name
            chunks = max(phase.parallel for phase in split_tasks(func).phases)
            assert chunks >= 0.75 * target.cores, f"{name}: {chunks} chunks"


def newer_than_armv8_0(code: str) -> list[str]:
    """What an assembler for Armv8.0 says of instructions that it does not have."""
    command = [program("llvm-mc"), "-triple=aarch64", "-mattr=-all,+neon,+fp-armv8", "-filetype=null"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, timeout=300, check=False)
    return [line for line in done.stderr.splitlines() if "error:" in line]


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_every_instruction_for_a_board_is_of_armv8_0(layer: Layer, tmp_path: Path) -> None:
    """Those that never run, too; those that run do so on an emulated Cortex-A53 in tests/targets and test_operators."""
    target = PRESETS["cortex-a53"]
    for body, func in kernels(layer, target, tmp_path):
        code = assembly(str(LLVM.stages[0].run(func, "k", {}, target)), target)
        assert newer_than_armv8_0(code) == [], anchor_name(body)


@pytest.mark.parametrize("newer", ["sdot v0.4s, v1.16b, v2.16b", "fadd v0.8h, v1.8h, v2.8h", "casal x0, x1, [sp]"])
def test_a_newer_instruction_is_noticed(newer: str) -> None:
    (error,) = newer_than_armv8_0(f"\tadd x0, x0, #1\n\t{newer}\n")
    assert "<stdin>:2:2: error: instruction requires: " in error


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_register_tiles_fit_and_hide_latency(target: Target) -> None:
    """All tiles offered are legal; the one taken for a large layer keeps enough sums to hide the latency of an FMA."""
    for height, width, blocks in ((56, 56, 8), (14, 14, 64), (7, 7, 64), (1, 1, 125), (3, 5, 1)):
        tiles = (*conv_tiles(height, width, blocks, target), *matmul_tiles(height * width, blocks, target))
        assert all(fits(t, target) or t.accumulators == 1 for t in tiles)
    assert conv_tiles(56, 56, 8, target)[0].accumulators >= 4 * target.fma_per_cycle
    assert matmul_tiles(128, 24, target)[0].accumulators >= 4 * target.fma_per_cycle


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_winograd_strips_fit_into_l2(target: Target) -> None:
    """Half of it: products of one channel group, and transformed inputs of a core's strip; one tile at least."""
    for shape in (Geometry(1, 64, 64, 56, 56), Geometry(1, 128, 128, 28, 28), Geometry(1, 256, 256, 14, 14)):
        parts = winograd_parts(shape, 4, target)
        channels = parts.tile.vectors * target.lanes() + (shape.channels if parts.shared != "groups" else 0)
        scratch = 4 * 36 * parts.rows * parts.columns * channels
        assert scratch <= target.l2_bytes / 2 or (parts.rows, parts.columns) == (1, 1)


@pytest.mark.parametrize("cores", [3, 64])
@pytest.mark.parametrize("layer", ["1x1 of 7 pixels", "depthwise", "one line", "a product"])
def test_fused_shares_keep_the_meaning(layer: str, cores: int, tmp_path: Path) -> None:
    """More cores than a loop has iterations: two loops are shared as one (on 64), and compute the same."""
    small: dict[str, Layer] = {"1x1 of 7 pixels": conv(32, 96, 7, 1), "depthwise": conv(48, 48, 10, 3, groups=48),
                               "one line": conv(32, 60, 20, 3, rows=1), "a product": matmul(24, 33, 64)}
    for target in (replace(t, cores=cores) for t in RUNNABLE):
        small[layer](tmp_path / "model.onnx")
        _, workloads = optimize_graph(import_onnx(tmp_path / "model.onnx"), target)
        for workload in workloads.values():
            arrays = random_inputs(workload.body)
            if workload.body.nodes[0].op == "WinogradConv":
                agree(workload.body, arrays, 0.0, winograd_rounding(workload.body, arrays), target)
            else:
                agree(workload.body, arrays, 1e-4, 1e-4, target)


def winograd_rounding(body: Graph, arrays: Arrays) -> np.ndarray:
    """How far rounding may carry each output of the Winograd convolution at the head of a body: four standard deviations.

    Terms are large in Winograd's domain and cancel behind it, so it is their size that counts, not the result's. Each
    rounding is an independent error of up to half an ulp of what it rounds; a term passes some four in each of four 1-D
    transforms, and those of the sum over channels behind it. Independent errors add as squares do: the root of the
    convolution of squares, through matrices of squares, times the roundings of a term.
    """
    node = body.nodes[0]
    x, u = (arrays[name].astype(np.float64) for name in node.inputs[:2])
    squares = {name: {key: m ** 2 for key, m in getattr(winograd, name).items()} for name in ("B_T", "A_T")}
    with patch.multiple(winograd, **squares):
        spread = winograd.convolve(x ** 2, u ** 2, node.attrs["pads"], node.attrs["m"], node.attrs["taps"])
    return np.asarray(4 * 2.0 ** -24 * np.sqrt((4 * 4 + x.shape[1]) * spread))


def test_loops_are_fused_only_where_cores_would_idle(tmp_path: Path) -> None:
    def chunks(cores: int) -> int:
        found = kernels(LAYERS["1x1 of 14x14"], replace(V4, cores=cores), tmp_path)
        (func,) = (func for body, func in found if "conv" in anchor_name(body))
        return max(phase.parallel for phase in split_tasks(func).phases)

    assert chunks(2) == chunks(4) < 64 <= chunks(64)


@pytest.mark.parametrize(("layer", "cores", "order"), [
    (conv(1024, 256, 64, 1), 2, "rows"), (conv(1024, 256, 64, 1), 32, "groups"), (conv(512, 512, 14, 1), 2, "groups"),
])
def test_an_input_that_no_l2_holds_is_read_once(layer: Layer, cores: int, order: str, tmp_path: Path):
    """One group of output channels after the other would read all of it from L3 each time."""
    target = replace(V4, cores=cores, l2_bytes=1 << 20, l3_bytes=32 << 20)
    layer(tmp_path / "model.onnx")
    _, workloads = optimize_graph(import_onnx(tmp_path / "model.onnx"), target)
    choices = [Choices() for _ in workloads]
    for workload, asked in zip(workloads.values(), choices, strict=True):
        schedule(workload.body, target, SKETCHES[0], asked)
    assert [c.asked["order"].default for c in choices if "order" in c.asked] == [order]
