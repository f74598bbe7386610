"""Register-tiled windows over blocked layouts: direct convolution, transposed and depthwise convolution, pooling.

    for g (channel groups) x rows x column tiles:           one register tile of rows x columns x vectors accumulators
        for ic blocks, kh, kw, ic:                           weights stream, inputs are broadcast
            tile += x * w                                    unrolled, vectors over output channels
        store epilogue(tile)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout, default_axes
from toolchain.core.rewrite import walk
from toolchain.core.target import Target
from toolchain.kernels.sketches.stages import (
    accumulator,
    channel_lanes,
    chooses,
    hold_tile,
    layout_of,
    operands,
    packed_columns,
    peel,
    row_registers,
    share_first,
    share_more,
    split,
)
from toolchain.kernels.tiling import (
    MOST_MULTIPLY_ADDS,
    Column,
    Tile,
    ask_tile,
    ask_unroll,
    conv_tiles,
    divisors,
    largest_divisor,
    matmul_tiles,
    plane_tiles,
)
from toolchain.te.expr import Select
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

UNROLLED_TAPS = 11           # a window row of a first layer; a longer one (a Fourier transform, say) stays a loop
MOST_IN_ORDER = 512          # of blocks of channels, for a core that hides no counting behind them: 4 KB of code
UNSHARED = 1.25              # what a row of a depthwise window takes longer whose columns do not share loads (measured)
ROUGH = 3                    # sums that share what is masked, or put together of several loads: with more, LLVM spills
MOST_PIECES = 4              # of a strided vector that is shuffled; one of wider strides is gathered
UNROLLED_CHANNELS = 4        # more in one basic block gains nothing and lets loads of overlapping windows merge into spills


def register_layout(rank: int, lanes: int) -> Layout:
    """Accumulators: channels innermost, one vector per block, everything else outside."""
    order = (0, *range(2, rank), 1)
    return Layout(default_axes(rank), (*((d, 0) for d in order), (1, lanes)), ((0, 0),) * rank)


def conv(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """Direct convolution from NCHW<l>c (or plain, for a first layer) to NCHW<l>c."""
    lanes = channel_lanes(s, s.func.outputs[0])
    tile = _tile(s, anchor, anchor.shape[2] if len(anchor.shape) == 4 else 1, lanes, target, choices)
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    ragged: list[te.Var] = []
    g, o = s[out].split(o, factor=tile.vectors * lanes)
    if -(-anchor.shape[1] // lanes) % tile.vectors:
        ragged.append(g)
    ov, ol = s[out].split(o, factor=lanes)
    outer, inner = _tile_spatial(s, out, spatial, tile, ragged)
    shared = conv_share(n, g, outer, *operands(s, acc), target, choices)
    order = share_first(shared, ragged, _order(n, g, outer, _outgrows_l2(*operands(s, acc), target), choices))
    s[out].reorder(*order, *inner, ov, ol)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    _, ao, *at = s[acc].op.axis
    ic, *taps = s[acc].op.reduce_axis
    av, al = s[acc].split(ao, factor=lanes)
    loops = _channel_loops(s, acc, ic, taps, lanes, tile, target, choices)
    s[acc].reorder(*loops, *at, av, al)
    s.set_layout(acc, register_layout(len(anchor.shape), lanes))
    hold_tile(s, acc, (*at, av, al), out, (*inner, ov, ol))
    _fetch_ahead(s, acc, loops[0], target, choices)
    s[out].parallel(shared)
    peel(s, out, ragged)


def _fetch_ahead(s: te.Schedule, acc: Tensor, block: te.Var, target: Target, choices: Choices) -> None:
    """A convolution of one tap: prefetch the tile's points of the next block of channels into L1. They lie a whole plane
    away, on pages of their own, where no hardware looks; it gains where a core's share of the input has left its L2."""
    x, _ = operands(s, acc)
    ic, *taps = s[acc].op.reduce_axis
    strided = any(n > 1 for n in s.func.stages[acc].attrs.get("strides", ()))       # half the lines would be of no use
    if strided or any(tap.extent > 1 for tap in taps) or block.extent == 1 or block is ic:
        return
    if choices.one_of("prefetch", (False, True), _input_outgrows_l2(x, target)):
        for lines in s[acc].prefetch(x, block, 1):
            s[acc].unroll(lines)


