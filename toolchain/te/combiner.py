"""Combiners: how two partial results of a reduction become one. Sums and maxima by name, everything else by a definition.

    argmax = te.comm_reducer(lambda x, y: (te.select(x[0] >= y[0], x[0], y[0]), te.select(x[0] >= y[0], x[1], y[1])),
                             lambda value, at: (te.min_value(value), te.const(-1, at)), name="argmax")
    best, where = te.compute((n,), lambda i: argmax((A[i, r], r), axis=r), name="best")

A combiner of k values reduces k expressions at once into k tensors of one shape, which share one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import Node, map_children
from toolchain.te.expr import (
    COMBINERS,
    Const,
    Expr,
    ExprLike,
    Index,
    Reduce,
    TupleReduce,
    Var,
    as_expr,
    binary,
    cast,
    const,
    distinct,
    join,
    parts,
)


@dataclass(frozen=True, slots=True, eq=False)
class Operand(Expr):
    """A value that a Combiner gets: `lhs` what is there, `rhs` what joins it. Stands in no statement."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Combiner(Node):
    """`results` in terms of the operands `lhs` and `rhs`; `identity` joined with anything changes nothing.

    Schedules take for granted that it is associative and commutative, rounding aside.
    """

    name: str
    lhs: tuple[Operand, ...]
    rhs: tuple[Operand, ...]
    results: tuple[Expr, ...]
    identity: tuple[Const, ...]


def combine(combiner: str | Combiner, lhs: Expr, rhs: Expr) -> Expr:
    """lhs joined with rhs; Tuples where the combiner has several values. What results share stays shared."""
    if isinstance(combiner, str):
        return binary(COMBINERS[combiner], lhs, rhs)
    operands = (*combiner.lhs, *combiner.rhs)
    known: dict[int, Any] = {id(o): v for o, v in zip(operands, (*parts(lhs), *parts(rhs)), strict=True)}

    def visit(n: Any) -> Any:
        if (new := known.get(id(n))) is None:
            new = known[id(n)] = map_children(n, visit)
        return new

    return join([visit(r) for r in combiner.results])


def identity(combiner: str | Combiner, dtype: str) -> Expr:
    """The value a combiner starts from; by name: 0, 1, the lowest or the highest of the dtype."""
    match combiner:
        case Combiner():
            return join(combiner.identity)
        case "sum":
            return const(0, dtype)
        case "prod":
            return const(1, dtype)
        case "max":
            return min_value(dtype)
        case "min":
            return max_value(dtype)
    raise ScheduleError(f"no combiner '{combiner}'", fix="one of sum, prod, max, min, or te.comm_reducer")


def min_value(dtype: str) -> Const:
    """The identity of max: -inf for floats, the smallest value of integers."""
    return const(dtypes.lowest(dtype), dtype)


def max_value(dtype: str) -> Const:
    """The identity of min: inf for floats, the largest value of integers."""
    return const(dtypes.highest(dtype), dtype)


Axes = Var | Sequence[Var]


def reduce(combiner: str | Combiner, value: Expr, axis: Axes, init: Expr) -> Reduce:
    """The reduction of a value, or of a Tuple. Raises ScheduleError: it starts from values of other types."""
    axes = (axis,) if isinstance(axis, Var) else tuple(axis)
    if init.dtype != value.dtype:
        name = combiner if isinstance(combiner, str) else combiner.name
        raise ScheduleError(f"{name} of {value.dtype} starts from {init.dtype}")
    return (TupleReduce if len(parts(value)) > 1 else Reduce)(combiner, value, axes, init)


class Reducer:
    """What te.comm_reducer gives: called in te.compute it reduces expressions, a tuple of them for several values."""

    def __init__(self, fcombine: Callable[..., Any], fidentity: Callable[..., Any], name: str) -> None:
        self.fcombine, self.fidentity, self.name = fcombine, fidentity, name
        self._made: dict[tuple[str, ...], Combiner] = {}

    @overload
    def __call__(self, value: tuple[ExprLike, ...] | list[ExprLike], axis: Axes,
                 init: Sequence[ExprLike] | None = None) -> TupleReduce: ...
    @overload
    def __call__(self, value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce: ...

    def __call__(self, value: Any, axis: Axes, init: Any = None) -> Reduce:
        """`value` over `axis`, starting from `init` (the identity). Types may differ from value to value.

        Raises ScheduleError: a definition that does not give as many values, of the same types.
        """
        values = _values(value)
        combiner = self.combiner(tuple(v.dtype for v in values))
        starts = combiner.identity if init is None else _values(init, like=values)
        return reduce(combiner, join(values), axis, join(starts))

    def combiner(self, kinds: tuple[str, ...]) -> Combiner:
        """The combiner for values of these dtypes; the same one each time."""
        if kinds not in self._made:
            self._made[kinds] = self._make(kinds)
        return self._made[kinds]

    def _make(self, kinds: tuple[str, ...]) -> Combiner:
        lhs, rhs = (tuple(Operand(f"{side}{n}", kind) for n, kind in enumerate(kinds)) for side in ("lhs", "rhs"))
        alone = len(kinds) == 1
        results = _values(self.fcombine(lhs[0], rhs[0]) if alone else self.fcombine(lhs, rhs), like=lhs)
        start = _values(self.fidentity(*kinds), like=lhs)
        for what, given in (("combines to", results), ("starts from", start)):
            if tuple(v.dtype for v in given) != kinds:
                raise ScheduleError(f"{self.name} of ({', '.join(kinds)}) {what} ({', '.join(v.dtype for v in given)})")
        own = {*lhs, *rhs}
        foreign = {n for r in results for n in distinct(r) if isinstance(n, Operand | Var)} - own
        if foreign or not all(isinstance(v, Const) for v in start):
            raise ScheduleError(f"{self.name} depends on more than the values it combines",
                                fix="combine only the operands; start from constants")
        return Combiner(self.name, lhs, rhs, results, start)  # type: ignore[arg-type]


def _values(given: Any, like: Sequence[Expr] = ()) -> tuple[Expr, ...]:
    """What a user gave as expressions; an index becomes the integer it is."""
    many = given if isinstance(given, tuple | list) else (given,)
    exprs = [as_expr(v, like[n] if n < len(like) else None) for n, v in enumerate(many)]
    return tuple(cast("int64", e) if isinstance(e, Index | Var) else e for e in exprs)


def comm_reducer(fcombine: Callable[..., Any], fidentity: Callable[..., Any], name: str = "reduce") -> Reducer:
    """A reduction of one's own, with TVM's signature. It must be associative and commutative.

    fcombine(lhs, rhs): two partial results as one; tuples for several values. fidentity(*dtypes): what changes nothing.
    """
    return Reducer(fcombine, fidentity, name)


__all__ = [
    "Axes", "Combiner", "Operand", "Reducer", "combine", "comm_reducer", "identity", "max_value", "min_value", "reduce",
]
