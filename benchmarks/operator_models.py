"""The models of benchmarks/operators.py: one operator each, or a short chain, at sizes that networks have.

Activations of convolutional networks (1x64x112x112), tokens of a vision transformer (1x197x384), attention logits
(1x12x128x128), classifier outputs (1x1000), detector boxes (1x8400), speech features, embeddings (30000x384).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

OPSET = 23                       # the newest that rivals know all of
SEED = 0


@dataclass(frozen=True, slots=True)
class In:
    """An input of a model: its shape, element type, and the range its numbers are drawn from."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -2.0
    high: float = 2.0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        if self.dtype == "bool":
            return rng.integers(0, 2, self.shape).astype(bool)
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            return rng.integers(int(self.low), int(self.high), self.shape, endpoint=True).astype(kind)
        return rng.uniform(self.low, self.high, self.shape).astype(kind)


Value = In | np.ndarray | str                   # an input, a constant of the model, or the name of a value


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    op: str
    values: tuple[Value | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One model. `family` is what the table groups by; `name` says the operator first."""

    name: str
    family: str
    nodes: tuple[Node, ...]
    opset: int = OPSET

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model and its inputs: x0, x1, ... in the order of their first use."""
        rng = np.random.default_rng(SEED)
        inputs: dict[str, np.ndarray] = {}
        constants: list[onnx.TensorProto] = []
        names: dict[int, str] = {}

        def name_of(value: Value | None) -> str:
            if value is None or isinstance(value, str):
                return value or ""
            if id(value) not in names:
                if isinstance(value, In):
                    names[id(value)] = f"x{len(inputs)}"
                    inputs[names[id(value)]] = value.array(rng)
                else:
                    names[id(value)] = f"c{len(constants)}"
                    constants.append(onnx.numpy_helper.from_array(value, names[id(value)]))
            return names[id(value)]
        nodes = [helper.make_node(n.op, [name_of(v) for v in n.values], list(n.outputs), **n.attrs) for n in self.nodes]
        given = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                 for n, a in inputs.items()]
        results = [onnx.ValueInfoProto(name=n) for n in self.nodes[-1].outputs if n]
        graph = helper.make_graph(nodes, "operator", given, results, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, data_prop=True), inputs


def one(family: str, op: str, *values: Value | None, label: str = "", outputs: Sequence[str] = ("y",), opset: int = OPSET,
        **attrs: Any) -> Case:
    """A model of one node. Its name tells the first input's shape, and its type unless that is float32."""
    first = next(v for v in values if isinstance(v, In))
    words = [op, "x".join(map(str, first.shape)), first.dtype if first.dtype != "float32" else "", label]
    return Case(" ".join(w for w in words if w), family, (Node(op, values, attrs, tuple(outputs)),), opset)


def chain(family: str, name: str, *nodes: Node) -> Case:
    return Case(name, family, nodes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*shape: int) -> np.ndarray:
    """Weights."""
    return (np.random.default_rng(1).standard_normal(shape) * 0.1).astype(np.float32)


IMAGE, TOKENS, LOGITS = (1, 64, 112, 112), (1, 197, 384), (1, 12, 128, 128)
UNARY = ("Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsNaN",
         "LeakyRelu", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus",
         "Softsign", "Tanh", "ThresholdedRelu")
RARE = ("Acos", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "IsInf", "Sinh", "Tan")          # at a smaller size
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
              "ReduceProd", "ReduceSum", "ReduceSumSquare")


def cases() -> Iterator[Case]:
    for family in (elementwise, types, chains, reductions, normalizations, moves, gathers, resizes, pools, products,
                   quantized, others):
        yield from family()


