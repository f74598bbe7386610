"""Reductions and what follows them, row by row: Softmax, LayerNormalization, ReduceMean, ArgMax, and everything without a
better sketch. All stages of a row are computed inside one parallel loop over rows, so that the row stays in cache.

    for row in parallel:                      row: the leading dimensions that all stages share
        top.rf[l] = max_o x[row, o*L + l]     a reduction along what is contiguous keeps partial results in lanes
        top = max_l top.rf[l]
        e[j] = exp(x[row, j] - top)
        ...

Long sums are taken in blocks: sums of some hundred elements in registers, then the sum of those. Their rounding error grows
with the square root of a row's length instead of the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.kernels.choices import Choices
from toolchain.kernels.sketches.pointwise import pointwise_nest
from toolchain.kernels.sketches.stages import definitions, fuse_all, is_reduction, layout_of
from toolchain.te.expr import Load, Reduce
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Compute, Tensor

STACK_BYTES = 4096           # larger stages of a row live in the lane's scratch instead of on the stack
VECTORS = 4                  # accumulators of a long row: an addition takes four cycles, and two may start in each
LONG = 4                     # steps of all of them that make it worth while
FEW = 4                      # columns that make a vector of their own: the alternative to gathering each column's elements
LONG_SUM = 128               # steps of one accumulator from which on a sum is taken in blocks


def rows(s: te.Schedule, target: Target, choices: Choices) -> None:
    """Every stage at the row loop of the output; vectors along the innermost dimension or along the reduction."""
    outputs = [t for t in s.func.stages if t in s.func.params]
    stages = definitions(s)
    head = shared_dimensions(s, stages, target)
    if len(outputs) > 1 or not outputs[0].shape or (head == 0 and len(stages) > 1):
        for stage in stages:
            row_nest(s, stage, target)
        return
    (out,) = outputs
    partials = {p.lanes: p for stage in stages if (p := lane_partials(s, stage, head, target)) is not None}
    blocks = {p.blocks for p in partials.values()}
    loop = _row_loop(s, out, head)
    for stage in reversed(definitions(s)):
        if stage is out or stage in blocks:
            continue
        if loop is None:            # a reduction in parts, of an output without a dimension in common with it
            raise ScheduleError("the stages of a row share no dimension", where=out.name)
        s[stage].compute_at(s[out], loop)
        _near(s, stage)
        if stage in partials:       # now: its blocks read what is moved after it
            _vectorize_partial(s, partials[stage])
    for stage in definitions(s):
        if stage not in partials and stage not in blocks:
            _vectorize(s, stage, s[stage].op.axis[head:], target)
    if loop is not None:
        s[out].parallel(loop)


def row_nest(s: te.Schedule, stage: Tensor, target: Target) -> None:
    """A stage in a nest of its own: a reduction along what is contiguous in lanes, all others along their own dimensions."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    contiguous = reduces_contiguously(s, stage, lanes)
    partial = lane_partials(s, stage, len(stage.shape), target) if contiguous else None
    if partial is None:
        pointwise_nest(s, stage, target)
        return
    if stage.shape:
        loop = fuse_all(s, stage, s[stage].op.axis)
        s[partial.lanes].compute_at(s[stage], loop)
        _near(s, partial.lanes)
        s[stage].parallel(loop)
    _vectorize_partial(s, partial)
    _vectorize(s, stage, (), target)


def _near(s: te.Schedule, stage: Tensor) -> None:
    """On the stack, or in the lane's scratch when it is large."""
    for t in s.func.computed_with(stage):
        size = math.prod(s.func.buffers[t].type.shape) * dtypes.itemsize(t.dtype)
        s[t].set_scope("local" if size <= STACK_BYTES else "lane")


def shared_dimensions(s: te.Schedule, stages: Sequence[Tensor], target: Target) -> int:
    """How many leading dimensions all stages have in common, the innermost one left for vectors when it is wide, unless some
    stage reduces along what is contiguous: vectors along the reduction then."""
    head = 0
    for extents in zip(*(t.shape for t in stages), strict=False):
        if len(set(extents)) != 1:
            break
        head += 1
    wide = [d for d, n in enumerate(stages[-1].shape) if n > 1]
    lanes = target.lanes(dtypes.bits(stages[-1].dtype))
    least = FEW if any(is_reduction(s.func.stages[t]) for t in stages) else lanes
    if wide and head > wide[-1] and stages[-1].shape[wide[-1]] >= least and not any(
        reduces_contiguously(s, t, lanes) for t in stages
    ):
        head = wide[-1]
    return head


def reduces_contiguously(s: te.Schedule, stage: Tensor, lanes: int) -> bool:
    """Whether a stage reads along its reduction, some vectors of it, what lies together in memory."""
    return math.prod(a.extent for a in contiguous_axes(s, stage)) >= 2 * lanes


