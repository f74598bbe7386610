"""What each operator does with dimensions that depend on data (see bounded.py): one rule per operator, in one table.

Three families: operators that make such a dimension (NonZero, Compress, Unique, NonMaxSuppression), those that carry it
along (their work is done on the bound), and those that sum or search along it (its padding is masked first).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.dtype import to_numpy
from toolchain.graph.importers.bounded import Bounding, Extents, Number
from toolchain.graph.importers.bounded_indexing import INDEXING
from toolchain.graph.importers.bounded_moves import MOVES
from toolchain.graph.importers.bounded_shapes import SHAPES
from toolchain.graph.importers.bounded_sizes import agree, fitted, sizes
from toolchain.graph.ir import Node
from toolchain.graph.ops import OPS, FusionClass

Rule = Callable[[Bounding, Node], None]


# --- operators that make a dimension of unknown extent

def non_zero(b: Bounding, node: Node) -> None:
    """y[:, k] = the index of the k-th element that is not zero, in row-major order; a scalar counts as one dimension."""
    x, y = node.inputs[0], node.outputs[0]
    shape = b.shape(x) or (1,)
    n = math.prod(shape)
    positions, count = _flat_non_zero(b, b.op("Reshape", b.flags(x), b.int64([n])))
    rows = []
    for axis, extent in enumerate(shape):
        at = positions
        if (inner := math.prod(shape[axis + 1:])) > 1:
            at = b.op("Div", at, b.int64(inner))
        if axis:
            at = b.op("Mod", at, b.int64(extent))
        rows.append(b.op("Unsqueeze", at, b.int64([0])))
    b.op("Concat", *rows, out=y, axis=0)
    b.set(y, ("", count))


def _flat_non_zero(b: Bounding, flags: str) -> tuple[str, str]:
    """(positions of true flags, how many), once per flags."""
    key, (n,) = ("FlatNonZero", flags), b.shape(flags)
    masks = b.state.masks
    if key not in masks:
        positions, count = (b.state.fresh(f"{b.node.name}/{what}") for what in ("positions", "count"))
        b.ops("FlatNonZero", (flags,), (positions, count), {})
        masks[key], masks[(*key, "count")] = positions, b.extent(count, n)
    return masks[key], masks[(*key, "count")]


def compress(b: Bounding, node: Node) -> None:
    """y = the slices of x along `axis` (without one: its elements) where the condition holds."""
    (x, condition), y = node.inputs, node.outputs[0]
    if (axis := node.attrs.get("axis")) is None:
        x, axis = b.dense(x), 0
    axis %= len(b.shape(x))
    n, given = b.shape(x)[axis], b.shape(condition)[0]
    flags = b.flags(condition)
    if given > n:
        flags = b.op("Slice", flags, b.int64([0]), b.int64([n]), b.int64([0]), b.int64([1]))
    if extent := b.extents(x)[axis]:
        flags = b.op("And", flags, b.mask(extent, b.shape(flags)[0], 0, 1))
    positions, count = _flat_non_zero(b, flags)
    b.op("Gather", x, positions, out=y, axis=axis)
    b.set(y, tuple(count if d == axis else e for d, e in enumerate(b.extents(x))))


def unique(b: Bounding, node: Node) -> None:
    """The distinct slices along `axis` (without one: elements), sorted or as they come first."""
    x, axis = node.inputs[0], node.attrs.get("axis")
    if axis is None:
        x, axis = b.dense(x), 0
    axis %= len(b.shape(x))
    shape, extents = b.shape(x), b.extents(x)
    if any(e for d, e in enumerate(extents) if d != axis):
        raise b.refuse("Unique of slices whose own shape depends on data is not supported")
    n = shape[axis]
    order = [axis, *(d for d in range(len(shape)) if d != axis)]
    turned = x if axis == 0 else b.op("Transpose", x, perm=tuple(order))
    rows = b.op("Reshape", turned, b.int64([n, math.prod(shape) // n if n else 1]))
    first, counts, inverse, count = (b.state.fresh(f"{node.name}/{v}") for v in ("first", "counts", "inverse", "count"))
    limit = (extents[axis],) if extents[axis] else ()
    b.ops("UniqueRows", (rows, *limit), (first, counts, inverse, count), {"sorted": int(b.attr("sorted", 1))})
    b.extent(count, n)
    along = tuple(count if d == axis else "" for d in range(len(shape)))
    made = [("Gather", (x, first), along), ("Identity", (first,), (count,)), ("Identity", (inverse,), (extents[axis],)),
            ("Identity", (counts,), (count,))]
    for y, (op, inputs, given) in zip(node.outputs, made):
        if y:
            b.ops(op, inputs, (y,), {"axis": axis} if op == "Gather" else {})
            b.set(y, given)


def non_max_suppression(b: Bounding, node: Node) -> None:
    """selected: (batch, class, box) of every box kept; at most so many per class as is asked for, or as there are boxes."""
    boxes, scores, most, *thresholds = (*node.inputs, "", "", "")[:5]
    if any(b.extents(scores)[:2]):
        raise b.refuse("NonMaxSuppression of batches or classes whose number depends on data is not supported")
    count = agree(b, [b.size(boxes, 1), b.size(scores, 2)])
    boxes, scores = fitted(b, boxes, 1, count), fitted(b, scores, 2, count)
    y, (batches, classes, n) = node.outputs[0], b.shape(scores)
    wanted = b.numbers(most) if most else (0,)
    known = int(wanted[0]) if wanted is not None and isinstance(wanted[0], int) else n
    bound = min(max(known, 0), n)
    if not bound * batches * classes:
        b.state.params[y] = np.zeros((0, 3), "int64")
        b.state.types[y] = b.state.types[b.array(b.state.params[y])]
        return
    selected = b.state.fresh(f"{node.name}/count")
    inputs = (boxes, scores, most, *thresholds, b.extents(scores)[2])
    attrs = {"bound": bound, "center_point_box": int(b.attr("center_point_box", 0))}
    b.ops("BoundedNonMaxSuppression", inputs, (y, selected), attrs)
    b.set(y, (b.extent(selected, bound * batches * classes), ""))


# --- operators that carry it along

def broadcast(b: Bounding, inputs: Sequence[str], last: int = 0) -> tuple[list[str], Extents]:
    """Inputs that a result broadcasts, with dimensions that do, and the extents it has; the `last` dimensions left alone."""
    rank, fit, extents = max(len(b.shape(i)) for i in inputs), list(inputs), []
    for d in range(-rank, -last):
        size = agree(b, [b.size(i, d) for i in fit if len(b.shape(i)) >= -d], broadcast=True)
        fit = [fitted(b, i, len(b.shape(i)) + d, size, broadcast=True) if len(b.shape(i)) >= -d else i for i in fit]
        extents.append(size if isinstance(size, str) else "")
    return fit, tuple(extents)


def elementwise(b: Bounding, node: Node) -> None:
    given = [i for i in node.inputs if i]
    fit, extents = broadcast(b, given)
    made = iter(fit)
    b.ops(node.op, [next(made) if i else "" for i in node.inputs], node.outputs, node.attrs)
    for y in node.outputs:
        b.set(y, extents)


def like_first(b: Bounding, node: Node) -> None:
    """Elementwise on the first input; the others are parameters of static shape."""
    if any(any(b.extents(i)) for i in node.inputs[1:] if i):
        raise b.refuse(f"{node.op} with parameters whose shape depends on data is not supported")
    b.same(*[b.extents(node.inputs[0])] * len(node.outputs))


def rows(b: Bounding, node: Node) -> None:
    """Operators that treat each index of dimension 0 by itself (Conv, pooling): it may be of unknown extent."""
    extent, *others = b.extents(node.inputs[0])
    if any(others) or any(any(b.extents(i)) for i in node.inputs[1:] if i):
        raise b.refuse(f"{node.op} over a dimension that depends on data is not supported")
    b.same(*[(extent, *others)] * len(node.outputs))


def roi_align(b: Bounding, node: Node) -> None:
    """One result per region; the feature maps are static."""
    x, regions, batch = node.inputs
    if any(b.extents(x)):
        raise b.refuse("RoiAlign of feature maps whose shape depends on data is not supported")
    count = agree(b, [b.size(regions, 0), b.size(batch, 0)])
    regions, batch = fitted(b, regions, 0, count), fitted(b, batch, 0, count)
    extent = b.extents(regions)[0]
    safe = b.masked(batch, 0)
    b.op("RoiAlign", x, regions, safe, out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], (extent, "", "", ""))


def transpose(b: Bounding, node: Node) -> None:
    extents = b.extents(node.inputs[0])
    perm = b.attr("perm", tuple(reversed(range(len(extents)))))
    b.same(tuple(extents[p] for p in perm))


def along_axis(b: Bounding, node: Node) -> None:
    """Operators along one axis, which stays as it is (Hardmax): it has to be static, the others carry on."""
    extents, axis = b.extents(node.inputs[0]), b.axis("axis", -1)
    last = len(extents) if node.op.endswith("LayerNormalization") or node.op == "RMSNormalization" else axis + 1
    if any(extents[axis:last]) or any(any(b.extents(i)) for i in node.inputs[1:] if i):
        raise b.refuse(f"{node.op} along a dimension that depends on data is not supported")
    b.same(*[extents] * len(node.outputs))


def softmax(b: Bounding, node: Node) -> None:
    """Padding is -inf first, so that it has no part in the sum."""
    x, axis = node.inputs[0], b.axis("axis", -1)
    extents = b.extents(x)
    b.op(node.op, b.masked(x, -np.inf, [axis]), out=node.outputs[0], axis=axis)
    b.set(node.outputs[0], extents)


def cum_sum(b: Bounding, node: Node) -> None:
    axis = int(b.constant(1).reshape(-1)[0]) % len(b.shape(node.inputs[0]))
    extents = b.extents(node.inputs[0])
    if not b.attr("reverse", 0) or not extents[axis]:
        b.same(extents)
        return
    neutral = 0 if node.op == "CumSum" else 1
    b.op(node.op, b.masked(node.inputs[0], neutral, [axis]), node.inputs[1], out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], extents)


def matmul(b: Bounding, node: Node) -> None:
    """Rows, columns and batches carry on; along the summed dimension both sides are zero (or zero points) in the padding."""
    a, c, *zeros = node.inputs
    if any(any(b.extents(i)) for i in zeros if i):
        raise b.refuse(f"{node.op} with zero points whose shape depends on data is not supported")
    vectors = len(b.shape(a)) == 1, len(b.shape(c)) == 1
    a = _with_axis(b, a, 0) if vectors[0] else a
    c = _with_axis(b, c, 1) if vectors[1] else c
    inner = agree(b, [b.size(a, -1), b.size(c, -2)])
    a, c = fitted(b, a, len(b.shape(a)) - 1, inner), fitted(b, c, len(b.shape(c)) - 2, inner)
    if isinstance(inner, str):
        a = _without_padding(b, a, len(b.shape(a)) - 1, zeros[0] if zeros else "")
        c = _without_padding(b, c, len(b.shape(c)) - 2, zeros[1] if len(zeros) > 1 else "")
    (a, c), batch = broadcast(b, [a, c], last=2)
    extents = (*batch, b.extents(a)[-2], b.extents(c)[-1])
    gone = [len(extents) - 2 + d for d, vector in enumerate(vectors) if vector]
    if gone:
        y = b.op(node.op, a, c, *zeros, **node.attrs)
        b.op("Squeeze", y, b.int64(gone), out=node.outputs[0])
    else:
        b.op(node.op, a, c, *zeros, out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], tuple(e for d, e in enumerate(extents) if d not in gone))


def _with_axis(b: Bounding, x: str, axis: int) -> str:
    extents = list(b.extents(x))
    extents.insert(axis, "")
    x = b.op("Unsqueeze", x, b.int64([axis]))
    b.set(x, extents)
    return x


def _without_padding(b: Bounding, x: str, axis: int, zero: str) -> str:
    """Zero in the padding of one side of a product, for integers what counts as zero."""
    if not zero or not b.extents(x)[axis]:
        return b.masked(x, 0, [axis])
    if len(b.shape(zero)) == 1 and b.shape(zero)[0] > 1 and axis == len(b.shape(x)) - 1:
        zero = b.op("Unsqueeze", zero, b.int64([1]))            # one per row
    extents, inside = b.extents(x), b.mask(b.extents(x)[axis], b.shape(x)[axis], axis, len(b.shape(x)))
    x = b.op("Where", inside, x, zero)
    b.set(x, extents)
    return x


def gemm(b: Bounding, node: Node) -> None:
    """alpha*A'B' + beta*C, written out: a dimension of any of them may depend on data."""
    (a, c), alpha, beta = node.inputs[:2], b.attr("alpha", 1.0), b.attr("beta", 1.0)
    a, c = (b.rule("Transpose", x, perm=(1, 0)) if b.attr(t, 0) else x for x, t in ((a, "transA"), (c, "transB")))
    made = b.rule("MatMul", a, c)
    dtype = to_numpy(b.state.types[a].dtype)
    if alpha != 1:
        made = b.rule("Mul", made, b.array(np.asarray(alpha, dtype)))
    if b.has(2):
        bias = node.inputs[2]
        bias = b.rule("Mul", bias, b.array(np.asarray(beta, dtype))) if beta != 1 else bias
        b.rule("Add", made, bias, out=node.outputs[0])
    else:
        b.rule("Identity", made, out=node.outputs[0])


# --- operators that sum or search along it

def _lowest(dtype: str) -> Any:
    return -np.inf if dtypes.is_float(dtype) else False if dtype == "bool" else dtypes.lowest(dtype)


def _highest(dtype: str) -> Any:
    return np.inf if dtypes.is_float(dtype) else True if dtype == "bool" else dtypes.highest(dtype)


NEUTRAL: dict[str, Callable[[str], Any]] = {
    "ReduceL1": lambda d: 0, "ReduceL2": lambda d: 0, "ReduceLogSum": lambda d: 0, "ReduceLogSumExp": _lowest,
    "ReduceMax": _lowest, "ReduceMean": lambda d: 0, "ReduceMin": _highest, "ReduceProd": lambda d: 1,
    "ReduceSum": lambda d: 0, "ReduceSumSquare": lambda d: 0,
}
"""What padding becomes before a reduction."""


def reduce(b: Bounding, node: Node) -> None:
    x, extents = node.inputs[0], b.extents(node.inputs[0])
    axes = b.ints(1)
    if not axes and b.attr("noop_with_empty_axes", 0):
        b.same(extents)
        return
    axes = sorted(a % len(extents) for a in axes) if axes else list(range(len(extents)))
    y, keep = node.outputs[0], bool(b.attr("keepdims", 1))
    left = tuple("" if d in axes else e for d, e in enumerate(extents) if keep or d not in axes)
    count: Number = 1
    for a in axes:
        count = b.compute("Mul", count, b.size(x, a), b.bound(count) * b.shape(x)[a])
    safe = b.masked(x, NEUTRAL[node.op](b.state.types[x].dtype), axes)
    if node.op == "ReduceMean" and isinstance(count, str):
        total = b.op("ReduceSum", safe, b.int64(axes), keepdims=int(keep))
        b.op("Div", total, b.op("CastLike", count, total), out=y)
    else:
        b.op(node.op, safe, b.int64(axes), out=y, keepdims=int(keep))
    b.set(y, left)


def arg_reduce(b: Bounding, node: Node) -> None:
    """Padding is the worst that can be; where everything is, the last index is the last true one."""
    x, axis = node.inputs[0], b.axis("axis", 0)
    extents = b.extents(x)
    fill = _lowest if node.op == "ArgMax" else _highest
    safe = b.masked(x, fill(b.state.types[x].dtype), [axis])
    if extents[axis] and b.attr("select_last_index", 0):
        found = b.op(node.op, safe, **node.attrs)
        b.op("Min", found, b.op("Sub", extents[axis], b.int64(1)), out=node.outputs[0])
    else:
        b.op(node.op, safe, out=node.outputs[0], **node.attrs)
    keep = bool(b.attr("keepdims", 1))
    b.set(node.outputs[0], tuple("" if d == axis else e for d, e in enumerate(extents) if keep or d != axis))


def top_k(b: Bounding, node: Node) -> None:
    """Padding comes last; of k that exceeds the true length only as many as there are. Of a k without a bound, all."""
    x, extents, axis = node.inputs[0], b.extents(node.inputs[0]), b.axis("axis", -1)
    n, numbers = b.shape(x)[axis], b.numbers(node.inputs[1])
    k = numbers[0] if numbers is not None else b.extent(b.scalar(node.inputs[1]), n)
    most = min(b.bound(k), n)
    fill = (_lowest if b.attr("largest", 1) else _highest)(b.state.types[x].dtype)
    safe = b.masked(x, fill, [axis])
    outputs = tuple(o or b.state.fresh(f"{node.name}/unused") for o in (*node.outputs, "")[:2])
    b.ops("TopK", (safe, b.int64([most])), outputs, node.attrs)
    kept = k if isinstance(k, int) and not extents[axis] else b.compute("Min", k, b.size(x, axis), most)
    kept = sizes(b, [kept])[0]
    along = tuple((kept if isinstance(kept, str) else "") if d == axis else e for d, e in enumerate(extents))
    for y in outputs:
        b.set(y, along)


ELEMENTWISE: dict[str, Rule] = dict.fromkeys((
    op for op, facts in OPS.items()
    if facts.fusion <= FusionClass.BROADCAST and facts.category in ("unary", "binary", "variadic", "select")), elementwise)

RULES: dict[str, Rule] = {
    "Compress": compress,
    "NonMaxSuppression": non_max_suppression,
    "NonZero": non_zero,
    "Unique": unique,
    **ELEMENTWISE,
    "BatchNormalization": rows,
    "CastLike": like_first,
    "DequantizeLinear": like_first,
    "QuantizeLinear": like_first,
    **dict.fromkeys((
        "AveragePool", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalMaxPool",
        "InstanceNormalization", "LRN", "MaxPool", "SpaceToDepth"), rows),
    "CumProd": cum_sum,
    "CumSum": cum_sum,
    "Gemm": gemm,
    "Hardmax": along_axis,
    "LayerNormalization": along_axis,
    "LogSoftmax": softmax,
    "LpNormalization": along_axis,
    "MatMul": matmul,
    "MatMulInteger": matmul,
    "RMSNormalization": along_axis,
    "RoiAlign": roi_align,
    "Softmax": softmax,
    "Transpose": transpose,
    **dict.fromkeys(NEUTRAL, reduce),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "TopK": top_k,
    "Trilu": like_first,
    **INDEXING,
    **MOVES,
    **SHAPES,
}

MAKES = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose own output shape depends on the elements of their inputs."""


def apply_rule(b: Bounding, node: Node) -> None:
    """Raises ImportModelError naming the operator when it has no rule."""
    rule = RULES.get(node.op)
    if rule is None:
        raise b.refuse(f"{node.op} of a value whose shape depends on data is not supported")
    rule(b, node)


__all__ = ["ELEMENTWISE", "MAKES", "RULES", "apply_rule"]
