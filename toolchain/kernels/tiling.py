"""The analytic policy: register tiles and loop orders from the Target's facts, before anything is measured.

Assumptions, all of them: one fused multiply-add needs its accumulator in a register and a loaded weight vector, the other
operand is a broadcast load; a core issues `fma_per_cycle` vector FMAs of four cycles latency and two loads per cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from toolchain.core.target import Target
from toolchain.te.tune.choices import Choices

FMA_LATENCY = 4
L1_WAYS = 8                 # of x86 cores; with fewer, of larger ways, as many rows find room at most strides
LOADS_PER_CYCLE = 2

STEPS = 4                    # of a reduction that lane multiplication takes together: the lanes of a vector of float32
LANE_LOAD_CYCLES = 2         # an in-order Arm core's 128-bit load: 64 bits per cycle, and no multiply-add beside it
BURST_CYCLES = 6             # what it waits before loads that follow multiply-adds, for those retire first
LOOP_CYCLES = 3              # counting and jumping, at the end of its steps

MOST_UNROLLED = 16           # steps of a reduction that a search may put into one basic block
MOST_MULTIPLY_ADDS = 256     # and their multiply-adds: more takes LLVM long, and the instruction cache cannot hold it


@dataclass(frozen=True, slots=True)
class Tile:
    """Accumulators of one register tile: `rows` x `columns` output points by `vectors` vectors of output channels.

    cost: what the analytic model expects of it, to be compared with that of other tiles of the same kernel only.
    """

    rows: int
    columns: int
    vectors: int
    cost: float = field(default=1.0, compare=False)

    def __str__(self) -> str:
        """As records keep it: "1x6x2"."""
        return f"{self.rows}x{self.columns}x{self.vectors}"

    @property
    def accumulators(self) -> int:
        return self.rows * self.columns * self.vectors


FREE_REGISTERS = 4           # beside the accumulators: weights, broadcasts, and what the epilogue keeps


def fits(tile: Tile, target: Target, beside: int = 0) -> bool:
    """Accumulators, one vector of weights per vector column and one broadcast value stay in registers; the values of all
    points, for STEPS steps, where a multiply-add takes lanes. Weights of a single point come from memory, within the
    instruction. beside: registers that loading a vector takes besides its own."""
    registers = target.vector_registers
    if target.lane_multiply:
        return tile.accumulators + tile.rows * tile.columns + tile.vectors + beside <= registers
    weights = tile.vectors if tile.rows * tile.columns > 1 else 0
    return tile.accumulators <= registers - FREE_REGISTERS and tile.accumulators + weights + 1 + beside < registers


def tile_cycles(points: int, vectors: int, target: Target, vector_loads: int = 1, streamed: float = 0) -> float:
    """Cycles of one reduction step of a tile with that many output points.

    vector_loads: what one vector takes to load. streamed: bytes per cycle at which the vectors come, step by step, from a
    farther cache (a panel of weights that every tile reads from end to end); 0: they lie in L1.
    """
    if target.lane_multiply:
        return _lane_cycles(points, vectors, target, vector_loads, streamed)
    fma = points * vectors / target.fma_per_cycle
    loads = (points + vectors * vector_loads) / LOADS_PER_CYCLE
    stream = vectors * target.vector_bits / 8 / streamed if streamed else 0
    return max(fma, loads, stream, FMA_LATENCY)      # each accumulator is touched once per step


def _lane_cycles(points: int, vectors: int, target: Target, vector_loads: int, streamed: float) -> float:
    """tile_cycles where a multiply-add takes one lane as a factor: the values of a point for STEPS steps are one load.

    An in-order core does one thing after the other, and loads in bursts of as many steps as registers hold.
    """
    fma = STEPS * points * vectors / target.fma_per_cycle
    loads = points + STEPS * vectors * vector_loads
    stream = STEPS * vectors * target.vector_bits / 8 / streamed if streamed else 0
    if not target.in_order:
        return max(fma, loads / LOADS_PER_CYCLE, stream, STEPS * FMA_LATENCY) / STEPS
    room = target.vector_registers - points * (vectors + 1)
    bursts = next(n for n in (1, 2, 4) if n == STEPS or STEPS // n * vectors <= room)
    waits = max(0.0, stream - LANE_LOAD_CYCLES * loads)
    return (max(fma, STEPS * FMA_LATENCY) + LANE_LOAD_CYCLES * loads + bursts * BURST_CYCLES + LOOP_CYCLES + waits) / STEPS


def pieces(extent: int, size: int) -> Iterator[tuple[int, int]]:
    """(size, how many) of the whole tiles and of the tail."""
    if extent // size:
        yield size, extent // size
    if extent % size:
        yield extent % size, 1


def cycles(
    height: int, width: int, blocks: int, tile: Tile, target: Target, vector_loads: int = 1, streamed: float = 0,
) -> float:
    """Cycles per reduction step of the whole output (height x width points, `blocks` vectors of channels)."""
    return over_tiles(height, width, blocks, tile, lambda points, vectors: tile_cycles(
        points, vectors, target, vector_loads, streamed))


def over_tiles(height: int, width: int, blocks: int, tile: Tile, step: Callable[[int, int], float]) -> float:
    """The sum of what whole and ragged tiles take, given the points and vectors of each."""
    return sum(nv * nr * nc * step(r * c, v) for v, nv in pieces(blocks, tile.vectors)
               for r, nr in pieces(height, tile.rows) for c, nc in pieces(width, tile.columns))


@lru_cache(4096)
def conv_tiles(
    height: int, width: int, blocks: int, target: Target, steps: int = 0, images: int = 0,
) -> tuple[Tile, ...]:
    """Tiles that fit the registers, the best first: fewest cycles, then fewest loads.

    steps: how long the reduction is. Every tile of a plane reads a panel of weights of so many steps: one that takes more
    than half of L2 comes from L3 each time, so wide panels lose against tiles of many points. images: how many such planes
    cores share, by rows and groups of channels, or columns where these are few (0: they share something else).
    """
    candidates = [
        tile
        for vectors in range(1, min(blocks, 6) + 1) if blocks % vectors == 0 or blocks > 6
        for rows in range(1, min(height, 4) + 1)
        for columns in range(1, min(width, target.vector_registers) + 1)
        if fits(tile := Tile(rows, columns, vectors), target) and (rows == 1 or columns == width)
    ] or [Tile(1, 1, 1)]

    def cost(tile: Tile) -> tuple[float, float, int]:
        loads = (tile.rows * tile.columns + tile.vectors) / tile.accumulators
        ragged = (width % tile.columns != 0) + (height % tile.rows != 0) + (blocks % tile.vectors != 0)
        far = steps * tile.vectors * target.vector_bits // 8 > target.l2_bytes // 2
        total = cycles(height, width, blocks, tile, target, streamed=target.l3_bytes_per_cycle if far else 0)
        pieces = images * -(-height // tile.rows) * -(-blocks // tile.vectors)
        if 0 < pieces < target.cores:
            along = width // tile.columns if width % tile.columns == 0 else 1       # each core reads all weights then
            total *= max(1.0, target.cores / (pieces * along))
            ragged += along > 1
        return total * (1 + 0.04 * ragged), loads, -tile.accumulators
    return tuple(ranked(candidates, cost))


def matmul_tiles(
    rows: int, blocks: int, target: Target, vector_loads: int = 1, streamed: bool = False, row_bytes: int = 0,
    beside: int = 0,
) -> list[Tile]:
    """Tiles of a matrix product: `columns` rows of A (a broadcast each) by `vectors` vectors of B's columns.

    vector_loads: loads and shuffles that one vector of B takes (several when its elements are strided in memory).
    beside: registers that they take (see fits).
    streamed: B's panels are longer than L1 holds, as those of a matrix product are (see tile_cycles), and the first row tile
    of each has it from memory: what a network reads once a run is in no cache. So few vectors of many rows are better than
    many vectors. Of a single row every tile reads as much. row_bytes: from one row of A to the next (0: not known); rows a
    large power of two apart want the same few places of L1.
    """
    candidates = [
        tile
        for vectors in range(1, min(blocks, 8) + 1)
        for m in range(1, min(rows, target.vector_registers) + 1)
        if fits(tile := Tile(1, m, vectors), target, beside)
    ] or [Tile(1, 1, 1)]

    def cost(tile: Tile) -> tuple[float, float, int]:
        loads = (tile.columns + tile.vectors * vector_loads) / tile.accumulators
        ragged = (rows % tile.columns != 0) + (blocks % tile.vectors != 0)
        bandwidth = target.l2_bytes_per_cycle if streamed and rows > 1 else 0
        steps = cycles(1, rows, blocks, tile, target, vector_loads, bandwidth)
        steps += _first_reads(rows, blocks, tile, target) if bandwidth else 0
        if row_bytes and tile.columns > rows_in_l1(row_bytes, target):
            steps = max(steps, rows * -(-blocks // tile.vectors) * target.line_bytes / target.l2_bytes_per_cycle)
        return steps * (1 + 0.04 * ragged), loads, -tile.accumulators
    return ranked(candidates, cost)


def _first_reads(rows: int, blocks: int, tile: Tile, target: Target) -> float:
    """Cycles per reduction step that the first row tile of each panel waits for weights from memory."""
    points = min(rows, tile.columns)
    vector = target.vector_bits / 8 / target.memory_bytes_per_cycle
    return sum(count * max(0.0, v * vector - tile_cycles(points, v, target)) for v, count in pieces(blocks, tile.vectors))


def rows_in_l1(row_bytes: int, target: Target) -> int:
    """How many rows can have the line that is being read in L1 at once. More of them push each other out, and every
    broadcast brings its line from L2 again."""
    span = target.l1d_bytes // L1_WAYS
    return L1_WAYS * min(span // math.gcd(row_bytes, span), span // target.line_bytes)


HIGHEST = 8                  # rows of a tile of one plane


@dataclass(frozen=True, slots=True)
class Column:
    """What the rows of a plane's tile read of a window's column: `taps` places, neighbouring rows `stride` apart. loads: of
    one vector along a row; one begins anywhere and mostly crosses a line, which makes two, and strided ones are put together
    of several. most: sums that can share. taps 1: nothing is shared."""

    taps: int = 1
    stride: int = 1
    loads: int = 2
    most: int = 32

    def places(self, rows: int) -> int:
        """Vectors of a column for so many rows, each once."""
        return min(self.stride, self.taps) * (rows - 1) + self.taps

    def fits(self, rows: int, vectors: int, target: Target) -> bool:
        """Whether all of it is in registers, beside the sums, a factor and what is being loaded."""
        needed = (rows + self.places(rows)) * vectors + 1 + self.loads // 2
        return rows * vectors <= self.most and needed <= target.vector_registers

    def cycles(self, rows: int, vectors: int, target: Target, shared: bool) -> float:
        """Multiply-adds of one tap, or loads where those take longer; as many of each start in a cycle."""
        loads = self.loads * vectors * (self.places(rows) / self.taps if shared else rows) if self.taps > 1 else 0
        return max(rows * vectors, loads, FMA_LATENCY + 1)


def plane_tiles(height: int, vectors: int, target: Target, column: Column = Column()) -> list[Tile]:
    """Tiles of one plane, rows by vectors along a row: enough of them to hide latency, and room for what each loads."""
    candidates = [
        Tile(rows, 1, v)
        for v in range(1, min(vectors, 4) + 1)
        for rows in range(1, min(height, HIGHEST) + 1)
        if 2 * rows * v + FREE_REGISTERS <= target.vector_registers
    ]

    def cost(tile: Tile) -> tuple[float, int]:
        shared = column.fits(tile.rows, tile.vectors, target)
        total = sum(nr * nv * column.cycles(r, v, target, shared)
                    for r, nr in pieces(height, tile.rows) for v, nv in pieces(vectors, tile.vectors))
        ragged = (height % tile.rows != 0) + (vectors % tile.vectors != 0)
        return total * (1 + 0.04 * ragged), -tile.accumulators
    return ranked(candidates, cost)


def ranked(tiles: Sequence[Tile], cost: Callable[[Tile], tuple[float, ...]]) -> list[Tile]:
    """Tiles with their cost (the first of its numbers), the cheapest first."""
    costs = {tile: cost(tile) for tile in tiles}
    return [replace(tile, cost=costs[tile][0]) for tile in sorted(tiles, key=costs.__getitem__)]


def ask_tile(choices: Choices, tiles: Sequence[Tile]) -> Tile:
    """The register tile: the first one unless a search says otherwise."""
    return choices.one_of("tile", tiles, tiles[0], [t.cost for t in tiles])


def ask_unroll(choices: Choices, extent: int, default: int, accumulators: int) -> int:
    """How many steps of a reduction stand in one basic block: a divisor of its extent."""
    limit = max(default, min(MOST_UNROLLED, MOST_MULTIPLY_ADDS // max(1, accumulators)))
    return choices.one_of("unroll", divisors(extent, limit), largest_divisor(extent, default))


def divisors(n: int, limit: int) -> list[int]:
    """The divisors of n up to a limit, ascending."""
    return [d for d in range(1, min(n, limit) + 1) if n % d == 0]


def largest_divisor(n: int, limit: int) -> int:
    return divisors(n, limit)[-1]
