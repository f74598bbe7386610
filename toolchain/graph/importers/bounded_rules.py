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
from toolchain.graph.importers.bounded import Bounding, Extents, Number
from toolchain.graph.importers.bounded_shapes import SHAPES
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
    y, (batches, classes, n) = node.outputs[0], b.shape(scores)
    if b.extents(boxes)[1] != b.extents(scores)[2] or any(b.extents(scores)[:2]):
        raise b.refuse("its boxes and scores have extents of their own, which must be one")
    wanted = b.numbers(most) if most else (0,)
    known = int(wanted[0]) if wanted is not None and isinstance(wanted[0], int) else n
    bound = min(max(known, 0), n)
    if not bound * batches * classes:
        b.state.params[y] = np.zeros((0, 3), "int64")
        b.state.types[y] = b.state.types[b.array(b.state.params[y])]
        return
    count = b.state.fresh(f"{node.name}/count")
    inputs = (boxes, scores, most, *thresholds, b.extents(scores)[2])
    attrs = {"bound": bound, "center_point_box": int(b.attr("center_point_box", 0))}
    b.ops("BoundedNonMaxSuppression", inputs, (y, count), attrs)
    b.set(y, (b.extent(count, bound * batches * classes), ""))


# --- operators that carry it along

def broadcast_extents(b: Bounding, inputs: Sequence[str]) -> Extents:
    """Of a result that broadcasts its inputs. Raises ImportModelError where equal extents cannot be told."""
    rank = max(len(b.shape(i)) for i in inputs)
    found: list[str] = []
    for d in range(-rank, 0):
        sizes = {b.size(i, d) for i in inputs if len(b.shape(i)) >= -d}
        named = sorted(s for s in sizes if isinstance(s, str))
        if len(named) > 1 or (named and sizes - {1, *named}):
            raise b.refuse(f"broadcasts dimensions that depend on data in different ways (dimension {d})")
        found.append(named[0] if named else "")
    return tuple(found)


def elementwise(b: Bounding, node: Node) -> None:
    b.same(*[broadcast_extents(b, [i for i in node.inputs if i])] * len(node.outputs))


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
    if any(b.extents(x)) or b.extents(regions)[0] != b.extents(batch)[0]:
        raise b.refuse("RoiAlign of feature maps whose shape depends on data is not supported")
    extent = b.extents(regions)[0]
    safe = b.masked(batch, 0)
    b.op("RoiAlign", x, regions, safe, out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], (extent, "", "", ""))


def transpose(b: Bounding, node: Node) -> None:
    extents = b.extents(node.inputs[0])
    perm = b.attr("perm", tuple(reversed(range(len(extents)))))
    b.same(tuple(extents[p] for p in perm))


def along_axis(b: Bounding, node: Node) -> None:
    """Operators along one axis, which stays as it is (Split, Hardmax): it has to be static, the others carry on."""
    default = {"Split": 0, "LayerNormalization": -1, "RMSNormalization": -1}.get(node.op, -1)
    extents, axis = b.extents(node.inputs[0]), b.axis("axis", default)
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


def gather(b: Bounding, node: Node) -> None:
    """y[i..., k..., j...] = x[i..., indices[k...], j...]; negative indices count from the true end."""
    (x, indices), axis = node.inputs, b.axis("axis", 0)
    extents, picked = b.extents(x), b.extents(indices)
    safe = b.masked(indices, 0)
    b.op("Gather", x, from_end(b, safe, extents[axis]), out=node.outputs[0], axis=axis)
    b.set(node.outputs[0], (*extents[:axis], *picked, *extents[axis + 1:]))


def from_end(b: Bounding, indices: str, extent: str) -> str:
    """Indices into a dimension of that extent, none of them negative."""
    known = b.state.params.get(indices)
    if not extent or (known is not None and bool((known >= 0).all())):
        return indices
    wide = b.op("Cast", indices, to=7)
    return b.op("Where", b.op("Less", wide, b.int64(0)), b.op("Add", wide, extent), wide)


def gather_nd(b: Bounding, node: Node) -> None:
    x, indices = node.inputs
    if any(b.extents(x)) or b.extents(indices)[-1] or b.attr("batch_dims", 0):
        raise b.refuse("GatherND from a tensor whose shape depends on data is not supported")
    depth, rank = b.shape(indices)[-1], len(b.shape(x))
    b.op("GatherND", x, b.masked(indices, 0), out=node.outputs[0])
    b.set(node.outputs[0], (*b.extents(indices)[:-1], *("",) * (rank - depth)))


