"""Operators that read an image at computed places: GridSample and AffineGrid; and Col2Im."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import STORED, Compute, Op, injective, row_major

At = tuple[Any, ...]


def _place(value: te.Expr, n: int) -> te.Index:
    """A whole number, perhaps outside, as an index inside [0, n)."""
    kept = te.minimum(te.maximum(value, te.const(0, value.dtype)), te.const(n - 1, value.dtype))
    return te.index(kept.astype("int64"), 0, n - 1)


def _reflected(v: te.Expr, low: float, high: float) -> te.Expr:
    """A coordinate outside [low, high] mirrored at the borders until it is inside: a triangular wave."""
    span = high - low
    if span <= 0:
        return te.const(low, v.dtype)
    away = te.abs(v - low)
    rest = away - te.floor(away / (2 * span)) * (2 * span)
    inside = te.all(v >= low, v <= high)
    return te.select(inside, v, te.select(rest <= span, rest + low, te.const(2 * span + low, v.dtype) - rest))


def _cubic_weights(f: te.Expr, a: float = -0.75) -> list[te.Expr]:
    """Keys' kernel at the distances 1+f, f, 1-f, 2-f."""
    def far(t: te.Expr) -> te.Expr:
        return ((t * a - 5 * a) * t + 8 * a) * t - 4 * a

    def near(t: te.Expr) -> te.Expr:
        return (t * (a + 2) - (a + 3)) * t * t + 1.0
    g = te.const(1.0, f.dtype) - f
    return [far(f + 1.0), near(f), near(g), far(g + 1.0)]


class _Padding:
    """What lies outside an image: zeros, its border repeated, or its mirror image."""

    def __init__(self, mode: str, align_corners: bool, where: str) -> None:
        if mode not in ("zeros", "border", "reflection"):
            raise CodegenError(f"GridSample padding mode {mode!r} is not supported", where=where)
        self.mode, self.align = mode, align_corners

    def borders(self, n: int) -> tuple[float, float]:
        return (0.0, n - 1.0) if self.align else (-0.5, n - 0.5)

    def coordinate(self, v: te.Expr, n: int) -> te.Expr:
        """A coordinate brought inside, where the mode does so."""
        low, high = self.borders(n)
        if self.mode == "border":
            clamped = te.minimum(te.maximum(v, te.const(0, v.dtype)), te.const(n - 1, v.dtype))
            return te.select(te.any(v < low, v > high), clamped, v)
        return _reflected(v, low, high) if self.mode == "reflection" else v

    def pixel(self, p: te.Expr, n: int) -> tuple[te.Index, te.Expr]:
        """(index, whether it counts) of the pixel at a whole number."""
        if self.mode == "zeros":
            return _place(p, n), te.all(p >= 0.0, p <= float(n - 1))
        if self.mode == "reflection":
            p = te.floor(_reflected(p, *self.borders(n)))
        return _place(p, n), te.const(True, "bool")


def grid_sample(op: Op) -> te.Tensor:
    """x at the places a grid names in [-1, 1], last spatial dimension first. Source: ONNX GridSample."""
    return _sampled(op, op.in_shape()[2:], "injective", lambda n, c, at: (n, c, *at))


def grid_sample_last(op: Op) -> te.Tensor:
    """GridSample of x (N, H, W, C) to (N, oh, ow, C): a place is found once, and read for all of its channels."""
    return _sampled(op, op.in_shape()[1:-1], STORED, lambda n, c, at: (n, *at, c))


