"""Operators with one value per point: arithmetic, activations, comparisons, casts. ONNX operator semantics throughout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.op import Compute, Op, injective
from toolchain.te.expr import Bin, Const, binary

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


def with_nan(pick: Scalar) -> Scalar:
    """Max and Min with IEEE's meaning of NaN: one in either operand is the result."""
    def value(a: te.Expr, b: te.Expr) -> te.Expr:
        return te.select(te.isnan(a), a, pick(a, b)) if dtypes.is_float(a.dtype) else pick(a, b)
    return value


def absolute(x: te.Expr) -> te.Expr:
    return x if x.dtype in dtypes.UINTS else te.abs(x)


def clip(op: Op) -> te.Tensor:
    def value(i: tuple[Any, ...]) -> te.Expr:
        x = op.read(0, i)
        if op.has(1):
            x = te.maximum(op.read(1, i), x)            # x last: a NaN in it stays
        return te.minimum(op.read(2, i), x) if op.has(2) else x
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
    return x * te.normal_cdf(x)


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
    return relu(x) + te.log(te.exp_nonpositive(-te.abs(x)) + 1.0)


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
    if isinstance(y, Const) and float(y.value) in (1.0, 2.0, 3.0):
        return _product(x, int(y.value))
    if dtypes.is_float(x.dtype) and (dtypes.is_float(y.dtype) or x.dtype == "float64"):
        return te.pow(x, y.astype(x.dtype))
    return te.pow(x.astype("float64"), y.astype("float64")).astype(x.dtype)


def _product(x: te.Expr, times: int) -> te.Expr:
    return x if times == 1 else _product(x, times - 1) * x


def negate(x: te.Expr) -> te.Expr:
    return te.const(-0.0, x.dtype) - x if dtypes.is_float(x.dtype) else zero(x) - x


def logical_not(x: te.Expr) -> te.Expr:
    return x.equal(zero(x))


def modulo(op: Op) -> te.Tensor:
    """The rest has the sign of the divisor (Python), or with `fmod` that of the dividend (C)."""
    rest = remainder if op.attr("fmod", 0) else floor_modulo
    return injective(op, lambda i: rest(op.read(0, i), op.read(1, i)), tag="elementwise")


def remainder(x: te.Expr, y: te.Expr) -> te.Expr:
    """C's fmod. Floats of up to 32 bits are exact while |x/y| < 2**29; an infinite divisor leaves x as it is."""
    if not dtypes.is_float(x.dtype):
        return x - x / y * y
    a, b = x.astype("float64"), y.astype("float64")
    size = te.abs(a) - te.floor(te.abs(a) / te.abs(b)) * te.abs(b)
    whole = te.select(te.abs(a).equal(math.inf), te.const(math.nan, "float64"), te.abs(a))
    rest = te.select(te.abs(b).equal(math.inf), whole, size)
    return te.select(_negative(a), te.const(-0.0, "float64") - rest, rest).astype(x.dtype)


def _negative(x: te.Expr) -> te.Expr:
    """Whether the sign bit of a float64 is set: of -0.0 too."""
    return te.call("bitcast", x, dtype="int64") < 0


def floor_modulo(x: te.Expr, y: te.Expr) -> te.Expr:
    """Python's %: C's rest, plus the divisor where their signs differ. A rest of zero has the divisor's sign."""
    if not dtypes.is_float(x.dtype):
        return x % y
    rest, nil = remainder(x, y), zero(x)
    apart = te.any((rest < nil) & (y > nil), (rest > nil) & (y < nil))
    signed_zero = te.select(y < nil, te.const(-0.0, x.dtype), nil)
    return te.select(apart, rest + y, te.select(rest.equal(nil), signed_zero, rest))


def bit_shift(x: te.Expr, n: te.Expr, direction: str) -> te.Expr:
    """x << n or x >> n. By as many bits as there are, or more (a negative n counts as such), everything is shifted out: zero
    is left, or of a negative number shifted right its sign. Source: ONNX BitShift."""
    bits = dtypes.bits(x.dtype)
    shifted = binary("<<" if direction == "LEFT" else ">>", x, n)
    signed = x.dtype.startswith("int")
    gone = te.select(x < zero(x), zero(x) - te.const(1, x.dtype), zero(x)) if signed and direction == "RIGHT" else zero(x)
    return te.select(te.all(n >= zero(n), n < bits) if signed else n < bits, shifted, gone)


