"""The analytic policy's register tiles."""

from __future__ import annotations

import pytest

from toolchain.kernels.tiling import Tile, fits, matmul_tiles, tile_cycles
from toolchain.targets.presets import PRESETS

TARGETS = [PRESETS[name] for name in ("x86-64-v3", "x86-64-v4")]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [197, 127, 50, 31])
def test_a_product_with_a_prime_number_of_rows_still_reuses_its_weights(rows: int, target) -> None:
    """ViT has 197 tokens: single rows leave no tail, but read every panel of weights from L2 once per row."""
    best = matmul_tiles(rows, 96, target, streamed=True)[0]
    assert fits(best, target) and best.columns >= 3


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_streaming_costs_what_l2_delivers(target) -> None:
    """32 bytes per cycle: eight vectors for one row of A wait for them, for eight rows they do not."""
    vectors = 8 * 512 // target.vector_bits
    assert tile_cycles(1, vectors, target, streamed=target.l2_bytes_per_cycle) == 16 > tile_cycles(1, vectors, target)
    assert tile_cycles(16, 2, target, streamed=target.l2_bytes_per_cycle) == tile_cycles(16, 2, target)
    assert matmul_tiles(1, 96, target, streamed=True)[0] == matmul_tiles(1, 96, target)[0] != Tile(1, 1, 1)


def test_rows_a_large_power_of_two_apart_are_few_to_a_tile():
    """25 rows of 4 kB want the same eight lines of L1: a tile of 25 by one vector reads each value from L2 (a quarter of the
    speed, measured), one of 13 by two hides it. Rows 1536 bytes apart find room."""
    target = PRESETS["x86-64-v4"]
    apart = matmul_tiles(25, 514, target, streamed=True, row_bytes=4096)[0]
    assert apart.columns * target.line_bytes / target.l2_bytes_per_cycle <= apart.accumulators
    assert matmul_tiles(25, 514, target, streamed=True, row_bytes=1536) == matmul_tiles(25, 514, target, streamed=True)
