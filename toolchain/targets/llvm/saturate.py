"""Levels of a quantization by instructions that saturate: Arm's.

    int8(int32(min(max(round(x) + zero, -128), 127)))   ->   fcvtns, sqxtn, sqadd, sqxtn

in place of a rounding, a sum, two bounds, a conversion and two narrowings. Each step saturates. What 32 or 16 bits bound on
the way is beyond a byte whatever zero point is added, for that is a byte itself. Of a NaN, which has no level, it makes the
zero point.
"""

from __future__ import annotations

import numpy as np

from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import constant, vector
from toolchain.te.expr import Bin, Broadcast, Call, Cast, Const, Expr

LANES = (4, 8, 16)


def level_of(e: Expr, lanes: int, target: Target) -> tuple[Expr, int] | None:
    """(x, zero point) where `e` is such a level, and the target has the instructions for so many lanes."""
    if not target.has("neon") or lanes not in LANES or not isinstance(e, Cast) or e.dtype not in ("int8", "uint8"):
        return None
    limits = np.iinfo(e.dtype)
    match e.value:
        case Cast("int32", Bin("min", Bin("max", level, low), high)) if level.dtype == "float32" and (
                _number(low), _number(high)) == (limits.min, limits.max):
            pass
        case _:
            return None
    match level:
        case Call("round", (x,)):
            return x, 0
        case Bin("+", Call("round", (x,)), zero) if (known := _number(zero)) is not None and known == int(known) and (
                limits.min <= known <= limits.max):
            return x, int(known)
    return None


def _number(e: Expr) -> float | None:
    match e:
        case Broadcast(Const(value)):
            return float(value)
    return None


def narrowed(to: Arithmetic, x: str, zero: int, dtype: str, lanes: int) -> str:
    """The bytes of as many numbers, as a store takes them."""
    whole, bytes_ = vector("i16", 8), vector("i8", 8)
    name = "sqxtn" if dtype == "int8" else "sqxtun"
    fours = [_shorts(to, to.pick(x, "float", lanes, range(n, n + 4)) if lanes > 4 else x) for n in range(0, lanes, 4)]
    made = []
    for low, high in zip(fours[::2], fours[1::2] or ["poison"], strict=True):       # of four, the other half is anything
        short = to.shuffle("i16", 4, low, high, range(8))
        if zero:
            added = ((whole, short), (whole, constant(zero, "int16", 8)))
            short = to.emit(to.intrinsic(whole, "sadd.sat", (whole,), added))
        made.append(to.emit(to.intrinsic(bytes_, f"aarch64.neon.{name}.v8i8", (), ((whole, short),))))
    if lanes == 16:
        return to.shuffle("i8", 8, made[0], made[1], range(16))
    if lanes == 8:
        return made[0]
    words = to.emit(f"bitcast {bytes_} {made[0]} to {vector('i32', 2)}")        # four bytes LLVM stores as a word only
    first = to.emit(f"extractelement {vector('i32', 2)} {words}, i32 0")
    return to.emit(f"bitcast i32 {first} to {vector('i8', 4)}")


def _shorts(to: Arithmetic, x: str) -> str:
    """Four numbers, rounded, in 16 bits."""
    word, half = vector("i32", 4), vector("i16", 4)
    rounded = to.emit(to.intrinsic(word, "aarch64.neon.fcvtns.v4i32.v4f32", (), ((vector("float", 4), x),)))
    return to.emit(to.intrinsic(half, "aarch64.neon.sqxtn.v4i16", (), ((word, rounded),)))


__all__ = ["level_of", "narrowed"]
