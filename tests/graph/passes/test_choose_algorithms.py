"""choose_algorithms: which convolutions are offered, what they become, and that they mean the same."""

from __future__ import annotations

import numpy as np
import pytest
from pass_graphs import Builder, assert_same, ops

from toolchain.core.errors import ImportModelError
from toolchain.graph import winograd
from toolchain.graph.infer import infer
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes import choose_algorithms, choosing_algorithms, fuse_operators, run_passes
from toolchain.graph.serialize import from_json, to_json


def always(m: int):
    return lambda node, graph: m


def network() -> Graph:
    """Two convolutions with one weight, a residual sum, relu, one convolution without bias and padding."""
    b = Builder()
    x = b.input(2, 5, 9, 11)
    w, bias = b.weight(5, 5, 3, 3), b.weight(5)
    same = {"pads": (1, 1, 1, 1), "kernel_shape": (3, 3), "strides": (1, 1), "dilations": (1, 1), "group": 1}
    first = b.node("Conv", x, w, bias, **same)
    again = b.node("Conv", b.node("Relu", first), w, bias, **same)
    y = b.node("Relu", b.node("Add", again, first))
    return b.graph(b.conv(y, 6, 3, bias=False, pads=(0, 1, 2, 0)))


@pytest.mark.parametrize("m", winograd.SIZES)
def test_rewrites(m: int) -> None:
    graph = network()
    after = run_passes(graph, (choosing_algorithms(always(m)),))
    assert ops(after) == ["WinogradConv", "Relu", "WinogradConv", "Add", "Relu", "WinogradConv"]
    assert_same(graph, after, tolerance=1e-4)
    weights = {node.inputs[1] for node in after.nodes if node.op == "WinogradConv"}
    assert sorted(after.params[w].shape for w in weights) == [(m + 2, m + 2, 5, 5), (m + 2, m + 2, 6, 5)]
    assert not set(graph.nodes[0].inputs[1:2]) & set(after.params)          # the direct weights are gone


def test_the_rest_of_the_kernel_joins_it() -> None:
    graph = choose_algorithms(network(), always(4))
    bodies = [[n.op for n in node.attrs["body"].nodes] for node in fuse_operators(graph).nodes]
    assert ["WinogradConv", "Add", "Relu"] in bodies


def test_nothing_chosen_is_no_change() -> None:
    graph = network()
    assert choose_algorithms(graph, always(0)) is graph


@pytest.mark.parametrize("name", [
    "strided", "dilated", "grouped", "one_by_one", "one_dimension", "computed_weights", "float64",
])
def test_others_are_not_offered(name: str) -> None:
    b = Builder()
    x = b.input(1, 4, 8, 8)
    match name:
        case "strided":
            y = b.conv(x, 4, 3, strides=(2, 2))
        case "dilated":
            y = b.conv(x, 4, 3, dilations=(2, 2))
        case "grouped":
            y = b.conv(x, 4, 3, group=2)
        case "one_by_one":
            y = b.conv(x, 4, 1)
        case "one_dimension":
            y = b.node("Conv", b.input(1, 4, 8), b.weight(4, 4, 3), kernel_shape=(3,), pads=(1, 1))
        case "computed_weights":
            y = b.node("Conv", x, b.input(4, 4, 3, 3), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        case "float64":
            w = b.const(np.ones((4, 4, 3, 3)), "float64")
            y = b.node("Conv", b.input(1, 4, 8, 8, dtype="float64"), w, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    graph = b.graph(y)
    assert choose_algorithms(graph, always(4)) is graph


@pytest.mark.parametrize("m", winograd.SIZES)
def test_matrices_are_exact(m: int) -> None:
    """One tile of integers through the matrices is the correlation itself, exactly but for G's fractions."""
    rng = np.random.default_rng(m)
    d, g = rng.integers(-9, 9, (m + 2, m + 2)), rng.integers(-9, 9, (3, 3))
    u, v = winograd.G[m] @ g @ winograd.G[m].T, winograd.B_T[m] @ d @ winograd.B_T[m].T
    made = winograd.A_T[m] @ (u * v) @ winograd.A_T[m].T
    direct = [[(d[y:y + 3, x:x + 3] * g).sum() for x in range(m)] for y in range(m)]
    np.testing.assert_allclose(made, direct, atol=1e-11)


def test_weights_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(70, 1000, 3, 3)).astype("float32")           # more than one chunk
    assert weights.shape[0] * weights.shape[1] > winograd.CHUNK
    u = winograd.transform_weights(weights, 4)
    wide = np.einsum("ja,oiab,kb->jkoi", winograd.G[4], weights.astype(np.float64), winograd.G[4], optimize=True)
    np.testing.assert_allclose(u, wide.astype("float32"), rtol=2e-7, atol=0)
    assert u.dtype == weights.dtype


def test_survives_the_store_and_checks_its_inputs() -> None:
    graph = choose_algorithms(network(), always(2))
    inputs = {name: np.ones(graph.types[name].shape, "float32") for name in graph.inputs}
    back = from_json(to_json(graph))
    for name, array in interpret(graph, inputs).items():
        np.testing.assert_array_equal(interpret(back, inputs)[name], array)
    node = graph.nodes[0]
    wrong = Node(node.op, node.inputs, node.outputs, {**node.attrs, "m": 4}, node.name)
    with pytest.raises(ImportModelError, match="does not fit its inputs"):
        infer(wrong, graph.types, graph.params)
