"""Choose the layout of every value of the graph at once, and insert the conversions that remain."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import info
from toolchain.graph.passes.layout_options import (
    ANY,
    BASE,
    LayoutOption,
    Options,
    base,
    is_elementwise,
    pass_through,
    without_halo,
)
from toolchain.graph.passes.pbqp import Problem
from toolchain.graph.passes.rewriting import used_only
from toolchain.graph.passes.views import could_be_view

BYTES_PER_US = 10_000.0     # a conversion reads and writes at about 10 GB/s: strided on one side, usually out of cache
LATE = 1.01                 # a conversion costs more before an elementwise node than behind: such a node joins its producer
NEVER = 1e15                # the cost of what cannot be
MAX_SHARED = 4              # layouts of one value whose sharing is modelled exactly: 2**4 sets of them
CONVERSION_US = 1.0         # and is one more operator to start


def plan_layouts(
    graph: Graph, options: Options, bytes_per_us: float = BYTES_PER_US, conversion_us: float = CONVERSION_US
) -> Graph:
    """Give every value the layout that makes the sum of node and conversion costs small; insert Layout nodes between.

        c = Conv(x, w); y = Relu(c)   ->   x' = Layout(x); c = Conv(x', w') NCHW16c; r = Relu(c) NCHW16c; y = Layout(r)

    `options(node, graph)` is asked once per node: ways to run it, ANY (it follows its data), or nothing: an elementwise
    node then follows its data, any other one is plain. Conversions of constants are free: the parameter gets a copy with
    the layout in its type (arrays stay logical, packing comes later). One Layout node serves all readers of a (value,
    layout). Graph inputs and outputs stay plain. Halos wished by readers are merged per side (over all tensors of one
    spatial shape, so that they can share storage), and given to the value itself, unless it is a graph input or output, a
    view, or made or read by control flow or a node that knows no halos: then to a copy.

    The choice is a partitioned Boolean quadratic problem (pbqp.py), then improved node by node. Needs: no layouts planned
    yet.
    """
    plan = LayoutProblem(graph, alternatives(graph, options), bytes_per_us, conversion_us)
    choice = plan.improve(plan.solve())
    if not any(_says_something(plan.alternatives[node][choice[node]]) for node in graph.nodes):
        return graph
    return _apply(graph, {node: plan.alternatives[node][choice[node]] for node in graph.nodes})


def _says_something(option: LayoutOption) -> bool:
    return any(layout is not None for layout in (*option.inputs, *option.outputs))


def alternatives(graph: Graph, options: Options) -> dict[Node, tuple[LayoutOption, ...]]:
    """At least one option per node; those of nodes that follow their data come from the layouts others propose."""
    given = {node: tuple(options(node, graph)) for node in graph.nodes}
    proposed: dict[int, dict[BASE, Layout]] = {}
    for node, found in given.items():
        for option in found if found != ANY else ():
            _check(node, option)
            for name, layout in zip((*node.inputs, *node.outputs), (*option.inputs, *option.outputs)):
                plain = without_halo(layout)
                if plain is not None and name and not graph.is_constant(name):
                    proposed.setdefault(len(plain.axes), {}).setdefault(base(plain), plain)
    result: dict[Node, tuple[LayoutOption, ...]] = {}
    for node, found in given.items():
        if found and found != ANY:
            result[node] = found
        elif found == ANY or (is_elementwise(node) and not could_be_view(node)):
            rank = len(graph.types[node.output].shape)
            result[node] = pass_through(node, graph, proposed.get(rank, {}).values())
        else:
            result[node] = (LayoutOption((None,) * len(node.inputs), (None,) * len(node.outputs), 0.0),)
    return result


def _check(node: Node, option: LayoutOption) -> None:
    if len(option.inputs) != len(node.inputs) or len(option.outputs) != len(node.outputs):
        raise InternalError(f"plan_layouts: an option of node {node.name!r} ({node.op}) has {len(option.inputs)} inputs and "
                            f"{len(option.outputs)} outputs, the node {len(node.inputs)} and {len(node.outputs)}")


Choice = dict[Node, int]


class LayoutProblem:
    """Alternatives of every node and what they cost together."""

    def __init__(
        self, graph: Graph, alternatives: dict[Node, tuple[LayoutOption, ...]], bytes_per_us: float, conversion_us: float
    ) -> None:
        self.graph, self.alternatives = graph, alternatives
        self.bytes_per_us, self.conversion_us = bytes_per_us, conversion_us
        self.inputs, self.outputs = set(graph.inputs), set(graph.outputs)
        self._sizes: dict[tuple[str, BASE], int] = {}
        self.makers = {out: (node, n) for node in graph.nodes for n, out in enumerate(node.outputs) if out}
        self.readers: dict[str, list[tuple[Node, int]]] = {}
        for node in graph.nodes:
            for n, name in enumerate(node.inputs):
                if name and not graph.is_constant(name):
                    self.readers.setdefault(name, []).append((node, n))

    def conversion(self, value: str, have: Layout | None, want: Layout | None) -> float:
        """Microseconds to make `value` in layout `want` from `have`."""
        if base(have) == base(want):
            fixed = value in self.inputs or value in self.outputs
            if not (fixed and want is not None and want.has_halo):
                return 0.0
        moved_bytes = self._bytes(value, have) + self._bytes(value, want)
        return self.conversion_us + moved_bytes / self.bytes_per_us

    def _bytes(self, value: str, layout: Layout | None) -> int:
        key = value, base(layout)
        if key not in self._sizes:
            kind = self.graph.types[value]
            elements = layout.size(kind.shape) if layout else math.prod(kind.shape)
            self._sizes[key] = elements * dtypes.itemsize(kind.dtype)
        return self._sizes[key]

    def solve(self) -> Choice:
        """The choice of least cost, exact where the problem reduces (pbqp.py)."""
        problem = Problem()
        vertex = {}
        for node, found in self.alternatives.items():
            vertex[node] = problem.add_vertex([o.cost + self._at_the_end(node, o) for o in found])
        for value, readers in self.readers.items():
            have: list[Layout | None] = [None]
            if value in self.makers:
                node, n = self.makers[value]
                maker, have = vertex[node], [o.outputs[n] for o in self.alternatives[node]]
            else:
                maker = problem.add_vertex([0.0])
            wants = [[o.inputs[k] for o in self.alternatives[reader]] for reader, k in readers]
            kinds = {self._kind(value, want): want for found in wants for want in found}
            if len(readers) > 1 and 1 < len(kinds) <= MAX_SHARED:
                self._add_shared(problem, value, maker, have, kinds, [vertex[reader] for reader, _ in readers], wants)
                continue
            for (reader, _), asked in zip(readers, wants):
                factor = LATE if is_elementwise(reader) else 1.0
                known = {self._kind(value, w): [factor * self.conversion(value, h, w) for h in have] for w in asked}
                costs = np.array([known[self._kind(value, w)] for w in asked]).T
                if costs.any():
                    problem.add_edge(maker, vertex[reader], costs)
        chosen = problem.solve()
        return {node: chosen[v] for node, v in vertex.items()}

    def _add_shared(
        self, problem: Problem, value: str, maker: int, have: list[Layout | None],
        kinds: dict[tuple[BASE, bool], Layout | None], readers: list[int], wants: list[list[Layout | None]],
    ) -> None:
        """A vertex between a value's maker and its readers, whose alternatives are the sets of layouts it is made in: what
        several readers want is paid once, and a reader finds only what was made."""
        made = [[k for n, k in enumerate(kinds) if bits >> n & 1] for bits in range(1, 2 ** len(kinds))]
        hub = problem.add_vertex([0.0] * len(made))
        paid = self._kind(value, None) if value in self.outputs else None
        price = {k: [0.0 if k == paid else self.conversion(value, h, want) for h in have] for k, want in kinds.items()}
        costs = [[sum(price[k][h] for k in found) for found in made] for h in range(len(have))]
        problem.add_edge(maker, hub, np.array(costs))
        for reader, found in zip(readers, wants):
            rows = {k: [0.0 if k in there else NEVER for there in made] for k in kinds}
            problem.add_edge(hub, reader, np.array([rows[self._kind(value, want)] for want in found]).T)

    def _kind(self, value: str, want: Layout | None) -> tuple[BASE, bool]:
        """What tells wishes for a value apart: the base, and the halo where the value cannot have one of its own."""
        fixed = value in self.inputs or value in self.outputs
        return base(want), fixed and want is not None and want.has_halo

    def _at_the_end(self, node: Node, option: LayoutOption) -> float:
        """Conversions to graph outputs."""
        made = zip(node.outputs, option.outputs)
        return sum(self.conversion(name, layout, None) for name, layout in made if name in self.outputs)

    def improve(self, choice: Choice, rounds: int = 3) -> Choice:
        """Change one node at a time while the cost around it falls: in order, so conversions move behind whole chains."""
        for _ in range(rounds):
            changed = False
            for node, found in self.alternatives.items():
                if len(found) == 1:
                    continue
                costs = []
                for n in range(len(found)):
                    choice[node], old = n, choice[node]
                    costs.append(self._cost_around(node, choice))
                    choice[node] = old
                best = int(np.argmin(costs))
                if costs[best] < costs[choice[node]] - 1e-9:
                    choice[node], changed = best, True
            if not changed:
                break
        return choice

    def cost(self, choice: Choice) -> float:
        """Microseconds of all nodes and conversions."""
        nodes = sum(found[choice[node]].cost for node, found in self.alternatives.items())
        return nodes + sum(self._value_cost(v, choice) for v in dict.fromkeys((*self.readers, *self.makers)))

    def _cost_around(self, node: Node, choice: Choice) -> float:
        read = dict.fromkeys(name for name in node.inputs if name and not self.graph.is_constant(name))
        before = sum(self._value_cost(name, choice) for name in read)
        after = sum(self._value_cost(name, choice) for name in node.outputs if name)
        return self.alternatives[node][choice[node]].cost + (LATE if is_elementwise(node) else 1.0) * before + after

    def _value_cost(self, value: str, choice: Choice) -> float:
        """All conversions of one value, each once."""
        have = None
        if value in self.makers:
            maker, n = self.makers[value]
            have = self.alternatives[maker][choice[maker]].outputs[n]
        wanted: dict[BASE, Layout | None] = {base(None): None} if value in self.outputs else {}
        for reader, k in self.readers.get(value, ()):
            want = self.alternatives[reader][choice[reader]].inputs[k]
            if base(want) not in wanted or (want is not None and want.has_halo):
                wanted[base(want)] = want
        return sum(self.conversion(value, have, want) for want in wanted.values())


@dataclass
class _Wish:
    """What the readers of one (value, base layout) want together."""

    layout: Layout
    readers: list[tuple[Node, int]] = field(default_factory=list)
    halo: list[tuple[int, int]] = field(default_factory=list)

    @property
    def merged(self) -> Layout:
        return self.layout.with_halo(self.halo)


def _apply(graph: Graph, chosen: dict[Node, LayoutOption]) -> Graph:
    """The graph in the chosen layouts: types, conversions before their first reader, packed parameters."""
    applied = _Applied(graph, chosen)
    applied.set_output_layouts()
    for (value, wanted), wish in _collect_wishes(graph, chosen).items():
        applied.fulfil(value, wanted, wish)
    applied.align_halos()
    return applied.rebuilt()


class _Applied:
    """The planned graph, being built."""

    def __init__(self, graph: Graph, chosen: dict[Node, LayoutOption]) -> None:
        self.graph, self.chosen = graph, chosen
        self.types, self.params = dict(graph.types), dict(graph.params)
        self.before: dict[Node, list[Node]] = {}            # conversions, by the node they precede
        self.after: dict[Node, list[Node]] = {}             # conversions to graph outputs, by the node they follow
        self.reads: dict[tuple[Node, int], str] = {}        # operands that are not the value itself any more
        self.renamed: dict[str, str] = {}                   # graph outputs to the value their node writes instead
        self.have = {out: layout for node, o in chosen.items() for out, layout in zip(node.outputs, o.outputs) if out}

    def value(self, base_name: str, kind: TensorType) -> str:
        name, n = base_name, 0
        while name in self.types:
            n += 1
            name = f"{base_name}.{n}"
        self.types[name] = kind
        return name

    def set_output_layouts(self) -> None:
        """Every node writes its layout; for a graph output into another value, converted right behind the node."""
        for value, chosen in self.have.items():
            layout, producer = without_halo(chosen), self.graph.producer(value)
            if producer is None or layout is None:
                continue
            kind = self.graph.types[value].with_layout(layout)
            if value not in self.graph.outputs:
                self.types[value] = kind
                continue
            self.renamed[value] = inner = self.value(f"{value}.{layout}", kind)
            self.after.setdefault(producer, []).append(_conversion(inner, value, producer))

    def fulfil(self, value: str, wanted: BASE, wish: _Wish) -> None:
        """Let the readers of `wish` find the value in the layout they want: as it is, with its own halo, or converted."""
        source = self.renamed.get(value, value)
        if base(self.have.get(value)) == wanted:
            if value in self.renamed or not wish.merged.has_halo or self.may_have_halo(value, wish):
                self.types[source] = self.types[source].with_layout(wish.merged)
                self.reads.update(dict.fromkeys(wish.readers, source) if source != value else {})
                return
            asked = {at: self.chosen[at[0]].inputs[at[1]] for at in wish.readers}
            wish.readers = [at for at, layout in asked.items() if layout is not None and layout.has_halo]
        elif value in self.renamed and wanted is None and not wish.merged.has_halo:
            return                                          # it is the graph output, plain already
        made = self.value(f"{value}.{wish.merged}", self.graph.types[value].with_layout(wish.merged))
        self.reads.update(dict.fromkeys(wish.readers, made))
        if self.graph.is_constant(value):
            self.params[made] = self.graph.params[value]
            return
        first = wish.readers[0][0]
        self.before.setdefault(first, []).append(_conversion(source, made, self.graph.producer(value) or first))

    def may_have_halo(self, value: str, wish: _Wish) -> bool:
        """Whether a value may have a halo of its own: a kernel that can leave one writes it, to storage of this graph's, and
        all that read it in this layout can step over it."""
        producer = self.graph.producer(value)
        if producer is None or value in self.graph.outputs or could_be_view(producer):
            return False
        return not any(self.is_bare(node) for node in (producer, *(reader for reader, _ in wish.readers)))

    def is_bare(self, node: Node) -> bool:
        return self.chosen[node].bare or info(node.op).category == "control"

    def align_halos(self) -> None:
        """Give tensors of one layout and one spatial shape the same halo: their storage can then be shared (plan_memory)."""
        alike: dict[tuple[BASE, tuple[int, ...]], list[str]] = {}
        for value, kind in self.types.items():
            if kind.layout.has_halo and value not in self.params:
                alike.setdefault((base(kind.layout), kind.shape[2:]), []).append(value)
        for values in alike.values():
            sides = zip(*(self.types[value].layout.halo for value in values))
            halo = [(max(before for before, _ in side), max(after for _, after in side)) for side in sides]
            for value in values:
                self.types[value] = self.types[value].with_layout(self.types[value].layout.with_halo(halo))

    def rebuilt(self) -> Graph:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            inputs = tuple(self.reads.get((node, n), name) for n, name in enumerate(node.inputs))
            outputs = tuple(self.renamed.get(name, name) for name in node.outputs)
            changed = inputs != node.inputs or outputs != node.outputs
            new = replace(node, inputs=inputs, outputs=outputs) if changed else node
            nodes += [*self.before.get(node, ()), new, *self.after.get(node, ())]
        return used_only(replace(self.graph, nodes=tuple(nodes), types=self.types, params=self.params))


def _collect_wishes(graph: Graph, chosen: dict[Node, LayoutOption]) -> dict[tuple[str, BASE], _Wish]:
    """Per value and base layout: who reads it so, and the largest halo per side. Plain constants without halo: no wish."""
    wishes: dict[tuple[str, BASE], _Wish] = {}
    for node in graph.nodes:
        for n, (name, layout) in enumerate(zip(node.inputs, chosen[node].inputs, strict=True)):
            if not name:
                continue
            rank = len(graph.types[name].shape)
            wanted = layout or Layout.row_major(rank)
            if graph.is_constant(name) and wanted.is_row_major:
                continue
            wish = wishes.setdefault((name, base(layout)), _Wish(wanted.with_halo(((0, 0),) * rank), halo=[(0, 0)] * rank))
            wish.readers.append((node, n))
            wish.halo = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(wish.halo, wanted.halo, strict=True)]
    return wishes


def _conversion(source: str, made: str, origin: Node) -> Node:
    return Node("Layout", (source,), (made,), name=f"{made}.layout", sources=origin.sources)

