"""Products whose rows a Transpose behind them moves (attention's heads): one kernel, which stores where they belong."""

from __future__ import annotations

import math

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

TARGETS = [HOST, *(t for t in RUNNABLE if t.name == "x86-64-v3")]
RTOL = 1e-4
EXTENTS = st.sampled_from([1, 2, 3, 5, 7, 16, 19, 33])


class Making:
    """A graph under construction, and its arrays."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.types, self.nodes, self.arrays, self.params = {}, [], {}, {}

    def given(self, *shape: int, constant: bool = False) -> str:
        name = f"{'w' if constant else 'x'}{len(self.types)}"
        array = self.rng.uniform(-1, 1, shape).astype(np.float32)
        (self.params if constant else self.arrays)[name], self.types[name] = array, array_type(array)
        return name

    def add(self, op: str, *inputs: str, **attrs: object) -> str:
        node = Node(op, inputs, (f"v{len(self.nodes)}",), attrs, f"n{len(self.nodes)}", (f"n{len(self.nodes)}",))
        (self.types[node.output],) = infer(node, self.types, self.params)
        self.nodes.append(node)
        return node.output

    def reshaped(self, x: str, *shape: int) -> str:
        name = f"s{len(self.types)}"
        self.params[name] = np.array(shape)
        self.types[name] = array_type(self.params[name])
        return self.add("Reshape", x, name)

    def graph(self, out: str) -> Graph:
        return Graph("moved", tuple(self.nodes), tuple(self.arrays), (out,), self.types, self.params)


@st.composite
def heads(draw: st.DrawFn) -> tuple[Making, Graph]:
    """(..., M, K) x (K, H*D) + b, cut into H heads, which a Transpose moves, rows whole; then perhaps more."""
    made = Making()
    batch = draw(st.lists(st.sampled_from([1, 2, 3]), max_size=2))
    m, k, h, d = draw(EXTENTS), draw(EXTENTS), draw(st.sampled_from([2, 3, 6])), 16 * draw(st.integers(1, 4))
    y = made.add("MatMul", made.given(*batch, m, k), made.given(k, h * d, constant=True))
    if draw(st.booleans()):
        y = made.add("Add", y, made.given(h * d, constant=True))
    y = made.reshaped(y, *batch, m, h, d)
    return made, made.graph(behind(draw, made, moved(draw, made, y)))


@st.composite
def batched(draw: st.DrawFn) -> tuple[Making, Graph]:
    """Matrices of activations, whose rows and batches a Transpose exchanges; then perhaps more."""
    made = Making()
    batch = draw(st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=2))
    m, k, n = draw(EXTENTS), draw(EXTENTS), draw(EXTENTS)
    y = made.add("MatMul", made.given(*batch, m, k), made.given(*batch, k, n))
    return made, made.graph(behind(draw, made, moved(draw, made, y)))


def moved(draw: st.DrawFn, made: Making, x: str) -> str:
    rank = len(made.types[x].shape)
    return made.add("Transpose", x, perm=(*draw(st.permutations(range(rank - 1))), rank - 1))


def behind(draw: st.DrawFn, made: Making, x: str) -> str:
    for op in draw(st.lists(st.sampled_from(["Relu", "Tanh", "Mul", "Softmax", "Reshape"]), max_size=2)):
        shape = made.types[x].shape
        match op:
            case "Mul":
                x = made.add("Mul", x, made.given(*shape))
            case "Softmax":
                x = made.add("Softmax", x, axis=-1)
            case "Reshape":
                x = made.reshaped(x, math.prod(shape[:-1]), shape[-1])
            case _:
                x = made.add(op, x)
    return x


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(max_examples=60)
@given(made=st.one_of(heads(), batched()))
def test_moved_rows(target: Target, made: tuple[Making, Graph]):
    making, before = made
    graph, workloads = optimize_graph(before, target)
    bodies = {w.key: w.body for w in workloads.values()}
    every = [v for n in graph.nodes for v in (*n.inputs, *n.outputs) if v and v not in graph.params]
    values = {**making.arrays, **graph.params, **interpret(graph, making.arrays, keep=every)}
    for node in (n for n in graph.nodes if n.op == "Fused"):
        body = bodies[node.attrs["kernel"]]
        arrays = {formal: values[i] for formal, i in zip(body.inputs, node.inputs, strict=True)}
        for what, results in (("definition", defined(body, arrays)), ("kernel", compiled(body, arrays, target))):
            close(results[0], values[node.output], RTOL, RTOL, f"{what} of {[n.op for n in body.nodes]}")
    want = interpret(before, making.arrays)
    close(interpret(graph, making.arrays)[graph.outputs[0]], want[before.outputs[0]], RTOL, RTOL, "the graph")


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_heads_are_stored_in_place(target: Target):
    """No Transpose has a kernel of its own, and each kernel stores its register tile, no array between."""
    made = Making()
    q = made.reshaped(made.add("MatMul", made.given(1, 20, 48), made.given(48, 64, constant=True)), 1, 20, 2, 32)
    scores = made.add("Softmax", made.add("MatMul", made.add("Transpose", q, perm=(0, 2, 1, 3)), made.given(1, 2, 32, 20)))
    context = made.add("Transpose", made.add("MatMul", scores, made.given(1, 2, 20, 32)), perm=(0, 2, 1, 3))
    workloads = optimize_graph(made.graph(made.reshaped(context, 1, 20, 64)), target)[1]
    bodies = [w.body for w in workloads.values()]
    assert sorted("+".join(n.op for n in b.nodes) for b in bodies) == [
        "MatMul", "MatMul+Reshape+Transpose", "MatMul+Transpose", "Softmax"]
    for body in bodies:
        func = schedule(body, target, SKETCHES[0]).func
        if body.nodes[0].op == "MatMul":
            (tile,) = (t for t in func.buffers if t not in func.params)
            assert func.buffers[tile].scope == "local"


def test_pieces_of_several_batches_are_moved_apart():
    """(S, B, H*D) as (S, B*H, D): the joined dimension counts rows and columns, and no register tile could be whole."""
    made = Making()
    y = made.reshaped(made.add("MatMul", made.given(20, 3, 48), made.given(48, 64, constant=True)), 20, 6, 32)
    workloads = optimize_graph(made.graph(made.add("Transpose", y, perm=(1, 0, 2))), HOST)[1]
    assert sorted("+".join(n.op for n in w.body.nodes) for w in workloads.values()) == ["MatMul", "Transpose"]
