"""Give every output of a control-flow body a value of its own."""

from __future__ import annotations

from dataclasses import replace

from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import bodies


def separate_body_outputs(graph: Graph) -> Graph:
    """Copy body outputs that are an input, a parameter or another output, so that each has a place of its own.

        body(s, x) -> (t, t)         ->   body(s, x) -> (t, t.1)   with t.1 = Identity(t)
        body(s, x) -> (x, c)         ->   body(s, x) -> (x.1, c.1)

    For the last step before fusing: other passes would take such an Identity out again. Bodies inside bodies too.
    """
    changes: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "Fused" or not (inner := bodies(node)):
            continue
        new = {key: _separated(separate_body_outputs(body)) for key, body in inner.items()}
        if any(new[key] is not inner[key] for key in inner):
            changes[node] = replace(node, attrs={**node.attrs, **new})
    return graph.edit(dict(changes)) if changes else graph


def _separated(body: Graph) -> Graph:
    taken = {*body.inputs, *body.params}
    types, copies, outputs = dict(body.types), [], []
    for name in body.outputs:
        if name in taken:
            copy, n = f"{name}.out", 0
            while copy in types:
                n += 1
                copy = f"{name}.out.{n}"
            types[copy] = types[name]
            copies.append(Node("Identity", (name,), (copy,), name=copy))
            name = copy
        taken.add(name)
        outputs.append(name)
    return replace(body, nodes=(*body.nodes, *copies), outputs=tuple(outputs), types=types) if copies else body
