"""Contractions by what they read: which axes each operand moves along, and the register tiles that follow from it.

    C[i, j] = sum_k A[i, k] * B[k, j]              A stands still along j, B along i: a tile of i by j loads each once
    y[n] = sum_ij x[n, i] * W[i, j] * z[n, j]      W stands still along n: lanes along j, a tile of several n

Any reduction whose operands are read more than once per element is one, whatever its combiner and its index maps are: there
is no template. Source: the rule of data reuse behind Ansor's multi-level tiling (Zheng et al., OSDI 2020, table 1); the cost
of a tile is that of kernels/tiling.py, for any number of operands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.kernels.tiling import FMA_LATENCY, FREE_REGISTERS, LOADS_PER_CYCLE, pieces, rows_in_l1
from toolchain.te.expr import Bin, Call, Const, Dynamic, Load, Reduce, Select, distinct, variables
from toolchain.te.lower.intrinsics import CALLS
from toolchain.te.tensor import Compute

MOST_APART = 16             # elements: what lies farther apart is in another line
FEW_LANES = 4               # elements of an axis that are worth a vector
MOST_PIECES = 4             # of a strided vector that is put together by shuffles; one of wider strides is gathered
GATHER = 3                  # loads per lane of a gathered vector, each of a line of its own
JOIN_CYCLES = 12            # to add up the lanes of one sum: a shuffle and an addition per halving, one behind the other
REUSED_TO_PACK = 64         # uses of an element that pay for its copy
MOST_TILES = 48             # options of a question
MOST_VECTORS = 4
TILED_AXES = 3              # beside the lanes' axis, that tiles are looked for in (two at a time)


@dataclass(frozen=True, slots=True)
class Operand:
    """One place that a contraction reads: a tensor's name. steps: per axis (the result's, then the reduced ones), how many
    elements apart neighbours lie; 0: the same one, None: it depends. plain: every dimension is indexed by an axis of its
    own, at this one place only."""

    tensor: str

    steps: tuple[int | None, ...]
    bits: int
    elements: int
    plain: bool

    def moves(self, axis: int) -> bool:
        return self.steps[axis] != 0


@dataclass(frozen=True, slots=True)
class Contraction:
    """What the model knows of one. extents: of the result's axes; reduced: of the others. stored: how many
    elements apart neighbours of the result lie, per axis. operations: of a point's term and
    its sum, a multiply-add being one; registers: of constants and of what is made on the way; masks: whether places along an
    axis decide what is read."""

    extents: tuple[int, ...]
    reduced: tuple[int, ...]
    operands: tuple[Operand, ...]
    stored: tuple[int, ...]
    bits: int
    operations: int
    registers: int
    masks: tuple[bool, ...]

    def name(self, axis: int) -> str:
        """As records keep it: d1 is the result's second axis, r0 the first one that is reduced."""
        rank = len(self.extents)
        return f"d{axis}" if axis < rank else f"r{axis - rank}"

    def is_reduced(self, axis: int) -> bool:
        return axis >= len(self.extents)

    def extent(self, axis: int) -> int:
        return (*self.extents, *self.reduced)[axis]

    @property
    def reduced_axes(self) -> list[int]:
        """Those of more than one step, the one along which operands lie closest together first: its steps follow each
        other."""
        rank = len(self.extents)

        def apart(axis: int) -> int:
            return sum(min(MOST_APART, MOST_APART if o.steps[axis] is None else abs(o.steps[axis] or 0))
                       for o in self.operands)
        return sorted((rank + r for r, n in enumerate(self.reduced) if n > 1), key=apart)

    @property
    def iterations(self) -> int:
        return math.prod(self.extents) * math.prod(self.reduced)

    def uses(self, operand: Operand) -> int:
        """How often an element is read."""
        return math.prod(n for axis, n in enumerate(self.extents) if not operand.moves(axis))

    def packable(self, operand: Operand, lane: int) -> bool:
        """Whether a copy with the lanes' axis innermost pays."""
        return (not self.is_reduced(lane) and operand.plain and operand.moves(lane)
                and self.uses(operand) >= REUSED_TO_PACK)

    def packs(self, tensor: str, lane: int) -> bool:
        """Whether a tensor is an operand to copy."""
        return any(o.tensor == tensor and self.packable(o, lane) for o in self.operands)

    def wants_copy(self, operand: Operand, lane: int, target: Target) -> bool:
        """Whether it is the better way: its elements do not lie together, or more of it is read than stays near, line by
        line from far apart."""
        far = operand.elements * operand.bits // 8 > target.l1d_bytes
        return self.packable(operand, lane) and (operand.steps[lane] != 1 or far)


