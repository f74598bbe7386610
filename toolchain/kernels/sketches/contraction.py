"""Contractions without a template: multi-level tiling of any reduction whose operands are read again (kernels/reuse.py).

    for outer tiles (the cores share one loop):          what the innermost loop reads again stays in the nearest caches
        for the reduced axes, the last of them a few steps at a time:
            for tile (unrolled): sums[tile, vector] += term
        store what is fused behind

These are Ansor's rules (Zheng et al., OSDI 2020, table 1): multi-level tiling with fusion of the consumer, a register tile
in place of its cache write, a copy in another layout of an operand whose elements lie apart, and reduction factorization
where lanes run along a reduced axis:

    C.rf[l, i, j] = sum_ko A[i, ko*L + l] * B[j, ko*L + l];     C[i, j] = sum_l C.rf[l, i, j]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from toolchain import te
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.kernels.reuse import Block, Contraction, blocks, contraction_of, lane_axes
from toolchain.kernels.sketches.asks import Asks
from toolchain.kernels.sketches.pointwise import PARALLEL_ELEMENTS, pointwise_nest
from toolchain.kernels.sketches.stages import (
    definitions,
    is_reduction,
    layout_of,
    peel,
    readers,
    share_more,
)
from toolchain.kernels.tiling import ask_unroll
from toolchain.te.expr import Load, distinct
from toolchain.te.tensor import Tensor
from toolchain.te.tune.choices import Choices

UNTAGGED = frozenset(("", "reduce"))
UNROLLED_STEPS = 4

T = TypeVar("T")


class _Numbered(Choices):
    """Questions of one of several contractions: each has its own, "tile" and "tile.1"."""

    def __init__(self, choices: Choices, number: int) -> None:
        super().__init__()
        self._choices, self._number = choices, number

    def one_of(self, name: str, options: Sequence[T], default: T, costs: Sequence[float] = ()) -> T:
        return self._choices.one_of(f"{name}.{self._number}" if self._number else name, options, default, costs)


def contractions(s: te.Schedule, anchors: Sequence[Tensor], target: Target) -> dict[Tensor, Contraction]:
    """The reductions of a schedule, if each is an untagged contraction with an axis to run vectors along; else none."""
    found: dict[Tensor, Contraction] = {}
    for anchor in anchors:
        definition = s.func.stages[anchor]
        loads = [n for n in distinct(definition.values[0]) if isinstance(n, Load)]
        made = contraction_of(definition, [(n, layout_of(s, n.tensor)) for n in loads])
        plain = definition.tag in UNTAGGED and layout_of(s, anchor).is_row_major
        if not plain or made is None or not lane_axes(made, target):
            return {}
        found[anchor] = made
    return found


def contract(s: te.Schedule, found: dict[Tensor, Contraction], target: Target, choices: Choices) -> None:
    """Each contraction in a nest with what is fused behind it; what is left over in nests of its own."""
    behind = {anchor: _consumer(s, anchor) for anchor in found}
    rest = [t for t in definitions(s) if t not in found and t not in behind.values()]
    for n, (anchor, c) in enumerate(found.items()):
        _nest(s, anchor, behind[anchor], c, target, _Numbered(choices, n))
    for stage in rest:
        pointwise_nest(s, stage, target, Asks(Choices()))


def _consumer(s: te.Schedule, anchor: Tensor) -> Tensor | None:
    """The stage that can store a tile of the sums: it alone reads them, each once, its axes theirs in some order."""
    users = readers(s, anchor)
    if anchor in s.func.params or len(users) != 1 or is_reduction(s.func.stages[users[0]]):
        return None
    definition = s.func.stages[users[0]]
    places = {n.index for n in distinct(definition.body) if isinstance(n, Load) and n.tensor is anchor}
    axes = [_axis(i, definition.axis) for i in next(iter(places))]
    known = [a for a in axes if a is not None]
    whole = len(places) == 1 and len(known) == len(axes) == len(set(known)) and len(definition.values) == 1
    others = [a for a in definition.axis if a not in known]
    fits = whole and all(a.extent == n for a, n in zip(known, anchor.shape, strict=True))
    return users[0] if fits and all(a.extent == 1 for a in others) else None


def _axis(place: te.Expr, axes: Sequence[te.Var]) -> te.Var | None:
    return next((a for a in axes if te.index(place) == te.index(a)), None)


def _nest(
    s: te.Schedule, anchor: Tensor, consumer: Tensor | None, c: Contraction, target: Target, choices: Choices,
) -> None:
    """One contraction: lanes, register tile, loops around it."""
    lane, packed, block = _ask_tile(c, target, choices)
    lanes = target.lanes(c.bits)
    width = block.vectors * lanes
    acc, out = _sums(s, anchor, consumer, c, lane, width)
    last = _ask_last(c, choices)
    room = packed and _pack(s, acc, c, lane, width, last, target)
    ragged: list[te.Var] = []
    outer, inner = _split_result(s, anchor, out, lane, block, width, ragged)
    if room:                                                 # not peeled: copies have room, stores are masked
        ragged = [loop for loop in ragged if outer[loop] != lane]
    order, shared = _outer_order(c, outer, block, lane, width, target, choices)
    store = [inner[axis] for axis, _ in block.sizes]
    if not c.is_reduced(lane):
        across, along = s[out].split(inner[lane], factor=lanes)
        store += [across, along]
    order = [shared, *(loop for loop in order if loop is not shared)]
    s[out].reorder(*order, *store)
    shared, order = share_more(s, out, shared, ragged, order, target.cores)
    _at_tile(s, anchor, acc, out, order[-1], c.is_reduced(lane), lanes, block, store)
    _tile(s, acc, c, lane, last, block, lanes, choices)
    if c.iterations >= PARALLEL_ELEMENTS:
        s[out].parallel(shared)
    peel(s, out, ragged)


def _ask_tile(c: Contraction, target: Target, choices: Choices) -> tuple[int, bool, Block]:
    """(the lanes' axis, whether operands are copied, the register tile)."""
    axes = lane_axes(c, target)
    costs = {a: blocks(c, a, True, target)[0].cost for a in axes}
    ranked = sorted(axes, key=costs.__getitem__)
    lane = ranked[[c.name(a) for a in ranked].index(
        choices.one_of("lanes", [c.name(a) for a in ranked], c.name(ranked[0]), [costs[a] for a in ranked]))]
    packed = False
    if any(c.packable(o, lane) for o in c.operands):
        packed = choices.one_of("pack", (False, True), any(c.wants_copy(o, lane, target) for o in c.operands))
    tiles = blocks(c, lane, packed, target)
    return lane, packed, choices.one_of("tile", tiles, tiles[0], [t.cost for t in tiles])


def _sums(
    s: te.Schedule, anchor: Tensor, consumer: Tensor | None, c: Contraction, lane: int, width: int,
) -> tuple[Tensor, Tensor]:
    """(the stage whose tile is in registers, the stage that stores results)."""
    if c.is_reduced(lane):
        _, lanes = s[anchor].split(s[anchor].op.reduce_axis[lane - len(c.extents)], factor=width)
        return s.rfactor(anchor, lanes), consumer or anchor
    if consumer is None:
        return s.cache_write(anchor, "local"), anchor
    return anchor, consumer


def _split_result(
    s: te.Schedule, anchor: Tensor, out: Tensor, lane: int, block: Block, width: int, ragged: list[te.Var],
) -> tuple[dict[te.Var, int], dict[int, te.Var]]:
    """Split what stores results by the tile: (outer loops and the axis each belongs to, -1: none; inner loops by axis)."""
    sizes = {**dict(block.sizes), lane: width}
    own = {a: d for d, a in enumerate(_axes_behind(s, anchor, out))}
    outer, inner = dict[te.Var, int](), dict[int, te.Var]()
    for axis in s[out].op.axis:
        d = own.get(axis, -1)
        if d in sizes:
            loop, inner[d] = s[out].split(axis, factor=sizes[d])
            if axis.extent % sizes[d]:
                ragged.append(loop)
            outer[loop] = d
        else:
            outer[axis] = d
    return outer, inner


def _axes_behind(s: te.Schedule, anchor: Tensor, out: Tensor) -> list[te.Var]:
    """The loops of a stage that are a contraction's axes, in the contraction's order."""
    axes = s[out].op.axis
    if out is anchor:
        return list(axes)
    load = next(n for n in distinct(s.func.stages[out].body) if isinstance(n, Load) and n.tensor is anchor)
    found = [_axis(i, s.func.stages[out].axis) for i in load.index]
    return [axes[s.func.stages[out].axis.index(a)] for a in found if a is not None]


def _outer_order(
    c: Contraction, outer: dict[te.Var, int], block: Block, lane: int, width: int, target: Target, choices: Choices,
) -> tuple[list[te.Var], te.Var]:
    """(loops around a tile, the one that cores share).

    What the innermost one of them does not move along is read again and again: the most bytes a tile has of that decide,
    and so on outwards.
    """
    sizes = {**dict(block.sizes), **({} if c.is_reduced(lane) else {lane: width})}
    steps = [n for r, n in enumerate(c.reduced)]

    def near(axis: int) -> int:
        """Bytes of operands that stand still along an axis."""
        still = [o for o in c.operands if axis < 0 or not o.moves(axis)]
        return sum(o.bits // 8 * math.prod(n for a, n in sizes.items() if o.moves(a))
                   * math.prod(n for r, n in enumerate(steps) if o.moves(len(c.extents) + r)) for o in still)
    loops = sorted(outer, key=lambda loop: (loop.extent > 1, near(outer[loop])))
    wide = {c.name(outer[loop]): loop for loop in loops if loop.extent > 1 and outer[loop] >= 0}
    if len(wide) > 1:
        last = wide[choices.one_of("inner", tuple(sorted(wide)), next(reversed(wide)))]
        loops = [*(loop for loop in loops if loop is not last), last]
    if not wide:
        return loops, loops[0]
    enough = 2 * target.cores
    widest = max(wide, key=lambda name: (min(wide[name].extent, enough), -loops.index(wide[name])))
    return loops, wide[choices.one_of("parallel", tuple(sorted(wide)), widest)]


def _at_tile(
    s: te.Schedule, anchor: Tensor, acc: Tensor, out: Tensor, loop: te.Var, reduced: bool, lanes: int, block: Block,
    store: Sequence[te.Var],
) -> None:
    """Sums at the innermost outer loop; and what is behind them: stored in vectors, or lanes joined first."""
    joined = store
    if reduced and out is not anchor:
        s[anchor].compute_at(s[out], loop)
        s[anchor].set_scope("local")
        joined = s[anchor].op.axis
        for axis in store:
            s[out].unroll(axis)
    s[acc].compute_at(s[out], loop)
    s[acc].set_scope("local")
    if not reduced:
        for axis in store[:-1]:
            s[out].unroll(axis)
        s[out].vectorize(store[-1])
        return
    for axis in joined:
        s[anchor].unroll(axis)
    (lane,) = s[anchor].op.reduce_axis
    if block.vectors > 1:
        several, lane = s[anchor].split(lane, factor=lanes)
        s[anchor].unroll(several)
    s[anchor].vectorize(lane)


def _tile(
    s: te.Schedule, acc: Tensor, c: Contraction, lane: int, last: int, block: Block, lanes: int, choices: Choices,
) -> None:
    """The register tile: the last of the reduced axes a few steps at a time, the rest of it unrolled."""
    reduced = c.is_reduced(lane)
    axes, shift = s[acc].op.axis, 1 if reduced else 0
    at = 0 if reduced else lane
    across, along = s[acc].split(axes[at], factor=lanes)
    places = [axes[axis + shift] for axis, _ in block.sizes]
    others = [a for d, a in enumerate(axes) if d != at and a not in places]
    steps = list(s[acc].op.reduce_axis)
    around, k = [r for n, r in enumerate(steps) if n != last - len(c.extents)], steps[last - len(c.extents)]
    simple = len(c.operands) == 2 and c.operations <= 4      # LLVM makes other terms early, and spills
    ko, ki = s[acc].split(k, factor=ask_unroll(choices, k.extent, UNROLLED_STEPS if simple else 1, block.sums))
    s[acc].reorder(*around, ko, ki, *others, *places, across, along)
    rank = len(axes)
    s.set_layout(acc, Layout(default_axes(rank), (*((d, 0) for d in range(rank) if d != at), (at, 0), (at, lanes)),
                             ((0, 0),) * rank))
    for axis in (ki, *others, *places, across):
        s[acc].unroll(axis)
    s[acc].vectorize(along)
    if reduced and c.extent(lane) % (lanes * block.vectors):
        s[acc].partition(ko if last == lane else steps[lane - len(c.extents)])


def _ask_last(c: Contraction, choices: Choices) -> int:
    """The reduced axis whose steps follow each other."""
    wide = c.reduced_axes
    if len(wide) < 2:
        return wide[0] if wide else len(c.extents)
    names = {c.name(axis): axis for axis in wide}
    return names[choices.one_of("last", tuple(sorted(names)), c.name(wide[0]))]


def _pack(s: te.Schedule, acc: Tensor, c: Contraction, lane: int, width: int, last: int, target: Target) -> bool:
    """Copy operands so that a tile's vectors follow each other, step by step: panels as wide as the tile. Whether all that
    moves along the lanes' axis is copied now.

        B_global[panel, k, j] = B[j, k],  j in width:  laid out once, read by every tile
    """
    definition = s.func.stages[acc]
    axes = (*definition.axis, *definition.reduce_axis)
    for load in {n.tensor: n for n in distinct(definition.values[0]) if isinstance(n, Load)}.values():
        places = [_axis(i, axes) for i in load.index]
        ours = [axes.index(a) for a in places if a is not None]
        if len(ours) < len(places) or lane not in ours or not c.packs(load.tensor.name, lane):
            continue
        dim = ours.index(lane)
        steps = sorted((d for d, a in enumerate(ours) if c.is_reduced(a)), key=lambda d: (ours[d] == last, ours[d]))
        around = [d for d, a in enumerate(ours) if d != dim and not c.is_reduced(a)]
        copy = s.cache_read(load.tensor, "global", acc)
        rank = len(ours)
        s.set_layout(copy, Layout(default_axes(rank), (*((d, 0) for d in (*around, dim, *steps)), (dim, width)),
                                  ((0, 0),) * rank))
        pointwise_nest(s, copy, target, Asks(Choices()))
    return all(c.packable(o, lane) for o in c.operands if o.moves(lane))
