"""Samples between pixels as loops: where one lies is found once, then rows of channels are mixed (channels lie innermost).

DeformConv and RoiAlign are made of them (toolchain/graph/passes/decompose_sampling.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from toolchain import te
from toolchain.kernels.op import Op, wide
from toolchain.te.expr import Expr
from toolchain.te.ir_builder import IRBuilder, Variable
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

LANES = 16                                  # channels of one vector statement


def deform_sample(op: Op, name: str) -> PrimFunc:
    """What each tap of each place of a deformable convolution reads between pixels: bilinear, zeros outside, times the mask.

        DeformSample(x[N, H, W, C], offset[N, 2*D*taps, oh, ow], mask?[N, D*taps, oh, ow]) {group: G, offset_group: D, ...}
            -> samples[N, G, oh, ow, taps, C/G]
        for row of samples, in parallel:  for x, tap, offset group:
            the four neighbours' places and weights, then for its channels:  samples = sum of weight * x[place, channel]
    """
    batch, _, rows, columns, taps, per_group = op.shape
    channels, parts = op.in_shape()[3], int(op.attr("offset_group"))
    piece = math.gcd(per_group, channels // parts)              # channels of one group and one offset group
    pieces = channels // parts // piece
    y, b = Tensor("y", op.shape, op.dtype, Placeholder()), IRBuilder()
    point = _Point.make(op, b)
    with b.loop("row", batch * rows, ForKind.PARALLEL) as row, b.loop("x", columns) as x, b.loop("tap", taps) as tap, \
            b.loop("part", parts) as part:
        n, line = te.index(row) // rows, te.index(row) % rows
        point.find(n, line, te.index(x), te.index(tap), te.index(part))
        with b.loop("piece", pieces) as number:
            first = (te.index(part) * pieces + number) * piece

            def mix(at: te.Index, first: te.Index = first) -> None:
                group, channel = first // per_group, first % per_group + at
                b.store(y, (n, group, line, x, tap, channel), point.value(n, first + at).astype(op.dtype))
            _each(b, piece, mix)
    return b.function(name, [t for t in op.inputs if t is not None], [y])


def _each(b: IRBuilder, n: int, body: Callable[[te.Index], None]) -> None:
    """The body for each of n neighbours, vectors first."""
    whole = n // LANES * LANES
    if whole:
        with b.loop("block", n // LANES) as block, b.loop("lane", LANES, ForKind.VECTORIZED) as lane:
            body(te.index(block) * LANES + lane)
    if whole < n:
        with b.loop("rest", n - whole) as rest:
            body(te.index(rest) + whole)


@dataclass(frozen=True)
class _Point:
    """The four pixels around a place: their rows and columns, which of them there are, and their weights."""

    op: Op
    b: IRBuilder
    places: tuple[tuple[Variable, Variable], tuple[Variable, Variable]]       # two rows; two columns
    weights: tuple[Variable, ...]                                             # row by row
    counts: tuple[Variable, ...]

    @classmethod
    def make(cls, op: Op, b: IRBuilder) -> _Point:
        def several(name: str, dtype: str, n: int) -> tuple[Variable, ...]:
            return tuple(b.variable(f"{name}{k}", dtype) for k in range(n))
        (top, bottom), (left, right) = several("row", "int64", 2), several("column", "int64", 2)
        weights, counts = several("weight", wide(op.dtype), 4), several("inside", "int32", 4)
        return cls(op, b, ((top, bottom), (left, right)), weights, counts)

    def find(self, n: te.Index, line: te.Index, x: te.Index, tap: te.Index, part: te.Index) -> None:
        """The pixels around tap `tap` of the place (line, x)."""
        op, b, kind = self.op, self.b, wide(self.op.dtype)
        kernel, strides, dilations, pads = (op.attr(a) for a in ("kernel_shape", "strides", "dilations", "pads"))
        number = part * math.prod(kernel) + tap
        mask = op.element(2, (n, number, line, x,)).astype(kind) if op.has(2) else te.const(1, kind)
        marks: list[list[tuple[Expr, Expr]]] = []                             # per dimension: (weight, whether inside)
        for d, (at, step) in enumerate(((line, tap // kernel[1]), (x, tap % kernel[1]))):
            extent, place = op.in_shape()[1 + d], b.variable("place", kind)
            home = te.index(at * strides[d] + step * dilations[d] - pads[d]).astype(kind)
            b.set(place, home + op.element(1, (n, number * 2 + d, line, x,)).astype(kind))
            base = b.variable("base", kind)
            b.set(base, te.floor(place.value))
            fraction, marks_of = place.value - base.value, []
            for k, variable in enumerate(self.places[d]):
                pixel, weight = base.value + float(k), te.const(1, kind) - fraction if k == 0 else fraction
                kept = te.minimum(te.maximum(pixel, te.const(0, kind)), te.const(extent - 1, kind))
                b.set(variable, kept.astype("int64"))
                marks_of.append((weight, te.all(pixel >= 0.0, pixel <= float(extent - 1))))
            marks.append(marks_of)
        corners = [(wy * wx * mask, te.all(iy, ix)) for wy, iy in marks[0] for wx, ix in marks[1]]
        for (weight, inside), of, count in zip(corners, self.weights, self.counts, strict=True):
            b.set(of, weight)
            b.set(count, te.select(inside, te.const(1, "int32"), te.const(0, "int32")))

    def value(self, n: te.Index, channel: te.Index) -> Expr:
        """The mix of the four at a channel. A pixel that is not there adds nothing, whatever lies at the border."""
        kind, (height, width) = wide(self.op.dtype), self.op.in_shape()[1:3]
        total: Expr | None = None
        for k, (weight, count) in enumerate(zip(self.weights, self.counts, strict=True)):
            row, column = self.places[0][k // 2].value, self.places[1][k % 2].value
            place = te.index(row, 0, height - 1), te.index(column, 0, width - 1)
            pixel = self.op.element(0, (n, *place, channel)).astype(kind)
            part = te.select(count.value.equal(te.const(1, "int32")), pixel * weight.value, te.const(0, kind))
            total = part if total is None else total + part
        assert total is not None
        return total


def roi_sample(op: Op, name: str) -> PrimFunc:
    """The mean (or maximum) of evenly spaced bilinear samples in each cell of each region.

        RoiSample(x[N, H, W, C], regions[R, 4], image[R]) {as of RoiAlign} -> cells[R, oh, ow, C]
        for row of cells, in parallel:  for x:
            for each sample: the four neighbours' places and weights, then for all channels:  total += sum of weight * x
            cells[.., x, :] = total / how many

    A sample more than one pixel outside counts as 0. Source: ONNX RoiAlign.
    """
    (regions, rows, columns, channels), (images, height, width, _) = op.shape, op.in_shape()
    ratio, maximum = int(op.attr("sampling_ratio")), op.attr("mode", "avg") == "max"
    y, b = Tensor("y", op.shape, op.dtype, Placeholder()), IRBuilder()
    kind = "float32"
    join = te.maximum if maximum else _sum
    nothing = te.min_value(kind) if maximum else te.const(0, kind)
    places = tuple(tuple(b.variable(f"{d}{k}", "int64") for k in range(2)) for d in ("row", "column"))
    weights = tuple(b.variable(f"weight{k}", kind) for k in range(4))
    valid, image = b.variable("valid", "int32"), b.variable("image", "int64")
    with b.loop("row", regions * rows, ForKind.PARALLEL) as row, b.loop("x", columns) as x:
        region, line = te.index(row) // rows, te.index(row) % rows
        total = b.buffer("total", (channels,), kind, "lane")
        _each(b, channels, lambda c: b.store(total, (c,), nothing))
        last = te.const(images - 1, "int64")
        b.set(image, te.minimum(te.maximum(op.element(2, (region,)).astype("int64"), te.const(0, "int64")), last))
        with b.loop("iy", ratio) as iy, b.loop("ix", ratio) as ix:
            _find_cell_sample(op, b, (region, (line, te.index(x)), (te.index(iy), te.index(ix))), (places, weights, valid))

            def mix(c: te.Index) -> None:
                there = te.index(image.value, 0, images - 1)
                lines, across = ([te.index(v.value, 0, extent - 1) for v in found]
                                 for found, extent in zip(places, (height, width), strict=True))
                parts = [op.element(0, (there, p, q, c)).astype(kind) * weight.value
                         for weight, (p, q) in zip(weights, ((p, q) for p in lines for q in across), strict=True)]
                mixed = parts[0]
                for part in parts[1:]:
                    mixed = join(mixed, part)
                counted = te.select(valid.value.equal(te.const(1, "int32")), mixed, te.const(0, kind))
                b.store(total, (c,), join(total[c], counted))
            _each(b, channels, mix)
        count = 1.0 if maximum else float(ratio * ratio)
        _each(b, channels, lambda c: b.store(y, (region, line, x, c), (total[c] / count).astype(op.dtype)))
    return b.function(name, [t for t in op.inputs if t is not None], [y])


def _sum(a: Expr, b: Expr) -> Expr:
    return a + b


Pair = tuple[te.Index, te.Index]


def _find_cell_sample(
    op: Op, b: IRBuilder, where: tuple[te.Index, Pair, Pair],
    found: tuple[tuple[tuple[Variable, ...], ...], tuple[Variable, ...], Variable],
) -> None:
    """The pixels around one sample of one cell: `where` is (region, cell, sample), `found` (places, weights, valid)."""
    (region, cell, sample), (places, weights, valid), kind = where, found, "float32"
    ratio, scale = int(op.attr("sampling_ratio")), float(op.attr("spatial_scale", 1.0))
    half = op.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    one, inside = te.const(1, "int32"), list[Expr]()
    shares: list[tuple[Expr, Expr]] = []
    for d, (cells, extent) in enumerate(zip(op.shape[1:3], op.in_shape()[1:3], strict=True)):
        low, high = (op.element(1, (region, 1 - d + 2 * k,)).astype(kind) * scale - (0.5 if half else 0.0) for k in range(2))
        size = high - low if half else te.maximum(high - low, te.const(1.0))
        step = size / float(cells)
        within = (sample[d].astype(kind) + 0.5) * step / float(ratio)
        place, base = b.variable("place", kind), b.variable("base", kind)
        b.set(place, low + cell[d].astype(kind) * step + within)
        counts = b.variable("counts", "int32")
        b.set(counts, te.select(te.all(place.value >= -1.0, place.value <= float(extent)), one, te.const(0, "int32")))
        inside.append(counts.value.equal(one))
        b.set(place, te.maximum(place.value, te.const(0.0)))
        b.set(base, te.minimum(te.floor(place.value), te.const(float(extent - 1))))
        fraction = b.variable("fraction", kind)
        b.set(fraction, te.select(base.value >= float(extent - 1), te.const(0.0), place.value - base.value))
        b.set(places[d][0], base.value.astype("int64"))
        b.set(places[d][1], te.minimum(base.value + 1.0, te.const(float(extent - 1))).astype("int64"))
        shares.append((te.const(1.0) - fraction.value, fraction.value))
    for weight, (wy, wx) in zip(weights, ((v, u) for v in shares[0] for u in shares[1]), strict=True):
        b.set(weight, wy * wx)
    b.set(valid, te.select(te.all(*inside), one, te.const(0, "int32")))


SAMPLED = {"DeformSample": deform_sample, "RoiSample": roi_sample}
