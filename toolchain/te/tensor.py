"""Tensors and their definitions: `placeholder`, `compute`, `reduce_axis`, and the reductions a definition may use.

    A, B = te.placeholder((m, k), name="A"), te.placeholder((n, k), name="B")
    r = te.reduce_axis(k, name="r")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, r] * B[j, r], axis=r), name="C")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import Node
from toolchain.te.combiner import Axes, identity, reduce
from toolchain.te.expr import (
    Const,
    Dynamic,
    Expr,
    ExprLike,
    Index,
    Load,
    Reduce,
    Tuple,
    TupleReduce,
    Var,
    as_expr,
    indices,
    parts,
)
from toolchain.te.substitute import rewrite_loads


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """The definition of an input: none. `constant` marks weights, which are packed into their layout at build time."""

    constant: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Compute:
    """The definition of a stage: one value per point of `axis`, reduced over `reduce_axis` when the body is a Reduce.

    A body with several values (a Tuple, or a Reduce of one) defines as many tensors, which share this object.
    `tag` names what the stage is ("conv2d", "matmul", "injective", ...) for the sketches; `attrs` are plain facts about it.
    `outputs` are the tensors that te.compute made with it (none for a definition that a schedule made).
    """

    axis: tuple[Var, ...]
    body: Expr
    tag: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[Tensor, ...] = field(default=(), init=False, repr=False)

    @property
    def reduce_axis(self) -> tuple[Var, ...]:
        return self.body.axes if isinstance(self.body, Reduce) else ()

    @property
    def values(self) -> tuple[Expr, ...]:
        """One value per tensor it defines: what is reduced, when the body is a Reduce."""
        return parts(self.body.value if isinstance(self.body, Reduce) else self.body)

    @property
    def input_tensors(self) -> tuple[Tensor, ...]:
        """The tensors its body reads, in order of first use, each once."""
        seen: dict[Tensor, None] = {}
        rewrite_loads(self.body, lambda load: seen.setdefault(load.tensor))
        return tuple(seen)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor(Node):
    """A value of logical shape `shape`; `op` is the definition it was made with. Compared by identity.

    Indexing gives a Load: `A[i, j]` with ints, Vars, indices, or integer values wrapped by `te.index(value, low, high)`.
    A schedule may redefine a tensor (cache_write does); the definition in force is `PrimFunc.stages[tensor]`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    op: Placeholder | Compute

    def __getitem__(self, at: Any) -> Load:
        at = at if isinstance(at, tuple) else (at,)
        if len(at) != len(self.shape):
            raise ScheduleError(f"{self.name} has {len(self.shape)} dimensions, indexed with {len(at)}")
        return Load(self, indices(at))

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}{list(self.shape)}"


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    dims = tuple(int(n) for n in (shape if isinstance(shape, Sequence) else (shape,)))
    if any(n < 1 for n in dims):
        raise ScheduleError(f"shape {dims} has an empty dimension")
    return dims


def placeholder(shape: int | Sequence[int], dtype: str = "float32", name: str = "A", constant: bool = False) -> Tensor:
    """An input tensor. `constant`: its value is known at build time (a weight)."""
    return Tensor(name, _shape(shape), dtype, Placeholder(constant))


def reduce_axis(extent: int | tuple[int, int], name: str = "k") -> Var:
    """An axis to reduce over: [0, extent), or TVM's (0, extent) pair."""
    if isinstance(extent, tuple):
        if extent[0] != 0:
            raise ScheduleError(f"reduce_axis {name} starts at {extent[0]}", fix="start at 0, add the offset to the index")
        extent = extent[1]
    return Var(name, int(extent))


Values = tuple[ExprLike, ...] | TupleReduce       # what defines several tensors at once


@overload
def compute(shape: int | Sequence[int], fn: Callable[..., Values], name: str = "T", tag: str = "",  # type: ignore[overload-overlap]
            attrs: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]: ...
@overload
def compute(shape: int | Sequence[int], fn: Callable[..., ExprLike], name: str = "T", tag: str = "",
            attrs: Mapping[str, Any] | None = None) -> Tensor: ...


def compute(
    shape: int | Sequence[int],
    fn: Callable[..., ExprLike | Values],
    name: str = "T",
    tag: str = "",
    attrs: Mapping[str, Any] | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Define a tensor by the value at each index: `fn` gets one Var per dimension. The Vars take the lambda's own names.

    A function that gives several values, as a tuple or by a reducer of several (te.comm_reducer), defines as many tensors,
    NAME.v0, NAME.v1, ..., which are computed together.
    """
    dims = _shape(shape)
    parameters = list(inspect.signature(fn).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        names = [f"i{n}" for n in range(len(dims))]
    else:
        names = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if len(names) != len(dims):
        raise ScheduleError(f"compute {name}: the function takes {len(names)} indices, the shape {dims} has {len(dims)}")
    axis = tuple(Var(n, extent) for n, extent in zip(names, dims, strict=True))
    given = fn(*axis)
    body = Tuple(tuple(as_expr(v) for v in given)) if isinstance(given, tuple | list) else as_expr(given)
    op = Compute(axis, body, tag, dict(attrs or {}))
    many = isinstance(body, Tuple | TupleReduce)
    tensors = tuple(Tensor(f"{name}.v{n}" if many else name, dims, v.dtype, op) for n, v in enumerate(op.values))
    object.__setattr__(op, "outputs", tensors)      # the one cycle: TVM's create_schedule(C.op) needs the way back
    return tensors if many else tensors[0]


def _reduce(combiner: str, value: ExprLike, axis: Axes, init: ExprLike | None) -> Reduce:
    expr = as_expr(value)
    return reduce(combiner, expr, axis, identity(combiner, expr.dtype) if init is None else as_expr(init, expr))


def sum(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    """Sum over `axis`, starting from `init` (0): a bias or residual costs nothing there."""
    return _reduce("sum", value, axis, init)


def prod(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    return _reduce("prod", value, axis, init)


def max(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    """The largest. Of NaN it promises nothing (nor does `min`): a CPU may lose one; a te.comm_reducer can keep it."""
    return _reduce("max", value, axis, init)


def min(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    return _reduce("min", value, axis, init)


__all__ = [
    "Compute", "Const", "Dynamic", "Index", "Placeholder", "Tensor", "compute", "max", "min", "placeholder", "prod",
    "reduce_axis", "sum",
]
