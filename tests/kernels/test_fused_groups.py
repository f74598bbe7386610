"""Random graphs of small operators, optimized and fused as a build does it: every kernel against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import HOST, RUNNABLE, close, compiled, defined

from toolchain.core.target import Target
from toolchain.graph.infer import infer
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.tasks.optimize import optimize_graph

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")

TARGETS = [HOST, *(t for t in RUNNABLE if t.name == "x86-64-v2")]
RTOL = 1e-4                 # a few roundings of numbers below a hundred; exp, tanh within 5 ulp

UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Erf", "HardSwish", "Softplus", "Identity")
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
ROWS = ("Softmax", "LogSoftmax")
KINDS = ("unary", "unary", "binary", "binary", "skip", "rows", "reduce", "move", "clip", "norm")
REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")


class Growing:
    """A graph under construction: every step reads values made so far."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.rng = draw, np.random.default_rng(0)
        rank = draw(st.integers(1, 4))
        shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 7, 16, 33]), min_size=rank, max_size=rank)))
        first = self.rng.uniform(-1, 1, shape).astype(np.float32)
        self.types, self.nodes, self.arrays = {"x": array_type(first)}, [], {"x": first}
        self.params: dict[str, np.ndarray] = {}
        self.last = "x"

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.params)}"
        self.params[name], self.types[name] = array, array_type(array)
        return name

    def add(self, op: str, *inputs: str, **attrs: object) -> None:
        name = f"v{len(self.nodes)}"
        node = Node(op, inputs, (name,), attrs, name, (name,))
        (self.types[name],) = infer(node, self.types, self.params)
        self.nodes.append(node)
        self.last = name

    def step(self) -> None:
        shape, x = self.types[self.last].shape, self.last
        kind = self.draw(st.sampled_from(KINDS))
        axis = self.draw(st.integers(0, len(shape) - 1)) if shape else 0
        match kind:
            case "binary":
                dims = tuple(self.draw(st.sampled_from([1, n])) for n in shape)[self.draw(st.integers(0, len(shape))):]
                other = self.rng.uniform(0.5, 1.5, dims).astype(np.float32)
                self.add(self.draw(st.sampled_from(BINARY)), x, self.constant(other))
            case "skip" if same := [v for v, t in self.types.items() if t.shape == shape and v not in self.params]:
                self.add(self.draw(st.sampled_from(BINARY)), x, self.draw(st.sampled_from(same)))
            case "rows" if shape:
                self.add(self.draw(st.sampled_from(ROWS)), x, axis=axis)
            case "reduce" if shape:
                keep = self.draw(st.booleans())
                self.add(self.draw(st.sampled_from(REDUCE)), x, self.constant(np.array([axis])), keepdims=int(keep))
            case "move" if len(shape) > 1:
                self.move(shape, axis)
            case "clip":
                self.add("Clip", x, self.constant(np.array(-0.5, np.float32)), self.constant(np.array(0.75, np.float32)))
            case "norm" if shape:
                scale = self.constant(self.rng.uniform(0.5, 1.5, shape[-1:]).astype(np.float32))
                self.add("LayerNormalization", x, scale, epsilon=0.1)       # the default magnifies rounding of equal values
            case _:
                self.add(self.draw(st.sampled_from(UNARY)), x)

    def move(self, shape: tuple[int, ...], axis: int) -> None:
        x = self.last
        match self.draw(st.sampled_from(["transpose", "reshape", "slice", "concat", "pad", "gather"])):
            case "transpose":
                self.add("Transpose", x, perm=tuple(self.draw(st.permutations(range(len(shape))))))
            case "reshape":
                self.add("Reshape", x, self.constant(np.array([shape[0], -1])))
            case "slice":
                start = self.draw(st.integers(0, shape[axis] - 1))
                self.add("Slice", x, *(self.constant(np.array([v])) for v in (start, shape[axis], axis)))
            case "concat":
                self.add("Concat", x, x, axis=axis)
            case "pad":
                amounts = np.zeros(2 * len(shape), np.int64)
                amounts[axis], amounts[axis + len(shape)] = 1, 2
                self.add("Pad", x, self.constant(amounts))
            case "gather":
                picks = np.array(self.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=5)))
                self.add("Gather", x, self.constant(picks), axis=axis)

    def graph(self) -> Graph:
        return Graph("random", tuple(self.nodes), ("x",), (self.last,), self.types, self.params)


