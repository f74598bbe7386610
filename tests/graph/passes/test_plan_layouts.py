"""plan_layouts: texts of small graphs, the solver against exhaustive search, halos, and where layouts must not go."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layout_fakes import BLOCKED, BLOCKED_HALO, conv_options
from pass_graphs import Builder, assert_same, ops, random_graphs

from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes import ANY, LayoutOption, plan_layouts
from toolchain.graph.passes.layout_options import base, broadcast_layout
from toolchain.graph.passes.pbqp import Problem
from toolchain.graph.passes.plan_layouts import LayoutProblem, alternatives
from toolchain.graph.text import to_text


def layouts(graph: Graph) -> dict[str, str]:
    """Layouts of computed values that are not plain."""
    return {o: str(graph.types[o].layout) for n in graph.nodes for o in n.outputs if not graph.types[o].layout.is_row_major}


def test_one_conversion_in_and_one_out(golden: Callable[[str], None]) -> None:
    b = Builder()
    y = b.node("Relu", b.conv(b.input(1, 8, 6, 6), 8, 3))
    y = b.node("Add", b.conv(y, 8, 3), y)
    graph = b.graph(b.node("Relu", y, out="y"))
    after = plan_layouts(graph, conv_options)
    assert_same(graph, after, tolerance=0)
    golden(to_text(after))


def test_conversions_are_shared_and_weights_are_free() -> None:
    b = Builder()
    x = b.node("Softmax", b.input(1, 16, 6, 6))
    graph = b.graph(b.node("Add", b.conv(x, 16), b.node("Add", b.conv(x, 16), b.conv(x, 16))))
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    assert ops(after).count("Layout") == 2                      # one in, one out
    packed = [n.inputs[1] for n in after.nodes if n.op == "Conv"]
    assert [str(after.types[w].layout) for w in packed] == ["OIHW8i8o"] * 3
    assert all(after.params[w].shape == (16, 16, 1, 1) for w in packed)


def test_stays_plain_when_conversions_cost_more() -> None:
    b = Builder()
    graph = b.graph(b.conv(b.node("Softmax", b.input(1, 8, 2, 2)), 8))
    assert plan_layouts(graph, conv_options, conversion_us=1e6) is graph


def test_nothing_to_choose() -> None:
    b = Builder()
    graph = b.graph(b.node("Relu", b.input(1, 8, 4, 4)))
    assert plan_layouts(graph, lambda node, g: ()) is graph


def test_halo_is_the_maximum_over_readers_and_lies_on_the_value_itself() -> None:
    b = Builder()
    x = b.node("Relu", b.conv(b.input(1, 8, 8, 8), 8))
    graph = b.graph(b.node("Add", b.conv(x, 8, 3), b.node("Add", b.conv(x, 8, 5), x)))
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    relu = next(n for n in after.nodes if n.op == "Relu")
    assert str(after.types[relu.output].layout) == "NCHW8c+h2"
    assert ops(after).count("Layout") == 2
    assert_same(graph, after, tolerance=0)


def test_tensors_of_one_spatial_shape_have_one_halo() -> None:
    b = Builder()
    y = b.conv(b.conv(b.conv(b.input(1, 8, 8, 8), 8), 16, 3), 8, 5)
    after = plan_layouts(b.graph(b.node("Softmax", y)), conv_options, conversion_us=0.01)
    assert sorted(found for found in layouts(after).values() if "+h" in found) == ["NCHW8c+h2", "NCHW8c+h2"]


def wish_halo(node: Node, graph: Graph) -> Sequence[LayoutOption]:
    """Convolutions on plain tensors with a halo of one."""
    if node.op == "CumSum":
        return (LayoutOption((None, None), (None,), 1.0, bare=True),)
    if node.op != "Conv":
        return ()
    halo = Layout.row_major(4).with_halo(((0, 0), (0, 0), (1, 1), (1, 1)))
    return (LayoutOption((halo,) + (None,) * (len(node.inputs) - 1), (None,), 1.0),)


def running_sum(b: Builder, x: str) -> str:
    return b.node("CumSum", x, b.const(3, "int64"))


@pytest.mark.parametrize("source", ["input", "view", "output", "loop", "bare", "bare reader", "loop's reader"])
def test_halo_needs_a_copy_where_the_value_cannot_have_one(source: str) -> None:
    """It has no storage of its own, or what makes or reads it knows no halos."""
    b = Builder()
    x = b.input(1, 8, 4, 4)
    outputs: tuple[str, ...] = ()
    if source == "view":
        x = b.node("Reshape", b.node("Relu", b.input(8, 16)), b.ints(1, 8, 4, 4))
    elif source == "output":
        x = b.node("Relu", x)
        outputs = (x,)
    elif source == "loop":
        inner = Builder()
        state = inner.input(1, 8, 4, 4, name="s")
        element = inner.input(1, 8, 4, 4, name="e")
        (x,) = b.node("Scan", x, b.input(2, 1, 8, 4, 4), out=("s",), captures=0, num_scan_inputs=1,
                      body=inner.graph(inner.node("Add", state, element)))
    elif source == "bare":
        x = running_sum(b, x)
    elif source == "bare reader":
        x = b.node("Relu", x)
        outputs = (running_sum(b, x),)
    elif source == "loop's reader":
        x = b.node("Relu", x)
        inner = Builder()
        state, element = inner.input(1, 8, 4, 4, name="s"), inner.input(1, 8, 4, 4, name="e")
        outputs = b.node("Scan", x, b.input(2, 1, 8, 4, 4), out=("t",), captures=0, num_scan_inputs=1,
                         body=inner.graph(inner.node("Add", state, element)))
    graph = b.graph(b.conv(x, 4, 3), b.conv(x, 4, 3), *outputs)
    after = plan_layouts(graph, wish_halo)
    assert ops(after).count("Layout") == 1
    copy = next(n for n in after.nodes if n.op == "Layout")
    assert after.types[x].layout.is_row_major and after.types[copy.output].layout.has_halo
    assert_same(graph, after, tolerance=0)


def test_outputs_stay_plain_and_keep_their_names() -> None:
    b = Builder()
    middle = b.node("Relu", b.conv(b.input(1, 8, 8, 8), 8), out="middle")
    graph = b.graph(b.node("Softmax", b.conv(middle, 8, 3), out="end"), middle)
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    assert all(after.types[o].layout.is_row_major for o in after.outputs)
    assert "NCHW8c+h1" in layouts(after).values()
    assert_same(graph, after, tolerance=0)


def test_concat_with_a_part_of_no_whole_blocks_is_plain() -> None:
    b = Builder()
    x = b.input(1, 8, 8, 8)
    graph = b.graph(b.node("Concat", b.conv(x, 8, 3), b.conv(x, 4, 3), axis=1))
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    concat = next(n for n in after.nodes if n.op == "Concat")
    assert all(after.types[i].layout.is_row_major for i in (*concat.inputs, concat.output))


def test_an_option_of_the_wrong_size_is_our_bug() -> None:
    b = Builder()
    graph = b.graph(b.conv(b.input(1, 8, 4, 4), 8))
    with pytest.raises(InternalError, match="an option of node 'n0'"):
        plan_layouts(graph, lambda node, g: (LayoutOption((None,), (None,), 0.0),))


def test_any_follows_its_data() -> None:
    b = Builder()
    pooled = b.node("MaxPool", b.conv(b.input(1, 8, 8, 8), 8, 3), kernel_shape=(2, 2))
    graph = b.graph(b.node("Softmax", b.conv(pooled, 8, 3)))
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    assert str(after.types[pooled].layout) == str(BLOCKED_HALO)
    plain = plan_layouts(graph, lambda n, g: () if n.op == "MaxPool" else conv_options(n, g), conversion_us=0.01)
    assert plain.types[pooled].layout.is_row_major and len(plain.nodes) == len(after.nodes) + 2


@pytest.mark.parametrize("shape, left", [
    ((1, 8, 1, 1), None),               # the same places as plain
    ((1, 8, 6, 1), "NCHW8c"),
    ((1, 1, 6, 6), None),
    ((2, 8, 6, 6), "NCHW8c"),
])
def test_broadcast_layout(shape: tuple[int, ...], left: str | None) -> None:
    found = broadcast_layout(BLOCKED, shape, (2, 8, 6, 6))
    assert (str(found) if found else None) == left


def test_base_ignores_halo_and_letters() -> None:
    assert base(BLOCKED_HALO) == base(BLOCKED) == base(Layout.parse("ABCD8b"))
    assert base(Layout.parse("NCHW+h2")) is base(None) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(random_graphs(max_nodes=7))
def test_choice_is_the_best_of_all(graph: Graph) -> None:
    """Against every combination; 2 % are allowed for the preference of late conversions."""
    problem = LayoutProblem(graph, alternatives(graph, conv_options), bytes_per_us=1000.0, conversion_us=0.1)
    found = problem.cost(problem.improve(problem.solve()))
    sizes = [range(len(a)) for a in problem.alternatives.values()]
    assume(np.prod([len(s) for s in sizes]) <= 5000)
    best = min(problem.cost(dict(zip(problem.alternatives, choice))) for choice in itertools.product(*sizes))
    assert found <= 1.02 * best + 1e-9


def test_conversions_come_late_in_elementwise_chains() -> None:
    """Two plain readers behind a chain: the chain stays with the convolution, one conversion serves both."""
    b = Builder()
    y = b.node("Tanh", b.node("Relu", b.conv(b.input(1, 8, 8, 8), 8)))
    graph = b.graph(b.node("Softmax", y), b.node("LogSoftmax", y))
    after = plan_layouts(graph, conv_options, conversion_us=0.01)
    assert ops(after) == ["Layout", "Conv", "Relu", "Tanh", "Layout", "Softmax", "LogSoftmax"]


def brute_force(vertices: list[list[float]], edges: dict[tuple[int, int], np.ndarray]) -> float:
    best = np.inf
    for choice in itertools.product(*(range(len(v)) for v in vertices)):
        cost = sum(v[c] for v, c in zip(vertices, choice)) + sum(m[choice[a], choice[b]] for (a, b), m in edges.items())
        best = min(best, cost)
    return float(best)


def random_problem(draw: st.DrawFn, dense: bool) -> tuple[list[list[float]], dict[tuple[int, int], np.ndarray]]:
    """Costs of vertices and edges. Not dense: part of a 2-tree, whose every minor has a vertex of degree two or less."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    vertices = [[float(c) for c in rng.integers(0, 20, rng.integers(1, 4))] for _ in range(draw(st.integers(1, 7)))]
    edges = {}
    cliques = [(0, 0)]
    for b in range(1, len(vertices)):
        pair = cliques[rng.integers(0, len(cliques))]           # a 2-tree grows by a vertex at both ends of an edge
        cliques += [(a, b) for a in pair]
        for a in {int(rng.integers(0, b)) for _ in range(5)} if dense else {*pair[:rng.integers(1, 3)]}:
            edges[a, b] = rng.integers(0, 20, (len(vertices[a]), len(vertices[b]))).astype(float)
    return vertices, edges