@dataclass(frozen=True, slots=True)
class Block:
    """A register tile: so many places along some axes (outermost first), by `vectors` vectors along the lanes' axis.

    cost: cycles of the whole contraction with it, to be compared within one contraction.
    """

    sizes: tuple[tuple[int, int], ...]
    vectors: int
    cost: float = field(default=1.0, compare=False)

    def __str__(self) -> str:
        """As records keep it: "d0:6 x2", six places of the first axis by two vectors."""
        return " ".join([*(f"d{axis}:{n}" for axis, n in self.sizes), f"x{self.vectors}"])

    @property
    def sums(self) -> int:
        return math.prod(n for _, n in self.sizes) * self.vectors


def contraction_of(definition: Compute, layouts: Sequence[tuple[Load, Layout]]) -> Contraction | None:
    """What a reduction is to the model; None: it reads no element twice, depends on data, or has several values.

    layouts: of the tensor that each load reads.
    """
    body = definition.body
    if not isinstance(body, Reduce) or len(definition.values) != 1 or not definition.axis or len(layouts) < 2:
        return None
    nodes = list(distinct(definition.values[0]))
    if any(isinstance(n, Dynamic) for n in nodes):
        return None
    axes = (*definition.axis, *definition.reduce_axis)
    places: dict[te.Tensor, set[tuple[te.Index, ...]]] = {}
    for load, _ in layouts:
        places.setdefault(load.tensor, set()).add(tuple(map(te.index, load.index)))
    operands = tuple(dict.fromkeys(_operand(load, layout, axes, len(places[load.tensor]) == 1) for load, layout in layouts))
    masks = tuple(any(axis in variables(n.condition) for n in nodes if isinstance(n, Select)) for axis in axes)
    extents = tuple(a.extent for a in definition.axis)
    stored = tuple(math.prod(extents[d + 1:]) for d in range(len(extents)))
    made = Contraction(extents, tuple(a.extent for a in definition.reduce_axis), operands, stored, dtypes.bits(body.dtype),
                       _operations(body, nodes), _registers(nodes), masks)
    reused = [o for o in operands if any(n > 1 and not o.moves(a) for a, n in enumerate(made.extents))]
    enough = len(operands) > 1 and all(made.iterations >= 2 * o.elements for o in operands)
    return made if enough and reused else None


def _operand(load: Load, layout: Layout, axes: Sequence[te.Var], once: bool) -> Operand:
    at = te.index(layout.offset(load.tensor.shape, load.index))
    alone = [te.index(i).terms for i in load.index]
    plain = once and layout.is_row_major and all(len(t) == 1 and isinstance(t[0][0], te.Var) and t[0][1] == 1 for t in alone)
    plain = plain and len({t[0][0] for t in alone}) == len(alone)
    return Operand(load.tensor.name, tuple(_step(at, axis) for axis in axes), dtypes.bits(load.dtype),
                   math.prod(load.tensor.shape), plain)


def _step(at: te.Index, axis: te.Var) -> int | None:
    inside = (te.Index(((atom, 1),)) for atom, _ in at.terms if atom is not axis)
    return None if any(axis in variables(i) for i in inside) else at.coefficient(axis)


