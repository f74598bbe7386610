"""inject_vthread: interleave the virtual threads of an accelerator, each with its own piece of on-chip memory."""

from __future__ import annotations

import string
from dataclasses import replace

from toolchain.core.errors import CodegenError
from toolchain.core.layout import Layout, TensorType
from toolchain.core.rewrite import map_children
from toolchain.core.target import Target
from toolchain.te.expr import Index, Load, Var, index, variables
from toolchain.te.loop_ir import (
    Block,
    Buffer,
    For,
    ForKind,
    PrimFunc,
    Stmt,
    Store,
    Update,
    block,
    leaves,
    loops,
    walk_statements,
)
from toolchain.te.primitives.loops import path_to, put
from toolchain.te.primitives.restructure import rename_loops
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Tensor


def inject_vthread(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace each loop over virtual threads by one copy of every leaf statement per thread.

        for v in vthread(2):                       for k:
          for k:                                     inp[0, i] = A[8*k + i]        # v = 0
            inp[i] = A[16*v + 8*k + i]      ->       inp[1, i] = A[16 + 8*k + i]   # v = 1
            gemm(acc[0], inp[0])                     gemm(acc[0, 0], inp[0, 0])
                                                     gemm(acc[1, 0], inp[1, 0])

    Loops that hold several statements stay and go outside; storage filled inside, in any scope but global, gets a leading
    dimension: one piece per thread. While one thread's data is loading the other one computes.

    Needs: threads that do not depend on each other. Keeps: what each thread does, in order.
    Source: Chen et al., TVM (OSDI 2018), section 4.4.
    """
    while (path := path_to(func.body, lambda s: isinstance(s, For) and s.kind is ForKind.VTHREAD)) is not None:
        loop = path[-1]
        assert isinstance(loop, For)
        private = _private(func, loop)
        body = _widen(loop.body, private, loop.var)
        buffers = {t: _pieces(b, loop.extent) if t in private else b for t, b in func.buffers.items()}
        taken = {s.var.name for s in loops(func.body)}
        func = replace(func, body=put(path, _interleave(body, loop.var, taken)), buffers=buffers)
    return func


def _private(func: PrimFunc, loop: For) -> set[Tensor]:
    """Tensors filled inside the loop at places that do not depend on the thread, and not in global memory."""
    stored = [s for s in leaves(loop.body) if isinstance(s, Store | Update)]
    shared_place = {t for s in stored for t in s.tensors if not any(loop.var in variables(i) for i in s.index)}
    return {t for t in shared_place if func.buffers[t].scope != "global"}


def _widen(stmt: Stmt, private: set[Tensor], var: Var) -> Stmt:
    """Put the thread in front of every index of the private tensors."""
    def visit(n: object) -> object:
        if isinstance(n, Index):
            return n
        new = map_children(n, visit)  # type: ignore[type-var]
        if isinstance(new, Load | Store | Update) and new.tensor in private:
            if isinstance(new, Update) and not private.issuperset(new.tensors):
                named = ", ".join(t.name for t in new.tensors)
                raise CodegenError(f"{named} are reduced together in vthread {var.name}, but not all of them on the chip",
                                   fix="give them one scope")
            return replace(new, index=(index(var), *new.index))
        return new

    return visit(stmt)  # type: ignore[return-value]


def _pieces(buffer: Buffer, threads: int) -> Buffer:
    old = buffer.type.layout
    axis = next(c for c in reversed(string.ascii_uppercase) if c not in old.axes)
    dims = ((0, 0), *((d + 1, block) for d, block in old.dims))
    layout = Layout(axis + old.axes, dims, ((0, 0), *old.halo))
    return buffer.with_type(TensorType((threads, *buffer.type.shape), buffer.type.dtype, layout))


def _interleave(stmt: Stmt, var: Var, taken: set[str]) -> Stmt:
    if isinstance(stmt, Block):
        return block(*(_interleave(s, var, taken) for s in stmt.stmts))
    if isinstance(stmt, For) and any(isinstance(s, Block) for s in walk_statements(stmt)):
        return replace(stmt, body=_interleave(stmt.body, var, taken))
    copies = (substitute(stmt if v == 0 else rename_loops(stmt, taken), {var: v}) for v in range(var.extent))
    return block(*copies)


__all__ = ["inject_vthread"]
