"""Refuses code that would compile badly before LLVM sees it: too many instructions, or more accumulators than registers.

The caller answers a refusal with a smaller tile. Both figures come from the rolled loop IR, in microseconds.
"""

from __future__ import annotations

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import children
from toolchain.core.target import Target
from toolchain.targets.llvm.dot_products import is_dot
from toolchain.te.expr import Bin, Broadcast, Call, Cast, Const, Expr, Index, Load, Ramp, Select
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together
from toolchain.te.lower.shared import Lanes, dynamic_values, nodes
from toolchain.te.tensor import Tensor

MAX_INSTRUCTIONS = 6000            # LLVM's time grows faster than the code from here on: half a second and more
_COST = {Load: 2, Bin: 1, Call: 1, Cast: 1, Select: 1}


def check_limits(func: PrimFunc, target: Target) -> None:
    """Raises CodegenError when lowered code is over a limit; names the kernel and the figure."""
    count = instructions(func, target)
    if count > MAX_INSTRUCTIONS:
        raise CodegenError(f"{func.name} would unroll to about {count} instructions, the limit is {MAX_INSTRUCTIONS}",
                           fix="unroll less, or take a smaller tile")
    live = peak_live_vectors(func, target)
    if live > target.vector_registers:
        raise CodegenError(f"{func.name} keeps {live} vectors alive in its hot loop, {target.name} has "
                           f"{target.vector_registers} vector registers", fix="take a smaller register tile")


def instructions(func: PrimFunc, target: Target) -> int:
    """About how many instructions will be emitted: unrolled loops repeated, wide vectors in pieces; of a select that
    unrolled loops decide, the larger side."""
    lanes = Lanes()
    unrolled: set[object] = set()

    def expr(e: Expr) -> int:
        total, seen, stack = 0, set[int](), [e]
        while stack:
            n = stack.pop()
            if id(n) in seen:
                continue
            seen.add(id(n))
            if isinstance(n, Select) and (used := _variables_below(n.condition)) and used <= unrolled:
                total += max(expr(n.a), expr(n.b))
                continue
            cost = _COST.get(type(n), 0)
            if isinstance(n, Broadcast) and not isinstance(n.value, Const):
                cost = 2
            if cost:
                total += cost * pieces(n.dtype, lanes(n))
            below = dynamic_values(n) if isinstance(n, Index) else children(n)
            stack.extend(c for c in below if isinstance(c, Expr))
        return total

    def pieces(dtype: str, count: int) -> int:
        return max(1, -(-count * dtypes.bits(dtype) // target.vector_bits))

    def stmt(s: Stmt) -> int:
        match s:
            case Block(parts) | Together(parts):
                return sum(map(stmt, parts))
            case For(var, body, kind):
                if kind is not ForKind.UNROLLED:
                    return stmt(body) + 4
                unrolled.add(var)
                return stmt(body) * var.extent
            case If(condition, body):
                return stmt(body) + expr(condition) + 2
            case Store(tensor, idx, value):
                return expr(value) + 2 * pieces(tensor.dtype, lanes(idx[0]))
            case Evaluate(call):
                return 2 if call.name == "prefetch" else 3 * len(call.args)
        return 0

    return stmt(func.body)


def _variables_below(e: Expr) -> set[object]:
    return {v for n in nodes(e) if isinstance(n, Index) for v in n.vars()}


def peak_live_vectors(func: PrimFunc, target: Target) -> int:
    """The registers that accumulators need at once: `local` tensors that an innermost serial loop both reads and writes at
    places known when it is unrolled. Tensors indexed by a serial loop inside are arrays in memory and do not count."""
    peak = 0

    def visit(s: Stmt) -> bool:
        """Whether `s` holds a serial loop."""
        nonlocal peak
        match s:
            case Block(stmts):
                inside = [visit(part) for part in stmts]              # all of them: each may hold a loop to count
                return any(inside)
            case If(body=body):
                return visit(body)
            case For(var, body, kind):
                inner = visit(body)
                if kind is ForKind.UNROLLED or var.extent == 1:
                    return inner
                if not inner:
                    peak = max(peak, _accumulators(func, target, s))
                return True
        return False

    visit(func.body)
    return peak


def _accumulators(func: PrimFunc, target: Target, loop: For) -> int:
    read: dict[Tensor, list[Expr]] = {}
    written: set[Tensor] = set()
    whole: set[Tensor] = set()                   # what instructions accumulate into, a vector at a time
    for n in nodes(loop.body):
        if isinstance(n, Evaluate) and is_dot(n.call.name) and isinstance(c := n.call.args[0], Load):
            whole.add(c.tensor)
            written.add(c.tensor)
        if isinstance(n, Load) and func.buffers[n.tensor].scope == "local":
            read.setdefault(n.tensor, []).append(n.index[0])
        elif isinstance(n, Store):
            written.add(n.tensor)
    total = 0
    for tensor, at in read.items():
        if tensor not in written or any(loop.var in _variables(i) for i in at):
            continue
        elements = func.buffers[tensor].type.elements
        widest = max((i.lanes for i in at if isinstance(i, Ramp)), default=0)
        if tensor in whole:
            widest = target.lanes(dtypes.bits(tensor.dtype))
        if not widest and not dtypes.is_float(tensor.dtype):
            continue                            # an integer that is no vector: in a general register
        widest = max(widest, 1)
        per_register = min(widest, target.lanes(dtypes.bits(tensor.dtype)))
        total += -(-elements // per_register)
    return total


def _variables(i: Expr) -> set[object]:
    return set(i.base.vars()) if isinstance(i, Ramp) else set(getattr(i, "vars", set)())


__all__ = ["MAX_INSTRUCTIONS", "check_limits", "instructions", "peak_live_vectors"]
