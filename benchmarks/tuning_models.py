"""The layers that schedules are searched for in benchmarks/tuning.py: one operator and a Relu each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# name -> (size, channels in, channels out, window, stride)
RESNET = {
    "C1": (224, 3, 64, 7, 2), "C2": (56, 64, 64, 3, 1), "C3": (56, 64, 64, 1, 1), "C4": (56, 64, 128, 3, 2),
    "C5": (56, 64, 128, 1, 2), "C6": (28, 128, 128, 3, 1), "C7": (28, 128, 256, 3, 2), "C8": (28, 128, 256, 1, 2),
    "C9": (14, 256, 256, 3, 1), "C10": (14, 256, 512, 3, 2), "C11": (14, 256, 512, 1, 2), "C12": (7, 512, 512, 3, 1),
}
# name -> (size, channels, stride)
DEPTHWISE = {
    "D1": (112, 32, 1), "D2": (112, 64, 2), "D3": (56, 128, 1), "D4": (56, 128, 2), "D5": (28, 256, 1), "D6": (28, 256, 2),
    "D7": (14, 512, 1), "D8": (14, 512, 2), "D9": (7, 1024, 1),
}
GEMM = 512
TBG = (128, 12, 64)                 # sequence, heads, head size
T2D = (4, 512, 256, 4, 2, 1)        # size, channels in, channels out, window, stride, padding


def model(name: str) -> onnx.ModelProto:
    if name == "GEMM":
        return _layer(name, "MatMul", (GEMM, GEMM), (GEMM, GEMM))
    if name == "TBG":
        return _transposed_product(*TBG)
    if name == "T2D":
        size, channels, outputs, window, stride, padding = T2D
        return _layer(name, "ConvTranspose", (1, channels, size, size), (channels, outputs, window, window),
                      strides=[stride, stride], pads=[padding] * 4)
    if name in RESNET:
        size, channels, outputs, window, stride = RESNET[name]
        return _layer(name, "Conv", (1, channels, size, size), (outputs, channels, window, window),
                      strides=[stride, stride], pads=[window // 2] * 4)
    size, channels, stride = DEPTHWISE[name]
    return _layer(name, "Conv", (1, channels, size, size), (channels, 1, 3, 3), group=channels, strides=[stride, stride],
                  pads=[1] * 4)


def _layer(name: str, op: str, x: Sequence[int], w: Sequence[int], **attributes: object) -> onnx.ModelProto:
    weights = (np.random.default_rng(0).standard_normal(w) / 20).astype(np.float32)
    nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes), helper.make_node("Relu", ["y"], ["r"])]
    return _made(name, nodes, {"x": x}, [numpy_helper.from_array(weights, "w")])


def _transposed_product(sequence: int, heads: int, size: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Transpose", ["q"], ["a"], perm=[1, 0, 2]),
             helper.make_node("Transpose", ["k"], ["b"], perm=[1, 2, 0]), helper.make_node("MatMul", ["a", "b"], ["r"])]
    return _made("TBG", nodes, dict.fromkeys("qk", (sequence, heads, size)), [])


def _made(
    name: str, nodes: Sequence[onnx.NodeProto], inputs: dict[str, Sequence[int]], weights: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    graph = helper.make_graph(nodes, name, values, [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
