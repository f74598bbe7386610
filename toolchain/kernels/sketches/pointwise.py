"""Kernels without a reduction: elementwise chains, broadcasts, moves. Memory speed is all there is to gain.

Between a blocked and a row-major tensor a tile of channels x columns is turned at a time, so that every cache line is
touched while it is near:

    blocked -> plain   for c block, y, x block: for c, x (vector): out[c, y, x] = in[...]           strided reads, near
    plain -> blocked   for c block, y, x block: tile[c, x (vector)] = in[...]; for x, c (vector): out[...] = tile[c, x]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.kernels.choices import Choices
from toolchain.kernels.sketches.stages import definitions, is_reduction, layout_of
from toolchain.te.tensor import Tensor

PARALLEL_ELEMENTS = 16 * 1024        # below this, waking another core costs more than it brings


def pointwise(s: te.Schedule, target: Target, choices: Choices) -> None:
    for stage in definitions(s):
        pointwise_nest(s, stage, target)


def pointwise_nest(s: te.Schedule, stage: Tensor, target: Target) -> None:
    """Vectors along what is contiguous in the result, cores along the rest."""
    if not stage.shape:
        return
    blocked = len(stage.shape) >= 3 and layout_of(s, stage).block(1) > 1 and stage.shape[1] > 1
    if blocked:
        _blocked_nest(s, stage, target)
    else:
        _plain_nest(s, stage, target)


def _blocked_nest(s: te.Schedule, stage: Tensor, target: Target) -> None:
    """NCHW<l>c: one vector of channels at a time."""
    lanes = layout_of(s, stage).block(1)
    axes, reduce = s[stage].op.axis, s[stage].op.reduce_axis
    sources = [] if reduce else [t for t in _same_shape(s, stage) if layout_of(s, t).block(1) == 1]
    g, inner = s[stage].split(axes[1], factor=lanes)
    outer = [axes[0], g, *axes[2:]]
    if sources and stage.shape[-1] >= lanes:
        xo, xi = s[stage].split(axes[-1], factor=lanes)
        s[stage].reorder(*outer[:-1], xo, xi, inner)
        for source in sources:
            tile = s.cache_read(source, "local", stage)
            s[tile].compute_at(s[stage], xo)
            s[tile].vectorize(s[tile].op.axis[-1])
        outer = outer[:-1]
    else:
        s[stage].reorder(*outer, *reduce, inner)
    s[stage].vectorize(inner)
    if s.func.stages[stage].tag == "concat" and s.func.stages[stage].attrs["axis"] == 1:
        _share(s, stage, [axes[0], *axes[2:]] if not sources else [axes[0], *axes[2:-1]], reduce)
        s[stage].partition(g)                                # one loop per concatenated piece
    else:
        _share(s, stage, outer, reduce)


def _plain_nest(s: te.Schedule, stage: Tensor, target: Target) -> None:
    """Row-major: vectors along the innermost dimension when it is wide enough."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    axes, reduce = list(s[stage].op.axis), s[stage].op.reduce_axis
    outer, last = axes[:-1], axes[-1]
    block = max((layout_of(s, t).block(1) for t in _same_shape(s, stage) if len(t.shape) >= 3), default=1)
    if last.extent < lanes:
        _share(s, stage, outer, reduce)
        return
    io, ii = s[stage].split(last, factor=lanes)
    if block > 1 and not reduce and axes[1].extent > 1:
        co, ci = s[stage].split(axes[1], factor=block)
        s[stage].reorder(axes[0], co, *axes[2:-1], io, ci, ii)
        outer = [axes[0], co, *axes[2:-1]]
    else:
        s[stage].reorder(*outer, io, *reduce, ii)
    s[stage].vectorize(ii)
    ragged = bool(last.extent % lanes)
    _share(s, stage, outer if ragged else [*outer, io], reduce)
    if ragged:
        s[stage].partition(io)


def _same_shape(s: te.Schedule, stage: Tensor) -> list[Tensor]:
    """The operands of an elementwise stage that have its very shape."""
    definition = s.func.stages[stage]
    if is_reduction(definition) or definition.tag not in ("elementwise", "layout"):
        return []
    return [t for t in definition.input_tensors if t.shape == stage.shape]


def _share(s: te.Schedule, stage: Tensor, outer: Sequence[te.Var], reduce: Sequence[te.Var]) -> None:
    """Make the outermost wide loop parallel, joined with the next when it is short and they are neighbours."""
    work = math.prod(stage.shape) * math.prod(r.extent for r in reduce)
    wide = [a for a in outer if a.extent > 1]
    if work < PARALLEL_ELEMENTS or not wide:
        return
    loop = wide[0]
    if len(wide) > 1 and loop.extent < 8 and outer.index(wide[1]) == outer.index(loop) + 1:
        loop = s[stage].fuse(loop, wide[1])
    s[stage].parallel(loop)
