"""Compute equal things once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import RANDOM, info
from toolchain.graph.passes.rewriting import Rewriting

SMALL_BYTES = 4096      # constants up to this size are compared by content; larger ones by identity


def eliminate_common_subexpressions(graph: Graph) -> Graph:
    """Replace a node by an earlier one that computes the same from the same values.

        a = Exp(x); b = Exp(x); y = Add(a, b)   ->   a = Exp(x); y = Add(a, a)

    Equal means: same operator, attributes and inputs, where small constants of equal content are one. Left alone: operators
    that draw random numbers, control flow, and nodes that make a graph output (each output keeps a node of its own).
    """
    values = _merged_constants(graph)
    seen: dict[Hashable, Node] = {}
    outputs = set(graph.outputs)

    def rule(node: Node, state: Rewriting) -> str | None:
        inputs = tuple(values.get(i, i) for i in node.inputs)
        if node.op in RANDOM or info(node.op).category == "control":
            return None
        key = (node.op, inputs, _frozen(node.attrs), len(node.outputs))
        first = seen.setdefault(key, node)
        if first is node or not outputs.isdisjoint(node.outputs):
            return None
        for old, new in zip(node.outputs, first.outputs, strict=True):
            if old and new:
                values[old] = new
        return first.output if len(node.outputs) == 1 else None

    return Rewriting(graph).sweep(rule)


def _merged_constants(graph: Graph) -> dict[str, str]:
    """Small constants to the first one of the same type and bytes."""
    first: dict[Hashable, str] = {}
    merged = {}
    for name, array in graph.params.items():
        if array.nbytes <= SMALL_BYTES:
            merged[name] = first.setdefault((graph.types[name], array.tobytes()), name)
    return merged


def _frozen(value: Any) -> Hashable:
    """Attributes as something hashable, equal when they are equal."""
    match value:
        case np.ndarray():
            return (value.dtype.str, value.shape, value.tobytes())
        case Graph():
            return id(value)
        case dict():
            return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
        case list() | tuple():
            return tuple(map(_frozen, value))
        case float():
            return ("float", value.hex())       # 0.0 and -0.0 are equal, but not the same attribute
    return (type(value).__name__, value)
