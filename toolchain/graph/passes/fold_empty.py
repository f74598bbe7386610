"""Tensors without elements are constants: what is made of them alone is known, and nothing is left to compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import RANDOM, info
from toolchain.graph.passes.rewriting import Rewriting


def fold_empty(graph: Graph) -> Graph:
    """Replace values without elements, and what depends on such values and constants only.

        y: float32[2, 0] = Add(x, z)                 ->   y = an empty constant
        s: float32[2] = ReduceSum(x: float32[2, 0])  ->   s = [0, 0]
        c = Concat(x: float32[0], z)                 ->   c = z

    Kernels compute at least one element. Random operators and control flow stay as they are.
    """
    def rule(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
        if info(node.op).category in ("control", "fused") or node.op in RANDOM:
            return None
        named = [o for o in node.outputs if o]
        empty = [i for i in node.inputs if i and not state.types[i].elements]
        if all(not state.types[o].elements for o in named):
            arrays = [np.zeros(state.shape(o), to_numpy(state.types[o].dtype)) for o in named]
            return _constants(node, named, arrays, state)
        if not empty:
            return None
        if node.op == "Concat":
            return _without_empty(node, state)
        if all(i in state.params or not state.types[i].elements for i in node.inputs if i):
            given = [_array(i, state) if i else None for i in node.inputs]
            made = dict(zip(node.outputs, evaluate(node, given)))
            return _constants(node, named, [made[o] for o in named], state)
        return None

    return Rewriting(graph).sweep(rule)


def _array(name: str, state: Rewriting) -> np.ndarray:
    known = state.constant(name)
    return known if known is not None else np.zeros(state.shape(name), to_numpy(state.types[name].dtype))


def _constants(node: Node, named: Sequence[str], arrays: Sequence[np.ndarray], state: Rewriting) -> str:
    for name, array in zip(named, arrays, strict=True):
        state.define(name, array)
    return node.output


def _without_empty(node: Node, state: Rewriting) -> Sequence[Node]:
    kept = tuple(i for i in node.inputs if state.types[i].elements)
    return [Node(node.op if len(kept) > 1 else "Identity", kept, node.outputs,
                 dict(node.attrs) if len(kept) > 1 else {}, node.name)]
