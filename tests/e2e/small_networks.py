"""Small ONNX models with the shapes of real ones: a residual conv net, an MLP, an attention block, an LSTM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


def _weight(random: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    fan_in = max(1, int(np.prod(shape[1:])))
    return numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32), name)


def _model(name: str, nodes: list, inputs: dict, outputs: dict, weights: list) -> onnx.ModelProto:
    def values(described: dict) -> list:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in described.items()]

    graph = helper.make_graph(nodes, name, values(inputs), values(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def conv_net(seed: int = 0) -> onnx.ModelProto:
    """Conv, batch norm, relu, max pool, a residual block, global pool, Gemm, softmax: (1, 3, 24, 24) -> (1, 10)."""
    r = np.random.default_rng(seed)
    node = helper.make_node
    weights = [_weight(r, "w1", 16, 3, 3, 3), _weight(r, "b1", 16), _weight(r, "w2", 16, 16, 3, 3),
               _weight(r, "w3", 16, 16, 3, 3), _weight(r, "w4", 10, 16), _weight(r, "b4", 10), _weight(r, "scale", 16),
               _weight(r, "shift", 16), _weight(r, "mean", 16),
               numpy_helper.from_array(r.uniform(0.5, 2, 16).astype(np.float32), "var")]
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], "stem_norm"),
        node("Relu", ["n1"], ["r1"], "stem_relu"),
        node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2"], ["c2"], "block_a", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], "block_relu"),
        node("Conv", ["r2", "w3"], ["c3"], "block_b", pads=[1, 1, 1, 1]),
        node("Add", ["c3", "p1"], ["s"], "residual"),
        node("Relu", ["s"], ["r3"], "residual_relu"),
        node("GlobalAveragePool", ["r3"], ["g"], "global_pool"),
        node("Flatten", ["g"], ["f"], "flatten"),
        node("Gemm", ["f", "w4", "b4"], ["logits"], "classifier", transB=1),
        node("Softmax", ["logits"], ["probabilities"], "softmax"),
    ]
    return _model("conv_net", nodes, {"image": [1, 3, 24, 24]}, {"probabilities": [1, 10]}, weights)


def mlp(seed: int = 0) -> onnx.ModelProto:
    """Two dense layers with a free batch dimension: ("batch", 20) -> ("batch", 5)."""
    r = np.random.default_rng(seed)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["h"], "dense1"), node("Add", ["h", "b1"], ["hb"], "bias1"),
        node("Tanh", ["hb"], ["t"], "tanh"), node("MatMul", ["t", "w2"], ["y"], "dense2"),
    ]
    weights = [_weight(r, "w1", 20, 33), _weight(r, "b1", 33), _weight(r, "w2", 33, 5)]
    return _model("mlp", nodes, {"x": ["batch", 20]}, {"y": ["batch", 5]}, weights)


def attention(seed: int = 0) -> onnx.ModelProto:
    """One self-attention block with two heads and layer normalization: (1, 12, 32) -> (1, 12, 32)."""
    r = np.random.default_rng(seed)
    node = helper.make_node

    def ints(name: str, *values: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = []
    for part in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{part}"], [f"{part}0"], f"project_{part}"),
            node("Reshape", [f"{part}0", "heads"], [f"{part}1"], f"split_{part}"),
            node("Transpose", [f"{part}1"], [part], f"turn_{part}", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q", "k"], ["scores"], "scores"), node("Mul", ["scores", "scale"], ["scaled"], "scale_scores"),
        node("Softmax", ["scaled"], ["p"], "attend", axis=-1), node("MatMul", ["p", "v"], ["mixed"], "mix"),
        node("Transpose", ["mixed"], ["turned"], "turn_back", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "whole"], ["joined"], "join"), node("Add", ["joined", "x"], ["sum"], "skip"),
        node("LayerNormalization", ["sum", "gamma", "beta"], ["y"], "norm", axis=-1),
    ]
    weights = [*(_weight(r, f"w{p}", 32, 32) for p in "qkv"), ints("heads", 1, 12, 2, 16), ints("whole", 1, 12, 32),
               numpy_helper.from_array(np.float32(0.25), "scale"), _weight(r, "gamma", 32), _weight(r, "beta", 32)]
    return _model("attention", nodes, {"x": [1, 12, 32]}, {"y": [1, 12, 32]}, weights)


def lstm(seed: int = 0) -> onnx.ModelProto:
    """An LSTM of 24 units over 7 steps, and a dense layer: (7, 1, 10) -> (7, 1, 24), (1, 1, 24)."""
    r = np.random.default_rng(seed)
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["h", "last"], "lstm", hidden_size=24),
             helper.make_node("Squeeze", ["h", "one"], ["y"], "drop")]
    weights = [_weight(r, "w", 1, 96, 10), _weight(r, "r", 1, 96, 24), _weight(r, "b", 1, 192),
               numpy_helper.from_array(np.array([1], np.int64), "one")]
    return _model("lstm", nodes, {"x": [7, 1, 10]}, {"y": [7, 1, 24], "last": [1, 1, 24]}, weights)


def reader(seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with halos, the mean of each column, a dense layer per column, all of free width:
    (1, 3, 8, "width") -> (1, width / 2, 6)."""
    r = np.random.default_rng(seed)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "stem", pads=[1, 1, 1, 1]), node("Relu", ["c1"], ["r1"], "stem_relu"),
        node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2"], ["c2"], "block", pads=[1, 1, 1, 1]), node("Relu", ["c2"], ["r2"], "block_relu"),
        node("ReduceMean", ["r2", "height"], ["columns"], "column_mean", keepdims=0),
        node("Transpose", ["columns"], ["turned"], "turn", perm=[0, 2, 1]),
        node("MatMul", ["turned", "w3"], ["scores"], "classifier"), node("Softmax", ["scores"], ["y"], "softmax", axis=-1),
    ]
    weights = [_weight(r, "w1", 16, 3, 3, 3), _weight(r, "b1", 16), _weight(r, "w2", 32, 16, 3, 3), _weight(r, "w3", 32, 6),
               numpy_helper.from_array(np.array([2], np.int64), "height")]
    return _model("reader", nodes, {"x": [1, 3, 8, "width"]}, {"y": [1, "columns", 6]}, weights)


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "conv_net": conv_net, "mlp": mlp, "attention": attention, "lstm": lstm,
}
SHAPES = {"mlp": {"x": (3, 20)}}        # where the model leaves them open


def write_project(folder: Path, *names: str, more: str = "") -> Path:
    """A project folder with those networks as files, and a deployfile that declares them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["version: 1", "models:"]
    for name in names:
        onnx.save(NETWORKS[name](), folder / f"{name}.onnx")
        shapes = "".join(f", shapes: {{{i}: {list(s)}}}" for i, s in SHAPES.get(name, {}).items())
        lines.append(f"  {name}: {{path: {name}.onnx{shapes}}}")
    (folder / "deployfile.yaml").write_text("\n".join(lines) + "\n" + more)
    return folder
