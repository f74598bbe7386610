"""Conversions between types. Those of the half types are integer arithmetic where the CPU has no instruction for them.

bfloat16 is the upper half of a float32. float16 has five bits of exponent: F. Giesen's ways between it and float32
(gist.github.com/rygorous/2156668, "fast4" and "fast3_rtne"), with selects in place of branches. All round to nearest, ties
to even; subnormal numbers are exact, and no step on the way is subnormal itself; a NaN stays a NaN, a quiet one where it
is narrowed.
"""

from __future__ import annotations

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import constant, value_type, vector

FLOAT16 = {"x86": "f16c", "riscv64": "zfhmin"}      # kind -> the feature that converts; others have it in every CPU
HALF = ("float16", "bfloat16")

SIGN, MAGNITUDE = 0x8000, 0x7FFF
EXPONENT, QUIET = 0x7C00, 0x0200                    # of a float16; all exponent bits: Inf or NaN
SHIFT = 23 - 10                                     # from float16's mantissa to float32's
REBIAS = (127 - 15) << 23                           # from float16's exponent to float32's
SMALLEST = (127 - 14) << 23                         # 2**-14, the smallest normal float16, as a float32
OVERFLOWS = (127 + 16) << 23                        # 2**16: from here on Inf; what is near below gets there by rounding
ROUNDS_AT = (127 - 15 + SHIFT + 1) << 23            # 1/2: its last place is 2**-24, the smallest float16


def convert(by: Arithmetic, x: str, source: str, to: str, lanes: int) -> str:
    """A value of dtype `source` as `to`, as te's Cast means it; float16 and bfloat16 by way of float32. Raises
    CodegenError: float16 on WebAssembly.
    """
    if source == to:
        return x
    if (source in HALF and to != "float32") or (to in HALF and source != "float32"):
        return convert(by, convert(by, x, source, "float32", lanes), "float32", to, lanes)
    if source == "bfloat16":
        return _widen_bfloat16(by, x, lanes)
    if to == "bfloat16":
        return _narrow_to_bfloat16(by, x, lanes)
    if "float16" in (source, to) and by.target.kind == "wasm32":        # LLVM calls functions even to move a half there
        raise CodegenError("WebAssembly has no conversions of float16", fix="store the model's values as float32")
    if "float16" in (source, to) and not _has_float16(by.target):
        return _widen_float16(by, x, lanes) if source == "float16" else _narrow_to_float16(by, x, lanes)
    a, b = value_type(source, lanes), value_type(to, lanes)
    if dtypes.is_float(source) and dtypes.is_float(to):
        return by.emit(f"{'fpext' if dtypes.bits(source) < dtypes.bits(to) else 'fptrunc'} {a} {x} to {b}")
    if to == "bool":
        zero = constant(0, source, lanes)
        return by.emit(f"{'fcmp une' if dtypes.is_float(source) else 'icmp ne'} {a} {x}, {zero}")
    if dtypes.is_float(to):
        return by.emit(f"{'sitofp' if source in dtypes.INTS else 'uitofp'} {a} {x} to {b}")
    if dtypes.is_float(source):
        return by.emit(f"{'fptosi' if to in dtypes.INTS else 'fptoui'} {a} {x} to {b}")
    wide, narrow = (1 if source == "bool" else dtypes.bits(source)), dtypes.bits(to)
    if wide == narrow:
        return x
    if wide > narrow:
        return by.emit(f"trunc {a} {x} to {b}")
    return by.emit(f"{'sext' if source in dtypes.INTS else 'zext'} {a} {x} to {b}")


def _has_float16(target: Target) -> bool:
    """Whether there are instructions between float16 and float32."""
    feature = FLOAT16.get(target.kind, "")
    return not feature or target.has(feature)


