"""Register-tiled matrix products: rows of A broadcast, columns of B in vectors, packed panels streaming.

    for panel (columns of B) x row tiles:     one register tile of rows x vectors accumulators
        for k:                                B streams, A is broadcast
            tile += a * b
        store epilogue(tile)
"""

from __future__ import annotations

import math

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.kernels.sketches.stages import (
    accumulator,
    fuse_all,
    operands,
    packed_columns,
    peel,
    row_registers,
    share_first,
    share_more,
    split,
)
from toolchain.kernels.tiling import Tile, ask_tile, ask_unroll, matmul_tiles
from toolchain.te.expr import Load, distinct, variables
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

UNROLLED_K = 4
SHARED = 8                      # row tiles per panel of weights, from which on they share what each would prefetch
IN_ORDER_K = 8                  # where counting and jumping are hidden behind nothing
HIDDEN = 4                      # multiply-adds per line of weights, below which memory is the limit whoever asks first


def matmul(s: te.Schedule, anchor: Tensor, target: Target, choices: Choices) -> None:
    """(..., M, K) x (K, N): a register tile of rows by whole vectors of columns, over all of K.

        for panel of columns, for tile of rows (the cores share one of them):
          acc[rows][vectors] in registers;  for k: acc += A[row, k] * B[k, vector];  store what is fused behind

    B lies packed in panels of the tile's width, so that a tile reads it in one stream; tails of rows are peeled, those of
    columns masked. Raises ScheduleError, as its primitives do.
    """
    lanes = target.lanes(dtypes.bits(anchor.dtype))
    rows, columns = ((1, *anchor.shape) if len(anchor.shape) == 1 else anchor.shape)[-2:]
    tile = _tile(s, anchor, rows, columns, lanes, target, choices)
    acc, out = accumulator(s, anchor)
    batch, rows_of, pieces, j = _axes(s, acc, out)
    outer = [*batch, *rows_of]
    ragged: list[te.Var] = []
    panel, j = s[out].split(j, factor=tile.vectors * lanes)      # not peeled: packed B has room, stores are masked
    jv, jl = s[out].split(j, factor=lanes)
    if pieces:
        s[out].reorder(*outer, *pieces, panel)
        panel = fuse_all(s, out, [*pieces, panel])
    if outer:
        io, ii = split(s, out, outer[-1], tile.columns, ragged)
        shared = _shared([*outer[:-1], panel, io], panel, io, target, choices)
        order = share_first(shared, ragged, [*outer[:-1], *_order(panel, io, choices)])
        s[out].reorder(*order, ii, jv, jl)
        shared, order = share_more(s, out, shared, ragged, order, target.cores)
        inner, at = [ii], order[-1]
    else:
        shared, inner, at = panel, [], panel
    s[acc].compute_at(s[out], at)
    *an, aj = s[acc].op.axis
    (k,) = s[acc].op.reduce_axis
    av, al = s[acc].split(aj, factor=lanes)
    most = IN_ORDER_K if target.in_order and k.extent % IN_ORDER_K == 0 else UNROLLED_K
    ko, ki = s[acc].split(k, factor=ask_unroll(choices, k.extent, most, tile.accumulators))
    s[acc].reorder(ko, ki, *an, av, al)
    s.set_layout(acc, row_registers(len(anchor.shape), lanes))
    for axis in (ki, *an, av):
        s[acc].unroll(axis)
    for axis in (*inner, jv):
        s[out].unroll(axis)
    _stream(s, acc, ko, io if outer and io in order and io is not shared else None, tile, target, choices)
    s[acc].vectorize(al)
    s[out].vectorize(jl)
    s[out].parallel(shared)
    peel(s, out, ragged)


def _axes(s: te.Schedule, acc: Tensor, out: Tensor) -> tuple[list[te.Var], list[te.Var], list[te.Var], te.Var]:
    """The output's loops that run over batches, rows, pieces of columns, and the columns of a piece.

    They are apart where a Transpose behind the product moves rows: out[h, m, d] = acc[m, D*h + d]. Rows of all batches are
    one loop where the product has two dimensions.
    """
    *outer, j = s[out].op.axis
    places = _places(s, acc, out)
    pieces = [axis for axis in outer if axis in variables(places[-1])]
    rest = [axis for axis in outer if axis not in pieces]
    rows = rest if len(places) <= 2 else [axis for axis in rest if axis in variables(places[-2])] or rest[-1:]
    batch = [axis for axis in rest if axis not in rows]
    if [*batch, *rows, *pieces] != outer:
        s[out].reorder(*batch, *rows, *pieces, j)
    return batch, [fuse_all(s, out, rows)] if rows else [], pieces, j


def _places(s: te.Schedule, acc: Tensor, out: Tensor) -> tuple[te.Expr, ...]:
    """Where the stage that stores a product reads it."""
    return next(n.index for n in distinct(s.func.stages[out].body) if isinstance(n, Load) and n.tensor is acc)


def _order(panel: te.Var, rows: te.Var, choices: Choices) -> list[te.Var]:
    """All rows with one panel of B, or all panels with one tile of rows."""
    if panel.extent == 1 or rows.extent == 1:
        return [panel, rows]
    return [panel, rows] if choices.one_of("order", ("panels", "rows"), "panels") == "panels" else [rows, panel]


def _stream(
    s: te.Schedule, acc: Tensor, ko: te.Var, rows: te.Var | None, tile: Tile, target: Target, choices: Choices,
) -> None:
    """Prefetch weights: at each step of k the same place in the next panel (the hardware waits for each panel's first
    misses), where a quarter of the cache holds it. Few row tiles ask for all its lines each, where a core's cache does not
    hold the weights anyway; many share them."""
    w = operands(s, acc)[1]
    column_bytes = packed_columns(s, acc) * dtypes.itemsize(w.dtype)
    steps = math.prod(r.extent for r in s.func.stages[acc].reduce_axis)
    if not column_bytes or not steps:
        return
    many = rows is not None and rows.extent >= SHARED
    small = math.prod(w.shape) * dtypes.itemsize(w.dtype) < target.l2_bytes
    gains = tile.columns >= HIDDEN and steps * column_bytes <= target.l2_bytes // 4 and (many or not small)
    if not choices.one_of("prefetch", (False, True), gains):
        return
    for lines in s[acc].prefetch(w, ko, ko.extent, level=2, over=rows if many else None):
        s[acc].unroll(lines)


def _tile(s: te.Schedule, anchor: Tensor, rows: int, columns: int, lanes: int, target: Target, choices: Choices) -> Tile:
    depth = math.prod(r.extent for r in s.func.stages[anchor].reduce_axis)
    tiles = matmul_tiles(rows, -(-columns // lanes), target, streamed=True, row_bytes=depth * dtypes.itemsize(anchor.dtype))
    packed = packed_columns(s, anchor)
    if packed:
        vectors = packed // lanes
        tiles = [t for t in tiles if t.vectors == vectors] or [Tile(1, 1, vectors)]
    return ask_tile(choices, tiles)


def _shared(loops: list[te.Var], panel: te.Var, rows: te.Var, target: Target, choices: Choices) -> te.Var:
    """The loop cores share: whole matrices when there are several, else panels of B, else rows."""
    enough = 2 * target.cores
    batch = max(loops[:-2], key=lambda axis: axis.extent, default=panel)
    if batch.extent >= enough:
        default = "batch"
    else:
        default = "columns" if panel.extent >= min(enough, rows.extent) else "rows"
    answer = choices.one_of("parallel", ("batch", "columns", "rows"), default)
    return {"batch": batch, "columns": panel, "rows": rows}[answer]