def contiguous_axes(s: te.Schedule, stage: Tensor) -> tuple[te.Var, ...]:
    """The reduction axes that are the last dimensions of the largest tensor a stage reads, outermost first: one stretch of
    memory. None of a blocked tensor: its channels lie together."""
    found: tuple[te.Var, ...] = ()
    definition = s.func.stages[stage]
    largest = max((math.prod(t.shape) for t in definition.input_tensors), default=0)

    def rule(load: Load) -> None:
        nonlocal found
        if math.prod(load.tensor.shape) < largest or not layout_of(s, load.tensor).is_row_major:
            return
        own: list[te.Var] = []
        for at, extent in zip(reversed(load.index), reversed(load.tensor.shape), strict=True):
            axis = next((a for a in definition.reduce_axis if isinstance(at, te.Index) and at == te.index(a)), None)
            if extent > 1 and (axis is None or axis.extent != extent):
                break
            own = own if axis is None or extent == 1 else [axis, *own]
        if math.prod(a.extent for a in own) > math.prod(a.extent for a in found):
            found = tuple(own)
    rewrite_loads(definition.body, rule)
    return found


@dataclass(frozen=True, slots=True)
class Partials:
    """The partial results of a reduction: `lanes` has one per lane of some vectors, `blocks` (of long sums) one per block of
    steps and lane, which `lanes` adds up."""

    lanes: Tensor
    width: int
    blocks: Tensor | None


def lane_partials(s: te.Schedule, stage: Tensor, head: int, target: Target) -> Partials | None:
    """Split a reduction to a scalar per row into one partial result per lane (rfactor); short ones stay as they are.

        total[i] = sum_r x[i, r]   ->   total.rf[l, i] = sum_o x[i, o*L + l];   total[i] = sum_l total.rf[l, i]

    L: several vectors when the row is long, because each step of an accumulator waits for the one before.
    """
    definition = s.func.stages[stage]
    width = target.lanes(dtypes.bits(stage.dtype))
    if not is_reduction(definition) or math.prod(stage.shape[head:]) > 1:
        return None
    axes = list(contiguous_axes(s, stage)) or list(definition.reduce_axis[-1:])
    length = math.prod(a.extent for a in axes)
    if length < 2 * width:
        return None
    vectors = max(1, VECTORS // len(definition.values))
    vectors = vectors if length >= LONG * vectors * width else 1
    s[stage].reorder(*(a for a in definition.reduce_axis if a not in axes), *axes)
    _, lane = s[stage].split(fuse_all(s, stage, axes), factor=vectors * width)
    lanes = s.rfactor(stage, lane)
    steps = -(-length // (vectors * width))
    if steps < LONG_SUM or not _is_float_sum(definition):
        return Partials(lanes, width, None)
    block, _ = s[lanes].split(s[lanes].op.reduce_axis[-1], factor=1 << round(math.log2(steps) / 2))
    return Partials(lanes, width, s.rfactor(lanes, block))


def _is_float_sum(definition: Compute) -> bool:
    body = definition.body
    return isinstance(body, Reduce) and body.combiner == "sum" and dtypes.is_float(body.dtype)


def _vectorize_partial(s: te.Schedule, partial: Partials) -> None:
    """Vectors of partial results, the reduction around them; its ragged last step apart."""
    step = s[partial.lanes].op.reduce_axis[-1]
    _in_vectors(s, partial.lanes, s[partial.lanes].op.axis[0], partial.width)
    if partial.blocks is not None:
        s[partial.blocks].compute_at(s[partial.lanes], step)
        s[partial.blocks].set_scope("local")
        _in_vectors(s, partial.blocks, s[partial.blocks].op.axis[1], partial.width)
    s[partial.lanes].partition(step)


def _in_vectors(s: te.Schedule, stage: Tensor, lane: te.Var, width: int) -> None:
    rest = [a for a in s[stage].op.axis if a is not lane]
    several = [] if lane.extent == width else [lane]
    if several:
        several[0], lane = s[stage].split(lane, factor=width)
        s[stage].unroll(several[0])
    s[stage].reorder(*rest, *s[stage].op.reduce_axis, *several, lane)
    s[stage].vectorize(lane)


def _row_loop(s: te.Schedule, out: Tensor, head: int) -> te.Var | None:
    axes = s[out].op.axis[:head]
    return fuse_all(s, out, axes) if axes else None


def _join_lanes(s: te.Schedule, stage: Tensor, lane: te.Var, width: int) -> None:
    """The end of what lane_partials began: vectors joined with each other, then one horizontal step."""
    if lane.extent > width:
        several, lane = s[stage].split(lane, factor=width)
        s[stage].unroll(several)
    s[stage].vectorize(lane)


def _vectorize(s: te.Schedule, stage: Tensor, axes: Sequence[te.Var], target: Target) -> None:
    """Vectors along the innermost wide dimension, reductions outside them."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    wide = [a for a in axes if a.extent >= lanes]
    if not wide and s[stage].op.reduce_axis:
        wide = [a for a in axes[-1:] if a.extent >= FEW]
    if not wide:
        if len(reduce := s[stage].op.reduce_axis) == 1 and reduce[0].extent in range(lanes, VECTORS * lanes + 1, lanes):
            _join_lanes(s, stage, reduce[0], lanes)
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
