"""In which form a target takes products of small integers: bytes or words, and how wide a register tile is."""

from __future__ import annotations

from functools import lru_cache

from toolchain.core.target import Target
from toolchain.graph.passes.integer_products import Form, Forms
from toolchain.kernels.instructions import BYTES, WORDS, Dot, accumulates, has_dot
from toolchain.kernels.tiling import Tile, conv_tiles, cycles, matmul_tiles

MOST_VECTORS = 6


def integer_forms(target: Target) -> Forms:
    """The `forms` callback of `integer_products` for a target."""
    def forms(height: int, width: int, columns: int, narrow: bool) -> Form | None:
        kind = BYTES if narrow and has_dot(BYTES, target) else WORDS
        if not has_dot(kind, target):
            return None
        lanes = target.lanes(32)
        vectors = panel_vectors(height, width, columns, kind, target)
        return Form(kind.left, kind.right, kind.group, lanes, vectors * lanes)
    return forms


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
    found = matmul_tiles(width, blocks, target, streamed=True) if height == 1 else conv_tiles(height, width, blocks, target)
    room = target.vector_registers - (1 if accumulates(kind, target) else 3)
    return [t for t in found if t.vectors == vectors and t.accumulators + vectors < room] or [Tile(1, 1, vectors)]


__all__ = ["dot_tiles", "integer_forms", "panel_vectors"]
