"""Dot products of small integers -> LLVM text: what `kernels/instructions.py` means by dot4, dot2, sdot4 and dot1.

    dot4.16(c[..], a[..], b[..])     c += four products of bytes per lane          vpdpbusd
    dot2.16(c[..], a[..], b[..])     c += two products of words per lane           vpdpwssd, or vpmaddwd and vpaddd
    sdot4.4(c[..], a[..], b[..])     c += four products of signed bytes per lane   sdot
    dot1.4(c[..], a[..], b[..])      c += one product of words per lane            smlal
"""

from __future__ import annotations

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import vector

FACTORS = {"dot4": ("i8", 4), "dot2": ("i16", 2), "sdot4": ("i8", 4), "dot1": ("i16", 1)}
_MULTIPLY_ADD = {4: "x86.sse2.pmadd.wd", 8: "x86.avx2.pmadd.wd", 16: "x86.avx512.pmaddw.d.512"}


def is_dot(name: str) -> bool:
    return name.partition(".")[0] in FACTORS


def lanes_of(name: str) -> int:
    """The lanes of the accumulator."""
    return int(name.partition(".")[2])


def group_type(name: str) -> str:
    """One group of factors as a number: "i32"."""
    element, group = FACTORS[name.partition(".")[0]]
    return f"i{int(element[1:]) * group}"


def accumulate(to: Arithmetic, target: Target, name: str, c: str, a: str, b: str) -> str:
    """The operand of c + dot(a, b): a is one group of factors in all lanes (<lanes x i32> for groups of 32 bits, of which
    `group_type` tells); b the factors of each lane."""
    kind, lanes = name.partition(".")[0], lanes_of(name)
    element, group = FACTORS[kind]
    word, factors = vector("i32", lanes), vector(element, lanes * group)
    if kind == "dot1" and target.has("neon") and lanes == 4:
        product = to.emit(to.intrinsic(word, f"aarch64.neon.smull.v{lanes}i32", (), ((factors, a), (factors, b))))
        return to.emit(f"add {word} {c}, {product}")
    a = to.emit(f"bitcast {vector(group_type(name), lanes)} {a} to {factors}")
    if kind == "sdot4" and target.has("dotprod") and lanes == 4:
        return to.emit(to.intrinsic(word, "aarch64.neon.sdot.v4i32.v16i8", (), ((word, c), (factors, b), (factors, a))))
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


__all__ = ["FACTORS", "accumulate", "group_type", "is_dot", "lanes_of"]
