"""In which form a target takes products of small integers: bytes or words, and how wide a register tile is.

Of bytes in pairs (Armv8.0) a step is sixteen products of each sum: three instructions, two of them multiplications, of which
a core that reorders hides the third. A sum is a register of its own, so that a tile has few points; what is under way
between the three takes seven more. Short sums (a first layer of three channels, which sixteen would hold) stay words.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.graph.passes.choose_algorithms import taps_of
from toolchain.graph.passes.integer_products import Form, Forms, InFloats, Product
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.instructions import Dot, accumulates, bytes_and_words
from toolchain.kernels.tiling import Tile, conv_tiles, cycles, matmul_tiles, over_tiles, ranked

MOST_VECTORS = 6
PAIR_VECTORS = 2            # the same, where each column takes registers of its own
PAIR_LOAD_CYCLES = 1.3      # an in-order core's load between their instructions, and what a step of few of them waits
PAIR_STEP_CYCLES = 2.0
HIDDEN = 0.1                # of a load that a core which reorders hides: of two tiles the one with fewer is better
UNDER_WAY = 7               # registers of products between multiplication and sum (targets/llvm/dot_products.py)
SPARE = 8                   # of the registers that give lanes: LLVM keeps sums in them, too


def integer_forms(target: Target) -> Forms:
    """The `forms` callback of `integer_products` for a target."""
    def forms(product: Product) -> Form | None:
        in_bytes, in_words = bytes_and_words(target, product.pairs)
        kinds = [kind for kind in (in_bytes if product.in_bytes else None, in_words) if kind is not None]
        if not kinds:
            return None
        kind = kinds[0]
        if kind.pairs:
            kind = min(kinds, key=lambda kind: dot_cycles(product, kind, target))
        lanes = target.lanes(32)
        vectors = panel_vectors(product.height, product.width, product.columns, kind, target)
        return Form(kind.left, kind.right, kind.group, lanes, vectors * lanes, kind.pairs)
    return forms


def dot_cycles(product: Product, kind: Dot, target: Target) -> float:
    """Cycles of all sums (of a convolution: for each of its taps), padding included."""
    vectors = panel_vectors(product.height, product.width, product.columns, kind, target)
    steps = -(-product.depth // kind.group)
    return steps * _step_cycles(product.height, product.width, product.columns, vectors, kind, target)


def in_floats(target: Target) -> InFloats:
    """The `in_floats` callback of `dequantized_products`: where an instruction takes one factor per lane, of integers as of
    floats, Winograd's algorithm takes fewer of them, and it is one of floats."""
    in_bytes, in_words = bytes_and_words(target)
    single = in_bytes is None and in_words is not None and in_words.group == 1
    choose = algorithms(target)
    return lambda node, graph: single and taps_of(node, graph.types) > 0 and choose(node, graph) > 0


@lru_cache(1024)
def panel_vectors(height: int, width: int, columns: int, kind: Dot, target: Target) -> int:
    """Vectors of columns in a register tile, which columns are padded to: the fewest cycles, padding included."""
    blocks = -(-columns // target.lanes(32))
    most = PAIR_VECTORS if kind.pairs else MOST_VECTORS
    return min(range(1, min(blocks, most) + 1),
               key=lambda vectors: (_step_cycles(height, width, columns, vectors, kind, target), -vectors))


def _step_cycles(height: int, width: int, columns: int, vectors: int, kind: Dot, target: Target) -> float:
    """Cycles per group of the whole output, in panels of so many vectors of columns."""
    blocks = -(-columns // target.lanes(32))
    padded = -(-blocks // vectors) * vectors
    tile = dot_tiles(height, width, padded, vectors, kind, target)[0]
    if kind.pairs:
        return over_tiles(height, width, padded, tile, lambda points, v: _pair_cycles(points, v, target))
    return cycles(height, width, padded, tile, target, streamed=height == 1)


def dot_tiles(height: int, width: int, blocks: int, vectors: int, kind: Dot, target: Target) -> list[Tile]:
    """Register tiles with that many vectors of columns, the best first: height 1 and rows as width for a matrix product.

    A product that is added by an instruction of its own takes a register beside weights and broadcast value.
    """
    if kind.pairs:
        return _pair_tiles(height, width, blocks, vectors, target)
    bits = target.lanes(32) * kind.group * dtypes.bits(kind.right)              # of what a step reads of a vector of columns
    target = target if bits == target.vector_bits else replace(target, vector_bits=bits)
    found = matmul_tiles(width, blocks, target, streamed=True) if height == 1 else conv_tiles(height, width, blocks, target)
    room = target.vector_registers - (1 if accumulates(kind, target) else 3)
    points = kind.lane_registers - SPARE if kind.lane_registers else target.vector_registers
    fitting = [t for t in found if t.vectors == vectors and t.accumulators + vectors < room and t.rows * t.columns <= points]
    return fitting or [Tile(1, 1, vectors)]


def _pair_tiles(height: int, width: int, blocks: int, vectors: int, target: Target) -> list[Tile]:
    """As dot_tiles, where each sum is a register, and so are the bytes of each point and of each column."""
    columns = vectors * target.lanes(32)
    most = max(1, (target.vector_registers - 1 - UNDER_WAY - columns) // (columns + 1))
    tiles = [Tile(rows, width if rows > 1 else points, vectors)
             for rows in range(1, min(height, most) + 1)
             for points in range(1, min(width, most) + 1) if rows == 1 or (points == width and rows * width <= most)]
    return ranked(tiles, lambda tile: (
        over_tiles(height, width, blocks, tile, lambda points, v: _pair_cycles(points, v, target)), -tile.accumulators))


def _pair_cycles(points: int, vectors: int, target: Target) -> float:
    """Cycles of a step of a tile: sixteen products of each sum."""
    columns = vectors * target.lanes(32)
    products, loads = points * columns / target.fma_per_cycle, points + columns
    if target.in_order:
        return 3 * products + PAIR_LOAD_CYCLES * loads + PAIR_STEP_CYCLES
    return max(2 * products, loads) + HIDDEN * loads


__all__ = ["dot_cycles", "dot_tiles", "in_floats", "integer_forms", "panel_vectors"]
