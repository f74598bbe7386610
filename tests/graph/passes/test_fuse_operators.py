"""fuse_operators: which groups form, and which must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from layout_fakes import conv_options
from pass_graphs import Builder, assert_same, fused_ops, layer_norm

from toolchain.core.layout import Layout
from toolchain.graph.ir import Graph
from toolchain.graph.passes import fuse_operators, plan_layouts, simplify
from toolchain.graph.passes.canonical import canonical
from toolchain.graph.passes.fuse_operators import MAX_NODES
from toolchain.graph.text import to_text

Case = Callable[[Builder], tuple[str, ...]]


def residual(b: Builder) -> tuple[str, ...]:
    x = b.node("Relu", b.conv(b.input(1, 8, 4, 4), 8))
    main = b.conv(b.node("Relu", b.conv(x, 8, 3)), 8, 3)
    return (b.node("Relu", b.node("Add", main, b.conv(x, 8))),)


def diamond(b: Builder) -> tuple[str, ...]:
    y = b.conv(b.input(1, 8, 4, 4), 8)
    return (b.node("Mul", y, b.node("Sigmoid", y)),)


def squeeze_excite(b: Builder) -> tuple[str, ...]:
    y = b.node("Relu", b.conv(b.input(1, 8, 4, 4), 8))
    gate = b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", y), 8))
    return (b.node("Mul", y, gate),)


def softmax(b: Builder) -> tuple[str, ...]:
    scores = b.node("MatMul", b.input(2, 8, 4), b.input(2, 4, 8))
    scaled = b.node("Add", b.node("Mul", scores, b.const(0.5)), b.input(1, 8, 8))
    moved = b.node("Tanh", b.node("Transpose", scaled, perm=(0, 2, 1)))
    return (b.node("Mul", b.node("Softmax", moved), b.const(2.0)),)


def normalization(b: Builder) -> tuple[str, ...]:
    x = b.input(2, 8, 4)
    return (b.node("Relu", layer_norm(b, b.node("Add", x, b.input(2, 8, 4)), b.weight(4), b.weight(4))),)


def injective_chain(b: Builder) -> tuple[str, ...]:
    x = b.node("Exp", b.input(4, 6))
    left, right = b.node("Transpose", x, perm=(1, 0)), b.node("Relu", x)
    return (b.node("Add", left, b.node("Transpose", b.node("Tanh", right), perm=(1, 0))),)


def two_readers(b: Builder) -> tuple[str, ...]:
    y = b.node("Exp", b.input(4, 6))
    return b.node("Softmax", y), b.node("MatMul", y, b.input(6, 2))


def views(b: Builder) -> tuple[str, ...]:
    y = b.node("Relu", b.node("MatMul", b.input(4, 6), b.weight(6, 8)))
    heads = b.node("Transpose", b.node("Reshape", y, b.ints(4, 2, 4)), perm=(1, 0, 2))
    return (b.node("Neg", heads),)


def output_inside(b: Builder) -> tuple[str, ...]:
    y = b.node("Exp", b.input(4, 6))
    return y, b.node("Neg", y)


def concat(b: Builder) -> tuple[str, ...]:
    x = b.input(1, 8, 4, 4)
    return (b.node("Relu", b.node("Concat", b.node("Exp", x), b.node("Neg", x), axis=1)),)


def growing(b: Builder) -> tuple[str, ...]:
    """An Add that broadcasts the convolution's result is not elementwise on it."""
    return (b.node("Add", b.conv(b.input(1, 8, 4, 4), 8), b.input(3, 8, 4, 4)),)


def broadcast_gate(b: Builder) -> tuple[str, ...]:
    """Inside the group of Mul the Sigmoid would be computed once per pixel."""
    gate = b.node("Sigmoid", b.node("Neg", b.input(1, 8, 1, 1)))
    return (b.node("Relu", b.node("Mul", b.input(1, 8, 6, 6), gate)),)


def enlarged(b: Builder) -> tuple[str, ...]:
    y = b.node("Tanh", b.input(1, 8, 4, 4))
    return (b.node("Relu", b.node("Resize", y, "", b.const([1.0, 1.0, 2.0, 2.0]), mode="nearest")),)


