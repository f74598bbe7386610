"""The one text form of a graph: what `tc show` prints, what golden tests compare, what errors quote.

    graph light (data: float32[1, 3, 8, 8]) -> (y):
      param %w: float32[4, 3, 3, 3]
      %c: float32[1, 4, 8, 8] NCHW4c+h1 = Conv(%data, %w) {pads=[1, 1, 1, 1]}  # conv1
      %y: float32[1, 4, 8, 8] = Fused(%c) {body=...}  # relu1, add1
        graph body (a: float32[1, 4, 8, 8]) -> (b):
          %b: float32[1, 4, 8, 8] = Relu(%a)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from toolchain.graph.ir import Graph, Node

SHORT = 8
"""Arrays of up to so many elements are printed with their values."""


def to_text(graph: Graph) -> str:
    """The graph, one line per parameter and node, in order; the same graph always gives the same text."""
    return "\n".join(_lines(graph, "")) + "\n"


def node_text(graph: Graph, node: Node) -> str:
    """One node's line, as in `to_text` and without bodies: for messages."""
    made = ", ".join(f"%{o}: {graph.types[o]}" if o else "_" for o in node.outputs)
    read = ", ".join(f"%{i}" if i else "_" for i in node.inputs)
    attrs = ", ".join(f"{name}={_value(value)}" for name, value in sorted(node.attrs.items()))
    sources = f"  # {', '.join(node.sources)}" if node.sources else ""
    return f"{made} = {node.op}({read})" + (f" {{{attrs}}}" if attrs else "") + sources


def _lines(graph: Graph, indent: str) -> Iterator[str]:
    given = ", ".join(f"{i}: {graph.types[i]}" for i in graph.inputs)
    yield f"{indent}graph {graph.name} ({given}) -> ({', '.join(graph.outputs)}):"
    indent += "  "
    for name, array in graph.params.items():
        yield f"{indent}param %{name}: {graph.types[name]}" + (f" = {_value(array)}" if array.size <= SHORT else "")
    for node in graph.nodes:
        yield indent + node_text(graph, node)
        for _, value in sorted(node.attrs.items()):
            if isinstance(value, Graph):
                yield from _lines(value, indent + "  ")


def _value(value: Any) -> str:
    match value:
        case Graph():
            return value.name
        case np.ndarray():
            return str(value.tolist()) if value.size <= SHORT else f"{value.dtype}{list(value.shape)}"
        case tuple() | list():
            return f"[{', '.join(map(_value, value))}]"
        case float():
            return f"{value:.9g}"
        case _:
            return str(value)
