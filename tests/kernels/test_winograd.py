"""Winograd convolution: definition, schedule and machine code against direct convolution; the cost model on some targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import HOST, RUNNABLE, Arrays, close, compiled, defined, expected, interpreted, with_types

from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph import winograd
from toolchain.graph.infer import infer
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.kernels.algorithms import Geometry, algorithms, direct_cycles, winograd_cycles, winograd_parts
from toolchain.kernels.build import schedule
from toolchain.kernels.compute.winograd import input_transform, output_transform
from toolchain.kernels.flops import flops
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.llvm.limits import check_limits
from toolchain.targets.presets import PRESETS
from toolchain.te.expr import Select
from toolchain.te.loop_ir import If, leaves, walk_statements
from toolchain.te.lower import lower
from toolchain.te.lower.shared import nodes

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")

ERROR = {3: 1e-5, 4: 5e-6, 5: 1e-4, 6: 1e-4}        # by side; absolute, of sums of some hundred products about one in size


def direct_and_winograd(
    m: int, batch: int, channels: int, outputs: int, height: int, width: int, pads: tuple[int, ...], epilogue: str = "",
    taps: int = 3, stride: int = 0, step: int = 1,
) -> tuple[Graph, Graph, Arrays]:
    """Bodies of one convolution in both forms, with the epilogue: any of "b" (bias), "+" (residual), "r" (relu).
    stride: of a transposed one, with a kernel of taps * stride; step: of another one, with a kernel of taps * step."""
    rng = np.random.default_rng(height * width)
    x = rng.normal(size=(batch, channels, height, width)).astype("float32")
    size, scale = taps * max(stride, step), 1 / np.sqrt(taps * taps * channels)
    w = (rng.normal(size=(*((channels, outputs) if stride else (outputs, channels)), size, size)) * scale).astype("float32")
    dense = winograd.split_strides(w, step) if step > 1 else w
    u = winograd.transform_phases(w, m, stride, pads[:2]) if stride else winograd.transform_weights(dense, m)
    arrays = {"x": x, "w": w, "u": u}
    if "b" in epilogue:
        arrays["b"] = rng.normal(size=outputs).astype("float32")
    window = {"pads": pads, "strides": (stride or step,) * 2, "dilations": (1, 1), "kernel_shape": (size, size), "group": 1}
    form: dict[str, Any] = {"m": m, "taps": taps, "pads": pads}
    if step > 1:
        out = tuple((n + pads[d] + pads[d + 2] - size) // step + 1 for d, n in enumerate((height, width)))
        form |= {"stride": step, "size": out}
    if stride:
        out = tuple((n - 1) * stride + size - pads[d] - pads[d + 2] for d, n in enumerate((height, width)))
        forms = (("ConvTranspose", "w", window), ("WinogradConvTranspose", "u", {**form, "pads": pads[:2], "size": out}))
    else:
        forms = (("Conv", "w", window), ("WinogradConv", "u", form))
    bodies = []
    for op, weight, attrs in forms:
        inputs = ("x", weight, *("b" for _ in epilogue if _ == "b"))
        types = {name: array_type(arrays[name]) for name in inputs}
        made = [Node(op, inputs, ("y",), attrs, "conv")]
        (types["y"],) = infer(made[0], types, {})
        if "+" in epilogue:
            arrays["r"] = np.random.default_rng(1).normal(size=types["y"].shape).astype("float32")
            made.append(Node("Add", (made[-1].output, "r"), ("s",), {}, "add"))
            types["r"] = types["s"] = types["y"]
            inputs = (*inputs, "r")
        if "r" in epilogue:
            made.append(Node("Relu", made[-1].outputs, ("z",), {}, "relu"))
            types["z"] = types["y"]
        bodies.append(Graph("body", tuple(made), inputs, made[-1].outputs, types))
    return bodies[0], bodies[1], arrays


def in_layouts(body: Graph, arrays: Arrays, target: Target) -> Graph:
    """The body with the layouts that its convolution asks for, and a halo around its result."""
    (option,) = layout_options(target)(body.nodes[0], replace(body, params=dict(arrays)))
    types = {name: body.types[name].with_layout(layout)
             for name, layout in zip(body.nodes[0].inputs, option.inputs) if layout is not None}
    assert option.outputs[0] is not None
    result = body.types["y"].with_layout(option.outputs[0].with_halo(((0, 0), (0, 0), (1, 1), (1, 1))))
    return with_types(body, types | {name: result for name in ("y", "s", "z", "r") if name in body.types})


def check(m: int, target: Target, *shape: int, pads: tuple[int, ...], epilogue: str, interpret: bool = False,
          taps: int = 3, stride: int = 0, step: int = 1) -> None:
    direct, body, arrays = direct_and_winograd(m, *shape, pads=pads, epilogue=epilogue, taps=taps, stride=stride, step=step)
    body = in_layouts(body, arrays, target)
    (want,), (same,), error = expected(direct, arrays), expected(body, arrays), ERROR[m + taps - 1]
    close(same, want, 0, error, "graph interpreter")
    (got,) = compiled(body, arrays, target, (sketch,))
    close(got, want, 0, error, "kernel")
    if interpret:
        close(interpreted(schedule(body, target, sketch).func, body, arrays)[0], want, 0, error, "schedule, interpreted")


@pytest.mark.parametrize("m", winograd.SIZES)
@pytest.mark.parametrize(("shape", "pads", "epilogue"), [
    ((1, 16, 16, 8, 8), (1, 1, 1, 1), "b"),
    ((1, 17, 33, 9, 13), (1, 1, 1, 1), "br"),           # channels and tiles that do not fill up
    ((2, 32, 20, 7, 7), (1, 1, 1, 1), "b+r"),
    ((1, 20, 48, 6, 21), (0, 0, 0, 0), ""),
    ((3, 16, 16, 5, 4), (0, 1, 2, 0), "r"),             # one-sided padding
    ((1, 18, 16, 3, 3), (0, 0, 0, 0), "b"),             # one output element
])
def test_kernels(m: int, shape: tuple[int, ...], pads: tuple[int, ...], epilogue: str) -> None:
    direct, body, arrays = direct_and_winograd(m, *shape, pads=pads, epilogue=epilogue)
    close(defined(body, arrays)[0], expected(direct, arrays)[0], 0, ERROR[m + 2], "definition")
    check(m, HOST, *shape, pads=pads, epilogue=epilogue, interpret=True)


@pytest.mark.parametrize(("m", "taps"), [(2, 2), (3, 2), (4, 2), (2, 5)])
@pytest.mark.parametrize(("shape", "pads", "epilogue"), [
    ((1, 17, 33, 9, 13), (1, 1, 1, 1), "br"),
    ((2, 32, 20, 7, 7), (0, 1, 1, 0), "b+r"),
    ((1, 16, 16, 8, 8), (2, 2, 2, 2), ""),              # tiles a multiple of SAME_SET apart
])
def test_kernels_of_other_sizes(m: int, taps: int, shape: tuple[int, ...], pads: tuple[int, ...], epilogue: str) -> None:
    check(m, HOST, *shape, pads=pads, epilogue=epilogue, taps=taps, interpret=True)


@pytest.mark.parametrize(
    ("m", "taps", "stride"), [(2, 2, 2), (3, 2, 2), (4, 2, 2), (4, 2, 3), (2, 3, 2), (4, 3, 2), (2, 5, 2)])
@pytest.mark.parametrize(("shape", "pads", "epilogue"), [
    ((1, 17, 33, 4, 5), (1, 1, 1, 1), "br"),
    ((2, 32, 20, 7, 3), (1, 0, 0, 1), "b+r"),           # an odd number of rows and columns
    ((1, 16, 16, 8, 8), (1, 1, 1, 1), ""),
])
def test_transposed_kernels(
    m: int, taps: int, stride: int, shape: tuple[int, ...], pads: tuple[int, ...], epilogue: str
) -> None:
    check(m, HOST, *shape, pads=pads, epilogue=epilogue, taps=taps, stride=stride, interpret=True)


@pytest.mark.parametrize(("m", "taps", "step"), [(2, 2, 2), (3, 2, 2), (4, 2, 3), (2, 3, 2), (4, 3, 2)])
@pytest.mark.parametrize(("shape", "pads", "epilogue"), [
    ((1, 16, 33, 14, 15), (1, 1, 1, 1), "br"),          # an odd number of columns: the last one is read by no tap
    ((2, 32, 20, 9, 7), (2, 0, 0, 1), "b+r"),
    ((1, 32, 64, 20, 20), (0, 0, 0, 0), ""),
])
def test_strided_kernels(
    m: int, taps: int, step: int, shape: tuple[int, ...], pads: tuple[int, ...], epilogue: str
) -> None:
    check(m, HOST, *shape, pads=pads, epilogue=epilogue, taps=taps, step=step, interpret=True)


@settings(max_examples=8, derandomize=True)
@given(m=st.sampled_from(winograd.EVERY_SIZE), channels=st.integers(16, 40), outputs=st.integers(16, 70),
       height=st.integers(1, 13), width=st.integers(1, 13), pads=st.tuples(*[st.integers(0, 1)] * 4),
       stride=st.sampled_from([2, 3]), cores=st.sampled_from([1, 2, 64]), l2=st.sampled_from([1 << 14, 1 << 17, 1 << 20]))
def test_transposed_in_any_parts(
    m: int, channels: int, outputs: int, height: int, width: int, pads: tuple[int, ...], stride: int, cores: int, l2: int
) -> None:
    target = replace(HOST, cores=cores, l2_bytes=l2)
    check(m, target, 1, channels, outputs, height, width, pads=pads, epilogue="br", taps=2, stride=stride)


@settings(max_examples=8, derandomize=True)
@given(m=st.sampled_from(winograd.SIZES), channels=st.integers(16, 40), outputs=st.integers(16, 70),
       height=st.integers(3, 23), width=st.integers(3, 23), pad=st.integers(0, 1), cores=st.sampled_from([1, 2, 64]),
       l2=st.sampled_from([1 << 14, 1 << 17, 1 << 20]))
def test_any_size_in_any_parts(
    m: int, channels: int, outputs: int, height: int, width: int, pad: int, cores: int, l2: int
) -> None:
    """Strips and groups of all sizes: the target's facts move the parts, never the result."""
    target = replace(HOST, cores=cores, l2_bytes=l2)
    check(m, target, 1, channels, outputs, height, width, pads=(pad,) * 4, epilogue="br")