def elementwise() -> Iterator[Case]:
    e, x = "elementwise", In(IMAGE)
    small, unit, positive = In((1, 197, 1536)), In((1, 197, 1536), low=-0.9, high=0.9), In(IMAGE, low=0.1, high=4.0)
    for op in UNARY:
        yield one(e, op, x)
    for op in RARE:
        yield one(e, op, unit)
    yield one(e, "Acosh", In((1, 197, 1536), low=1.1, high=4.0))
    yield one(e, "Gelu", small, label="tanh", approximate="tanh")
    for op in ("Log", "Sqrt"):
        yield one(e, op, positive)
    yield one(e, "Clip", x, np.float32(0), np.float32(6))
    yield one(e, "PRelu", x, f32(64, 1, 1))
    for op in ("Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum"):
        yield one(e, op, positive, In(IMAGE, low=0.5, high=2.0))
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield one(e, op, x, In(IMAGE))
    yield one(e, "Add", x, f32(1, 64, 1, 1), label="per channel")
    yield one(e, "Add", In(TOKENS), f32(384), label="bias")
    yield one(e, "Mul", x, np.float32(0.5), label="scalar")
    yield one(e, "Mul", x, In((1, 64, 1, 1)), label="per channel, given")
    yield one(e, "Add", In(LOGITS), In((1, 1, 1, 128)), label="mask")
    yield one(e, "Pow", positive, np.float32(2.0), label="square")
    yield one(e, "Pow", In((1, 197, 384), low=0.1, high=4.0), In((1, 197, 384)), label="any exponent")
    yield one(e, "Mod", In(TOKENS), In(TOKENS, low=0.5, high=2.0), fmod=1)
    yield one(e, "Where", In(IMAGE, "bool"), x, In(IMAGE))
    for op in ("And", "Or", "Xor"):
        yield one(e, op, In(IMAGE, "bool"), In(IMAGE, "bool"))
    yield one(e, "Not", In(IMAGE, "bool"))
    yield one(e, "Add", In((1, 1000)), In((1, 1000)), label="tiny")
    yield one(e, "Sigmoid", In((1, 84, 8400)))


def types() -> Iterator[Case]:
    """Elementwise operators of other types, and conversions."""
    t, word = "types", In(IMAGE, "int32", 1, 1000)
    yield one(t, "Add", word, In(IMAGE, "int32", 0, 1000))
    yield one(t, "Add", In(IMAGE, "int64", 0, 1000), In(IMAGE, "int64", 0, 1000))
    yield one(t, "Mul", word, In(IMAGE, "int32", 0, 1000))
    yield one(t, "Div", In(TOKENS, "int32", 0, 9999), In(TOKENS, "int32", 1, 99))
    yield one(t, "Mod", In(TOKENS, "int64", 0, 9999), In(TOKENS, "int64", 1, 99))
    yield one(t, "Add", In(IMAGE, "float16"), In(IMAGE, "float16"))
    yield one(t, "Relu", In(IMAGE, "float16"))
    yield one(t, "Tanh", In(TOKENS, "float16"))
    yield one(t, "Sub", In(IMAGE, "float64"), In(IMAGE, "float64"))
    yield one(t, "Exp", In(TOKENS, "float64"))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield one(t, op, word, In(IMAGE, "int32", 0, 1000))
    yield one(t, "BitwiseNot", word)
    yield one(t, "BitShift", In(IMAGE, "uint32", 0, 1000), In(IMAGE, "uint32", 0, 8), direction="RIGHT")
    to = helper.np_dtype_to_tensor_dtype
    for source, result in (("float32", np.float16), ("float16", np.float32), ("float32", np.int32), ("uint8", np.float32),
                           ("int64", np.float32), ("float32", np.int64), ("float32", np.bool_), ("int32", np.int64)):
        kind = np.dtype(result)
        yield one(t, "Cast", In(IMAGE, source, 0, 100), label=f"to {kind.name}", to=to(kind))
    yield one(t, "Equal", In(IMAGE, "int64", 0, 5), In(IMAGE, "int64", 0, 5))


