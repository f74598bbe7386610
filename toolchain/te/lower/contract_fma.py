"""contract_fma: make fused multiply-adds explicit, so that the interpreter and every backend round alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core.target import Target
from toolchain.te.expr import Bin, Call
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower.shared import rewrite_shared

FUSED = ("float32", "float64")


def contract_fma(func: PrimFunc, target: Target) -> PrimFunc:
    """Contract products that feed a sum, when the target has the instruction.

        acc + x*w   ->   fma(x, w, acc)          x*w - y  stays: not every target has its negated forms

    Keeps: values up to the rounding of the product. Left alone: half precisions (they compute in float32), integers, and
    functions whose comparisons hang on every rounding (`attrs["exact"]`).
    """
    if not target.has_fma or func.attrs.get("exact"):
        return func

    def rule(n: Any) -> Any:
        match n:
            case Bin("+", Bin("*", a, b), c) | Bin("+", c, Bin("*", a, b)) if n.dtype in FUSED:
                return Call("fma", (a, b, c), n.dtype)
        return None

    body = rewrite_shared(func.body, rule)
    return func if body is func.body else replace(func, body=body)


__all__ = ["contract_fma"]
