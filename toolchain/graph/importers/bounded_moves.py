"""Operators that cut, join and repeat, where dimensions depend on data (see bounded.py): a Gather of the elements wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.graph.importers.bounded import Bounding, Number
from toolchain.graph.importers.bounded_sizes import agree, fitted, names, sizes, wanted
from toolchain.graph.ir import Node

INT64_MAX = 2**63 - 1


# --- cutting

def slice_(b: Bounding, node: Node) -> None:
    """Static dimensions with constant ends are cut as ever; the others by a Gather of the indices that are wanted."""
    x = node.inputs[0]
    starts, ends = (elements(b, i) for i in node.inputs[1:3])
    rank = len(b.shape(x))
    axes = [a % rank for a in (b.ints(3) or range(len(starts)))]
    steps = b.ints(4) or [1] * len(axes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(start, int) and isinstance(end, int) and not b.extents(x)[axis]:
            extents = b.extents(x)
            x = b.op("Slice", x, b.int64([start]), b.int64([end]), b.int64([axis]), b.int64([step]))
            b.set(x, extents)
        else:
            x = cut(b, x, axis, start, end, step)
    _named(b, x, node.outputs[0])


def _named(b: Bounding, x: str, y: str) -> None:
    extents = b.extents(x)
    b.op("Identity", x, out=y)
    b.set(y, extents)


def elements(b: Bounding, name: str) -> list[Number]:
    """The elements of a short vector of integers, those that are not known as values of their own."""
    known = b.numbers(name)
    if known is not None:
        return list(known)
    wide = name if b.state.types[name].dtype == "int64" else b.op("Cast", name, to=7)
    return [b.op("Gather", wide, b.int64(k), axis=0) for k in range(b.shape(name)[0])]


def cut(b: Bounding, x: str, axis: int, start: Number, end: Number, step: int) -> str:
    """x[start:end:step] along one axis, where a bound or the length is known at run time only."""
    size, most = b.size(x, axis), b.shape(x)[axis]
    first, last = (_clamped(b, n, size, step) for n in (start, end))
    bound = _most(b, start, end, step, most)
    length = b.op("Sub", last, first) if step > 0 else b.op("Sub", first, last)
    rounded = b.op("Add", length, b.int64(abs(step) - 1)) if abs(step) > 1 else length
    count = b.op("Div", rounded, b.int64(abs(step))) if abs(step) > 1 else rounded
    count = b.op("Min", b.op("Max", count, b.int64(0)), b.int64(bound))
    at = b.op("Add", b.int64(np.arange(bound) * step), first)
    at = b.op("Max", b.op("Min", at, b.int64(max(most - 1, 0))), b.int64(0))
    extents = tuple(b.extent(count, bound) if d == axis else e for d, e in enumerate(b.extents(x)))
    y = b.op("Gather", x, at, axis=axis)
    b.set(y, extents)
    return y


def _clamped(b: Bounding, n: Number, size: Number, step: int) -> str:
    """A start or end as an index from the front, moved into the dimension. Source: ONNX Slice."""
    low, shift = (0, 0) if step > 0 else (-1, 1)
    length = b.value(size)
    if isinstance(n, int):
        at = b.op("Add", length, b.int64(n)) if n < 0 else b.int64(min(n, INT64_MAX))
    else:
        at = n if b.state.range_of(n)[0] >= 0 else b.op("Where", b.op("Less", n, b.int64(0)), b.op("Add", n, length), n)
    highest = b.op("Sub", length, b.int64(shift)) if shift else length
    return b.op("Max", b.op("Min", at, highest), b.int64(low))


def _most(b: Bounding, start: Number, end: Number, step: int, most: int) -> int:
    """How many elements x[start:end:step] has at most, of a dimension of at most so many."""
    if step > 0 and isinstance(start, int) and start < 0:
        stop = end if isinstance(end, int) and end < 0 else 0
        most = min(most, max(stop - start, 0))
    elif step > 0:
        (least, _), (nearest, highest) = _range(b, start), _range(b, end)
        most = int(min(highest, most)) if nearest >= 0 else most
        most = max(most - int(min(least, most)), 0) if least >= 0 else most
    return -(-most // abs(step))


def _range(b: Bounding, n: Number) -> tuple[float, float]:
    return (n, n) if isinstance(n, int) else b.state.range_of(n)


def split(b: Bounding, node: Node) -> None:
    """Along a static dimension as ever; else every part is cut."""
    x, axis = node.inputs[0], b.axis("axis", 0)
    extents, count = b.extents(x), len(node.outputs)
    given = elements(b, node.inputs[1]) if b.has(1) else None
    if not extents[axis] and (given is None or all(isinstance(n, int) for n in given)):
        b.same(*[extents] * count)
        return
    if given is None:                       # equal parts, the last one smaller
        most, size = b.shape(x)[axis], b.size(x, axis)
        part = b.compute("Div", b.compute("Add", size, count - 1, most + count - 1), count, -(-most // count))
        given = [part] * count
    start: Number = 0
    for y, length in zip(node.outputs, sizes(b, given), strict=True):
        end = b.compute("Add", start, length, b.shape(x)[axis])
        if y:
            _named(b, cut(b, x, axis, start, end, 1), y)
        start = end


# --- joining

def concat(b: Bounding, node: Node) -> None:
    """Along a static axis as ever. Along one that depends on data the pieces move up: a Gather of what is not padding.

        p < n0: x0[p];   p < n0 + n1: x1[p - n0];   ...        as Concat(x0, x1)[p + (B0 - n0 if p >= n0 else 0) + ...]
    """
    rank, y, inputs = len(b.shape(node.inputs[0])), node.outputs[0], list(node.inputs)
    axis = b.axis("axis", 0)
    for d in range(rank):
        if d != axis:
            size = agree(b, [b.size(i, d) for i in inputs])
            inputs = [fitted(b, i, d, size) for i in inputs]
    extents = tuple(b.extents(inputs[0]))
    inputs = [i for i in inputs if b.shape(i)[axis]] or inputs[:1]
    if not any(b.extents(i)[axis] for i in inputs):
        b.op("Concat", *inputs, out=y, axis=axis)
        b.set(y, tuple("" if d == axis else e for d, e in enumerate(extents)))
        return
    bound = sum(b.shape(i)[axis] for i in inputs)
    joined = b.op("Concat", *inputs, axis=axis)
    place = b.int64(np.arange(bound))
    at, total = place, 0
    end: Number = 0
    for i in inputs:
        most, size = b.shape(i)[axis], b.size(i, axis)
        total += most
        end = b.compute("Add", end, size, total)
        if isinstance(size, str):
            gap = b.op("Sub", b.int64(most), size)
            behind = b.op("GreaterOrEqual", place, b.value(end))
            at = b.op("Add", at, b.op("Where", behind, gap, b.int64(0)))
    at = b.op("Min", at, b.int64(bound - 1))
    b.op("Gather", joined, at, out=y, axis=axis)
    assert isinstance(end, str)
    b.set(y, tuple(end if d == axis else e for d, e in enumerate(extents)))


# --- repeating

def expand(b: Bounding, node: Node) -> None:
    x, asked = node.inputs[0], wanted(b, node.inputs[1])
    if asked is None:
        raise b.undecided()
    asked = sizes(b, asked)
    rank = max(len(b.shape(x)), len(asked))
    to: list[Number] = []
    for d in range(-rank, 0):
        given = [b.size(x, d)] if -d <= len(b.shape(x)) else []
        to.append(agree(b, [*given, *([asked[d]] if -d <= len(asked) else [])], broadcast=True))
    for d in range(-len(b.shape(x)), 0):
        x = fitted(b, x, len(b.shape(x)) + d, to[d], broadcast=True)
    b.op("Expand", x, b.int64([b.bound(n) for n in to]), out=node.outputs[0])
    b.set(node.outputs[0], names(to))


def tile(b: Bounding, node: Node) -> None:
    """y[p] = x[p mod n] along each dimension."""
    x, repeats = node.inputs[0], wanted(b, node.inputs[1])
    if repeats is None:
        raise b.undecided()
    for axis, times in enumerate(sizes(b, repeats)):
        size, most = b.size(x, axis), b.shape(x)[axis]
        if times == 1 or not most:
            continue
        total = b.compute("Mul", size, times, most * b.bound(times))
        at = b.op("Mod", b.int64(np.arange(b.bound(total))), b.value(b.compute("Max", size, 1, most)))
        extents = b.extents(x)
        x = b.op("Gather", x, at, axis=axis)
        b.set(x, tuple(names([total])[0] if d == axis else e for d, e in enumerate(extents)))
    _named(b, x, node.outputs[0])


def pad(b: Bounding, node: Node) -> None:
    """Dimensions that are static, by constants, as ever. Others one by one, y[p] = x[p - before] or what the mode says."""
    x, rank = node.inputs[0], len(b.shape(node.inputs[0]))
    axes = [a % rank for a in (b.ints(3) or range(rank))]
    amounts = wanted(b, node.inputs[1])
    if amounts is None:
        raise b.undecided()
    for axis, before, after in zip(axes, amounts, amounts[len(axes):], strict=False):
        if isinstance(before, int) and isinstance(after, int) and not b.extents(x)[axis]:
            extents, fill = b.extents(x), b.node.inputs[2] if b.has(2) else ""
            x = b.op("Pad", x, b.int64([before, after]), fill, b.int64([axis]), mode=b.attr("mode", "constant"))
            b.set(x, extents)
        elif before != 0 or after != 0:
            x = _padded(b, x, axis, before, after)
    _named(b, x, node.outputs[0])


def _padded(b: Bounding, x: str, axis: int, before: Number, after: Number) -> str:
    size, most, mode = b.size(x, axis), b.shape(x)[axis], str(b.attr("mode", "constant"))
    bound = max(most + b.bound(before) + b.bound(after), 0)
    total = b.compute("Add", b.compute("Add", size, before, most + b.bound(before)), after, bound)
    total = sizes(b, [total])[0]
    place = b.op("Sub", b.int64(np.arange(bound)), b.value(before))
    at = place
    if mode == "wrap":
        at = b.op("Mod", place, b.value(b.compute("Max", size, 1, most)))
    elif mode == "reflect":                     # 3 2 1 [0 1 2 3] 2 1 0: a saw with a period of 2n - 2
        last = b.compute("Max", b.compute("Sub", size, 1, most - 1), 1, max(most - 1, 1))
        along = b.op("Mod", place, b.value(b.compute("Mul", last, 2, 2 * b.bound(last))))
        at = b.op("Sub", b.value(last), b.op("Abs", b.op("Sub", along, b.value(last))))
    highest = b.value(b.compute("Max", b.compute("Sub", size, 1, most - 1), 0, max(most - 1, 0)))
    at = b.op("Min", b.op("Max", at, b.int64(0)), highest)
    extents = b.extents(x)
    y = b.op("Gather", x, at, axis=axis)
    if mode == "constant":
        inside = b.op("And", b.op("GreaterOrEqual", place, b.int64(0)), b.op("Less", place, b.value(size)))
        shape = [bound if d == axis else 1 for d in range(len(extents))]
        nil = b.array(np.zeros((), to_numpy(b.state.types[y].dtype)))
        fill = b.op("Reshape", b.node.inputs[2], b.int64(np.zeros(0))) if b.has(2) else nil
        y = b.op("Where", b.op("Reshape", inside, b.int64(shape)), y, fill)
    b.set(y, tuple(names([total])[0] if d == axis else e for d, e in enumerate(extents)))
    return y


MOVES: dict[str, Callable[[Bounding, Node], None]] = {
    "Concat": concat,
    "Expand": expand,
    "Pad": pad,
    "Slice": slice_,
    "Split": split,
    "Tile": tile,
}

__all__ = ["MOVES", "cut", "elements"]
