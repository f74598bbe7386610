"""Multiply-adds of register tiles that LLVM, left alone, would spill: each sum is held in its own register.

    rows x vectors sums, in one step:     for row: for vector: sum[row, vector] += broadcast[row] * weights[vector]

Rows of one vector: x86's fma overwrites one of its operands, and LLVM takes the first that nobody needs any longer. That is
the broadcast, which is needed once: sums wander from register to register with each step, and some are spilled on their way
(AVX-512 broadcasts from memory, within the instruction: there it is the sum). Sums that leave two registers free: LLVM loads
what the next step needs before this one is done.

An empty instruction behind the fma reads the factors and the sum: so none of them is free to be overwritten but the former
sum, and what is loaded next is loaded behind it. It costs nothing: a core looks ahead by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toolchain.core.target import Target
from toolchain.te.expr import Broadcast, Call, Index, Load, Ramp, Var


def needs_holding(fma: Call, env: Mapping[Var, int | str], target: Target) -> bool:
    """Whether `fma` is a step of such a tile. env: the loop variables, an int where the loop is unrolled."""
    match fma.args:
        case (Broadcast(Load() as scalar), Load() as vector, Load() as total) | (
                Load() as vector, Broadcast(Load() as scalar), Load() as total) if target.kind == "x86":
            at = [_base(load) for load in (total, scalar, vector)]
        case _:
            return False
    if any(i is None for i in at):
        return False
    tile, broadcast, weights = (i for i in at if i is not None)
    loops = [v for v in tile.vars() if type(env[v]) is int]
    rows = math.prod(v.extent for v in loops if v not in weights.vars())
    vectors = math.prod(v.extent for v in loops if v not in broadcast.vars())
    if rows == 1 or rows * vectors != math.prod(v.extent for v in loops):
        return False                                    # each vector of weights is an operand in memory; no such tile
    if vectors == 1:
        return not target.has("avx512f")
    return rows * vectors + vectors + 2 >= target.vector_registers


def _base(load: Load) -> Index | None:
    """Where the vector or scalar begins; None: its elements lie apart."""
    match load.index:
        case (Ramp(base, 1) | (Index() as base),):
            return base
    return None


def holding(type: str, operands: Sequence[str], target: Target) -> str:
    """The empty instruction that reads vectors of an LLVM type."""
    register = "w" if target.has("neon") else "v" if target.has("avx512f") else "x"   # of x86 all of AVX-512's, or sixteen
    read = ", ".join(f"{type} {operand}" for operand in operands)
    return f'call void asm sideeffect "", "{",".join(register for _ in operands)}"({read})'


__all__ = ["holding", "needs_holding"]
