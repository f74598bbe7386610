"""widen_half: float16 and bfloat16 are storage; arithmetic happens in float32, as CPUs without half units do it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core.target import Target
from toolchain.te.expr import Bin, Call, Expr, cast
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower.shared import rewrite_shared

HALF = ("float16", "bfloat16")
KEPT = ("bitcast", "prefetch")               # of bits, and of a place in memory


def widen_half(func: PrimFunc, target: Target) -> PrimFunc:
    """Compute each operation on a half type in float32, and round its result once.

        a + b    (bfloat16)   ->   bfloat16(float32(a) + float32(b))
        a < b    (float16)    ->   float32(a) < float32(b)

    Loads, stores, selects and conversions stay. Keeps: every value, since float32 holds sums, products and quotients of two
    halves precisely enough that rounding twice gives the same (24 >= 2*11 + 2 bits).
    """
    def rule(n: Any) -> Any:
        match n:
            case Bin(op, a, b) if a.dtype in HALF:
                wide: Expr = Bin(op, cast("float32", a), cast("float32", b))
                return wide if n.dtype == "bool" else cast(n.dtype, wide)
            case Call(name, args, dtype) if name not in KEPT and any(a.dtype in HALF for a in args):
                wide = Call(name, tuple(cast("float32", a) if a.dtype in HALF else a for a in args),
                            "float32" if dtype in HALF else dtype)
                return cast(dtype, wide)
        return None

    body = rewrite_shared(func.body, rule)
    return func if body is func.body else replace(func, body=body)


__all__ = ["widen_half"]
