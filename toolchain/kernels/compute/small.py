"""Numbers of two to eight bits as expressions: from their byte to float32 or int32, and back.

A small float is sign, exponent and mantissa like its large relatives; what the formats differ in is data (`FORMATS`).
Source: ONNX, "Float stored in 8 bits", "4 bit integer types", "Float8E8M0"; ml_dtypes has the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.te.expr import Bin, binary


@dataclass(frozen=True, slots=True)
class Format:
    """Bits of exponent and mantissa; the largest finite code, the code a too large number becomes when not saturated, and
    the code of NaN (codes without the sign). unsigned_zero: no -0, whose code is the one NaN."""

    exponent: int
    mantissa: int
    bias: int
    largest: int
    overflow: int
    nan: int
    unsigned_zero: bool = False

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def largest_value(self) -> float:
        top = self.largest >> self.mantissa
        return float((1 + (self.largest & (1 << self.mantissa) - 1) / (1 << self.mantissa)) * 2.0 ** (top - self.bias))


FORMATS = {
    "float8_e4m3fn": Format(4, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e4m3fnuz": Format(4, 3, 8, 0x7F, 0x80, 0x80, unsigned_zero=True),
    "float8_e5m2": Format(5, 2, 15, 0x7B, 0x7C, 0x7E),
    "float8_e5m2fnuz": Format(5, 2, 16, 0x7F, 0x80, 0x80, unsigned_zero=True),
    "float4_e2m1fn": Format(2, 1, 1, 0x7, 0x7, 0x8),            # has neither infinity nor NaN: -0 stands for it
}
WIDTH = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}


def _int(value: int) -> te.Expr:
    return te.const(value, "int32")


def _and(a: te.Expr, mask: int) -> te.Expr:
    return Bin("and", a, _int(mask))


def _shift(symbol: str, a: te.Expr, n: int) -> te.Expr:
    return binary(symbol, a, _int(n)) if n else a


def _float(bits: te.Expr) -> te.Expr:
    return te.call("bitcast", bits, dtype="float32")


def _bits(x: te.Expr) -> te.Expr:
    return te.call("bitcast", x, dtype="int32")


def decode(byte: te.Expr, kind: str) -> te.Expr:
    """The number that a byte stands for: int32 of the small integers, float32 of the small floats. Exact."""
    code = byte.astype("int32")
    if kind in WIDTH:
        code = _and(code, (1 << WIDTH[kind]) - 1)
        half = 1 << WIDTH[kind] - 1
        return code if kind.startswith("u") else te.select(code >= half, code - _int(2 * half), code)
    if kind == "float8_e8m0fnu":
        power = te.select(code.equal(0), _float(_int(1 << 22)), _float(_shift("<<", code, 23)))
        return te.select(code.equal(255), te.const(math.nan), power)
    f = FORMATS[kind]
    size = _and(code, (1 << f.bits - 1) - 1)
    exponent, mantissa = _shift(">>", size, f.mantissa), _and(size, (1 << f.mantissa) - 1)
    normal = _float(_shift("<<", size, 23 - f.mantissa) + _int((127 - f.bias) << 23))
    subnormal = mantissa.astype("float32") * 2.0 ** (1 - f.bias - f.mantissa)
    value = te.select(exponent.equal(0), subnormal, normal)
    if f.unsigned_zero:
        value = te.select(code.equal(f.nan), te.const(math.nan), value)
    elif f.bits == 8:
        beyond = te.const(math.inf) if f.overflow != f.nan else te.const(math.nan)
        value = te.select(size > f.largest, te.select(size.equal(f.overflow), beyond, te.const(math.nan)), value)
    return te.select(_and(code, 1 << f.bits - 1).equal(0), value, te.const(-0.0) - value)


def encode(x: te.Expr, kind: str, saturate: bool = True, round_mode: str = "up") -> te.Expr:
    """The byte of a number, rounded to the nearest, ties to even. Integers drop their higher bits, as ONNX's Cast does."""
    if kind in WIDTH:
        return _and(x.astype("int32"), (1 << WIDTH[kind]) - 1).astype("uint8")
    if x.dtype == "float64":
        raise CodegenError(f"float64 to {kind} is not supported: it would be rounded twice", fix="Cast to float32 first")
    x = x.astype("float32")
    if kind == "float8_e8m0fnu":
        return _encode_power(x, saturate, round_mode)
    f = FORMATS[kind]
    size = te.minimum(te.abs(x), te.const(4 * f.largest_value))
    exponent = te.maximum(_shift(">>", _bits(size), 23) - _int(127 - f.bias), _int(1))      # of the result, biased
    quantum = _float(_shift("<<", _int(127 + f.bias + f.mantissa) - exponent, 23))          # how many of them are one
    code = _shift("<<", exponent - _int(1), f.mantissa) + te.round(size * quantum).astype("int32")
    code = te.select(code > f.largest, _int(f.largest if saturate else f.overflow), code)
    negative = _bits(x) < 0
    if f.unsigned_zero:
        negative = te.all(negative, code > 0)
        signed = Bin("or", code, te.select(negative, _int(0x80), _int(0)))
    else:
        signed = code + te.select(negative, _int(1 << f.bits - 1), _int(0))
    return te.select(te.isnan(x), _int(f.nan), signed).astype("uint8")


def _encode_power(x: te.Expr, saturate: bool, round_mode: str) -> te.Expr:
    """The exponent of a float32, rounded by its mantissa: float8_e8m0fnu. Source: onnx.numpy_helper.to_float8e8m0."""
    bits = _bits(x)
    exponent, mantissa = _and(_shift(">>", bits, 23), 0xFF), _and(bits, 0x7FFFFF)
    match round_mode:
        case "up":
            more = mantissa > 0
        case "down":
            more = te.const(False, "bool")
        case "nearest":                             # a half goes up, but for the smallest power
            more = te.any(mantissa > 0x400000, te.all(mantissa >= 0x400000, exponent > 0))
        case _:
            raise CodegenError(f"Cast with round_mode {round_mode!r} is not supported")
    if saturate:
        more = te.all(more, exponent < 254)
    rounded = exponent + te.select(more, _int(1), _int(0))
    return te.select(exponent.equal(255), _int(255), rounded).astype("uint8")
