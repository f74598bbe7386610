"""Evaluate at build time what depends on constants only."""

from __future__ import annotations

import math

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import RANDOM, info
from toolchain.graph.passes.rewriting import Rewriting

FOLD_LIMIT_BYTES = 16 << 20
"""A result may always be this large; a larger one only when it is no larger than the constants it is made of."""


def fold_constants(graph: Graph) -> Graph:
    """Replace nodes whose inputs are all constant by their values, and Shape and Size of anything (shapes are static).

        w = Mul(c, d); y = Add(x, w)   ->   y = Add(x, w) with params w = c*d

    Left alone: nodes that make a graph output, random ones, control flow, and results over FOLD_LIMIT_BYTES that would be
    larger than their inputs (an Expand of one number to 4 GB stays a node).
    """
    outputs = set(graph.outputs)

    def rule(node: Node, state: Rewriting) -> str | None:
        if len([o for o in node.outputs if o]) != 1 or node.op in RANDOM or not outputs.isdisjoint(node.outputs):
            return None
        if node.op in ("Shape", "Size"):
            return state.define(node.output, _shape_value(node, state.shape(node.inputs[0])))
        if info(node.op).category in ("control", "fused") or not all(i in state.params for i in node.inputs if i):
            return None
        if not _small_enough(node, state):
            return None
        (value,) = evaluate(node, [state.params[i] if i else None for i in node.inputs])[:1]
        kind = state.types[node.output]
        return state.define(node.output, np.asarray(value, dtypes.to_numpy(kind.dtype)).reshape(kind.shape))

    return Rewriting(graph).sweep(rule)


def _small_enough(node: Node, state: Rewriting) -> bool:
    kind = state.types[node.output]
    size_bytes = math.prod(kind.shape) * dtypes.itemsize(kind.dtype)
    return size_bytes <= max(FOLD_LIMIT_BYTES, sum(state.params[i].nbytes for i in node.inputs if i))


def _shape_value(node: Node, shape: tuple[int, ...]) -> np.ndarray:
    if node.op == "Size":
        return np.array(math.prod(shape), np.int64)
    return np.array(shape[node.attrs.get("start", 0):node.attrs.get("end")], np.int64)
