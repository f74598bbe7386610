"""kernels/alternatives.py: the ways to compute heavy nodes, and what measured costs make of a graph: against every
combination of choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pass_graphs import Builder, assert_same, ops

from toolchain.graph.ir import Graph
from toolchain.graph.passes import choose_algorithms, plan_layouts
from toolchain.graph.passes.fuse_operators import behind
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.alternatives import (
    alternatives,
    cheapest_sizes,
    choosing_by_costs,
    fused_alternative,
    joint_problem,
    measured_options,
    node_key,
    priced,
)
from toolchain.targets.presets import PRESETS
from toolchain.tasks.optimize import optimize_graph, prepare_graph, workload_of

TARGET = PRESETS["x86-64-v3"]
UNIT = {"strides": (1, 1), "dilations": (1, 1), "group": 1}


def chain(*layers: tuple[int, int]) -> Graph:
    """Convolutions of (channels, kernel) with a Relu behind each, and a sum with the first that fits."""
    b = Builder()
    y = x = b.node("Relu", b.conv(b.input(1, 8, 12, 12), layers[0][0], layers[0][1], **UNIT))
    for channels, kernel in layers[1:]:
        y = b.node("Relu", b.conv(y, channels, kernel, **UNIT))
        y = b.node("Add", y, x) if b.types[y] == b.types[x] else y
    return prepare_graph(b.graph(b.node("Softmax", y)), TARGET)


def heavy(graph: Graph) -> dict[str, list[str]]:
    """Names of alternatives by node key."""
    return {node_key(n, graph): [a.name for a in alternatives(n, graph, TARGET)] for n in graph.nodes if n.op == "Conv"}


def test_every_way_has_a_name_and_a_kernel_of_its_own() -> None:
    graph = chain((16, 3))
    (conv,) = (n for n in graph.nodes if n.op == "Conv")
    found = alternatives(conv, graph, TARGET)
    assert [a.name for a in found] == [
        "direct:NCHW:NCHW", "direct:NCHW+h1:NCHW", "direct:NCHW8c+h1:NCHW8c", "winograd4:NCHW8c+h1:NCHW8c",
        "winograd2:NCHW8c+h1:NCHW8c"]
    assert [a.m for a in found] == [0, 0, 0, 4, 2] and all(a.option.cost > 0 and a.weights == (1, 2) for a in found)
    assert len({workload_of(a.body).key for a in found}) == len(found)


@pytest.mark.parametrize("fast", range(1, 5))
def test_what_is_measured_is_the_kernel_of_the_network_with_all_that_fuses(fast: int) -> None:
    """Relu, and a sum with something of the same layout: whichever way is chosen, a network has exactly that kernel."""
    graph = chain((16, 3), (16, 3))
    after = behind(graph)
    one = [n for n in graph.nodes if n.op == "Conv"][-1]
    found = alternatives(one, graph, TARGET)
    costs = {node_key(n, graph): {a.name: 1.0 if a.name.partition(":")[2] == found[fast].name.partition(":")[2]
                                  and a.m == found[fast].m else 1e4 for a in alternatives(n, graph, TARGET)}
             for n in graph.nodes if n.op == "Conv"}
    body, weights = fused_alternative(found[fast], after[one], graph)
    assert [n.op for n in body.nodes][1:] == ["Relu", "Add"] and [n.op for n in after[one]] == ["Relu", "Add"]
    assert weights == (1, 2) and len(body.inputs) == 3              # what is added is what the convolution reads
    assert workload_of(body).key in optimize_graph(graph, TARGET, costs)[1]


@pytest.mark.parametrize("fast", range(5))
def test_the_body_measured_is_the_kernel_a_network_gets(fast: int) -> None:
    """Where nothing is fused to it."""
    b = Builder()
    graph = prepare_graph(b.graph(b.conv(b.conv(b.input(1, 16, 12, 12), 16, 3, **UNIT), 16, 3, **UNIT)), TARGET)
    conv = graph.nodes[-1]
    found = alternatives(conv, graph, TARGET)
    costs = {node_key(conv, graph): {a.name: 1.0 if a is found[fast] else 1e5 for a in found}}
    assert workload_of(found[fast].body).key in optimize_graph(graph, TARGET, costs)[1]


def test_what_needs_constants_to_be_built_is_not_weighed() -> None:
    b = Builder()
    sizes = b.ints(1, 8, 24, 24)
    graph = b.graph(b.node("Resize", b.input(1, 8, 12, 12), "", "", sizes))
    assert alternatives(graph.nodes[0], graph, TARGET) == ()
    assert measured_options(TARGET, {"another": {"direct": 1.0}})(graph.nodes[0], graph)        # Target facts decide


def test_equal_nodes_share_a_key_and_others_do_not() -> None:
    b = Builder()
    x = b.input(1, 8, 12, 12)
    nodes = b.graph(b.conv(b.conv(b.conv(x, 8, 3, **UNIT), 8, 3, **UNIT), 8, 1, **UNIT))
    first, second, third = (node_key(n, nodes) for n in nodes.nodes)
    assert first == second != third
    computed = Builder()
    w = computed.node("Relu", computed.input(8, 8, 3, 3))
    x = computed.input(1, 8, 12, 12)
    other = computed.graph(computed.node("Conv", x, w, computed.weight(8), **nodes.nodes[0].attrs))
    assert node_key(other.nodes[-1], other) != first            # the same types, but its weights are no constants


def test_what_was_not_measured_is_on_the_scale_of_what_was() -> None:
    graph = chain((16, 3))
    found = alternatives(next(n for n in graph.nodes if n.op == "Conv"), graph, TARGET)
    us = {found[0].name: 10 * found[0].option.cost, found[3].name: 40 * found[3].option.cost}
    costs = [option.cost for option in priced(found, us)]
    assert costs[0] == us[found[0].name] and costs[3] == us[found[3].name]
    assert costs[1] == pytest.approx(20 * found[1].option.cost)
    assert [option.cost for option in priced(found, {})] == [a.option.cost for a in found]


def test_without_costs_nothing_differs() -> None:
    graph = chain((16, 3), (32, 1), (16, 3))
    plain = choose_algorithms(graph, algorithms(TARGET))
    assert ops(choosing_by_costs(TARGET, {})(graph)) == ops(plain)
    assert ops(choosing_by_costs(TARGET, {"no node": {"direct": 1.0}})(graph)) == ops(plain)


def test_conversions_may_outweigh_the_faster_algorithm() -> None:
    """Alone Winograd's algorithm is faster; between plain neighbours its blocked layouts are paid for twice."""
    b = Builder()
    y = b.conv(b.node("Softmax", b.input(1, 16, 40, 40)), 16, 3, **UNIT)
    graph = prepare_graph(b.graph(b.node("Softmax", y)), TARGET)
    conv = next(n for n in graph.nodes if n.op == "Conv")
    names = [a.name for a in alternatives(conv, graph, TARGET)]

    def chosen(winograd_us: float) -> list[str]:
        us = {name: winograd_us if name.startswith("winograd4") else 1e4 for name in names}
        us["direct:NCHW:NCHW"] = 100.0
        by = {node_key(conv, graph): us}
        return ops(plan_layouts(choosing_by_costs(TARGET, by)(graph), measured_options(TARGET, by)))
    assert chosen(95.0) == ["Softmax", "Conv", "Softmax"]
    assert chosen(10.0) == ["Softmax", "Layout", "WinogradConv", "Layout", "Softmax"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from((8, 16)), st.sampled_from((1, 3))), min_size=1, max_size=3), st.data())
