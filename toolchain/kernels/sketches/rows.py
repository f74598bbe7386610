"""Reductions and what goes with them: Softmax, LayerNormalization, ReduceMean, ArgMax, all that has no better sketch.

Where the reduction runs along what is contiguous, all stages of a row stand in one loop over rows, and a reduction keeps
several vectors of partial results:

    for row in parallel:                      row: the dimensions that nothing reduces
        top.rf[l] = max_o x[row, o*L + l]     L: a few vectors
        top = max_l top.rf[l]
        e[j] = exp(x[row, j] - top)
        ...

Where another dimension is contiguous, a block of its columns is reduced at a time, in registers:

    for block of columns in parallel:
        for r: total[l] += x[r, block*L + l]
        y[block*L + l] = total[l] / n

Long sums are taken in blocks: sums of some hundred elements in registers, then the sum of those. Their rounding error grows
with the square root of a row's length instead of the length.

A few long rows give the cores nothing to share: there every stage is a nest of its own, and a reduction is done in parts
whose number depends on the shape alone (so results do not depend on the number of threads).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.kernels.sketches.asks import Asks
from toolchain.kernels.sketches.partials import (
    STACK_BYTES,
    Partials,
    fused_reduction,
    in_order,
    is_long,
    join_lanes,
    lane_partials,
    reduced_as_stored,
    steps_along,
    vectorize_partial,
    with_partials,
)
from toolchain.kernels.sketches.pointwise import PARALLEL_ELEMENTS, pointwise_nest
from toolchain.kernels.sketches.stages import SCAN, definitions, fuse_all, is_reduction, layout_of, readers
from toolchain.kernels.tiling import largest_divisor
from toolchain.te.expr import Load, distinct, variables
from toolchain.te.tensor import Compute, Tensor
from toolchain.te.tune.choices import Choices

WINDOW_BYTES = 12 * 1024     # of rows that windows are read from: a good part of a first-level cache
PARTS = 16                   # of a reduction that is all there is to share
FEW_ROWS = 4
ROWS = 8                     # short ones at a time: enough to hide what each of them waits for
FEW = 4                      # columns that make a vector of their own: the alternative to gathering each column's elements


def rows(s: te.Schedule, target: Target, choices: Choices) -> None:
    """Every stage at the row (or column block) loop of the last one; for a few long rows, in a nest of its own."""
    root, asks = _root(s), Asks(choices)
    if root is None or _few_long_rows(s) or not common_axes(s, root):
        for stage in definitions(s):
            _alone(s, stage, target, asks)
        return
    outputs = [t for t in s.func.stages if t in s.func.params and t is not root]
    for stage in outputs:
        pointwise_nest(s, stage, target, asks)
    _nest(s, root, [t for t in definitions(s) if t is not root and t not in outputs], target, asks)


def _root(s: te.Schedule) -> Tensor | None:
    """The stage that all outputs are made of, themselves left out: the output, if there is one."""
    outputs = [t for t in s.func.stages if t in s.func.params]
    if len(outputs) == 1:
        return outputs[0] if len(s.func.computed_with(outputs[0])) == 1 else None
    read = {t for o in outputs for t in s.func.stages[o].input_tensors if t in s.func.stages}
    waist = next(iter(read)) if len(read) == 1 else None
    if waist is None or waist in outputs or len(s.func.computed_with(waist)) > 1:
        return None
    return None if any(is_reduction(s.func.stages[o]) for o in outputs) else waist


def _nest(s: te.Schedule, root: Tensor, members: list[Tensor], target: Target, asks: Asks) -> None:
    """One nest around `root` that computes `members`, what only it needs, on the way."""
    common = common_axes(s, root)
    if is_reduction(s.func.stages[root]):
        places = [s[root].op.axis.index(a) for a in common]
        members = [*members, s.cache_write(root, "local")]
        common = [s[root].op.axis[d] for d in places]
    if _has_columns(s, root, members, common, target):
        _columns(s, root, members, common, target, asks)
    else:
        _rows(s, root, members, common, target, asks)


def _rows(
    s: te.Schedule, root: Tensor, members: list[Tensor], common: Sequence[te.Var], target: Target, asks: Asks,
) -> None:
    """One loop over all common dimensions; vectors within a row."""
    windows = _has_windows(s, members)
    rest = [a for a in s[root].op.axis if a not in common]
    if windows:
        common, rest = _fewer_rows(s, root, members, common, target)
    if not common:
        common, rest = rest[:1], rest[1:]
    across = _reduced_across(s, root, members, common, target)
    direct = [m for m in members if m in across and rest and _is_read_in_place(s, root, m, rest[-1])]
    within: dict[Tensor, Tensor | Partials] = {}            # stages that others compute on the way
    terms = {} if direct else reduced_as_stored(s, members)
    for m in members:
        if m in direct:
            continue
        if m in across and m.shape[-1] > target.lanes(dtypes.bits(m.dtype)):
            within[m] = s.cache_write(m, "local")
        elif m not in across and (partial := lane_partials(s, m, target, asks, terms.get(m))) is not None:
            within[m] = partial
    if any(isinstance(w, Partials) for w in within.values()):
        common, rest = _several_rows(s, root, members, common, rest, target)
    s[root].reorder(*common, *rest)
    loop = fuse_all(s, root, common)
    one_row = all(a.extent == 1 for a in rest[:-1])
    on_the_way = {terms[m]: w for m, w in within.items() if one_row and m in terms and isinstance(w, Partials)}
    if direct:
        rest = [*rest[:-1], *_split_block(s, root, rest[-1], target, asks)]
    for stage in reversed(direct):
        _gather_at(s, root, [stage], rest[-2])
        _vectorize(s, stage, s[stage].op.axis, target, asks, whole=True)
    for stage in reversed([m for m in in_order(s, members) if m not in direct]):
        _gather_at(s, root, [stage], loop)
        if stage in on_the_way:
            with_partials(s, stage, on_the_way[stage])
        elif stage not in within:
            _vectorize(s, stage, s[stage].op.axis, target, asks)
        elif isinstance(inside := within[stage], Partials):
            if inside in on_the_way.values():
                _gather_at(s, root, [inside.lanes], loop)
            else:
                s[inside.lanes].compute_at(s[stage], s[stage].op.axis[-1])
            _near(s, inside.lanes)
            vectorize_partial(s, inside, whole=inside not in on_the_way.values())
            join_lanes(s, stage, s[stage].op.reduce_axis[0], inside.width)
        else:
            _in_blocks(s, inside, stage, target, asks)
    worth_sharing = _is_worth_sharing(
        s, [root, *members, *(w.lanes if isinstance(w, Partials) else w for w in within.values())])
    _store_in_place(s, root, members)
    _vectorize(s, root, rest[-1:] if direct else rest, target, asks, whole=bool(direct))
    if direct:
        s[root].partition(rest[-2])
    if windows:
        for stage, rows in ((root, rest[:-1 - bool(direct)]), *((m, s[m].op.axis[:-1]) for m in within if m in across)):
            for row in (r for r in rows if r.extent > 1):
                s[stage].partition(row)                     # the places whose windows meet no border
    if worth_sharing:
        s[root].parallel(loop)


def _has_windows(s: te.Schedule, members: Sequence[Tensor]) -> bool:
    """Whether windows of a stage are read: what was stored just now, at other places than vectors begin."""
    nodes = (n for t in s.func.stages for n in distinct(s.func.stages[t].body))
    loads = (n for n in nodes if isinstance(n, Load) and n.tensor in members)
    return any(len(te.index(i).terms) > 1 for load in loads for i in load.index)


def _fewer_rows(
    s: te.Schedule, root: Tensor, members: Sequence[Tensor], common: Sequence[te.Var], target: Target,
) -> tuple[list[te.Var], list[te.Var]]:
    """(common loops, loops inside): several rows at a time, as many of the common dimensions, the innermost first, as the
    nearest memory has room for. What was stored just now, and is read at another place, waits until it is in memory."""
    kept, rest = list(common), [a for a in s[root].op.axis if a not in common]
    row = sum(dtypes.itemsize(t.dtype) for t in members) * math.prod(a.extent for a in rest)
    while len(kept) > 1 and math.prod(a.extent for a in kept[:-1]) >= 4 * target.cores:
        fitting = largest_divisor(kept[-1].extent, max(1, WINDOW_BYTES // row))
        if fitting < kept[-1].extent:
            if fitting > 1:
                kept[-1], inner = s[root].split(kept[-1], factor=fitting)
                rest.insert(0, inner)
            break
        row *= kept[-1].extent
        rest.insert(0, kept.pop())
    return kept, rest


def _several_rows(
    s: te.Schedule, root: Tensor, members: Sequence[Tensor], common: Sequence[te.Var], rest: list[te.Var], target: Target,
) -> tuple[list[te.Var], list[te.Var]]:
    """(common loops, loops inside): a few short rows at a time. What a row is divided by waits for its sum, lanes joined and
    all; meanwhile the sums of the others are taken."""
    wide = [t for t in (root, *members) if math.prod(t.shape) == math.prod(root.shape)]
    row = sum(dtypes.itemsize(t.dtype) for t in wide) * math.prod(a.extent for a in rest)
    several = largest_divisor(common[-1].extent, max(1, min(ROWS, WINDOW_BYTES // row)))
    if not rest or several == 1 or math.prod(a.extent for a in common) < 4 * target.cores * several:
        return list(common), rest
    outer, inner = s[root].split(common[-1], factor=several)
    return [*common[:-1], outer], [inner, *rest]


def _is_read_in_place(s: te.Schedule, root: Tensor, stage: Tensor, last: te.Var) -> bool:
    """Whether only the root reads a stage, along the same last axis: then its results can stay in registers."""
    loads = [n for n in distinct(s.func.stages[root].body) if isinstance(n, Load) and n.tensor is stage]
    return readers(s, stage) == [root] and all(te.index(load.index[-1]) == te.index(last) for load in loads)


def _split_block(s: te.Schedule, stage: Tensor, last: te.Var, target: Target, asks: Asks) -> tuple[te.Var, te.Var]:
    """An axis as (blocks, a few vectors); one block where all of it is a few vectors, the last of them perhaps not full."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    whole = -(-last.extent // lanes)
    block, inner = s[stage].split(last, factor=lanes * min(whole, asks.vectors()))
    return block, inner


