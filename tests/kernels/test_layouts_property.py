"""Convolutions, pools and products in every layout their kernels offer, with random windows, on each instruction set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from running import BOARD, HOST, RUNNABLE, agree, close, compiled, defined, expected, with_types

from toolchain import te
from toolchain.core.layout import Layout, TensorType
from toolchain.core.target import Target
from toolchain.graph.infer import infer
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.kernels.build import schedule
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.presets import PRESETS

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")

TARGETS = [HOST, *(t for t in RUNNABLE if t.name in ("x86-64-v2", "x86-64-v3")), BOARD]
RTOL = 1e-4                 # sums of up to a thousand products of numbers below one, in another order


def arrays_of(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, s).astype(np.float32) for s in shapes]


def in_every_layout(op: str, arrays: Sequence[np.ndarray], attrs: Mapping[str, Any], target: Target, residual: bool,
                    halo: int = 0) -> int:
    """Check the operator (with `residual`: + residual, relu) in each layout option; how many there were."""
    names = [f"v{n}" for n in range(len(arrays))]
    types = {n: array_type(a) for n, a in zip(names, arrays)}
    node = Node(op, tuple(names), ("y",), attrs, "node")
    (types["y"],) = infer(node, types, {})
    weights = dict(zip(names[1:], arrays[1:]))                      # constant in the model: their layouts are packed
    options = layout_options(target)(node, Graph("g", (node,), ("v0",), ("y",), types, weights))
    nodes, inputs = [node], dict(zip(names, arrays))
    if residual:
        nodes += [Node("Add", ("y", "r"), ("s",)), Node("Relu", ("s",), ("z",))]
        types |= {"r": types["y"], "s": types["y"], "z": types["y"]}
        (inputs["r"],) = arrays_of(types["y"].shape)
    last = nodes[-1].output
    body = Graph("body", tuple(nodes), tuple(inputs), (last,), types)
    want = expected(body, inputs)
    close(defined(body, inputs)[0], want[0], RTOL, RTOL, "definition")
    for option in options:
        wanted = {n: types[n].with_layout(got) for n, got in zip(names, option.inputs) if got is not None}
        if (out := option.outputs[0]) is not None:
            wanted |= {n: types[n].with_layout(out) for n in ("y", "r", "s", "z") if n in types}
            wanted[last] = types[last].with_layout(with_halo(out, halo))
        got = compiled(with_types(body, wanted), inputs, target)
        close(got[0], want[0], RTOL, RTOL, f"{target.name}: {[str(w) for w in wanted.values()]}")
    return len(options)


def with_halo(layout: Layout, halo: int) -> Layout:
    """The layout with a halo around the spatial dimensions, as the next reader may wish."""
    rank = len(layout.axes)
    return layout.with_halo(((0, 0),) * 2 + ((halo, halo),) * (rank - 2))


@st.composite
def windows(draw: st.DrawFn, rank: int = 2, transposed: bool = False) -> dict[str, Any]:
    def numbers(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))
    kernel = numbers(1, 5)
    return {"kernel_shape": kernel, "strides": numbers(1, 3), "dilations": (1,) * rank if transposed else numbers(1, 2),
            "pads": tuple(min(p, k - 1) for p, k in zip(numbers(0, 3, 2 * rank), kernel * 2))}


def fits(window: Mapping[str, Any], spatial: Sequence[int]) -> bool:
    """Whether the window lies inside the padded input at least once."""
    rank = len(spatial)
    return all(n + p + q >= (k - 1) * d + 1 for n, p, q, k, d in zip(
        spatial, window["pads"][:rank], window["pads"][rank:], window["kernel_shape"], window["dilations"]))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=25)
@given(data=st.data(), window=windows(), residual=st.booleans(), bias=st.booleans())
def test_conv(target: Target, data: st.DataObject, window: dict[str, Any], residual: bool, bias: bool):
    kind = data.draw(st.sampled_from(["dense", "grouped", "depthwise", "first"]))
    group = {"dense": 1, "first": 1, "grouped": 2}.get(kind) or data.draw(st.sampled_from([5, 8, 16, 19]))
    ic = data.draw({"first": st.integers(1, 4), "depthwise": st.just(1)}.get(kind, st.sampled_from([5, 8, 16, 20, 33])))
    out = group if kind == "depthwise" else group * data.draw(st.sampled_from([1, 7, 8, 16, 24, 35]))
    spatial = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 17)))
    assume(fits(window, spatial))
    x, w, b = arrays_of((data.draw(st.integers(1, 2)), ic * group, *spatial), (out, ic, *window["kernel_shape"]), (out,))
    count = in_every_layout("Conv", [x, w, b] if bias else [x, w], {**window, "group": group}, target, residual,
                            halo=data.draw(st.integers(0, 2)))
    assert count >= 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=15)
@given(data=st.data(), window=windows(transposed=True), residual=st.booleans())
def test_conv_transpose(target: Target, data: st.DataObject, window: dict[str, Any], residual: bool):
    ic, out = data.draw(st.sampled_from([1, 5, 16, 20])), data.draw(st.sampled_from([1, 3, 7, 16, 35]))
    group = data.draw(st.sampled_from([1, 1, 2]))
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in window["strides"])
    spatial = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 19)))
    x, w, b = arrays_of((1, ic * group, *spatial), (ic * group, out, *window["kernel_shape"]), (out * group,))
    assume(all((n - 1) * s + k + e > p + q for n, s, k, e, p, q in zip(
        spatial, window["strides"], window["kernel_shape"], extra, window["pads"][:2], window["pads"][2:])))
    attrs = {**window, "output_padding": extra, "group": group}
    assert in_every_layout("ConvTranspose", [x, w, b], attrs, target, residual) >= 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@settings(max_examples=7)
@given(data=st.data(), window=windows(), ceil=st.booleans(), halo=st.integers(0, 2))
def test_pools(target: Target, op: str, data: st.DataObject, window: dict[str, Any], ceil: bool, halo: int):
    window["pads"] = tuple(min(p, k // 2) for p, k in zip(window["pads"], window["kernel_shape"] * 2))
    spatial = (data.draw(st.integers(3, 9)), data.draw(st.integers(3, 17)))
    assume(fits(window, spatial))
    (x,) = arrays_of((1, data.draw(st.sampled_from([1, 7, 16, 19])), *spatial))
    attrs = {**window, "ceil_mode": int(ceil)}
    if op == "AveragePool":
        attrs["count_include_pad"] = data.draw(st.integers(0, 1))
    in_every_layout(op, [x], attrs, target, residual=False, halo=halo)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("op", [
    "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "Resize", "Concat", "Relu", "Softmax",
])
def test_channelwise(target: Target, op: str):
    lanes = target.lanes(32)
    x, scale, shift = arrays_of((1, lanes + 3, 5, 7), (lanes + 3,), (lanes + 3,))
    other, tail = arrays_of((1, lanes, 5, 7), (1, 3, 5, 7))
    given = {"BatchNormalization": [x, scale, shift, shift, abs(scale) + 1], "Concat": [other, other, tail]}.get(op, [x])
    attrs = {"Concat": {"axis": 1}, "Softmax": {"axis": 1}}.get(op, {})
    if op == "Resize":
        agree_resized(x, target)
    else:
        in_every_layout(op, given, attrs, target, residual=op == "BatchNormalization")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("mode", "scales"), [("linear", (2, 2)), ("linear", (1.6, 3)), ("cubic", (2, 1.5))])
def test_resizes_that_mix_elements(target: Target, mode: str, scales: tuple[float, float]):
    """Steps between are stored where vectors run along a row, not where they are of channels. atol: fma rounds once."""
    (x,) = arrays_of((1, target.lanes(32) + 3, 5, 20))
    agree_resized(x, target, scales, 1e-6, mode=mode)


def agree_resized(x: np.ndarray, target: Target, by: tuple[float, float] = (2, 2), atol: float = 0, **attrs: Any) -> None:
    scales = np.array([1, 1, *by], np.float32)
    types = {"x": array_type(x), "s": array_type(scales)}
    attrs = attrs or {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    node = Node("Resize", ("x", "", "s"), ("y",), attrs)
    (types["y"],) = infer(node, types, {"s": scales})
    body = Graph("body", (node,), ("x",), ("y",), types, {"s": scales})
    for option in layout_options(target)(node, body):
        layouts = {n: types[n].with_layout(got) for n, got in (("x", option.inputs[0]), ("y", option.outputs[0])) if got}
        made = with_types(body, layouts)
        schedule(made, target, sketch)                      # none gives way to a plainer one
        agree(made, {"x": x}, atol=atol, target=target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=10)
@given(batch=st.sampled_from([(), (1,), (2, 3)]), m=st.integers(1, 37), k=st.integers(1, 40), n=st.integers(1, 70),
       residual=st.booleans())
def test_matmul_with_packed_weights(target: Target, batch: tuple[int, ...], m: int, k: int, n: int, residual: bool):
    a, b = arrays_of((*batch, m, k), (k, n))
    in_every_layout("MatMul", [a, b], {}, target, residual)


@pytest.mark.parametrize("channels,size,kernel,stride,asks", [
    (1024, 64, 1, 1, True), (64, 16, 1, 1, False), (1024, 64, 3, 1, False), (1024, 64, 1, 2, False),
])
def test_one_tap_asks_for_the_next_channels_where_the_input_is_large(
    channels: int, size: int, kernel: int, stride: int, asks: bool,
):
    """They lie a plane away. A window's rows are next to each other, and every other line of a strided one is of no use."""
    target = PRESETS["x86-64-v4"]
    x, w = (TensorType.plain(s) for s in ((1, channels, size, size), (64, channels, kernel, kernel)))
    node = Node("Conv", ("x", "w"), ("y",), {
        "strides": (stride, stride), "kernel_shape": (kernel, kernel), "pads": (0, 0, 0, 0), "dilations": (1, 1)}, "node")
    types = {"x": x, "w": w}
    (types["y"],) = infer(node, types, {})
    body = Graph("body", (node,), ("x", "w"), ("y",), types)
    weights = {"w": np.broadcast_to(np.float32(0), w.shape)}
    option = next(o for o in layout_options(target)(node, Graph("g", (node,), ("x",), ("y",), types, weights))
                  if o.inputs[0] is not None and o.outputs[0] is not None)
    found = zip("xwy", (*option.inputs[:2], option.outputs[0]))
    laid = {n: types[n].with_layout(got) for n, got in found if got is not None}
    assert ("prefetch" in te.to_text(schedule(with_types(body, laid), target, sketch).func)) == asks
