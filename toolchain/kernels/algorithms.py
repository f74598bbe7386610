"""Which algorithm a convolution gets: a cost model of direct and Winograd convolution from Target facts; and the sizes of
the parts a Winograd kernel works in.

Costs are cycles of one core's share. Arithmetic: register tiles as in `tiling`, one vector operation per cycle in the
transforms. Bytes: what a stage streams is paid at the bandwidth of the smallest cache that holds it, and is not hidden;
weights are cold once per run (in a network everything else runs between two uses), from the last-level cache when it holds
all weights of the graph, else from memory. Transformed weights are side^2/taps^2 as large as direct ones: 4 times with m = 4
and 3 taps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.choose_algorithms import taps_of
from toolchain.graph.winograd import EVERY_SIZE, sizes_of, tiles
from toolchain.kernels.tiling import (
    Tile,
    conv_tiles,
    cycles,
    divisors,
)

SHARED_CYCLES_PER_BYTE = 1.3    # what one core writes and another reads, line by line and again with each run
GAIN = 1.1                      # Winograd must promise so much: it rounds more, and the model knows nothing of prefetching
INPUT_OPERATIONS = {3: 2, 4: 4, 5: 9, 6: 12}        # additions and multiply-adds of one 1-D transform of so many values
OUTPUT_OPERATIONS = {(2, 2): 2, (2, 3): 4, (2, 5): 8, (3, 2): 4, (4, 2): 8, (4, 3): 10}        # by (m, taps)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution of taps x taps with stride 1: (N, I, ...) to (N, O, H, W); or, stride > 1, stride^2 of them with weights
    of their own, the phases of a transposed one, of which the largest makes H x W.

    direct: multiply-adds of direct convolution for an output (0: channels * taps^2; what strides split has taps that are 0).
    """

    batch: int
    channels: int
    outputs: int
    height: int
    width: int
    taps: int = 3
    stride: int = 1
    direct: int = 0

    @property
    def phases(self) -> int:
        return self.stride ** 2

    def side(self, m: int) -> int:
        return m + self.taps - 1


@dataclass(frozen=True, slots=True)
class Parts:
    """How a Winograd kernel works through its tiles.

    A strip is `rows` x `columns` tiles, which divide the tiles of an image. shared "strips": each strip is one lane's, from
    the input's transform to the stores, V and M in its scratch. shared "groups": V of everything first, then each lane has
    channel groups, M of a strip in its scratch. shared "copies": each lane has channel groups and makes V of each strip for
    itself. tile: of the products.
    """

    rows: int
    columns: int
    tile: Tile
    shared: str

    def __str__(self) -> str:
        """As records keep it, the tile apart: "strips:2x14"."""
        return f"{self.shared}:{self.rows}x{self.columns}"


def algorithms(target: Target, sizes: Sequence[int] = EVERY_SIZE) -> Callable[[Node, Graph], int]:
    """The `choose` callback of `choose_algorithms`: the tile size of Winograd's algorithm, 0 for direct convolution.

    `sizes` limits the choice: (2,) keeps errors near those of direct convolution (F(4x4): about 4 times as large), () turns
    Winograd off.
    """
    def choose(node: Node, graph: Graph) -> int:
        direct, costs = weigh(node, graph, target, sizes)
        best = min(costs, key=lambda m: costs[m], default=0)
        return best if best and costs[best] * GAIN < direct else 0
    return choose


