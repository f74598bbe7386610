"""plan_memory: texts, sharing and its limits; and the checker, which must find every kind of damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_fakes import conv_options
from pass_graphs import Builder, random_graphs

from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes import (
    FUSION,
    PASSES,
    MemoryPlan,
    Slot,
    check_memory,
    fuse_operators,
    plan_layouts,
    plan_memory,
    planning_layouts,
    run_passes,
)
from toolchain.graph.passes.memory_plan import halo_geometry, size_bytes


def chain(length: int = 5) -> Graph:
    """Convolutions in a row: two buffers are enough."""
    b = Builder()
    y = b.input(1, 8, 8, 8)
    for _ in range(length):
        y = b.conv(y, 8)
    return fuse_operators(b.graph(y))


def test_two_buffers_take_turns() -> None:
    graph = chain()
    plan = plan_memory(graph)
    assert plan.arena_bytes == 2 * 8 * 8 * 8 * 4
    check_memory(graph, plan)


def test_golden(golden: Callable[[str], None]) -> None:
    b = Builder()
    y = b.conv(b.input(1, 8, 8, 8), 8)
    y = b.node("Softmax", b.node("Reshape", b.node("MaxPool", y, kernel_shape=(2, 2)), b.ints(16, 8)))
    graph = fuse_operators(b.graph(b.node("MatMul", b.node("Reshape", y, b.ints(8, 16)), b.weight(16, 3))))
    golden(plan_memory(graph, lambda node: (100, 2000) if node.name == "n0" else ()).to_text())


def test_elementwise_nodes_write_over_dying_operands() -> None:
    b = Builder()
    y = b.node("Softmax", b.input(64, 64))
    y = b.node("Add", b.node("Exp", y), b.node("CumSum", b.node("Exp", y), b.const(0, "int64")))
    graph = fuse_operators(b.graph(b.node("CumSum", y, b.const(0, "int64"))))
    plan = plan_memory(graph)
    add = next(n for n in graph.nodes if n.op == "Fused" and n.attrs["body"].nodes[-1].op == "Add")
    assert plan.slots[add.output] in [plan.slots[i] for i in add.inputs]
    check_memory(graph, plan)


@pytest.mark.parametrize("op", ["MatMul", "Softmax", "Transpose"])
def test_others_do_not(op: str) -> None:
    b = Builder()
    y = b.node("Softmax", b.input(8, 8))
    extra = {"MatMul": (b.weight(8, 8),)}.get(op, ())
    y = b.node(op, y, *extra)
    graph = fuse_operators(b.graph(b.node("Softmax", y)))
    plan = plan_memory(graph)
    assert plan.slots[graph.nodes[0].output] != plan.slots[graph.nodes[1].output]
    check_memory(graph, plan)


def test_an_operand_read_twice_in_different_ways_is_not_overwritten() -> None:
    """x + transpose(x): element (i, j) needs (j, i), which may have been overwritten."""
    b = Builder()
    x = b.node("Softmax", b.input(8, 8))
    graph = fuse_operators(b.graph(b.node("Softmax", b.node("Add", x, b.node("Transpose", x, perm=(1, 0)))), x))
    check_memory(graph, plan_memory(graph))
    b = Builder()
    x = b.node("Softmax", b.input(8, 8))
    y = b.node("Add", x, b.node("Transpose", x, perm=(1, 0)))
    graph = fuse_operators(b.graph(b.node("CumSum", y, b.const(0, "int64"))))
    plan = plan_memory(graph)
    assert plan.slots[graph.nodes[0].output] != plan.slots[graph.nodes[1].output]


def test_storage_read_under_two_types_is_not_overwritten() -> None:
    """y = x + view(x): the checker allows writing over one operand of the output's type, not over another beside it."""
    b = Builder()
    x = b.node("Softmax", b.input(8, 8))
    y = b.node("Add", x, b.node("Reshape", x, b.ints(1, 8, 8)))
    graph = fuse_operators(b.graph(b.node("CumSum", y, b.const(0, "int64"))))
    plan = plan_memory(graph)
    check_memory(graph, plan)
    assert plan.slots[y] != plan.slots[x]


