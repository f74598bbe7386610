"""The samples of a deformable convolution as loops: where a tap lies is found once, then rows of channels are mixed."""

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
        mask = op.tensor(2)[n, number, line, x].astype(kind) if op.has(2) else te.const(1, kind)
        marks: list[list[tuple[Expr, Expr]]] = []                             # per dimension: (weight, whether inside)
        for d, (at, step) in enumerate(((line, tap // kernel[1]), (x, tap % kernel[1]))):
            extent, place = op.in_shape()[1 + d], b.variable("place", kind)
            home = te.index(at * strides[d] + step * dilations[d] - pads[d]).astype(kind)
            b.set(place, home + op.tensor(1)[n, number * 2 + d, line, x].astype(kind))
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
            pixel = self.op.x[n, te.index(row, 0, height - 1), te.index(column, 0, width - 1), channel].astype(kind)
            part = te.select(count.value.equal(te.const(1, "int32")), pixel * weight.value, te.const(0, kind))
            total = part if total is None else total + part
        assert total is not None
        return total


DEFORM = {"DeformSample": deform_sample}