def weigh(node: Node, graph: Graph, target: Target, sizes: Sequence[int] = EVERY_SIZE) -> tuple[float, dict[int, float]]:
    """Cycles of direct convolution, and of Winograd's by tile size: none for a convolution of few channels. (0, {}) where
    there is nothing to weigh. Asked about convolutions that `taps_of` knows."""
    x, y = graph.types[node.inputs[0]], graph.types[node.output]
    lanes, channels, size = target.lanes(dtypes.bits(x.dtype)), x.shape[1], graph.types[node.inputs[1]].shape[2]
    stride = (node.attrs.get("strides") or (1,))[0]
    if min(channels, y.shape[1]) < lanes:
        return 0.0, {}
    shape = Geometry(x.shape[0], channels, y.shape[1], *y.shape[2:], taps_of(node, graph.types))
    if node.op == "ConvTranspose":
        height, width = (tiles(n, stride) for n in y.shape[2:])
        shape = replace(shape, height=height, width=width, stride=stride,
                        direct=channels * tiles(size * size, stride ** 2))
    elif stride > 1:
        if channels % lanes:                        # a vector of channels would be from several places
            return 0.0, {}
        shape = replace(shape, channels=channels * stride ** 2, direct=channels * size * size)
    cold = sum(a.nbytes for a in graph.params.values()) > target.l3_bytes
    costs = {m: winograd_cycles(shape, m, target, cold) for m in sizes_of(shape.taps) if m in sizes}
    return (direct_cycles(shape, target, cold), costs) if costs else (0.0, {})


def direct_cycles(shape: Geometry, target: Target, cold: bool) -> float:
    """Cycles of direct convolution on the busiest core; `cold`: weights come from memory."""
    lanes = target.lanes(32)
    blocks, steps = tiles(shape.outputs, lanes), shape.direct or shape.channels * shape.taps ** 2
    tile = conv_tiles(shape.height, shape.width, blocks, target)[0]
    work = shape.batch * shape.phases * steps * cycles(shape.height, shape.width, blocks, tile, target)
    groups, rows = tiles(blocks, tile.vectors), tiles(shape.height, tile.rows)
    chunks = max(shape.batch, groups, rows)
    chunks = groups * rows if chunks < target.cores else chunks         # sketches.stages.share_more
    return work * _share(chunks, target) + _cold(4 * shape.phases * steps * blocks * lanes, target, cold)


def winograd_cycles(shape: Geometry, m: int, target: Target, cold: bool) -> float:
    """Cycles of F(m x m, taps x taps) on the busiest core, in its best parts."""
    return _best(shape, m, target, cold)[0]


def winograd_parts(shape: Geometry, m: int, target: Target) -> Parts:
    """The parts with the lowest cost; the same whether or not weights are cold, which all parts pay alike."""
    return _best(shape, m, target, False)[1]


@lru_cache(1024)
def winograd_choices(shape: Geometry, m: int, target: Target) -> tuple[tuple[float, Parts], ...]:
    """All parts with what the model expects of them, the cheapest (`winograd_parts`) first."""
    found = [(_cycles(shape, m, parts, target, False), parts) for parts in _candidates(shape, m, target)]
    return tuple(sorted(found, key=lambda choice: choice[0]))


@lru_cache(1024)
def _best(shape: Geometry, m: int, target: Target, cold: bool) -> tuple[float, Parts]:
    return min(((_cycles(shape, m, parts, target, cold), parts) for parts in _candidates(shape, m, target)),
               key=lambda found: found[0])


