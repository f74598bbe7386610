"""Loop nests written statement by statement (TVM: `tir.ir_builder`): for what no te.compute describes, where an iteration
needs what the one before it found. Scans, sorting, selection.

    b = IRBuilder()
    total = b.variable("total", "int64")
    with b.loop("i", 16) as i, b.when(X[i] > 0):
        b.store(Y, total.at, X[i])
        b.set(total, total.value + 1)
    func = b.function("positive", inputs=[X], outputs=[Y])

Statements are taken as they stand: nothing reorders, fuses or vectorizes them. The interpreter and every lowering pass treat
them like any other loop IR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from toolchain.core.layout import TensorType
from toolchain.te.create import fresh
from toolchain.te.expr import Const, Expr, Index, IndexLike, Load, Var, as_expr, const, index, indices
from toolchain.te.loop_ir import Buffer, For, ForKind, If, PrimFunc, Stmt, Store, block
from toolchain.te.tensor import Placeholder, Tensor

STEP = 16           # iterations of a loop with a bound known at run time that are entered or left out together


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """One number that statements set and read."""

    tensor: Tensor

    @property
    def value(self) -> Load:
        return self.tensor[0]


class IRBuilder:
    """The function in the making: a builder, like Schedule, and mutable for the same reason."""

    def __init__(self) -> None:
        self._open: list[list[Stmt]] = [[]]
        self._names: set[str] = set()
        self._buffers: dict[Tensor, Buffer] = {}

    def buffer(self, name: str, shape: Sequence[int], dtype: str, scope: str = "global") -> Tensor:
        """Storage of the kernel's own: "global" outlives a parallel loop, "lane" belongs to one iteration of it."""
        tensor = Tensor(fresh(name, self._names), tuple(shape), dtype, Placeholder())
        self._buffers[tensor] = Buffer(TensorType.plain(tensor.shape, dtype), scope)
        return tensor

    def variable(self, name: str, dtype: str, value: float | int | None = None) -> Variable:
        """A number in a register; set to `value` here, if one is given."""
        made = Variable(self.buffer(name, (1,), dtype, "local"))
        if value is not None:
            self.set(made, const(value, dtype))
        return made

    @contextmanager
    def loop(self, name: str, extent: int, kind: ForKind = ForKind.SERIAL) -> Iterator[Var]:
        """for name in range(extent): what stands in the `with`."""
        var = Var(fresh(name, self._names), extent)
        self._open.append([])
        yield var
        self._emit(For(var, block(*self._open.pop()), kind))

    @contextmanager
    def loop_up_to(self, name: str, count: Expr, most: int) -> Iterator[Index]:
        """for name in range(count), an int64 of at most `most` that is known at run time.

        The loop IR has static extents only: blocks of STEP iterations are left out whole, so the work goes with `count`.

            for name_0 in range(ceildiv(most, STEP)):
              if STEP*name_0 < count:
                for name_1 in range(STEP):
                  if STEP*name_0 + name_1 < count: ...
        """
        with self.loop(f"{name}_0", -(-most // STEP)) as outer, self.when((index(outer) * STEP).astype("int64") < count), \
                self.loop(f"{name}_1", min(STEP, most)) as inner:
            at = index(outer) * STEP + inner
            with self.when(at.astype("int64") < count):
                yield index(at)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if condition: what stands in the `with`."""
        self._open.append([])
        yield
        body = block(*self._open.pop())
        if not isinstance(condition, Const):
            self._emit(If(condition, body))
        elif condition.value:
            self._emit(body)

    def store(self, tensor: Tensor, at: Sequence[IndexLike | Expr], value: Expr) -> None:
        """tensor[at] = value"""
        self._emit(Store(tensor, indices(at), value))

    def set(self, variable: Variable, value: Expr | int) -> None:
        self.store(variable.tensor, (0,), as_expr(value, variable.value))

    def _emit(self, stmt: Stmt) -> None:
        self._open[-1].append(stmt)

    def function(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> PrimFunc:
        """The PrimFunc of all statements so far; parameters are the inputs, then the outputs."""
        params = (*inputs, *outputs)
        own = {t: Buffer(TensorType.plain(t.shape, t.dtype)) for t in params}
        return PrimFunc(name, params, block(*self._open[0]), {**own, **self._buffers})


__all__ = ["STEP", "IRBuilder", "Variable"]
