"""How LLVM spells types, constants and intrinsics. No decisions here."""

from __future__ import annotations

import functools
import re
import struct

import ml_dtypes
import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError

# bfloat16 travels as its bits: every CPU has 16-bit integers, few have bfloat16 registers
VALUE = {
    "float16": "half", "bfloat16": "i16", "float32": "float", "float64": "double", "bool": "i1",
    **{d: f"i{dtypes.bits(d)}" for d in (*dtypes.INTS, *dtypes.UINTS)},
}
MEMORY = {**VALUE, "bool": "i8"}
_SUFFIX = {"half": "f16", "float": "f32", "double": "f64"}

# Unknown llvm.* names pass LLVM's verifier and abort later: nothing outside of this list is ever emitted.
INTRINSICS = frozenset((
    "fmuladd", "fabs", "floor", "ceil", "trunc", "roundeven", "sqrt", "maximum", "minimum", "prefetch", "masked.load",
    "masked.store", "masked.gather", "masked.scatter", "vector.reduce.or",
    *(f"x86.avx512.mask.scalef.{name}.{bits}" for name in ("ps", "pd") for bits in (128, 256, 512)),
    *(f"x86.avx512.{name}.{bits}" for name in ("vpdpbusd", "vpdpwssd") for bits in (128, 256, 512)),
    "aarch64.neon.smull.v4i32", "aarch64.neon.sdot.v4i32.v16i8",
    "aarch64.neon.fcvtns.v4i32.v4f32", "aarch64.neon.sqxtn.v4i16", "aarch64.neon.sqxtn.v8i8", "aarch64.neon.sqxtun.v8i8",
    "sadd.sat",
    "aarch64.neon.smull.v8i16", "aarch64.neon.saddlp.v4i32.v8i16", "aarch64.neon.addp.v4i32",
    "x86.sse2.pmadd.wd", "x86.avx2.pmadd.wd", "x86.avx512.pmaddw.d.512",
))

TRUE, FALSE = "true", "false"
SPLAT_TRUE = "splat (i1 true)"


def value_type(dtype: str, lanes: int = 0) -> str:
    """The type of a value in a register."""
    return vector(VALUE[dtype], lanes)


def vector(element: str, lanes: int) -> str:
    return f"<{lanes} x {element}>" if lanes else element


def constant(value: float | int | bool, dtype: str, lanes: int = 0) -> str:
    """A literal of that type: exact, floats as bit patterns."""
    text = _scalar(value, dtype)
    if not lanes:
        return text
    return f"splat ({VALUE[dtype]} {text})"


def is_nan(text: str) -> bool:
    """Whether an operand is a NaN that `constant` wrote (float32 and float64: the others are widened before)."""
    return re.search(r"\b0x[7F]FF(?!0{13})", text) is not None


def _scalar(value: float | int | bool, dtype: str) -> str:
    match dtype:
        case "bool":
            return TRUE if value else FALSE
        case "float32":
            with np.errstate(over="ignore"):
                rounded = float(np.float32(value))
            return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
        case "float64":
            return f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"
        case "float16":
            with np.errstate(over="ignore"):
                return f"0xH{int(np.float16(value).view(np.uint16)):04X}"
        case "bfloat16":
            return str(int(np.asarray(value, ml_dtypes.bfloat16).view(np.uint16)))
    return str(int(value))


@functools.cache
def intrinsic(name: str, *types: str) -> str:
    """The mangled name: `intrinsic("fmuladd", "<16 x float>")` is "llvm.fmuladd.v16f32"."""
    if name not in INTRINSICS:
        raise CodegenError(f"llvm.{name} is not on the emitter's list of intrinsics")
    return ".".join(("llvm", name, *(_mangle(t) for t in types)))


def _mangle(type: str) -> str:
    if type == "ptr":
        return "p0"
    if type.startswith("<"):
        count, _, element = type[1:-1].partition(" x ")
        return f"v{count}{_mangle(element)}"
    return _SUFFIX.get(type, type)
