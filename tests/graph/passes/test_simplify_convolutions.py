"""Transposed convolutions with stride 1 become convolutions that mean the same; others stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from pass_graphs import Builder, assert_same, ops

import toolchain
from toolchain.graph.ir import Graph
from toolchain.graph.passes import simplify


def transposed(shape: tuple[int, ...], outputs: int, kernel: int, **attrs: object) -> Graph:
    b = Builder()
    rank, group = len(shape) - 2, attrs.get("group", 1)
    x, w = b.input(*shape), b.weight(shape[1], outputs // group, *(kernel,) * rank)
    given_ = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "kernel_shape": (kernel,) * rank,
              **attrs}
    return b.graph(b.node("ConvTranspose", x, w, b.weight(outputs), **given_))


@given(rank=st.integers(1, 3), group=st.integers(1, 3), channels=st.integers(1, 3), outputs=st.integers(1, 3),
       kernel=st.integers(1, 4), dilation=st.integers(1, 2), data=st.data())
def test_with_stride_1_it_is_a_convolution(rank, group, channels, outputs, kernel, dilation, data) -> None:
    pads = data.draw(st.tuples(*[st.integers(0, dilation * (kernel - 1))] * 2 * rank))
    reach, image = dilation * (kernel - 1), (5, 6, 4)[:rank]
    assume(all(n + reach - a - b > 0 for n, a, b in zip(image, pads[:rank], pads[rank:], strict=True)))
    graph = transposed((2, group * channels, *image), group * outputs, kernel, group=group, pads=pads,
                       dilations=(dilation,) * rank)
    after = simplify(graph)
    assert ops(after) == ["Conv"]
    assert_same(graph, after, tolerance=1e-5)


@pytest.mark.parametrize("attrs", [{"strides": (2, 2)}, {"strides": (1, 2)}, {"pads": (3, 0, 0, 0)}])
def test_others_stay(attrs) -> None:
    graph = transposed((1, 2, 6, 6), 3, 3, **attrs)
    assert simplify(graph) is graph


def test_many_channels_compile() -> None:
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 64, 3, 3), (1, 64, 12, 12)))
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph([node], "g", [value("x", 1, x.shape)], [value("y", 1, None)], [numpy_helper.from_array(w, "w")]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with toolchain.compile(model, threads=1) as module:
        (want,) = ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_allclose(module.run({"x": x})["y"], want, rtol=1e-3, atol=1e-3)         # values up to 100
