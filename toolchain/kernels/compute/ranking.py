"""Operators that put elements in order or in their place: TopK, TensorScatter; and Det of small matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import Compute, Op, injective

At = tuple[Any, ...]

LARGEST_DETERMINANT = 4


def _before(a: te.Expr, b: te.Expr, largest: bool) -> te.Expr:
    """Whether value a comes before value b; NaN counts as the largest number."""
    first = a > b if largest else a < b
    if not dtypes.is_float(a.dtype):
        return first
    apart = te.all(te.isnan(a), te.isnan(b).equal(False)) if largest else te.all(te.isnan(a).equal(False), te.isnan(b))
    return te.any(first, apart)


def top_k(op: Op) -> tuple[te.Tensor, ...]:
    """The k first of each row in order, the lower index first among equals. Work: the row's length squared.

        rank[i] = how many elements come before x[i];   found[t] = the i of rank t;   values[t] = x[found[t]]
    """
    axis, largest = op.axis("axis", -1), bool(op.attr("largest", 1))
    n = op.in_shape()[axis]
    j, r = te.reduce_axis(n, "j"), te.reduce_axis(n, "r")
    shape = op.shape if op.node.outputs[0] else op.types[-1].shape

    def at(i: At, k: Any) -> At:
        return (*i[:axis], k, *i[axis + 1:])

    def rank(*i: Any) -> te.Expr:
        here, there = op.x[i], op.x[at(i, j)]
        before = te.any(_before(there, here, largest), te.all(
            te.any(_before(there, here, largest), _before(here, there, largest)).equal(False), te.index(j) < i[axis]))
        return te.sum(te.select(before, te.const(1, "int32"), te.const(0, "int32")), axis=j)
    ranks = te.compute(op.in_shape(), rank, name=op.name("rank"), tag="reduce")

    def position(*i: Any) -> te.Expr:
        here = ranks[at(i, r)].equal(te.index(i[axis]).astype("int32"))
        return te.max(te.select(here, te.index(r).astype("int64"), te.const(0, "int64")), axis=r)
    found = te.compute(shape, position, name=op.name("found"), tag="reduce")

    def value(*i: Any) -> te.Expr:
        return op.x[at(i, te.index(found[i], 0, n - 1))]
    made: list[te.Tensor] = []
    for k, output in enumerate(op.node.outputs):
        if output and k == 0:
            made.append(te.compute(shape, value, name=op.name(), tag="injective"))
        elif output:
            made.append(te.compute(shape, lambda *i: found[i], name=op.name("indices"), tag="injective"))
    return tuple(made)


def tensor_scatter(op: Op) -> te.Tensor:
    """The cache with the update written at each batch's position along `axis`. Source: ONNX TensorScatter."""
    axis = op.axis("axis", -2)
    update, size = op.tensor(1), op.in_shape()[axis]
    length, circular = op.in_shape(1)[axis], op.attr("mode", "linear") == "circular"

    def value(i: At) -> te.Expr:
        start = op.tensor(2)[i[0]].astype("int64") if op.has(2) else te.const(0, "int64")
        step = te.index(i[axis]).astype("int64") - start
        if circular:
            step = step % te.const(size, "int64")
        inside = te.all(step >= 0, step < length)
        kept = te.minimum(te.maximum(step, te.const(0, "int64")), te.const(length - 1, "int64"))
        return te.select(inside, update[(*i[:axis], te.index(kept, 0, length - 1), *i[axis + 1:])], op.x[tuple(i)])
    return injective(op, value)


def det(op: Op) -> te.Tensor:
    """Determinants by their first row, cofactor by cofactor."""
    n = op.in_shape()[-1]
    if n > LARGEST_DETERMINANT:
        raise CodegenError(f"Det of matrices larger than {LARGEST_DETERMINANT} x {LARGEST_DETERMINANT} is not supported",
                           where=op.node.name)

    def minor(i: At, row: int, columns: Sequence[int]) -> te.Expr:
        if len(columns) == 1:
            return op.x[(*i, row, columns[0])]
        total: te.Expr | None = None
        for k, column in enumerate(columns):
            part = op.x[(*i, row, column)] * minor(i, row + 1, [c for c in columns if c != column])
            total = part if total is None else total - part if k % 2 else total + part
        assert total is not None
        return total
    return injective(op, lambda i: minor(i, 0, range(n)))


RANKING: dict[str, Compute] = {"Det": det, "TensorScatter": tensor_scatter, "TopK": top_k}