def halos(n: int = 6) -> Graph:
    b = Builder()
    y = b.conv(b.input(1, 8, 8, 8), 8, 3)
    for _ in range(n):
        y = b.conv(b.node("Relu", y), 8, 3)
    y = b.node("MaxPool", y, kernel_shape=(2, 2))
    for _ in range(n):
        y = b.conv(y, 16, 3)
    return fuse_operators(plan_layouts(b.graph(b.node("Softmax", y)), conv_options, conversion_us=0.01))


def test_halo_storage_is_shared_among_equals_only_and_cleared() -> None:
    graph = halos()
    plan = plan_memory(graph)
    check_memory(graph, plan)
    by_offset: dict[int, set[object]] = {}
    for value, slot in plan.slots.items():
        if slot.segment == "arena" and graph.types[value].layout.has_halo:
            by_offset.setdefault(slot.offset, set()).add(halo_geometry(graph.types[value]))
    assert len(by_offset) < sum(graph.types[v].layout.has_halo for v in plan.slots)
    assert all(len(kinds) == 1 for kinds in by_offset.values())
    assert sorted(offset for offset, _ in plan.zero) == sorted(by_offset)


@pytest.mark.parametrize("shape, layout, equal", [
    ((1, 32, 6, 6), "NCHW8c+h1", True),             # more planes of the same kind
    ((2, 8, 6, 6), "NCHW8c+h1", True),
    ((1, 16, 6, 7), "NCHW8c+h1", False),
    ((1, 16, 4, 4), "NCHW8c+h2", False),            # planes of the same size, but another border
    ((1, 16, 6, 6), "NCHW16c+h1", False),
])
def test_halo_geometry(shape: tuple[int, ...], layout: str, equal: bool) -> None:
    """Equal geometry: the bytes that one tensor's interior writes are never the other's halo."""
    one = TensorType((1, 16, 6, 6), "float32", Layout.parse("NCHW8c+h1"))
    other = TensorType(shape, "float32", Layout.parse(layout))
    assert (halo_geometry(one) == halo_geometry(other)) is equal
    inside = [t.layout.pack(np.ones(t.shape, "float32")).reshape(-1) for t in (one, other)]
    both = min(map(len, inside))
    assert np.array_equal(inside[0][:both], inside[1][:both]) is equal


def test_inputs_outputs_and_weights() -> None:
    b = Builder()
    x, w = b.input(4, 4), b.weight(4, 4, name="w")
    y = b.node("MatMul", b.node("MatMul", x, b.weight(4, 4, name="first")), w)
    graph = fuse_operators(b.graph(y, b.node("MatMul", y, w)))
    plan = plan_memory(graph)
    assert plan.slots["x0"] == Slot("input", 0)
    assert [plan.slots[o] for o in graph.outputs] == [Slot("output", 0), Slot("output", 1)]
    assert [(p.name, p.offset, p.size_bytes) for p in plan.weights] == [("first", 0, 64), ("w", 64, 64)]
    assert plan.weights_bytes == 128
    check_memory(graph, plan)


def test_packed_weights_have_their_physical_size() -> None:
    b = Builder()
    y = b.conv(b.input(1, 8, 8, 8), 8, 3)
    graph = b.graph(y)
    name = graph.nodes[0].inputs[1]
    padded = graph.edit({}, types={name: graph.types[name].with_layout(Layout.parse("OIHW16o"))})
    weights = {w.name: w.size_bytes for w in plan_memory(padded).weights}
    assert weights[name] == 16 * 8 * 9 * 4


def scan() -> Graph:
    inner = Builder()
    h, p = inner.input(2, 64, name="h"), inner.input(2, 64, name="p")
    made = inner.node("Add", inner.node("MatMul", h, inner.weight(64, 64, name="r")), p)
    body = inner.graph(inner.node("Tanh", inner.node("MatMul", made, inner.weight(64, 64, name="s"))))
    b = Builder()
    x = b.node("Softmax", b.input(3, 2, 64))
    (last,) = b.node("Scan", b.input(2, 64), x, out=("last",), body=body, num_scan_inputs=1, captures=0)
    return run_passes(b.graph(b.node("Softmax", b.node("MatMul", last, b.weight(64, 8, name="after")))), FUSION)


