"""The ways to compute a heavy node, and which of them a whole graph takes once their times are known.

    Conv %x %w    direct:NCHW:NCHW    direct:NCHW16c+h1:NCHW16c    winograd4:NCHW16c+h(...):NCHW16c       (Alternative)

By default Target facts decide: the algorithm of each convolution (algorithms.py), then all layouts (layouts.py). `tc tune`
measures alternatives, and with its costs both are decided at once: a convolution that is faster by Winograd's algorithm only
in blocked layouts may not be worth the conversions around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from toolchain.core.digest import digest_bytes
from toolchain.core.layout import Layout, TensorType
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.canonical import canonical
from toolchain.graph.passes.choose_algorithms import choose_algorithms, taps_of, winograd_form
from toolchain.graph.passes.fuse_operators import fuse_operators
from toolchain.graph.passes.layout_options import ANY, LayoutOption, Options
from toolchain.graph.passes.plan_layouts import BYTES_PER_US, CONVERSION_US, LayoutProblem
from toolchain.graph.passes.plan_layouts import alternatives as options_of_all
from toolchain.kernels.algorithms import algorithms, weigh
from toolchain.kernels.layouts import RULES, layout_options

Costs: TypeAlias = Mapping[str, Mapping[str, float]]
"""Measured microseconds: by `node_key`, then by name of the alternative."""

EQUAL = 1e-6            # of what is promised, which decides where as much was measured: less than any difference
CONVOLUTIONS = ("Conv", "ConvTranspose")        # what there are algorithms for


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """One way to compute a node. name: "winograd4:NCHW16c+h1:NCHW16c", the algorithm and the layouts of what is no constant,
    in and out; unique for a node, it stands in records. m: Winograd's tile size, 0: direct. node, types: the operator that
    computes it, and all it reads and writes. option: layouts, and the cost that Target facts promise. weights: which inputs
    of `body` are constants of the network."""

    name: str
    m: int
    node: Node
    types: Mapping[str, TensorType]
    option: LayoutOption
    weights: tuple[int, ...] = ()

    @property
    def body(self) -> Graph:
        """The kernel, as a fused group of this operator alone."""
        inputs = tuple(dict.fromkeys(i for i in self.node.inputs if i))
        outputs = tuple(o for o in self.node.outputs if o)
        pairs = zip((*self.node.inputs, *self.node.outputs), (*self.option.inputs, *self.option.outputs), strict=True)
        types = {v: self.types[v] if layout is None else self.types[v].with_layout(layout) for v, layout in pairs if v}
        return Graph("body", (self.node,), inputs, outputs, types)


def fused_alternative(a: Alternative, behind: Sequence[Node], graph: Graph) -> tuple[Graph, tuple[int, ...]]:
    """The kernel a network has of it: with the operators behind it in one group (`fuse_operators.behind`), all that is of
    their shape in the layout it writes. And which inputs are constants. The operator alone, where they do not fuse so."""
    whole = a.body
    if not behind:
        return whole, a.weights
    shape, layout = whole.types[a.node.output].shape, whole.types[a.node.output].layout
    values = {v: graph.types[v] for n in behind for v in (*n.inputs, *n.outputs) if v and v not in whole.types}
    types = {v: t.with_layout(layout) if t.shape == shape else t for v, t in values.items()} | whole.types
    params = {v: graph.params[v] for v in values if graph.is_constant(v)}
    made = {v for n in (a.node, *behind) for v in n.outputs}
    read = dict.fromkeys((*whole.inputs, *(v for n in behind for v in n.inputs if v and v not in made and v not in params)))
    together = Graph(graph.name, (a.node, *behind), tuple(read), behind[-1].outputs, types, params)
    fused, *more = fuse_operators(together).nodes
    if more or fused.op != "Fused":
        return whole, a.weights
    constants = {whole.inputs[n] for n in a.weights} | set(params)
    return fused.attrs["body"], tuple(n for n, v in enumerate(fused.inputs) if v in constants)


def node_key(node: Node, graph: Graph) -> str:
    """What nodes with the same alternatives share: operator, attributes, types, and which inputs are constants."""
    inputs = tuple(dict.fromkeys(i for i in node.inputs if i))
    outputs = tuple(o for o in node.outputs if o)
    types = {v: graph.types[v] for v in (*inputs, *outputs)}
    _, text = canonical(Graph("body", (node,), inputs, outputs, types))
    constants = [n for n, name in enumerate(inputs) if graph.is_constant(name)]
    return digest_bytes(f"{text}{constants}".encode())[:32]


def alternatives(node: Node, graph: Graph, target: Target) -> tuple[Alternative, ...]:
    """Every way to compute a node that `layout_options` knows ways for; of a graph without layouts and algorithms yet. None
    for what reads constants as it is built (Resize its sizes): those of convolutions are weights."""
    if node.op not in CONVOLUTIONS and any(map(graph.is_constant, node.inputs)):
        return ()
    options = layout_options(target)
    found = tuple(options(node, graph))
    if not found or found == ANY:
        return ()
    types = {v: graph.types[v] for v in (*node.inputs, *node.outputs) if v}
    made = [_alternative(node, types, option, graph) for option in found]
    if node.op in CONVOLUTIONS and taps_of(node, graph.types) and graph.is_constant(node.inputs[1]):
        direct, cycles = weigh(node, graph, target)
        cheapest = min(option.cost for option in found)
        for m, cost in cycles.items():
            other, small = _by_winograd(node, graph, m)
            (option,) = options(other, small)
            option = replace(option, cost=cheapest * cost / direct)
            made.append(_alternative(other, small.types, option, small, m))
    assert len({a.name for a in made}) == len(made), [a.name for a in made]
    return tuple(made)


def _by_winograd(node: Node, graph: Graph, m: int) -> tuple[Node, Graph]:
    """The operator a convolution would become, in a graph of its own; its transformed weights take no memory."""
    u = graph.fresh("u")
    other, shape = winograd_form(node, graph.types, u, m)
    kind = TensorType.plain(shape, graph.types[node.output].dtype)
    types = {v: graph.types[v] for v in (*other.inputs, *other.outputs) if v and v != u} | {u: kind}
    constants = {v: graph.params[v] for v in other.inputs if graph.is_constant(v)}
    params = constants | {u: np.broadcast_to(np.zeros((), np.float32), shape)}
    return other, Graph(node.name, (other,), tuple(v for v in other.inputs if v and v not in params), other.outputs, types,
                        params)


def _alternative(
    node: Node, types: Mapping[str, TensorType], option: LayoutOption, graph: Graph, m: int = 0,
) -> Alternative:
    def layouts(values: Sequence[str], chosen: Sequence[Layout | None]) -> str:
        return ",".join(str(layout or types[v].layout) for v, layout in zip(values, chosen)
                        if v and not graph.is_constant(v))
    algorithm = f"winograd{m}" if m else "direct"
    name = f"{algorithm}:{layouts(node.inputs, option.inputs)}:{layouts(node.outputs, option.outputs)}"
    inputs = dict.fromkeys(i for i in node.inputs if i)
    return Alternative(name, m, node, types, option, tuple(n for n, i in enumerate(inputs) if graph.is_constant(i)))


def priced(found: Sequence[Alternative], us: Mapping[str, float]) -> list[LayoutOption]:
    """Their options at measured costs; what was not measured costs what Target facts promise, times what the measured ones
    took (in the geometric mean) for what was promised of them: one node's costs have one scale."""
    ratios = [us[a.name] / a.option.cost for a in found if a.name in us and a.option.cost > 0]
    scale = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0
    return [replace(a.option, cost=us.get(a.name, a.option.cost * scale)) for a in found]