def bitwise(symbol: str) -> Compute:
    return pointwise(lambda a, b: Bin(symbol, a, b))


def bitwise_not(x: te.Expr) -> te.Expr:
    return Bin("xor", x, te.const(-1 if x.dtype.startswith("int") else 2 ** dtypes.bits(x.dtype) - 1, x.dtype))


def is_inf(x: te.Expr, detect_negative: int, detect_positive: int) -> te.Expr:
    positive = x.equal(math.inf) if detect_positive else te.const(False, "bool")
    negative = x.equal(-math.inf) if detect_negative else te.const(False, "bool")
    return te.any(positive, negative)


def in_float64(fn: Scalar) -> Scalar:
    """fn computed in float64 and rounded once: for functions whose formulas cancel near a zero."""
    return lambda x: fn(x.astype("float64")).astype(x.dtype)


def asinh(x: te.Expr) -> te.Expr:
    """sign(x) log(|x| + sqrt(x^2 + 1)); the first terms of its series near 0, where that cancels."""
    a = te.abs(x)
    large = te.log(te.select(a > 1e8, a * 2.0, a + te.sqrt(a * a + 1.0)))
    return te.select(a < 1e-3, x - x * x * x * (1 / 6), te.select(x < 0.0, -large, large))


def acosh(x: te.Expr) -> te.Expr:
    """log(x + sqrt(x^2 - 1)), NaN below 1."""
    return te.log(x + te.sqrt(x - 1.0) * te.sqrt(x + 1.0))


def atanh(x: te.Expr) -> te.Expr:
    """log((1 + x)/(1 - x))/2; the first terms of its series near 0, where that cancels."""
    return te.select(te.abs(x) < 1e-3, x + x * x * x * (1 / 3), te.log((x + 1.0) / (1.0 - x)) * 0.5)


def bit_cast(op: Op) -> te.Tensor:
    """The same bits as another type; a bool is a byte."""
    def value(i: tuple[Any, ...]) -> te.Expr:
        x = op.read(0, i)
        x = x.astype("uint8") if x.dtype == "bool" else x
        if op.dtype == "bool":
            return te.call("bitcast", x, dtype="uint8").not_equal(te.const(0, "uint8"))
        return te.call("bitcast", x, dtype=op.dtype)
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
    "Abs": pointwise(absolute),
    "Acos": function("acos"),
    "Acosh": pointwise(in_float64(acosh)),
    "Add": operator("+"),
    "And": operator("and"),
    "Asin": function("asin"),
    "Asinh": pointwise(in_float64(asinh)),
    "Atan": function("atan"),
    "Atanh": pointwise(in_float64(atanh)),
    "BitCast": bit_cast,
    "BitShift": lambda op: injective(op, lambda i: bit_shift(op.read(0, i), op.read(1, i), op.attr("direction"))),
    "BitwiseAnd": bitwise("and"),
    "BitwiseNot": pointwise(bitwise_not),
    "BitwiseOr": bitwise("or"),
    "BitwiseXor": bitwise("xor"),
    "Ceil": function("ceil"),
    "Celu": with_attrs(celu, alpha=1.0),
    "Clip": clip,
    "Cos": function("cos"),
    "Cosh": function("cosh"),
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
    "IsInf": with_attrs(is_inf, detect_negative=1, detect_positive=1),
    "IsNaN": pointwise(te.isnan),
    "Layout": pointwise(lambda x: x),
    "LeakyRelu": with_attrs(leaky_relu, alpha=0.01),
    "Less": operator("<"),
    "LessOrEqual": operator("<="),
    "Log": function("log"),
    "Max": fold(with_nan(te.maximum)),
    "Mean": mean,
    "Min": fold(with_nan(te.minimum)),
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
    "Sinh": function("sinh"),
    "Softplus": pointwise(softplus),
    "Softsign": pointwise(lambda x: x / (te.abs(x) + 1.0)),
    "Sqrt": function("sqrt"),
    "Sub": operator("-"),
    "Sum": fold(lambda a, b: a + b),
    "Swish": with_attrs(lambda x, alpha: x * te.sigmoid(x * alpha), alpha=1.0),
    "Tan": function("tan"),
    "Tanh": function("tanh"),
    "ThresholdedRelu": with_attrs(thresholded_relu, alpha=1.0),
    "Where": pointwise(where),
    "Xor": operator("xor"),
}
