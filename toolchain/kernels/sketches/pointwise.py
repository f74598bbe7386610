"""Kernels without a reduction: elementwise chains, broadcasts, moves. Memory speed is all there is to gain.

Where an operand is contiguous along another axis than the result, a square tile goes through registers: read in vectors
along the one axis, written in vectors along the other, and turned by shuffles in between (the emitter makes them of the
strided reads of a register tile).

    for c block, x block:   for c in unrolled(16): tile[c, x (vector)] = in[...]
                            for x in unrolled(16): out[x, c (vector)] = tile[c, x]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.kernels.sketches.asks import Asks
from toolchain.kernels.sketches.stages import chooses, constants, definitions, is_reduction, layout_of
from toolchain.kernels.tiling import FREE_REGISTERS
from toolchain.te.expr import Dynamic, Index, Load, distinct
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

PARALLEL_ELEMENTS = 16 * 1024        # below this, waking another core costs more than it brings
LARGEST_TILE = 16                    # vectors of a tile that is turned: half of the registers there are
SMALLEST_TILE = 4
FEW_VECTORS = 4                      # of a row, that may stand in one basic block


def pointwise(s: te.Schedule, target: Target, choices: Choices) -> None:
    asks = Asks(choices)
    for stage in definitions(s):
        pointwise_nest(s, stage, target, asks)


def pointwise_nest(s: te.Schedule, stage: Tensor, target: Target, asks: Asks) -> None:
    """Vectors along what is contiguous in the result, cores along the rest."""
    if not stage.shape:
        return
    blocked = len(stage.shape) >= 3 and layout_of(s, stage).block(1) > 1 and stage.shape[1] > 1
    if turned := _turned_operands(s, stage, target, asks):
        _turning_nest(s, stage, *turned, target)
    elif blocked:
        _blocked_nest(s, stage, asks)
    else:
        _plain_nest(s, stage, target, asks)


def _turned_operands(
    s: te.Schedule, stage: Tensor, target: Target, asks: Asks,
) -> tuple[list[Tensor], te.Var, te.Var, int] | None:
    """(operands that are contiguous along another axis than the result, that axis, the result's, size of a tile); None when
    there are none, or they do not agree, or the axes are short."""
    definition = s.func.stages[stage]
    if is_reduction(definition):
        return None
    inner, block = layout_of(s, stage).dims[-1]
    across = definition.axis[inner]
    found: dict[Tensor, te.Var] = {}
    size = min(LARGEST_TILE, target.lanes(dtypes.bits(stage.dtype)), block or LARGEST_TILE)
    for load in (n for n in distinct(definition.body) if isinstance(n, Load)):
        if load.tensor in s.func.stages or not load.index:
            continue
        last, source_block = layout_of(s, load.tensor).dims[-1]
        along = _variable(load.index[last])
        if along is None or along is across or all(_variable(i) is not across for i in load.index):
            continue
        if found.setdefault(load.tensor, along) is not along or (source_block and layout_of(s, load.tensor).has_halo):
            return None
        size = min(size, target.lanes(dtypes.bits(load.dtype)), source_block or LARGEST_TILE)
    if not found or len(set(found.values())) > 1 or len(found) > 2:
        return None
    along = next(iter(found.values()))
    shortest = min(along.extent, across.extent)
    sizes = [n for n in (16, 8, 4) if SMALLEST_TILE <= n <= min(size, shortest)]
    if not sizes or (block and block % sizes[0]):
        return None
    return list(found), along, across, asks.square(sizes[:1] if block else sizes)


def _variable(i: te.Expr) -> te.Var | None:
    """The axis that an index is, up to an offset."""
    match te.index(i):
        case Index(((te.Var() as v, 1),), _):
            return v
    return None


def _turning_nest(
    s: te.Schedule, stage: Tensor, operands: Sequence[Tensor], along: te.Var, across: te.Var, size: int, target: Target,
) -> None:
    """Square tiles of operands in registers, read along one axis and stored along the other."""
    at = [s[stage].op.axis.index(axis) for axis in (along, across)]
    values = None
    if _wants_registers(s, stage, operands, across):
        values = s.cache_write(stage, "lane")
        along, across = (s[stage].op.axis[n] for n in at)
        operands = [values]
    others = [a for a in s[stage].op.axis if a not in (along, across)]
    along_outer, row = s[stage].split(along, factor=size)
    across_outer, lane = s[stage].split(across, factor=size)
    outer = sorted((*others, along_outer, across_outer), key=lambda loop: loop.extent == 1)     # the shared one outermost
    s[stage].reorder(*outer, row, lane)
    for operand in operands:
        inner = at[0] if operand is values else layout_of(s, operand).dims[-1][0]
        tile = s.cache_read(operand, "local", stage)
        s[tile].compute_at(s[stage], outer[-1])
        rows = _rows_along(s, tile, inner)
        for axis in rows:
            s[tile].unroll(axis)
        s[tile].vectorize(s[tile].op.axis[inner])
    s[stage].unroll(row)
    s[stage].vectorize(lane)
    ragged = [loop for loop, axis in ((across_outer, across), (along_outer, along)) if axis.extent % size]
    together = outer
    if values is not None:
        together = _compute_ahead(s, values, stage, at[0], outer, size, target)
    _share(s, stage, together[:1] if ragged else together, ())
    for loop in sorted(ragged, key=outer.index, reverse=True):
        s[stage].partition(loop)


def _wants_registers(s: te.Schedule, stage: Tensor, operands: Sequence[Tensor], across: te.Var) -> bool:
    """Whether what is computed of a tile has more constants than registers are left beside one (LLVM computes several points
    at once, so small tiles leave no more), and can be computed before: nothing else is read along the result's axis."""
    definition = s.func.stages[stage]
    other = (n for n in distinct(definition.body) if isinstance(n, Load) and n.tensor not in operands and n.index)
    if any(_variable(load.index[layout_of(s, load.tensor).dims[-1][0]]) is across for load in other):
        return False
    return constants(definition) > FREE_REGISTERS


def _compute_ahead(
    s: te.Schedule, values: Tensor, stage: Tensor, along: int, outer: list[te.Var], size: int, target: Target,
) -> list[te.Var]:
    """Compute what is turned before, in vectors along the operands' axis, for a row of tiles that stays in L1: neither loop
    then holds the other's registers. Returns the loops of `outer` around it.

        for x in range(80):         values[c (vector), x] = in[...]*sigmoid(in[...])
        for x block in range(5):    turn values[...] by way of registers into out[...]
    """
    wide = [loop for loop in outer if loop.extent > 1]
    bytes_ahead = size * size * wide[-1].extent * dtypes.itemsize(values.dtype) if wide else 0
    place = wide[-2] if len(wide) > 1 and bytes_ahead <= target.l1d_bytes // 2 else outer[-1]
    s[values].compute_at(s[stage], place)
    rows = _rows_along(s, values, along)
    blocks, lane = s[values].split(s[values].op.axis[along], factor=size)
    s[values].reorder(blocks, *rows, lane)
    s[values].vectorize(lane)
    return outer[:outer.index(place) + 1]


def _rows_along(s: te.Schedule, stage: Tensor, inner: int) -> list[te.Var]:
    """Lay a stage out with one dimension innermost, in memory and in its loops. Returns the loops around that one."""
    rank, axes = len(stage.shape), s[stage].op.axis
    s.set_layout(stage, Layout(default_axes(rank), (*((d, 0) for d in range(rank) if d != inner), (inner, 0)),
                               ((0, 0),) * rank))
    rows = [a for d, a in enumerate(axes) if d != inner]
    s[stage].reorder(*rows, axes[inner])
    return rows


def _blocked_nest(s: te.Schedule, stage: Tensor, asks: Asks) -> None:
    """NCHW<l>c: one vector of channels at a time, or those of a few neighbours."""
    lanes = layout_of(s, stage).block(1)
    axes, reduce = s[stage].op.axis, s[stage].op.reduce_axis
    g, inner = s[stage].split(axes[1], factor=lanes)
    outer = [axes[0], g, *axes[2:]]
    s[stage].reorder(*outer, *reduce, inner)
    s[stage].vectorize(inner)
    if s.func.stages[stage].tag == "concat" and s.func.stages[stage].attrs["axis"] == 1:
        _share(s, stage, [axes[0], *axes[2:]], reduce)
        s[stage].partition(g)                                # one loop per concatenated piece
        return
    if not reduce and (several := asks.unroll(outer[-1].extent, 1)) > 1:
        outer[-1], beside = s[stage].split(outer[-1], factor=several)
        s[stage].unroll(beside)
    _share(s, stage, outer, reduce)


def _plain_nest(s: te.Schedule, stage: Tensor, target: Target, asks: Asks) -> None:
    """Row-major: vectors along the innermost dimension when it is wide enough, perhaps a few of them at a time."""
    lanes = target.lanes(dtypes.bits(stage.dtype))
    axes, reduce = list(s[stage].op.axis), s[stage].op.reduce_axis
    outer, last = axes[:-1], axes[-1]
    if last.extent < lanes:
        _share(s, stage, outer, reduce)
        return
    several = asks.unroll(last.extent, lanes) if not reduce else 1
    io, ii = s[stage].split(last, factor=several * lanes)
    if several > 1:
        beside, ii = s[stage].split(ii, factor=lanes)
        s[stage].unroll(beside)
    ragged = bool(last.extent % lanes)
    if ragged and math.prod(a.extent for a in outer) < 8:
        s[stage].reorder(io, *outer, *reduce, ii)            # outermost, so that its tail becomes a phase of its own
        outer = []
    else:
        s[stage].reorder(*outer, io, *reduce, ii)
    s[stage].vectorize(ii)
    if outer and not ragged and 1 < io.extent <= FEW_VECTORS and _reads_where_told(s, stage):
        s[stage].unroll(io)                                  # the place is found once for all of them
    cut = ragged or (bool(outer) and chooses(s, stage, last))
    _share(s, stage, [io, *outer] if ragged and not outer else outer if cut else [*outer, io], reduce)
    if cut:
        s[stage].partition(io)


def _reads_where_told(s: te.Schedule, stage: Tensor) -> bool:
    """Whether it reads at places that are computed at run time."""
    return any(isinstance(n, Dynamic) for n in distinct(s.func.stages[stage].body))


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