def _tile(
    s: te.Schedule, anchor: Tensor, height: int, lanes: int, target: Target, choices: Choices
) -> Tile:
    """The register tile: its vectors are fixed by the packed weights, the rest is a choice. `height` 1: rows one by one."""
    vectors = packed_columns(s, anchor) // lanes or 1
    steps = math.prod(axis.extent for axis in s.func.stages[anchor].reduce_axis)
    tiles = conv_tiles(height, anchor.shape[-1], -(-anchor.shape[1] // lanes), target, steps, anchor.shape[0])
    tiles = tuple(t for t in tiles if t.vectors == vectors)
    tiles = tiles or (Tile(1, 1, vectors),)
    return ask_tile(choices, tiles)


def _outgrows_l2(x: Tensor, w: Tensor, target: Target) -> bool:
    """Whether a core's share of the input has left its L2 when the next group of channels reads it, but no weights have."""
    return _input_outgrows_l2(x, target) and math.prod(w.shape) * dtypes.itemsize(w.dtype) <= target.l2_bytes


def _input_outgrows_l2(x: Tensor, target: Target) -> bool:
    """Whether what a core reads of the input, its share, is more than its L2 holds."""
    return math.prod(x.shape) * dtypes.itemsize(x.dtype) > target.cores * target.l2_bytes


def _order(n: te.Var, g: te.Var, outer: Sequence[te.Var], far: bool, choices: Choices) -> list[te.Var]:
    """Loops around a register tile: all columns of a row with the weights of one group, or all groups at one place. far: one
    group after the other would read all of the input from L3 each time."""
    *rows, columns = outer
    orders = {"groups": [n, g, *rows, columns], "rows": [n, *rows, g, columns], "columns": [n, *rows, columns, g]}
    if g.extent == 1:
        return orders["groups"]
    return orders[choices.one_of("order", tuple(orders), "rows" if far else "groups")]


def _tile_spatial(
    s: te.Schedule, out: Tensor, spatial: Sequence[te.Var], tile: Tile, ragged: list[te.Var]
) -> tuple[list[te.Var], list[te.Var]]:
    """Split rows and columns by the tile: (outer loops, inner loops)."""
    *rows, x = spatial
    outer, inner = list(rows), []
    if tile.rows > 1 and rows:
        outer[-1], yi = split(s, out, rows[-1], tile.rows, ragged)
        inner.append(yi)
    xo, xi = split(s, out, x, tile.columns, ragged)
    return [*outer, xo], [*inner, xi]


def _channel_loops(
    s: te.Schedule, acc: Tensor, ic: te.Var, taps: Sequence[te.Var], lanes: int, tile: Tile, target: Target,
    choices: Choices,
) -> list[te.Var]:
    """Input channels in blocks outside the taps, a few of them unrolled inside; few channels stay outside whole, and taps of
    a window row are unrolled."""
    if ic.extent < lanes and taps:
        *rows, tap = taps
        rolled: list[te.Var] = []
        if tap.extent > UNROLLED_TAPS:
            outer, tap = s[acc].split(tap, factor=largest_divisor(tap.extent, UNROLLED_CHANNELS))
            rolled.append(outer)
        s[acc].unroll(tap)
        return [ic, *rows, *rolled, tap]
    block, channel = s[acc].split(ic, factor=lanes)
    rolled, unrolled = s[acc].split(channel, factor=ask_unroll(choices, lanes, UNROLLED_CHANNELS, tile.accumulators))
    s[acc].unroll(unrolled)
    order = [block, *taps, rolled, unrolled]
    if not target.in_order or rolled.extent > 1:
        return order
    return _unroll_more(s, acc, order, tile.accumulators * unrolled.extent, choices)


def _unroll_more(
    s: te.Schedule, acc: Tensor, order: Sequence[te.Var], multiply_adds: int, choices: Choices,
) -> list[te.Var]:
    """For a core that hides nothing behind multiply-adds: the taps of a window row in one block, which share what they read,
    or some blocks of channels where there is one tap, so that counting and jumping cost less.

    multiply_adds: of a block as it is.
    """
    block, *taps, rolled, unrolled = order
    beside = next((tap for tap in reversed(taps) if tap.extent > 1), None)
    if beside is not None:
        fits = beside.extent * multiply_adds <= MOST_MULTIPLY_ADDS
        if choices.one_of("unroll_taps", (False, True), fits):
            s[acc].unroll(beside)
            return [block, *(tap for tap in taps if tap is not beside), rolled, beside, unrolled]
        return list(order)
    most = MOST_IN_ORDER if taps else MOST_MULTIPLY_ADDS                # a transposed one repeats it for every phase
    options = divisors(block.extent, max(1, most // multiply_adds))
    block, more = s[acc].split(block, factor=choices.one_of("blocks", options, options[-1]))
    s[acc].unroll(more)
    return [block, *taps, rolled, more, unrolled]


def conv_share(
    n: te.Var, g: te.Var, outer: Sequence[te.Var], x: Tensor, w: Tensor, target: Target, choices: Choices,
) -> te.Var:
    """The loop cores share: images, channel groups where weights outweigh activations, else rows inside the groups."""
    heavy, enough = math.prod(w.shape) > math.prod(x.shape), 2 * target.cores
    if n.extent >= enough:
        default = "images"
    elif g.extent >= enough and (heavy or outer[0].extent < enough):
        default = "groups"
    else:
        default = "rows"
    return {"images": n, "groups": g, "rows": outer[0]}[choices.one_of("parallel", ("images", "groups", "rows"), default)]


def depthwise(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """One vector of channels at a time: depthwise convolution and pooling in NCHW<l>c, or in blocks of several vectors."""
    stage = s.func.stages[anchor]
    lanes = packed_columns(s, anchor) if stage.tag == "depthwise" else channel_lanes(s, s.func.outputs[0])
    registers = target.vector_registers
    width = anchor.shape[-1]
    masked = target.lane_multiply and stage.tag == "pool"       # a border's masks are in vector registers, too
    limit = max(1, registers // (4 if masked else 2) - 2)
    window, stride = _taps(stage.reduce_axis)[-1].extent, stage.attrs.get("strides", [1])[-1]

    def fits(columns: int) -> bool:
        """Whether a window row of every column is in registers, beside the accumulators."""
        return columns + (columns - 1) * stride + 2 * window < registers and not masked

    def steps(columns: int) -> float:
        """Where that fits, what columns share is loaded once; else each multiply-add loads its own: loads are the limit."""
        shared = columns == 1 or masked or fits(columns)
        return -(-width // columns) * (columns + 2) * (1 if shared else UNSHARED) * (1 + 0.04 * (width % columns != 0))

    wanted = target.lane_multiply and not masked                # there, loads beside multiply-adds cost most
    fitting = [c for c in range(1, min(width, limit) + 1) if c == 1 or fits(c) or not wanted]
    tiles = sorted(fitting, key=lambda c: (steps(c), -c))
    columns = choices.one_of("columns", tiles, tiles[0], [steps(c) for c in tiles])
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    g, ol = s[out].split(o, factor=lanes)
    ragged: list[te.Var] = []
    outer, inner = _tile_spatial(s, out, spatial, Tile(1, columns, 1), ragged)
    loops = {"images": n, "groups": g, "rows": outer[0]}
    widest = max(loops, key=lambda name: min(loops[name].extent, 2 * target.cores))
    shared = loops[choices.one_of("parallel", tuple(loops), widest)]
    order = share_first(shared, ragged, [n, g, *outer])
    s[out].reorder(*order, *inner, ol)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    _, ao, *at = s[acc].op.axis
    s[acc].reorder(*s[acc].op.reduce_axis, *at, ao)
    s.set_layout(acc, register_layout(len(anchor.shape), lanes))
    for axis in (*at, *inner):
        s[acc if axis in at else out].unroll(axis)
    if choices.one_of("unroll_taps", (False, True), fits(columns)):
        s[acc].unroll(_taps(s[acc].op.reduce_axis)[-1])
    s[acc].vectorize(ao)
    s[out].vectorize(ol)
    s[out].parallel(shared)
    peel(s, out, ragged)


def _taps(axes: Sequence[te.Var]) -> list[te.Var]:
    """The axes of a window; those of one tap only where there are no others."""
    return [r for r in axes if r.extent > 1] or list(axes)


def conv_transpose(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """One dense convolution per phase of the output (see compute.nn.conv_transpose), phases outside the columns."""
    lanes = channel_lanes(s, s.func.outputs[0])
    rank = (len(anchor.shape) - 2) // 2
    strides = anchor.shape[2:2 + rank]
    tile = _tile(s, anchor, anchor.shape[-2] if rank == 2 else 1, lanes, target, choices)
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    ragged: list[te.Var] = []
    g, o = s[out].split(o, factor=tile.vectors * lanes)
    if -(-anchor.shape[1] // lanes) % tile.vectors:
        ragged.append(g)
    ov, ol = s[out].split(o, factor=lanes)
    outer, phases, inner = [], [], []
    for axis, stride, size in zip(spatial, strides, (1,) * (rank - 2) + (tile.rows, tile.columns)[-rank:], strict=True):
        uneven = axis.extent % stride != 0                   # the last phases lack a place: seen in the last tile
        i, phase = s[out].split(axis, factor=min(stride, axis.extent))
        phases.append(phase)
        if size > 1 or axis is spatial[-1]:
            i, within = s[out].split(i, factor=min(size, i.extent))
            inner.append(within)
            uneven = uneven or -(-axis.extent // stride) % size != 0
        outer.append(i)
        ragged += [i] if uneven else []
    shared = max((n, g, outer[0]), key=lambda axis: min(axis.extent, 2 * target.cores))
    order = share_first(shared, ragged, [n, g, *phases, *outer])
    s[out].reorder(*order, *inner, ov, ol)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    _, ao, *at = s[acc].op.axis
    ic, *taps = s[acc].op.reduce_axis
    av, al = s[acc].split(ao, factor=lanes)
    s[acc].reorder(*taps, *_channel_loops(s, acc, ic, (), lanes, tile, target, choices), *at, av, al)
    s.set_layout(acc, register_layout(len(anchor.shape), lanes))
    hold_tile(s, acc, (*at, av, al), out, (*inner, ov, ol))
    s[out].parallel(shared)
    peel(s, out, ragged)


def plain_transpose(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """A transposed convolution, row-major in and out: for few output channels. Vectors along a row of the input; a tile is
    some output channels by the phases of a column, which share what they load. The other phases are loops outside."""
    lanes = target.lanes(dtypes.bits(anchor.dtype))
    rank = (len(anchor.shape) - 2) // 2
    strides = anchor.shape[2:2 + rank]
    per_group, width = anchor.shape[1] // s.func.stages[anchor].attrs.get("group", 1), anchor.shape[-1]
    tiles = [t for t in matmul_tiles(per_group * strides[-1], -(-width // lanes), target)
             if t.columns % strides[-1] == 0 and per_group * strides[-1] % t.columns == 0] or [Tile(1, strides[-1], 1)]
    tile = ask_tile(choices, tiles)
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    ragged: list[te.Var] = []
    og, oi = s[out].split(o, factor=max(1, tile.columns // strides[-1]))
    outer, phases = [], []
    for axis, stride in zip(spatial, strides, strict=True):
        i, phase = s[out].split(axis, factor=min(stride, axis.extent))
        outer.append(i)
        phases.append(phase)
    xo, x = split(s, out, outer[-1], tile.vectors * lanes, ragged)
    if spatial[-1].extent % (tile.vectors * lanes * strides[-1]) and not ragged:
        ragged.append(xo)                                    # the last phases lack a column
    xv, xl = s[out].split(x, factor=min(lanes, x.extent))
    shared = max((n, og, *outer[:-1]), key=lambda axis: min(axis.extent, 2 * target.cores))
    s[out].reorder(*share_first(shared, ragged, [n, og, *outer[:-1], *phases[:-1], xo]), oi, phases[-1], xv, xl)
    s[acc].compute_at(s[out], xo)
    *an, ax = s[acc].op.axis
    av, al = s[acc].split(ax, factor=lanes)
    s[acc].reorder(*s[acc].op.reduce_axis, *an, av, al)
    s.set_layout(acc, row_registers(len(anchor.shape), lanes))
    hold_tile(s, acc, (*an, av, al), out, (oi, phases[-1], xv, xl))
    s[out].parallel(shared)
    peel(s, out, ragged)


def plain_conv(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """Row-major in and out: vectors along a row; a tile is several output channels of one group, which share what they load,
    or several rows where each channel has an input of its own. For what cannot be blocked."""
    lanes = target.lanes(dtypes.bits(anchor.dtype))
    column = _column(s, anchor, lanes, target)
    channels, rows, vectors = _plain_tile(s, anchor, lanes, column, target, choices)
    acc, out = accumulator(s, anchor)
    n, o, *spatial = s[out].op.axis
    ragged: list[te.Var] = []
    og, oi = s[out].split(o, factor=channels)
    outer, inner = [n, og, *spatial[:-1]], [oi]
    if rows > 1:
        outer[-1], yi = split(s, out, spatial[-2], rows, ragged)
        inner.append(yi)
    xo, x = s[out].split(spatial[-1], factor=vectors * lanes)
    if anchor.shape[-1] % (vectors * lanes):
        ragged.append(xo)
    xv, xl = s[out].split(x, factor=lanes)
    loops = dict(zip(("images", "groups", *(f"d{d}" for d in range(2, len(outer)))), outer))
    widest = max(loops, key=lambda name: min(loops[name].extent, 2 * target.cores))
    shared = loops[choices.one_of("parallel", tuple(loops), widest)]
    if og.extent > 1 and len(outer) > 2 and choices.one_of("order", ("groups", "rows"), "groups") == "rows":
        outer = [n, *outer[2:], og]
    order = share_first(shared, ragged, [*outer, xo])
    s[out].reorder(*order, *inner, xv, xl)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    s[acc].compute_at(s[out], order[-1])
    *an, ax = s[acc].op.axis
    av, al = s[acc].split(ax, factor=lanes)
    s[acc].reorder(*_plain_taps(s, acc, channels, rows, vectors, column, target, choices), *an, av, al)
    s.set_layout(acc, row_registers(len(anchor.shape), lanes))
    hold_tile(s, acc, (*an, av, al), out, (*inner, xv, xl))
    s[out].parallel(shared)
    peel(s, out, ragged)


def _plain_taps(
    s: te.Schedule, acc: Tensor, channels: int, rows: int, vectors: int, column: Column, target: Target, choices: Choices,
) -> list[te.Var]:
    """Loops over channels and taps: a window row in one basic block; or a window of several rows, column by column, so that
    what rows of the tile share of a column is loaded once, and little of it at a time."""
    *others, last = s[acc].op.reduce_axis
    fits = 1 < last.extent <= UNROLLED_TAPS and channels * rows * vectors * last.extent <= MOST_MULTIPLY_ADDS
    if not fits:
        return [*others, last]
    tall = rows > 1 and bool(others) and others[-1].extent > 1
    options: list[bool | str] = [False, True]
    costs, default = [1.0, 1.0], False
    if tall and channels * rows * vectors * last.extent * others[-1].extent <= MOST_MULTIPLY_ADDS:
        default = column.taps > 1 and column.fits(rows, vectors, target)
        options.append("window")
        costs = [column.cycles(rows, vectors, target, shared) for shared in (False, False, default)]
    unrolled = choices.one_of("unroll_taps", options, "window" if default else False, costs)
    if unrolled == "window":
        *others, beside = others
        s[acc].unroll(last)
        s[acc].unroll(beside)
        return [*others, last, beside]
    if unrolled:
        s[acc].unroll(last)
    return [*others, last]


def _column(s: te.Schedule, anchor: Tensor, lanes: int, target: Target) -> Column:
    """What rows share of a window's column: nothing where channels read others, or masks would take vector registers."""
    definition = s.func.stages[anchor]
    strides = definition.attrs.get("strides", ())
    if definition.tag != "depthwise" or len(strides) < 2:
        return Column()
    halo = layout_of(s, operands(s, anchor)[0]).halo[-2:]
    border = any(isinstance(n, Select) for n in walk(definition.body)) and not all(map(any, halo))
    if (border or anchor.shape[-1] % lanes) and not target.has("avx512f"):
        return Column()
    row, along = strides[-2:]
    if along > 1 and not border and anchor.shape[-1] < lanes:
        return Column()                                         # LLVM loads all of a short row at once, and spills
    column = Column(definition.reduce_axis[-2].extent, row, 2 * along)
    return replace(column, most=ROUGH) if border or along > 1 else column


def _plain_tile(
    s: te.Schedule, anchor: Tensor, lanes: int, column: Column, target: Target, choices: Choices,
) -> tuple[int, int, int]:
    """(output channels, rows, vectors along a row) of one register tile."""
    attrs = s.func.stages[anchor].attrs
    per_group, vectors = anchor.shape[1] // attrs.get("group", 1), -(-anchor.shape[-1] // lanes)
    if s.func.stages[anchor].tag == "conv":                     # each input is read by every output channel of its group
        step = attrs.get("strides", [1])[-1]
        loads = 1 if step == 1 else 2 * step                    # strided: a load and a shuffle for each piece of a vector
        beside = _border_registers(s, anchor, step) if step > 1 else 0
        tiles = [t for t in matmul_tiles(per_group, vectors, target, loads, beside=beside) if per_group % t.columns == 0]
        tile = ask_tile(choices, tiles)
        return tile.columns, 1, tile.vectors
    height = anchor.shape[-2] if len(anchor.shape) > 3 else 1
    tiles = plane_tiles(height, vectors, target, column)
    tile = ask_tile(choices, tiles)
    return 1, tile.rows, tile.vectors


def _border_registers(s: te.Schedule, anchor: Tensor, step: int) -> int:
    """Registers that loading a strided vector takes besides its own, where columns may stand over the border: the pieces it
    is shuffled from, each under a mask (so none is an operand in memory), and the places of its lanes, which tell the mask.
    None where a halo holds the border's zeros."""
    x, _ = operands(s, anchor)
    if not chooses(s, anchor, s[anchor].op.axis[-1]) or any(layout_of(s, x).halo[-1]):
        return 0
    return min(step, MOST_PIECES) + 1