def chains() -> Iterator[Case]:
    """Short chains that networks are full of; every contender may fuse them."""
    c, x, t = "chains", In(IMAGE), In((1, 197, 1536))
    yield chain(c, "scale, shift, relu", Node("Mul", (x, f32(1, 64, 1, 1)), {}, ("a",)),
                Node("Add", ("a", f32(1, 64, 1, 1)), {}, ("b",)), Node("Relu", ("b",)))
    yield chain(c, "residual add, relu", Node("Add", (x, In(IMAGE)), {}, ("a",)), Node("Relu", ("a",)))
    yield chain(c, "silu", Node("Sigmoid", (x,), {}, ("a",)), Node("Mul", (x, "a")))
    yield chain(c, "hard swish spelled out", Node("Add", (x, np.float32(3)), {}, ("a",)),
                Node("Clip", ("a", np.float32(0), np.float32(6)), {}, ("b",)), Node("Mul", (x, "b"), {}, ("d",)),
                Node("Div", ("d", np.float32(6))))
    yield chain(c, "gelu spelled out", Node("Div", (t, np.float32(2 ** 0.5)), {}, ("a",)), Node("Erf", ("a",), {}, ("b",)),
                Node("Add", ("b", np.float32(1)), {}, ("d",)), Node("Mul", (t, "d"), {}, ("e",)),
                Node("Mul", ("e", np.float32(0.5))))
    yield chain(c, "image preprocessing", Node("Cast", (In((1, 224, 224, 3), "uint8", 0, 255),), {"to": 1}, ("a",)),
                Node("Sub", ("a", f32(3)), {}, ("b",)), Node("Mul", ("b", f32(3)), {}, ("d",)),
                Node("Transpose", ("d",), {"perm": [0, 3, 1, 2]}))
    yield chain(c, "squared distance", Node("Sub", (In((64, 4096)), In((64, 4096))), {}, ("a",)),
                Node("Mul", ("a", "a"), {}, ("b",)), Node("ReduceSum", ("b", ints(1)), {"keepdims": 0}))
    yield chain(c, "masked softmax", Node("Add", (In(LOGITS), In((1, 1, 1, 128))), {}, ("a",)), Node("Softmax", ("a",)))


def reductions() -> Iterator[Case]:
    r, tokens = "reductions", In((1, 197, 384), low=0.1)
    for op in REDUCTIONS:
        yield one(r, op, tokens, ints(-1), label="last")
    for op in ("ReduceMax", "ReduceMean", "ReduceSum"):
        yield one(r, op, In(IMAGE), ints(1), label="channels")
        yield one(r, op, In(IMAGE), ints(2, 3), label="rows and columns")
        yield one(r, op, In((64, 4096)), ints(0), label="leading")
        yield one(r, op, In(TOKENS), ints(1), label="middle")
        yield one(r, op, In((1, 64, 56, 56)), ints(0, 1, 2, 3), label="all")
    yield one(r, "ReduceMean", In((1, 56, 56, 64)), ints(1, 2), label="spatial, channels last")
    yield one(r, "ReduceSum", In((4, 100_000)), ints(1), label="few long rows")
    yield one(r, "ReduceSum", In((8400, 4)), ints(1), label="many short rows")
    yield one(r, "ReduceMean", In(TOKENS, "float16"), ints(-1), label="last")
    yield one(r, "ReduceSum", In(TOKENS, "int32", 0, 9), ints(-1), label="last")
    yield one(r, "ReduceMax", In(IMAGE, "uint8", 0, 255), ints(2, 3), label="rows and columns")
    yield one(r, "ReduceSum", In(TOKENS, "float64"), ints(-1), label="last")
    for op in ("ArgMax", "ArgMin"):
        yield one(r, op, In((64, 1000)), label="last", axis=-1)
    yield one(r, "ArgMax", In((1, 21, 128, 128)), label="classes", axis=1)
    yield one(r, "CumSum", In((64, 4096)), ints(1), label="last")
    yield one(r, "CumSum", In((1, 16000)), ints(1), label="waveform")
    yield one(r, "CumSum", In((1, 197, 384)), ints(1), label="middle")
    yield one(r, "CumProd", In((64, 1024)), ints(1), label="last", opset=26)


def normalizations() -> Iterator[Case]:
    n, tokens = "normalizations", In(TOKENS)
    for op in ("Softmax", "LogSoftmax"):
        yield one(n, op, In(LOGITS), axis=-1)
        yield one(n, op, In((1, 1000)), axis=-1)
        yield one(n, op, In((64, 4096)), axis=-1)
        yield one(n, op, In((1, 21, 128, 128)), label="classes", axis=1)
    yield one(n, "Softmax", In(LOGITS, "float16"), axis=-1)
    yield one(n, "Softmax", In((1, 197, 384)), label="middle", axis=1)
    yield one(n, "Hardmax", In((64, 1000)), axis=-1)
    yield one(n, "LayerNormalization", tokens, f32(384), f32(384))
    yield one(n, "LayerNormalization", In((1, 128, 768)), f32(768), f32(768))
    half = f32(768).astype(np.float16)
    yield one(n, "LayerNormalization", In((1, 128, 768), "float16"), half, half.copy())
    yield one(n, "RMSNormalization", In((1, 128, 768)), f32(768))
    yield one(n, "InstanceNormalization", In((1, 64, 56, 56)), f32(64), f32(64))
    yield one(n, "GroupNormalization", In((1, 64, 56, 56)), f32(64), f32(64), num_groups=8)
    yield one(n, "BatchNormalization", In(IMAGE), *(np.abs(f32(64)) for _ in range(4)))
    yield one(n, "LpNormalization", In((64, 512)), axis=-1)
    yield one(n, "MeanVarianceNormalization", In((1, 64, 56, 56)))
    yield one(n, "LRN", In((1, 64, 55, 55)), size=5)


