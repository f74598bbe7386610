"""Small graphs for the tests of passes: a builder, random graphs, and the comparison of two graphs by interpretation."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from toolchain.core.layout import TensorType
from toolchain.graph.infer import infer
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.verify import verify


class Builder:
    """Adds nodes one by one; types are inferred."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.params: dict[str, np.ndarray] = {}
        self.inputs: list[str] = []

    def input(self, *shape: int, name: str = "", dtype: str = "float32") -> str:
        name = name or f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.types[name] = TensorType.plain(shape, dtype)
        return name

    def const(self, value: Any, dtype: str = "float32", name: str = "") -> str:
        array = np.asarray(value, dtype)
        name = name or f"c{len(self.params)}"
        self.params[name], self.types[name] = array, array_type(array)
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, "int64")

    def weight(self, *shape: int, name: str = "") -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return self.const(self.rng.normal(0, 1 / np.sqrt(fan_in), shape), name=name)

    def node(self, op: str, *inputs: str, out: str | tuple[str, ...] = "", **attrs: Any) -> Any:
        """The output's name, or a tuple of them when `out` is one."""
        outputs = out if isinstance(out, tuple) else (out or f"v{len(self.nodes)}",)
        node = Node(op, inputs, outputs, attrs, name=f"n{len(self.nodes)}", sources=(f"n{len(self.nodes)}",))
        for name, kind in zip(outputs, infer(node, self.types, self.params), strict=True):
            if name:
                self.types[name] = kind
        self.nodes.append(node)
        return outputs if isinstance(out, tuple) else outputs[0]

    def conv(self, x: str, channels: int, kernel: int = 1, bias: bool = True, **attrs: Any) -> str:
        w = self.weight(channels, self.types[x].shape[1] // attrs.get("group", 1), kernel, kernel)
        given = (x, w, self.weight(channels)) if bias else (x, w)
        pad = kernel // 2
        return self.node("Conv", *given, **{"pads": (pad,) * 4, "kernel_shape": (kernel, kernel), **attrs})

    def batch_norm(self, x: str) -> str:
        c = self.types[x].shape[1]
        variance = self.const(self.rng.uniform(0.5, 2, c))
        return self.node("BatchNormalization", x, self.weight(c), self.weight(c), self.weight(c), variance, epsilon=1e-3)

    def graph(self, *outputs: str) -> Graph:
        return verify(Graph("test", tuple(self.nodes), tuple(self.inputs), outputs, self.types, self.params))


def random_inputs(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {i: rng.uniform(-1, 1, graph.types[i].shape).astype(graph.types[i].dtype) for i in graph.inputs}


def assert_same(before: Graph, after: Graph, tolerance: float = 2e-5) -> None:
    """Both graphs give the same outputs under the same names; errors are relative to the largest element.

    The default tolerance allows float32 rounding of some dozens of reordered operations.
    """
    verify(after)
    assert all(isinstance(a, np.ndarray) for a in after.params.values())
    assert after.inputs == before.inputs and after.outputs == before.outputs
    given = random_inputs(before)
    expected, found = interpret(before, given), interpret(after, given)
    for name, want in expected.items():
        assert found[name].dtype == want.dtype and found[name].shape == want.shape
        scale = max(float(np.abs(want.astype("float64")).max(initial=0)), 1e-3) if want.dtype.kind == "f" else 1
        error = np.abs(found[name].astype("float64") - want.astype("float64")).max(initial=0)
        assert error <= tolerance * scale, f"{name}: error {error} of {scale}"


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def fused_ops(graph: Graph) -> list[str]:
    """Ops in order, Fused nodes as the ops inside joined by '+'."""
    return ["+".join(ops(n.attrs["body"])) if n.op == "Fused" else n.op for n in graph.nodes]


@st.composite
def random_graphs(draw: st.DrawFn, max_nodes: int = 14) -> Graph:
    """A random network on (1, C, H, W) values: convolutions, what stands around them, branches that join again."""
    b = Builder(draw(st.integers(0, 1000)))
    values = [b.input(1, 8, 6, 6), b.input(1, 8, 6, 6)]
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=max_nodes))
    for step in steps:
        x = values[draw(st.integers(max(0, len(values) - 3), len(values) - 1))]
        same = [v for v in values if b.types[v] == b.types[x]]
        y = same[draw(st.integers(0, len(same) - 1))]
        values.append(STEPS[step](b, x, y))
    produced = [v for v in values if v not in b.inputs]
    outputs = {produced[-1], produced[draw(st.integers(0, len(produced) - 1))]}
    return b.graph(*sorted(outputs))