def test_costs_decide_as_the_best_of_all_combinations(layers: list[tuple[int, int]], data: st.DataObject) -> None:
    """2 % are allowed for the preference of late conversions."""
    graph = chain(*layers)
    costs = {key: {name: data.draw(st.floats(1, 60)) for name in names} for key, names in heavy(graph).items()}
    found, problem = joint_problem(graph, TARGET, costs)
    assume(np.prod([len(a) for a in problem.alternatives.values()], dtype=float) <= 20_000)
    everything = [dict(zip(problem.alternatives, choice))
                  for choice in itertools.product(*(range(len(a)) for a in problem.alternatives.values()))]
    best = min(map(problem.cost, everything))
    sizes = cheapest_sizes(graph, TARGET, costs)
    so = [c for c in everything if all(ways[c[node]].m == sizes[node.output] for node, ways in found.items())]
    assert min(map(problem.cost, so)) <= 1.02 * best + 1e-9

    after = choosing_by_costs(TARGET, costs)(graph)
    assert [n.attrs.get("m", 0) for n in after.nodes if n.op in ("Conv", "WinogradConv")] == [
        sizes[n.output] for n in graph.nodes if n.op == "Conv"]
    assert_same(graph, plan_layouts(after, measured_options(TARGET, costs)), tolerance=1e-4)