def moves() -> Iterator[Case]:
    m, x = "transposes and moves", In(IMAGE)
    yield one(m, "Transpose", x, label="NCHW to NHWC", perm=[0, 2, 3, 1])
    yield one(m, "Transpose", In((1, 112, 112, 64)), label="NHWC to NCHW", perm=[0, 3, 1, 2])
    yield one(m, "Transpose", In((1, 224, 224, 3), "uint8", 0, 255), label="image to planes", perm=[0, 3, 1, 2])
    yield one(m, "Transpose", In((1, 224, 224, 3)), label="image to planes", perm=[0, 3, 1, 2])
    yield one(m, "Transpose", In((1, 3, 224, 224)), label="planes to image", perm=[0, 2, 3, 1])
    yield one(m, "Transpose", In((1024, 1024)), perm=[1, 0])
    yield one(m, "Transpose", In((1024, 1024), "float16"), perm=[1, 0])
    yield one(m, "Transpose", In((1024, 1024), "uint8", 0, 255), perm=[1, 0])
    yield one(m, "Transpose", In((1, 128, 12, 64)), label="heads", perm=[0, 2, 1, 3])
    yield one(m, "Transpose", In((1, 12, 128, 64)), label="keys", perm=[0, 1, 3, 2])
    yield one(m, "Transpose", In((1, 84, 8400)), label="boxes", perm=[0, 2, 1])
    yield one(m, "Concat", x, In(IMAGE), label="channels", axis=1)
    yield one(m, "Concat", In(TOKENS), In(TOKENS), label="last", axis=-1)
    yield one(m, "Concat", In((1, 8400, 2)), In((1, 8400, 2)), label="pairs", axis=-1)
    yield one(m, "Split", In((1, 128, 2304)), label="heads", outputs=("a", "b", "d"), axis=-1, num_outputs=3)
    yield one(m, "Split", x, label="channels", outputs=("a", "b"), axis=1, num_outputs=2)
    yield one(m, "Slice", x, ints(8, 8), ints(104, 104), ints(2, 3), label="crop")
    yield one(m, "Slice", x, ints(0, 0), ints(112, 112), ints(2, 3), ints(2, 2), label="every second")
    for mode in ("constant", "reflect", "edge"):
        yield one(m, "Pad", x, ints(0, 0, 1, 1, 0, 0, 1, 1), label=mode, mode=mode)
    yield one(m, "Tile", In((1, 197, 384)), ints(4, 1, 2))
    yield one(m, "Expand", In((1, 64, 1, 1)), ints(*IMAGE))
    yield one(m, "DepthToSpace", In((1, 64, 56, 56)), blocksize=2)
    yield one(m, "DepthToSpace", In((1, 64, 56, 56)), label="CRD", blocksize=2, mode="CRD")
    yield one(m, "SpaceToDepth", In((1, 16, 112, 112)), blocksize=2)
    yield one(m, "Trilu", In((1024, 1024)), upper=0)
    yield one(m, "CenterCropPad", In((3, 256, 256)), ints(224, 224), axes=[1, 2])
    yield one(m, "ReverseSequence", In((100, 8, 256)), ints(*range(93, 101)))


