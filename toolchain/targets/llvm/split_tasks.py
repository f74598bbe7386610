"""split_tasks: a lowered PrimFunc as phases, one native function each, and where its buffers live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.te.expr import Load
from toolchain.te.loop_ir import For, ForKind, PrimFunc, Stmt, Store, Together, block, statements
from toolchain.te.lower.shared import nodes
from toolchain.te.tensor import Tensor

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """One task: `parallel` is the extent that [lo, hi) cuts (1: nothing to cut). Phases run one after the other."""

    body: Stmt
    parallel: int


@dataclass(frozen=True, slots=True, eq=False)
class Tasks:
    """The phases, and the storage they need besides the parameters.

    workspace: intermediate "global" tensors; they follow the parameters in the buffer table, the caller allocates them.
    lane: tensors in the scratch of one lane, with their byte offset; scratch_bytes in all.
    """

    phases: tuple[Phase, ...]
    workspace: tuple[Tensor, ...]
    lane: dict[Tensor, int]
    scratch_bytes: int


def split_tasks(func: PrimFunc) -> Tasks:
    """Make each root nest a phase: its parallel loop becomes [lo, hi); neighbours without one share a phase.

        for g: for y in parallel(56): ...     ->   phase 0, extent 56:  for g: for y in [lo, hi): ...
        for i: ...                            ->   phase 1, extent 1

    Serial loops around the parallel one are walked by every lane over its own range.

    Raises CodegenError: parallel loops of different extents or one inside the other; a global tensor stored outside of the
    parallel loop; registers or lane scratch that would have to outlive a phase.
    """
    phases: list[Phase] = []
    for stmt in statements(func.body):
        extent = _parallel_extent(func, stmt)
        if phases and extent == 1 == phases[-1].parallel:
            phases[-1] = Phase(block(phases[-1].body, stmt), 1)
        else:
            phases.append(Phase(stmt, extent))
    _check_lifetimes(func, phases)
    used = _touched(func.body)
    workspace = tuple(t for t, b in func.buffers.items() if b.scope == "global" and t not in func.params and t in used)
    lane: dict[Tensor, int] = {}
    size = 0
    for t, b in func.buffers.items():
        if b.scope == "lane" and t in used:
            lane[t] = size
            size += round_up(size_bytes(func, t))
    return Tasks(tuple(phases), workspace, lane, size)


def size_bytes(func: PrimFunc, tensor: Tensor) -> int:
    """Storage of a flattened buffer."""
    t = func.buffers[tensor].type
    return t.elements * dtypes.itemsize(t.dtype)


def round_up(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _parallel_extent(func: PrimFunc, root: Stmt) -> int:
    extents = {loop.extent for loop in _parallel(func, root, None)}
    if len(extents) > 1:
        raise CodegenError(f"{func.name}: parallel loops of extents {sorted(extents)} in one nest",
                           fix="give each root nest one parallel loop")
    if not extents:
        return 1
    for s in _outside(root):
        if isinstance(s, Store) and func.buffers[s.tensor].scope == "global":
            raise CodegenError(f"{func.name}: every lane would store {s.tensor.name}, outside of the parallel loop",
                               fix=f"give {s.tensor.name} the scope lane or local, or compute it in the parallel loop")
    return extents.pop()


def _parallel(func: PrimFunc, stmt: Stmt, outer: For | None) -> Iterator[For]:
    match stmt:
        case For(body=body, kind=ForKind.PARALLEL):
            if outer is not None:
                raise CodegenError(f"{func.name}: parallel loop {stmt.var.name} inside parallel loop {outer.var.name}")
            yield stmt
            yield from _parallel(func, body, stmt)
        case Stmt():
            for s in _below(stmt):
                yield from _parallel(func, s, outer)


def _below(stmt: Stmt) -> tuple[Stmt, ...]:
    if isinstance(stmt, Together):
        return stmt.stores
    body = getattr(stmt, "body", None)
    return statements(body) if isinstance(body, Stmt) else statements(stmt) if statements(stmt) != (stmt,) else ()


def _outside(stmt: Stmt) -> Iterator[Stmt]:
    """The statements that stand in no parallel loop."""
    if isinstance(stmt, For) and stmt.kind is ForKind.PARALLEL:
        return
    yield stmt
    for s in _below(stmt):
        yield from _outside(s)


def _touched(stmt: Stmt) -> set[Tensor]:
    return {n.tensor for n in nodes(stmt) if isinstance(n, Load | Store)}


def _check_lifetimes(func: PrimFunc, phases: list[Phase]) -> None:
    """Registers and lane scratch do not outlive a phase: what a nest reads of one, it or a nest of its phase has stored."""
    nests = [(n, nest, _stored(nest)) for n, phase in enumerate(phases) for nest in statements(phase.body)]
    for n, nest, own in nests:
        for t in _touched(nest) - own:
            scope = func.buffers[t].scope
            if scope in ("local", "lane") and {m for m, _, stored in nests if t in stored} != {n}:
                raise CodegenError(f"{func.name}: {t.name} ({scope}) is read in a phase that does not compute it",
                                   fix=f"compute {t.name} inside the nest that reads it, or give it the scope global")


def _stored(stmt: Stmt) -> set[Tensor]:
    return {n.tensor for n in nodes(stmt) if isinstance(n, Store)}


__all__ = ["Phase", "Tasks", "round_up", "size_bytes", "split_tasks"]
