"""Large max pools one dimension after the other: the maximum of a window is the maximum of its rows' maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import Rewriting

GAIN = 2                    # a window has so many times the elements of its sides together, or reading them again costs more


def separate_pools(graph: Graph) -> Graph:
    """Replace a MaxPool of many elements by one MaxPool per dimension.

        y = MaxPool(x, kernel_shape=(5, 5))   ->   r = MaxPool(x, kernel_shape=(5, 1));  y = MaxPool(r, kernel_shape=(1, 5))

    Exact, NaN included: 10 elements are compared in place of 25. Left alone: a pool whose Indices are asked for (they say
    which of equal elements came first), and kernels like 3x3 that do not gain.
    """

    def rule(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if node.op != "MaxPool" or any(node.outputs[1:]):
            return None
        kernel = tuple(node.attrs["kernel_shape"])
        if math.prod(kernel) <= GAIN * sum(kernel):
            return None
        return _separated(node, kernel, state)

    return Rewriting(graph).sweep(rule)


def _separated(node: Node, kernel: tuple[int, ...], state: Rewriting) -> list[Node]:
    made, source = [], node.inputs[0]
    final = state.types[node.outputs[0]]
    last = max(d for d, extent in enumerate(kernel) if _works(node, d, extent))
    for d, extent in enumerate(kernel):
        if not _works(node, d, extent):
            continue
        before = state.types[source].shape
        shape = (*before[:2 + d], final.shape[2 + d], *before[3 + d:])
        name = node.outputs[0]
        output = name if d == last else state.value(f"{name}.{d}", TensorType.plain(shape, final.dtype))
        made.append(Node("MaxPool", (source,), (output,), _along(node, d, len(kernel)), node.name))
        source = output
    return made


def _works(node: Node, d: int, extent: int) -> bool:
    """Whether the pool does anything along a dimension."""
    n = len(node.attrs["kernel_shape"])
    pads, strides = node.attrs.get("pads") or (0,) * (2 * n), node.attrs.get("strides") or (1,) * n
    return extent > 1 or strides[d] > 1 or bool(pads[d] or pads[n + d])


def _along(node: Node, d: int, n: int) -> dict[str, Any]:
    """The pool's attributes along dimension d, and those of no pool along the others."""
    attrs = dict(node.attrs)
    for name, nothing in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if name in attrs:
            attrs[name] = tuple(v if i == d else nothing for i, v in enumerate(attrs[name]))
    if "pads" in attrs:
        attrs["pads"] = tuple(p if i % n == d else 0 for i, p in enumerate(attrs["pads"]))
    return attrs