@pytest.mark.parametrize("m", winograd.SIZES)
@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_other_vector_lengths(target: Target, m: int) -> None:
    check(m, target, 1, 19, 24, 10, 14, pads=(1, 1, 1, 1), epilogue="br")
    check(m, target, 1, 19, 24, 6, 8, pads=(1, 1, 1, 1), epilogue="br", taps=2, stride=2)
    check(m, target, 1, 16, 24, 10, 8, pads=(1, 1, 1, 1), epilogue="br", taps=2, step=2)


@pytest.mark.parametrize(("m", "taps"), winograd.G)
def test_transforms_written_out_are_the_matrices(m: int, taps: int) -> None:
    one = list(np.eye(m + taps - 1))
    np.testing.assert_array_equal(np.stack(input_transform(one)), winograd.B_T[m + taps - 1])
    np.testing.assert_array_equal(np.stack(output_transform(one, m)), winograd.A_T[m, taps])


@pytest.mark.parametrize("m", winograd.SIZES)
def test_padding_is_in_the_halo(m: int) -> None:
    """No guard and no select on a place is left, other than of positions: whole tiles, whole vectors."""
    _, body, arrays = direct_and_winograd(m, 1, 32, 32, 16, 16, pads=(1, 1, 1, 1), epilogue="br")
    s = schedule(in_layouts(body, arrays, HOST), HOST, sketch)
    func = lower(s.func, HOST)
    check_limits(func, HOST)
    assert not [n for n in walk_statements(func.body) if isinstance(n, If)]
    conditions = {str(n.condition) for leaf in leaves(func.body) for n in nodes(leaf) if isinstance(n, Select)}
    assert conditions and all("==" in c for c in conditions)


