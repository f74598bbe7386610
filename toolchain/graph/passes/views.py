"""Which nodes compute nothing: views, whose output is storage that others have written already.

    Reshape, Identity      the output lies where the input lies
    Concat                 the operands lie one behind the other in the output, when its axis is outermost in memory

Layout planning, fusion and memory planning must agree on this, so it is decided here alone. After `fuse_operators` a node
is a Fused, control flow, or one of `view_nodes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import info
from toolchain.graph.passes.memory_plan import ALIGN_BYTES, size_bytes

VIEW_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies: bytes into the storage of another value, or of its own (root: itself, offset 0)."""

    root: str
    offset_bytes: int = 0


def could_be_view(node: Node) -> bool:
    """Whether the operator only renames a plain tensor's elements."""
    return node.op in VIEW_OPS


def storage_places(graph: Graph) -> dict[str, Place]:
    """Each value's place.

    A node of VIEW_OPS is a view when both sides are plain (row-major, no halo), and the storage shared so far together
    with its output has at most one place of its own outside the arena: graph inputs, graph outputs and parameters are
    such places. Where it would have two (an output that is an input seen otherwise), the node stays a copy.

    A Concat is a view when each operand has storage of its own in the arena, whole, that is in no other Concat, and the
    operands' storage one behind the other is the output's, each part aligned.
    """
    roots = _shared_roots(graph)
    inside = _concat_parts(graph, roots)

    def place(value: str) -> Place:
        root, offset = roots[value], 0
        while root in inside:
            offset += inside[root].offset_bytes
            root = roots[inside[root].root]
        return Place(root, offset)

    return {value: place(value) for value in roots}


def view_nodes(graph: Graph) -> frozenset[Node]:
    """The nodes that need no kernel."""
    roots = _shared_roots(graph)
    parts = _concat_parts(graph, roots)
    concats = {part.root for part in parts.values()}
    return frozenset(
        n for n in graph.nodes if (_is_view(n, graph) and roots[n.output] != n.output) or n.output in concats)


def _shared_roots(graph: Graph) -> dict[str, str]:
    """Each value to the one whose storage it shares through VIEW_OPS."""
    roots = {value: value for value in (*graph.inputs, *graph.params)}
    placed = {*graph.inputs, *graph.params}             # roots whose storage is given
    outputs = set(graph.outputs)
    for node in graph.nodes:
        view = _is_view(node, graph)
        for out in node.outputs:
            if out:
                roots[out] = out
                if out in outputs and not view:
                    placed.add(out)
        if not view:
            continue
        source, out = roots[node.inputs[0]], node.output
        if out in outputs and source in placed:
            placed.add(out)
            continue
        roots[out] = source
        if out in outputs:
            placed.add(source)
    return roots


def _is_view(node: Node, graph: Graph) -> bool:
    if not could_be_view(node):
        return False
    source, result = graph.types[node.inputs[0]], graph.types[node.output]
    return source.layout.is_row_major and result.layout.is_row_major and source.dtype == result.dtype


def _concat_parts(graph: Graph, roots: dict[str, str]) -> dict[str, Place]:
    """The storage of operands, by root, to its place in the output of the Concat that is a view of it."""
    external = {roots[v] for v in (*graph.inputs, *graph.params, *graph.outputs)}
    parts: dict[str, Place] = {}
    for node in reversed(graph.nodes):                  # the outermost first: a Concat may be an operand of another
        if node.op != "Concat" or roots[node.output] in external:
            continue
        operands = [roots[i] for i in node.inputs]
        fresh = len(set(operands)) == len(operands) and not any(o in parts or o in external for o in operands)
        made = [graph.producer(o) for o in operands]
        if not fresh or any(m is None or info(m.op).category == "control" for m in made) or not _is_contiguous(node, graph):
            continue
        sizes = [size_bytes(graph.types[name]) for name in node.inputs]
        if all(size % ALIGN_BYTES == 0 for size in sizes[:-1]):         # kernels rely on aligned buffers
            offsets = (0, *accumulate(sizes[:-1]))
            parts.update({operand: Place(node.output, offset) for operand, offset in zip(operands, offsets)})
    return parts


def _is_contiguous(node: Node, graph: Graph) -> bool:
    """Whether the operands are stretches of the output's storage: equal layouts without halo, whole blocks (but for the
    last operand), and extents of one in all physical dimensions outside the axis."""
    result = graph.types[node.output]
    axis = int(node.attrs["axis"]) % len(result.shape)
    kinds = [graph.types[i] for i in node.inputs]
    if any(k.layout.dims != result.layout.dims or k.layout.has_halo or k.dtype != result.dtype for k in (*kinds, result)):
        return False
    if any(k.layout.padded(k.shape)[axis] != k.shape[axis] for k in kinds[:-1]):
        return False
    at = result.layout.dims.index((axis, 0))
    return math.prod(result.layout.physical_shape(result.shape)[:at]) == 1
