"""Networks of QLinear operators, and quantization at run time, against onnx.reference: equal to the last bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import helper, numpy_helper

import toolchain
from toolchain.core.target import Target
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.presets import PRESETS

TARGETS = [t for t in (host_target(2), *PRESETS.values()) if set(t.features) <= set(host_target().features)]


class Network:
    """Nodes and constants, one after the other; activations of one type and zero point."""

    def __init__(self, kind: str, zero: int) -> None:
        self.rng = np.random.default_rng(0)
        self.kind, self.zero = kind, zero
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: str) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: tuple[str, ...] = (), **attrs: Any) -> str:
        made = outputs or (f"v{len(self.nodes)}",)
        self.nodes.append(helper.make_node(op, inputs, made, **attrs))
        return made[0]

    def conv(self, x: str, channels: int, outputs: int, kernel: int, group: int = 1, **attrs: Any) -> str:
        """Scales are powers of two and zero points even: onnx.reference scales in float64 and adds the zero point before it
        rounds, which then is the same. Results spread over the whole range."""
        weight = self.rng.integers(-60, 60, (outputs, channels // group, kernel, kernel))
        scales = 2.0 ** self.rng.integers(-8, -5, outputs)
        result = 2.0 ** math.ceil(math.log2(0.002 * weight[0].size**0.5))
        return self.node(
            "QLinearConv", x, self.constant(2**-5, "float32"), self.constant(self.zero, self.kind),
            self.constant(weight, "int8"), self.constant(scales, "float32"), self.constant(np.zeros(outputs), "int8"),
            self.constant(result, "float32"), self.constant(self.zero, self.kind),
            self.constant(self.rng.integers(-3000, 3000, outputs), "int32"), group=group, **attrs)

    def model(self, inputs: dict[str, tuple[str, tuple[int, ...]]], result: str, dtype: str) -> onnx.ModelProto:
        def info(name: str, kind: str, shape: tuple[int, ...] | None) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)

        graph = helper.make_graph(self.nodes, "quantized", [info(n, k, s) for n, (k, s) in inputs.items()],
                                  [info(result, dtype, None)], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("kind,zero", [("uint8", 0), ("uint8", 120), ("int8", 0), ("int8", -6)])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_network_of_quantized_convolutions(target: Target, kind: str, zero: int) -> None:
    net = Network(kind, zero)
    first = net.conv("image", 3, 24, 3, strides=[2, 2], pads=[1, 1, 1, 1])
    pooled = net.node("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = net.conv(net.conv(pooled, 24, 24, 3, group=24, pads=[1, 1, 1, 1]), 24, 32, 1)
    both = net.node("Concat", wide, net.conv(wide, 32, 20, 3, pads=[0, 1, 2, 1]), axis=1)
    model = net.model({"image": (kind, (1, 3, 38, 34))}, net.conv(both, 52, 17, 1), kind)
    limits = np.iinfo(kind)
    image = np.random.default_rng(1).integers(limits.min, limits.max + 1, (1, 3, 38, 34)).astype(kind)
    (want,) = onnx.reference.ReferenceEvaluator(model).run(None, {"image": image})
    with toolchain.compile(model, target, threads=2) as module:
        (got,) = module.run({"image": image}).values()
    assert len(np.unique(want)) > 100
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_product_of_activations_quantized_at_run_time(target: Target, weights: str) -> None:
    """DynamicQuantizeLinear and MatMulInteger: the zero point of the activations is known at run time only."""
    net = Network("uint8", 0)
    net.node("DynamicQuantizeLinear", "x", outputs=("q", "scale", "zero"))
    zero = 0 if weights == "int8" else 131
    w = net.rng.integers(-100, 100, (30, 50)) + (0 if weights == "int8" else 120)
    total = net.node("MatMulInteger", "q", net.constant(w, weights), "zero", net.constant(zero, weights))
    result = net.node("Mul", net.node("Cast", total, to=1), "scale")
    model = net.model({"x": ("float32", (2, 7, 30))}, result, "float32")
    x = np.random.default_rng(1).standard_normal((2, 7, 30)).astype(np.float32)
    (want,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    with toolchain.compile(model, target, threads=2) as module:
        (got,) = module.run({"x": x}).values()
    np.testing.assert_array_equal(got, want)