def _operations(body: Reduce, nodes: Sequence[te.Expr]) -> int:
    """Arithmetic of one term and of adding it: a product goes with its sum."""
    count = sum(isinstance(n, Bin | Select) for n in nodes) + 4 * sum(isinstance(n, Call) for n in nodes)
    fused = body.combiner == "sum" and dtypes.is_float(body.dtype) and isinstance(body.value, Bin) and body.value.op == "*"
    return max(1, count + 1 - fused)


def _registers(nodes: Sequence[te.Expr]) -> int:
    """Constants, those of functions included, and one for each value between loads and the sum."""
    found: set[tuple[str, object]] = set()
    for n in nodes:
        made = CALLS[n.name](*n.args) if isinstance(n, Call) and n.name in CALLS else n
        found |= {(c.dtype, c.value) for c in distinct(made) if isinstance(c, Const)}
    return len(found) + min(4, sum(isinstance(n, Bin | Select | Call) for n in nodes))


# -- register tiles ---------------------------------------------------------------------------------------------------------


def lane_axes(c: Contraction, target: Target) -> list[int]:
    """Axes that vectors can run along: where results or operands lie together, the cheapest to load first."""
    lanes = target.lanes(c.bits)
    axes = [a for a, n in enumerate(c.extents) if n >= FEW_LANES]
    axes += [len(c.extents) + r for r, n in enumerate(c.reduced) if n >= 2 * lanes]

    def loads(axis: int) -> float:
        vector = sum(_loads(c, o, axis, c.wants_copy(o, axis, target), target) for o in c.operands)
        return vector * -(-c.extent(axis) // lanes) / c.extent(axis)
    return sorted(axes, key=loads)[:TILED_AXES]


def _loads(c: Contraction, operand: Operand, lane: int, packed: bool, target: Target) -> float:
    """Loads (and shuffles) that one vector of an operand takes."""
    step = operand.steps[lane]
    if step in (0, 1) or (packed and c.packable(operand, lane)):
        return 1
    if step is not None and 1 < step <= MOST_PIECES:
        return 2 * step
    return GATHER * target.lanes(c.bits)


@lru_cache(1024)
def blocks(c: Contraction, lane: int, packed: bool, target: Target) -> tuple[Block, ...]:
    """Register tiles along a lanes' axis, the best first: fewest cycles, then fewest loads.

    packed: operands that are worth a copy have one.
    """
    lanes = target.lanes(c.bits)
    most = -(-c.extent(lane) // lanes)
    vectors = [v for v in range(1, min(most, MOST_VECTORS) + 1) if not c.is_reduced(lane) or v in (1, 2, 4)]
    loads = [_loads(c, o, lane, packed, target) for o in c.operands]
    found = [Block(sizes, v) for v in vectors for sizes in _shapes(c, lane, target.vector_registers // v)]
    fitting = [b for b in found if _fits(c, b, lane, loads, target)] or [Block((), 1)]
    costs = {b: (_cycles(c, b, lane, loads, target), _fetched(c, dict(b.sizes) | {lane: b.vectors}, loads) / b.sums, -b.sums)
             for b in fitting}
    ranked = sorted(fitting, key=costs.__getitem__)[:MOST_TILES]
    return tuple(Block(b.sizes, b.vectors, costs[b][0]) for b in ranked)


def _shapes(c: Contraction, lane: int, most: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Places along at most two axes that some operand stands still along."""
    still = [a for a, n in enumerate(c.extents) if a != lane and n > 1 and not all(o.moves(a) for o in c.operands)]
    still = sorted(still, key=lambda a: (-sum(not o.moves(a) for o in c.operands if o.moves(lane)), -c.extents[a]))
    yield ()
    for axis in still[:TILED_AXES]:
        for n in range(2, min(c.extents[axis], most) + 1):
            yield ((axis, n),)
    for first, second in itertools.permutations(still[:TILED_AXES], 2):
        for n in range(2, min(c.extents[first], most // 2) + 1):
            for m in range(2, min(c.extents[second], most // n) + 1):
                yield (first, n), (second, m)


def _fits(c: Contraction, b: Block, lane: int, loads: Sequence[float], target: Target) -> bool:
    """Whether sums, what they share, and what is made on the way are in registers.

    Loops of a tile run in the order of its axes, so an operand is kept from the outermost axis along which it stands still;
    all of it where it stands still along the innermost reduced axis, or its values for some steps are one load.
    """
    kept = 0
    loops = [*b.sizes, (lane, b.vectors)]
    last = c.reduced_axes[0] if c.reduced_axes else -1
    for o in c.operands:
        first = next((n for n, (axis, size) in enumerate(loops) if size > 1 and not o.moves(axis)), len(loops))
        if (last >= 0 and last != lane and not o.moves(last)) or (target.lane_multiply and not o.moves(lane)):
            first = 0
        kept += math.prod(size for axis, size in loops[first:] if o.moves(axis))
    beside = c.registers + sum(min(int(n), 2 * MOST_PIECES) // 2 for n in loads)      # a strided vector's pieces
    beside += FREE_REGISTERS if c.masks[lane] and not target.has("avx512f") else 0
    beside += 3 * (not target.has_fma) + (FREE_REGISTERS if target.in_order else 0)
    return b.sums <= target.vector_registers - FREE_REGISTERS and b.sums + kept + beside < target.vector_registers


def _cycles(c: Contraction, b: Block, lane: int, loads: Sequence[float], target: Target) -> float:
    """Cycles of the whole contraction: every piece of its tiles, for each step of the reduction."""
    lanes = target.lanes(c.bits)
    tiled = {axis for axis, _ in b.sizes}
    steps = math.prod(n for a, n in enumerate(c.extents) if a not in tiled and a != lane)
    steps *= math.prod(n for r, n in enumerate(c.reduced) if r + len(c.extents) != lane)
    width = -(-c.extent(lane) // lanes)
    total = 0.0
    for combination in itertools.product(*(pieces(c.extents[a], n) for a, n in b.sizes), pieces(width, b.vectors)):
        sizes = dict(zip((*(a for a, _ in b.sizes), lane), (n for n, _ in combination)))
        count = math.prod(n for _, n in combination)
        fetched, sums = _fetched(c, sizes, loads), math.prod(sizes.values())
        far = max((_far_lines(o, sizes, lane, target) for o in c.operands), default=0)
        total += count * max(sums * c.operations / target.fma_per_cycle, fetched / LOADS_PER_CYCLE, FMA_LATENCY,
                             far * target.line_bytes / target.l2_bytes_per_cycle)
    ragged = sum(c.extents[a] % n != 0 for a, n in b.sizes) + (width % b.vectors != 0)
    total *= steps * (1 + 0.04 * ragged)
    results = math.prod(c.extents)
    if c.is_reduced(lane):
        return total + results * (JOIN_CYCLES + b.vectors)
    return total + results * (1 / lanes if c.stored[lane] == 1 else GATHER)


def _fetched(c: Contraction, sizes: Mapping[int, int], loads: Sequence[float]) -> float:
    """Loads of one step of a tile; loads: what a vector, or one value, of each operand takes."""
    return sum(n * math.prod(size for axis, size in sizes.items() if o.moves(axis))
               for n, o in zip(loads, c.operands, strict=True))


def _far_lines(operand: Operand, sizes: Mapping[int, int], lane: int, target: Target) -> int:
    """Lines that a step reads one value of each, where so many, so far apart, are not in L1 together: the next step has to
    fetch them again (see rows_in_l1)."""
    if operand.moves(lane):
        return 0
    places = [(axis, n) for axis, n in sizes.items() if operand.moves(axis)]
    lines = math.prod(n for _, n in places)
    apart = [abs(operand.steps[axis] or 0) * operand.bits // 8 for axis, _ in places]
    return lines if apart and min(apart) >= target.line_bytes and lines > rows_in_l1(min(apart), target) else 0
