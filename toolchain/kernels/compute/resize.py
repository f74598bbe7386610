"""Resize: every coordinate and every weight is known at build time, one dimension at a time. Source: ONNX Resize.

Coordinates become index arithmetic where they are evenly spaced (a division by a whole number for whole factors), weights of
linear interpolation a formula; what is neither becomes a search tree of selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import STORED, Compute, Op, injective, table

At = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Dimension:
    """How one dimension is resized: `length` is the exact output length n * scale, before it is rounded down."""

    n: int
    out: int
    scale: float
    length: float
    roi: tuple[float, float]


def dimensions(op: Op) -> list[Dimension]:
    """Scales from the scales input when it is there, else from the sizes; all the same when the aspect ratio is kept."""
    source, rank = op.in_shape(), len(op.in_shape())
    axes = [a % rank for a in op.node.attrs.get("axes") or range(rank)]
    scales, lengths, roi = [1.0] * rank, [float(n) for n in source], [(0.0, 1.0)] * rank
    if op.has(2) and op.constant(2).size:
        given = [float(s) for s in op.constant(2).reshape(-1)]
    else:
        given = [int(size) / source[a] for a, size in zip(axes, op.constant(3).reshape(-1), strict=True)]
        policy = op.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            given = [min(given) if policy == "not_larger" else max(given)] * len(given)
    for k, (a, s) in enumerate(zip(axes, given, strict=True)):
        scales[a], lengths[a] = s, s * source[a]
        if op.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
            box = op.constant(1).reshape(2, -1)
            roi[a] = float(box[0, k]), float(box[1, k])
    return [Dimension(*d) for d in zip(source, op.shape, scales, lengths, roi, strict=True)]


COORDINATES: dict[str, Callable[[np.ndarray, Dimension], np.ndarray]] = {
    "half_pixel": lambda x, d: (x + 0.5) / d.scale - 0.5,
    "pytorch_half_pixel": lambda x, d: (x + 0.5) / d.scale - 0.5 if d.length > 1 else np.zeros(len(x)),
    "half_pixel_symmetric": lambda x, d: d.n / 2 * (1 - d.out / d.length) + (x + 0.5) / d.scale - 0.5,
    "align_corners": lambda x, d: x * (d.n - 1) / (d.length - 1) if d.length != 1 else np.zeros(len(x)),
    "asymmetric": lambda x, d: x / d.scale,
    "tf_crop_and_resize": lambda x, d: _cropped(x, d),
}
NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5), "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor, "ceil": np.ceil,
}


def _cropped(x: np.ndarray, d: Dimension) -> np.ndarray:
    start, end = d.roi
    if d.length == 1:
        return np.full(len(x), (end - start) * (d.n - 1) / 2)
    return start * (d.n - 1) + x * (end - start) * (d.n - 1) / (d.length - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """The input elements of each output position of one dimension, their weights, and which positions lie outside."""

    index: np.ndarray           # (out, taps), clipped into the input
    weight: np.ndarray          # (out, taps); the weights of a position add up to 1
    outside: np.ndarray         # (out,)
    coordinate: np.ndarray      # (out,)

    @property
    def is_identity(self) -> bool:
        out, count = self.index.shape
        return count == 1 and not self.outside.any() and (self.index[:, 0] == np.arange(out)).all()


def taps(op: Op, d: Dimension) -> Taps:
    """The source positions and weights of each output position along one dimension, as the node's modes say: known when the
    kernel is made. Raises CodegenError: a coordinate mode that ONNX does not define.
    """
    mode, transform = op.attr("mode", "nearest"), op.attr("coordinate_transformation_mode", "half_pixel")
    if transform not in COORDINATES:
        raise CodegenError(f"Resize coordinate mode {transform!r} is not supported", where=op.node.name)
    x = COORDINATES[transform](np.arange(d.out, dtype=np.float64), d)
    outside = (x < 0) | (x > d.n - 1) if transform == "tf_crop_and_resize" else np.zeros(d.out, bool)
    if mode == "nearest":
        picks = NEAREST[op.attr("nearest_mode", "round_prefer_floor")](x).reshape(-1, 1)
        weight = np.ones(picks.shape)
    elif d.scale == 1.0 and np.array_equal(x, np.arange(d.out)):
        picks, weight = x.reshape(-1, 1), np.ones((d.out, 1))
    else:
        picks, weight = _interpolation(op, mode, x, d)
    return Taps(np.clip(picks, 0, d.n - 1).astype(int), weight, outside, x)


def _interpolation(op: Op, mode: str, x: np.ndarray, d: Dimension) -> tuple[np.ndarray, np.ndarray]:
    """Positions and weights of linear and cubic interpolation; with antialiasing the kernel grows as the image shrinks."""
    if mode not in ("linear", "cubic"):
        raise CodegenError(f"Resize mode {mode!r} is not supported", where=op.node.name)
    scale = min(d.scale, 1.0) if op.attr("antialias", 0) else 1.0
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / scale) + 1
    low = np.floor(x)
    steps = np.arange(first, 2 - first)
    distance = np.abs((steps[None, :] - (x - low)[:, None]) * scale)
    weight = np.clip(1 - distance, 0, 1) if mode == "linear" else _cubic(distance, float(op.attr("cubic_coeff_a", -0.75)))
    picks = low[:, None] + steps[None, :]
    if op.attr("exclude_outside", 0):
        weight = np.where((picks < 0) | (picks >= d.n), 0, weight)
    weight = weight / weight.sum(1, keepdims=True)
    used = (weight != 0).any(0)
    return picks[:, used], weight[:, used]


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel of the distance t. Source: ONNX Resize, cubic_coeff_a."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def resize(op: Op) -> te.Tensor:
    """The sum over the taps of each dimension, innermost dimension last; one tap each for nearest."""
    dims = [taps(op, d) for d in dimensions(op)]
    source = op.in_shape()
    kind = op.dtype if op.attr("mode", "nearest") == "nearest" else "float64" if op.dtype == "float64" else "float32"

    def mix(at: At, i: At) -> te.Expr:
        dim = len(at)
        if dim == len(source):
            return op.x[at].astype(kind)
        t, j = dims[dim], i[dim]
        picks = [pick(t.index[:, k], j, source[dim]) for k in range(t.index.shape[1])]
        parts = [mix((*at, p), i) for p in picks]
        return parts[0] if len(parts) == 1 else _weighted(parts, _weights(op, t, j, picks[0], source[dim], kind))

    blended = _blended(op, dims, kind) if _is_separable(dims, source) else None

    def value(i: At) -> te.Expr:
        inside = te.all(*(table((~t.outside).tolist(), j, "bool") for t, j in zip(dims, i, strict=True)))
        result = mix((), i) if blended is None else blended(i)
        if dtypes.is_integer(op.dtype) and kind != op.dtype:
            result = te.minimum(te.maximum(result, float(dtypes.lowest(op.dtype))), float(dtypes.highest(op.dtype)))
        return te.select(inside, result.astype(op.dtype), te.const(op.attr("extrapolation_value", 0.0), op.dtype))
    return injective(op, value)


def _weighted(parts: list[te.Expr], weights: list[te.Expr]) -> te.Expr:
    """The sum of parts by weights; where only the second of two has one, the first has what is left of one."""
    if len(weights) < len(parts):
        return parts[0] + (parts[1] - parts[0]) * weights[0]
    total = parts[0] * weights[0]
    for p, w in zip(parts[1:], weights[1:], strict=True):
        total = total + p * w
    return total


def _weights(op: Op, t: Taps, j: Any, low: Any, n: int, kind: str) -> list[te.Expr]:
    """The weights at place j of a dimension of n input elements, as _weighted wants them."""
    if t.index.shape[1] == 2:
        return [_linear_weight(t, j, low, n, kind)]
    return _cubic_weights(op, t, j, kind) or _tables(t, j, kind)


def _is_separable(dims: Sequence[Taps], source: Sequence[int]) -> bool:
    """Whether to blend one dimension after the other, with what the others need stored: several dimensions mix elements, the
    innermost one with weights that change from place to place, and the steps between are not much larger than the result."""
    mixed = [d for d, t in enumerate(dims) if t.index.shape[1] > 1]
    if len(mixed) < 2 or mixed[-1] != len(dims) - 1 or (dims[-1].weight == dims[-1].weight[0]).all():
        return False
    return source[-1] <= LARGEST_STEP * len(dims[-1].index)


def _blended(op: Op, dims: Sequence[Taps], kind: str) -> Callable[[At], te.Expr]:
    """The value at a place of the result, dimensions blended from the outermost to the innermost:

        rows[c, y, i] = x[c, low[y], i] * (1 - w[y]) + x[c, low[y] + 1, i] * w[y]        whole vectors along i
        result[c, y, x] = rows[c, y, low[x]] * (1 - w[x]) + ...                          gathers in one row
    """
    outer = [d for d, t in enumerate(dims) if not t.is_identity]
    shape, made = list(op.in_shape()), op.x
    for dim in outer[:-1]:
        shape[dim] = len(dims[dim].index)
        made = te.compute(tuple(shape), _along(op, dims[dim], dim, made, kind), name=op.name("rows"), tag=STORED)
    last = _along(op, dims[-1], len(dims) - 1, made, kind)
    return lambda i: last(*i)


def _along(op: Op, t: Taps, dim: int, x: te.Tensor, kind: str) -> Callable[..., te.Expr]:
    """One dimension resized. Places and weights are stages of their own: one value per place of the dimension, not one per
    element of the result."""
    n = op.in_shape()[dim]

    def stage(name: str, dtype: str, fn: Callable[[Any], te.Expr]) -> te.Tensor:
        return te.compute((len(t.index),), lambda j: fn(j).astype(dtype), name=op.name(name), tag=STORED)

    def place(k: int) -> te.Tensor:
        return stage("place", "int32", lambda j: te.index(pick(t.index[:, k], j, n)))

    def weight(k: int) -> te.Tensor:
        def at(j: Any) -> te.Expr:
            found = _weights(op, t, j, pick(t.index[:, 0], j, n), n, kind)
            if len(found) == taps:
                return found[k]
            second = te.select(places[0][j].equal(places[1][j]), te.const(0.5, kind), found[0])    # infinity * 0 is NaN
            return second if k else 1.0 - second
        return stage("weight", kind, at)
    taps = t.index.shape[1]
    places = [place(k) for k in range(taps)]
    weights = [weight(k) for k in range(taps)] if taps > 1 else []

    def value(*i: Any) -> te.Expr:
        parts = [x[(*i[:dim], te.index(p[i[dim]], 0, n - 1), *i[dim + 1:])].astype(kind) for p in places]
        return _weighted(parts, [w[i[dim]] for w in weights]) if weights else parts[0]
    return value


def _linear_weight(t: Taps, j: Any, low: Any, n: int, kind: str) -> te.Expr:
    """The weight of the second of two taps: coordinate - low, when the coordinates are evenly spaced; else a table."""
    out = len(t.coordinate)
    w = t.weight[:, 1]
    if out > 1:
        step, start = float(t.coordinate[1] - t.coordinate[0]), float(t.coordinate[0])
        formula = np.clip(np.arange(out) * step + start, 0, n - 1) - t.index[:, 0]
        # where both taps are the same element the weight does not matter
        if np.allclose(np.where(t.index[:, 0] == t.index[:, 1], 0, formula - w), 0, atol=1e-9):
            here = te.index(j).astype("float64") * step + start
            clipped = te.minimum(te.maximum(here, 0.0), float(n - 1))
            return (clipped - te.index(low).astype("float64")).astype(kind)
    return table(w.tolist(), j, kind)


def _tables(t: Taps, j: Any, kind: str) -> list[te.Expr]:
    """The weights as tables, rounded a little so that what repeats along the dimension is seen to repeat."""
    return [table(column.round(DIGITS[kind]).tolist(), j, kind) for column in t.weight.T]


DIGITS = {"float32": 9, "float64": 17}
LARGEST_STEP = 4                # an innermost dimension this many times as long as the result's is blended all at once
SHORT = 64                      # weights: their table is shorter than the formula


def _cubic_weights(op: Op, t: Taps, j: Any, kind: str) -> list[te.Expr] | None:
    """The weights of four taps as polynomials of the fraction of the coordinate, when the coordinates are evenly spaced;
    None: a table is short, or other weights."""
    out, low = len(t.coordinate), np.floor(t.coordinate)
    if op.attr("mode") != "cubic" or t.weight.shape[1] != 4 or out <= SHORT or op.attr("exclude_outside", 0):
        return None
    step, start = float(t.coordinate[1] - t.coordinate[0]), float(t.coordinate[0])
    a, steps = float(op.attr("cubic_coeff_a", -0.75)), np.arange(-1, 3)
    fraction = np.arange(out) * step + start - low
    if not np.allclose(_cubic(np.abs(steps[None, :] - fraction[:, None]), a), t.weight, rtol=0, atol=1e-7):
        return None
    base = int(low.min())
    below = te.index(pick((low - base).astype(int), j, int(low.max()) - base + 2))
    here = (te.index(j).astype("float64") * step + start - base - below.astype("float64")).astype(kind)

    def near(d: te.Expr) -> te.Expr:
        return ((a + 2) * d - (a + 3)) * d * d + 1.0

    def far(d: te.Expr) -> te.Expr:
        return ((d - 5.0) * d + 8.0) * d * a - 4.0 * a
    return [far(here + 1.0), near(here), near(1.0 - here), far(2.0 - here)]


def pick(picks: np.ndarray, at: Any, n: int) -> Any:
    """picks[at] as an index: (at*a + b) // c where the picks are evenly spaced, clipped where they are so, else a table."""
    out = len(picks)
    if len(set(picks.tolist())) == 1:
        return int(picks[0])
    inner = (picks > 0) & (picks < n - 1)
    slope = Fraction(int(picks[-1] - picks[0]), out - 1)
    if inner.sum() > 1:
        where = np.flatnonzero(inner)
        slope = Fraction(int(picks[where[-1]] - picks[where[0]]), int(where[-1] - where[0]))
    for ratio in dict.fromkeys((Fraction(n, out), slope)):
        for exact, which in ((True, np.ones(out, bool)), (False, inner)):
            if (b := _offset(picks, which, ratio)) is None:
                continue
            place = (te.index(at) * ratio.numerator + b) // ratio.denominator
            values = np.clip((np.arange(out) * ratio.numerator + b) // ratio.denominator, 0, n - 1)
            if exact and (values == picks).all():
                return place
            if (values == picks).all():
                kept = te.minimum(te.maximum(place.astype("int64"), te.const(0, "int64")), te.const(n - 1, "int64"))
                return te.index(kept, 0, n - 1)
    return te.index(table(picks.tolist(), at, "int64"), 0, n - 1)


def _offset(picks: np.ndarray, which: np.ndarray, ratio: Fraction) -> int | None:
    """b so that (at*a + b) // c are the picks chosen by `which`, with ratio = a/c."""
    if not which.any():
        return 0
    at = np.flatnonzero(which)
    base, scaled = at * ratio.numerator, picks[at] * ratio.denominator
    low, high = (scaled - base).max(), (scaled - base + ratio.denominator - 1).min()
    return int(low) if low <= high else None


RESIZE: dict[str, Compute] = {"Resize": resize}
