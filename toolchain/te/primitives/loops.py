"""What the primitives share: finding a loop by name, and putting something else in its place.

A path lists the statements from the root of a function to the statement meant; only those are rebuilt by `put`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from toolchain.core.errors import ScheduleError
from toolchain.te.expr import Expr, variables
from toolchain.te.loop_ir import (
    Block,
    For,
    ForKind,
    If,
    PrimFunc,
    Stmt,
    Store,
    Together,
    Update,
    block,
    is_reduction_loop,
    leaves,
    loops,
    statements,
)
from toolchain.te.tensor import Compute, Tensor

Path: TypeAlias = tuple[Stmt, ...]


def path_to(stmt: Stmt, wanted: Callable[[Stmt], bool]) -> Path | None:
    """The statements from `stmt` down to the first one that is wanted; None when there is none."""
    if wanted(stmt):
        return (stmt,)
    below: Sequence[Stmt] = ()
    if isinstance(stmt, Block):
        below = stmt.stmts
    elif isinstance(stmt, For | If):
        below = (stmt.body,)
    for s in below:
        if (path := path_to(s, wanted)) is not None:
            return (stmt, *path)
    return None


def path_to_loop(func: PrimFunc, name: str, by: str) -> Path:
    """The path to the loop of that name. Raises ScheduleError with the loops there are."""
    path = path_to(func.body, lambda s: isinstance(s, For) and s.var.name == name)
    if path is None:
        names = ", ".join(loop.var.name for loop in loops(func.body))
        raise ScheduleError(f"{by}: {func.name} has no loop '{name}'", fix=f"pick one of: {names}")
    return path


def loop_at(path: Path) -> For:
    loop = path[-1]
    assert isinstance(loop, For)
    return loop


def put(path: Path, new: Stmt | None) -> Stmt:
    """The root of `path` with its last statement replaced (None: removed)."""
    for parent, old in zip(reversed(path[:-1]), reversed(path[1:])):
        if isinstance(parent, Block):
            kept = [new if s is old else s for s in parent.stmts]
            new = block(*(s for s in kept if s is not None))
        elif isinstance(parent, For | If):
            new = replace(parent, body=block() if new is None else new)
    return block() if new is None else new


def replace_at(func: PrimFunc, path: Path, new: Stmt) -> PrimFunc:
    return replace(func, body=put(path, new))


def names(func: PrimFunc) -> set[str]:
    """The names of all loops."""
    return {loop.var.name for loop in loops(func.body)}


def tensor_named(func: PrimFunc, name: str, by: str) -> Tensor:
    """The tensor of that name. Raises ScheduleError with the tensors there are."""
    for tensor in func.buffers:
        if tensor.name == name:
            return tensor
    known = ", ".join(t.name for t in func.buffers)
    raise ScheduleError(f"{by}: {func.name} has no tensor '{name}'", fix=f"pick one of: {known}")


def stage_named(func: PrimFunc, name: str, by: str) -> Tensor:
    """The computed tensor of that name."""
    tensor = tensor_named(func, name, by)
    if tensor not in func.stages:
        known = ", ".join(t.name for t in func.stages)
        raise ScheduleError(f"{by}: {name} is an input, not a stage", fix=f"pick one of: {known}")
    return tensor


def writes(stmt: Stmt, tensor: Tensor) -> bool:
    """Whether `stmt` stores to `tensor`."""
    return any(isinstance(s, Store | Update) and tensor in s.tensors for s in leaves(stmt))


def root_nest(func: PrimFunc, tensor: Tensor, by: str) -> Stmt:
    """The untouched root nest of a stage. Raises ScheduleError when the stage already has steps or was moved."""
    definition = func.stages[tensor]
    for stmt in statements(func.body):
        if not writes(stmt, tensor):
            continue
        at = stmt
        for var in (*definition.axis, *definition.reduce_axis):
            if not (isinstance(at, For) and at.var is var and at.kind == "serial" and not at.pragmas):
                break
            at = at.body
        if isinstance(at, Store | Together | Update) and writes(at, tensor):
            return stmt
        break
    raise ScheduleError(
        f"{by}: {tensor.name} already has steps or was moved", fix=f"call {by} before any other step on {tensor.name}"
    )


def perfect_chain(top: For, inner: set[str]) -> tuple[list[For], list[Expr], Stmt]:
    """Loops and guards from `top` down until every loop named in `inner` was met, and the statement below them.

    Stops early (with names missing) at the first statement that is neither a loop nor a guard.
    """
    chain: list[For] = []
    guards: list[Expr] = []
    missing, at = set(inner), top  # type: tuple[set[str], Stmt]
    while missing and isinstance(at, For | If):
        if isinstance(at, For):
            chain.append(at)
            missing.discard(at.var.name)
        else:
            guards.append(at.condition)
        at = at.body
    while isinstance(at, If):
        guards.append(at.condition)
        at = at.body
    return chain, guards, at


def rebuild_chain(chain: Sequence[For], guards: Sequence[Expr], body: Stmt) -> Stmt:
    """Nest `chain` (outermost first) around `body`; each guard stands just inside the innermost loop it mentions."""
    waiting = [(guard, variables(guard)) for guard in guards]
    for loop in reversed(chain):
        for condition, used in waiting:
            if loop.var in used:
                body = If(condition, body)
        waiting = [w for w in waiting if loop.var not in w[1]]
        body = loop if body is loop.body else replace(loop, body=body)
    for condition, _ in waiting:
        body = If(condition, body)
    return body


def refuse_lanes(path: Path, stage: str, by: str) -> None:
    """Raises ScheduleError when the loop at the end of `path` runs in lanes: a stage there has room for one of them."""
    for s in path:
        if isinstance(s, For) and s.kind is ForKind.VECTORIZED and s.extent > 1:
            raise ScheduleError(
                f"{by}: '{s.var.name}' is vectorized, {stage} would be computed inside it, once for all lanes",
                fix=f"choose a loop outside of '{s.var.name}' and vectorize the new nest's own loop",
            )


def restage(
    func: PrimFunc, group: Sequence[Tensor], made: Sequence[Tensor], new: Compute, definition: Compute
) -> dict[Tensor, Compute]:
    """The stages with `made`, defined by `new`, in front of `group`, which `definition` now defines."""
    stages: dict[Tensor, Compute] = {}
    for t, d in func.stages.items():
        if t is group[0]:
            stages.update(dict.fromkeys(made, new))
        stages[t] = definition if t in group else d
    return stages


def reductions_over(loop: For) -> list[Update]:
    """The updates inside `loop` that reduce over it."""
    return [s for s in leaves(loop.body) if isinstance(s, Update) and is_reduction_loop(loop, s)]