def test_small_schedule(golden: Callable[[str], None]) -> None:
    _, body, arrays = direct_and_winograd(2, 1, 8, 8, 6, 6, pads=(1, 1, 1, 1), epilogue="br")
    target = replace(PRESETS["x86-64-v3"], cores=2)
    golden(str(schedule(in_layouts(body, arrays, target), target, sketch)))


def test_scratch_stays_within_half_of_l2() -> None:
    for target in (*PRESETS.values(), replace(HOST, l2_bytes=1 << 18), replace(HOST, cores=64)):
        for shape in (Geometry(1, 64, 64, 56, 56), Geometry(1, 64, 64, 224, 224), Geometry(1, 512, 512, 14, 14)):
            for m in winograd.SIZES:
                parts, lanes = winograd_parts(shape, m, target), target.lanes(32)
                channels = parts.tile.vectors * lanes + (shape.channels if parts.shared != "groups" else 0)
                scratch = 4 * (m + 2) ** 2 * parts.rows * parts.columns * channels
                assert scratch <= target.l2_bytes / 2 or parts.rows * parts.columns == 1
                assert winograd.tiles(shape.height, m) % parts.rows == 0 == winograd.tiles(shape.width, m) % parts.columns


def chosen(target: Target, channels: int, outputs: int, side: int, sizes: tuple[int, ...] = winograd.SIZES) -> int:
    """What the model answers for a square convolution in a graph of its own; the weights are never looked at."""
    window = {"pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1), "kernel_shape": (3, 3), "group": 1}
    kind = TensorType.plain((1, channels, side, side))
    weights = np.broadcast_to(np.float32(0), (outputs, channels, 3, 3))
    node = Node("Conv", ("x", "w"), ("y",), window, "conv")
    types = {"x": kind, "w": array_type(weights), "y": TensorType.plain((1, outputs, side, side))}
    return algorithms(target, sizes)(node, Graph("g", (node,), ("x",), ("y",), types, {"w": weights}))


AVX2 = replace(PRESETS["x86-64-v3"], cores=4, l2_bytes=512 << 10, l3_bytes=8 << 20)
AVX512 = replace(PRESETS["x86-64-v4"], cores=2, l2_bytes=1 << 20, l3_bytes=32 << 20)


@pytest.mark.parametrize("target", [AVX2, AVX512, replace(AVX512, cores=64)], ids=["avx2", "avx512", "64 cores"])
def test_large_images_take_the_large_tile(target: Target) -> None:
    assert chosen(target, 64, 64, 224) == 4
    assert chosen(target, 64, 64, 224, (2,)) == 2
    assert chosen(target, 64, 64, 224, ()) == 0


@pytest.mark.parametrize("target", [AVX2, AVX512], ids=["avx2", "avx512"])
def test_few_channels_and_heavy_weights_stay_direct(target: Target) -> None:
    assert chosen(target, 3, 64, 112) == 0
    assert chosen(target, 64, 3, 112) == 0
    assert chosen(target, 1024, 1024, 3) == 0


def test_cold_weights_count() -> None:
    """The same layer gains less when its weights come from memory, and the more so the larger they are transformed."""
    shape = Geometry(1, 256, 256, 14, 14)
    gain = {(m, cold): direct_cycles(shape, AVX512, cold) / winograd_cycles(shape, m, AVX512, cold)
            for m in winograd.SIZES for cold in (False, True)}
    assert gain[4, True] < gain[4, False] and gain[2, True] < gain[2, False]
    assert gain[4, True] / gain[4, False] < gain[2, True] / gain[2, False]


def test_flops_are_those_of_the_convolution() -> None:
    direct, body, _ = direct_and_winograd(4, 1, 20, 48, 6, 21, pads=(1, 1, 1, 1))
    assert flops(body.nodes[0], body.types) == flops(direct.nodes[0], direct.types)