def padded(b: Builder) -> tuple[str, ...]:
    return (b.node("Relu", b.node("Pad", b.node("Tanh", b.input(1, 8, 4, 4)), b.ints(0, 0, 1, 1, 0, 0, 1, 1))),)


GROUPS: dict[str, tuple[Case, list[str]]] = {
    "residual": (residual, ["Conv+Relu", "Conv+Relu", "Conv", "Conv+Add+Relu"]),
    "diamond": (diamond, ["Conv+Sigmoid+Mul"]),
    "squeeze_excite": (squeeze_excite, ["Conv+Relu", "GlobalAveragePool", "Conv+Sigmoid", "Mul"]),
    "softmax": (softmax, ["MatMul+Mul+Add", "Transpose+Tanh+Softmax+Mul"]),
    "normalization": (normalization, ["Add+LayerNormalization+Relu"]),
    "injective_chain": (injective_chain, ["Exp+Transpose+Relu+Tanh+Transpose+Add"]),
    "two_readers": (two_readers, ["Exp", "Softmax", "MatMul"]),
    "views": (views, ["MatMul+Relu", "Reshape", "Transpose+Neg"]),
    "output_inside": (output_inside, ["Exp", "Neg"]),
    "concat": (concat, ["Exp", "Neg", "Concat", "Relu"]),
    "broadcast_gate": (broadcast_gate, ["Neg+Sigmoid", "Mul+Relu"]),
    "enlarged": (enlarged, ["Tanh", "Resize+Relu"]),
    "padded": (padded, ["Tanh+Pad+Relu"]),
    "growing": (growing, ["Conv", "Add"]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str) -> None:
    build, expected = GROUPS[name]
    b = Builder()
    graph = simplify(b.graph(*build(b)))
    after = fuse_operators(graph)
    assert fused_ops(after) == expected
    assert_same(graph, after, tolerance=0)
    assert {s for n in after.nodes for s in n.sources} == {s for n in graph.nodes for s in n.sources}
    assert all(len(n.outputs) == 1 for n in after.nodes)


def test_nothing_fuses_through_what_an_outside_node_needs() -> None:
    """Exp -> Softmax -> Add and Exp -> Add: a group of Exp and Add would wait for Softmax, and Softmax for it."""
    b = Builder()
    x = b.node("Exp", b.input(4, 6))
    graph = b.graph(b.node("Add", x, b.node("CumSum", x, b.const(0, "int64"))))
    after = fuse_operators(graph)
    assert fused_ops(after) == ["Exp", "CumSum", "Add"]


def test_layout_conversions_join_injective_neighbours() -> None:
    b = Builder()
    graph = b.graph(b.node("Softmax", b.conv(b.node("Neg", b.input(1, 8, 8, 8)), 8, 3)))
    after = fuse_operators(plan_layouts(graph, conv_options, conversion_us=0.01))
    assert fused_ops(after) in (["Layout+Neg", "Conv", "Layout+Softmax"], ["Neg+Layout", "Conv", "Layout+Softmax"])
    assert_same(graph, after, tolerance=0)


def test_small_steering_constants_go_inside_and_weights_do_not() -> None:
    b = Builder()
    y = b.conv(b.input(1, 4, 4, 4), 2)
    y = b.node("Clip", b.node("Mul", y, b.const([[[[3.0]]]])), b.const(-1.0), b.const(1.0))
    (node,) = fuse_operators(b.graph(y)).nodes
    assert len(node.inputs) == 3                                # x, weight, bias: two elements, but a weight
    assert sorted(a.size for a in node.attrs["body"].params.values()) == [1, 1, 1]


def twice(first: float, second: float, channels: int = 8) -> Graph:
    b = Builder()
    y = b.node("Mul", b.node("Relu", b.conv(b.input(1, 8, 4, 4), 8)), b.const(first))
    return b.graph(b.node("Mul", b.node("Relu", b.conv(y, channels)), b.const(second)))


def test_equal_groups_have_equal_bodies_whatever_their_weights() -> None:
    keys = [canonical(n.attrs["body"])[1] for n in fuse_operators(twice(2.0, 2.0)).nodes]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("graph", [twice(2.0, 2.0000002), twice(2.0, 2.0, channels=4)], ids=["number", "shape"])
def test_different_groups_have_different_keys(graph: Graph) -> None:
    keys = [canonical(n.attrs["body"])[1] for n in fuse_operators(graph).nodes]
    assert keys[0] != keys[1]


def test_groups_are_limited() -> None:
    b = Builder()
    y = b.input(4)
    for _ in range(3 * MAX_NODES):
        y = b.node("Tanh", y)
    after = fuse_operators(b.graph(y))
    sizes = [len(n.attrs["body"].nodes) for n in after.nodes]
    assert sum(sizes) == 3 * MAX_NODES and max(sizes) <= MAX_NODES and len(sizes) == 3


def test_a_copy_that_looks_like_a_view_is_a_kernel() -> None:
    """An output that is just an input reshaped, and the same value given out twice."""
    b = Builder()
    x = b.input(4, 6)
    y = b.node("Relu", x)
    graph = b.graph(b.node("Reshape", x, b.ints(24)), b.node("Reshape", y, b.ints(24)), b.node("Reshape", y, b.ints(2, 12)))
    after = fuse_operators(graph)
    assert fused_ops(after) == ["Relu", "Reshape", "Reshape", "Reshape"]
    assert [n.op for n in after.nodes] == ["Fused", "Fused", "Reshape", "Fused"]
    assert_same(graph, after, tolerance=0)


def test_golden(golden: Callable[[str], None]) -> None:
    b = Builder()
    golden(to_text(fuse_operators(b.graph(*residual(b)))))


def test_reshape_of_a_value_with_a_halo_is_a_kernel() -> None:
    b = Builder()
    x = b.node("Relu", b.input(1, 8, 4, 4))
    graph = b.graph(b.conv(x, 4, 3), b.node("Neg", b.node("Reshape", x, b.ints(8, 16))))
    halo = {x: graph.types[x].with_layout(Layout.parse("NCHW+h1"))}
    assert fused_ops(fuse_operators(graph)) == ["Relu", "Conv", "Reshape", "Neg"]
    assert fused_ops(fuse_operators(graph.edit({}, types=halo))) == ["Relu", "Conv", "Reshape+Neg"]


def test_keys_hold_the_contents_of_longer_constants() -> None:
    keys = []
    for last in (7, 8):
        b = Builder()
        (node,) = fuse_operators(b.graph(b.node("Gather", b.input(9, 2), b.ints(0, 1, 2, 3, 4, 5, 6, 7, 8, last)))).nodes
        keys.append(canonical(node.attrs["body"])[1])
    assert keys[0] != keys[1]


def shuffled(b: Builder, x: str) -> str:
    """ShuffleNet's exchange of channels between groups: 2 x 4 -> 4 x 2."""
    apart = b.node("Reshape", x, b.ints(1, 2, 4, 4, 4))
    return b.node("Reshape", b.node("Transpose", apart, perm=(0, 2, 1, 3, 4)), b.ints(1, 8, 4, 4))


def test_a_channel_shuffle_and_the_conversion_behind_it_are_one_move() -> None:
    b = Builder()
    graph = b.graph(b.conv(shuffled(b, b.node("Relu", b.input(1, 8, 4, 4))), 8, 3))
    planned = plan_layouts(graph, conv_options)
    after = fuse_operators(planned)
    assert "Transpose+Reshape+Layout" in fused_ops(after)
    assert_same(graph, after)


def test_a_view_that_others_read_too_stays_a_view() -> None:
    b = Builder()
    y = shuffled(b, b.node("Relu", b.input(1, 8, 4, 4)))
    graph = b.graph(b.conv(y, 8, 3), b.node("Softmax", y, axis=1))
    after = fuse_operators(plan_layouts(graph, conv_options))
    assert "Reshape" in [n.op for n in after.nodes]
    assert "Transpose" in fused_ops(after)
    assert_same(graph, after)
