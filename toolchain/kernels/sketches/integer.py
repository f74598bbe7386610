"""Products of small integers by dot product instructions: register tiles of int32, weights in panels of groups.

    for panel (columns) x row tiles:              one register tile of rows x vectors of int32
        for groups of k:                          four bytes of a row in every lane, four of each column
            tile[row, vector] += dot(x, w)
        store epilogue(tile)

A convolution does the same for each of its taps, over channels in blocks.

Where the instruction multiplies sixteen bytes of a row by those of one column, a vector is four partial sums of that column
(rfactor), and those of four columns become one vector before they are stored:

    for panel x row tiles:
        for sixteens of k:
            sums[row, column, lane] += two pairs of x * w
        tile[row, vector of columns] = start + sum over lanes of sums[row, column, lane]
        store epilogue(tile)
"""

from __future__ import annotations

from collections.abc import Sequence

from toolchain import te
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.kernels.instructions import Dot, accumulates, dot, dot_of, join
from toolchain.kernels.integer_forms import dot_tiles
from toolchain.kernels.sketches.conv import conv_share
from toolchain.kernels.sketches.stages import (
    accumulator,
    fuse_all,
    layout_of,
    operands,
    peel,
    row_registers,
    share_first,
    share_more,
    split,
)
from toolchain.kernels.tiling import Tile, ask_tile, ask_unroll
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

UNROLLED_GROUPS = 4
UNROLLED_TAPS = 3           # of a window's row, in pairs: of more, LLVM spills some


def _instruction(s: te.Schedule, anchor: Tensor, target: Target) -> Dot:
    x, w = operands(s, anchor)
    if (kind := dot_of(x.dtype, w.dtype, target, s.func.stages[anchor].attrs.get("pairs", False))) is None:
        raise ScheduleError(f"{target.name} has no dot product of {x.dtype} and {w.dtype}")
    summed = len(w.shape) - 1 if s.func.stages[anchor].tag == "dot" else 1
    if layout_of(s, w).dims[-1] != (summed, kind.group):
        raise ScheduleError(f"{w.name} is not packed in groups of {kind.group}")
    return kind


def _unrolled(groups: te.Var, tile: Tile, kind: Dot, target: Target, choices: Choices) -> int:
    """Groups in one basic block; one where products are added apart, for LLVM multiplies ahead until it spills."""
    default = UNROLLED_GROUPS if accumulates(kind, target) else 1
    if kind.pairs:                              # not all: what is the same for all tiles would be kept in registers
        default = next((n for n in (4, 3, 2) if groups.extent % n == 0 and groups.extent > n), 1)
    return ask_unroll(choices, groups.extent, default, tile.accumulators)


