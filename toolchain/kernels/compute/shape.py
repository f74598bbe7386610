"""Operators that only move elements: each is an index map. Reshape is a division, Transpose a permutation, Concat a select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import Compute, Op, broadcast, injective

At = tuple[Any, ...]


def flatten_index(at: Sequence[Any], shape: Sequence[int]) -> Any:
    """The row-major position of an index."""
    total: Any = 0
    for i, n in zip(at, shape, strict=True):
        total = total * n + i
    return total


def unflatten_index(position: Any, shape: Sequence[int]) -> At:
    """The index at a row-major position: the inverse of `flatten_index`."""
    out: list[Any] = []
    rest = te.index(position)
    for n in reversed(shape[1:]):
        out.append(rest % n)
        rest = rest // n
    return (rest, *reversed(out)) if shape else ()


def reshape(op: Op) -> te.Tensor:
    """Also Flatten, Squeeze and Unsqueeze: the types say all."""
    source = op.in_shape()
    return injective(op, lambda i: op.x[unflatten_index(flatten_index(i, op.shape), source)])


def transpose(op: Op) -> te.Tensor:
    rank = len(op.shape)
    perm = op.attr("perm") or tuple(reversed(range(rank)))
    inverse = [perm.index(d) for d in range(rank)]
    return injective(op, lambda i: op.x[tuple(i[p] for p in inverse)])


def concat(op: Op) -> te.Tensor:
    """The pieces side by side along `axis`: a select on the position, which `partition` turns into one loop per piece."""
    axis = op.axis("axis", rank=len(op.shape))
    ends = np.cumsum([op.in_shape(n)[axis] for n in range(len(op.inputs))]).tolist()

    def value(i: At) -> te.Expr:
        result: te.Expr | None = None
        for n in reversed(range(len(op.inputs))):
            start = ends[n - 1] if n else 0
            piece = op.tensor(n)[(*i[:axis], i[axis] - start, *i[axis + 1:])]
            result = piece if result is None else te.select(i[axis] < ends[n], piece, result)
        assert result is not None
        return result
    return te.compute(op.shape, lambda *i: value(i), name=op.name(), tag="concat", attrs={"axis": axis, "ends": ends})


def slice_(op: Op) -> te.Tensor:
    """Slice with constant starts, ends, axes, steps (ONNX: negative values count from the end, out-of-range ones clamp)."""
    source = op.in_shape()
    starts = op.ints(1, "starts") or []
    axes = [a % len(source) for a in op.ints(3, "axes", range(len(starts))) or []]
    steps = op.ints(4, "steps", [1] * len(starts)) or []
    first, step = [0] * len(source), [1] * len(source)
    for a, s, k in zip(axes, starts, steps, strict=True):
        n = source[a]
        s = s + n if s < 0 else s
        first[a] = min(max(s, 0), n) if k > 0 else min(max(s, 0), n - 1)
        step[a] = k
    return injective(op, lambda i: op.x[tuple(j * k + f for j, f, k in zip(i, first, step, strict=True))])


def split(op: Op) -> tuple[te.Tensor, ...]:
    axis = op.axis("axis", 0)
    start, parts = 0, []
    for n, type_ in enumerate(op.types):
        offset = start
        parts.append(te.compute(
            type_.shape, lambda *i, o=offset: op.x[(*i[:axis], i[axis] + o, *i[axis + 1:])], name=op.name(f"split{n}"), tag="injective"
        ))
        start += type_.shape[axis]
    return tuple(parts)


def pad(op: Op) -> te.Tensor:
    source, rank = op.in_shape(), len(op.in_shape())
    amounts = op.ints(1, "pads") or []
    axes = [a % rank for a in op.ints(3, "axes", range(rank)) or []]
    before = [0] * rank
    for n, a in enumerate(axes):
        before[a] = amounts[n]
    mode = op.attr("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise CodegenError(f"Pad mode {mode!r} is not supported", where=op.node.name)
    fill = te.const(op.constant(2).reshape(-1)[0].item() if op.has(2) else op.attr("value", 0.0), op.dtype)

    def value(i: At) -> te.Expr:
        at = [j - b for j, b in zip(i, before, strict=True)]
        if mode == "constant":
            inside = te.all(*(te.all(j >= 0, j < n) for j, n in zip(at, source, strict=True)))
            return te.select(inside, op.x[tuple(at)], fill)
        return op.x[tuple(_reflected(mode, j, n) for j, n in zip(at, source, strict=True))]
    return injective(op, value)


def _reflected(mode: str, j: Any, n: int) -> Any:
    """An index moved back inside [0, n) by the padding mode; one reflection, as ONNX allows."""
    j = te.index(j)
    low, high = j.range()
    if 0 <= low and high < n:
        return j
    if mode == "wrap":
        return (j + n * (-(low // n))) % n
    value = j.astype("int64")
    top = te.const(n - 1, "int64")
    nil = te.const(0, "int64")
    if mode == "edge":
        moved = te.minimum(te.maximum(value, nil), top)
    else:
        moved = te.call("abs", value)
        moved = top - te.call("abs", top - moved)
    return te.index(moved, 0, n - 1)


def expand(op: Op) -> te.Tensor:
    return injective(op, lambda i: broadcast(op.x, i))


def tile(op: Op) -> te.Tensor:
    return injective(op, lambda i: op.x[tuple(te.index(j) % n for j, n in zip(i, op.in_shape(), strict=True))])


def _wrapped(value: te.Expr, n: int) -> te.Index:
    """A run-time index, negative values counted from the end (ONNX), kept in range."""
    wide = value.astype("int64")
    wide = te.select(wide < te.const(0, "int64"), wide + te.const(n, "int64"), wide)
    clamped = te.minimum(te.maximum(wide, te.const(0, "int64")), te.const(n - 1, "int64"))
    return te.index(clamped, 0, n - 1)


def gather(op: Op) -> te.Tensor:
    axis = op.axis("axis", 0)
    n = op.in_shape()[axis]
    picks = len(op.in_shape(1))

    def value(i: At) -> te.Expr:
        if op.inputs[1] is None and op.constant(1).size == 1:
            chosen: Any = int(op.constant(1).reshape(-1)[0]) % n
        else:
            chosen = _wrapped(op.tensor(1)[tuple(i[axis:axis + picks])], n)
        return op.x[(*i[:axis], chosen, *i[axis + picks:])]
    return injective(op, value)


def gather_elements(op: Op) -> te.Tensor:
    axis = op.axis("axis", 0)
    n = op.in_shape()[axis]
    return injective(op, lambda i: op.x[(*i[:axis], _wrapped(op.tensor(1)[tuple(i)], n), *i[axis + 1:])])


def depth_to_space(op: Op) -> te.Tensor:
    b = op.attr("blocksize")
    channels = op.shape[1]

    def value(i: At) -> te.Expr:
        n, c, y, x = i
        y, x = te.index(y), te.index(x)
        phase = (y % b) * b + x % b
        source = phase * channels + c if op.attr("mode", "DCR") == "DCR" else c * (b * b) + phase
        return op.x[n, source, y // b, x // b]
    return injective(op, value)


def space_to_depth(op: Op) -> te.Tensor:
    b, channels = op.attr("blocksize"), op.in_shape()[1]

    def value(i: At) -> te.Expr:
        n, c, y, x = i
        phase = te.index(c) // channels
        return op.x[n, te.index(c) % channels, y * b + phase // b, x * b + phase % b]
    return injective(op, value)


def constant_of_shape(op: Op) -> te.Tensor:
    fill = op.attr("value")
    number = 0.0 if fill is None else np.asarray(fill).reshape(-1)[0].item()
    return injective(op, lambda i: te.const(number, op.dtype))


def one_hot(op: Op) -> te.Tensor:
    axis = op.axis("axis", -1, rank=len(op.shape))
    depth = op.shape[axis]
    values = op.constant(2)
    off, on = (te.const(v.item(), op.dtype) for v in values.reshape(-1))

    def value(i: At) -> te.Expr:
        wide = op.tensor(0)[(*i[:axis], *i[axis + 1:])].astype("int64")
        wide = te.select(wide < te.const(0, "int64"), wide + te.const(depth, "int64"), wide)
        return te.select(wide.equal(te.index(i[axis]).astype("int64")), on, off)
    return injective(op, value)


def resize_scale(op: Op) -> list[tuple[float, float]]:
    """(output/input scale, input extent) per dimension, from the scales input when it is there, else from the sizes."""
    source = op.in_shape()
    if op.has(2) and op.constant(2).size:
        given = [float(s) for s in op.constant(2).reshape(-1)]
        axes = op.attr("axes") or range(len(source))
        scales = [1.0] * len(source)
        for a, s in zip(axes, given, strict=True):
            scales[a] = s
    else:
        scales = [o / n for o, n in zip(op.shape, source, strict=True)]
    return [(s, float(n)) for s, n in zip(scales, source, strict=True)]


def resize_coordinates(mode: str, out: int, scale: float, n: int) -> np.ndarray:
    """Where each output position lies in the input, per ONNX Resize's coordinate_transformation_mode."""
    x = np.arange(out, dtype=np.float64)
    match mode:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if out > 1 else np.zeros(1)
        case "half_pixel_symmetric":
            adjustment = out / (scale * n)
            return n / 2 * (1 - adjustment) + (x + 0.5) / scale - 0.5
        case "align_corners":
            return x * (n - 1) / (out - 1) if out > 1 else np.zeros(1)
        case "asymmetric":
            return x / scale
    raise CodegenError(f"Resize coordinate mode {mode!r} is not supported")