def gathers() -> Iterator[Case]:
    g, rng = "gathers", np.random.default_rng(2)
    yield one(g, "Gather", In((30000, 384)), In((1, 128), "int64", 0, 29999), label="embedding")
    yield one(g, "Gather", In((64, 4096)), In((500,), "int64", 0, 4095), label="columns", axis=1)
    yield one(g, "Gather", In((1, 197, 384)), np.int64(0), label="class token", axis=1)
    yield one(g, "Gather", In((8400, 4)), In((300,), "int64", 0, 8399), label="boxes")
    yield one(g, "GatherElements", In((8400, 80)), In((300, 80), "int64", 0, 8399), axis=0)
    yield one(g, "GatherElements", In((64, 4096)), In((64, 500), "int64", 0, 4095), label="last", axis=1)
    yield one(g, "GatherND", In((32, 128, 256)), In((500, 2), "int64", 0, 31))
    yield one(g, "OneHot", In((1, 512), "int64", 0, 999), np.int64(1000), np.array([0, 1], np.float32))
    updates = In((300, 64))
    rows = rng.permutation(1024)[:300]
    yield one(g, "ScatterElements", In((1024, 64)), np.repeat(rows[:, None], 64, 1), updates, axis=0)
    yield one(g, "ScatterElements", In((1024, 64)), In((300, 64), "int64", 0, 1023), updates, label="add", axis=0,
              reduction="add")
    yield one(g, "ScatterND", In((1024, 64)), rows[:, None], updates)
    yield one(g, "TopK", In((1, 1000)), ints(5), label="5", outputs=("v", "i"))
    yield one(g, "TopK", In((1, 8400)), ints(300), label="300", outputs=("v", "i"))
    yield one(g, "TopK", In((64, 4096)), ints(50), label="50", outputs=("v", "i"))
    yield one(g, "TopK", In((16, 1024)), ints(1024), label="sort", outputs=("v", "i"))


