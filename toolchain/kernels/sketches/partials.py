"""Partial results of a reduction along a row: one per lane of a few vectors, joined behind the row; of long sums, in blocks.

        total.rf[l] = sum_o x[o*L + l];    total = sum_l total.rf[l]

Where the terms are a stage that is stored just before, one pass over a long row stores and reduces them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.kernels.sketches.asks import Asks
from toolchain.kernels.sketches.stages import is_costly, is_reduction, layout_of
from toolchain.te.expr import Load, Reduce, distinct, variables
from toolchain.te.loop_ir import loops
from toolchain.te.tensor import Compute, Tensor

STACK_BYTES = 4096           # larger stages of a row live in the lane's scratch instead of on the stack
LONG_SUM = 128               # steps of one accumulator from which on a sum is taken in blocks


@dataclass(frozen=True, slots=True)
class Partials:
    """The partial results of a reduction: `lanes` has one per lane of some vectors, `blocks` (of long sums) one per block of
    steps and lane, which `lanes` adds up."""

    lanes: Tensor
    width: int
    blocks: Tensor | None


def lane_partials(
    s: te.Schedule, stage: Tensor, target: Target, asks: Asks, terms: Tensor | None = None,
) -> Partials | None:
    """Split a reduction to a scalar per row into one partial result per lane (rfactor); short ones stay as they are.

        total[i] = sum_r x[i, r]   ->   total.rf[l, i] = sum_o x[i, o*L + l];   total[i] = sum_l total.rf[l, i]

    L: several vectors when the row is long, because each step of an accumulator waits for the one before; one where a costly
    function's terms take longer, and its constants fill the registers. terms: the stage that is stored in the same steps.
    """
    definition = s.func.stages[stage]
    if not is_reduction(definition):
        return None
    width = target.lanes(dtypes.bits(stage.dtype))
    last = list(s[stage].op.reduce_axis)[-1]
    if last.extent < 2 * width:                                 # rows of a few elements: the lanes cross them
        if math.prod(a.extent for a in definition.reduce_axis) < 2 * width:
            return None
        last = fused_reduction(s, stage)
    most = max(1, asks.vectors() // len(definition.values)) if last.extent >= 4 * width else 1
    if target.vector_registers < 32 and is_costly(definition if terms is None else s.func.stages[terms]):
        most = 1
    vectors = max((v for v in (most, 4, 2, 1) if v <= most and last.extent >= 2 * v * width), default=1)
    length = last.extent
    _, lane = s[stage].split(last, factor=vectors * width)
    lanes = s.rfactor(stage, lane)
    steps = -(-length // (vectors * width))
    if steps < LONG_SUM or not _is_float_sum(definition):
        return Partials(lanes, width, None)
    block, _ = s[lanes].split(s[lanes].op.reduce_axis[-1], factor=1 << round(math.log2(steps) / 2))
    return Partials(lanes, width, s.rfactor(lanes, block))


def fused_reduction(s: te.Schedule, stage: Tensor) -> te.Var:
    axes = list(s[stage].op.reduce_axis)
    fused = axes[-1]
    for axis in reversed(axes[:-1]):
        fused = s[stage].fuse(axis, fused)
    return fused


def _is_float_sum(definition: Compute) -> bool:
    body = definition.body
    return isinstance(body, Reduce) and body.combiner == "sum" and dtypes.is_float(body.dtype)


def vectorize_partial(s: te.Schedule, partial: Partials, whole: bool = True) -> None:
    """Vectors of partial results, the reduction around them; its ragged last step apart (whole: as far as it is here)."""
    step = s[partial.lanes].op.reduce_axis[-1]
    _in_vectors(s, partial.lanes, s[partial.lanes].op.axis[0], partial.width)
    if partial.blocks is not None:
        s[partial.blocks].compute_at(s[partial.lanes], step)
        s[partial.blocks].set_scope("local")
        _in_vectors(s, partial.blocks, s[partial.blocks].op.axis[1], partial.width)
    if whole:
        s[partial.lanes].partition(step)


def _in_vectors(s: te.Schedule, stage: Tensor, lane: te.Var, width: int) -> None:
    rest = [a for a in s[stage].op.axis if a is not lane]
    several = [] if lane.extent == width else [lane]
    if several:
        several[0], lane = s[stage].split(lane, factor=width)
        s[stage].unroll(several[0])
    s[stage].reorder(*rest, *s[stage].op.reduce_axis, *several, lane)
    s[stage].vectorize(lane)


def join_lanes(s: te.Schedule, stage: Tensor, lane: te.Var, width: int) -> None:
    """The end of what lane_partials began: vectors joined with each other, then one horizontal step."""
    if lane.extent > width:
        several, lane = s[stage].split(lane, factor=width)
        s[stage].unroll(several)
    s[stage].vectorize(lane)


def reduced_as_stored(s: te.Schedule, members: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The reductions whose terms are a stage of a long row, stored just before: one pass does both. Each with its terms."""
    found: dict[Tensor, Tensor] = {}
    for terms, stage in pairwise(in_order(s, members)):
        definition = s.func.stages[stage]
        if is_reduction(s.func.stages[terms]) or not is_reduction(definition) or not is_long(terms):
            continue
        read = [n for n in distinct(definition.body) if isinstance(n, Load) and n.tensor is terms]
        if len(definition.values) == len(read) == 1 and steps_along(s, read[0], definition.reduce_axis[-1]) == 1:
            found[stage] = terms
    return found


def is_long(stage: Tensor) -> bool:
    """Whether a row of a stage is too long for the stack."""
    return bool(stage.shape) and stage.shape[-1] * dtypes.itemsize(stage.dtype) > STACK_BYTES


def with_partials(s: te.Schedule, stage: Tensor, partial: Partials) -> None:
    """A stage in the steps of the reduction behind it, and that reduction in its loops."""
    last = s[stage].op.axis[-1]
    lanes, blocks = partial.lanes, partial.blocks
    outer, inner = s[stage].split(last, factor=math.prod(s.func.buffers[lanes].type.shape))
    beside, inner = s[stage].split(inner, factor=partial.width)
    s[stage].unroll(beside)
    s[stage].vectorize(inner)
    step = s[lanes].op.reduce_axis[-1]
    if blocks is not None:
        around, outer = s[stage].split(outer, factor=s[blocks].op.reduce_axis[-1].extent)
        s[lanes].compute_with(step, s[stage], around)
        s[blocks].compute_with(s[blocks].op.reduce_axis[-1], s[stage], outer)
        *_, last_block = s[stage].partition(around)
        s[stage].partition(_loop_inside(s, last_block))
    else:
        s[lanes].compute_with(step, s[stage], outer)
        s[stage].partition(outer)


def _loop_inside(s: te.Schedule, loop: te.Var) -> te.Var:
    """The first loop inside a loop."""
    around = next(nest for nest in loops(s.func.body) if nest.var is loop)
    return next(loops(around.body)).var


def steps_along(s: te.Schedule, load: Load, axis: te.Var) -> int | None:
    """How many elements apart the places are that a load reads for neighbours along an axis; None: it depends."""
    at = te.index(layout_of(s, load.tensor).offset(load.tensor.shape, load.index))
    others = [te.Index(((atom, 1),)) for atom, _ in at.terms if atom is not axis]
    return None if any(axis in variables(o) for o in others) else at.coefficient(axis)


def in_order(s: te.Schedule, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Producers first."""
    return [t for t in s.func.stages if t in tensors]