def _channels(b: Builder, x: str) -> int:
    return b.types[x].shape[1]


def _split(b: Builder, x: str, y: str) -> str:
    n = _channels(b, x)
    names = (f"s{len(b.nodes)}.a", f"s{len(b.nodes)}.b")
    parts = b.node("Split", x, b.ints(n - n // 2, n // 2), out=names, axis=1) if n > 1 else (x, x)
    return b.node("Concat", parts[1], parts[0], axis=1)


def _gelu(b: Builder, x: str, y: str) -> str:
    inner = b.node("Add", b.node("Erf", b.node("Div", x, b.const(2 ** 0.5))), b.const(1.0))
    return b.node("Mul", b.node("Mul", x, inner), b.const(0.5))


def layer_norm(b: Builder, x: str, gamma: str = "", beta: str = "") -> str:
    """As exporters write it for older opsets, over the last dimension."""
    d = b.node("Sub", x, b.node("ReduceMean", x, b.ints(-1), keepdims=1))
    variance = b.node("ReduceMean", b.node("Pow", d, b.const(2.0)), b.ints(-1), keepdims=1)
    y = b.node("Div", d, b.node("Sqrt", b.node("Add", variance, b.const(1e-5))))
    y = b.node("Mul", y, gamma) if gamma else y
    return b.node("Add", y, beta) if beta else y


STEPS = {
    "conv1": lambda b, x, y: b.conv(x, 8),
    "conv3": lambda b, x, y: b.conv(x, 16, 3),
    "conv_transpose": lambda b, x, y: b.node("ConvTranspose", x, b.weight(_channels(b, x), 8, 1, 1)),
    "batch_norm": lambda b, x, y: b.batch_norm(x),
    "scale": lambda b, x, y: b.node("Mul", x, b.weight(_channels(b, x), 1, 1)),
    "shift": lambda b, x, y: b.node("Add", b.weight(1, _channels(b, x), 1, 1), x),
    "halve": lambda b, x, y: b.node("Div", x, b.const(2.0)),
    "minus": lambda b, x, y: b.node("Sub", x, b.const(0.5)),
    "one": lambda b, x, y: b.node("Mul", x, b.const([[1.0]])),
    "relu": lambda b, x, y: b.node("Relu", x),
    "tanh": lambda b, x, y: b.node("Tanh", x),
    "clip": lambda b, x, y: b.node("Clip", x, b.const(0.0)),
    "add": lambda b, x, y: b.node("Add", x, y),
    "sum": lambda b, x, y: b.node("Sum", x, y, x),
    "mul": lambda b, x, y: b.node("Tanh", b.node("Mul", x, y)),
    "concat": lambda b, x, y: b.conv(b.node("Concat", x, y, axis=1), 8),
    "identity": lambda b, x, y: b.node("Identity", x),
    "transpose": lambda b, x, y: b.node("Transpose", x, perm=(0, 1, 3, 2)),
    "squeeze": lambda b, x, y: b.node("Unsqueeze", b.node("Squeeze", x, b.ints(0)), b.ints(0)),
    "gate": lambda b, x, y: b.node("Mul", x, b.node("Sigmoid", b.node("GlobalAveragePool", x))),
    "pool": lambda b, x, y: b.node("MaxPool", x, kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    "pad": lambda b, x, y: b.node("MaxPool", b.node("Pad", x, b.ints(0, 0, 1, 1, 0, 0, 1, 1)), kernel_shape=(3, 3)),
    "pad_conv": lambda b, x, y: b.conv(b.node("Pad", x, b.ints(0, 0, 1, 1, 0, 0, 1, 1)), 8, 3, pads=(0, 0, 0, 0)),
    "softmax": lambda b, x, y: b.node("Softmax", b.node("Mul", x, b.const(2.0)), axis=-1),
    "layer_norm": lambda b, x, y: layer_norm(b, x, b.const(np.linspace(0.5, 1, b.types[x].shape[-1])), b.const([0.1])),
    "gelu": _gelu,
    "split": _split,
}
