"""Reductions and what follows them, row by row: Softmax, LayerNormalization, ReduceMean, ArgMax, and everything without a
better sketch. All stages of a row are computed inside one parallel loop over rows, so that the row stays in cache.

    for row in parallel:                      row: the leading dimensions that all stages share
        top.rf[l] = max_o x[row, o*L + l]     a reduction along what is contiguous keeps one partial result per lane
        top = max_l top.rf[l]
        e[j] = exp(x[row, j] - top)
        ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.kernels.choices import Choices
from toolchain.kernels.sketches.pointwise import pointwise_nest
from toolchain.kernels.sketches.stages import fuse_all, is_reduction
from toolchain.te.tensor import Tensor

STACK_BYTES = 4096           # larger stages of a row live in the lane's scratch instead of on the stack


def rows(s: te.Schedule, target: Target, choices: Choices) -> None:
    """Every stage at the row loop of the output; vectors along the innermost dimension or along the reduction."""
    outputs = [t for t in s.func.stages if t in s.func.params]
    stages = list(s.func.stages)
    head = shared_dimensions(stages, target)
    if len(outputs) > 1 or not outputs[0].shape or (head == 0 and len(stages) > 1):
        for stage in stages:
            pointwise_nest(s, stage, target)
        return
    (out,) = outputs
    partials = {p for stage in stages if (p := lane_partials(s, stage, head, target)) is not None}
    loop = _row_loop(s, out, head)
    for stage in reversed(list(s.func.stages)):
        if stage is out:
            continue
        if loop is None:            # a reduction in parts, of an output without a dimension in common with it
            raise ScheduleError("the stages of a row share no dimension", where=out.name)
        s[stage].compute_at(s[out], loop)
        size = math.prod(s.func.buffers[stage].type.shape) * dtypes.itemsize(stage.dtype)
        s[stage].set_scope("local" if size <= STACK_BYTES else "lane")
    for stage in list(s.func.stages):
        if stage in partials:
            _vectorize_partial(s, stage)
        else:
            _vectorize(s, stage, s[stage].op.axis[head:], target)
    if loop is not None:
        s[out].parallel(loop)


def shared_dimensions(stages: Sequence[Tensor], target: Target) -> int:
    """How many leading dimensions all stages have in common, the innermost one left for vectors when it is wide."""
    head = 0
    for extents in zip(*(t.shape for t in stages), strict=False):
        if len(set(extents)) != 1:
            break
        head += 1
    wide = [d for d, n in enumerate(stages[-1].shape) if n > 1]
    lanes = target.lanes(dtypes.bits(stages[-1].dtype))
    if wide and head > wide[-1] and stages[-1].shape[wide[-1]] >= lanes:
        head = wide[-1]
    return head


def lane_partials(s: te.Schedule, stage: Tensor, head: int, target: Target) -> Tensor | None:
    """Split a reduction to a scalar per row into one partial result per lane (rfactor); short ones stay as they are.

        total[i] = sum_r x[i, r]   ->   total.rf[l, i] = sum_o x[i, o*L + l];   total[i] = sum_l total.rf[l, i]
    """
    definition = s.func.stages[stage]
    lanes = target.lanes(dtypes.bits(stage.dtype))
    if not is_reduction(definition) or math.prod(stage.shape[head:]) > 1:
        return None
    axes = list(definition.reduce_axis)
    if math.prod(a.extent for a in axes) < 2 * lanes:
        return None
    fused = axes[-1]
    for axis in reversed(axes[:-1]):
        fused = s[stage].fuse(axis, fused)
    _, lane = s[stage].split(fused, factor=lanes)
    return s.rfactor(stage, lane)


def _vectorize_partial(s: te.Schedule, partial: Tensor) -> None:
    """One vector of partial results, the reduction around it; its ragged last step apart."""
    lane = s[partial].op.axis[0]
    (step,) = s[partial].op.reduce_axis
    s[partial].reorder(step, *s[partial].op.axis[1:], lane)
    s[partial].vectorize(lane)
    s[partial].partition(step)


def _row_loop(s: te.Schedule, out: Tensor, head: int) -> te.Var | None:
    axes = s[out].op.axis[:head]
    return fuse_all(s, out, axes) if axes else None


def _vectorize(s: te.Schedule, stage: Tensor, axes: Sequence[te.Var], target: Target) -> None:
    """Vectors along the innermost wide dimension, reductions outside them."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    wide = [a for a in axes if a.extent >= lanes]
    if not wide:
        if len(s[stage].op.reduce_axis) == 1 and s[stage].op.reduce_axis[0].extent == lanes:
            s[stage].vectorize(s[stage].op.reduce_axis[0])          # what lane_partials left: one horizontal step
        return
    last, outer = wide[-1], None
    inner = last
    if last.extent > lanes:
        outer, inner = s[stage].split(last, factor=lanes)
    if reduce := s[stage].op.reduce_axis:
        s[stage].reorder(*reduce, inner)
    s[stage].vectorize(inner)
    if outer is not None and last.extent % lanes:
        s[stage].partition(outer)
