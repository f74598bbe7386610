"""divide_levels: quantize without a division, which takes a vector unit ten times as long as a product.

    x / step  ~  fma(x, main, x*rest)           main = 1/step rounded, rest = what is missing of it, rounded

Source: Brisebarre, Muller, Raina, "Accelerating correctly rounded floating-point division when the divisor is known in
advance" (2004). That quotient is off by less than a unit in the last place, mostly by nothing. Rounded to an integer it is
the same as the true one wherever it is the same beside the few numbers at which that integer changes: looked up here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from toolchain.core.target import Target
from toolchain.te.expr import Bin, Call, Const
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower.shared import rewrite_shared
from toolchain.te.numpy_functions import fma

MOST_LEVELS = 260                           # of bytes, and what rounding adds
NEIGHBOURS = 4                              # numbers on either side of a change: errors of both quotients reach over one
SMALLEST, LARGEST = 2.0**-100, 2.0**100     # steps whose reciprocal and remainders stay normal numbers


def divide_levels(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace the division by a constant between a saturation and a rounding, where the target has fused multiply-adds.

        round(min(max(x, low), high) / step)   ->   round(fma(s, main, s*rest))   with s = min(max(x, low), high)

    Keeps: every value. Left alone: more levels than bytes have, and steps for which some level would change.
    """
    if not target.has_fma:
        return func

    def rule(n: Any) -> Any:
        match n:
            case Call("round", (Bin("/", Bin("min", Bin("max", _, Const(low)), Const(high)) as s, Const(step)),)) \
                    if n.dtype == "float32":
                found = reciprocal(float(step), float(low), float(high))
                return found and Call("round", (_quotient(s, *found),), n.dtype)
        return None

    body = rewrite_shared(func.body, rule)
    return func if body is func.body else replace(func, body=body)


def _quotient(x: Any, main: float, rest: float) -> Any:
    return Call("fma", (x, Const(main, "float32"), Bin("*", x, Const(rest, "float32"))), "float32")


@lru_cache(maxsize=4096)
def reciprocal(step: float, low: float, high: float) -> tuple[float, float] | None:
    """(main, rest) with round(fma(x, main, x*rest)) = round(x / step), halves to even, of every float32 x from low to high;
    None where that is not so, or there are many levels."""
    if not (SMALLEST <= step <= LARGEST and math.isfinite(low) and math.isfinite(high)) or (high - low) / step > MOST_LEVELS:
        return None
    main = np.float32(1.0 / step)
    rest = np.float32((1.0 - float(main) * step) / step)
    x = _beside_changes(step, math.floor(low / step), math.ceil(high / step))
    quotient = fma(x, main, x * rest)
    if not np.array_equal(np.rint(quotient), np.rint(x / np.float32(step))):
        return None
    return float(main), float(rest)


def _beside_changes(step: float, lowest: int, highest: int) -> np.ndarray:
    """The float32 numbers around halves of levels."""
    halves = ((np.arange(lowest - 1, highest + 1) + 0.5) * step).astype(np.float32)
    reach = [halves]
    for direction in (-np.inf, np.inf):
        at = halves
        for _ in range(NEIGHBOURS):
            at = np.nextafter(at, np.float32(direction))
            reach.append(at)
    return np.concatenate(reach)


__all__ = ["divide_levels"]
