"""Operators about shapes, where dimensions depend on data (see bounded.py): Shape and what is computed from it, and those
that cut, join and rearrange dimensions.

A small integer tensor that comes from a Shape is followed element by element (`State.numbers`), so that

    Reshape(x, Concat(Gather(Shape(x), 0), [-1]))        finds that its first dimension is the extent of x again
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from toolchain.graph.importers.bounded import Bounding, Extents, Number
from toolchain.graph.ir import Node

INT64_MAX = 2**63 - 1
MOST_NUMBERS = 16                   # elements of a tensor that are followed one by one: shapes are short


# --- numbers that come from shapes

def shape_of(b: Bounding, node: Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    rank = len(b.shape(x))
    sizes = [b.size(x, d) for d in range(rank)][slice(b.attr("start", 0), b.attr("end", rank))]
    one = b.int64([1])
    pieces = [b.op("Reshape", n, one) if isinstance(n, str) else b.int64([n]) for n in sizes]
    b.op("Concat", *pieces, out=y, axis=0)
    b.state.numbers[y] = tuple(sizes)


def size_of(b: Bounding, node: Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    total = b.total(x)
    b.op("Identity", b.value(total), out=y)
    b.state.numbers[y] = (total,)


def follow(b: Bounding, node: Node) -> None:
    """Note what is known of the results of a node that was emitted, when it computes with numbers that come from shapes."""
    if len(node.outputs) != 1 or b.state.types[y := node.outputs[0]].elements > MOST_NUMBERS:
        return
    known = _followed(b, node, [b.numbers(i) if i else () for i in node.inputs])
    if known is not None and any(isinstance(n, str) for n in known):
        b.state.numbers[y] = known


def _followed(b: Bounding, node: Node, given: Sequence[tuple[Number, ...] | None]) -> tuple[Number, ...] | None:
    first = given[0] if given else None
    match node.op:
        case "Concat" if all(g is not None for g in given):
            return tuple(n for g in given if g is not None for n in g)
        case "Cast" if b.state.types[node.outputs[0]].dtype in ("int32", "int64"):
            return first
        case "Identity" | "Squeeze" | "Unsqueeze" | "Reshape":
            return first
        case "Gather" if first is not None and given[1] is not None and len(b.shape(node.inputs[0])) == 1:
            return tuple(first[k] for k in given[1] if isinstance(k, int))
        case "Slice" if first is not None and all(g is not None for g in given):
            (start,), (end,), step = given[1] or (0,), given[2] or (0,), (given[4] if len(given) > 4 else None) or (1,)
            if isinstance(start, int) and isinstance(end, int):
                return first[start:end:int(step[0])]
        case "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "ReduceMin" | "ReduceMax":
            return _arithmetic(b, node, given)
    return None


def _arithmetic(b: Bounding, node: Node, given: Sequence[tuple[Number, ...] | None]) -> tuple[Number, ...] | None:
    """One number from two (or from a short list, for a minimum): the value itself, and the most it can be."""
    y, reducing = node.outputs[0], node.op.startswith("Reduce")
    operands = list(given[0] or ()) if reducing else [g[0] for g in given if g is not None and len(g) == 1]
    if b.state.types[y].elements != 1 or len(operands) < 2 or (not reducing and len(operands) != len(node.inputs)):
        return None
    bounds = [b.bound(n) for n in operands]
    match node.op.removeprefix("Reduce"):
        case "Add":
            bound = sum(bounds)
        case "Mul":
            bound = math.prod(bounds)
        case "Min":
            bound = min(bounds)
        case "Max":
            bound = max(bounds)
        case "Sub" if isinstance(operands[1], int):
            bound = bounds[0] - operands[1]
        case "Div" if isinstance(operands[1], int) and operands[1] > 0:
            bound = bounds[0] // operands[1]
        case _:
            return None
    return (b.extent(_scalar(b, y), bound),) if bound >= 0 else None


def _scalar(b: Bounding, name: str) -> str:
    """A tensor of one integer as an int64 without dimensions."""
    if b.state.types[name].dtype != "int64":
        name = b.op("Cast", name, to=7)
    return name if not b.shape(name) else b.op("Reshape", name, b.int64(np.zeros(0)))


# --- rearranging

def reshape(b: Bounding, node: Node) -> None:
    x, target = node.inputs[0], b.numbers(node.inputs[1])
    if target is None:
        raise b.undecided()
    keep = not b.attr("allowzero", 0)
    into(b, x, [b.size(x, d) if n == 0 and keep else n for d, n in enumerate(target)], node.outputs[0])


def flatten(b: Bounding, node: Node) -> None:
    x, shape = node.inputs[0], b.shape(node.inputs[0])
    axis = int(b.attr("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    before, after = math.prod(shape[:axis]), math.prod(shape[axis:])
    into(b, x, [before, -1] if any(b.extents(x)[axis:]) else [-1, after], node.outputs[0])


def into(b: Bounding, x: str, target: Sequence[Number], y: str) -> None:
    """Reshape: directly where the bounded dimension keeps what is outside and inside of it, else through the dense form."""
    spot = _open_dimension(b, target)
    outside, inside = (math.prod(n for n in part if isinstance(n, int)) for part in (target[:spot], target[spot + 1:]))
    if (place := _kept(b, x, outside, inside)) is None:
        x, place = b.dense(x), 0
        if outside != 1:
            raise b.refuse("its new shape puts a dimension that depends on data behind others")
    shape, extent = b.shape(x), b.extents(x)[place]
    within = math.prod(shape[place + 1:])
    if shape[place] * within % inside:
        raise b.refuse(f"dimensions of at most {list(shape)} do not divide into {list(target)}")
    bound = shape[place] * within // inside
    if within != inside:
        times = b.op("Mul", b.value(extent), b.int64(within))
        extent = b.extent(b.op("Div", times, b.int64(inside)), bound)
    elif isinstance(named := target[spot], str) and b.bound(named) == bound:
        extent = named                          # the model's own name for it: comparable with others
    b.op("Reshape", x, b.int64([bound if d == spot else int(n) for d, n in enumerate(target)]), out=y)
    b.set(y, tuple(extent if d == spot else "" for d in range(len(target))))


def _open_dimension(b: Bounding, target: Sequence[Number]) -> int:
    """The dimension of a new shape that depends on data: the -1, or the one that is an extent."""
    named = [d for d, n in enumerate(target) if isinstance(n, str)]
    unknown = [d for d, n in enumerate(target) if n == -1]
    if len(named) + len(unknown) != 1:
        raise b.refuse("its new shape leaves more than one dimension open" if named or unknown
                       else "its new shape is static, its elements are not")
    return (*named, *unknown)[0]


def _kept(b: Bounding, x: str, outside: int, inside: int) -> int | None:
    """The one bounded dimension of x, when as much is outside of it as is asked for, and as much inside or everything."""
    shape, extents = b.shape(x), b.extents(x)
    bounded = [d for d, e in enumerate(extents) if e]
    if len(bounded) != 1 or math.prod(shape[:bounded[0]]) != outside:
        return None
    place = bounded[0]
    return place if outside == 1 or math.prod(shape[place + 1:]) == inside else None


def squeeze(b: Bounding, node: Node) -> None:
    extents = b.extents(node.inputs[0])
    axes = b.ints(1)
    if axes is None:
        raise b.refuse("Squeeze without axes would drop a dimension that depends on data whenever it is 1")
    gone = {a % len(extents) for a in axes}
    if any(extents[d] for d in gone):
        raise b.refuse("Squeeze of a dimension that depends on data is not supported")
    b.same(tuple(e for d, e in enumerate(extents) if d not in gone))


def unsqueeze(b: Bounding, node: Node) -> None:
    extents = list(b.extents(node.inputs[0]))
    axes = [int(a) for a in b.constant(1).reshape(-1)]
    rank = len(extents) + len(axes)
    for a in sorted(a % rank for a in axes):
        extents.insert(a, "")
    b.same(tuple(extents))


# --- cutting and joining

def slice_(b: Bounding, node: Node) -> None:
    """Static dimensions with constant ends are cut as ever; the others by a Gather of the indices that are wanted."""
    x = node.inputs[0]
    starts, ends = (_elements(b, i) for i in node.inputs[1:3])
    rank = len(b.shape(x))
    axes = [a % rank for a in (b.ints(3) or range(len(starts)))]
    steps = b.ints(4) or [1] * len(axes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if isinstance(start, int) and isinstance(end, int) and not b.extents(x)[axis]:
            extents = b.extents(x)
            x = b.op("Slice", x, b.int64([start]), b.int64([end]), b.int64([axis]), b.int64([step]))
            b.set(x, extents)
        else:
            x = _cut(b, x, axis, start, end, step)
    extents = b.extents(x)
    b.op("Identity", x, out=node.outputs[0])
    b.set(node.outputs[0], extents)


def _elements(b: Bounding, name: str) -> list[Number]:
    """The elements of a short vector of integers, those that are not known as values of their own."""
    known = b.numbers(name)
    if known is not None:
        return list(known)
    wide = name if b.state.types[name].dtype == "int64" else b.op("Cast", name, to=7)
    return [b.op("Gather", wide, b.int64(k), axis=0) for k in range(b.shape(name)[0])]


def _cut(b: Bounding, x: str, axis: int, start: Number, end: Number, step: int) -> str:
    """x[start:end:step] along one axis, where a bound or the length is known at run time only."""
    size, most = b.size(x, axis), b.shape(x)[axis]
    first, last = (_clamped(b, n, size, step) for n in (start, end))
    bound = _most(start, end, step, most)
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
        at = b.op("Where", b.op("Less", n, b.int64(0)), b.op("Add", n, length), n)
    highest = b.op("Sub", length, b.int64(shift)) if shift else length
    return b.op("Max", b.op("Min", at, highest), b.int64(low))


def _most(start: Number, end: Number, step: int, most: int) -> int:
    """How many elements x[start:end:step] has at most, of a dimension of at most so many."""
    if step > 0 and isinstance(start, int):
        if start < 0:
            stop = end if isinstance(end, int) and end < 0 else 0
            most = min(most, max(stop - start, 0))
        elif isinstance(end, int) and end >= 0:
            most = max(min(end, most) - start, 0)
        else:
            most = max(most - start, 0)
    elif step > 0 and isinstance(end, int) and end >= 0:
        most = min(end, most)
    return -(-most // abs(step))


def concat(b: Bounding, node: Node) -> None:
    """Along a static axis as ever. Along one that depends on data the pieces move up: a Gather of what is not padding.

        p < n0: x0[p];   p < n0 + n1: x1[p - n0];   ...        as Concat(x0, x1)[p + (B0 - n0 if p >= n0 else 0) + ...]
    """
    rank, y = len(b.shape(node.inputs[0])), node.outputs[0]
    axis = b.axis("axis", 0)
    extents: list[str] = []
    for d in range(rank):
        sizes = {b.size(i, d) for i in node.inputs}
        if d != axis and len(sizes) != 1:
            raise b.refuse("its inputs have dimensions that depend on data in different ways")
        extents.append("" if d == axis else next((s for s in sizes if isinstance(s, str)), ""))
    inputs = [i for i in node.inputs if b.shape(i)[axis]]
    if not any(b.extents(i)[axis] for i in inputs):
        b.op("Concat", *inputs, out=y, axis=axis)
        b.set(y, extents)
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


def expand(b: Bounding, node: Node) -> None:
    x, target = node.inputs[0], b.numbers(node.inputs[1])
    if target is None:
        raise b.undecided()
    rank = max(len(b.shape(x)), len(target))
    sizes: list[Number] = []
    for d in range(-rank, 0):
        given = {b.size(x, d) if -d <= len(b.shape(x)) else 1, target[d] if -d <= len(target) else 1} - {1}
        if len(given) > 1:
            raise b.refuse("expands a dimension that depends on data to another one")
        sizes.append(given.pop() if given else 1)
    b.op("Expand", x, b.int64([b.bound(n) for n in sizes]), out=node.outputs[0])
    b.set(node.outputs[0], _names(sizes))


def _names(sizes: Sequence[Number]) -> Extents:
    return tuple(n if isinstance(n, str) else "" for n in sizes)


def constant_of_shape(b: Bounding, node: Node) -> None:
    sizes = b.numbers(node.inputs[0])
    if sizes is None:
        raise b.undecided()
    b.op("ConstantOfShape", b.int64([b.bound(n) for n in sizes]), out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], _names(sizes))


def range_(b: Bounding, node: Node) -> None:
    """Of integers, from and in steps of known numbers to an extent."""
    start, limit, delta = ((b.numbers(i) or (None,))[0] for i in node.inputs)
    dtype = b.state.types[node.inputs[0]].dtype
    if start != 0 or delta != 1 or not isinstance(limit, str):
        raise b.undecided()
    y = node.outputs[0]
    b.op("Identity", b.array(np.arange(b.bound(limit), dtype=dtype)), out=y)
    b.set(y, (limit,))


def tile(b: Bounding, node: Node) -> None:
    extents = b.extents(node.inputs[0])
    if any(e and n != 1 for e, n in zip(extents, b.constant(1).tolist(), strict=True)):
        raise b.refuse("Tile along a dimension that depends on data is not supported")
    b.same(extents)


def pad(b: Bounding, node: Node) -> None:
    extents = b.extents(node.inputs[0])
    rank = len(extents)
    amounts = b.constant(1).tolist()
    axes = [a % rank for a in (b.ints(3) or range(rank))]
    if any(extents[a] and (amounts[n] or amounts[n + len(axes)]) for n, a in enumerate(axes)):
        raise b.refuse("Pad along a dimension that depends on data is not supported")
    b.same(extents)


def one_hot(b: Bounding, node: Node) -> None:
    extents = list(b.extents(node.inputs[0]))
    axis = int(b.attr("axis", -1)) % (len(extents) + 1)
    extents.insert(axis, "")
    b.same(tuple(extents))


SHAPES: dict[str, Callable[[Bounding, Node], None]] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": slice_,
    "Squeeze": squeeze,
    "Tile": tile,
    "Unsqueeze": unsqueeze,
}

DECIDED_BY = {"ConstantOfShape": (0,), "Expand": (1,), "Range": (0, 1, 2), "Reshape": (1,), "Slice": (1, 2), "TopK": (1,)}
"""Inputs that decide a shape, of the operators whose rule can follow them to an extent."""

__all__ = ["DECIDED_BY", "SHAPES", "follow"]