@st.composite
def growing(draw: st.DrawFn) -> Growing:
    made = Growing(draw)
    for _ in range(draw(st.integers(2, 6))):
        made.step()
    return made


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=60)
@given(made=growing())
def test_kernels_of_random_graphs(target: Target, made: Growing):
    graph, workloads = optimize_graph(made.graph(), target)
    check_kernels(graph, {w.key: w.body for w in workloads.values()}, made.arrays, target)
    want = interpret(made.graph(), made.arrays)
    got = interpret(graph, made.arrays)
    for name in graph.outputs:
        close(got[name], want[name], RTOL, RTOL, name)


def check_kernels(graph: Graph, bodies: dict[str, Graph], arrays: dict[str, np.ndarray], target: Target) -> None:
    """Each Fused node's kernel on the arrays it gets in the graph."""
    fused = [n for n in graph.nodes if n.op == "Fused"]
    every = [v for n in graph.nodes for v in (*n.inputs, *n.outputs) if v and v not in graph.params]
    values = {**arrays, **graph.params, **interpret(graph, arrays, keep=every)}
    for node in fused:
        body = bodies[node.attrs["kernel"]]
        given_ = {formal: values[i] for formal, i in zip(body.inputs, node.inputs, strict=True)}
        for what, made in (("definition", defined(body, given_)), ("kernel", compiled(body, given_, target))):
            for name, got in zip(node.outputs, made, strict=True):
                close(got, values[name], RTOL, RTOL, f"{what} of {name}: {[n.op for n in body.nodes]}")


def test_sketches_end_with_one_that_always_fits():
    type_ = array_type(np.ones((3, 7), np.float32))
    body = Graph("b", (Node("Relu", ("x",), ("y",)),), ("x",), ("y",), {"x": type_, "y": type_})
    assert all(schedule(body, HOST, sketch).func.stages for sketch in SKETCHES)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_product_keeps_its_tile_before_a_function_read_twice(target: Target):
    """tanh(a @ b) - 0.5 tanh(a @ b): both in the kernel of the product, no stage between."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.uniform(-1, 1, (3, 24)).astype(np.float32), "b": rng.uniform(-1, 1, (24, 40)).astype(np.float32)}
    types = {name: array_type(a) for name, a in arrays.items()}
    half, wide = np.array(0.5, np.float32), array_type(np.zeros((3, 40), np.float32))
    nodes = (Node("MatMul", ("a", "b"), ("m",)), Node("Tanh", ("m",), ("t",)), Node("Mul", ("t", "half"), ("h",)),
             Node("Sub", ("t", "h"), ("y",)))
    body = Graph("b", nodes, ("a", "b"), ("y",), {**types, "half": array_type(half), **dict.fromkeys("mthy", wide)},
                 {"half": half})
    made = schedule(body, target, SKETCHES[0]).func
    assert [t.name for t in made.buffers if t not in made.params] == ["matmul"]
    want = interpret(body, arrays)["y"]
    for got in (*defined(body, arrays), *compiled(body, arrays, target)):
        close(got, want, RTOL, RTOL, "y")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_a_scalar_added_to_a_product_of_many_dimensions(target: Target):
    """A value of no dimensions is contiguous along none, and is no operand to turn."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.uniform(-1, 1, (1, 38, 1, 64, 1)).astype(np.float32), "b": np.full((1, 1), 0.5, np.float32),
              "f": np.array(2.0, np.float32)}
    wide = array_type(arrays["a"])
    nodes = (Node("MatMul", ("a", "b"), ("m",)), Node("Add", ("f", "m"), ("y",)))
    types = {**{name: array_type(a) for name, a in arrays.items()}, "m": wide, "y": wide}
    body = Graph("b", nodes, ("a", "b", "f"), ("y",), types)
    (got,) = compiled(body, arrays, target)
    close(got, interpret(body, arrays)["y"], RTOL, RTOL, "y")
