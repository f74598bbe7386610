"""factor_lanes: a reduction over a vectorized loop gets one accumulator per lane, joined once at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from toolchain.core import dtype as dtypes
from toolchain.core.layout import TensorType
from toolchain.core.rewrite import map_children, rewrite
from toolchain.core.target import Target
from toolchain.te.create import fresh
from toolchain.te.expr import Const, Load, Var, const, variables
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
)
from toolchain.te.lower.shared import without
from toolchain.te.primitives.loops import rebuild_chain
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Placeholder, Tensor

IDENTITY = {"sum": lambda dtype: 0, "prod": lambda dtype: 1, "max": dtypes.lowest, "min": dtypes.highest}


def factor_lanes(func: PrimFunc, target: Target) -> PrimFunc:
    """Accumulate in lanes where a vectorized loop is a reduction inside of another one.

        for k:                                          for k: for l in vectorized(16):
          for l in vectorized(16):               ->       S_lanes[l] (+)= A[i, 16*k + l]   init 0
            S[i] (+)= A[i, 16*k + l]  init 0            for l in vectorized(16): S[i] (+)= S_lanes[l]   init 0

    Without it each step of `k` would reduce a vector to a scalar. Non-reduction loops in between get an accumulator each.

    A guard of the lanes alone stands around the join too: place_init starts no accumulator that it excludes.

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
        after: list[Stmt] = []
        for path in _paths(s):
            update = path[-1]
            assert isinstance(update, Update)
            lane = _lane_to_factor(path, update)
            if lane is not None:
                new, join = self.factor(path, update, lane)
                s = _swap(s, update, new)
                after.append(join)
        return block(map_children(s, lambda n: self.stmt(n) if isinstance(n, Stmt) else n), *after)

    def factor(self, path: tuple[Stmt, ...], update: Update, lane: For) -> tuple[Update, Stmt]:
        """The update of the lanes' accumulators, and the nest that joins them."""
        where = {v for i in update.index for v in variables(i)}
        spatial = [s for s in path if isinstance(s, For) and s.var in where]
        shape = (*(s.extent for s in spatial), lane.extent)
        dtype = update.tensor.dtype
        lanes = Tensor(fresh(f"{update.tensor.name}_lanes", self.tensor_names), shape, dtype, Placeholder())
        self.buffers[lanes] = Buffer(TensorType.plain(shape, dtype), "local")
        identity = const(IDENTITY[update.combiner](dtype), dtype)
        at = lanes[(*(s.var for s in spatial), lane.var)].index
        accumulate = Update(lanes, at, update.combiner, update.value, identity)
        renamed = {s.var: Var(fresh(f"{s.var.name}_join", self.loop_names), s.extent) for s in (*spatial, lane)}
        dropped = {s.var for s in path if isinstance(s, For) and s not in spatial and s is not lane}
        guards = (without(s.condition, dropped) for s in path if isinstance(s, If))
        join: Stmt = replace(update, value=Load(lanes, at))
        join = rebuild_chain(
            [*spatial, replace(lane, body=join)], [g for g in guards if not isinstance(g, Const)], join)
        join = substitute(rewrite(join, lambda n: replace(n, var=renamed[n.var]) if isinstance(n, For) else None), renamed)
        return accumulate, join


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
    """The vectorized reduction loop of a path whose first loop is the outermost of several reduction loops."""
    reductions = [s for s in path if isinstance(s, For) and is_reduction_loop(s, update)]
    if len(reductions) < 2 or path[0] is not reductions[0] or update.combiner not in IDENTITY:
        return None
    pieces = [s for s in leaves(path[0]) if not isinstance(s, Evaluate) and s.tensor is update.tensor]
    if update.init is not None and len(pieces) > 1:
        return None                             # another piece would need the start value before the join gives it
    return next((s for s in reductions if s.kind is ForKind.VECTORIZED), None)


__all__ = ["factor_lanes"]
