"""Group operators into kernels by the classes of the TVM paper.

Source: Chen et al., "TVM: An Automated End-to-End Optimizing Compiler for Deep Learning", OSDI 2018, section 3; grouping by
post-dominators as in TVM's FuseOps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import FusionClass, info
from toolchain.graph.passes.canonical import canonical
from toolchain.graph.passes.layout_options import base, is_elementwise
from toolchain.graph.passes.rewriting import unique_names, used_only
from toolchain.graph.passes.views import could_be_view, view_nodes

MAX_NODES = 32              # members of one group
MAX_INPUTS = 24             # values one group reads
INLINE_ELEMENTS = 16        # constants up to this size may be part of a kernel

ROW_REDUCTIONS = frozenset({
    "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "Hardmax", "LpNormalization",
})
"""Opaque to fusion in general, but reductions over whole rows: elementwise neighbours join them."""

ALONE = frozenset({"Concat"})
"""Never fused by default: a Concat is a view often (views.py), else one copy per operand; fused it would be a chain of
selects per element."""

ONCE_EACH = frozenset({"Pad", "Concat", "Layout"})
"""Outputs may be larger than operands, but no element is read twice."""


def fuse_operators(graph: Graph, alone: frozenset[str] = ALONE) -> Graph:
    """Group nodes into `Fused` nodes, whose bodies become one kernel each. Views and control flow stay as they are.

        c = Conv(x, w, b); s = Add(c, r); y = Relu(s)   ->   y = Fused(x, w, b, r) {body: Conv, Add, Relu}

    1. complex-out-fusable operators and reductions take up the elementwise and broadcast operators behind them, of the same
       shape and layout. Of two that meet in one Add, the later one does: the earlier result is there by then. A product's
       kernel stores where a Transpose behind it would move whole rows (attention's heads).
    2. injective operators join the injective ones behind them.
    3. reductions take up injective operators before them.
    A group always ends in one node that every path from its members leads through (a post-dominator), so it has one output
    and cannot be part of a cycle. Nothing is computed twice: what a member broadcasts or enlarges stays outside its group.
    Opaque operators and those of `alone` get a Fused of their own.

    Scalars and small steering constants (axes, bounds, scales) go into the body; weights and biases are inputs. A Fused node
    has the sources of all its members. Needs: layouts planned, dead code gone.
    """
    return _with_fused(graph, _grouped(graph, alone))


def behind(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """Of each complex operator, what its kernel would compute on the way out: the other members of its group, in order."""
    groups = _grouped(graph, ALONE)
    anchors = [node for node in graph.nodes if groups.kind[node] is FusionClass.COMPLEX and node not in groups.separate]
    return {node: tuple(m for m in groups.members[groups.sink(node)] if m is not node) for node in anchors}


def _grouped(graph: Graph, alone: frozenset[str]) -> _Groups:
    groups = _Groups(graph, alone)
    for node in reversed(graph.nodes):
        if groups.kind[node] in (FusionClass.COMPLEX, FusionClass.REDUCTION):
            groups.extend_anchor(node)
    for node in graph.nodes:
        groups.join_injective(node)
    for node in graph.nodes:
        groups.join_reduction(node)
    return groups


class _Groups:
    """Which group each node is in; a group is a list of nodes, its last one (in order) is its sink."""

    def __init__(self, graph: Graph, alone: frozenset[str]) -> None:
        self.graph = graph
        views = view_nodes(graph) - _before_conversions(graph)
        self.position = {node: n for n, node in enumerate(graph.nodes)}
        left_out = views | {node for node in graph.nodes if node.op in alone}
        self.kind = {node: FusionClass.OPAQUE if node in left_out else _kind(node, graph) for node in graph.nodes}
        self.separate = {n for n in graph.nodes if n in views or info(n.op).category in ("control", "fused")}
        self.members: dict[Node, list[Node]] = {node: [node] for node in graph.nodes}
        self.anchor: dict[Node, Node] = {}                  # the complex or reduction node of a node's group
        self.next = _post_dominators(graph)

    def sink(self, node: Node) -> Node:
        return self.members[node][-1]

    def _repeats(self, node: Node, members: set[Node]) -> bool:
        """Whether a member reads elements that members compute several times each: broadcast, gathered, enlarged."""
        if node.op in ONCE_EACH:
            return False
        types = self.graph.types
        inside = [i for i in node.inputs if i and self.graph.producer(i) in members]
        return any(types[i].elements < types[node.output].elements for i in inside)

    def is_injective(self, node: Node) -> bool:
        """Whether the node is in a group of injective nodes only."""
        return self.kind[node].is_injective and node not in self.anchor

    def extend_anchor(self, anchor: Node) -> None:
        """Take up what follows `anchor`: what is elementwise on its output, and the same behind rows that are moved."""
        self.anchor.setdefault(anchor, anchor)
        self._take_up(anchor, anchor.output)
        moves = self._moved_rows(self.sink(anchor), anchor) if anchor.op == "MatMul" else []
        if moves and self._merge([anchor, *moves], anchor):
            self.separate.difference_update(moves)
            self._take_up(anchor, moves[-1].output)

    def _take_up(self, anchor: Node, value: str) -> None:
        """Let elementwise operators join the group of `anchor`, as far as their results have the shape of `value`."""
        kind = self.graph.types[value]

        def joins(node: Node) -> bool:
            made = self.graph.types[node.output]
            same = made.shape == kind.shape and base(made.layout) == base(kind.layout)
            return same and self.is_injective(node) and is_elementwise(node) and len(self.members[node]) == 1

        while (end := self.next[self.sink(anchor)]) is not None:
            path = self._between(self.sink(anchor), end)
            if path is None or not all(map(joins, path)) or not self._merge([anchor, *path], anchor):
                return

    def _moved_rows(self, end: Node, product: Node) -> list[Node]:
        """The Transpose behind `end` that leaves rows whole, after the view that cuts them into pieces; [] without one.

            MatMul (..., M, H*D), Reshape (..., M, H, D), Transpose (..., H, M, D)

        Pieces are whole panels of the product's weights, so that a register tile lies in one of them, and rows stay rows: a
        view that joins pieces of several batches would tear the tile apart.
        """
        types, moves = self.graph.types, []
        move = self._only_reader(end)
        if move is not None and move in self.separate and could_be_view(move):
            moves, move = [move], self._only_reader(move)
        if move is None or move.op != "Transpose" or not types[move.output].layout.is_row_major:
            return []
        rank, pieces, weights = len(types[move.output].shape), types[move.output].shape[-1], types[product.inputs[1]]
        if (perm := move.attrs.get("perm")) is None or perm[-1] != rank - 1:
            return []
        if pieces != types[product.output].shape[-1]:
            rows, kept = types[product.output].shape[:-1], types[moves[0].output].shape[:-2]
            panel = weights.layout.block(len(weights.shape) - 1)
            if [n for n in rows if n != 1] != [n for n in kept if n != 1] or panel == 1 or pieces % panel:
                return []
        return [*moves, move]

    def _only_reader(self, node: Node) -> Node | None:
        """What alone reads a node's result."""
        readers = _readers(self.graph, node)
        return readers[0] if len(readers) == 1 and self.next[node] is readers[0] else None

    def join_injective(self, node: Node) -> None:
        """Merge a group of injective nodes with the injective ones that all its readers lead to."""
        end = self.next[self.sink(node)]
        if not self.is_injective(node) or end is None or end in self.members[node]:
            return
        path = self._between(self.sink(node), end)
        if path is not None and all(map(self.is_injective, path)):
            self._merge([node, *path], None)

    def join_reduction(self, node: Node) -> None:
        """Merge a group of injective nodes with the reduction behind it."""
        end = self.next[self.sink(node)]
        if not self.is_injective(node) or end is None or self.kind[end] is not FusionClass.REDUCTION:
            return
        path = self._between(self.sink(node), end)
        if path is not None and all(map(self.is_injective, path[:-1])) and self.anchor[end] is end:
            self._merge([node, *path], end)

    def _between(self, start: Node, end: Node) -> list[Node] | None:
        """All nodes on paths from `start` to its post-dominator `end`, which is last; None when there are too many."""
        found = {end}
        stack = [start]
        while stack:
            for reader in _readers(self.graph, stack.pop()):
                if reader not in found:
                    found.add(reader)
                    stack.append(reader)
                    if len(found) > MAX_NODES:
                        return None
        return sorted(found, key=self.position.__getitem__)

    def _merge(self, nodes: Iterable[Node], anchor: Node | None) -> bool:
        """One group of all groups of `nodes`, unless it would be too large."""
        merged = {m for node in nodes for m in self.members[node]}
        reads = {i for m in merged for i in m.inputs if i} - {o for m in merged for o in m.outputs}
        if len(merged) > MAX_NODES or len(reads) > MAX_INPUTS or any(self._repeats(m, merged) for m in merged):
            return False
        ordered = sorted(merged, key=self.position.__getitem__)
        for member in ordered:
            self.members[member] = ordered
            if anchor is not None:
                self.anchor[member] = anchor
        return True


def _before_conversions(graph: Graph) -> frozenset[Node]:
    """Views between a move of data and the conversion to another layout, which then are one move (a channel shuffle):

        Transpose, Reshape, Layout   ->   Fused {Transpose, Reshape, Layout}
    """
    def is_alone(value: str) -> bool:
        return len(graph.readers(value)) == 1 and value not in graph.outputs

    return frozenset(
        view for conversion in graph.nodes if conversion.op == "Layout"
        if (view := graph.producer(conversion.inputs[0])) is not None and could_be_view(view) and is_alone(view.output)
        if (move := graph.producer(view.inputs[0])) is not None and move.op == "Transpose" and is_alone(move.output))


def _kind(node: Node, graph: Graph) -> FusionClass:
    """A node's class here: what has several results that somebody needs is opaque, row reductions are reductions."""
    needed = [o for o in node.outputs if o and (graph.readers(o) or o in graph.outputs)]
    if len(needed) > 1:
        return FusionClass.OPAQUE
    return FusionClass.REDUCTION if node.op in ROW_REDUCTIONS else info(node.op).fusion


def _readers(graph: Graph, node: Node) -> list[Node]:
    return [reader for out in node.outputs if out for reader in graph.readers(out)]


def _post_dominators(graph: Graph) -> dict[Node, Node | None]:
    """Per node the first node behind it that every path from it to a graph output leads through; None: there is no such.

    The lowest common ancestor of the readers, in the tree that this very relation makes (Cooper, Harvey and Kennedy, 2001).
    """
    outputs = set(graph.outputs)
    up: dict[Node, Node | None] = {}
    depth: dict[Node | None, int] = {None: 0}
    for node in reversed(graph.nodes):
        readers = _readers(graph, node)
        common: Node | None = None
        if readers and outputs.isdisjoint(node.outputs):
            common = readers[0]
            for reader in readers[1:]:
                other: Node | None = reader
                while common is not other:
                    if depth[common] >= depth[other] and common is not None:
                        common = up[common]
                    elif other is not None:
                        other = up[other]
        up[node] = common
        depth[node] = depth[common] + 1
    return up


def _with_fused(graph: Graph, groups: _Groups) -> Graph:
    """Each group as one Fused node in the place of its last member: everything it reads stands before that."""
    nodes = []
    for node in graph.nodes:
        if node in groups.separate:
            nodes.append(node)
        elif groups.sink(node) is node:
            nodes.append(_fused(graph, groups.members[node]))
    return used_only(replace(graph, nodes=unique_names(nodes)))


def _fused(graph: Graph, members: list[Node]) -> Node:
    made = {o for m in members for o in m.outputs if o}
    inputs: dict[str, None] = {}
    params = {}
    for member in members:
        for name in member.inputs:
            if not name or name in made:
                continue
            if _belongs_inside(graph, name, member):
                params[name] = graph.params[name]
            elif name not in params:
                inputs[name] = None
    given = tuple(i for i in inputs if i not in params)
    outputs = tuple(o for o in members[-1].outputs if o)
    types = {name: graph.types[name] for name in (*given, *params, *made)}
    body, _ = canonical(Graph("body", tuple(members), given, outputs, types, params))
    sources = tuple(dict.fromkeys(s for m in members for s in m.sources))
    name = next((m.name for m in members if m.name), "")
    return Node("Fused", given, outputs, {"body": body}, name, sources)


def _belongs_inside(graph: Graph, name: str, reader: Node) -> bool:
    """Whether a constant is part of the kernel: a number, or a few that steer the operator. Never weights, biases, scales:
    kernels that differ in them only are one."""
    array = graph.params.get(name)
    if array is None or array.size > INLINE_ELEMENTS:
        return False
    is_data = info(reader.op).category in ("binary", "variadic", "select", "conv", "matmul", "normalization", "quantize")
    return array.size <= 1 or array.dtype.kind in "iub" or not is_data
