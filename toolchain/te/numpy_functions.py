"""What the interpreter's generated source calls: operators, functions and memory accesses on NumPy scalars and arrays.

Values are NumPy scalars or arrays whose last axis is the lanes of a vector and whose other axes are the grid. `m` is the
mask of what is active (None: everything).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.te.expr import COMBINERS

Mask = Any
UNWRITTEN = {"f": np.nan, "V": np.nan, "i": 0x5A, "u": 0x5A, "b": True}      # by NumPy kind ("V": bfloat16)


def checked(offset: Any, dims: Sequence[tuple[int, Any, int, int]], m: Mask, name: str) -> Any:
    """The offset, made harmless where inactive. Raises ScheduleError where an active index leaves [low, high)."""
    for d, at, low, high in dims:
        bad = (np.asarray(at) < low) | (np.asarray(at) >= high)
        if m is not None:
            bad = bad & m
        if np.any(bad):
            value = np.broadcast_to(at, bad.shape)[bad].flat[0]
            raise ScheduleError(f"{name}: index {value} of dimension {d} is outside [{low}, {high})", where="interpret")
    return offset if m is None else np.where(m, offset, 0)


def store(buffer: np.ndarray, offset: Any, value: Any, m: Mask) -> None:
    if m is None:
        buffer[offset] = value
        return
    if np.ndim(m) == 0 and np.ndim(offset) == 0:
        if m:
            buffer[offset] = value
        return
    where, what, active = np.broadcast_arrays(offset, value, m)
    buffer[where[active]] = what[active]


def select(condition: Any, m: Mask, a: Callable[[Mask], Any], b: Callable[[Mask], Any]) -> Any:
    """Lazy: each branch is evaluated only where it is taken."""
    if np.ndim(condition) == 0:
        return a(m) if condition else b(m)
    taken = condition if m is None else condition & m
    other = ~condition if m is None else ~condition & m
    if not taken.any():
        return b(m) if m is None else b(other)
    if not other.any():
        return a(m) if m is None else a(taken)
    return np.where(condition, a(taken), b(other))


def both(a: Any, m: Mask, b: Callable[[Mask], Any]) -> Any:
    """`a and b`, b evaluated only where a holds."""
    return select(a, m, b, lambda _: np.bool_(False))


def either(a: Any, m: Mask, b: Callable[[Mask], Any]) -> Any:
    """`a or b`, b evaluated only where a does not hold."""
    return select(a, m, lambda _: np.bool_(True), b)


def active(a: Any, m: Mask) -> Any:
    return a if m is None else a & m


def dynamic(value: Any, low: int, high: int, m: Mask) -> Any:
    """An integer computed at run time. Raises ScheduleError where it breaks its promise to lie in [low, high]."""
    at = np.asarray(value).astype(np.int64)
    bad = (at < low) | (at > high)
    if m is not None:
        bad = bad & m
    if bad.any():
        value = np.broadcast_to(at, bad.shape)[bad].flat[0]
        raise ScheduleError(f"a dynamic index is {value}, promised [{low}, {high}]", where="interpret")
    return np.clip(at, low, high)[()]


def launch(
    kernel: Callable[..., Iterator[str | None]],
    threads: Sequence[int],
    private: Sequence[np.ndarray],
    shared: Sequence[np.ndarray],
    strict: bool,
) -> None:
    """Run one block: a generator per thread, all in lockstep from barrier to barrier, each with its own private storage.

    Threads run one after the other between barriers, so a missing barrier shows as storage nobody wrote yet.
    Raises ScheduleError when `strict` and some threads wait at a barrier that others never reach.
    """
    for storage in (*shared, *private):
        storage[:] = UNWRITTEN[storage.dtype.kind]
    running = [kernel(*ids, *(s.copy() for s in private)) for ids in np.ndindex(*threads)]
    while running:
        waiting = [thread for thread in running if next(thread, "end") != "end"]
        if strict and waiting and len(waiting) != len(running):
            raise ScheduleError("a barrier in divergent control flow: some threads never reach it", where="interpret")
        running = waiting


def cast(value: Any, dtype: str) -> Any:
    return np.asarray(value).astype(dtypes.to_numpy(dtype))[()]


def truncating_divide(a: Any, b: Any) -> Any:
    """C's integer division."""
    quotient, rest = np.divmod(a, b)
    rounded_up = (rest != 0) & (np.less(a, 0) != np.less(b, 0))
    return np.asarray(quotient + rounded_up).astype(np.asarray(a).dtype)[()]


