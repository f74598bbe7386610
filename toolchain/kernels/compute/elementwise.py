"""Operators with one value per point: arithmetic, activations, comparisons, casts. ONNX operator semantics throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.op import Compute, Op, injective
from toolchain.te.expr import Const, binary

Scalar = Callable[..., te.Expr]


def pointwise(fn: Scalar) -> Compute:
    """fn(x, y, ...) of the broadcast inputs."""
    def compute(op: Op) -> te.Tensor:
        return injective(op, lambda i: fn(*(op.read(n, i) for n in range(len(op.node.inputs)))), tag="elementwise")
    return compute


def with_attrs(fn: Callable[..., te.Expr], **defaults: Any) -> Compute:
    """fn(x, attr=...) with the node's attributes."""
    def compute(op: Op) -> te.Tensor:
        attrs = {k: op.attr(k, v) for k, v in defaults.items()}
        return injective(op, lambda i: fn(op.read(0, i), **attrs), tag="elementwise")
    return compute


def fold(fn: Scalar) -> Compute:
    """A variadic operator, from the left: fn(fn(a, b), c)."""
    def compute(op: Op) -> te.Tensor:
        def value(i: tuple[Any, ...]) -> te.Expr:
            result = op.read(0, i)
            for n in range(1, len(op.node.inputs)):
                result = fn(result, op.read(n, i))
            return result
        return injective(op, value, tag="elementwise")
    return compute


def zero(x: te.Expr) -> te.Expr:
    return te.const(0, x.dtype)


def relu(x: te.Expr) -> te.Expr:
    return te.maximum(x, zero(x))


def clip(op: Op) -> te.Tensor:
    def value(i: tuple[Any, ...]) -> te.Expr:
        x = op.read(0, i)
        if op.has(1):
            x = te.maximum(x, op.read(1, i))
        return te.minimum(x, op.read(2, i)) if op.has(2) else x
    return injective(op, value, tag="elementwise")


def cast(op: Op) -> te.Tensor:
    def value(i: tuple[Any, ...]) -> te.Expr:
        x = op.read(0, i)
        return x.not_equal(zero(x)) if op.dtype == "bool" and x.dtype != "bool" else x.astype(op.dtype)
    return injective(op, value, tag="elementwise")


def sigmoid(x: te.Expr) -> te.Expr:
    return te.sigmoid(x)


def hard_sigmoid(x: te.Expr, alpha: float, beta: float) -> te.Expr:
    return te.minimum(te.maximum(x * alpha + beta, zero(x)), te.const(1, x.dtype))


def hard_swish(x: te.Expr) -> te.Expr:
    return x * hard_sigmoid(x, 1 / 6, 0.5)


def gelu(x: te.Expr, approximate: str) -> te.Expr:
    if approximate == "tanh":
        return x * 0.5 * (te.tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)
    return x * 0.5 * (te.erf(x * math.sqrt(0.5)) + 1.0)


def leaky_relu(x: te.Expr, alpha: float) -> te.Expr:
    return te.select(x < 0, x * alpha, x)


def elu(x: te.Expr, alpha: float) -> te.Expr:
    return te.select(x < 0, (te.exp(x) - 1.0) * alpha, x)


def selu(x: te.Expr, alpha: float, gamma: float) -> te.Expr:
    return te.select(x <= 0, (te.exp(x) - 1.0) * alpha, x) * gamma


def celu(x: te.Expr, alpha: float) -> te.Expr:
    return relu(x) + te.minimum(zero(x), (te.exp(x / alpha) - 1.0) * alpha)


def softplus(x: te.Expr) -> te.Expr:
    """log(1 + exp(x)), written so that neither end overflows."""
    return relu(x) + te.log(te.exp(-te.abs(x)) + 1.0)


def thresholded_relu(x: te.Expr, alpha: float) -> te.Expr:
    return te.select(x > alpha, x, zero(x))


def shrink(x: te.Expr, bias: float, lambd: float) -> te.Expr:
    return te.select(x < -lambd, x + bias, te.select(x > lambd, x - bias, zero(x)))


def sign(x: te.Expr) -> te.Expr:
    one = te.const(1, x.dtype)
    positive = te.select(x > zero(x), one, zero(x))
    return positive if x.dtype.startswith("uint") else te.select(x < zero(x), zero(x) - one, positive)


def reciprocal(x: te.Expr) -> te.Expr:
    return te.const(1, x.dtype) / x


