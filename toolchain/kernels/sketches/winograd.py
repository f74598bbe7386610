"""Winograd convolution: transforms and products of one strip of tiles at a time, or of one channel group at a time.

    strips   for strips of tiles (shared by the cores):          groups   V of everything   (phase 1, channel blocks shared)
               V of all input channels      lane scratch                  for channel groups (shared by the cores):
               for channel groups:                                          M   lane scratch
                 M = V . U per position     lane scratch                    for tiles: out = A^T M A, epilogue
                 for tiles: out = A^T M A, epilogue     copies   as strips, each lane with groups of its own

The product of a position is a matrix product: tiles x channels by channels x outputs, in register tiles of tiles x vectors
of outputs; U streams through, packed in the order it is read. The phases of a transposed convolution are loops outside the
strips' products: each has V, M and U of its own.
"""

from __future__ import annotations

from dataclasses import replace

from toolchain import te
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.kernels.algorithms import Geometry, Parts, copies, winograd_choices
from toolchain.kernels.sketches.stages import channel_lanes, inline_injective, is_costly, layout_of, peel, readers, split
from toolchain.kernels.tiling import ask_tile, ask_unroll, conv_tiles
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

UNROLLED_CHANNELS = 4
IN_ORDER_CHANNELS = 8        # where counting and jumping are hidden behind nothing
COEFFICIENTS = 3             # of a transform, in registers where instructions take no operand from memory
SAME_SET = 4096              # bytes: places so far apart share a set of L1, and loads wait for stores to one another's


def by_position(lanes: int, blocks: int, rows: int, columns: int) -> Layout:
    """V and M: positions outermost, then channel blocks, tiles, and one vector of channels.

    A tile's positions are read or written one behind the other. Where they would lie a multiple of SAME_SET apart, each row
    of tiles has room for one more, or there is one more row, or both.
    """
    order = ((4, 0), (5, 0), (0, 0), (1, 0), (2, 0), (3, 0), (1, lanes))
    room = min(((a, b) for a in (0, 1) for b in (0, 1)), key=lambda more: (
        4 * lanes * blocks * (rows + more[0]) * (columns + more[1]) % SAME_SET == 0, (rows + more[0]) * (columns + more[1])))
    return Layout(default_axes(6), order, ((0, 0), (0, 0), (0, room[0]), (0, room[1]), (0, 0), (0, 0)))


def channels_last(rank: int, lanes: int) -> Layout:
    """Vectors of channels innermost, channel blocks outermost."""
    return Layout(default_axes(rank), (*((d, 0) for d in range(rank)), (1, lanes)), ((0, 0),) * rank)


def winograd(s: te.Schedule, products: Tensor, target: Target, choices: Choices) -> None:
    """Schedule the five stages around `products`, and what reads the last one."""
    (v, _), (q,) = s.func.stages[products].input_tensors[:2], readers(s, products)
    (p,), out = s.func.stages[v].input_tensors, s.func.outputs[0]
    inline_injective(s, keep=(p, v, q))
    lanes = channel_lanes(s, s.func.outputs[0])
    stride, parts = s.func.stages[products].attrs["stride"], _parts(s, products, p, q, lanes, target, choices)
    acc = s.cache_write(products, "local")
    strip, group, tile, ragged = _output_loops(s, out, q.shape[4], stride, parts, lanes, target)
    branches = sum(extent % (q.shape[4] * stride) != 0 for extent in out.shape[2:]) > len(ragged)
    _back(s, q, out, tile, lanes, branches, target)
    _products(s, products, acc, out, group, parts, lanes, target, choices)
    _input(s, p, v, out, strip if parts.shared != "groups" else None, parts, lanes, target)
    peel(s, out, ragged)