# -- decisions over a whole graph -----------------------------------------------------------------------------------------


def measured(node: Node, graph: Graph, costs: Costs) -> Mapping[str, float]:
    """What is known of a node, by alternative; empty: nothing."""
    return costs.get(node_key(node, graph), {}) if costs and node.op in RULES else {}


def measured_options(target: Target, costs: Costs) -> Options:
    """`layout_options` with what was measured of direct alternatives in place of what Target facts promise."""
    by_facts = layout_options(target)

    def options(node: Node, graph: Graph) -> Sequence[LayoutOption]:
        us = measured(node, graph, costs)
        return priced(alternatives(node, graph, target), us)[:len(by_facts(node, graph))] if us else by_facts(node, graph)
    return options


def choosing_by_costs(target: Target, costs: Costs) -> Callable[[Graph], Graph]:
    """`choose_algorithms`, as a pass, where measured costs of alternatives and of conversions between layouts decide."""
    def choose_algorithms_by_costs(graph: Graph) -> Graph:
        sizes, by_facts = cheapest_sizes(graph, target, costs), algorithms(target)
        return choose_algorithms(graph, lambda node, g: sizes[node.output] if node.output in sizes else by_facts(node, g))
    choose_algorithms_by_costs.__name__ = "choose_algorithms"
    choose_algorithms_by_costs.__doc__ = choose_algorithms.__doc__
    return choose_algorithms_by_costs


def cheapest_sizes(graph: Graph, target: Target, costs: Costs) -> dict[str, int]:
    """Winograd's tile sizes (0: direct), by the output of each convolution that was measured, in the choice of algorithms
    and layouts that makes the graph's cost least. What was not measured keeps the algorithm that Target facts give it."""
    found, problem = joint_problem(graph, target, costs)
    choice = problem.improve(problem.solve())
    return {node.output: ways[choice[node]].m for node, ways in found.items() if measured(node, graph, costs)}


def joint_problem(
    graph: Graph, target: Target, costs: Costs, bytes_per_us: float = BYTES_PER_US, conversion_us: float = CONVERSION_US,
) -> tuple[dict[Node, tuple[Alternative, ...]], LayoutProblem]:
    """Alternatives of all convolutions, and the problem of choosing one for every node of the graph."""
    by_facts, direct = layout_options(target), algorithms(target)
    found: dict[Node, tuple[Alternative, ...]] = {}

    def options(node: Node, g: Graph) -> Sequence[LayoutOption]:
        us = measured(node, g, costs)
        if node.op not in CONVOLUTIONS or not (ways := alternatives(node, g, target)):
            return priced(alternatives(node, g, target), us) if us else by_facts(node, g)
        if not us:
            m = direct(node, g) if any(a.m for a in ways) else 0
            ways = tuple(a for a in ways if a.m == m)
        found[node] = ways
        return [replace(o, cost=o.cost + EQUAL * a.option.cost) for o, a in zip(priced(ways, us), ways, strict=True)]
    ways_of_all = options_of_all(graph, options)
    return found, LayoutProblem(graph, ways_of_all, bytes_per_us, conversion_us)
