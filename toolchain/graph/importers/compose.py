"""Operators that become several of ONNX's simpler ones when a model is imported: rules of upgrade.py's kind."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, Protocol

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.infer import where
from toolchain.graph.ir import Node


class Context(Protocol):
    """What rules ask of the import in progress (`upgrade.Context`)."""

    @property
    def types(self) -> Mapping[str, TensorType]: ...
    @property
    def params(self) -> Mapping[str, np.ndarray]: ...
    def constant(self, hint: str, array: np.ndarray) -> str: ...
    def fresh(self, hint: str) -> str: ...


class _Nodes:
    """Nodes in the making, named after the one they stand for."""

    def __init__(self, node: Node, context: Context) -> None:
        self.node, self.context, self.made, self.numbers = node, context, list[Node](), count()

    def op(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        name = f"{self.node.name}/{op}_{next(self.numbers)}"
        self.made.append(Node(op, inputs, (out or self.context.fresh(name),), attrs, name, self.node.sources))
        return self.made[-1].output

    def constant(self, array: np.ndarray) -> str:
        return self.context.constant(f"{self.node.name}/constant", array)


def batch_norm_of_batch(node: Node, context: Context) -> tuple[Node, ...]:
    """BatchNormalization in training mode: by the statistics of this batch, which also move the running ones.

        y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias;   mean' = mean*momentum + mean(x)*(1 - momentum); ...

    Source: ONNX BatchNormalization-15; the variance is that of the population.
    """
    if not node.attrs.get("training_mode", 0):
        return (node,)
    x, scale, bias, *running = node.inputs
    t, n = context.types[x], _Nodes(node, context)
    kind = to_numpy(t.dtype)
    axes = n.constant(np.array([a for a in range(len(t.shape)) if a != 1], "int64"))
    shape = n.constant(np.array([-1, *[1] * (len(t.shape) - 2)], "int64"))
    mean = n.op("ReduceMean", x, axes, keepdims=1)
    centred = n.op("Sub", x, mean)
    variance = n.op("ReduceMean", n.op("Mul", centred, centred), axes, keepdims=1)
    epsilon = n.constant(np.asarray(node.attrs.get("epsilon", 1e-5), kind))
    deviation = n.op("Sqrt", n.op("Add", variance, epsilon))
    scaled = n.op("Mul", n.op("Div", centred, deviation), n.op("Reshape", scale, shape))
    y, *moved = node.outputs
    n.op("Add", scaled, n.op("Reshape", bias, shape), out=y)
    flat = n.constant(np.array([-1], "int64"))
    momentum = np.float32(node.attrs.get("momentum", 0.9))
    for out, old, batch in zip(moved, running, (mean, variance)):
        old_kind = to_numpy(context.types[old].dtype)
        kept = n.op("Mul", old, n.constant(np.asarray(momentum, old_kind)))
        new = n.op("CastLike", n.op("Reshape", batch, flat), old)
        n.op("Add", kept, n.op("Mul", new, n.constant(np.asarray(1 - momentum, old_kind))), out=out)
    return tuple(n.made)


def tf_idf_vectorizer(node: Node, context: Context) -> tuple[Node, ...]:
    """How often each n-gram of a pool of integers occurs: comparisons with the pool, summed.

        hits[g, p] = x[p] == pool[g, 0] and x[p + d] == pool[g, 1] and ...     for each distance d (skips + 1)
        counts[g] = sum of hits over p and d;      y[ngram_indexes[g]] += counts[g], then weighted

    Source: ONNX TfIdfVectorizer-9. A weight belongs to its n-gram, as the text and ONNX Runtime have it; ONNX's reference
    takes it for one of a place of the output.
    """
    attrs, n = node.attrs, _Nodes(node, context)
    if "pool_int64s" not in attrs:
        raise ImportModelError("n-grams of strings are not supported", where=where(node), fix="map words to integers before")
    t = context.types[node.inputs[0]]
    length = t.shape[-1] if t.shape else 1
    x = n.op("Reshape", n.op("Cast", node.inputs[0], to=7), n.constant(np.array([-1, 1, length], "int64")))
    pools = _pools(node)
    indexes = np.array(attrs["ngram_indexes"], "int64")
    used = np.concatenate([first for first, _ in pools.values()])
    counts = [_counted(n, x, length, grams, int(attrs["max_skip_count"])) for _, grams in pools.values()]
    places = np.zeros((len(used), int(indexes.max()) + 1), "float32")
    places[np.arange(len(used)), indexes[used]] = 1
    found = n.op("MatMul", n.op("Concat", *counts, axis=1), n.constant(places))
    if attrs["mode"] == "IDF":
        found = n.op("Min", found, n.constant(np.asarray(1, "float32")))
    if attrs["mode"] != "TF" and attrs.get("weights"):
        weights = np.zeros(places.shape[1], "float32")
        weights[indexes[used]] = np.array(attrs["weights"], "float32")[used]
        found = n.op("Mul", found, n.constant(weights))
    shape = [*t.shape[:-1], places.shape[1]]
    n.op("Reshape", found, n.constant(np.array(shape, "int64")), out=node.output)
    return tuple(n.made)


def _pools(node: Node) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Per length of n-grams that counts: their numbers, and the n-grams as rows."""
    pool, starts = np.array(node.attrs["pool_int64s"], "int64"), [*node.attrs["ngram_counts"]]
    low, high = int(node.attrs["min_gram_length"]), int(node.attrs["max_gram_length"])
    found, before = {}, 0
    for size, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)]), 1):
        grams = pool[start:end].reshape(-1, size)
        if low <= size <= high and len(grams):
            found[size] = np.arange(before, before + len(grams)), grams
        before += len(grams)
    if not found or before != len(node.attrs["ngram_indexes"]):
        raise ImportModelError(f"its pool holds {before} n-grams, ngram_indexes {len(node.attrs['ngram_indexes'])}",
                               where=where(node))
    return found


def _counted(n: _Nodes, x: str, length: int, grams: np.ndarray, skips: int) -> str:
    """[rows, grams] float32: occurrences of n-grams of one length; single items are not skipped."""
    size, total = grams.shape[1], ""
    for distance in range(1, (skips if size > 1 else 0) + 2):
        places = length - (size - 1) * distance
        if places < 1:
            break
        hits = ""
        for k in range(size):
            ends = [np.array([v], "int64") for v in (k * distance, k * distance + places, 2, 1)]
            piece = n.op("Slice", x, *map(n.constant, ends))
            same = n.op("Equal", piece, n.constant(np.ascontiguousarray(grams[:, k]).reshape(1, -1, 1)))
            hits = n.op("And", hits, same) if hits else same
        summed = n.op("ReduceSum", n.op("Cast", hits, to=1), n.constant(np.array([2], "int64")), keepdims=0)
        total = n.op("Add", total, summed) if total else summed
    if total:
        return total
    rows = n.op("ReduceSum", n.op("Cast", x, to=1), n.constant(np.array([2], "int64")), keepdims=0)
    return n.op("Mul", rows, n.constant(np.zeros((1, len(grams)), "float32")))


__all__ = ["batch_norm_of_batch", "tf_idf_vectorizer"]
