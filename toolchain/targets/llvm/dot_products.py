"""Dot products of small integers -> LLVM text: what `kernels/instructions.py` means by dot4 and dot2.

    dot4.16(c[..], a[..], b[..])     c += four products of bytes per lane          vpdpbusd
    dot2.16(c[..], a[..], b[..])     c += two products of words per lane           vpdpwssd, or vpmaddwd and vpaddd
"""

from __future__ import annotations

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import vector

FACTORS = {"dot4": ("i8", 4), "dot2": ("i16", 2)}
_MULTIPLY_ADD = {4: "x86.sse2.pmadd.wd", 8: "x86.avx2.pmadd.wd", 16: "x86.avx512.pmaddw.d.512"}


def is_dot(name: str) -> bool:
    return name.partition(".")[0] in FACTORS


def lanes_of(name: str) -> int:
    """The lanes of the accumulator."""
    return int(name.partition(".")[2])


def accumulate(to: Arithmetic, target: Target, name: str, c: str, a: str, b: str) -> str:
    """The operand of c + dot(a, b): a is one group of factors in all lanes, <lanes x i32> as c is; b the factors of each."""
    kind, lanes = name.partition(".")[0], lanes_of(name)
    element, group = FACTORS[kind]
    word, factors = vector("i32", lanes), vector(element, lanes * group)
    a = to.emit(f"bitcast {word} {a} to {factors}")
    bits = 32 * lanes
    wide = target.has("avx512vnni") and (bits == 512 or target.has("avx512vl"))
    if kind == "dot4" and (wide or (target.has("avxvnni") and bits <= 256)):
        return to.emit(to.intrinsic(word, f"x86.avx512.vpdpbusd.{bits}", (), ((word, c), (factors, a), (factors, b))))
    if kind == "dot2" and wide:
        return to.emit(to.intrinsic(word, f"x86.avx512.vpdpwssd.{bits}", (), ((word, c), (factors, a), (factors, b))))
    if kind == "dot2" and lanes in _MULTIPLY_ADD:
        product = to.emit(to.intrinsic(word, _MULTIPLY_ADD[lanes], (), ((factors, a), (factors, b))))
        return to.emit(f"add {word} {c}, {product}")
    raise CodegenError(f"{target.name} has no instruction for {name}")


__all__ = ["FACTORS", "accumulate", "is_dot", "lanes_of"]