def _table(values: Sequence[float], at: Any, dtype: str) -> te.Expr:
    """values[at] for a build-time table: a formula when the values are affine, else a search tree of selects."""
    def tree(lo: int, hi: int) -> te.Expr:
        if len(set(values[lo:hi])) == 1:
            return te.const(values[lo], dtype)
        mid = (lo + hi) // 2
        return te.select(te.index(at) < mid, tree(lo, mid), tree(mid, hi))
    return tree(0, len(values))


def resize(op: Op) -> te.Tensor:
    """Resize (nearest, linear): every coordinate is known at build time. Integer factors become plain index divisions."""
    mode, transform = op.attr("mode", "nearest"), op.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear"):
        raise CodegenError(f"Resize mode {mode!r} is not supported", where=op.node.name)
    source = op.in_shape()
    where = [resize_coordinates(transform, out, s, n)
             for out, (s, _), n in zip(op.shape, resize_scale(op), source, strict=True)]
    if mode == "nearest":
        picks = [_nearest(c, n, op.attr("nearest_mode", "round_prefer_floor")) for c, n in zip(where, source, strict=True)]
        return injective(op, lambda i: op.x[tuple(_pick(p, j, n) for p, j, n in zip(picks, i, source, strict=True))])

    def value(i: At) -> te.Expr:
        def mix(dim: int, at: At) -> te.Expr:
            if dim == len(source):
                return op.x[at]
            if op.shape[dim] == source[dim] and np.allclose(where[dim], np.arange(source[dim])):
                return mix(dim + 1, (*at, i[dim]))
            clamped = np.clip(where[dim], 0, source[dim] - 1)
            low = np.minimum(np.floor(clamped).astype(int), source[dim] - 1)
            high = np.minimum(low + 1, source[dim] - 1)
            weight = _table((clamped - low).tolist(), i[dim], op.dtype)
            a = mix(dim + 1, (*at, _pick(low, i[dim], source[dim])))
            b = mix(dim + 1, (*at, _pick(high, i[dim], source[dim])))
            return a + (b - a) * weight
        return mix(0, ())
    return injective(op, value)