def _in_blocks(s: te.Schedule, accumulators: Tensor, stage: Tensor, target: Target, asks: Asks) -> None:
    """A row of results, a few vectors at a time, in registers."""
    block, inner = _split_block(s, stage, s[stage].op.axis[-1], target, asks)
    s[accumulators].compute_at(s[stage], block)
    s[accumulators].set_scope("local")
    _vectorize(s, accumulators, s[accumulators].op.axis, target, asks, whole=True)
    _vectorize(s, stage, (inner,), target, asks, whole=True)
    s[stage].partition(block)


def _reduced_across(
    s: te.Schedule, root: Tensor, members: Sequence[Tensor], common: Sequence[te.Var], target: Target,
) -> set[Tensor]:
    """The reductions whose results make a wide row: lanes cross that row instead of the reduction, if none has to gather."""
    known = {t: s.func.stages[t] for t in (*in_order(s, members), root)}
    fixed = {root: {d for d, a in enumerate(known[root].axis) if a in common}}      # dimensions with one value per row
    found: set[Tensor] = set()
    for tensor in reversed(list(known)):
        definition = known[tensor]
        own = {definition.axis[d] for d in fixed.setdefault(tensor, set())}
        loads = [n for n in distinct(definition.body) if isinstance(n, Load)]
        for load in loads:
            if load.tensor in s.func.stages and (read := s.func.computed_with(load.tensor)[0]) in known:
                same = {d for d, i in enumerate(load.index) if variables(i) <= own}
                fixed[read] = fixed.get(read, same) & same
        last = len(definition.axis) - 1
        wide = is_reduction(definition) and len(definition.values) == 1 and last not in fixed[tensor] and (
            definition.axis[last].extent >= target.lanes(dtypes.bits(tensor.dtype)))
        if wide and all(steps_along(s, load, definition.axis[last]) in range(5) for load in loads):
            found.add(tensor)
    return found


