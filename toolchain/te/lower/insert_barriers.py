"""insert_barriers: make the threads of a block wait where they exchange data through shared memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from toolchain.core.target import Target
from toolchain.te.expr import Call, Load, distinct
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, PrimFunc, Stmt, Store, Update, block, leaves
from toolchain.te.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Accesses:
    """The shared tensors read and written since the last barrier."""

    reads: frozenset[Tensor] = frozenset()
    writes: frozenset[Tensor] = frozenset()

    def __or__(self, other: Accesses) -> Accesses:
        return Accesses(self.reads | other.reads, self.writes | other.writes)

    def conflicts(self, later: Accesses) -> bool:
        """Whether `later` must wait: it reads what was written, or writes what was read or written."""
        return bool(later.reads & self.writes or later.writes & (self.reads | self.writes))


def insert_barriers(func: PrimFunc, target: Target) -> PrimFunc:
    """Put a barrier between two statements of a block that may touch the same shared tensor, one of them writing.

        for k_0:                               for k_0:
          A_shared[...] = A[...]                 barrier()                      (the reads of the last iteration)
          C_local[...] += A_shared[...]    ->    A_shared[...] = A[...]
                                                 barrier()
                                                 C_local[...] += A_shared[...]

    A dataflow walk over each loop nest, the back edge of loops included. A nest bound to threads once more (a cooperative
    copy) and a guard count as one statement: no barrier ever stands in divergent control flow.

    Needs: nothing but loops bound to threads. Keeps: every statement. Sets `attrs["barriers"]`.
    """
    shared = frozenset(t for t, b in func.buffers.items() if b.scope == "shared")
    if not shared:
        return func
    body, _ = _Walk(shared).visit(func.body, Accesses(), ())
    return replace(func, body=body, attrs={**func.attrs, "barriers": True})


class _Walk:
    def __init__(self, shared: frozenset[Tensor]) -> None:
        self.shared = shared

    def visit(self, stmt: Stmt, before: Accesses, threads: tuple[str, ...]) -> tuple[Stmt, Accesses]:
        """The statement with its barriers, and what was accessed since the last one."""
        if isinstance(stmt, Block):
            out = []
            for s in stmt.stmts:
                new, before = self.visit(s, before, threads)
                out.append(new)
            return block(*out), before
        own = self._accesses(stmt)
        if before.conflicts(own):               # before a whole loop rather than in each of its iterations
            new, after = self.visit(stmt, Accesses(), threads)
            return block(Evaluate(Call("barrier", (), "bool")), new), after
        if not isinstance(stmt, For) or stmt.thread in threads:
            return stmt, before | own
        around = (*threads, stmt.thread) if stmt.thread else threads
        new, after = self.visit(stmt.body, before, around)
        if stmt.kind is not ForKind.THREAD_BINDING and stmt.extent > 1:       # the next iteration follows this one
            new, after = self.visit(stmt.body, before | after, around)
        ended = Accesses() if not threads else after                            # a kernel ends: the next one starts anew
        return stmt if new is stmt.body else replace(stmt, body=new), ended

    def _accesses(self, stmt: Stmt) -> Accesses:
        written = {t for s in leaves(stmt) if isinstance(s, Store | Update) for t in s.tensors}
        read = {n.tensor for n in distinct(stmt) if isinstance(n, Load)}
        return Accesses(frozenset(read) & self.shared, frozenset(written) & self.shared)


__all__ = ["insert_barriers"]
