"""Convolutions that another algorithm computes faster become the operator of that algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import Rewriting, rewrite_graph
from toolchain.graph.winograd import SIZES, transform_weights

Algorithms: TypeAlias = Callable[[Node, Graph], int]
"""What kernels answer about a convolution that Winograd's algorithm can do: its tile size m (4 or 2), or 0: direct."""


def choose_algorithms(graph: Graph, choose: Algorithms) -> Graph:
    """Rewrite the convolutions for which `choose(node, graph)` says so; the transformed weights become parameters.

        y = Conv(x, w, b)   ->   y = WinogradConv(x, u, b) {m: 4}      u = G w G^T, (m+2, m+2, O, I)

    Asked about: float32, two spatial dimensions, a constant 3x3 kernel, stride and dilation 1, one group.
    Needs: explicit pads; scales and shifts folded into the weights already (`fold_batch_norm`).
    """
    def rule(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if not _suits(node, state):
            return None
        m = choose(node, graph)
        if m not in SIZES:
            return None
        x, w, *bias = node.inputs
        u = state.param(f"{w}.winograd{m}", transform_weights(state.params[w], m), key=("winograd", w, m))
        attrs = {"m": m, "pads": tuple(node.attrs.get("pads") or (0, 0, 0, 0))}
        return [Node("WinogradConv", (x, u, *bias), node.outputs, attrs, node.name, node.sources)]

    return rewrite_graph(graph, {"Conv": (rule,)})


def _suits(node: Node, state: Rewriting) -> bool:
    x, w = node.inputs[:2]
    kind = state.types[x]
    if kind.dtype != "float32" or len(kind.shape) != 4 or w not in state.params or state.shape(w)[2:] != (3, 3):
        return False
    ones = [*(node.attrs.get("strides") or ()), *(node.attrs.get("dilations") or ()), node.attrs.get("group", 1)]
    return all(n == 1 for n in ones) and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "")
