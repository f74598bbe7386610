"""fill_tails: whoever produces a tensor writes zeros in its tail, also where no loop goes there."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.target import Target
from toolchain.te.create import fresh
from toolchain.te.expr import Index, Var, const, index, variables
from toolchain.te.loop_ir import Block, For, If, PrimFunc, Stmt, Store, Together, block, loops
from toolchain.te.tensor import Tensor


def fill_tails(func: PrimFunc, target: Target) -> PrimFunc:
    """Store zeros to the tails of outputs that the loops leave out.

        C : float32[30, 8] AB16a                      for i in range(30): for j: C[i, j] = ...
        for i in range(30): for j: C[i, j] = ...  ->  for a in range(2): for j in range(8): C[30 + a, j] = 0.0

    Left alone: a dimension whose tail some store already covers without a guard.

    Needs: elide_guards done (it makes blocked loops store their tails). Keeps: everything else.
    """
    nests: list[Stmt] = []
    names = {loop.var.name for loop in loops(func.body)}
    for tensor in func.outputs:
        type = func.buffers[tensor].type
        padded = type.layout.padded(type.shape)
        for d, n in enumerate(type.shape):
            if padded[d] > n and not _covers(func.body, tensor, d, padded[d], frozenset()):
                nests.append(_zeros(tensor, padded, d, n, names))
    return func if not nests else replace(func, body=block(func.body, *nests))


def _covers(s: Stmt, tensor: Tensor, d: int, padded: int, guarded: frozenset[Var]) -> bool:
    """Whether a store reaches the last element of the tail, under no condition on that index."""
    match s:
        case Store() if s.tensor is tensor:
            i = s.index[d]
            return isinstance(i, Index) and i.range()[1] == padded - 1 and not variables(i) & guarded
        case If(condition, body):
            return _covers(body, tensor, d, padded, guarded | variables(condition))
        case For(body=body):
            return _covers(body, tensor, d, padded, guarded)
        case Block(parts) | Together(parts):
            return any(_covers(part, tensor, d, padded, guarded) for part in parts)
    return False


def _zeros(tensor: Tensor, padded: tuple[int, ...], d: int, n: int, names: set[str]) -> Stmt:
    axes = [Var(fresh(f"tail_{k}", names), extent - n if k == d else extent) for k, extent in enumerate(padded)]
    at = tuple(index(v) + n if k == d else index(v) for k, v in enumerate(axes))
    stmt: Stmt = Store(tensor, at, const(0, tensor.dtype))
    for var in reversed(axes):
        stmt = For(var, stmt)
    return stmt


__all__ = ["fill_tails"]
