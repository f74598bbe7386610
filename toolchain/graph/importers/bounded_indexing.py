"""Operators that read or write at computed places, where dimensions depend on data (see bounded.py).

Indices in padding are made harmless first: those that read become 0; those that write become one past the end, where
scattering leaves an update out.
"""

from __future__ import annotations

from collections.abc import Callable

from toolchain.graph.importers.bounded import Bounding, Number
from toolchain.graph.importers.bounded_sizes import agree, fitted
from toolchain.graph.ir import Node


def gather(b: Bounding, node: Node) -> None:
    """y[i..., k..., j...] = x[i..., indices[k...], j...]; negative indices count from the true end."""
    (x, indices), axis = node.inputs, b.axis("axis", 0)
    extents, picked = b.extents(x), b.extents(indices)
    safe = b.masked(indices, 0)
    b.op("Gather", x, from_end(b, safe, extents[axis]), out=node.outputs[0], axis=axis)
    b.set(node.outputs[0], (*extents[:axis], *picked, *extents[axis + 1:]))


def from_end(b: Bounding, indices: str, extent: str) -> str:
    """Indices into a dimension of that extent, none of them negative."""
    if not extent or b.state.range_of(indices)[0] >= 0:
        return indices
    wide = b.op("Cast", indices, to=7)
    return b.op("Where", b.op("Less", wide, b.int64(0)), b.op("Add", wide, extent), wide)


def _from_ends(b: Bounding, indices: str, into: list[Number]) -> str:
    """The same of indices whose last dimension is one index into these dimensions."""
    if not any(isinstance(n, str) for n in into) or b.state.range_of(indices)[0] >= 0:
        return indices
    one = b.int64([1])
    ends = b.op("Concat", *(b.op("Reshape", b.value(n), one) for n in into), axis=0)
    wide = b.op("Cast", indices, to=7)
    return b.op("Where", b.op("Less", wide, b.int64(0)), b.op("Add", wide, ends), wide)


def gather_nd(b: Bounding, node: Node) -> None:
    """y[b..., j..., r...] = x[b..., *indices[b..., j..., :], r...]"""
    x, indices = node.inputs
    batch, depth = int(b.attr("batch_dims", 0)), b.shape(indices)[-1]
    if b.extents(indices)[-1]:
        raise b.refuse("GatherND of indices into a number of dimensions that depends on data is not supported")
    for d in range(batch):
        size = agree(b, [b.size(x, d), b.size(indices, d)])
        x, indices = fitted(b, x, d, size), fitted(b, indices, d, size)
    into = [b.size(x, d) for d in range(batch, batch + depth)]
    safe = _from_ends(b, b.masked(indices, 0), into)
    b.op("GatherND", x, safe, out=node.outputs[0], batch_dims=batch)
    b.set(node.outputs[0], (*b.extents(indices)[:-1], *b.extents(x)[batch + depth:]))


def gather_elements(b: Bounding, node: Node) -> None:
    """y[i..., k, j...] = x[i..., indices[i..., k, j...], j...]"""
    (x, indices), axis = node.inputs, b.axis("axis", 0)
    for d in range(len(b.shape(x))):
        if d != axis and (b.extents(x)[d] or b.extents(indices)[d]):
            size = agree(b, [b.size(x, d), b.size(indices, d)])
            x, indices = fitted(b, x, d, size), fitted(b, indices, d, size)
    safe = from_end(b, b.masked(indices, 0), b.extents(x)[axis])
    b.op("GatherElements", x, safe, out=node.outputs[0], axis=axis)
    b.set(node.outputs[0], b.extents(indices))


def scatter_elements(b: Bounding, node: Node) -> None:
    """y = x, but y[i..., indices[i..., k, j...], j...] = updates[i..., k, j...]"""
    (x, indices, updates), axis = node.inputs, b.axis("axis", 0)
    safe = from_end(b, indices, b.extents(x)[axis])
    for d in range(len(b.shape(x))):
        size = agree(b, [b.size(safe, d), b.size(updates, d)])
        safe, updates = fitted(b, safe, d, size), fitted(b, updates, d, size)
    safe = b.masked(safe, b.shape(x)[axis])
    b.op(node.op, x, safe, updates, out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], b.extents(x))


def scatter_nd(b: Bounding, node: Node) -> None:
    """y = x, but y[*indices[j..., :], r...] = updates[j..., r...]"""
    x, indices, updates = node.inputs
    depth, many = b.shape(indices)[-1], len(b.shape(indices)) - 1
    if b.extents(indices)[-1]:
        raise b.refuse("ScatterND of indices into a number of dimensions that depends on data is not supported")
    indices = _from_ends(b, indices, [b.size(x, d) for d in range(depth)])
    for d in range(many):
        size = agree(b, [b.size(indices, d), b.size(updates, d)])
        indices, updates = fitted(b, indices, d, size), fitted(b, updates, d, size)
    for d in range(depth, len(b.shape(x))):
        size = agree(b, [b.size(x, d), b.size(updates, many + d - depth)])
        x, updates = fitted(b, x, d, size), fitted(b, updates, many + d - depth, size)
    b.op(node.op, x, b.masked(indices, max(b.shape(x)[:depth], default=0)), updates, out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], b.extents(x))


def one_hot(b: Bounding, node: Node) -> None:
    """OneHot: a dimension more, of the classes."""
    extents = list(b.extents(node.inputs[0]))
    axis = int(b.attr("axis", -1)) % (len(extents) + 1)
    extents.insert(axis, "")
    b.same(tuple(extents))


INDEXING: dict[str, Callable[[Bounding, Node], None]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}

__all__ = ["INDEXING", "from_end"]
