"""What is refused before it is lowered or built: closed-form figures of the rolled loop IR, 10 to 70 us a candidate (of
Winograd kernels, whose transforms are long expressions, 100).

    instructions     of everything unrolled, wide vectors in pieces
    registers        that accumulators of one innermost loop need at once
    scratch_bytes    of one core: what does not stay in its second cache is read from the third again and again
    chunks           into how many pieces the cores can cut the work

The build refuses the first two as well (targets/llvm/limits.py), exactly, after lowering; here an estimate with room for its
error spares the lowering of what has no chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.core import dtype as dtypes
from toolchain.core.rewrite import children
from toolchain.core.target import Target
from toolchain.targets.llvm.limits import MAX_INSTRUCTIONS
from toolchain.te.expr import Bin, Call, Cast, Const, Expr, Index, Load, Select
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
    count = _Count(target)
    count.add(func.body, 1, 1)
    inner = {t: b for t, b in func.buffers.items() if t not in func.params}
    sizes = {t: (b.scope, b.type.elements * dtypes.itemsize(t.dtype)) for t, b in inner.items()}
    widest = max((size for t, (scope, size) in sizes.items() if scope == "local" and t in count.accumulators), default=0)
    return Footprint(count.instructions, -(-widest * 8 // target.vector_bits),
                     sum(size for scope, size in sizes.values() if scope == "lane"), count.chunks)


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


class _Count:
    """What one walk over the statements adds up."""

    def __init__(self, target: Target) -> None:
        self.vector_bits = target.vector_bits
        self.instructions, self.chunks, self.accumulators = 0, 1, set[Tensor]()
        self._costs: dict[int, int] = {}                # of values, by identity: peeled loops share theirs

    def add(self, stmt: Stmt, vector: int, unrolled: int) -> None:
        """vector, unrolled: iterations of the loops around, of those kinds."""
        while type(stmt) is For:
            kind, extent = stmt.kind, stmt.var.extent
            if kind is ForKind.VECTORIZED:
                vector *= extent
            elif kind is ForKind.UNROLLED:
                unrolled *= extent
            elif kind is ForKind.PARALLEL:
                self.chunks = max(self.chunks, extent)
            stmt = stmt.body
        match stmt:
            case Block(parts) | Together(parts):
                for part in parts:
                    self.add(part, vector, unrolled)
            case If():
                self.add(stmt.body, vector, unrolled)
            case Store() | Update():
                sums = isinstance(stmt, Update)
                self.accumulators.update(stmt.tensors if sums else ())
                pieces = max(1, -(-vector * dtypes.bits(stmt.tensor.dtype) // self.vector_bits))
                self.instructions += unrolled * pieces * (self._cost(stmt.value) + (3 if sums else 2))

    def _cost(self, value: Expr) -> int:
        if (known := self._costs.get(id(value))) is None:
            known = self._costs[id(value)] = _cost(value)
        return known


def _cost(value: Expr) -> int:
    total, seen, stack = 0, set[int](), [value]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        kind = type(e)
        if kind is Load:
            total += 2
        elif kind is Bin:
            total += 1
            for operand in (e.a, e.b):  # type: ignore[attr-defined]
                if type(operand) is not Const:
                    stack.append(operand)
        elif kind is not Index and kind is not Const:
            total += _COST.get(kind, 0)
            stack += [c for c in children(e) if isinstance(c, Expr)]
    return total