def divide(a: Any, b: Any) -> Any:
    return truncating_divide(a, b) if np.asarray(a).dtype.kind in "iu" else a / b


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": divide, "//": np.floor_divide, "%": np.mod, "max": np.maximum,
    "min": np.minimum, "pow": np.power, "xor": np.bitwise_xor, "and": np.bitwise_and, "or": np.bitwise_or,
    "<<": np.left_shift, ">>": np.right_shift, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal,
}


def fma(a: Any, b: Any, c: Any) -> Any:
    """a*b + c in the next wider type, rounded once (float64: in the platform's long double)."""
    dtype = np.asarray(a).dtype
    wide = np.longdouble if dtype == np.float64 else np.float64
    return (np.asarray(a).astype(wide) * np.asarray(b).astype(wide) + np.asarray(c).astype(wide)).astype(dtype)[()]


def ldexp(x: Any, n: Any) -> Any:
    """x * 2**n of a whole float n; of a NaN it is NaN."""
    return np.where(np.isnan(n), n, np.ldexp(x, np.nan_to_num(n, nan=0.0).astype(np.int32))).astype(np.asarray(x).dtype)[()]


def sigmoid(x: Any) -> Any:
    one = np.ones((), np.asarray(x).dtype)[()]
    return one / (one + np.exp(-x))


def erf(x: Any) -> Any:
    return _by_element(math.erf, x)


def normal_cdf(x: Any) -> Any:
    return _by_element(lambda v: 0.5 * math.erfc(v * -math.sqrt(0.5)), x)


def _by_element(fn: Callable[[float], float], x: Any) -> Any:
    """A function of Python's math, in float64."""
    return np.vectorize(fn, otypes=[np.float64])(np.asarray(x).astype(np.float64)).astype(np.asarray(x).dtype)[()]


def rsqrt(x: Any) -> Any:
    return np.ones((), np.asarray(x).dtype)[()] / np.sqrt(x)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "exp_nonpositive": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": rsqrt, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "sigmoid": sigmoid, "erf": erf, "normal_cdf": normal_cdf,
    "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "round": np.rint,
    "isnan": np.isnan, "isinf": np.isinf, "fma": fma, "ldexp": ldexp,
}
REDUCTIONS = {f"reduce_{name}": OPERATORS[op] for name, op in COMBINERS.items()}
NO_EFFECT = ("prefetch", "push", "pop")             # what only hints, or orders what runs in order here anyway


def reduce_lanes(name: str, value: Any, lanes: int) -> Any:
    """All lanes to one: the upper half onto the lower half until one is left (the order every backend uses)."""
    x = np.asarray(value)
    x = np.broadcast_to(x, (*x.shape[:-1], lanes)) if x.ndim else np.full(lanes, x)
    while x.shape[-1] > 1:
        half = (x.shape[-1] + 1) // 2
        joined = REDUCTIONS[name](x[..., : x.shape[-1] - half], x[..., half:])
        x = np.concatenate([joined, x[..., joined.shape[-1] : half]], axis=-1)
    return x[0] if x.ndim == 1 else x


def function(name: str, dtype: str, args: Sequence[Any]) -> Any:
    """A named function. bfloat16 and float16 are computed in float32 and rounded once."""
    if name in ("bitcast", "reinterpret"):
        return np.asarray(args[0]).view(dtypes.to_numpy(dtype))[()]
    fn = FUNCTIONS.get(name)
    if fn is None:
        raise ScheduleError(f"the interpreter knows no function '{name}'", fix=f"known: {', '.join(FUNCTIONS)}")
    if dtype in ("bfloat16", "float16") and name != "fma":
        args = [np.asarray(a).astype(np.float32) for a in args]
    return np.asarray(fn(*args)).astype(dtypes.to_numpy(dtype), copy=False)[()]
