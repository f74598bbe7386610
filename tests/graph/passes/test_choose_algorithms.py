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
from toolchain.graph.passes import choose_algorithms, choosing_algorithms, fuse_operators, run_passes, simplify
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


@pytest.mark.parametrize(("kernel", "m"), [(2, 4), (2, 2), (5, 2)])
def test_other_kernels(kernel: int, m: int) -> None:
    b = Builder()
    graph = b.graph(b.conv(b.input(2, 5, 9, 11), 6, kernel, pads=(0, 1, 2, 0)))
    after = run_passes(graph, (choosing_algorithms(always(m)),))
    assert ops(after) == ["WinogradConv"]
    assert_same(graph, after, tolerance=1e-4)


@pytest.mark.parametrize("m", winograd.SIZES)
@pytest.mark.parametrize(("kernel", "stride", "pads"), [
    (4, 2, (1, 1, 1, 1)), (3, 2, (1, 0, 1, 0)), (6, 3, (2, 1, 0, 3)), (5, 2, (2, 2, 2, 2)),
])
def test_strided(m: int, kernel: int, stride: int, pads: tuple[int, ...]) -> None:
    b = Builder()
    graph = b.graph(b.conv(b.input(2, 5, 9, 12), 6, kernel, pads=pads, strides=(stride, stride)))
    after = run_passes(graph, (choosing_algorithms(always(m)),))
    assert ops(after) == ["WinogradConv"]
    assert_same(graph, after, tolerance=1e-4)


@pytest.mark.parametrize("m", winograd.SIZES)
@pytest.mark.parametrize(("kernel", "stride", "pads", "more"), [
    (4, 2, (1, 1, 1, 1), (0, 0)),
    (4, 2, (0, 2, 1, 3), (1, 0)),                       # pads of their own, an output that is one row larger
    (3, 2, (1, 0, 1, 0), (1, 1)),                       # the second tap of some phases is none
    (6, 3, (2, 1, 0, 1), (0, 2)),
    (6, 2, (0, 0, 5, 1), (0, 0)),                       # three taps, an odd number of rows
])
def test_transposed(m: int, kernel: int, stride: int, pads: tuple[int, ...], more: tuple[int, int]) -> None:
    b = Builder()
    graph = b.graph(b.node("ConvTranspose", b.input(2, 5, 6, 7), b.weight(5, 3, kernel, kernel), b.weight(3), pads=pads,
                           strides=(stride, stride), kernel_shape=(kernel, kernel), output_padding=more, dilations=(1, 1),
                           group=1))
    after = run_passes(graph, (choosing_algorithms(always(m)),))
    assert ops(after) == ["WinogradConvTranspose"]
    assert_same(graph, after, tolerance=1e-4)


@pytest.mark.parametrize("m", winograd.SIZES)
def test_transposed_without_stride_is_a_convolution_first(m: int) -> None:
    b = Builder()
    graph = b.graph(b.node("ConvTranspose", b.input(2, 5, 6, 7), b.weight(5, 3, 3, 3), b.weight(3), pads=(1, 0, 1, 2),
                           strides=(1, 1), kernel_shape=(3, 3), dilations=(1, 1), group=1))
    assert choose_algorithms(graph, always(m)) is graph
    after = run_passes(graph, (simplify, choosing_algorithms(always(m))))
    assert ops(after) == ["WinogradConv"]
    assert_same(graph, after, tolerance=1e-4)


def test_the_rest_of_the_kernel_joins_it() -> None:
    graph = choose_algorithms(network(), always(4))
    bodies = [[n.op for n in node.attrs["body"].nodes] for node in fuse_operators(graph).nodes]
    assert ["WinogradConv", "Add", "Relu"] in bodies


def test_nothing_chosen_is_no_change() -> None:
    graph = network()
    assert choose_algorithms(graph, always(0)) is graph


@pytest.mark.parametrize("name", [
    "7x7 strided", "strides apart", "dilated", "grouped", "one_by_one", "one_dimension", "computed_weights", "float64",
    "oblong", "transposed 8x8", "transposed, strides apart",
])
def test_others_are_not_offered(name: str) -> None:
    b = Builder()
    x = b.input(1, 4, 8, 8)
    match name:
        case "7x7 strided":
            y = b.conv(x, 4, 7, strides=(2, 2))
        case "strides apart":
            y = b.conv(x, 4, 4, strides=(2, 1))
        case "dilated":
            y = b.conv(x, 4, 3, dilations=(2, 2))
        case "grouped":
            y = b.conv(x, 4, 3, group=2)
        case "one_by_one":
            y = b.conv(x, 4, 1)
        case "oblong":
            y = b.node("Conv", x, b.weight(4, 4, 3, 5), kernel_shape=(3, 5), pads=(1, 2, 1, 2))
        case "transposed 8x8":
            y = b.node("ConvTranspose", x, b.weight(4, 4, 8, 8), kernel_shape=(8, 8), strides=(2, 2), pads=(0, 0, 0, 0))
        case "transposed, strides apart":
            y = b.node("ConvTranspose", x, b.weight(4, 4, 4, 4), kernel_shape=(4, 4), strides=(2, 1), pads=(0, 0, 0, 0))
        case "one_dimension":
            y = b.node("Conv", b.input(1, 4, 8), b.weight(4, 4, 3), kernel_shape=(3,), pads=(1, 1))
        case "computed_weights":
            y = b.node("Conv", x, b.input(4, 4, 3, 3), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
        case "float64":
            w = b.const(np.ones((4, 4, 3, 3)), "float64")
            y = b.node("Conv", b.input(1, 4, 8, 8, dtype="float64"), w, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    graph = b.graph(y)
    assert choose_algorithms(graph, always(4)) is graph


@pytest.mark.parametrize(("m", "taps"), winograd.G)
def test_matrices_are_exact(m: int, taps: int) -> None:
    """One tile of integers through the matrices is the correlation itself, exactly but for G's fractions."""
    rng = np.random.default_rng(m)
    side = m + taps - 1
    d, g = rng.integers(-9, 9, (side, side)), rng.integers(-9, 9, (taps, taps))
    to_u, to_v, back = winograd.G[m, taps], winograd.B_T[side], winograd.A_T[m, taps]
    made = back @ ((to_u @ g @ to_u.T) * (to_v @ d @ to_v.T)) @ back.T
    direct = [[(d[y:y + taps, x:x + taps] * g).sum() for x in range(m)] for y in range(m)]
    np.testing.assert_allclose(made, direct, atol=1e-10)


def test_weights_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(70, 1000, 3, 3)).astype("float32")           # more than one chunk
    assert weights.shape[0] * weights.shape[1] > winograd.CHUNK
    u = winograd.transform_weights(weights, 4)
    wide = np.einsum("ja,oiab,kb->jkoi", winograd.G[4, 3], weights.astype(np.float64), winograd.G[4, 3], optimize=True)
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