class _Words:
    """32-bit integers, one per lane: what the conversions calculate with."""

    def __init__(self, by: Arithmetic, lanes: int) -> None:
        self.by, self.lanes = by, lanes
        self.word, self.short, self.bit = (vector(t, lanes) for t in ("i32", "i16", "i1"))
        self.float = vector("float", lanes)

    def do(self, op: str, a: str, b: str | int) -> str:
        other = constant(b, "int32", self.lanes) if isinstance(b, int) else b
        return self.by.emit(f"{op} {self.word} {a}, {other}")

    def choose(self, condition: str, a: str | int, b: str) -> str:
        first = constant(a, "int32", self.lanes) if isinstance(a, int) else a
        return self.by.emit(f"select {self.bit} {condition}, {self.word} {first}, {self.word} {b}")

    def bits(self, x: str) -> str:
        return self.by.emit(f"bitcast {self.float} {x} to {self.word}")

    def number(self, bits: str) -> str:
        return self.by.emit(f"bitcast {self.word} {bits} to {self.float}")

    def widened(self, x: str) -> str:
        return self.by.emit(f"zext {self.short} {x} to {self.word}")

    def narrowed(self, x: str) -> str:
        return self.by.emit(f"trunc {self.word} {x} to {self.short}")

    def add(self, op: str, a: str, constant_bits: int) -> str:
        """The bits of a float plus (fadd) or minus (fsub) the one with the bits given."""
        other = self.by.emit(f"bitcast {self.word} {constant(constant_bits, 'int32', self.lanes)} to {self.float}")
        return self.bits(self.by.emit(f"{op} {self.float} {self.number(a)}, {other}"))


def _widen_bfloat16(by: Arithmetic, bits: str, lanes: int) -> str:
    w = _Words(by, lanes)
    return w.number(w.do("shl", w.widened(bits), 16))


def _narrow_to_bfloat16(by: Arithmetic, x: str, lanes: int) -> str:
    """Half of the last place is added, and a little less where the place before is even."""
    w = _Words(by, lanes)
    bits = w.bits(x)
    odd = w.do("and", w.do("lshr", bits, 16), 1)
    rounded = w.do("add", w.do("add", bits, 0x7FFF), odd)
    is_nan = by.emit(f"fcmp uno {w.float} {x}, {x}")
    return w.narrowed(w.do("lshr", w.choose(is_nan, w.do("or", bits, 0x400000), rounded), 16))


def _widen_float16(by: Arithmetic, half: str, lanes: int) -> str:
    """Exponents move by 112, that of Inf and NaN twice; a subnormal becomes 2**-14 plus itself, less 2**-14."""
    w = _Words(by, lanes)
    bits = w.widened(by.emit(f"bitcast {vector('half', lanes)} {half} to {w.short}"))
    magnitude = w.do("shl", w.do("and", bits, MAGNITUDE), SHIFT)
    exponent = w.do("and", magnitude, EXPONENT << SHIFT)
    normal = w.do("add", magnitude, REBIAS)
    special = by.emit(f"icmp eq {w.word} {exponent}, {constant(EXPONENT << SHIFT, 'int32', lanes)}")
    small = by.emit(f"icmp eq {w.word} {exponent}, {constant(0, 'int32', lanes)}")
    subnormal = w.add("fsub", w.do("add", normal, 1 << 23), SMALLEST)
    value = w.choose(small, subnormal, w.choose(special, w.do("add", normal, REBIAS), normal))
    return w.number(w.do("or", value, w.do("shl", w.do("and", bits, SIGN), 16)))


def _narrow_to_float16(by: Arithmetic, x: str, lanes: int) -> str:
    """Normal results are rounded on the bits, subnormal ones by the sum with 1/2, whose last place is theirs."""
    w = _Words(by, lanes)
    bits = w.bits(x)
    magnitude = w.do("and", bits, 0x7FFFFFFF)
    odd = w.do("and", w.do("lshr", magnitude, SHIFT), 1)
    rounded = w.do("lshr", w.do("add", w.do("add", magnitude, (1 << SHIFT - 1) - 1 - REBIAS), odd), SHIFT)
    subnormal = w.do("sub", w.add("fadd", magnitude, ROUNDS_AT), ROUNDS_AT)
    small = by.emit(f"icmp ult {w.word} {magnitude}, {constant(SMALLEST, 'int32', lanes)}")
    large = by.emit(f"icmp uge {w.word} {magnitude}, {constant(OVERFLOWS, 'int32', lanes)}")
    is_nan = by.emit(f"fcmp uno {w.float} {x}, {x}")
    beyond = w.choose(is_nan, EXPONENT | QUIET, w.choose(large, EXPONENT, w.choose(small, subnormal, rounded)))
    half = w.narrowed(w.do("or", beyond, w.do("and", w.do("lshr", bits, 16), SIGN)))
    return by.emit(f"bitcast {w.short} {half} to {vector('half', lanes)}")


__all__ = ["convert"]
