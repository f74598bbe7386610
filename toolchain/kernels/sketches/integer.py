"""Products of small integers by dot product instructions: register tiles of int32, weights in panels of groups.

    for panel (columns) x row tiles:              one register tile of rows x vectors of int32
        for groups of k:                          four bytes of a row in every lane, four of each column
            tile[row, vector] += dot(x, w)
        store epilogue(tile)

A convolution does the same for each of its taps, over channels in blocks.
"""

from __future__ import annotations

from toolchain import te
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.kernels.instructions import Dot, accumulates, dot, dot_of
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


def _instruction(s: te.Schedule, anchor: Tensor, target: Target) -> Dot:
    x, w = operands(s, anchor)
    if (kind := dot_of(x.dtype, w.dtype, target)) is None:
        raise ScheduleError(f"{target.name} has no dot product of {x.dtype} and {w.dtype}")
    summed = len(w.shape) - 1 if s.func.stages[anchor].tag == "dot" else 1
    if layout_of(s, w).dims[-1] != (summed, kind.group):
        raise ScheduleError(f"{w.name} is not packed in groups of {kind.group}")
    return kind


def _unrolled(groups: te.Var, tile: Tile, kind: Dot, target: Target, choices: Choices) -> int:
    """Groups in one basic block; one where products are added apart, for LLVM multiplies ahead until it spills."""
    default = UNROLLED_GROUPS if accumulates(kind, target) else 1
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
    (k,) = s[acc].op.reduce_axis
    av, al = s[acc].split(aj, factor=lanes)
    groups, ki = s[acc].split(k, factor=kind.group)
    ko, unrolled = s[acc].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
    s[acc].reorder(ko, unrolled, *an, av, al, ki)
    s.set_layout(acc, row_registers(len(anchor.shape), lanes))
    for axis in (unrolled, *an, av):
        s[acc].unroll(axis)
    for axis in (ii, jv):
        s[out].unroll(axis)
    if choices.one_of("prefetch", (False, True), False):              # bytes stream fast enough: a search may find otherwise
        for lines in s[acc].prefetch(w, ko, ko.extent, level=2):      # the same place in the next panel
            s[acc].unroll(lines)
    _finish(s, acc, out, al, jl, kind, lanes, shared, ragged)


def _finish(
    s: te.Schedule, acc: Tensor, out: Tensor, al: te.Var, ol: te.Var, kind: Dot, lanes: int, shared: te.Var,
    ragged: list[te.Var],
) -> None:
    """The instruction in place of the innermost loops, lanes, cores, and tails."""
    s[acc].vectorize(al)                        # stays on the nest that starts the sums
    s[acc].tensorize(al, dot(kind, lanes))
    s[out].vectorize(ol)
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
    ic, *taps = s[acc].op.reduce_axis
    av, al = s[acc].split(ao, factor=lanes)
    blocks, channel = s[acc].split(ic, factor=block)
    groups, ki = s[acc].split(channel, factor=kind.group)
    rolled, unrolled = s[acc].split(groups, factor=_unrolled(groups, tile, kind, target, choices))
    s[acc].reorder(blocks, *taps, rolled, unrolled, *at, av, al, ki)
    rank = len(anchor.shape)
    s.set_layout(acc, Layout(default_axes(rank), (*((d, 0) for d in (0, *range(2, rank), 1)), (1, lanes)), ((0, 0),) * rank))
    for axis in (unrolled, *at, av):
        s[acc].unroll(axis)
    for axis in (*inner, ov):
        s[out].unroll(axis)
    _finish(s, acc, out, al, ol, kind, lanes, shared, ragged)
