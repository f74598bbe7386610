"""Mathematical functions as te expressions: range reduction and polynomials. What `lower_intrinsics` puts in for a call.

Stated errors are the largest seen against NumPy's long double over the whole range (tests/te/lower/test_intrinsics.py); one
ulp is the distance to the next float of the result's type. NaN gives NaN, infinities and zeros what IEEE 754 says.

    float32   exp 1, log 1, tanh 5, sigmoid 3, erf, asin, acos 1 ulp; normal_cdf 1e-7, and 2e-4 relative down to -6, 2e-3
              down to -8; sin, cos, tan (|x| < 1e9), atan, sinh, cosh, pow 1 ulp: computed in float64; exp_nonpositive 1.5
              ulp and 1.5e-8 |x| of the result more (without fma 1.2e-7 |x|)
    float64   exp 1, log 1, tanh 2, sigmoid 3, sin, cos 2 (|x| < 1e5), tan, sinh, cosh 4, asin, acos, atan 2 ulp;
              erf 16 ulp, normal_cdf 1e-15; pow 1e-13 relative, exact for whole exponents up to 63 where the result is
    sigmoid is 0 where exp(-x) overflows (its true value is below the smallest normal number there)

Sources: Cephes (S. Moshier) for log, tanh, atan; fdlibm (Sun Microsystems) for log, sin, cos in float64 and for asin, acos
in float32; Eigen for tanh in float32; N. Juffa (stackoverflow.com/a/35148199) for erf in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from toolchain.te.expr import Bin, Call, Const, Expr, binary, cast, const, maximum, minimum, select

INT = {"float32": "int32", "float64": "int64"}
MANTISSA = {"float32": 23, "float64": 52}
BIAS = {"float32": 127, "float64": 1023}
INF = float("inf")
EXP_MAGIC = {d: 1.5 * 2.0**bits for d, bits in MANTISSA.items()}      # adding it leaves a whole number in the low bits
EXP2 = [1.535336188e-4, 1.339887440e-3, 9.618437357e-3, 5.550332548e-2, 2.402264791e-1, 6.931472028e-1, 1.0]  # of |r| <= 1/2
RAISED = 64                 # added to exponents down to -180, so that they stay those of normal numbers


def call(name: str, x: Expr) -> Expr:
    return Call(name, (x,), x.dtype)


def bitcast(dtype: str, x: Expr) -> Expr:
    return Call("bitcast", (x,), dtype)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """coefficients[0]*x^n + ... + coefficients[-1], as products that feed sums (fma where there is one)."""
    result: Expr = const(coefficients[0], x.dtype)
    for c in coefficients[1:]:
        result = result * x + c
    return result


def power_of_two(n: Expr, dtype: str) -> Expr:
    """2**n of an integer expression within the normal range."""
    return bitcast(dtype, binary("<<", n + BIAS[dtype], MANTISSA[dtype]))


def exp(x: Expr) -> Expr:
    """2**n * p(r) with x = n*ln2 + r, |r| <= ln2/2; subnormals come out right."""
    d = x.dtype
    low, high = (-104.0, 89.0) if d == "float32" else (-746.0, 710.0)
    p, shifted = _exp_parts(minimum(maximum(x, low), high))
    return Call("ldexp", (p, shifted - EXP_MAGIC[d]), d)


def exp_normal(x: Expr) -> Expr:
    """exp(x) of an x whose result is a normal number: n is added to the exponent of p."""
    p, shifted = _exp_parts(x)
    d = x.dtype
    return bitcast(d, bitcast(INT[d], p) + binary("<<", bitcast(INT[d], shifted), MANTISSA[d]))


def exp_nonpositive(x: Expr) -> Expr:
    """2**n * p(r) with x/ln2 = n + r, |r| <= 1/2, of an x that is not above 0. One bound, and one product to reduce x, whose
    constant is off by 1.3e-8 of itself: less than x was rounded by, if it is a difference of floats."""
    if x.dtype != "float32":
        return exp(x)
    magic, bounded = EXP_MAGIC[x.dtype] + RAISED, maximum(x, -104.0)
    n = bounded * (1 / math.log(2)) + magic - magic
    minus_r = bounded * (-1 / math.log(2)) + n
    p = horner(minus_r, [c if k % 2 == 0 else -c for k, c in enumerate(EXP2)])
    return Call("ldexp_down", (p, n), x.dtype)


def ldexp_down(x: Expr, n: Expr) -> Expr:
    """x * 2**n of an x near 1 and a whole n from -180 to 0, found by adding EXP_MAGIC + RAISED, where a target has no
    instruction for it: raised into the normal range, so that the product behind rounds what is below that once."""
    assert isinstance(n, Bin)
    power = binary("<<", bitcast(INT[x.dtype], n.a), MANTISSA[x.dtype])             # its low bits hold n + RAISED
    return bitcast(x.dtype, bitcast(INT[x.dtype], x) + power) * 2.0**-RAISED


def _exp_parts(x: Expr) -> tuple[Expr, Expr]:
    """(p(r), a number that holds n in its low bits) of a bounded x."""
    d = x.dtype
    if d == "float32":
        ln2_high, ln2_low = 0.693359375, -2.12194440e-4
        coefficients = [1.3820690e-3, 8.3686756e-3, 4.1668266e-2, 1.6666521e-1, 4.9999994e-1]     # minimax, error 3.1e-9
    else:
        ln2_high, ln2_low = 6.93145751953125e-1, 1.42860682030941723212e-6
        coefficients = [1 / math.factorial(k) for k in range(13, 1, -1)]
    shifted = x * (1 / math.log(2)) + EXP_MAGIC[d]
    n = shifted - EXP_MAGIC[d]
    r = n * -ln2_low + (n * -ln2_high + x)
    return horner(r, [*coefficients, 1.0, 1.0]), shifted


def exp2(x: Expr) -> Expr:
    """2**n * p(r) with x = n + r, |r| <= 1/2, of a float32 above -2**22; what is below the normal range loses digits."""
    n = x + EXP_MAGIC[x.dtype] - EXP_MAGIC[x.dtype]
    p = horner(x - n, EXP2)
    return Call("ldexp", (p, n), x.dtype)


def ldexp(x: Expr, n: Expr) -> Expr:
    """x * 2**n of a whole n, where a target has no instruction for it: in halves, so that neither overflows by itself."""
    power = _whole(n)
    half = binary(">>", power, 1)
    return x * power_of_two(half, x.dtype) * power_of_two(power - half, x.dtype)


def _whole(n: Expr) -> Expr:
    """A whole number as an integer: the low bits of what it was found by, or of itself behind the same sum."""
    magic = EXP_MAGIC[n.dtype]
    match n:
        case Bin("-", shifted, Const(value)) if value == magic:
            pass
        case _:
            shifted = n + magic
    return bitcast(INT[n.dtype], shifted) - bitcast(INT[n.dtype], const(magic, n.dtype))


def log(x: Expr) -> Expr:
    """log(m) + e*ln2 with x = m * 2**e, sqrt(1/2) <= m < sqrt(2)."""
    d = x.dtype
    mantissa, tiny = MANTISSA[d], 2.0 ** (1 - BIAS[d])
    start = 0x3F3504F3 if d == "float32" else 0x3FE6A09E667F3BCD           # the bits of sqrt(1/2)
    subnormal = x < tiny
    scaled = select(subnormal, x * 2.0**mantissa, x)
    bits = bitcast(INT[d], scaled) - start
    e = cast(d, binary(">>", bits, mantissa)) - select(subnormal, const(mantissa, d), const(0, d))
    m = bitcast(d, Bin("and", bits, const((1 << mantissa) - 1, INT[d])) + start)
    result = _log_float32(m - 1.0, e) if d == "float32" else _log_float64(m - 1.0, e)
    result = select(x < INF, result, const(INF, d))
    return select(x > 0.0, result, select(x.equal(0.0), const(-INF, d), const(math.nan, d)))


def _log_float32(f: Expr, e: Expr) -> Expr:
    square = f * f
    p = horner(f, [7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
                   2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1])
    y = square * -0.5 + (e * -2.12194440e-4 + p * (square * f))
    return e * 0.693359375 + (f + y)


def _log_float64(f: Expr, e: Expr) -> Expr:
    s = f / (f + 2.0)
    z = s * s
    r = horner(z, [1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1, 2.222219843214978396e-1,
                   2.857142874366239149e-1, 3.999999999940941908e-1, 6.666666666666735130e-1]) * z
    half = f * f * 0.5
    return e * 6.93147180369123816490e-1 - ((half - (s * (half + r) + e * 1.90821492927058770002e-10)) - f)


def tanh(x: Expr) -> Expr:
    """An odd rational function (float32); for float64 that near 0 and (1 - t)/(1 + t), t = exp(-2|x|), elsewhere."""
    if x.dtype == "float32":
        c = minimum(maximum(x, -7.90531110763549805), 7.90531110763549805)
        z = c * c
        scale = 256.0                          # exact; keeps c*p of a small c in the normal range
        p = horner(z, [a * scale for a in (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
                                           5.12229709037114e-8, 1.48572235717979e-5, 6.37261928875436e-4,
                                           4.89352455891786e-3)])
        q = horner(z, [a * scale for a in (1.19825839466702e-6, 1.18534705686654e-4, 2.26843463243900e-3,
                                           4.89352518554385e-3)])
        return c * p / q
    z = x * x
    p = horner(z, [-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3])
    q = horner(z, [1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3])
    t = exp(call("abs", x) * -2.0)
    far = (1.0 - t) / (1.0 + t)
    return select(call("abs", x) < 0.625, x + x * (z * (p / q)), select(x < 0.0, -far, far))


def sigmoid(x: Expr) -> Expr:
    """1/(1 + exp(-x))"""
    return 1.0 / (1.0 + exp(-x))


def erf(x: Expr) -> Expr:
    """x*p(x*x) near 0, 1 - exp(p(|x|)) elsewhere (float32); exp(-x*x) times a series, from 3 on a fraction (float64)."""
    a = call("abs", x)
    if x.dtype == "float32":
        sign = Bin("and", bitcast("int32", x), const(-(2**31), "int32"))
        u = maximum(bitcast("float32", Bin("or", bitcast("int32", x), const(-(2**31), "int32"))), -4.0)   # -|x|; erf(4) is 1
        far = horner(u, [1.72853470e-5, 3.83197126e-4, 3.88396438e-3, 2.42546219e-2, 1.06777877e-1, -6.34846687e-1,
                         1.28717512e-1]) * u + u
        z = x * x
        near = horner(z, [-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1])
        large = bitcast("float32", Bin("or", bitcast("int32", 1.0 - exp_normal(far)), sign))
        return select(a < 0.921875, near * x + x, large)
    z = minimum(a, 3.0) * minimum(a, 3.0)
    series: Expr = const(1.0, x.dtype)
    for n in range(50, 0, -1):
        series = series * (z * (2.0 / (2 * n + 1))) + 1.0
    near = minimum(a, 3.0) * series * exp(-z) * (2 / math.sqrt(math.pi))
    t = minimum(maximum(a, 3.0), 6.0)
    fraction = t
    for n in range(24, 0, -1):                   # erfc as a continued fraction: DLMF 7.9.1
        fraction = t + n / 2 / fraction
    far = 1.0 - exp(-(t * t)) / (fraction * math.sqrt(math.pi))
    value = select(a < 3.0, near, select(a >= 3.0, far, x))
    return select(x < 0.0, -value, value)


def normal_cdf(x: Expr) -> Expr:
    """The standard normal distribution: 2**p(|x|) below 0, 1 less that above (float32); (1 + erf(x/sqrt(2)))/2 (float64).

    p is |x| times a polynomial, less one: log2 of the distribution of -|x|, fitted (weighted minimax by Lawson's iteration)
    for errors of 2e-8 of the result above, of 1e-4 relative below down to -6. Left of -14.3, where it is 6e-47, it is 0.
    """
    if x.dtype != "float32":
        return (erf(x * math.sqrt(0.5)) + 1.0) * 0.5
    a = minimum(14.3, call("abs", x))
    tail = horner(a, [6.00435534e-10, -3.3008021e-08, 7.53010974e-07, -9.27345257e-06, 6.6072853e-05, -2.46058678e-04,
                      -6.19624588e-05, 7.01221343e-03, -5.24786498e-02, -4.59210664e-01, -1.15110512, -1.0])
    below = exp2(tail)
    return select(x < 0.0, below, 1.0 - below)


def in_float64(fn: Callable[..., Expr]) -> Callable[..., Expr]:
    """Rarely used functions: computed in float64, rounded to the argument's type."""
    def wide(*args: Expr) -> Expr:
        return cast(args[0].dtype, fn(*(cast("float64", a) for a in args)))

    wide.__doc__ = fn.__doc__
    return wide


def _quadrant(x: Expr) -> tuple[Expr, Expr]:
    """(n, r) with x = n*pi/2 + r, |r| <= pi/4; n as an integer."""
    magic = 1.5 * 2.0**52
    shifted = x * (2 / math.pi) + magic
    n = shifted - magic
    r = n * -1.57079632673412561417
    r = n * -2.02226624879595063154e-21 + (n * -6.07710050630396597660e-11 + (x + r))
    return bitcast("int64", shifted), r


def _sin_kernel(r: Expr) -> Expr:
    z = r * r
    p = horner(z, [1.58969099521155010221e-10, -2.50507602534068634195e-8, 2.75573137070700676789e-6,
                   -1.98412698298579493134e-4, 8.33333333332248946124e-3, -1.66666666666666324348e-1])
    return p * (z * r) + r


def _cos_kernel(r: Expr) -> Expr:
    z = r * r
    p = horner(z, [-1.13596475577881948265e-11, 2.08757232129817482790e-9, -2.75573143513906633035e-7,
                   2.48015872894767294178e-5, -1.38888888888741095749e-3, 4.16666666666666019037e-2])
    return p * (z * z) + (z * -0.5 + 1.0)


def _bit(n: Expr, mask: int) -> Expr:
    return Bin("and", n, const(mask, n.dtype)).not_equal(0)


def _sin(x: Expr) -> Expr:
    n, r = _quadrant(x)
    value = select(_bit(n, 1), _cos_kernel(r), _sin_kernel(r))
    return select(_bit(n, 2), -value, value)


def _cos(x: Expr) -> Expr:
    n, r = _quadrant(x)
    value = select(_bit(n, 1), _sin_kernel(r), _cos_kernel(r))
    return select(_bit(n + 1, 2), -value, value)


def _tan(x: Expr) -> Expr:
    n, r = _quadrant(x)
    s, c = _sin_kernel(r), _cos_kernel(r)
    return select(_bit(n, 1), -c / s, s / c)


def _atan(x: Expr) -> Expr:
    """Reduced to |t| < 0.66: atan(x) = pi/2 - atan(1/x) = pi/4 + atan((x - 1)/(x + 1))."""
    a = call("abs", x)
    far, middle = a > 2.41421356237309504880, a > 0.66
    t = select(far, -1.0 / a, select(middle, (a - 1.0) / (a + 1.0), a))
    offset = select(far, const(math.pi / 2, "float64"), select(middle, const(math.pi / 4, "float64"), const(0, "float64")))
    z = t * t
    p = horner(z, [-8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1,
                   -1.228866684490136173410e2, -6.485021904942025371773e1])
    q = horner(z, [1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2,
                   4.853903996359136964868e2, 1.945506571482613964425e2])
    value = offset + (t * (z * (p / q)) + t)
    return select(x < 0.0, -value, value)


def _asin(x: Expr) -> Expr:
    return _atan(x / call("sqrt", (1.0 - x) * (1.0 + x)))


def _acos(x: Expr) -> Expr:
    return _atan(call("sqrt", (1.0 - x) / (1.0 + x))) * 2.0


ASIN_FLOAT32 = [3.3921070941654766e-2, 1.7005792282145677e-2, 3.1131918456680720e-2, 4.4596625218107140e-2,
                7.5001031583053660e-2, 1.6666666294795332e-1]              # (asin(t)/t - 1)/t^2 in t^2 < 1/4: error 4e-9
HALF_PI = (1.57079637050628662109375, -4.37113900018624283e-8)             # the nearest float32, and what it lacks


def _arcs_float32(x: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """(far, near, high, low): asin(t) = high + low of t = |x| up to 1/2 (with x's sign), beyond it t = sqrt((1 - |x|)/2);
    `far` and `near`: x lies beyond 1/2 on the negative, the positive side. fdlibm's scheme: `high` has twelve bits of the
    square root, so that its square and what is left of it are exact."""
    near, far = x > 0.5, x < -0.5
    beyond = Bin("or", near, far)
    z = select(beyond, (1.0 - call("abs", x)) * 0.5, x * x)
    root = call("sqrt", z)
    head = bitcast("float32", Bin("and", bitcast("int32", root), const(-4096, "int32")))
    rest = (z - head * head) / maximum(root + head, 1e-30)
    t = select(beyond, root, x)
    low = horner(z, ASIN_FLOAT32) * z * t
    return far, near, select(beyond, head, x), select(beyond, low + rest, low)


def _acos_float32(x: Expr) -> Expr:
    """pi/2 - asin(x), and by the half angle 2*asin(sqrt((1 - x)/2)) and pi - 2*asin(sqrt((1 + x)/2))."""
    far, near, high, low = _arcs_float32(x)
    y = high + select(near, low, low - HALF_PI[1])
    return select(near, y, HALF_PI[0] - y) * select(Bin("or", near, far), const(2.0, "float32"), const(1.0, "float32"))


def _asin_float32(x: Expr) -> Expr:
    """Up to 1/2 as it is; beyond it pi/2 - 2*asin(sqrt((1 - |x|)/2)), with x's sign."""
    far, near, high, low = _arcs_float32(x)
    outer = (HALF_PI[0] - high * 2.0) - (low * 2.0 - HALF_PI[1])
    return select(near, outer, select(far, -outer, high + low))


def _sinh(x: Expr) -> Expr:
    z, h = x * x, exp(call("abs", x) * 0.5)
    near = horner(z, [1 / math.factorial(k) for k in range(21, 1, -2)]) * (z * x) + x
    far = h * 0.5 * h - 0.5 / h / h
    return select(call("abs", x) < 1.0, near, select(x < 0.0, -far, far))


def _cosh(x: Expr) -> Expr:
    h = exp(call("abs", x) * 0.5)
    return h * 0.5 * h + 0.5 / h / h


def _pow(x: Expr, y: Expr) -> Expr:
    """Whole exponents up to 63 by squaring (exact where the result is); others exp(y*log|x|) with the sign of x**y."""
    whole = call("floor", y).equal(y)
    half = y * 0.5
    odd = Bin("and", whole, call("floor", half).not_equal(half))
    a = call("abs", x)
    size = exp(y * log(a))
    size = select(Bin("or", a.equal(1.0), y.equal(0.0)), const(1.0, "float64"), size)
    no_root = Bin("and", Bin("and", x < 0.0, a < INF), Bin("xor", whole, const(True, "bool")))
    general = select(no_root, const(math.nan, "float64"), select(Bin("and", odd, x < 0.0), -size, size))
    small = Bin("and", whole, call("abs", y) < 64.0)
    n = cast("int64", select(small, call("abs", y), const(0, "float64")))
    power, base = const(1.0, "float64"), x
    product: Expr = power
    for bit in range(6):
        product = select(_bit(n, 1 << bit), product * base, product)
        base = base * base
    squared = select(y < 0.0, 1.0 / product, product)
    return select(small, squared, select(x.equal(1.0), const(1.0, "float64"), general))


def pow(x: Expr, y: Expr) -> Expr:
    """x**y. Constant exponents that networks use become products and roots."""
    match y.value if isinstance(y, Const) else None:
        case None:
            return in_float64(_pow)(x, y)
        case 0.5:
            return call("sqrt", x)
        case -0.5:
            return 1.0 / call("sqrt", x)
        case float(n) if n == int(n) and 0 < abs(n) <= 8:
            product = _repeated(x, abs(int(n)))
            return product if n > 0 else 1.0 / product
    return in_float64(_pow)(x, y)


def _repeated(x: Expr, n: int) -> Expr:
    if n == 1:
        return x
    half = _repeated(x, n // 2)
    return half * half * x if n % 2 else half * half


def _fmod(x: Expr, y: Expr) -> Expr:
    """The rest of the division truncated towards zero: the sign of x."""
    return call("trunc", x / y) * -y + x


def _floor_mod(x: Expr, y: Expr) -> Expr:
    """The rest of the division rounded down: the sign of y."""
    return call("floor", x / y) * -y + x


def floor_divide(x: Expr, y: Expr) -> Expr:
    return call("floor", x / y)


def rsqrt(x: Expr) -> Expr:
    """1/sqrt(x), both rounded."""
    return 1.0 / call("sqrt", x)


def isinf(x: Expr) -> Expr:
    return call("abs", x).equal(INF)


def _asin_of(x: Expr) -> Expr:
    return _asin_float32(x) if x.dtype == "float32" else _asin(x)


def _acos_of(x: Expr) -> Expr:
    return _acos_float32(x) if x.dtype == "float32" else _acos(x)


CALLS: dict[str, Callable[..., Expr]] = {
    "exp": exp, "exp_nonpositive": exp_nonpositive, "log": log, "tanh": tanh, "sigmoid": sigmoid, "erf": erf,
    "normal_cdf": normal_cdf, "rsqrt": rsqrt,
    "isinf": isinf, "pow": pow, "sin": in_float64(_sin), "cos": in_float64(_cos), "tan": in_float64(_tan), "asin": _asin_of,
    "acos": _acos_of, "atan": in_float64(_atan), "sinh": in_float64(_sinh), "cosh": in_float64(_cosh),
    "fmod": in_float64(_fmod),
}
OPERATORS: dict[str, Callable[..., Expr]] = {"pow": pow, "%": in_float64(_floor_mod), "//": floor_divide}

__all__ = ["CALLS", "OPERATORS", "ldexp", "ldexp_down"]