def _sampled(op: Op, dims: Sequence[int], places: str, order: Callable[[Any, Any, At], At]) -> te.Tensor:
    """`dims`: the spatial extents of x; `places`: the tag of the stages that say where to read; `order`: an index of x or of
    the result from its batch, channel and spatial indices."""
    grid = op.tensor(1)
    rank, align = len(dims), bool(op.attr("align_corners", 0))
    mode = op.attr("mode", "linear")
    if mode not in ("nearest", "linear", "cubic"):
        raise CodegenError(f"GridSample mode {mode!r} is not supported", where=op.node.name)
    padding = _Padding(op.attr("padding_mode", "zeros"), align, op.node.name)
    kind = "float64" if op.dtype == "float64" else "float32"

    def coordinate(d: int, at: At) -> te.Expr:
        g, n = grid[(*at, rank - 1 - d)].astype(kind), dims[d]
        v = (g + 1.0) * ((n - 1) / 2) if align else ((g + 1.0) * float(n) - 1.0) * 0.5
        return padding.coordinate(te.round(v) if mode == "nearest" else v, n)
    where = [te.compute(grid.shape[:-1], lambda *at, d=d: coordinate(d, at), name=op.name(f"at{d}"), tag=places)
             for d in range(rank)]

    def taps(v: te.Expr) -> list[tuple[te.Expr, te.Expr]]:
        """(position, weight) of the elements that one dimension mixes."""
        one = te.const(1.0, kind)
        if mode == "nearest":
            return [(v, one)]
        base = te.floor(v)
        f = v - base
        if mode == "linear":
            return [(base, one - f), (base + 1.0, f)]
        return [(base + float(k), w) for k, w in zip((-1, 0, 1, 2), _cubic_weights(f), strict=True)]

    def value(i: At) -> te.Expr:
        numbers = order(0, rank + 1, tuple(range(1, rank + 1)))             # what each index of the result is
        n, *o, c = (i[numbers.index(k)] for k in range(rank + 2))

        def mix(d: int, at: At, inside: te.Expr) -> te.Expr:
            if d == rank:
                return te.select(inside, op.x[order(n, c, at)].astype(kind), te.const(0, kind))
            total: te.Expr | None = None
            for position, weight in taps(where[d][(n, *o)]):
                index, counts = padding.pixel(position, dims[d])
                part = mix(d + 1, (*at, index), te.all(inside, counts))
                part = part if mode == "nearest" else part * weight
                total = part if total is None else total + part
            assert total is not None
            return total
        return mix(0, (), te.const(True, "bool")).astype(op.dtype)
    return injective(op, value)


def affine_grid(op: Op) -> te.Tensor:
    """grid[n, y, x, r] = theta[n, r] . (x, y, 1) over evenly spaced places in [-1, 1]. Source: ONNX AffineGrid."""
    theta, align, dims = op.tensor(0), bool(op.attr("align_corners", 0)), op.shape[1:-1]
    rank = len(dims)

    def value(i: At) -> te.Expr:
        n, *at, r = i

        def coordinate(d: int) -> te.Expr:
            position = te.index(at[d]).astype("float64")
            size = dims[d]
            exact = position * (2 / (size - 1) if size > 1 else 0.0) - 1.0 if align else (position * 2.0 + 1.0) / size - 1.0
            return exact.astype(op.dtype)
        total = theta[n, r, rank]
        for k in range(rank):
            total = total + theta[n, r, k] * coordinate(rank - 1 - k)
        return total
    return injective(op, value)


def col2im(op: Op) -> te.Tensor:
    """The sum of all blocks that cover a place: im2col backwards. Source: ONNX Col2Im."""
    block = [int(k) for k in op.constant(2).reshape(-1)]
    rank, spatial = len(block), op.shape[2:]
    strides, dilations = op.attr("strides") or (1,) * rank, op.attr("dilations") or (1,) * rank
    pads = op.attr("pads") or (0,) * (2 * rank)
    counts = tuple((n + pads[d] + pads[rank + d] - dilations[d] * (block[d] - 1) - 1) // strides[d] + 1
                   for d, n in enumerate(spatial))
    taps = [te.reduce_axis(k, f"k{d}") for d, k in enumerate(block)]
    kernel = int(np.prod(block))

    def value(n: Any, c: Any, *at: Any) -> te.Expr:
        steps = [te.index(j) + pads[d] - te.index(k) * dilations[d] for d, (j, k) in enumerate(zip(at, taps, strict=True))]
        inside = te.all(*(
            te.all((s % strides[d]).equal(0), s >= 0, s < counts[d] * strides[d]) for d, s in enumerate(steps)))
        place = row_major([s // strides[d] for d, s in enumerate(steps)], counts)
        x = op.x[n, te.index(c) * kernel + row_major(taps, block), place]
        return te.sum(te.select(inside, x, te.const(0, op.dtype)), axis=tuple(taps))
    return te.compute(op.shape, value, name=op.name(), tag="reduce")


SAMPLING: dict[str, Compute] = {
    "AffineGrid": affine_grid,
    "Col2Im": col2im,
    "GridSample": grid_sample,
    "GridSampleLast": grid_sample_last,
}
