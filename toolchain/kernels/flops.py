"""Floating-point operations of a node, from its types: two per multiply-add, one per point for elementwise work."""

from __future__ import annotations

import math
from collections.abc import Mapping

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node


def flops(node: Node, types: Mapping[str, TensorType]) -> int:
    """Operations of one node; index moves count none. A transposed convolution counts the taps that meet an input."""
    out = types[node.output].elements
    match node.op:
        case "Fused" | "Scan" | "Loop":
            body: Graph = node.attrs["body"]
            total = sum(flops(n, body.types) for n in body.nodes)
            return total * (_steps(node, types) if node.op == "Scan" else 1)
        case "Conv" | "ConvInteger" | "IntegerConv":
            return 2 * out * math.prod(types[node.inputs[1]].shape[1:])
        case "QLinearConv":
            return 2 * out * math.prod(types[node.inputs[3]].shape[1:])
        case "WinogradConv" | "WinogradConvTranspose":          # credited with the multiplications it saves
            return 2 * out * node.attrs.get("taps", 3) ** 2 * types[node.inputs[1]].shape[-1]
        case "ConvTranspose":
            x, w = types[node.inputs[0]], types[node.inputs[1]]
            return 2 * x.elements * math.prod(w.shape[1:])
        case "MatMul" | "MatMulInteger" | "QLinearMatMul" | "IntegerMatMul" | "Gemm":
            a = types[node.inputs[0]].shape
            k = a[0] if node.attrs.get("transA") else a[-1]
            return 2 * out * k
        case "LSTM" | "GRU" | "RNN":
            steps, batch = types[node.inputs[0]].shape[:2]
            return 2 * steps * batch * (types[node.inputs[1]].elements + types[node.inputs[2]].elements)
        case "Einsum":
            return _einsum(node, types)
        case "MaxPool" | "AveragePool" | "LpPool":
            return out * math.prod(node.attrs["kernel_shape"])
        case "LRN":
            return out * (2 * node.attrs["size"] + 5)
        case "Softmax" | "LogSoftmax" | "LayerNormalization" | "RMSNormalization" | "InstanceNormalization":
            return 8 * out
        case _ if node.op in MOVES:
            return 0
        case _:
            return max(out, max((types[v].elements for v in node.inputs if v), default=0))


def computed_flops(node: Node, types: Mapping[str, TensorType]) -> int:
    """`flops`, but of a Winograd convolution the products of its tiles, side^2 per channel pair; transforms left out."""
    if node.op == "Fused":
        body: Graph = node.attrs["body"]
        return sum(computed_flops(n, body.types) for n in body.nodes)
    if node.op not in ("WinogradConv", "WinogradConvTranspose"):
        return flops(node, types)
    images, _, height, width = types[node.output].shape
    u, m = types[node.inputs[1]], node.attrs["m"]                       # (side, side, O, I), perhaps per phase
    size = m * u.shape[0] if node.op == "WinogradConvTranspose" else m
    return 2 * images * -(-height // size) * -(-width // size) * u.elements


def _steps(node: Node, types: Mapping[str, TensorType]) -> int:
    """How often the body of a Scan runs: the length of its first scan input."""
    width = node.attrs["num_scan_inputs"]
    first = len(node.inputs) - node.attrs.get("captures", 0) - width
    axis = (node.attrs.get("scan_input_axes") or (0,) * width)[0]
    return types[node.inputs[first]].shape[axis]


def _einsum(node: Node, types: Mapping[str, TensorType]) -> int:
    """One operation per factor, for each point of the result and of what is summed over."""
    left, _, result = node.attrs["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    extent: dict[str, int] = {}
    for term, name in zip(terms, node.inputs, strict=True):
        head, dots, tail = term.partition("...")
        shape = types[name].shape
        extent |= zip(head, shape, strict=False)
        extent |= zip(reversed(tail), reversed(shape), strict=False) if dots else ()
    once = {c for c in extent if left.count(c) == 1}
    kept = {*result} if "->" in node.attrs["equation"] else once
    return len(terms) * types[node.output].elements * math.prod(n for c, n in extent.items() if c not in kept)


MOVES = frozenset((
    "BitCast", "CenterCropPad", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Layout", "OneHot", "Pad", "Reshape", "ReverseSequence", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
))
