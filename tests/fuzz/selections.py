"""Proposals whose results have a shape that depends on data. Operators that follow see the shape it has for these inputs;
what only fits that one is refused by the importer."""

from __future__ import annotations

import numpy as np

from .builder import Builder


def non_zero(b: Builder) -> None:
    x = b.some((1, 4), ("float32", "bool", "int64", "int32"), exact=True)
    (found,) = b.op("NonZero", x) or [""]
    if found and b.chance(0.5):
        (rows,) = b.op("Transpose", found) or [""]
        if rows:
            b.op("GatherND", x, rows)


def compress(b: Builder) -> None:
    x = b.some((1, 4), ("float32", "int64", "float16", "int32", "uint8"))
    axis = b.rng.randint(-b[x].ndim, b[x].ndim - 1)
    length = b[x].shape[axis]
    flags = b.given(b.array((b.rng.choice((length, max(1, length - 1))),), "bool"))
    b.op("Compress", x, flags, axis=axis)


def compress_rows_twice(b: Builder) -> None:
    """Rows by a condition computed from them, then what detectors do with rows."""
    x = b.some((2, 3), ("float32",), exact=True)
    (worst,) = b.op("ReduceMax", x, b.ints(*range(1, b[x].ndim)), keepdims=0) or [""]
    (flags,) = b.op("Greater", worst, b.const(np.float32(b.one_of(-0.5, 0.0, 0.7)))) or [""] if worst else [""]
    (rows,) = b.op("Compress", x, flags, axis=0) or [""] if flags else [""]
    if not rows:
        return
    match b.one_of("concat", "slice", "flat", "sum", "softmax", "matmul"):
        case "concat":
            b.op("Concat", *b.rng.sample([rows, x, rows], 3), axis=0)
        case "slice":
            low, high = sorted(b.rng.sample(range(-4, 5), 2))
            b.op("Slice", rows, b.ints(low), b.ints(high), b.ints(0), b.ints(b.one_of(1, 2)))
        case "flat":
            b.op("Reshape", rows, b.ints(-1))
        case "sum":
            b.op(b.one_of("ReduceSum", "ReduceMax", "ReduceMean"), rows, b.ints(0), keepdims=b.one_of(0, 1), exact=False)
        case "softmax":
            b.op("Softmax", rows, axis=b.one_of(0, -1), exact=False)
        case "matmul":
            b.op("MatMul", rows, b.weight(b[rows].shape[-1], b.rng.choice((1, 3, 8))), exact=False)


def counted(b: Builder) -> None:
    """A size that is a sum: how many flags are set."""
    n = b.rng.choice((1, 4, 9))
    flags = b.given(b.array((n,), "bool"))
    (whole,) = b.op("Cast", flags, to=7) or [""]
    (count,) = b.op("ReduceSum", whole, b.ints(0), keepdims=0) or [""] if whole else [""]
    (size,) = b.op("Unsqueeze", count, b.ints(0)) or [""] if count else [""]
    if not size:
        return
    x = b.some((1, 2), ("float32", "int64"))
    match b.one_of("range", "zeros", "slice", "top_k", "tile", "pad"):
        case "range":
            start, step = b.one_of((0, 1), (0, 2), (-1, 1), (12, -3))
            b.op("Range", b.const(np.int64(start)), count, b.const(np.int64(step)))
        case "zeros":
            b.op("ConstantOfShape", size)
        case "slice":
            b.op("Slice", x, b.ints(0), size, b.ints(b.rng.randint(-b[x].ndim, b[x].ndim - 1)))
        case "top_k":
            b.op("TopK", x, size, outputs=2, axis=-1, exact=False)
        case "tile":
            (times,) = b.op("Concat", size, b.ints(*(1,) * (b[x].ndim - 1)), axis=0) or [""] if b[x].ndim > 1 else [size]
            if times:
                b.op("Tile", x, times)
        case "pad":
            (amounts,) = b.op("Concat", size, b.ints(*(0,) * (2 * b[x].ndim - 1)), axis=0) or [""]
            if amounts:
                b.op("Pad", x, amounts, mode=b.one_of("constant", "edge", "wrap"))


def selected_twice(b: Builder) -> None:
    """Rows by two conditions that hold for equally many, which only a run can tell; or put back at their places."""
    x = b.some((2, 3), ("float32", "int64"))
    flags = b.given(b.array((b[x].shape[0],), "bool"))
    (back,) = b.op("Slice", flags, b.ints(-1), b.ints(-100), b.ints(0), b.ints(-1)) or [""]
    (rows,) = b.op("Compress", x, flags, axis=0) or [""]
    (others,) = b.op("Compress", x, back, axis=0) or [""] if back else [""]
    if not rows or not others:
        return
    match b.one_of("add", "concat", "scatter", "gather"):
        case "add":
            b.op("Add", rows, others)
        case "concat":
            b.op("Concat", rows, others, axis=-1)
        case "scatter":
            (found,) = b.op("NonZero", flags) or [""]
            (places,) = b.op("Transpose", found) or [""] if found else [""]
            if places:
                b.op("ScatterND", x, places, others, reduction=b.one_of("none", "add"))
        case "gather":
            (order,) = b.op("ArgMax", others, axis=1, keepdims=1) or [""]
            if order:
                b.op("GatherElements", rows, order, axis=1)


def unique(b: Builder) -> None:
    x = b.some((1, 3), ("float32", "int64", "int8"), exact=True)
    axis = b.one_of(None, b.rng.randint(-b[x].ndim, b[x].ndim - 1))
    b.op("Unique", x, outputs=b.rng.choice((1, 2, 3, 4)), axis=axis, sorted=b.one_of(0, 1))


def non_max_suppression(b: Builder) -> None:
    batch, classes, n = b.rng.choice((1, 2)), b.rng.choice((1, 3)), b.rng.choice((1, 5, 12, 30))
    corner = b.numpy.random((batch, n, 2)) * 9
    boxes = b.given(np.concatenate([corner, corner + b.numpy.random((batch, n, 2)) * 5], 2).astype(np.float32))
    scores = b.given(np.round(b.numpy.random((batch, classes, n)), b.rng.choice((1, 3))).astype(np.float32))
    limits = [b.ints(b.rng.choice((0, 1, 3, 100))), b.const(np.array([b.one_of(0.0, 0.3, 0.9)], np.float32)),
              b.const(np.array([b.one_of(0.0, 0.45)], np.float32))]
    b.op("NonMaxSuppression", boxes, scores, *limits[:b.rng.choice((1, 2, 3, 3))], center_point_box=b.one_of(0, 1))
