"""Values made of others: choices, calls, loads, lanes, tuples, reductions; and the functions that build them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolchain.core.errors import ScheduleError
from toolchain.te.expr.arithmetic import FALSE, TRUE, Const, Expr, ExprLike, Index, Var, as_expr, binary

if TYPE_CHECKING:
    from toolchain.te.combiner import Combiner
    from toolchain.te.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Select(Expr):
    """`a` where `condition`, else `b`. Lazy: a Load in the branch not taken is never executed out of bounds."""

    condition: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.a.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    """A function by name: math ("exp", "fma", "sqrt", ...), or after lowering an instruction ("x86.tdpbf16ps")."""

    name: str
    args: tuple[Expr, ...]
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Load(Expr):
    """tensor[index...]; logical indices until `flatten_buffers`, then one physical element offset. Lanes: a Ramp index."""

    tensor: Tensor
    index: tuple[Expr, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.tensor.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Ramp(Expr):
    """The lanes base, base + stride, ..., base + (lanes-1)*stride of an index. Only `vectorize_loops` makes these."""

    base: Index
    stride: int
    lanes: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "int64"


@dataclass(frozen=True, slots=True, eq=False)
class Broadcast(Expr):
    """One scalar in every lane. Only `vectorize_loops` makes these."""

    value: Expr
    lanes: int

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.value.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Tuple(Expr):
    """Several values: the body of a te.compute with several results, or what one reduces. In a statement only an Update
    holds them."""

    values: tuple[Expr, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return f"({', '.join(v.dtype for v in self.values)})"


def parts(value: Expr) -> tuple[Expr, ...]:
    """The values of a Tuple; any other expression alone."""
    return value.values if isinstance(value, Tuple) else (value,)


def join(values: Sequence[Expr]) -> Expr:
    """What `parts` took apart."""
    return values[0] if len(values) == 1 else Tuple(tuple(values))


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Expr):
    """combiner over axes of value, starting from init. Only ever the whole body of a te.compute.

    combiner: a key of COMBINERS, or one that te.comm_reducer made.
    """

    combiner: str | Combiner
    value: Expr
    axes: tuple[Var, ...]
    init: Expr

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.value.dtype


class TupleReduce(Reduce):
    """A Reduce of several values at once: `value` and `init` are Tuples."""

    __slots__ = ()


COMBINERS = {"sum": "+", "prod": "*", "max": "max", "min": "min"}


def select(condition: ExprLike, a: ExprLike, b: ExprLike) -> Expr:
    """`a` where `condition` holds, else `b`; only the branch taken is evaluated."""
    left = as_expr(a, b if isinstance(b, Expr) else None)
    right = as_expr(b, left)
    test = as_expr(condition)
    if isinstance(test, Const):
        return left if test.value else right
    if left.dtype != right.dtype:
        raise ScheduleError(f"select of {left.dtype} and {right.dtype}", fix="make the types equal with .astype(...)")
    return Select(test, left, right)


def all_of(*conditions: ExprLike) -> Expr:
    """True when every condition holds."""
    result: Expr = TRUE
    for c in conditions:
        result = binary("and", result, c)
    return result


def any_of(*conditions: ExprLike) -> Expr:
    """True when one condition holds."""
    result: Expr = FALSE
    for c in conditions:
        result = binary("or", result, c)
    return result


def call(name: str, *args: ExprLike, dtype: str | None = None) -> Expr:
    """A function of values by name; the dtype is the first argument's unless given."""
    values = tuple(as_expr(a) for a in args)
    return Call(name, values, dtype or values[0].dtype)


def maximum(a: ExprLike, b: ExprLike) -> Expr:
    return binary("max", a, b)


def minimum(a: ExprLike, b: ExprLike) -> Expr:
    return binary("min", a, b)
