"""factor_lanes: a reduction over a vectorized loop gets one accumulator per lane, joined once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from toolchain.core.layout import TensorType
from toolchain.core.rewrite import map_children, rewrite
from toolchain.core.target import Target
from toolchain.te.combiner import Combiner, combine, identity
from toolchain.te.create import fresh
from toolchain.te.expr import Const, Expr, Index, Load, Var, index, indices, join, variables
from toolchain.te.loop_ir import (
    Block,
    Buffer,
    Evaluate,
    For,
    ForKind,
    If,
    PrimFunc,
    Stmt,
    Update,
    block,
    is_reduction_loop,
    leaves,
    loops,
    stores,
)
from toolchain.te.lower.shared import without
from toolchain.te.primitives.loops import rebuild_chain
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Placeholder, Tensor


def factor_lanes(func: PrimFunc, target: Target) -> PrimFunc:
    """Accumulate in lanes where a vectorized loop is a reduction inside of another one.

        for k:                                          for k: for l in vectorized(16):
          for l in vectorized(16):               ->       S_lanes[l] (+)= A[i, 16*k + l]   init 0
            S[i] (+)= A[i, 16*k + l]  init 0            for l in vectorized(16): S[i] (+)= S_lanes[l]   init 0

    Without it each step of `k` would reduce a vector to a scalar. Non-reduction loops in between get an accumulator each.

    A guard of the lanes alone stands around the join too: place_init starts no accumulator that it excludes.

    A combiner that a user defined joins the lanes itself, by halves in the same order, also where the vectorized loop is the
    only one: there is no instruction to leave it to.

        for l in vectorized(4): (V, P) = argmax((V, P), (A[l], l))  init (-inf, -1)           ->

          for l in vectorized(4): (V_lanes[l], P_lanes[l]) = (-inf, -1)
          for l in vectorized(4): (V_lanes[l], P_lanes[l]) = argmax((V_lanes[l], P_lanes[l]), (A[l], l))
          for l in vectorized(2): (V_lanes[l], P_lanes[l]) = (select(V_lanes[l] >= V_lanes[l + 2], ...), ...)
          (V_lanes[0], P_lanes[0]) = (select(V_lanes[0] >= V_lanes[1], ...), ...)
          (V, P) = argmax((V, P), (V_lanes[0], P_lanes[0]))  init (-inf, -1)

    Needs: nothing done yet. Keeps: values up to the order of the reduction, which becomes: per lane over `k`, then the lanes
    by halves (see vectorize_loops).
    """
    if not any(_reduces_over_lanes(path) for path in _paths(func.body)):
        return func
    factor = _Factor(func)
    body = factor.stmt(func.body)
    return func if body is func.body else replace(func, body=body, buffers={**func.buffers, **factor.buffers})


class _Factor:
    def __init__(self, func: PrimFunc) -> None:
        self.loop_names = {loop.var.name for loop in loops(func.body)}
        self.tensor_names = {t.name for t in func.buffers}
        self.buffers: dict[Tensor, Buffer] = {}

    def stmt(self, s: Stmt) -> Stmt:
        if not isinstance(s, For):
            return map_children(s, lambda n: self.stmt(n) if isinstance(n, Stmt) else n)
        before: list[Stmt] = []
        after: list[Stmt] = []
        for path in _paths(s):
            update = path[-1]
            assert isinstance(update, Update)
            lane = _lane_to_factor(path, update)
            if lane is not None:
                start, new, join = self.factor(path, update, lane)
                s = _swap(s, update, new)
                before += start
                after.append(join)
        return block(*before, map_children(s, lambda n: self.stmt(n) if isinstance(n, Stmt) else n), *after)

    def factor(self, path: tuple[Stmt, ...], update: Update, lane: For) -> tuple[list[Stmt], Update, Stmt]:
        """What starts the lanes' accumulators, the update of them, and the nest that joins them."""
        where = {v for i in update.index for v in variables(i)}
        spatial = [s for s in path if isinstance(s, For) and s.var in where]
        shape = (*(s.extent for s in spatial), lane.extent)
        lanes = tuple(self.accumulator(t, shape) for t in update.tensors)
        at = indices((*(s.var for s in spatial), lane.var))
        dropped = {s.var for s in path if isinstance(s, For) and s not in spatial and s is not lane}
        guards = [s.condition for s in path if isinstance(s, If)]
        none = identity(update.combiner, update.tensor.dtype)
        accumulate = Update(lanes, at, update.combiner, update.value, none)
        held = join([Load(t, at) for t in lanes])
        if isinstance(update.combiner, str):
            joined = self.nest([*spatial, lane], [without(g, dropped) for g in guards], replace(update, value=held))
            return [], accumulate, joined
        start = self.nest([*spatial, lane], [], stores(lanes, at, none))
        steps = [*self.halves(update.combiner, lanes, at[:-1], lane.extent), self.last(update, lanes, at[:-1])]
        joined = self.nest(spatial, [without(g, {*dropped, lane.var}) for g in guards], block(*steps))
        return [start], replace(accumulate, init=None), joined

    def accumulator(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        lanes = Tensor(fresh(f"{tensor.name}_lanes", self.tensor_names), shape, tensor.dtype, Placeholder())
        self.buffers[lanes] = Buffer(TensorType.plain(shape, tensor.dtype), "local")
        return lanes

    def halves(
        self, combiner: Combiner, lanes: tuple[Tensor, ...], at: tuple[Index, ...], extent: int
    ) -> Iterator[Stmt]:
        """The upper half of the lanes joins the lower half until one is left; of an odd number the middle waits."""
        while extent > 1:
            pairs, half = extent // 2, (extent + 1) // 2
            lane = Var(fresh(f"half_{pairs}", self.loop_names), pairs)
            low, high = (*at, index(lane)), (*at, index(lane + half))
            both = (join([Load(t, place) for t in lanes]) for place in (low, high))
            joined = stores(lanes, low, combine(combiner, *both))
            yield joined if pairs == 1 else For(lane, joined, ForKind.VECTORIZED)
            extent = half

    def last(self, update: Update, lanes: tuple[Tensor, ...], at: tuple[Index, ...]) -> Update:
        return replace(update, value=join([Load(t, (*at, index(0))) for t in lanes]))

    def nest(self, around: Sequence[For], guards: Sequence[Expr], body: Stmt) -> Stmt:
        """A copy of these loops, with fresh names, around `body`; guards that are left stand as far inside as they need."""
        renamed = {s.var: Var(fresh(f"{s.var.name}_join", self.loop_names), s.extent) for s in around}
        stmt = rebuild_chain(around, [g for g in guards if not isinstance(g, Const)], body)
        stmt = rewrite(stmt, lambda n: replace(n, var=renamed.get(n.var, n.var)) if isinstance(n, For) else None)
        return substitute(stmt, renamed)  # type: ignore[no-any-return]


def _swap(s: For, old: Update, new: Update) -> For:
    return rewrite(s, lambda n: new if n is old else None)  # type: ignore[no-any-return]


def _paths(stmt: Stmt) -> Iterator[tuple[Stmt, ...]]:
    """The way from `stmt` to each Update below it."""
    match stmt:
        case Update():
            yield (stmt,)
        case Block(stmts):
            for s in stmts:
                yield from _paths(s)
        case For(body=body) | If(body=body):
            for path in _paths(body):
                yield (stmt, *path)


def _reduces_over_lanes(path: tuple[Stmt, ...]) -> bool:
    update = path[-1]
    assert isinstance(update, Update)
    lanes = [s for s in path if isinstance(s, For) and s.kind is ForKind.VECTORIZED]
    return any(is_reduction_loop(s, update) for s in lanes)


def _lane_to_factor(path: tuple[Stmt, ...], update: Update) -> For | None:
    """The vectorized reduction loop of a path that starts with the outermost reduction loop: when there are several (a
    combiner with a name), or always (a user's)."""
    reductions = [s for s in path if isinstance(s, For) and is_reduction_loop(s, update)]
    fewest = 2 if isinstance(update.combiner, str) else 1
    if len(reductions) < fewest or path[0] is not reductions[0]:
        return None
    if any(isinstance(s, For) and s.kind is ForKind.PARALLEL for s in path):
        return None                             # registers of a parallel loop, which would have to outlive it
    pieces = [s for s in leaves(path[0]) if not isinstance(s, Evaluate) and update.tensor in s.tensors]
    if update.init is not None and len(pieces) > 1:
        return None                             # another piece would need the start value before the join gives it
    return next((s for s in reductions if s.kind is ForKind.VECTORIZED), None)


__all__ = ["factor_lanes"]
