"""What is refused before it is lowered or built: closed-form figures of the rolled loop IR, 0.05 to 0.4 ms a candidate.

    instructions     of everything unrolled, wide vectors in pieces
    registers        that accumulators of one innermost loop need at once
    scratch_bytes    of one core: what does not stay in its second cache is read from the third again and again
    chunks           into how many pieces the cores can cut the work

The build refuses the first two as well (targets/llvm/limits.py), exactly, after lowering; here an estimate with room for its
error spares the lowering of what has no chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from toolchain.core import dtype as dtypes
from toolchain.core.rewrite import children
from toolchain.core.target import Target
from toolchain.targets.llvm.limits import MAX_INSTRUCTIONS
from toolchain.te.expr import Bin, Call, Cast, Expr, Index, Load, Select
from toolchain.te.loop_ir import Block, For, ForKind, If, PrimFunc, Stmt, Store, Together, Update
from toolchain.te.tensor import Tensor

ERROR = 2.0                     # the estimate of instructions is 0.4 to 1.8 times what the build counts (peeling, sharing)
_COST = {Load: 2, Bin: 1, Call: 1, Cast: 1, Select: 1}


@dataclass(frozen=True, slots=True)
class Footprint:
    """See above."""

    instructions: int
    registers: int
    scratch_bytes: int
    chunks: int


def footprint(func: PrimFunc, target: Target) -> Footprint:
    instructions, chunks, accumulators = 0, 1, set[Tensor]()
    for leaf, loops in _leaves(func.body, ()):
        accumulators.update(leaf.tensors if isinstance(leaf, Update) else ())
        vector = math.prod(f.extent for f in loops if f.kind is ForKind.VECTORIZED)
        pieces = max(1, -(-vector * dtypes.bits(leaf.tensor.dtype) // target.vector_bits))
        unrolled = math.prod(f.extent for f in loops if f.kind is ForKind.UNROLLED)
        instructions += unrolled * pieces * (_cost(leaf.value) + (3 if isinstance(leaf, Update) else 2))
        chunks = max(chunks, *(f.extent for f in loops if f.kind is ForKind.PARALLEL), 1)
    inner = {t: b for t, b in func.buffers.items() if t not in func.params}
    sizes = {t: (b.scope, b.type.elements * dtypes.itemsize(t.dtype)) for t, b in inner.items()}
    widest = max((size for t, (scope, size) in sizes.items() if scope == "local" and t in accumulators), default=0)
    return Footprint(instructions, -(-widest * 8 // target.vector_bits),
                     sum(size for scope, size in sizes.values() if scope == "lane"), chunks)


def refusal(f: Footprint, default: Footprint, target: Target) -> str:
    """Why a candidate is hopeless; "": it is not. What the default has is never too much."""
    if f.chunks < (enough := min(target.cores, default.chunks)):
        return f"work for {f.chunks} cores, the default schedule has it for {enough}"
    if f.instructions > max(ERROR * MAX_INSTRUCTIONS, default.instructions):
        return f"it would unroll to about {f.instructions} instructions, the limit is {MAX_INSTRUCTIONS}"
    if f.registers > max(target.vector_registers, default.registers):
        return f"accumulators need {f.registers} vector registers, {target.name} has {target.vector_registers}"
    if f.scratch_bytes > max(target.l2_bytes, default.scratch_bytes):
        return f"{f.scratch_bytes} bytes of scratch per core, the second cache has {target.l2_bytes}"
    return ""


def _leaves(stmt: Stmt, around: tuple[For, ...]) -> Iterator[tuple[Store | Update, tuple[For, ...]]]:
    match stmt:
        case Block(parts) | Together(parts):
            for part in parts:
                yield from _leaves(part, around)
        case For():
            yield from _leaves(stmt.body, (*around, stmt))
        case If():
            yield from _leaves(stmt.body, around)
        case Store() | Update():
            yield stmt, around


def _cost(value: Expr) -> int:
    total, seen, stack = 0, set[int](), [value]
    while stack:
        e = stack.pop()
        if id(e) in seen or isinstance(e, Index):
            continue
        seen.add(id(e))
        total += _COST.get(type(e), 0)
        if not isinstance(e, Load):
            stack.extend(c for c in children(e) if isinstance(c, Expr))
    return total