def problem_of(vertices: list[list[float]], edges: dict[tuple[int, int], np.ndarray]) -> Problem:
    problem = Problem()
    for v in vertices:
        problem.add_vertex(v)
    for (a, b), m in edges.items():
        problem.add_edge(a, b, m)
    return problem


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_pbqp_is_exact_when_vertices_reduce_to_degree_two(data: st.DataObject) -> None:
    vertices, edges = data.draw(st.composite(random_problem)(dense=False))
    problem, reference = problem_of(vertices, edges), problem_of(vertices, edges)      # solving one uses it up
    assert reference.cost(problem.solve()) == pytest.approx(brute_force(vertices, edges))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_pbqp_gives_a_valid_choice_for_dense_problems(data: st.DataObject) -> None:
    vertices, edges = data.draw(st.composite(random_problem)(dense=True))
    problem, reference = problem_of(vertices, edges), problem_of(vertices, edges)      # solving one uses it up
    choice = problem.solve()
    assert all(0 <= c < len(v) for c, v in zip(choice, vertices))
    worst = sum(max(v) for v in vertices) + sum(float(m.max()) for m in edges.values())
    assert brute_force(vertices, edges) <= reference.cost(choice) <= worst


def test_any_is_one_empty_option() -> None:
    assert len(ANY) == 1 and ANY[0].inputs == ()
