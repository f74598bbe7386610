"""Stand-ins for what kernels tell the layout planner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolchain.core.layout import Layout
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes import ANY, LayoutOption

BLOCKED = Layout.parse("NCHW8c")
BLOCKED_HALO = Layout.parse("NCHW8c+h1")


def conv_options(node: Node, graph: Graph) -> Sequence[LayoutOption]:
    """Convolutions run ten times faster on blocked channels, and wish for a halo as wide as their padding."""
    if node.op in ("MaxPool", "AveragePool", "GlobalAveragePool", "Concat"):
        return ANY
    if node.op != "Conv":
        return ()
    x, w = (graph.types[i].shape for i in node.inputs[:2])
    work = float(np.prod(graph.types[node.output].shape) * np.prod(w[1:]))
    rest = (None,) * (len(node.inputs) - 2)
    found = [LayoutOption((None, None, *rest), (None,), work / 1e3)]
    if w[0] % 8 == 0 and (x[1] % 8 == 0 or x[1] < 8) and node.attrs.get("group", 1) == 1:
        pad = max(node.attrs.get("pads", (0,)))
        blocked = BLOCKED.with_halo(((0, 0), (0, 0), (pad, pad), (pad, pad))) if x[1] % 8 == 0 else None
        packed = Layout.parse("OIHW8i8o" if x[1] % 8 == 0 else "OIHW8o")
        found.append(LayoutOption((blocked, packed, *rest), (BLOCKED,), work / 1e4))
    return tuple(found)