def power(x: te.Expr, y: te.Expr) -> te.Expr:
    """x ** y; ONNX gives the result x's type. Small constant exponents become products."""
    if isinstance(y, Const) and float(y.value) in (1.0, 2.0, 3.0, 0.5):
        match float(y.value):
            case 1.0:
                return x
            case 2.0:
                return x * x
            case 3.0:
                return x * x * x
            case 0.5 if dtypes.is_float(x.dtype):
                return te.sqrt(x)
    if dtypes.is_float(x.dtype):
        return te.call("pow", x, y.astype(x.dtype))
    return te.call("pow", x.astype("float64"), y.astype("float64")).astype(x.dtype)


def negate(x: te.Expr) -> te.Expr:
    return te.const(-0.0, x.dtype) - x if dtypes.is_float(x.dtype) else zero(x) - x


def logical_not(x: te.Expr) -> te.Expr:
    return x.equal(zero(x))


def modulo(op: Op) -> te.Tensor:
    def value(i: tuple[Any, ...]) -> te.Expr:
        x, y = op.read(0, i), op.read(1, i)
        return te.call("fmod", x, y) if op.attr("fmod", 0) else x % y
    return injective(op, value, tag="elementwise")


def prelu(x: te.Expr, slope: te.Expr) -> te.Expr:
    return te.select(x < zero(x), x * slope, x)


def where(c: te.Expr, a: te.Expr, b: te.Expr) -> te.Expr:
    return te.select(c, a, b)


def mean(op: Op) -> te.Tensor:
    n = len(op.node.inputs)

    def value(i: tuple[Any, ...]) -> te.Expr:
        total = op.read(0, i)
        for k in range(1, n):
            total = total + op.read(k, i)
        return total / te.const(n, total.dtype)
    return injective(op, value, tag="elementwise")


def function(name: str) -> Compute:
    """A math function of that name (see te.lower.lower_intrinsics)."""
    return pointwise(lambda x: te.call(name, x))


def operator(symbol: str) -> Compute:
    return pointwise(lambda a, b: binary(symbol, a, b))


ELEMENTWISE: dict[str, Compute] = {
    "Abs": function("abs"),
    "Add": operator("+"),
    "And": operator("and"),
    "BitwiseAnd": operator("and"),
    "BitwiseOr": operator("or"),
    "BitwiseXor": operator("xor"),
    "Cast": cast,
    "CastLike": cast,
    "Ceil": function("ceil"),
    "Celu": with_attrs(celu, alpha=1.0),
    "Clip": clip,
    "Cos": function("cos"),
    "Div": operator("/"),
    "Elu": with_attrs(elu, alpha=1.0),
    "Equal": operator("=="),
    "Erf": function("erf"),
    "Exp": function("exp"),
    "Floor": function("floor"),
    "Gelu": with_attrs(gelu, approximate="none"),
    "Greater": operator(">"),
    "GreaterOrEqual": operator(">="),
    "HardSigmoid": with_attrs(hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": pointwise(hard_swish),
    "Identity": pointwise(lambda x: x),
    "Layout": pointwise(lambda x: x),
    "LeakyRelu": with_attrs(leaky_relu, alpha=0.01),
    "Less": operator("<"),
    "LessOrEqual": operator("<="),
    "Log": function("log"),
    "Max": fold(te.maximum),
    "Mean": mean,
    "Min": fold(te.minimum),
    "Mish": pointwise(lambda x: x * te.tanh(softplus(x))),
    "Mod": modulo,
    "Mul": operator("*"),
    "Neg": pointwise(negate),
    "Not": pointwise(logical_not),
    "Or": operator("or"),
    "PRelu": pointwise(prelu),
    "Pow": pointwise(power),
    "Reciprocal": pointwise(reciprocal),
    "Relu": pointwise(relu),
    "Round": function("round"),
    "Selu": with_attrs(selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Shrink": with_attrs(shrink, bias=0.0, lambd=0.5),
    "Sigmoid": pointwise(sigmoid),
    "Sign": pointwise(sign),
    "Sin": function("sin"),
    "Softplus": pointwise(softplus),
    "Softsign": pointwise(lambda x: x / (te.abs(x) + 1.0)),
    "Sqrt": function("sqrt"),
    "Sub": operator("-"),
    "Sum": fold(lambda a, b: a + b),
    "Swish": with_attrs(lambda x, alpha: x * te.sigmoid(x * alpha), alpha=1.0),
    "Tanh": function("tanh"),
    "ThresholdedRelu": with_attrs(thresholded_relu, alpha=1.0),
    "Where": pointwise(where),
    "Xor": operator("xor"),
}
