"""Primitives that change the shape of a loop nest: split, fuse, reorder."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import map_children
from toolchain.te.create import fresh
from toolchain.te.expr import Const, IndexLike, Var, compare, index, variables
from toolchain.te.loop_ir import For, ForKind, If, PrimFunc, Stmt, Update, leaves, loops
from toolchain.te.primitives.loops import (
    loop_at,
    names,
    path_to_loop,
    perfect_chain,
    rebuild_chain,
    replace_at,
)
from toolchain.te.substitute import substitute


def split(func: PrimFunc, loop: str, factor: int) -> tuple[PrimFunc, tuple[Var, Var]]:
    """Split `loop` in two; the inner loop runs `factor` times.

        for i in range(n):           for i_0 in range(ceildiv(n, factor)):
          f(i)                 ->      for i_1 in range(factor):
                                         if i_0*factor + i_1 < n: f(i_0*factor + i_1)

    The guard is left out when `factor` divides n; `partition` peels it later. A factor above n pads the loop: whole vectors
    over few elements, all guarded. The inner loop keeps a loop kind already set.
    Called: split in TVM and Halide (TailStrategy::GuardWithIf), divide_loop in Exo.
    Raises ScheduleError: there is no such loop, or factor is below 1.
    """
    path = path_to_loop(func, loop, "split")
    old = loop_at(path)
    if factor < 1:
        raise ScheduleError(f"split: factor {factor} of loop '{loop}'", fix="choose a factor of 1 or more")
    taken = names(func)
    outer, inner = Var(fresh(f"{loop}_0", taken), -(-old.extent // factor)), Var(fresh(f"{loop}_1", taken), factor)
    i = index(outer * factor + inner)
    body = substitute(old.body, {old.var: i})
    guard = compare("<", i, old.extent)
    if not isinstance(guard, Const):
        body = If(guard, body)
    new = For(outer, For(inner, body, old.kind, old.thread, old.pragmas))
    return replace_at(func, path, new), (outer, inner)


def fuse(func: PrimFunc, outer: str, inner: str) -> tuple[PrimFunc, tuple[Var]]:
    """Make one loop of two, the second directly inside the first.

        for i in range(n):           for i_j in range(n*m):
          for j in range(m):   ->      f(i_j // m, i_j % m)
            f(i, j)

    Called: fuse in TVM and Halide, fuse_loops in MLIR (affine.coalesce).
    Raises ScheduleError: no such loop, something stands between them, one is a reduction loop and the other is not, or a
    loop already has a kind (fuse first, mark after).
    """
    path = path_to_loop(func, outer, "fuse")
    path_to_loop(func, inner, "fuse")
    a = loop_at(path)
    chain, guards, body = perfect_chain(a, {inner})
    if [loop.var.name for loop in chain] != [outer, inner]:
        raise ScheduleError(f"fuse: '{inner}' is not directly inside '{outer}'", fix="reorder them next to each other first")
    b = chain[1]
    if a.kind is not ForKind.SERIAL or b.kind is not ForKind.SERIAL:
        raise ScheduleError(f"fuse: '{outer}' is {a.kind}, '{inner}' is {b.kind}", fix="mark the fused loop instead")
    for leaf in leaves(body):
        if isinstance(leaf, Update):
            used = {v for i in leaf.index for v in variables(i)}
            if min(a.extent, b.extent) > 1 and (a.var in used) != (b.var in used):
                raise ScheduleError(f"fuse: only one of '{outer}', '{inner}' reduces into {leaf.tensor.name}")
    fused = Var(fresh(f"{outer}_{inner}", names(func)), a.extent * b.extent)
    mapping: dict[Var, IndexLike] = {a.var: index(fused // b.extent), b.var: index(fused % b.extent)}
    for guard in reversed(guards):
        body = If(guard, body)
    new = For(fused, substitute(body, mapping))
    return replace_at(func, path, new), (fused,)


def reorder(func: PrimFunc, *order: str) -> tuple[PrimFunc, tuple[()]]:
    """Put the named loops in this order, outermost first, into the places they occupy together; other loops stay.

        for i: for j: for k: f       reorder(k, i)  ->       for k: for j: for i: f

    Guards move with the loops: each ends just inside the innermost loop it depends on. Reduction loops may go anywhere,
    an Update's initialisation is placed later. Called: reorder in TVM and Halide, reorder_loops in Exo.
    Raises ScheduleError: no such loop, a loop named twice, or other statements stand between the loops.
    """
    if len(set(order)) != len(order):
        raise ScheduleError(f"reorder: a loop is named twice: {', '.join(order)}")
    if not order:
        return func, ()
    path = min((path_to_loop(func, name, "reorder") for name in order), key=len)
    chain, guards, body = perfect_chain(loop_at(path), set(order))
    found = [loop.var.name for loop in chain]
    if missing := [name for name in order if name not in found]:
        raise ScheduleError(
            f"reorder: '{missing[0]}' is not in one perfect nest with '{found[0]}'",
            fix=f"loops that can be reordered with it: {', '.join(found)}",
        )
    by_name = {loop.var.name: loop for loop in chain}
    wanted = iter(order)
    chain = [by_name[next(wanted)] if loop.var.name in order else loop for loop in chain]
    return replace_at(func, path, rebuild_chain(chain, guards, body)), ()


def rename_loops(stmt: Stmt, taken: set[str]) -> Stmt:
    """A copy of `stmt` whose loops have fresh names and Vars, to stand beside the original."""
    mapping = {loop.var: Var(fresh(loop.var.name, taken), loop.extent) for loop in loops(stmt)}

    def visit(s: Stmt) -> Stmt:
        if isinstance(s, For):
            return replace(s, var=mapping[s.var], body=visit(s.body))
        return map_children(s, lambda c: visit(c) if isinstance(c, Stmt) else c)

    return substitute(visit(stmt), mapping) if mapping else stmt