def _candidates(shape: Geometry, m: int, target: Target) -> Iterator[Parts]:
    """Strips of whole rows of tiles, else of equal pieces of a row, whose scratch takes at most half of L2; channel groups
    of as many vectors as the best register tile has, or of fewer where that gives groups to all cores."""
    lanes = target.lanes(32)
    rows, columns, blocks = tiles(shape.height, m), tiles(shape.width, m), tiles(shape.outputs, lanes)
    best = conv_tiles(rows, columns, blocks, target)[0].vectors
    fewer = [v for v in divisors(blocks, best) if tiles(blocks, best) < target.cores <= blocks // v][-1:]
    for shared, vectors in itertools.product(("strips", "groups", "copies"), (best, *fewer)):
        if shared == "copies" and (tiles(blocks, vectors) < target.cores or target.cores == 1):
            continue
        fitting: list[Parts] = []
        for width in reversed(divisors(columns, columns)):
            for height in divisors(rows, rows):
                parts = Parts(height, width, Tile(1, 1, vectors), shared)
                if _scratch_bytes(shape, m, parts, lanes) > target.l2_bytes / 2:
                    break
                tile = next(t for t in conv_tiles(height, width, blocks, target) if t.vectors == vectors)
                fitting.append(replace(parts, tile=tile))
            if fitting:
                break
        yield from fitting or [Parts(1, 1, Tile(1, 1, vectors), shared)]


def _scratch_bytes(shape: Geometry, m: int, parts: Parts, lanes: int) -> int:
    """M of one channel group, and where a lane has V to itself V of all channels."""
    channels = parts.tile.vectors * lanes
    if parts.shared != "groups":
        channels += tiles(shape.channels, lanes) * lanes
    return 4 * shape.side(m) ** 2 * parts.rows * parts.columns * channels


def _cycles(shape: Geometry, m: int, parts: Parts, target: Target, cold: bool) -> float:
    """Transform, product, transform back; V, M and U streamed; U brought in once."""
    lanes, side, back_operations = target.lanes(32), shape.side(m), OUTPUT_OPERATIONS[m, shape.taps]
    blocks, channel_blocks = tiles(shape.outputs, lanes), tiles(shape.channels, lanes)
    rows, columns = tiles(shape.height, m) // parts.rows, tiles(shape.width, m) // parts.columns
    strips, groups = shape.batch * rows * columns, tiles(blocks, parts.tile.vectors)                # strips of each phase
    count = shape.phases * strips * parts.rows * parts.columns
    there = count * channel_blocks * (m + side) * (INPUT_OPERATIONS[side] + side)
    back = count * blocks * ((side + m) * back_operations + side ** 2 + 2 * m * m)
    product = shape.phases * strips * side ** 2 * shape.channels * cycles(
        parts.rows, parts.columns, blocks, parts.tile, target)
    position = 4 * lanes * side ** 2                                    # bytes of a vector of channels at every position
    u, v = position * blocks * shape.channels, position * channel_blocks * count        # u: of one phase
    both_m = 2 * position * blocks * count
    scratch = _scratch_bytes(shape, m, parts, lanes)
    again = shape.phases * (strips - 1) * u
    if parts.shared == "groups":
        share = _share(groups, target)
        there *= _share(max(shape.batch * shape.phases, channel_blocks, rows * parts.rows), target)
        streamed = v * (groups + 1) / _bandwidth(v, target) + again / _bandwidth(u // groups + scratch, target)
        streamed += v * SHARED_CYCLES_PER_BYTE * (1 - 1 / target.cores)
    elif parts.shared == "copies":
        share = _share(copies(groups, target.cores), target)
        streamed = v * (groups + 1 / share) / target.l2_bytes_per_cycle + again / _bandwidth(u * share + scratch, target)
    else:
        share = _share(max(shape.batch, rows, columns, shape.stride), target)
        there *= share
        streamed = v * (groups + 1) / target.l2_bytes_per_cycle + again / _bandwidth(u + scratch, target)
    streamed += both_m / target.l2_bytes_per_cycle
    return there + (product + back + streamed) * share + _cold(shape.phases * u, target, cold)


def copies(groups: int, cores: int) -> int:
    """How many equal pieces channel groups are shared in as "copies": no more than keep all cores busy."""
    return next((d for d in divisors(groups, groups) if d >= cores), groups)


def _share(chunks: int, target: Target) -> float:
    """The busiest core's share of equal chunks."""
    return tiles(chunks, target.cores) / chunks


def _bandwidth(size: float, target: Target) -> float:
    """Bytes per cycle of what is streamed again and again, by the cache that holds it."""
    if size <= target.l2_bytes:
        return target.l2_bytes_per_cycle
    return target.l3_bytes_per_cycle if size <= target.l3_bytes else target.memory_bytes_per_cycle


def _cold(size: int, target: Target, cold: bool) -> float:
    """Reading weights once: every core its share."""
    return size / (target.memory_bytes_per_cycle if cold else target.l3_bytes_per_cycle) / target.cores


__all__ = ["Geometry", "Parts", "algorithms", "direct_cycles", "weigh", "winograd_cycles", "winograd_parts"]
