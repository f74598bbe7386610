"""One spelling for equal bodies: kernels are made, cached and tuned by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolchain.graph.ir import Graph
from toolchain.graph.text import SHORT, to_text


def canonical(body: Graph) -> tuple[Graph, str]:
    """The body with values named by position, and a key that equal bodies share.

        %w: float32[64] = Relu(%conv1.out)  # conv1   ->   %2: float32[64] = Relu(%1)

    Inputs come first, then parameters, then results, in order. Names, sources and weights do not enter the key; types,
    layouts, attributes and the parameters inside the body do. Needs: a body without bodies inside.
    """
    order = [*body.inputs, *body.params, *(o for n in body.nodes for o in n.outputs if o)]
    names = {"": "", **{name: str(n) for n, name in enumerate(dict.fromkeys(order))}}
    nodes = tuple(
        replace(n, inputs=tuple(names[i] for i in n.inputs), outputs=tuple(names[o] for o in n.outputs), name="", sources=())
        for n in body.nodes)
    renamed = Graph(
        "body", nodes, tuple(names[i] for i in body.inputs), tuple(names[o] for o in body.outputs),
        {names[k]: body.types[k] for k in names if k in body.types}, {names[k]: a for k, a in body.params.items()})
    return renamed, to_text(renamed) + "".join(_contents(renamed))


def _contents(body: Graph) -> list[str]:
    """What the text form leaves out: longer arrays, as bytes."""
    arrays = dict(body.params)
    for node in body.nodes:
        arrays.update({f"{node.output}.{k}": a for k, a in node.attrs.items() if isinstance(a, np.ndarray)})
    hidden = {name: a for name, a in arrays.items() if a.size > SHORT}
    return [f"{name} = {a.dtype}{a.shape} {a.tobytes().hex()}\n" for name, a in hidden.items()]
