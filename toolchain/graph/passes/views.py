"""Which nodes compute nothing: views, whose output is their input's storage under another type.

Layout planning, fusion and memory planning must agree on this, so it is decided here alone.
"""

from __future__ import annotations

from toolchain.graph.ir import Graph, Node

VIEW_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


def could_be_view(node: Node) -> bool:
    """Whether the operator only renames a plain tensor's elements."""
    return node.op in VIEW_OPS


def storage_roots(graph: Graph) -> dict[str, str]:
    """Each value to the value whose storage it shares: itself, unless views lead from one to the other.

    A node of VIEW_OPS is a view when both sides are plain (row-major, no halo), and the storage shared so far together
    with its output has at most one place of its own outside the arena: graph inputs, graph outputs and parameters are
    such places. Where it would have two (an output that is an input seen otherwise), the node stays a copy.
    """
    roots: dict[str, str] = {}
    placed = {*graph.inputs, *graph.params}             # roots whose storage is given
    outputs = set(graph.outputs)

    def root(value: str) -> str:
        return roots.setdefault(value, value)

    for value in (*graph.inputs, *graph.params):
        root(value)
    for node in graph.nodes:
        for out in node.outputs:
            if out:
                root(out)
                if out in outputs and not _is_view(node, graph):
                    placed.add(out)
        if not _is_view(node, graph):
            continue
        source, out = root(node.inputs[0]), node.output
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


def view_nodes(graph: Graph) -> frozenset[Node]:
    """The nodes that need no kernel."""
    roots = storage_roots(graph)
    return frozenset(n for n in graph.nodes if _is_view(n, graph) and roots[n.output] != n.output)
