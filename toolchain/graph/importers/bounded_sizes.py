"""Dimensions that must agree, where one or the other depends on data (see bounded.py).

Two dimensions are the same for certain only if one value is the extent of both. Where ONNX asks of others to be equal, or to
broadcast, that is checked when the model runs, and a run that does not fit ends with an error, as ONNX Runtime's does:

    Add(x: [9 at most, 4] of extent %n, y: [12 at most, 4] of extent %m)
        ->   %r = If(%n == %m or %n == 1 or %m == 1) {then: %n == 1 ? %m : %n} {else: Fail()};   Add on [12, 4] of extent %r
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import InternalError
from toolchain.graph.importers.bounded import Bounding, Extents, Number
from toolchain.graph.infer import where
from toolchain.graph.ir import Graph, Node

GROWTH = 64                     # a bound may be so many times what it was made of,
SMALL = 2**16                   # or hold so many elements


def names(sizes: Sequence[Number]) -> Extents:
    """Sizes as extents: those that are known are static."""
    return tuple(n if isinstance(n, str) else "" for n in sizes)


def bounds(b: Bounding, sizes: Sequence[Number]) -> list[int]:
    return [b.bound(n) for n in sizes]


def wanted(b: Bounding, name: str) -> list[Number] | None:
    """The sizes that a tensor of integers asks for, each with a bound; None: there is none."""
    known = b.numbers(name)
    if known is None:
        high = b.state.range_of(name)[1]
        if math.isinf(high) or len(b.shape(name)) > 1:
            return None
        wide = name if b.state.types[name].dtype == "int64" else b.op("Cast", name, to=7)
        each = [b.op("Gather", wide, b.int64(k), axis=0) for k in range(b.shape(name)[0])]
        known = tuple(b.extent(one, max(int(high), 0)) for one in each)
    return list(known)


def sizes(b: Bounding, given: Sequence[Number]) -> list[Number]:
    """Numbers as extents: none below 0, nor (they may come from a NaN) above its bound."""
    return [n if isinstance(n, int) else _kept(b, n) for n in given]


def _kept(b: Bounding, n: str) -> str:
    low, high = b.state.range_of(n)
    if low >= 0 and high <= b.bound(n):
        return n
    key = ("kept", n)
    if key not in b.state.masks:
        kept = b.op("Max", b.op("Min", n, b.int64(b.bound(n))), b.int64(0))
        b.state.masks[key] = b.extent(kept, b.bound(n))
    return b.state.masks[key]


def checked(b: Bounding, value: str, ok: str, reason: str) -> str:
    """The value, where `ok` (a bool) holds; else the run ends with that reason.

        %y = If(%ok, %value) {then: value} {else: Fail()}
    """
    if (known := b.state.params.get(ok)) is not None:
        if known.all():
            return value
        raise b.refuse(reason)
    node, t = b.node, b.state.types[value]
    label = f"{node.name}/fits"
    attrs = {"types": (t,), "reason": f"{where(node)}: {reason}"}
    fail = Node("Fail", (), ("failed",), attrs, f"{label}.fail", node.sources)
    fits = Graph(label, (), ("value",), ("value",), {"value": t})
    ends = Graph(f"{label}.not", (fail,), ("value",), ("failed",), {"value": t, "failed": t})
    made = b.op("If", ok, value, then_branch=fits, else_branch=ends)
    b.state.ranges[made] = b.state.range_of(value)
    return made


def agree(b: Bounding, given: Sequence[Number], *, broadcast: bool = False) -> Number:
    """The one size that dimensions of these sizes have: all of them are equal (or, `broadcast`, are 1).

    Where one is known they all have to be that; `fitted` checks it of each.
    """
    distinct = list(dict.fromkeys(n for n in given if not (broadcast and n == 1))) or [1]
    known = [n for n in distinct if isinstance(n, int)]
    if len(known) > 1:
        raise b.misfit(f"its dimensions of {known[0]} and {known[1]} do not fit")
    if known or len(distinct) == 1:
        return (known or distinct)[0]
    key = ("agree", broadcast, *distinct)
    if key not in b.state.masks:
        b.state.masks[key] = _one(b, [n for n in distinct if isinstance(n, str)], broadcast)
    return b.state.masks[key]


def _one(b: Bounding, extents: Sequence[str], broadcast: bool) -> str:
    size, *others = extents
    for other in others:
        bound = (max if broadcast else min)(b.bound(size), b.bound(other))
        ok, result = b.op("Equal", size, other), size
        if broadcast:
            one = b.op("Equal", size, b.int64(1))
            ok = b.op("Or", ok, b.op("Or", one, b.op("Equal", other, b.int64(1))))
            result = b.op("Where", one, other, size)
        size = b.extent(checked(b, result, ok, "dimensions that depend on data do not fit each other"), bound)
    return size


def fitted(b: Bounding, x: str, axis: int, size: Number, *, broadcast: bool = False) -> str:
    """x, whose dimension is of that size (broadcast: or 1), with a dimension of the size's bound.

    Of a known size that x has to have, what is read depends on the check of it, so that nobody finds the check useless.
    """
    own, most, bound = b.size(x, axis), b.shape(x)[axis], b.bound(size)
    if own == size or (broadcast and own == 1):
        return x
    if not isinstance(own, str) or not isinstance(size, str):
        at = _places(b, own, size, most, broadcast)
        y = b.op("Gather", x, at, axis=axis)
    elif broadcast and bound > 1:
        reached = b.int64(np.minimum(np.arange(bound), most - 1))
        y = b.op("Gather", x, b.op("Where", b.op("Equal", own, b.int64(1)), b.int64(0), reached), axis=axis)
    else:
        y = resized(b, x, axis, bound)
    b.set(y, tuple((size if isinstance(size, str) else "") if d == axis else e for d, e in enumerate(b.extents(x))))
    return y


def _places(b: Bounding, own: Number, size: Number, most: int, broadcast: bool) -> str:
    """Where each element comes from, of a dimension that has to have a known size: checked."""
    key = ("places", own, size, most, broadcast)
    if key not in b.state.masks:
        extent, n = (own, size) if isinstance(own, str) else (size, own)
        assert isinstance(extent, str)
        assert isinstance(n, int)
        one = b.op("Equal", extent, b.int64(1))
        ok = b.op("Equal", extent, b.int64(n))
        ok = b.op("Or", ok, one) if broadcast else ok
        same = checked(b, b.int64(0), ok, f"a dimension that depends on data does not fit {n}")
        at = b.int64(np.minimum(np.arange(b.bound(size)), max(most - 1, 0)))
        if broadcast:
            at = b.op("Where", one, b.int64(0), at)
        b.state.masks[key] = b.op("Add", at, same)
    return b.state.masks[key]


def resized(b: Bounding, x: str, axis: int, n: int) -> str:
    """x with n elements along the axis: the first ones, or (padding) the last one again and again. Extents are not set."""
    most = b.shape(x)[axis]
    if most == n:
        return b.op("Identity", x)
    if most > n:
        return b.op("Slice", x, b.int64([0]), b.int64([n]), b.int64([axis]), b.int64([1]))
    if not most:
        shape = tuple(n if d == axis else m for d, m in enumerate(b.shape(x)))
        return b.array(np.zeros(shape, to_numpy(b.state.types[x].dtype)))
    return b.op("Gather", x, b.int64(np.minimum(np.arange(n), most - 1)), axis=axis)


def spread(b: Bounding, flat: str, to: Sequence[Number], y: str = "") -> str:
    """The elements of a dense vector (`Bounding.dense`) as a tensor of these sizes.

        y[i, j] = flat[i*n + j]     for sizes (m, n): a Reshape where n is known, else a Gather
    """
    shape, length = bounds(b, to), b.shape(flat)[0]
    elements = math.prod(shape)
    if elements > max(GROWTH * max(length, 1), SMALL):
        raise b.refuse(f"its shape has no useful bound: at most {list(shape)}, of {length} elements")
    first = next((d for d, n in enumerate(shape) if n != 1 or isinstance(to[d], str)), len(shape))
    if not any(isinstance(n, str) for n in to[first + 1:]) or not elements or not length:
        whole = resized(b, flat, 0, elements) if any(isinstance(n, str) for n in to) else fitted(b, flat, 0, elements)
        y = b.op("Reshape", whole, b.int64(shape), out=y)
    else:
        at, step = "", b.int64(1)
        for d in reversed(range(len(shape))):
            index = b.int64(np.arange(shape[d]).reshape(-1, *(1,) * (len(shape) - 1 - d)))
            part = b.op("Mul", index, step)
            at = b.op("Add", at, part) if at else part
            step = b.op("Mul", step, b.value(to[d]))
        y = b.op("Gather", flat, b.op("Min", at, b.int64(length - 1)), out=y, axis=0)
    if b.shape(y) != tuple(shape):
        raise InternalError(f"{where(b.node)}: {list(b.shape(y))} for {shape}")
    b.set(y, names(to))
    return y


__all__ = ["agree", "bounds", "checked", "fitted", "names", "resized", "sizes", "spread", "wanted"]