def test_bodies_have_their_own_region_and_weights_after_their_node() -> None:
    graph = scan()
    plan = plan_memory(graph)
    check_memory(graph, plan)
    (body,) = plan.bodies.values()
    assert body.arena_bytes > 0 and body.arena_base % 64 == 0
    assert [w.name for w in plan.weights] == ["r", "s", "after"]
    assert body.slots["s"] == Slot("weights", 2 * 64 * 32 * 4) and "weights" not in {plan.slots["x0"].segment}
    assert [w.body for w in plan.weights] == ["last.body/", "last.body/", ""]


def workspace(node: Node) -> Sequence[int]:
    """Some nodes need scratch memory, of sizes that are no multiple of a cache line."""
    return (100, 4000) if len(node.inputs) > 1 else (12,)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_graphs(max_nodes=24))
def test_random_graphs(graph: Graph) -> None:
    after = run_passes(graph, (*PASSES, planning_layouts(conv_options), *FUSION))
    plan = plan_memory(after, workspace)
    check_memory(after, plan, workspace)
    arena = [v for v, s in plan.slots.items() if s.segment == "arena"]
    scratch = sum(-(-n // 64) * 64 for node in after.nodes for n in workspace(node))
    assert plan.arena_bytes <= sum(size_bytes(after.types[v]) + 64 for v in arena) + scratch


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_checker_finds_values_that_are_moved_onto_live_ones(data: st.DataObject) -> None:
    """In a chain every value is alive together with the next: putting one where its neighbour lies is always wrong."""
    graph = chain(6)
    plan = plan_memory(graph)
    values = [n.output for n in graph.nodes[:-1]]
    n = data.draw(st.integers(1, len(values) - 1))
    shift = data.draw(st.sampled_from([0, 64, 1024]))
    wrong = Slot("arena", plan.slots[values[n - 1]].offset + shift)
    damaged = replace(plan, slots={**plan.slots, values[n]: wrong}, arena_bytes=plan.arena_bytes + 4096)
    with pytest.raises(InternalError, match=r"overwritten|overlaps"):
        check_memory(graph, damaged)


DAMAGE: dict[str, tuple[Callable[[], Graph], Callable[[Graph, MemoryPlan], MemoryPlan], str]] = {
    "unaligned": (chain, lambda g, p: replace(p, slots={**p.slots, g.nodes[0].output: Slot("arena", 4)}), "not aligned"),
    "outside": (chain, lambda g, p: replace(p, arena_bytes=p.arena_bytes - 64), "not inside"),
    "wrong_output": (chain, lambda g, p: replace(p, slots={**p.slots, g.outputs[0]: Slot("output", 1)}), "lies in"),
    "no_place": (chain, lambda g, p: replace(p, slots={k: s for k, s in p.slots.items() if k != "x0"}), "has no place"),
    "not_cleared": (halos, lambda g, p: replace(p, zero=()), "never cleared"),
    "weights": (chain, lambda g, p: replace(p, weights=p.weights[::-1]), "overlap"),
    "short_weights": (chain, lambda g, p: replace(p, weights_bytes=64), "beyond"),
    "workspace": (chain, lambda g, p: replace(p, workspace={g.nodes[0].output: (0,)}), "workspace buffers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_the_checker_finds(name: str) -> None:
    build, damage, message = DAMAGE[name]
    graph = build()
    plan = plan_memory(graph)
    check_memory(graph, plan)
    with pytest.raises(InternalError, match=message):
        check_memory(graph, damage(graph, plan))


def test_the_checker_finds_plain_values_in_a_halo() -> None:
    graph = halos()
    plan = plan_memory(graph)
    plain = [v for v, s in plan.slots.items() if s.segment == "arena" and not graph.types[v].layout.has_halo]
    with pytest.raises(InternalError, match=r"halo must stay zero|shares storage"):
        check_memory(graph, replace(plan, slots={**plan.slots, plain[-1]: Slot("arena", plan.zero[0][0])}))


def branches(*channels: int, batch: int = 1) -> Graph:
    """Two convolutions joined, joined with a third, and read."""
    b = Builder()
    x = b.input(batch, 4, 4, 4)
    first = b.node("Concat", b.conv(x, channels[0]), b.conv(x, channels[1]), axis=1, out="first")
    both = b.node("Concat", first, b.conv(b.node("Relu", first), channels[2]), axis=1, out="both")
    return fuse_operators(b.graph(b.node("Add", b.conv(both, 8), b.conv(first, 8))))


def test_parts_of_a_concat_lie_in_it() -> None:
    graph = branches(4, 8, 4)
    plan = plan_memory(graph)
    check_memory(graph, plan)
    at = plan.slots["both"].offset
    assert plan.slots["first"].offset == at
    assert [plan.slots[i].offset - at for n in graph.nodes if n.op == "Concat" for i in n.inputs] == [0, 4 * 64, 0, 12 * 64]


@pytest.mark.parametrize("graph", [branches(4, 8, 4, batch=2), fuse_operators(branches(1, 2, 3))], ids=["batch", "fits"])
def test_concat_is_a_kernel_unless_its_axis_is_outermost(graph: Graph) -> None:
    plan = plan_memory(graph)
    check_memory(graph, plan)
    views = [n for n in graph.nodes if n.op == "Concat"]
    assert len(views) == (0 if graph.types["both"].shape[0] == 2 else 2)


def concat_of(build: Callable[[Builder], str]) -> Graph:
    b = Builder()
    return fuse_operators(b.graph(b.node("Softmax", build(b))))


KERNELS: dict[str, Callable[[Builder], str]] = {
    "unaligned": lambda b: b.node("Concat", b.node("Relu", b.input(5)), b.node("Exp", b.input(6)), axis=0),
    "graph_input": lambda b: b.node("Concat", b.input(16), b.node("Exp", b.input(16)), axis=0),
    "twice": lambda b: b.node("Concat", *[b.node("CumSum", b.input(16), b.const(0, "int64"))] * 2, axis=0),
    "inner_axis": lambda b: b.node("Concat", b.node("Relu", b.input(2, 16)), b.node("Exp", b.input(2, 16)), axis=1),
}


@pytest.mark.parametrize("name", KERNELS)
def test_concat_that_must_copy(name: str) -> None:
    graph = concat_of(KERNELS[name])
    assert not [n for n in graph.nodes if n.op == "Concat"]
    check_memory(graph, plan_memory(graph))


def test_a_part_of_two_concats_is_copied_once() -> None:
    b = Builder()
    parts = [b.node("CumSum", b.input(16), b.const(0, "int64")) for _ in range(3)]
    left, right = b.node("Concat", parts[0], parts[1], axis=0), b.node("Concat", parts[1], parts[2], axis=0)
    graph = fuse_operators(b.graph(b.node("MatMul", left, right)))
    assert [n.op for n in graph.nodes].count("Concat") == 1
    check_memory(graph, plan_memory(graph))


def test_the_checker_finds_a_part_outside_its_concat() -> None:
    graph = branches(4, 8, 4)
    plan = plan_memory(graph)
    part = next(n for n in graph.nodes if n.op == "Concat").inputs[1]
    moved = Slot("arena", plan.arena_bytes)
    damaged = replace(plan, slots={**plan.slots, part: moved}, arena_bytes=plan.arena_bytes + 4096)
    with pytest.raises(InternalError, match="does not lie in its part"):
        check_memory(graph, damaged)


def test_a_constant_seen_otherwise_lies_where_the_constant_does() -> None:
    """Usually folded; a plan must not depend on it."""
    b = Builder()
    turned = b.node("Reshape", b.weight(2, 3, 4), b.ints(6, 4))
    graph = fuse_operators(b.graph(b.node("Add", b.input(6, 4), turned)))
    plan = plan_memory(graph)
    assert plan.slots[turned] == plan.slots[next(n for n in graph.nodes if n.output == turned).inputs[0]]
    check_memory(graph, plan)
