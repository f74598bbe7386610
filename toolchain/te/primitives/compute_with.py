"""compute_with: two loops, one behind the other, become one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.te.expr import Dynamic, Index, IndexLike, Load, Var, distinct, index, variables
from toolchain.te.loop_ir import (
    Block,
    For,
    ForKind,
    If,
    PrimFunc,
    Stmt,
    Store,
    Update,
    block,
    leaves,
    loops,
    reads,
    walk_statements,
)
from toolchain.te.primitives.loops import Path, loop_at, path_to_loop, replace_at
from toolchain.te.spans import Span, span
from toolchain.te.substitute import substitute


def compute_with(func: PrimFunc, loop: str, host: str) -> tuple[PrimFunc, tuple[()]]:
    """Run each iteration of `loop` behind the same iteration of `host`, the loop before it.

        for i in range(n): P[i] = f(i)                     for i in range(n):
        for k in range(n): S[0] += P[k]  init 0    ->        P[i] = f(i)
                                                             S[0] += P[i]  init 0

    What `host` stores is read while it is near. Loops of one iteration around either are no obstacle; those around `loop`
    vanish. Each iteration may read, of what `host` stores, only what that iteration of `host` stored.
    Called: compute_with in Halide, fuse in Exo, affine loop fusion in MLIR.
    Raises ScheduleError: no such loop, not one directly behind the other, loops of unequal extent or with a kind, and an
    iteration that reads what another stores.
    """
    behind, before = path_to_loop(func, loop, "compute_with"), path_to_loop(func, host, "compute_with")
    first, second = loop_at(before), loop_at(behind)
    at = _block_of_both(before, behind)
    if at is None:
        raise ScheduleError(f"compute_with: '{loop}' is not directly behind '{host}'")
    if first.extent != second.extent or not first.kind == second.kind == ForKind.SERIAL:
        raise ScheduleError(f"compute_with: '{host}' has {first.extent} iterations ({first.kind}), '{loop}' has "
                            f"{second.extent} ({second.kind})", fix="split both alike, and mark the loop afterwards")
    mapping: dict[Var, IndexLike] = {second.var: index(first.var)}
    mapping |= {s.var: Index() for s in behind[at + 1:-1] if isinstance(s, For)}
    body = substitute(second.body, mapping)
    _refuse_conflict(first, body, loop)
    nest: Stmt = replace(first, body=block(first.body, body))
    for s in reversed(before[at + 1:-1]):
        assert isinstance(s, For)
        nest = replace(s, body=nest)
    around = before[at]
    assert isinstance(around, Block)
    kept = [nest if s is before[at + 1] else s for s in around.stmts if s is not behind[at + 1]]
    return replace_at(func, before[:at + 1], block(*kept)), ()


def _block_of_both(before: Path, behind: Path) -> int | None:
    """Where in both paths the block stands that holds the two nests, one behind the other, both without other statements
    down to the loop; None: they do not stand so."""
    at = sum(1 for a, b in zip(before, behind) if a is b) - 1
    around = before[at] if at >= 0 else None
    if not isinstance(around, Block) or len(before) == at + 1 or len(behind) == at + 1:
        return None
    places = [next(n for n, s in enumerate(around.stmts) if s is path[at + 1]) for path in (before, behind)]
    single = all(isinstance(s, For) and s.extent == 1 for path in (before, behind) for s in path[at + 1:-1])
    return at if single and places[1] == places[0] + 1 else None


def _refuse_conflict(host: For, body: Stmt, loop: str) -> None:
    """Raises ScheduleError unless `body`, behind that of `host`, reads what this iteration stores and disturbs nothing."""
    made = [leaf for leaf in leaves(host.body) if isinstance(leaf, Store | Update)]
    stored = {t for leaf in made for t in leaf.tensors}
    touched = stored | {load.tensor for load in _loads(host.body)}
    for leaf in leaves(body):
        if not isinstance(leaf, Store | Update):
            continue
        if both := sorted(t.name for t in touched.intersection(leaf.tensors)):
            raise ScheduleError(f"compute_with: '{loop}' stores to {both[0]}, which '{host.var.name}' uses")
        if isinstance(leaf, Update) and leaf.init is not None and reads(leaf.init, *stored):
            raise ScheduleError(f"compute_with: {leaf.tensor.name} starts from what '{host.var.name}' stores")
    boxes = {t: _box_stored(host, [leaf for leaf in made if t in leaf.tensors]) for t in stored}
    inner = {s.var for s in loops(body)}
    for load in _loads(body):
        if load.tensor not in stored:
            continue
        box = boxes[load.tensor]
        read = [span(index(i), inner) for i in load.index]
        if box is None or not all(a.relation(b) == "inside" for a, b in zip(read, box, strict=True)):
            raise ScheduleError(f"compute_with: '{loop}' reads {load.tensor.name} where another iteration of "
                                f"'{host.var.name}' may store")


def _box_stored(host: For, made: list[Store | Update]) -> list[Span] | None:
    """What an iteration of `host` stores to a tensor, if that is one statement and no other iteration stores there."""
    if len(made) != 1 or isinstance(made[0], Update):
        return None
    inner = {s.var for s in loops(host.body)}
    box = [span(index(i), inner) for i in made[0].index]
    if any(isinstance(n, Dynamic) for i in made[0].index for n in distinct(i)):
        return None
    return box if host.extent == 1 or any(_steps_over(b, host.var) for b in box) else None


def _steps_over(part: Span, var: Var) -> bool:
    """Whether the next iteration of a loop begins behind where this one ends."""
    step = part.outside.coefficient(var)
    rest = index(part.outside - var * step)
    return abs(step) > part.high - part.low and var not in variables(rest)


def _loads(stmt: Stmt) -> Iterator[Load]:
    for s in walk_statements(stmt):
        if isinstance(s, Store | Update | If):
            yield from (n for n in distinct(s.condition if isinstance(s, If) else s) if isinstance(n, Load))


__all__ = ["compute_with"]
