"""Operators about shapes, where dimensions depend on data (see bounded.py): Shape and what is computed from it, those that
rearrange dimensions, and those that make tensors of a computed size.

A small integer tensor that comes from a Shape is followed element by element (`State.numbers`), so that

    Reshape(x, Concat(Gather(Shape(x), 0), [-1]))        finds that its first dimension is the extent of x again
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.graph.importers.bounded import Bounding, Number, State
from toolchain.graph.importers.bounded_sizes import agree, bounds, checked, fitted, names, sizes, spread, wanted
from toolchain.graph.ir import Node

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


def is_followed(state: State, node: Node) -> bool:
    """Whether a node computes with numbers that come from shapes, or with one that has a bound."""
    return any(i in state.numbers or (
        i in state.ranges and i not in state.params and state.types[i].elements == 1
        and state.types[i].dtype in ("int32", "int64") and math.isfinite(state.ranges[i][1])) for i in node.inputs)


def follow(b: Bounding, node: Node) -> np.ndarray | None:
    """Note what is known of the result of a node that was emitted, when it computes with numbers that come from shapes.

    Gives the result when all of it is known, so that it can take the node's place.
    """
    if len(node.outputs) != 1 or (t := b.state.types[y := node.outputs[0]]).elements > MOST_NUMBERS or len(t.shape) > 1:
        return None
    known = _followed(b, node, [b.numbers(i) if i else () for i in node.inputs])
    if known is None or len(known) != t.elements:
        return None
    if all(isinstance(n, int) for n in known):
        return np.array(known, t.dtype).reshape(t.shape)
    b.state.numbers[y] = known
    return None


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
        case "ReduceMin" | "ReduceMax" if first is not None and b.state.types[node.outputs[0]].elements == 1:
            return _each(b, node, [(n,) for n in first])
        case "Equal" | "Where" | "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" if all(g is not None for g in given):
            return _each(b, node, [g for g in given if g is not None])
    return None


def _each(b: Bounding, node: Node, given: Sequence[tuple[Number, ...]]) -> tuple[Number, ...] | None:
    """Element by element: what is known of all operands is computed, of others the value itself and the most it can be."""
    y, n, found = node.outputs[0], max(map(len, given)), list[Number]()
    for k in range(n):
        operands = [g[k if len(g) > 1 else 0] for g in given if g]
        made = _known(b, node.op.removeprefix("Reduce"), operands)
        if made is None:
            bound = _most(b, node.op.removeprefix("Reduce"), operands)
            if bound is None or bound < 0 or b.state.types[y].dtype not in ("int32", "int64"):
                return None
            made = b.extent(b.scalar(y if n == 1 else b.op("Gather", y, b.int64(k), axis=0)), bound)
        found.append(made)
    return tuple(found)


def _known(b: Bounding, op: str, operands: Sequence[Number]) -> Number | None:
    """A result that is one of the operands, or a number; None: it has to be computed."""
    if op == "Where" and isinstance(operands[0], int):
        return operands[1 if operands[0] else 2]
    if op == "Equal" and len({*operands}) == 1:
        return 1
    if op == "Equal" and any(isinstance(n, int) and n < 0 for n in operands) and all(
            isinstance(n, int) or b.state.range_of(n)[0] >= 0 for n in operands):
        return int(operands[0] == operands[1])      # an extent is never -1
    numbers = [n for n in operands if isinstance(n, int)]
    if len(numbers) < len(operands) or op == "Where":
        return None
    match op:
        case "Equal":
            return int(numbers[0] == numbers[1])
        case "Min":
            return min(numbers)
        case "Max":
            return max(numbers)
        case "Div" if len(numbers) == 2 and numbers[1]:
            quotient = abs(numbers[0]) // abs(numbers[1])
            return quotient if (numbers[0] < 0) == (numbers[1] < 0) else -quotient
        case "Sub":
            return numbers[0] - numbers[1]
        case "Add" | "Mul":
            return sum(numbers) if op == "Add" else math.prod(numbers)
    return None


def _most(b: Bounding, op: str, operands: Sequence[Number]) -> int | None:
    """The most a computed number can be; None: it has no bound that is known."""
    bounds = [b.bound(n) for n in operands]
    match op:
        case "Add":
            return sum(bounds)
        case "Mul" if all(not isinstance(n, int) or n >= 0 for n in operands):
            return math.prod(bounds)
        case "Min":
            return min(bounds)
        case "Max":
            return max(bounds)
        case "Where":
            return max(bounds[1:])
        case "Sub" if isinstance(operands[1], int):
            return bounds[0] - operands[1]
        case "Div" if isinstance(operands[1], int) and operands[1] > 0:
            return bounds[0] // operands[1]
    return None


# --- rearranging

def reshape(b: Bounding, node: Node) -> None:
    x, target = node.inputs[0], wanted(b, node.inputs[1])
    if target is None:
        raise b.undecided()
    keep = not b.attr("allowzero", 0)
    into(b, x, [b.size(x, d) if n == 0 and keep else n for d, n in enumerate(target)], node.outputs[0])


def flatten(b: Bounding, node: Node) -> None:
    x, shape = node.inputs[0], b.shape(node.inputs[0])
    axis = int(b.attr("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    before, after = (_product(b, [b.size(x, d) for d in part]) for part in (range(axis), range(axis, len(shape))))
    into(b, x, [before, after], node.outputs[0])


def _product(b: Bounding, of: Sequence[Number]) -> Number:
    total: Number = 1
    for n in of:
        total = b.compute("Mul", total, n, b.bound(total) * b.bound(n))
    return total


def into(b: Bounding, x: str, target: Sequence[Number], y: str) -> None:
    """Reshape: directly where the bounded dimension keeps what is outside and inside of it, else through the dense form."""
    if not _directly(b, x, target, y):
        spread(b, b.dense(x), _filled(b, x, target), y)


def _filled(b: Bounding, x: str, target: Sequence[Number]) -> list[Number]:
    """A new shape whose -1 is what the number of elements leaves; without one, checked to have as many."""
    total, rest = b.total(x), _product(b, [n for n in target if n != -1])
    if -1 in target and (left := _quotient(b, total, rest)) is not None:
        return sizes(b, [left if n == -1 else n for n in target])
    if -1 in target:
        known = math.prod(n for n in target if isinstance(n, int) and n > 0)
        least = b.compute("Max", rest, 1, max(b.bound(rest), 1))
        return sizes(b, [b.compute("Div", total, least, b.bound(total) // known) if n == -1 else n for n in target])
    open_ = [d for d, n in enumerate(target) if isinstance(n, str)]
    if open_ and b.factors(total) != b.factors(rest):
        kept, d = sizes(b, target), open_[0]
        ok = b.op("Equal", b.value(total), b.value(_product(b, kept)))
        made = checked(b, str(kept[d]), ok, "its elements do not fill the new shape")
        return [b.extent(made, b.bound(kept[d])) if at == d else n for at, n in enumerate(kept)]
    return sizes(b, target)


def _quotient(b: Bounding, total: Number, rest: Number) -> Number | None:
    """total / rest where both are known as numbers times extents, and those of the rest cancel."""
    (m, of), (n, gone) = b.factors(total), b.factors(rest)
    left = Counter(of)
    left.subtract(gone)
    if not n or m % n or min(left.values(), default=0) < 0:
        return None
    return _product(b, [m // n, *left.elements()])


def _directly(b: Bounding, x: str, target: Sequence[Number], y: str) -> bool:
    """Without a dense form: where one dimension of the new shape is open, and x has one that can become it."""
    if (spot := _open_dimension(target)) is None:
        return False
    outside, inside = (math.prod(n for n in part if isinstance(n, int)) for part in (target[:spot], target[spot + 1:]))
    if (place := _kept(b, x, outside, inside)) is None or not inside:
        return False
    shape, extent = b.shape(x), b.extents(x)[place]
    within = math.prod(shape[place + 1:])
    if shape[place] * within % inside:
        return False
    bound = shape[place] * within // inside
    named = target[spot]
    if within % inside:
        extent = b.extent(b.op("Div", b.op("Mul", extent, b.int64(within)), b.int64(inside)), bound)
    elif within != inside:
        extent = str(b.compute("Mul", extent, within // inside, bound))
    elif isinstance(named, str) and named != extent:
        if b.bound(named) != bound:
            return False
        ok = b.op("Equal", named, extent)
        extent = b.extent(checked(b, named, ok, "its elements do not fill the new shape"), bound)
    b.op("Reshape", x, b.int64([bound if d == spot else int(n) for d, n in enumerate(target)]), out=y)
    b.set(y, tuple(extent if d == spot else "" for d in range(len(target))))
    return True


def _open_dimension(target: Sequence[Number]) -> int | None:
    """The one dimension of a new shape that depends on data: the -1, or the one that is an extent."""
    found = [d for d, n in enumerate(target) if isinstance(n, str) or n == -1]
    return found[0] if len(found) == 1 else None


def _kept(b: Bounding, x: str, outside: int, inside: int) -> int | None:
    """The one bounded dimension of x, when as much is outside of it as is asked for, and as much inside or everything."""
    shape, extents = b.shape(x), b.extents(x)
    bounded = [d for d, e in enumerate(extents) if e]
    if len(bounded) != 1 or math.prod(shape[:bounded[0]]) != outside:
        return None
    place = bounded[0]
    return place if outside == 1 or math.prod(shape[place + 1:]) == inside else None


def squeeze(b: Bounding, node: Node) -> None:
    x, axes = node.inputs[0], b.ints(1)
    if axes is None:
        raise b.refuse("Squeeze without axes would drop a dimension that depends on data whenever it is 1")
    gone = {a % len(b.shape(x)) for a in axes}
    for d in gone:
        x = fitted(b, x, d, agree(b, [b.size(x, d), 1]))
    extents = b.extents(x)
    b.op("Squeeze", x, b.int64(sorted(gone)), out=node.outputs[0])
    b.set(node.outputs[0], tuple(e for d, e in enumerate(extents) if d not in gone))


def unsqueeze(b: Bounding, node: Node) -> None:
    extents = list(b.extents(node.inputs[0]))
    axes = [int(a) for a in b.constant(1).reshape(-1)]
    rank = len(extents) + len(axes)
    for a in sorted(a % rank for a in axes):
        extents.insert(a, "")
    b.same(tuple(extents))


# --- numbers in a row

def constant_of_shape(b: Bounding, node: Node) -> None:
    asked = wanted(b, node.inputs[0])
    if asked is None:
        raise b.undecided()
    asked = sizes(b, asked)
    b.op("ConstantOfShape", b.int64(bounds(b, asked)), out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], names(asked))


def range_(b: Bounding, node: Node) -> None:
    """y[p] = start + p*delta, as many as are below the limit (above it for a negative delta), in steps that are known.

    The one end that decides has to have a bound. Of the other nothing may be known: then it is taken to be 0 at least, and
    a run that is longer ends with an error.
    """
    start, limit, delta = node.inputs
    y, dtype, step = node.outputs[0], b.state.types[start].dtype, b.state.params.get(delta)
    if step is None or not float(step.reshape(-1)[0]):
        raise b.undecided()
    by = step.reshape(-1)[0].item()
    if by == 1 and b.numbers(start) == (0,) and (known := b.numbers(limit)) and b.state.range_of(str(known[0]))[0] >= 0:
        b.op("Identity", b.array(np.arange(b.bound(known[0]), dtype=dtype)), out=y)
        b.set(y, names(known))
        return
    low, high = (start, limit) if by > 0 else (limit, start)
    (least, _), (_, most) = b.state.range_of(low), b.state.range_of(high)
    if math.isinf(most):
        raise b.undecided()
    bound = max(math.ceil((most - (0 if math.isinf(least) else least)) / abs(by)), 0)
    count = _steps(b, low, high, abs(by))
    if math.isinf(least):
        ok = b.op("LessOrEqual", count, b.int64(bound))
        count = checked(b, count, ok, f"it is longer than {bound}, what an end of at least 0 would give")
    count = b.extent(b.op("Max", b.op("Min", count, b.int64(bound)), b.int64(0)), bound)
    way = b.array((np.arange(bound) * by).astype(dtype))
    b.op("Add", way, b.op("Reshape", start, b.int64(np.zeros(0))), out=y)
    b.set(y, (count,))


def _steps(b: Bounding, low: str, high: str, by: float) -> str:
    """How many steps it takes from the low end to the high one, or beyond; an int64 without dimensions."""
    if dtypes.is_float(b.state.types[low].dtype):
        length = b.op("Sub", *(b.op("Cast", b.op("Reshape", v, b.int64(np.zeros(0))), to=11) for v in (high, low)))
        return b.op("Cast", b.op("Ceil", b.op("Div", length, b.array(np.asarray(by, "float64")))), to=7)
    length = b.op("Sub", b.scalar(high), b.scalar(low))
    return length if by == 1 else b.op("Div", b.op("Add", length, b.int64(int(by) - 1)), b.int64(int(by)))


SHAPES: dict[str, Callable[[Bounding, Node], None]] = {
    "ConstantOfShape": constant_of_shape,
    "Flatten": flatten,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": size_of,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
}

DECIDED_BY = {
    "ConstantOfShape": (0,), "Expand": (1,), "Pad": (1,), "Range": (0, 1, 2), "Reshape": (1,), "Slice": (1, 2),
    "Split": (1,), "Tile": (1,), "TopK": (1,),
}
"""Inputs that decide a shape, of the operators whose rule can follow them to an extent."""

__all__ = ["DECIDED_BY", "SHAPES", "follow", "is_followed"]
