"""lower_intrinsics: mathematical functions become arithmetic. Generated code calls nothing, libm least of all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.te.expr import Bin, Call
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower.intrinsics import CALLS, OPERATORS, ldexp, ldexp_down
from toolchain.te.lower.shared import rewrite_shared

COMPUTED = ("float32", "float64")


def lower_intrinsics(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace each call of a mathematical function by its expansion (intrinsics.py lists them with their errors).

        y = sigmoid(x)   ->   y = 1/(1 + p(r)*2**n)       with r and n shared, not repeated

    Calls that are instructions (sqrt, abs, floor, ceil, trunc, round, fma, isnan; with AVX-512 ldexp, too) stay.

    Needs: half types widened. Raises CodegenError: a function of integers that only floats have.
    """
    def rule(n: Any) -> Any:
        match n:
            case Call(name, args) if name in CALLS:
                if args[0].dtype not in COMPUTED:
                    raise CodegenError(f"{func.name}: {name} of {args[0].dtype}", fix="cast the argument to a float type")
                return CALLS[name](*args)
            case Bin(op, a, b) if op in OPERATORS and dtypes.is_float(a.dtype):
                return OPERATORS[op](a, b)
            case Bin("pow"):
                raise CodegenError(f"{func.name}: pow of {n.dtype}", fix="cast the arguments to float64")
        return None

    def scaled(n: Any) -> Any:
        match n:
            case Call("ldexp_down", args):
                return Call("ldexp", args, n.dtype) if instruction else ldexp_down(*args)
            case Call("ldexp", args) if not instruction:
                return ldexp(*args)
        return None

    instruction = target.has("avx512vl")
    body = rewrite_shared(rewrite_shared(func.body, rule), scaled)
    return func if body is func.body else replace(func, body=body)


__all__ = ["lower_intrinsics"]
