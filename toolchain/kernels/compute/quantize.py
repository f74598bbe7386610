"""Conversions between types: Cast, QuantizeLinear, DequantizeLinear, also to and from the small types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.compute.small import FORMATS, WIDTH, decode, encode
from toolchain.kernels.op import Compute, Op, injective

At = tuple[Any, ...]


def number(op: Op, i: int, x: te.Expr) -> te.Expr:
    """The value of an element of input i: small types decoded, others as they are."""
    kind = op.input_kinds[i]
    return decode(x, kind) if kind in dtypes.SMALL else x


def cast(op: Op) -> te.Tensor:
    """As NumPy's astype; to bool: what is not 0; to types of less than 16 bits: rounded, with the node's `saturate`."""
    kind, source = op.kinds[0], op.input_kinds[0]
    saturate, mode = bool(op.attr("saturate", 1)), str(op.attr("round_mode", "up"))

    def value(i: At) -> te.Expr:
        x = op.read(0, i)
        if source == kind:
            return x
        x = number(op, 0, x)
        if kind in dtypes.SMALL:
            return encode(x, kind, saturate, mode)
        return x.not_equal(te.const(0, x.dtype)) if kind == "bool" and x.dtype != "bool" else x.astype(kind)
    return injective(op, value, tag="elementwise")


def _quantization(op: Op, i: At, n: int) -> te.Expr:
    """The scale or zero point at an index of the result: one number, one per slice of `axis`, or one per block of it."""
    shape = op.in_shape(n)
    if math.prod(shape) == 1:
        return number(op, n, op.scalar(n))
    axis = op.axis("axis", 1)
    if len(shape) == 1:
        return number(op, n, op.tensor(n)[i[axis]])
    block = int(op.attr("block_size", 0))
    return number(op, n, op.tensor(n)[(*i[:axis], te.index(i[axis]) // block, *i[axis + 1:])])


def quantize_linear(op: Op) -> te.Tensor:
    """round(x / scale) + zero point, halves to even, saturated; small floats: the quotient. Source: ONNX."""
    kind = op.kinds[0]
    if kind in FORMATS:
        return injective(op, lambda i: encode(_quotient(op, i, _wide(op, i)), kind, bool(op.attr("saturate", 1))),
                         tag="elementwise")
    if not (dtypes.is_integer(kind) or kind in WIDTH):
        raise CodegenError(f"QuantizeLinear to {kind} is not supported", where=op.node.name)
    low, high = _range(kind)
    bounds = _saturating(op, low, high)

    def value(i: At) -> te.Expr:
        x = _wide(op, i)
        level = te.round(_quotient(op, i, _clip(x, *bounds) if bounds else x))
        if op.has(2):
            level = level + _quantization(op, i, 2).astype("float32")
        level = (level if bounds else _clip(level, low, high)).astype("int32")     # float32 holds all integers in question
        return encode(level, kind) if kind in WIDTH else level.astype(op.dtype)
    return injective(op, value, tag="elementwise")


def _wide(op: Op, i: At) -> te.Expr:
    return op.read(0, i).astype("float32")


def _clip(x: te.Expr, low: float, high: float) -> te.Expr:
    return te.minimum(te.maximum(x, float(low)), float(high))


def _saturating(op: Op, low: int, high: int) -> tuple[float, float] | None:
    """The numbers that become the lowest and the highest level, where scale and zero point are one constant each: saturated
    before, a quotient lies among few levels, and lowering needs no division (`te/lower/divide_levels.py`)."""
    scale, zero = _known(op, 1), _known(op, 2) if op.has(2) else 0.0
    if scale is None or zero is None or not 0.0 < scale < math.inf or scale == 1.0:
        return None
    lowest, highest = (float(np.float32((level - zero) * scale)) for level in (low, high))
    return (lowest, highest) if math.isfinite(lowest) and math.isfinite(highest) else None


def _known(op: Op, n: int) -> float | None:
    """The one number of a constant input, as float32 has it."""
    value = op.constants[n]
    if value is None or value.size != 1 or op.input_kinds[n] in dtypes.SMALL:
        return None
    return float(value.astype(np.float32).reshape(()))


def _range(kind: str) -> tuple[int, int]:
    if kind not in WIDTH:
        return int(dtypes.lowest(kind)), int(dtypes.highest(kind))
    count = 1 << WIDTH[kind]
    return (0, count - 1) if kind.startswith("u") else (-count // 2, count // 2 - 1)


def _quotient(op: Op, i: At, x: te.Expr) -> te.Expr:
    """x / scale; a scale of one, behind what was scaled already, divides nothing."""
    return x if _known(op, 1) == 1.0 else x / _quantization(op, i, 1).astype("float32")


def dequantize_linear(op: Op) -> te.Tensor:
    """(x - zero point) * scale; small floats have no zero point. Source: ONNX DequantizeLinear."""
    floating = op.input_kinds[0] in FORMATS

    def value(i: At) -> te.Expr:
        x = number(op, 0, op.read(0, i))
        if not floating:
            exact = "int32" if dtypes.bits(x.dtype) < 32 else "int64"
            x = x.astype(exact)
            if op.has(2):
                x = x - _quantization(op, i, 2).astype(exact)
        scale = _quantization(op, i, 1)
        return (x.astype("float32") * scale.astype("float32")).astype(op.dtype)
    return injective(op, value, tag="elementwise")


QUANTIZE: dict[str, Compute] = {
    "Cast": cast,
    "CastLike": cast,
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
}