def _nearest(coordinates: np.ndarray, n: int, rounding: str) -> np.ndarray:
    match rounding:
        case "round_prefer_floor":
            rounded = np.ceil(coordinates - 0.5)
        case "round_prefer_ceil":
            rounded = np.floor(coordinates + 0.5)
        case "floor":
            rounded = np.floor(coordinates)
        case "ceil":
            rounded = np.ceil(coordinates)
        case _:
            raise CodegenError(f"Resize nearest_mode {rounding!r} is not supported")
    return np.clip(rounded, 0, n - 1).astype(int)


def _pick(picks: np.ndarray, at: Any, n: int) -> Any:
    """picks[at] as an index: itself, a division by a whole factor, or a table."""
    out = len(picks)
    if out == n and (picks == np.arange(n)).all():
        return at
    if out % n == 0 and (picks == np.arange(out) // (out // n)).all():
        return te.index(at) // (out // n)
    if n % out == 0 and (picks == np.arange(out) * (n // out)).all():
        return te.index(at) * (n // out)
    return te.index(_table(picks.tolist(), at, "int64"), 0, n - 1)


def range_(op: Op) -> te.Tensor:
    start, _, delta = (op.constant(k).reshape(-1)[0].item() for k in range(3))
    return injective(op, lambda i: te.index(i[0]).astype(op.dtype) * te.const(delta, op.dtype) + te.const(start, op.dtype))


def trilu(op: Op) -> te.Tensor:
    k = int(op.constant(1).reshape(-1)[0]) if op.has(1) else 0
    upper = bool(op.attr("upper", 1))
    return injective(op, lambda i: te.select(
        (te.index(i[-1]) - i[-2] >= k) if upper else (te.index(i[-1]) - i[-2] <= k), op.x[tuple(i)], te.const(0, op.dtype)
    ))


def cumsum(op: Op) -> te.Tensor:
    """Running sum: each result is its own reduction (the schedule may do better)."""
    axis = int(op.constant(1).reshape(-1)[0]) % len(op.shape)
    n = op.shape[axis]
    r = te.reduce_axis(n, "r")
    reverse, exclusive = bool(op.attr("reverse", 0)), bool(op.attr("exclusive", 0))

    def value(*i: Any) -> te.Expr:
        here = te.index(i[axis])
        if reverse:
            wanted = (te.index(r) > here) if exclusive else (te.index(r) >= here)
        else:
            wanted = (te.index(r) < here) if exclusive else (te.index(r) <= here)
        x = op.x[(*i[:axis], r, *i[axis + 1:])]
        return te.sum(te.select(wanted, x, te.const(0, op.dtype)), axis=r)
    return te.compute(op.shape, value, name=op.name("cumsum"), tag="reduce")


SHAPE: dict[str, Compute] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "CumSum": cumsum,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "GatherElements": gather_elements,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": reshape,
}