def integer_matmul(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """(..., M, K) x (K, N) of 8-bit values into int32, by the target's dot products: as `matmul` (sketches/matmul.py), but a
    step takes as many neighbours along K as one instruction multiplies and adds. In both operands they lie side by side.
    """
    kind, lanes = _instruction(s, anchor, target), target.lanes(32)
    w = operands(s, anchor)[1]
    rows, columns = anchor.shape[-2:]
    panel = layout_of(s, w).dims[-2][1]
    tile = ask_tile(choices, dot_tiles(1, rows, columns // lanes, panel // lanes, kind, target))
    sums = _partial_sums(s, anchor, s[anchor].op.reduce_axis[0], kind, lanes) if kind.pairs else None
    acc, out = accumulator(s, anchor)
    *outer, i, j = s[out].op.axis
    if outer and len(anchor.shape) == 2:                       # rows of all batches together
        outer, i = [], fuse_all(s, out, [*outer, i])
    elif outer:
        outer = [fuse_all(s, out, outer)]
    ragged: list[te.Var] = []
    jo, j = s[out].split(j, factor=panel)
    jv, jl = s[out].split(j, factor=lanes)
    io, ii = split(s, out, i, tile.columns, ragged)
    loops = {"columns": jo, "rows": io}
    if outer:
        loops = {"batch": outer[0], **loops}
    widest = max(loops, key=lambda name: min(loops[name].extent, 2 * target.cores))
    shared = loops[choices.one_of("parallel", tuple(loops), widest)]
    order = share_first(shared, ragged, [*outer, jo, io])
    s[out].reorder(*order, ii, jv, jl)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    *an, aj = s[acc].op.axis
    av, al = s[acc].split(aj, factor=lanes)
    s.set_layout(acc, row_registers(len(anchor.shape), lanes))
    if sums is None:
        (k,) = s[acc].op.reduce_axis
        groups, ki = s[acc].split(k, factor=kind.group)
        ko, unrolled = s[acc].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
        summed, lane = acc, al
        _ordered(s, acc, (ko,), (unrolled, *an, av), (al, ki))
    else:
        s[sums].compute_at(s[out], order[-1])
        _joined(s, acc, (*an, av), al, lanes)
        *at, lane = s[sums].op.axis
        groups, *terms = s[sums].op.reduce_axis
        ko, unrolled = s[sums].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
        summed = sums
        _ordered(s, sums, (ko,), (unrolled, *at), (lane, *terms))
    for axis in (ii, jv):
        s[out].unroll(axis)
    if choices.one_of("prefetch", (False, True), False):              # bytes stream fast enough: a search may find otherwise
        for lines in s[summed].prefetch(w, ko, ko.extent, level=2):   # the same place in the next panel
            s[summed].unroll(lines)
    _by_instruction(s, summed, lane, dot(kind, lanes))
    _finish(s, out, jl, shared, ragged)


def _partial_sums(s: te.Schedule, anchor: Tensor, axis: te.Var, kind: Dot, lanes: int) -> Tensor:
    """A tensor of `lanes` partial sums of each point, in registers, as the paired instruction adds them up along `axis`; the
    anchor adds these. Its reduction begins with the groups of the axis."""
    _, inside = s[anchor].split(axis, factor=kind.group)
    _, half = s[anchor].split(inside, factor=kind.group // 2)
    lane, _ = s[anchor].split(half, factor=kind.group // 2 // lanes)
    sums = s.rfactor(anchor, lane, position=-1)
    s[sums].set_scope("local")
    return sums


def _ordered(
    s: te.Schedule, stage: Tensor, loops: Sequence[te.Var], unrolled: Sequence[te.Var], inside: Sequence[te.Var],
) -> None:
    """The loops of a stage, those of an instruction innermost."""
    s[stage].reorder(*loops, *unrolled, *inside)
    for axis in unrolled:
        s[stage].unroll(axis)


def _by_instruction(s: te.Schedule, stage: Tensor, lane: te.Var, instruction: te.Intrin) -> None:
    """The instruction in place of the loop over a vector's lanes and those inside."""
    s[stage].vectorize(lane)                    # stays on the nest that starts the sums
    s[stage].tensorize(lane, instruction)


def _joined(s: te.Schedule, stage: Tensor, unrolled: Sequence[te.Var], lane: te.Var, lanes: int) -> None:
    """Columns from their partial sums, a vector of them at a time."""
    _ordered(s, stage, (), unrolled, (lane, *s[stage].op.reduce_axis))
    _by_instruction(s, stage, lane, join(lanes))


def _finish(s: te.Schedule, out: Tensor, lane: te.Var, shared: te.Var, ragged: list[te.Var]) -> None:
    """Lanes, cores, and tails of what is stored."""
    s[out].vectorize(lane)
    s[out].parallel(shared)
    peel(s, out, ragged)


def integer_conv(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """From channels in blocks to channels in blocks of a vector."""
    kind, lanes = _instruction(s, anchor, target), target.lanes(32)
    x, w = operands(s, anchor)
    panel = next(block for d, block in reversed(layout_of(s, w).dims) if d == 0)
    block, height = layout_of(s, x).block(1), anchor.shape[2] if len(anchor.shape) == 4 else 1
    tiles = dot_tiles(height, anchor.shape[-1], -(-anchor.shape[1] // lanes), panel // lanes, kind, target)
    tile = ask_tile(choices, tiles)
    sums = _partial_sums(s, anchor, s[anchor].op.reduce_axis[0], kind, lanes) if kind.pairs else None
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    ragged: list[te.Var] = []
    g, o = s[out].split(o, factor=panel)
    ov, ol = s[out].split(o, factor=lanes)
    *rows, column = spatial
    outer, inner = list(rows), []
    if tile.rows > 1 and rows:
        outer[-1], yi = split(s, out, rows[-1], tile.rows, ragged)
        inner.append(yi)
    xo, xi = split(s, out, column, tile.columns, ragged)
    outer, inner = [*outer, xo], [*inner, xi]
    shared = conv_share(n, g, outer, x, w, target, choices)
    order = share_first(shared, ragged, [n, g, *outer])
    s[out].reorder(*order, *inner, ov, ol)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    _, ao, *at = s[acc].op.axis
    av, al = s[acc].split(ao, factor=lanes)
    rank = len(anchor.shape)
    s.set_layout(acc, Layout(default_axes(rank), (*((d, 0) for d in (0, *range(2, rank), 1)), (1, lanes)), ((0, 0),) * rank))
    if sums is None:
        ic, *taps = s[acc].op.reduce_axis
        blocks, channel = s[acc].split(ic, factor=block)
        groups, ki = s[acc].split(channel, factor=kind.group)
        rolled, unrolled = s[acc].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
        _ordered(s, acc, (blocks, *taps, rolled), (unrolled, *at, av), (al, ki))
        _by_instruction(s, acc, al, dot(kind, lanes))
    else:
        s[sums].compute_at(s[out], order[-1])
        s.set_layout(sums, Layout(default_axes(rank + 1), tuple((d, 0) for d in (0, *range(2, rank), 1, rank)),
                                  ((0, 0),) * (rank + 1)))
        _joined(s, acc, (*at, av), al, lanes)
        _, column, *at, lane = s[sums].op.axis
        groups, half, pair, *taps = s[sums].op.reduce_axis
        unrolled = [taps.pop()] if 1 < taps[-1].extent <= UNROLLED_TAPS else []
        if not unrolled:
            groups, inner_groups = s[sums].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
            unrolled = [inner_groups]
        _ordered(s, sums, (groups, *taps), (*unrolled, *at, column), (lane, half, pair))
        _by_instruction(s, sums, lane, dot(kind, lanes))
    for axis in (*inner, ov):
        s[out].unroll(axis)
    _finish(s, out, ol, shared, ragged)