def gather_elements(b: Bounding, node: Node) -> None:
    (x, indices), axis = node.inputs, b.axis("axis", 0)
    extents, picked = b.extents(x), b.extents(indices)
    if any(e != p for d, (e, p) in enumerate(zip(extents, picked, strict=True)) if d != axis):
        raise b.refuse("GatherElements of tensors whose shapes depend on data in different ways is not supported")
    safe = from_end(b, b.masked(indices, 0), extents[axis])
    b.op("GatherElements", x, safe, out=node.outputs[0], axis=axis)
    b.set(node.outputs[0], picked)


def matmul(b: Bounding, node: Node) -> None:
    """Rows, columns and batches carry on; along the summed dimension both sides are zero in the padding."""
    a, c = node.inputs[:2]
    if len(b.shape(a)) < 2 or len(b.shape(c)) < 2 or any(any(b.extents(i)) for i in node.inputs[2:] if i):
        raise b.refuse(f"{node.op} of vectors whose shape depends on data is not supported")
    left, right = b.extents(a), b.extents(c)
    if left[-1] != right[-2]:
        raise b.refuse("sums over dimensions that depend on data in different ways")
    if left[-1] and node.op != "MatMul":
        raise b.refuse(f"{node.op} over a dimension that depends on data is not supported")
    if left[-1]:
        a, c = b.masked(a, 0, [len(left) - 1]), b.masked(c, 0, [len(right) - 2])
    batch = _batch_extents(b, a, c)
    b.op(node.op, a, c, *node.inputs[2:], out=node.outputs[0], **node.attrs)
    b.set(node.outputs[0], (*batch, left[-2], right[-1]))


def _batch_extents(b: Bounding, a: str, c: str) -> Extents:
    rank = max(len(b.shape(a)), len(b.shape(c)))
    found = []
    for d in range(-rank, -2):
        sizes = {b.size(i, d) for i in (a, c) if len(b.shape(i)) >= -d}
        named = sorted(s for s in sizes if isinstance(s, str))
        if len(named) > 1 or (named and sizes - {1, *named}):
            raise b.refuse("its batch dimensions depend on data in different ways")
        found.append(named[0] if named else "")
    return tuple(found)


def gemm(b: Bounding, node: Node) -> None:
    """Rows of A carry on (or of its transpose); everything else is static."""
    extents = b.extents(node.inputs[0])
    row = 1 if b.attr("transA", 0) else 0
    if extents[1 - row] or any(any(b.extents(i)) for i in node.inputs[1:] if i):
        raise b.refuse("Gemm over a dimension that depends on data is not supported")
    b.same((extents[row], ""))


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
    x, axis = node.inputs[0], b.axis("axis", 0)
    extents = b.extents(x)
    if extents[axis] and b.attr("select_last_index", 0):
        raise b.refuse(f"{node.op} of the last index along a dimension that depends on data is not supported")
    fill = _lowest if node.op == "ArgMax" else _highest
    safe = b.masked(x, fill(b.state.types[x].dtype), [axis])
    b.op(node.op, safe, out=node.outputs[0], **node.attrs)
    keep = bool(b.attr("keepdims", 1))
    b.set(node.outputs[0], tuple("" if d == axis else e for d, e in enumerate(extents) if keep or d != axis))


def top_k(b: Bounding, node: Node) -> None:
    """Padding comes last; of k that exceeds the true length only as many as there are."""
    x, extents, axis = node.inputs[0], b.extents(node.inputs[0]), b.axis("axis", -1)
    numbers = b.numbers(node.inputs[1])
    if numbers is None:
        raise b.undecided()
    n, k = b.shape(x)[axis], numbers[0]
    most = min(b.bound(k), n)
    fill = (_lowest if b.attr("largest", 1) else _highest)(b.state.types[x].dtype)
    safe = b.masked(x, fill, [axis])
    outputs = tuple(o or b.state.fresh(f"{node.name}/unused") for o in (*node.outputs, "")[:2])
    b.ops("TopK", (safe, b.int64([most])), outputs, node.attrs)
    kept = b.compute("Min", k, extents[axis], most) if extents[axis] else k
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
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
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
    "Split": along_axis,
    "Transpose": transpose,
    **dict.fromkeys(NEUTRAL, reduce),
    "ArgMax": arg_reduce,
    "ArgMin": arg_reduce,
    "TopK": top_k,
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
