"""Tensors and their definitions: `placeholder`, `compute`, `reduce_axis`, and the reductions a definition may use.

    A, B = te.placeholder((m, k), name="A"), te.placeholder((n, k), name="B")
    r = te.reduce_axis(k, name="r")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, r] * B[j, r], axis=r), name="C")
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import Node
from toolchain.te.expr import Const, Dynamic, Expr, ExprLike, Index, Load, Reduce, Var, as_expr, const, indices
from toolchain.te.substitute import rewrite_loads


@dataclass(frozen=True, slots=True, eq=False)
class Placeholder:
    """The definition of an input: none. `constant` marks weights, which are packed into their layout at build time."""

    constant: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Compute:
    """The definition of a stage: one value per point of `axis`, reduced over `reduce_axis` when the body is a Reduce.

    `tag` names what the stage is ("conv2d", "matmul", "injective", ...) for the sketches; `attrs` are plain facts about it.
    `output` is the tensor that te.compute made with it (None for a definition that a schedule made).
    """

    axis: tuple[Var, ...]
    body: Expr
    tag: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    output: Tensor | None = field(default=None, init=False, repr=False)

    @property
    def reduce_axis(self) -> tuple[Var, ...]:
        return self.body.axes if isinstance(self.body, Reduce) else ()

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


def compute(
    shape: int | Sequence[int],
    fn: Callable[..., ExprLike],
    name: str = "T",
    tag: str = "",
    attrs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Define a tensor by the value at each index: `fn` gets one Var per dimension. The Vars take the lambda's own names."""
    dims = _shape(shape)
    parameters = list(inspect.signature(fn).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        names = [f"i{n}" for n in range(len(dims))]
    else:
        names = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if len(names) != len(dims):
        raise ScheduleError(f"compute {name}: the function takes {len(names)} indices, the shape {dims} has {len(dims)}")
    axis = tuple(Var(n, extent) for n, extent in zip(names, dims, strict=True))
    body = as_expr(fn(*axis))
    op = Compute(axis, body, tag, dict(attrs or {}))
    tensor = Tensor(name, dims, body.dtype, op)
    object.__setattr__(op, "output", tensor)        # the one cycle: TVM's create_schedule(C.op) needs the way back
    return tensor


def identity(combiner: str, dtype: str) -> float | int:
    """The value a combiner starts from: 0, 1, the lowest or the highest of the dtype."""
    match combiner:
        case "sum":
            return 0
        case "prod":
            return 1
        case "max":
            return dtypes.lowest(dtype)
        case "min":
            return dtypes.highest(dtype)
    raise ScheduleError(f"no combiner '{combiner}'", fix="one of sum, prod, max, min")


Axes: TypeAlias = Var | Sequence[Var]


def _reduce(combiner: str, value: ExprLike, axis: Axes, init: ExprLike | None) -> Reduce:
    expr = as_expr(value)
    axes = (axis,) if isinstance(axis, Var) else tuple(axis)
    start = const(identity(combiner, expr.dtype), expr.dtype) if init is None else as_expr(init, expr)
    if start.dtype != expr.dtype:
        raise ScheduleError(f"{combiner} of {expr.dtype} starts from {start.dtype}")
    return Reduce(combiner, expr, axes, start)


def sum(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    """Sum over `axis`, starting from `init` (0): a bias or residual costs nothing there."""
    return _reduce("sum", value, axis, init)


def prod(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    return _reduce("prod", value, axis, init)


def max(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    return _reduce("max", value, axis, init)


def min(value: ExprLike, axis: Axes, init: ExprLike | None = None) -> Reduce:
    return _reduce("min", value, axis, init)


__all__ = [
    "Compute", "Const", "Dynamic", "Index", "Placeholder", "Tensor", "compute", "identity", "max", "min", "placeholder",
    "prod", "reduce_axis", "sum",
]
