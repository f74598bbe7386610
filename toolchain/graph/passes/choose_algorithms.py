"""Convolutions that another algorithm computes faster become the operator of that algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import Rewriting, rewrite_graph
from toolchain.graph.winograd import sizes_of, split_strides, transform_phases, transform_weights

Algorithms: TypeAlias = Callable[[Node, Graph], int]
"""What kernels answer about a convolution that Winograd's algorithm can do: its tile size m (4 or 2), or 0: direct."""


def choose_algorithms(graph: Graph, choose: Algorithms) -> Graph:
    """Rewrite the convolutions for which `choose(node, graph)` says so; the transformed weights become parameters.

        y = Conv(x, w, b)            ->   y = WinogradConv(x, u, b) {m: 4, taps: 3}      u = G w G^T, (m+2, m+2, O, I)
        y = ConvTranspose(x, w, b)   ->   y = WinogradConvTranspose(x, u, b) {m: 4, taps: 2, size: (H, W)}
                                                                            u: of each phase, (s, s, m+1, m+1, O, I)

    With strides the rows and columns that are a stride apart are channels of their own: {..., stride: s, size: (H, W)}, u of
    s * s * I channels.

    Asked about: float32, two spatial dimensions, a constant square kernel, equal strides, dilation 1, one group; 2, 3 or 5
    taps in each dimension, per phase where there are strides (4x4 with stride 2 has 2).
    Needs: explicit pads; scales and shifts folded into the weights already (`fold_batch_norm`).
    """
    def wanted(node: Node, state: Rewriting) -> int:
        """The tile size; 0: it stays as it is."""
        taps = taps_of(node, state.types)
        if not taps or node.inputs[1] not in state.params:
            return 0
        m = choose(node, graph)
        return m if m in sizes_of(taps) else 0

    def conv(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if not (m := wanted(node, state)):
            return None
        w, stride = node.inputs[1], (node.attrs.get("strides") or (1,))[0]
        dense = split_strides(state.params[w], stride) if stride > 1 else state.params[w]
        u = state.param(f"{w}.winograd{m}", transform_weights(dense, m), key=("winograd", w, m, stride))
        return [winograd_form(node, state.types, u, m)[0]]

    def transposed(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if not (m := wanted(node, state)):
            return None
        w, pads, stride = node.inputs[1], tuple(node.attrs["pads"][:2]), node.attrs["strides"][0]
        u = state.param(f"{w}.winograd{m}", transform_phases(state.params[w], m, stride, pads), key=("phases", w, m, pads))
        return [winograd_form(node, state.types, u, m)[0]]

    return rewrite_graph(graph, {"Conv": (conv,), "ConvTranspose": (transposed,)})


def winograd_form(node: Node, types: Mapping[str, TensorType], u: str, m: int) -> tuple[Node, tuple[int, ...]]:
    """The operator that a convolution becomes, which reads its transformed weights as `u`; and their shape."""
    x, w, *bias = node.inputs
    taps, stride = taps_of(node, types), (node.attrs.get("strides") or (1,))[0]
    side, size = m + taps - 1, tuple(types[node.output].shape[2:])
    attrs: dict[str, Any] = {"m": m, "taps": taps}
    shape: tuple[int, ...]
    if node.op == "ConvTranspose":
        channels, outputs = types[w].shape[:2]
        attrs |= {"pads": tuple(node.attrs["pads"][:2]), "size": size}
        op, shape = "WinogradConvTranspose", (stride, stride, side, side, outputs, channels)
    else:
        outputs, channels = types[w].shape[:2]
        attrs |= {"pads": tuple(node.attrs.get("pads") or (0, 0, 0, 0))} | (
            {"stride": stride, "size": size} if stride > 1 else {})
        op, shape = "WinogradConv", (side, side, outputs, channels * stride ** 2)
    return Node(op, (x, u, *bias), node.outputs, attrs, node.name, node.sources), shape


def taps_of(node: Node, types: Mapping[str, TensorType]) -> int:
    """The taps, in each dimension, of the dense convolutions with stride 1 that a convolution is made of: its kernel, or
    the share of it of one phase of its strides. 0: it is not made of such, or of ones that no Winograd form is known for, or
    is a transposed one without phases (`simplify` makes a Conv of those)."""
    x, w = (types[name] for name in node.inputs[:2])
    attrs, rank = node.attrs, len(x.shape)
    if x.dtype != "float32" or rank != 4 or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        return 0
    if w.shape[2] != w.shape[3] or any(n != 1 for n in (*(attrs.get("dilations") or ()), attrs.get("group", 1))):
        return 0
    strides = tuple(attrs.get("strides") or (1, 1))
    if strides[0] != strides[1] or (node.op == "ConvTranspose" and ("pads" not in attrs or strides[0] == 1)):
        return 0
    taps = -(-w.shape[2] // strides[0])
    return taps if sizes_of(taps) else 0
