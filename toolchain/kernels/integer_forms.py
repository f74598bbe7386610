"""In which form a target takes products of small integers: bytes or words, and how wide a register tile is."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.graph.passes.choose_algorithms import taps_of
from toolchain.graph.passes.integer_products import Form, Forms, InFloats
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.instructions import Dot, accumulates, bytes_and_words
from toolchain.kernels.tiling import Tile, conv_tiles, cycles, matmul_tiles

MOST_VECTORS = 6
SPARE = 8                   # of the registers that give lanes: LLVM keeps sums in them, too


def integer_forms(target: Target) -> Forms:
    """The `forms` callback of `integer_products` for a target."""
    def forms(height: int, width: int, columns: int, narrow: bool) -> Form | None:
        in_bytes, in_words = bytes_and_words(target)
        if (kind := in_bytes if narrow and in_bytes is not None else in_words) is None:
            return None
        lanes = target.lanes(32)
        vectors = panel_vectors(height, width, columns, kind, target)
        return Form(kind.left, kind.right, kind.group, lanes, vectors * lanes)
    return forms


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

    def cost(vectors: int) -> tuple[float, int]:
        padded = -(-blocks // vectors) * vectors
        tile = dot_tiles(height, width, padded, vectors, kind, target)[0]
        return cycles(height, width, padded, tile, target, streamed=height == 1), -vectors
    return min(range(1, min(blocks, MOST_VECTORS) + 1), key=cost)


def dot_tiles(height: int, width: int, blocks: int, vectors: int, kind: Dot, target: Target) -> list[Tile]:
    """Register tiles with that many vectors of columns, the best first: height 1 and rows as width for a matrix product.

    A product that is added by an instruction of its own takes a register beside weights and broadcast value.
    """
    bits = target.lanes(32) * kind.group * dtypes.bits(kind.right)              # of what a step reads of a vector of columns
    target = target if bits == target.vector_bits else replace(target, vector_bits=bits)
    found = matmul_tiles(width, blocks, target, streamed=True) if height == 1 else conv_tiles(height, width, blocks, target)
    room = target.vector_registers - (1 if accumulates(kind, target) else 3)
    points = kind.lane_registers - SPARE if kind.lane_registers else target.vector_registers
    fitting = [t for t in found if t.vectors == vectors and t.accumulators + vectors < room and t.rows * t.columns <= points]
    return fitting or [Tile(1, 1, vectors)]


__all__ = ["dot_tiles", "in_floats", "integer_forms", "panel_vectors"]
