"""FlexAttention (ai.onnx.preview) as ordinary nodes: its score_mod and prob_mod are graphs, written out in between.

    s = (Q*r) @ (K*r)^T, r = sqrt(scale);  s = score_mod(s);  p = Softmax(s);  p = prob_mod(p);  Y = p @ V

Source: ONNX, FlexAttention-1. What the graphs read from outside is what it is there: a mask, a table of biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from onnx import GraphProto

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node
from toolchain.graph.protos import DTYPE_OF, ELEM_TYPE_OF

ATTRS = frozenset(("prob_mod", "scale", "score_mod", "softmax_precision"))


class Pen(Protocol):
    """What of the importer's scope is needed, for one place in the model."""

    @property
    def types(self) -> Mapping[str, TensorType]: ...
    def constant(self, hint: str, array: np.ndarray) -> str: ...
    def op(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any]) -> str: ...
    def graph(self, proto: GraphProto, given: Sequence[str], what: str) -> list[str]: ...


def flex_attention(w: Pen, node: Node, here: str) -> str:
    """Write the node's nodes; gives the value of Y. Raises ImportModelError: attributes or shapes that do not fit."""
    if len(node.inputs) != 3 or (wrong := sorted(set(node.attrs) - ATTRS)):
        raise ImportModelError("needs Q, K and V" if len(node.inputs) != 3 else f"has no attribute {wrong[0]!r}", where=here)
    q, k, v = node.inputs
    types = [w.types[i] for i in (q, k, v)]
    if any(len(t.shape) != 4 for t in types) or types[0].shape[1] % max(types[1].shape[1], 1):
        raise ImportModelError(f"does not fit its inputs ({', '.join(map(str, types))})", where=here)
    heads, size = types[0].shape[1], types[0].shape[3]
    k, v = (_repeated(w, name, heads) for name in (k, v))
    scale = float(node.attrs.get("scale", 1 / math.sqrt(size)))
    root = w.constant(f"{node.name}/scale", np.asarray(np.sqrt(np.float32(scale)), to_numpy(types[0].dtype)))
    scaled = [w.op("Mul", (name, root), {}) for name in (q, k)]
    scores = w.op("MatMul", (scaled[0], w.op("Transpose", (scaled[1],), {"perm": (0, 1, 3, 2)})), {})
    precision = DTYPE_OF.get(node.attrs.get("softmax_precision", 0)) or (
        "float64" if types[0].dtype == "float64" else "float32")
    scores = _modified(w, node, "score_mod", _cast(w, scores, precision), here)
    probabilities = _modified(w, node, "prob_mod", w.op("Softmax", (scores,), {"axis": -1}), here)
    return _cast(w, w.op("MatMul", (probabilities, _cast(w, v, precision)), {}), types[2].dtype)


def _cast(w: Pen, name: str, dtype: str) -> str:
    return name if w.types[name].dtype == dtype else w.op("Cast", (name,), {"to": ELEM_TYPE_OF[dtype]})


def _repeated(w: Pen, name: str, heads: int) -> str:
    """Each head of keys or values as often as it has query heads, one beside the other."""
    batch, own, length, size = w.types[name].shape
    if own == heads:
        return name
    shape = w.constant("heads", np.array([batch, own, heads // own, length, size], "int64"))
    flat = w.constant("heads", np.array([batch, heads, length, size], "int64"))
    wide = w.op("Unsqueeze", (name, w.constant("axes", np.array([2], "int64"))), {})
    return w.op("Reshape", (w.op("Expand", (wide, shape), {}), flat), {})


def _modified(w: Pen, node: Node, attr: str, value: str, here: str) -> str:
    proto = node.attrs.get(attr)
    if proto is None:
        return value
    (made,) = w.graph(proto, (value,), attr)
    if w.types[made].shape != w.types[value].shape:
        raise ImportModelError(f"its {attr} makes {w.types[made]} of {w.types[value]}", where=here)
    return _cast(w, made, w.types[value].dtype)


__all__ = ["Pen", "flex_attention"]
