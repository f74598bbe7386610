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
            return total * (types[node.outputs[-1]].shape[0] if node.op == "Scan" else 1)
        case "Conv":
            return 2 * out * math.prod(types[node.inputs[1]].shape[1:])
        case "ConvTranspose":
            x, w = types[node.inputs[0]], types[node.inputs[1]]
            return 2 * x.elements * math.prod(w.shape[1:])
        case "MatMul" | "Gemm":
            a = types[node.inputs[0]].shape
            k = a[0] if node.attrs.get("transA") else a[-1]
            return 2 * out * k
        case "LSTM" | "GRU" | "RNN":
            steps, batch = types[node.inputs[0]].shape[:2]
            return 2 * steps * batch * (types[node.inputs[1]].elements + types[node.inputs[2]].elements)
        case "MaxPool" | "AveragePool":
            return out * math.prod(node.attrs["kernel_shape"])
        case "LRN":
            return out * (2 * node.attrs["size"] + 5)
        case "Softmax" | "LogSoftmax" | "LayerNormalization":
            return 8 * out
        case _ if node.op in MOVES:
            return 0
        case _:
            return max(out, max((types[v].elements for v in node.inputs if v), default=0))


MOVES = frozenset((
    "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Layout", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))
