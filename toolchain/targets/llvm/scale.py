"""ldexp -> vscalefps: x * 2**n, rounded once, of a whole n of x's own type, whatever it is: out of range, infinite, NaN.

LLVM's own ldexp takes n as an integer: a conversion more on the way in, and one on the way out.
"""

from __future__ import annotations

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import VALUE, vector

FEATURE = "avx512vl"                    # the instruction on registers of every width
_SUFFIX = {"float32": "ps", "float64": "pd"}
_AS_SET = ("i32", "4")                  # rounds as the control register says


def scale(to: Arithmetic, target: Target, dtype: str, lanes: int, x: str, n: str) -> str:
    """The operand of x * 2**n; lanes: 0 for a scalar. In whole registers, the last one perhaps not full."""
    element, bits = VALUE[dtype], dtypes.bits(dtype)
    if not lanes:
        type = vector(element, 128 // bits)
        one = [to.emit(f"insertelement {type} zeroinitializer, {element} {v}, i32 0") for v in (x, n)]
        return to.emit(f"extractelement {type} {_register(to, dtype, 128, *one)}, i32 0")
    width = next((b for b in (128, 256) if lanes * bits <= b), min(512, target.vector_bits))
    each = width // bits
    if each == lanes:
        return _register(to, dtype, width, x, n)
    pieces = []
    for start in range(0, lanes, each):
        chosen = [min(start + lane, lanes - 1) for lane in range(each)]
        pieces.append(_register(to, dtype, width, *(to.pick(v, element, lanes, chosen) for v in (x, n))))
    while len(pieces) > 1:              # joined in pairs, as LLVM takes vectors apart
        if len(pieces) % 2:
            pieces.append("poison")
        pieces = [to.shuffle(element, each, a, b, range(2 * each)) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
        each *= 2
    return pieces[0] if each == lanes else to.pick(pieces[0], element, each, range(lanes))


def _register(to: Arithmetic, dtype: str, width: int, x: str, n: str) -> str:
    lanes = width // dtypes.bits(dtype)
    type = vector(VALUE[dtype], lanes)
    mask, rounding = f"i{max(8, lanes)}", [_AS_SET] if width == 512 else []
    args = [(type, x), (type, n), (type, "zeroinitializer"), (mask, "-1"), *rounding]
    return to.emit(to.intrinsic(type, f"x86.avx512.mask.scalef.{_SUFFIX[dtype]}.{width}", (), args))


__all__ = ["FEATURE", "scale"]
