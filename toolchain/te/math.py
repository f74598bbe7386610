"""The functions a definition may use, named as in NumPy: each builds `Call(name, args)` of its first argument's dtype.

The interpreter evaluates them with NumPy; backends expand them (`lower_intrinsics`) or have an instruction.
"""


from __future__ import annotations

from toolchain.te.expr import Expr, ExprLike, all_of, any_of, as_expr, binary, call, maximum, minimum, select


def exp(x: ExprLike) -> Expr:
    return call("exp", x)


def exp_nonpositive(x: ExprLike) -> Expr:
    """exp of an x that is not above 0, or NaN: what a softmax takes. Of others it promises nothing."""
    return call("exp_nonpositive", x)


def log(x: ExprLike) -> Expr:
    return call("log", x)


def sqrt(x: ExprLike) -> Expr:
    return call("sqrt", x)


def rsqrt(x: ExprLike) -> Expr:
    return call("rsqrt", x)


def sin(x: ExprLike) -> Expr:
    return call("sin", x)


def cos(x: ExprLike) -> Expr:
    return call("cos", x)


def tan(x: ExprLike) -> Expr:
    return call("tan", x)


def asin(x: ExprLike) -> Expr:
    return call("asin", x)


def acos(x: ExprLike) -> Expr:
    return call("acos", x)


def atan(x: ExprLike) -> Expr:
    return call("atan", x)


def sinh(x: ExprLike) -> Expr:
    return call("sinh", x)


def cosh(x: ExprLike) -> Expr:
    return call("cosh", x)


def tanh(x: ExprLike) -> Expr:
    return call("tanh", x)


def sigmoid(x: ExprLike) -> Expr:
    """1/(1 + exp(-x))"""
    return call("sigmoid", x)


def erf(x: ExprLike) -> Expr:
    return call("erf", x)


def normal_cdf(x: ExprLike) -> Expr:
    """The standard normal distribution, (1 + erf(x/sqrt(2)))/2."""
    return call("normal_cdf", x)


def abs(x: ExprLike) -> Expr:
    return call("abs", x)


def floor(x: ExprLike) -> Expr:
    return call("floor", x)


def ceil(x: ExprLike) -> Expr:
    return call("ceil", x)


def trunc(x: ExprLike) -> Expr:
    return call("trunc", x)


def round(x: ExprLike) -> Expr:
    """To the nearest integer, halves to even (ONNX Round)."""
    return call("round", x)


def isnan(x: ExprLike) -> Expr:
    return call("isnan", x, dtype="bool")


def isinf(x: ExprLike) -> Expr:
    return call("isinf", x, dtype="bool")


def pow(x: ExprLike, y: ExprLike) -> Expr:
    return binary("pow", x, y)


def fma(a: ExprLike, b: ExprLike, c: ExprLike) -> Expr:
    """a*b + c, rounded once."""
    first = as_expr(a)
    return call("fma", first, as_expr(b, first), as_expr(c, first))


__all__ = [
    "abs", "acos", "all_of", "any_of", "asin", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp_nonpositive", "floor",
    "fma", "isinf", "isnan", "log", "maximum", "minimum", "normal_cdf", "pow", "round", "rsqrt", "select", "sigmoid",
    "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
]