def _columns(
    s: te.Schedule, root: Tensor, members: list[Tensor], common: Sequence[te.Var], target: Target, asks: Asks,
) -> None:
    """A block of columns at a time, a few vectors wide."""
    lanes = target.lanes(max(dtypes.bits(t.dtype) for t in (root, *members)))
    last = common[-1]
    most = 1 if last.extent < 2 * lanes else min(asks.vectors(), last.extent // lanes)
    width = lanes * next((v for v in range(most, 0, -1) if last.extent % (v * lanes) == 0), most)
    outer = list(common[:-1])
    rest = [a for a in s[root].op.axis if a not in common]
    block, inner = s[root].split(last, factor=width)
    ragged = bool(last.extent % width)
    first = ragged and math.prod(a.extent for a in outer) < 2 * FEW_ROWS
    order = [block, *outer] if first else [*outer, block]
    s[root].reorder(*order, *rest, inner)
    inside = in_order(s, members)
    _gather_at(s, root, inside, order[-1])
    for stage in inside:
        _vectorize(s, stage, s[stage].op.axis, target, asks, whole=is_reduction(s.func.stages[stage]))
    _vectorize(s, root, [*rest, inner], target, asks)
    shared = order[0] if ragged else fuse_all(s, root, order)
    if _is_worth_sharing(s, [root, *inside]):
        s[root].parallel(shared)                             # before its tail is peeled: that may be this very loop
    if ragged:
        s[root].partition(block)


def _store_in_place(s: te.Schedule, root: Tensor, members: Sequence[Tensor]) -> None:
    """Stages of a long row lie in the output, in place of scratch that would take as much of the nearest caches again."""
    kept = {root}
    for stage in reversed(in_order(s, members)):
        definition, users = s.func.stages[stage], readers(s, stage)
        one_type = root in s.func.params and stage.dtype == root.dtype and stage.shape == root.shape
        if is_reduction(definition) or not one_type or not is_long(stage):
            continue
        last = [t for t in users if not is_reduction(s.func.stages[t])]
        reads = [n.index for t in last for n in distinct(s.func.stages[t].body) if isinstance(n, Load) and n.tensor is stage]
        if len(last) == 1 and last[0] in kept and all(_is_at(i, s.func.stages[last[0]].axis) for i in reads):
            kept.add(stage)
    for stage in [t for t in reversed(list(s.func.stages)) if t in kept and t is not root]:
        s[stage].reuse_buffer(root)


def _is_at(place: Sequence[te.Expr], axes: Sequence[te.Var]) -> bool:
    return all(te.index(i) == te.index(a) for i, a in zip(place, axes, strict=True))


def _gather_at(s: te.Schedule, root: Tensor, members: Sequence[Tensor], loop: te.Var) -> None:
    """Those stages inside that loop of the root."""
    for stage in reversed(members):
        s[stage].compute_at(s[root], loop)
        _near(s, stage)


def _near(s: te.Schedule, stage: Tensor) -> None:
    """On the stack, or in the lane's scratch when it is large."""
    for t in s.func.computed_with(stage):
        size = math.prod(s.func.buffers[t].type.shape) * dtypes.itemsize(t.dtype)
        s[t].set_scope("local" if size <= STACK_BYTES else "lane")


def _is_worth_sharing(s: te.Schedule, stages: Sequence[Tensor]) -> bool:
    work = sum(math.prod(t.shape) * math.prod(r.extent for r in s.func.stages[t].reduce_axis) for t in stages)
    return work >= PARALLEL_ELEMENTS


def common_axes(s: te.Schedule, root: Tensor) -> list[te.Var]:
    """The axes of a stage that all it is made of have, too, as an index of their own: a row is one value of them."""
    axes = s.func.stages[root].axis
    return [a for d, a in enumerate(axes) if a.extent > 1 and _is_shared(s, root, d, {})]


def _is_shared(s: te.Schedule, tensor: Tensor, dim: int, seen: dict[Tensor, int]) -> bool:
    """Whether every stage below reads what it needs at the same place of that dimension."""
    if seen.setdefault(tensor, dim) != dim:
        return False
    definition = s.func.stages[tensor]
    own = te.index(definition.axis[dim])
    for load in (n for n in distinct(definition.body) if isinstance(n, Load) and n.tensor in s.func.stages):
        place = next((d for d, i in enumerate(load.index) if te.index(i) == own), None)
        if place is None or (seen.get(load.tensor) != place and not _is_shared(s, load.tensor, place, seen)):
            return False
    return True


def contiguous_axis(s: te.Schedule, definition: Compute) -> te.Var | None:
    """The axis along which the largest tensor that a definition reads is contiguous."""
    loads = [n for n in distinct(definition.body) if isinstance(n, Load) and n.tensor in s.func.buffers]
    for load in sorted(loads, key=lambda n: -math.prod(n.tensor.shape)):
        at = te.index(layout_of(s, load.tensor).offset(load.tensor.shape, load.index))
        for atom, c in at.terms:
            if isinstance(atom, te.Var) and c == 1 and sum(atom in variables(te.Index(((a, 1),))) for a, _ in at.terms) == 1:
                return atom
    return None


def _has_columns(
    s: te.Schedule, root: Tensor, members: Sequence[Tensor], common: Sequence[te.Var], target: Target,
) -> bool:
    """Whether the root's last axis is wide, and the axis along which what is reduced is contiguous."""
    axes = [a for a in s[root].op.axis if a.extent > 1]
    lanes = target.lanes(dtypes.bits(root.dtype))
    if not axes or axes[-1] not in common or axes[-1].extent < lanes:
        return False
    for definition in (s.func.stages[m] for m in members):
        if is_reduction(definition):
            along = contiguous_axis(s, definition)
            if along in definition.reduce_axis and along.extent >= lanes:
                return False
    return True


def _few_long_rows(s: te.Schedule) -> bool:
    """Whether the rows are so few, and so long, that each is worth sharing."""
    found = [(math.prod(t.shape), math.prod(r.extent for r in d.reduce_axis)) for t, d in s.func.stages.items()
             if is_reduction(d)]
    return bool(found) and all(n < FEW_ROWS for n, _ in found) and max(r for _, r in found) >= 2 * PARALLEL_ELEMENTS


def _alone(s: te.Schedule, stage: Tensor, target: Target, asks: Asks) -> None:
    """A nest of its own: elementwise, or a reduction, in parts when it is long and there is little else to share."""
    definition = s.func.stages[stage]
    length = math.prod(r.extent for r in definition.reduce_axis)
    if not is_reduction(definition):
        pointwise_nest(s, stage, target, asks)
    elif not stage.shape:
        raise ScheduleError("a reduction to a scalar without a loop", where=stage.name)
    elif len(definition.values) > 1:
        _in_lanes(s, stage, target, asks)
    elif math.prod(stage.shape) < FEW_ROWS and length >= 2 * PARALLEL_ELEMENTS:
        fused = fused_reduction(s, stage)
        block = asks.vectors() * target.lanes(dtypes.bits(stage.dtype))
        outer, _ = s[stage].split(fused, factor=-(-length // (PARTS * block)) * block)
        _nest(s, s.rfactor(stage, outer), [], target, asks)
    else:
        _nest(s, stage, [], target, asks)


def _in_lanes(s: te.Schedule, stage: Tensor, target: Target, asks: Asks) -> None:
    """Several values reduced together, in a nest of their own: along what is contiguous in lanes."""
    along = contiguous_axis(s, s.func.stages[stage])
    partial = lane_partials(s, stage, target, asks) if along in s.func.stages[stage].reduce_axis else None
    if partial is None:
        pointwise_nest(s, stage, target, asks)
        return
    loop = fuse_all(s, stage, s[stage].op.axis)
    s[partial.lanes].compute_at(s[stage], loop)
    _near(s, partial.lanes)
    vectorize_partial(s, partial)
    join_lanes(s, stage, s[stage].op.reduce_axis[0], partial.width)
    if _is_worth_sharing(s, [partial.lanes]):
        s[stage].parallel(loop)


def _vectorize(
    s: te.Schedule, stage: Tensor, axes: Sequence[te.Var], target: Target, asks: Asks, whole: bool = False,
) -> None:
    """Vectors along the innermost wide dimension, reductions outside them. whole: all of that dimension in registers."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    wide = [a for a in axes if a.extent >= lanes]
    reduce = s[stage].op.reduce_axis
    if not wide:
        wide = [a for a in [a for a in axes if a.extent > 1 or reduce][-1:] if a.extent >= FEW]
    if not wide:
        return
    last, outer = wide[-1], None
    inner = last
    if last.extent > lanes:
        several = 1 if whole or reduce or s.func.stages[stage].tag == SCAN else asks.unroll(last.extent, lanes)
        outer, inner = s[stage].split(last, factor=several * lanes)
        if several > 1:
            beside, inner = s[stage].split(inner, factor=lanes)
            s[stage].unroll(beside)
    if whole:
        s[stage].reorder(*reduce, *([outer] if outer else []), inner)
        if outer:
            s[stage].unroll(outer)
        if reduce and reduce[-1].extent * (outer.extent if outer else 1) <= target.vector_registers // 2:
            s[stage].unroll(reduce[-1])
    elif reduce:
        s[stage].reorder(*reduce, inner)
    s[stage].vectorize(inner)
    if s.func.stages[stage].tag == SCAN:
        for axis in s[stage].op.axis:
            s[stage].partition(outer if axis is last and outer is not None else axis)
    elif outer is not None and last.extent % lanes:
        s[stage].partition(outer)
