"""Kernels without a reduction: elementwise chains, broadcasts, moves. Memory speed is all there is to gain."""

from __future__ import annotations

import math

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.kernels.choices import Choices
from toolchain.kernels.sketches.stages import layout_of
from toolchain.te.tensor import Tensor

PARALLEL_ELEMENTS = 16 * 1024        # below this, waking another core costs more than it brings


def pointwise(s: te.Schedule, target: Target, choices: Choices) -> None:
    for stage in tuple(s.func.stages):
        pointwise_nest(s, stage, target)


def pointwise_nest(s: te.Schedule, stage: Tensor, target: Target) -> None:
    """Vectors along what is contiguous in the result, cores along the rest."""
    axes = list(s[stage].op.axis)
    if not axes:
        return
    lanes = target.lanes(dtypes.bits(stage.dtype))
    layout = layout_of(s, stage)
    reduce = list(s[stage].op.reduce_axis)
    ragged: list[te.Var] = []
    if len(axes) >= 3 and layout.block(1) > 1 and axes[1].extent > 1:
        g, inner = s[stage].split(axes[1], factor=layout.block(1))
        outer = [axes[0], g, *axes[2:]]
        s[stage].reorder(*outer, *reduce, inner)
        s[stage].vectorize(inner)
        if s.func.stages[stage].tag == "concat" and s.func.stages[stage].attrs["axis"] == 1:
            ragged.append(g)
            outer = [axes[0], *axes[2:]]
    else:
        outer, inner = axes[:-1], axes[-1]
        if inner.extent >= lanes:
            io, ii = s[stage].split(inner, factor=lanes)
            if inner.extent % lanes:
                ragged.append(io)
            s[stage].reorder(*outer, io, *reduce, ii)
            s[stage].vectorize(ii)
            outer = [*outer, io] if not ragged else outer
    _parallel(s, stage, outer, reduce)
    for axis in ragged:
        s[stage].partition(axis)


def _parallel(s: te.Schedule, stage: Tensor, outer: list[te.Var], reduce: list[te.Var]) -> None:
    work = math.prod(stage.shape) * math.prod(r.extent for r in reduce)
    wide = [a for a in outer if a.extent > 1]
    if work < PARALLEL_ELEMENTS or not wide:
        return
    loop = wide[0]
    if len(wide) > 1 and loop.extent < 8 and outer.index(wide[1]) == outer.index(loop) + 1:
        loop = s[stage].fuse(loop, wide[1])
    s[stage].parallel(loop)
