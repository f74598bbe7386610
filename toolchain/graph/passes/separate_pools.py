"""Large max pools one dimension after the other: the maximum of a window is the maximum of its rows' maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.layout_options import without_halo
from toolchain.graph.passes.rewriting import Rewriting

GAIN = 2                    # a window has so many times the elements of its sides together, or reading them again costs more


def gains(kernel: Sequence[int]) -> bool:
    """Whether a pool of this window is worth separating."""
    return math.prod(kernel) > GAIN * sum(kernel)


def separate_pools(graph: Graph) -> Graph:
    """Replace a MaxPool of many elements by one MaxPool per dimension.

        y = MaxPool(x, kernel_shape=(5, 5))   ->   r = MaxPool(x, kernel_shape=(5, 1));  y = MaxPool(r, kernel_shape=(1, 5))

    Exact, NaN included: 10 elements are compared in place of 25. Left alone: a pool whose Indices are asked for (they say
    which of equal elements came first), kernels like 3x3 that do not gain, and rows and columns of plain tensors, whose
    kernel does the same by itself (compute/nn.py). Needs: layouts planned; what is between two pools has the result's, its
    halo left out (no halo holds what max pools pad with).
    """

    def rule(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if node.op != "MaxPool" or any(node.outputs[1:]):
            return None
        kernel = tuple(node.attrs["kernel_shape"])
        if not gains(kernel):
            return None
        single = [(d,) for d in range(len(kernel))]
        plain = without_halo(state.types[node.outputs[0]].layout) is None
        return _separated(node, [*single[:-2], tuple(range(len(kernel)))[-2:]] if plain else single, state)

    return Rewriting(graph).sweep(rule)


def _separated(node: Node, groups: Sequence[tuple[int, ...]], state: Rewriting) -> list[Node] | None:
    """One pool per group of dimensions; None when that is one pool."""
    pools = [g for g in groups if any(_works(node, d) for d in g)]
    if len(pools) < 2:
        return None
    made, source, final = [], node.inputs[0], state.types[node.outputs[0]]
    for group in pools:
        shape = tuple(final.shape[n] if n - 2 in group else extent for n, extent in enumerate(state.types[source].shape))
        between = TensorType(shape, final.dtype, without_halo(final.layout) or Layout.row_major(len(shape)))
        name = node.outputs[0]
        output = name if group is pools[-1] else state.value(f"{name}.{group[-1]}", between)
        made.append(Node("MaxPool", (source,), (output,), _along(node, group), node.name))
        source = output
    return made


def _works(node: Node, d: int) -> bool:
    """Whether the pool does anything along a dimension."""
    kernel = node.attrs["kernel_shape"]
    n = len(kernel)
    pads, strides = node.attrs.get("pads") or (0,) * (2 * n), node.attrs.get("strides") or (1,) * n
    return kernel[d] > 1 or strides[d] > 1 or bool(pads[d] or pads[n + d])


def _along(node: Node, group: tuple[int, ...]) -> dict[str, Any]:
    """The pool's attributes along some dimensions, and those of no pool along the others."""
    attrs, n = dict(node.attrs), len(node.attrs["kernel_shape"])
    for name, nothing in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if name in attrs:
            attrs[name] = tuple(v if i in group else nothing for i, v in enumerate(attrs[name]))
    if "pads" in attrs:
        attrs["pads"] = tuple(p if i % n in group else 0 for i, p in enumerate(attrs["pads"]))
    return attrs