def _parts(
    s: te.Schedule, products: Tensor, p: Tensor, q: Tensor, lanes: int, target: Target, choices: Choices
) -> Parts:
    vectors = layout_of(s, s.func.stages[products].input_tensors[1]).dims[-1][1] // lanes or 1
    attrs = s.func.stages[products].attrs
    stride = attrs["stride"]
    height, width = (-(-n // stride) for n in s.func.outputs[0].shape[2:])
    shape = Geometry(p.shape[0] // stride, p.shape[1], products.shape[1], height, width, attrs["taps"], stride)
    ranked = [(cost, p) for cost, p in winograd_choices(shape, q.shape[4], target) if p.tile.vectors == vectors]
    parts = choices.one_of("parts", [p for _, p in ranked], ranked[0][1], [cost for cost, _ in ranked])
    tiles = conv_tiles(parts.rows, parts.columns, -(-shape.outputs // lanes), target)
    return replace(parts, tile=ask_tile(choices, [t for t in tiles if t.vectors == vectors] or [parts.tile]))


def _output_loops(
    s: te.Schedule, out: Tensor, m: int, stride: int, parts: Parts, lanes: int, target: Target
) -> tuple[te.Var, te.Var, te.Var, list[te.Var]]:
    """Order the loops of the output: (loop of a strip, loop of a channel group in it, loop of a tile in that), and those to
    peel. Where a whole image is one strip, its last tiles are; else the stores of last tiles keep their branches."""
    n, o, y, x = s[out].op.axis
    height, width = y.extent, x.extent
    g, o = s[out].split(o, factor=parts.tile.vectors * lanes)
    ov, ol = s[out].split(o, factor=lanes)
    phases: list[te.Var] = []
    if stride > 1:
        y, a = s[out].split(y, factor=stride)
        x, b = s[out].split(x, factor=stride)
        phases = [a, b]
    ty, yi = s[out].split(y, factor=m)
    tx, xi = s[out].split(x, factor=m)
    outer_y, inner_y = s[out].split(ty, factor=parts.rows)
    outer_x, inner_x = s[out].split(tx, factor=parts.columns)
    if parts.shared == "groups":
        order, shared, strip, group = [g, n, *phases, outer_y, outer_x], g, g, outer_x
    elif parts.shared == "copies":
        shared, g = s[out].split(g, nparts=copies(g.extent, target.cores))
        order, group = [shared, n, outer_y, outer_x, *phases, g], g
        strip = order[-2]
    else:
        order, group = [n, outer_y, outer_x, *phases, g], g
        strip = order[-2]
        shared = max((n, outer_y, outer_x, *phases), key=lambda axis: min(axis.extent, 2 * target.cores))
    s[out].reorder(*order, ov, inner_y, inner_x, yi, xi, ol)
    for axis in (yi, xi):
        s[out].unroll(axis)
    s[out].vectorize(ol)
    s[out].parallel(shared)
    pairs = ((height, outer_y, inner_y), (width, outer_x, inner_x))
    return strip, group, inner_x, [inner for extent, outer, inner in pairs
                                   if extent % (m * stride) and not extent % stride and outer.extent == 1]


def _back(s: te.Schedule, q: Tensor, out: Tensor, tile: te.Var, lanes: int, branches: bool, target: Target) -> None:
    """The vertical output transform of one tile, in registers where they hold it; else column by column, through memory.

    They do not where stores have branches, past which all of it stays alive, or where a costly function behind it wants them
    for its constants.
    """
    s[q].compute_at(s[out], tile)
    rows, side = q.shape[4:]
    constants = COEFFICIENTS if target.lane_multiply else 0
    fits = rows * side + side + constants < target.vector_registers
    held = fits and not branches and not is_costly(s.func.stages[out])
    s[q].set_scope("local" if held else "lane")
    s.set_layout(q, channels_last(6, lanes))
    n, o, ty, tx, i, k = s[q].op.axis
    s[q].reorder(n, ty, tx, k, i, o)
    for axis in (i, k) if held else (i,):
        s[q].unroll(axis)
    s[q].vectorize(o)


def _products(
    s: te.Schedule, m: Tensor, acc: Tensor, out: Tensor, group: te.Var, parts: Parts, lanes: int, target: Target,
    choices: Choices,
) -> None:
    """One matrix product per position, from lane scratch to lane scratch."""
    s[m].compute_at(s[out], group)
    s[m].set_scope("lane")
    s.set_layout(m, by_position(lanes, parts.tile.vectors, parts.rows, parts.columns))
    n, o, ty, tx, j, k = s[m].op.axis
    ov, ol = s[m].split(o, factor=lanes)
    mine: list[te.Var] = []
    ty, yi = split(s, m, ty, parts.tile.rows, mine)
    tx, xi = split(s, m, tx, parts.tile.columns, mine)
    s[m].reorder(j, k, n, ty, tx, yi, xi, ov, ol)
    s[acc].compute_at(s[m], tx)
    for axis in (yi, xi, ov):
        s[m].unroll(axis)
    s[m].vectorize(ol)
    s.set_layout(acc, Layout(default_axes(6), (*((d, 0) for d in (0, 2, 3, 4, 5, 1)), (1, lanes)), ((0, 0),) * 6))
    *_, ao, ay, ax, _, _ = s[acc].op.axis
    (ic,) = s[acc].op.reduce_axis
    av, al = s[acc].split(ao, factor=lanes)
    most = IN_ORDER_CHANNELS if target.in_order and ic.extent % IN_ORDER_CHANNELS == 0 else UNROLLED_CHANNELS
    unroll = ask_unroll(choices, ic.extent, most, parts.tile.accumulators)
    rolled, unrolled = s[acc].split(ic, factor=unroll)
    s[acc].reorder(rolled, unrolled, ay, ax, av, al)
    for axis in (unrolled, ay, ax, av):
        s[acc].unroll(axis)
    s[acc].vectorize(al)
    once = parts.shared == "groups" or (parts.rows, parts.columns) == m.shape[2:4]      # U is read once, so from afar
    # each tile takes a cycle per line of U: with fewer, prefetching from memory has no slack
    hides = once and parts.rows * parts.columns >= target.line_bytes / target.memory_bytes_per_cycle
    if choices.one_of("prefetch", (False, True), hides):
        u = s.func.stages[acc].input_tensors[1]
        for lines in s[acc].prefetch(u, rolled, rolled.extent, level=2):        # the same place in the next position's panel
            s[acc].unroll(lines)
    peel(s, m, mine)


def _input(
    s: te.Schedule, p: Tensor, v: Tensor, out: Tensor, strip: te.Var | None, parts: Parts, lanes: int, target: Target
) -> None:
    """Both input transforms, one vector of channels and one row of tiles at a time: in a strip, or all before."""
    if strip is not None:
        s[v].compute_at(s[out], strip)
        s[v].set_scope("lane")
    images, channels, rows, columns, *_ = v.shape
    blocks = -(-channels // lanes)
    if strip is None:
        s.set_layout(v, by_position(lanes, images * blocks, rows, columns))
    else:
        s.set_layout(v, by_position(lanes, blocks, parts.rows, parts.columns))
    n, c, ty, tx, j, k = s[v].op.axis
    cb, cl = s[v].split(c, factor=lanes)
    s[v].reorder(n, cb, ty, tx, j, k, cl)
    s[v].unroll(k)
    s[v].vectorize(cl)
    if strip is None:
        s[v].parallel(max((n, cb, ty), key=lambda axis: min(axis.extent, 2 * target.cores)))
    s[p].compute_at(s[v], ty)
    s[p].set_scope("lane")
    s.set_layout(p, channels_last(5, lanes))
    pn, pc, pt, pj, px = s[p].op.axis
    s[p].reorder(pn, pt, px, pj, pc)
    s[p].unroll(pj)
    s[p].vectorize(pc)
