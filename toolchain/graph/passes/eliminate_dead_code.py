"""Drop what no graph output depends on."""

from __future__ import annotations

from dataclasses import replace

from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import reads, used_only


def eliminate_dead_code(graph: Graph) -> Graph:
    """Drop nodes none of whose outputs is needed, then the types and parameters that are left over.

        y = Relu(x); z = Exp(x); return y   ->   y = Relu(x); return y

    Keeps: graph inputs, read or not (they are the model's interface). A node with one needed output keeps all of them.
    """
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(reads(node))
    mentioned = {*graph.inputs, *needed, *(o for n in kept for o in n.outputs)}
    if len(kept) == len(graph.nodes) and graph.params.keys() <= mentioned and graph.types.keys() <= mentioned:
        return graph
    return used_only(replace(graph, nodes=tuple(reversed(kept))))