def resizes() -> Iterator[Case]:
    r, x = "resizes", In((1, 64, 56, 56))
    twice, half = np.array([1, 1, 2, 2], np.float32), np.array([1, 1, 0.5, 0.5], np.float32)
    yield one(r, "Resize", x, None, twice, label="nearest x2", mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")
    yield one(r, "Resize", x, None, twice, label="linear x2", mode="linear")
    yield one(r, "Resize", x, None, twice, label="linear x2, align corners", mode="linear",
              coordinate_transformation_mode="align_corners")
    yield one(r, "Resize", x, None, half, label="linear /2", mode="linear")
    yield one(r, "Resize", In((1, 3, 480, 640)), None, None, ints(1, 3, 224, 224), label="to 224, linear", mode="linear")
    yield one(r, "Resize", In((1, 3, 480, 640)), None, None, ints(1, 3, 240, 320), label="/2, nearest", mode="nearest")
    yield one(r, "Resize", In((1, 3, 224, 224)), None, twice, label="cubic x2", mode="cubic")
    yield one(r, "Resize", In((1, 3, 448, 448)), None, half, label="antialias /2", mode="linear", antialias=1)
    yield one(r, "Resize", In((1, 480, 640, 3)), None, None, ints(1, 224, 224, 3), label="channels last, linear",
              mode="linear")
    grid = In((1, 64, 64, 2), low=-1.1, high=1.1)
    for mode in ("linear", "nearest", "cubic"):
        yield one(r, "GridSample", In((1, 32, 64, 64)), grid, label=mode, mode=mode)
    yield one(r, "AffineGrid", In((1, 2, 3)), ints(1, 3, 224, 224))
    regions = np.abs(f32(100, 4)) * 100 + np.array([0, 0, 40, 40], np.float32)
    yield one(r, "RoiAlign", In((1, 64, 50, 50)), regions, np.zeros(100, np.int64), output_height=7, output_width=7,
              sampling_ratio=2, spatial_scale=0.25, opset=21)


def pools() -> Iterator[Case]:
    p, x = "pools", In(IMAGE)
    yield one(p, "MaxPool", x, label="3x3/2 padded", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    yield one(p, "MaxPool", x, label="2x2/2", kernel_shape=[2, 2], strides=[2, 2])
    yield one(p, "MaxPool", In((1, 256, 20, 20)), label="5x5 padded", kernel_shape=[5, 5], pads=[2, 2, 2, 2])
    yield one(p, "MaxPool", In((1, 64, 56, 56)), label="with positions", outputs=("y", "i"), kernel_shape=[2, 2],
              strides=[2, 2])
    yield one(p, "MaxPool", In((1, 64, 4000)), label="3/2", kernel_shape=[3], strides=[2])
    yield one(p, "AveragePool", x, label="2x2/2", kernel_shape=[2, 2], strides=[2, 2])
    yield one(p, "AveragePool", In((1, 64, 56, 56)), label="3x3 padded", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    yield one(p, "AveragePool", In((1, 64, 56, 56)), label="3x3 padded, counted", kernel_shape=[3, 3], pads=[1, 1, 1, 1],
              count_include_pad=1)
    yield one(p, "LpPool", In((1, 64, 56, 56)), kernel_shape=[2, 2], strides=[2, 2])
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield one(p, op, In((1, 512, 7, 7)))
    yield one(p, "GlobalLpPool", In((1, 512, 7, 7)), opset=21)
    yield one(p, "GlobalAveragePool", In((1, 64, 112, 112)))
    place = np.arange(64 * 28 * 28).reshape(1, 64, 28, 28)
    at = place // 784 * 3136 + place % 784 // 28 * 112 + place % 28 * 2
    yield one(p, "MaxUnpool", In((1, 64, 28, 28)), at, kernel_shape=[2, 2], strides=[2, 2])


def products() -> Iterator[Case]:
    c = "convolutions and products"
    yield one(c, "Conv", In((1, 64, 56, 56)), f32(64, 64, 3, 3), f32(64), label="3x3", pads=[1, 1, 1, 1])
    yield one(c, "Conv", In((1, 256, 28, 28)), f32(128, 256, 1, 1), f32(128), label="1x1")
    yield one(c, "Conv", In((1, 3, 224, 224)), f32(64, 3, 7, 7), f32(64), label="7x7/2", strides=[2, 2], pads=[3, 3, 3, 3])
    yield one(c, "Conv", In((1, 96, 56, 56)), f32(96, 1, 3, 3), f32(96), label="depthwise", group=96, pads=[1, 1, 1, 1])
    yield one(c, "Conv", In((1, 128, 28, 28)), f32(128, 4, 3, 3), f32(128), label="32 groups", group=32, pads=[1, 1, 1, 1])
    yield one(c, "Conv", In((1, 80, 3000)), f32(384, 80, 3), f32(384), label="speech", pads=[1, 1])
    yield one(c, "Conv", In((1, 16, 8, 32, 32)), f32(16, 16, 3, 3, 3), f32(16), label="volume", pads=[1] * 6)
    yield one(c, "ConvTranspose", In((1, 128, 28, 28)), f32(128, 64, 4, 4), f32(64), strides=[2, 2], pads=[1, 1, 1, 1])
    yield one(c, "ConvTranspose", In((1, 64, 28, 28)), f32(64, 64, 2, 2), f32(64), label="2x2/2", strides=[2, 2])
    yield one(c, "DeformConv", In((1, 32, 28, 28)), f32(32, 32, 3, 3), In((1, 18, 28, 28)), pads=[1, 1, 1, 1])
    yield one(c, "Col2Im", In((1, 64 * 9, 54 * 54)), ints(56, 56), ints(3, 3))
    yield one(c, "MatMul", In((128, 768)), f32(768, 768))
    yield one(c, "MatMul", In((1, 12, 128, 64)), In((1, 12, 64, 128)), label="batched")
    yield one(c, "MatMul", In((1, 2048)), f32(2048, 1000), label="one row")
    yield one(c, "Gemm", In((128, 768)), f32(3072, 768), f32(3072), transB=1)
    yield one(c, "Gemm", In((256, 256)), In((256, 256)), label="given, A transposed", transA=1)
    yield one(c, "Einsum", In((1, 12, 128, 64)), In((1, 12, 128, 64)), label="bhqd,bhkd->bhqk", equation="bhqd,bhkd->bhqk")
    yield one(c, "Det", In((256, 3, 3)))
    q = (1, 12, 128, 64)
    yield one(c, "Attention", In(q), In(q), In(q))
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        yield one(c, op, In((50, 1, 128)), f32(1, gates * 256, 128), f32(1, gates * 256, 256), hidden_size=256)


def quantized() -> Iterator[Case]:
    q, scale, zero, one_zero = "quantized", np.float32(0.02), np.uint8(128), np.int8(0)
    yield one(q, "QuantizeLinear", In(IMAGE), scale, zero)
    yield one(q, "QuantizeLinear", In((64, 4096)), np.full(4096, 0.02, np.float32), np.zeros(4096, np.int8), axis=1,
              label="per column")
    yield one(q, "DequantizeLinear", In(IMAGE, "uint8", 0, 255), scale, zero)
    yield one(q, "DynamicQuantizeLinear", In(TOKENS), outputs=("y", "s", "z"))
    weights = np.random.default_rng(3).integers(-50, 50, (64, 64, 3, 3)).astype(np.int8)
    picture = In((1, 64, 28, 28), "uint8", 0, 255)
    yield one(q, "ConvInteger", picture, weights, zero, one_zero, pads=[1, 1, 1, 1])
    yield one(q, "QLinearConv", picture, scale, zero, weights, scale, one_zero, np.float32(0.5), zero, pads=[1, 1, 1, 1])
    matrix = np.random.default_rng(3).integers(-50, 50, (768, 768)).astype(np.int8)
    yield one(q, "MatMulInteger", In((128, 768), "uint8", 0, 255), matrix, zero, one_zero)
    yield one(q, "QLinearMatMul", In((128, 768), "uint8", 0, 255), scale, zero, matrix, scale, one_zero, np.float32(0.9),
              zero)
    yield one(q, "MatMulInteger", In((128, 768), "uint8", 0, 255), matrix.astype(np.uint8), zero, np.uint8(113),
              label="by uint8")
    yield one(q, "MatMulInteger", In((1, 768), "uint8", 0, 255), matrix, zero, one_zero, label="one row")
    yield one(q, "MatMulInteger", In((12, 128, 64), "uint8", 0, 255), In((12, 64, 128), "int8", -50, 50), zero, one_zero,
              label="given")
    signed, per_channel = In((1, 64, 56, 56), "int8", -128, 127), np.linspace(0.01, 0.03, 64).astype(np.float32)
    yield one(q, "QLinearConv", signed, scale, np.int8(3), weights, per_channel, np.zeros(64, np.int8), np.float32(0.5),
              np.int8(-4), np.arange(64, dtype=np.int32), label="per channel", pads=[1, 1, 1, 1])
    yield one(q, "QLinearConv", signed, scale, np.int8(3), weights[:, :, :1, :1], scale, one_zero, np.float32(0.5),
              np.int8(-4), label="1x1")
    yield one(q, "QLinearConv", signed, scale, np.int8(3), weights[:, :1], scale, one_zero, np.float32(0.5), np.int8(-4),
              label="depthwise", group=64, pads=[1, 1, 1, 1])
    yield one(q, "QLinearConv", In((1, 3, 224, 224), "uint8", 0, 255), scale, zero, weights[:32, :3], scale, one_zero,
              np.float32(0.5), zero, label="first", strides=[2, 2], pads=[1, 1, 1, 1])
    rest, wide = (scale, one_zero, np.float32(0.5), zero), In((1, 64, 56, 56), "uint8", 0, 255)
    yield chain(q, "bottleneck of uint8", Node("QLinearConv", (wide, scale, zero, weights[:, :, :1, :1], *rest), {}, ("a",)),
                Node("QLinearConv", ("a", scale, zero, weights, *rest), {"pads": [1, 1, 1, 1]}, ("b",)),
                Node("QLinearConv", ("b", scale, zero, weights[:, :, 1:2, 1:2], *rest)))


def others() -> Iterator[Case]:
    yield one("others", "STFT", In((1, 16000, 1)), np.int64(160), np.hanning(400).astype(np.float32), np.int64(400))
    yield one("others", "DFT", In((1, 98, 400, 1)), None, np.int64(-2), label="400 points", onesided=1)
    yield one("others", "RotaryEmbedding", In((1, 12, 128, 64)), f32(128, 32), f32(128, 32), In((1, 128), "int64", 0, 127))
    yield one("others", "TensorScatter", In((1, 12, 512, 64)), In((1, 12, 1, 64)), In((1,), "int64", 0, 511), opset=24)
    yield one("others", "BitCast", In(IMAGE), to=int(onnx.TensorProto.INT32), opset=26)
    yield one("others", "Swish", In(IMAGE), opset=24)
