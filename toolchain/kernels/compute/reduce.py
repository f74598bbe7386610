"""Products of matrices, reductions along axes, and what is made of them: Softmax, LayerNormalization, ArgMax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.compute.shape import flatten_index, unflatten_index
from toolchain.kernels.op import Compute, Op, broadcast

At = tuple[Any, ...]


def matmul(op: Op) -> te.Tensor:
    """NumPy's matmul: batch dimensions broadcast, one-dimensional operands stand for a row or a column."""
    a, b = op.tensor(0), op.tensor(1)
    if len(a.shape) > 2 and len(b.shape) == 2:
        return _rows_matmul(op, a, b)
    k = te.reduce_axis(a.shape[-1], "k")
    row, column = len(a.shape) > 1, len(b.shape) > 1

    def value(*i: Any) -> te.Expr:
        batch = i[:len(i) - row - column]
        left = (*((i[len(i) - 1 - column],) if row else ()), k)
        right = (k, *((i[-1],) if column else ()))
        return te.sum(_batched(a, batch, left) * _batched(b, batch, right), axis=k)
    return te.compute(op.shape, value, name=op.name(), tag="matmul", attrs={"k": a.shape[-1]})


def _rows_matmul(op: Op, a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """All rows of a batch against one matrix: a product of two dimensions, so that a register tile spans batches.

        P[r, j] = sum_k A[r // M, r % M, k] * B[k, j];      Y[n, m, j] = P[n*M + m, j]
    """
    outer = a.shape[:-1]
    k = te.reduce_axis(a.shape[-1], "k")
    product = te.compute(
        (math.prod(outer), b.shape[1]), lambda r, j: te.sum(a[(*unflatten_index(r, outer), k)] * b[k, j], axis=k),
        name=op.name("rows"), tag="matmul", attrs={"k": k.extent},
    )
    return te.compute(op.shape, lambda *i: product[flatten_index(i[:-1], outer), i[-1]], name=op.name(), tag="elementwise")


def _batched(t: te.Tensor, batch: At, last: At) -> te.Expr:
    own = len(t.shape) - len(last)
    return broadcast(t, (*batch[len(batch) - own:], *last)) if own else t[last]


def gemm(op: Op) -> te.Tensor:
    """alpha * A' B' + beta * C; passes rewrite it to MatMul + Add wherever its weights are constant."""
    a, b = op.tensor(0), op.tensor(1)
    ta, tb = op.attr("transA", 0), op.attr("transB", 0)
    k = te.reduce_axis(a.shape[0] if ta else a.shape[1], "k")
    product = te.compute(op.shape, lambda i, j: te.sum((a[k, i] if ta else a[i, k]) * (b[j, k] if tb else b[k, j]), axis=k),
                         name=op.name("matmul"), tag="matmul", attrs={"k": k.extent})
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    if not op.has(2) and alpha == 1.0:
        return product

    def value(i: Any, j: Any) -> te.Expr:
        result = product[i, j] if alpha == 1.0 else product[i, j] * te.const(alpha, op.dtype)
        if op.has(2):
            c = op.read(2, (i, j))
            result = result + (c if beta == 1.0 else c * te.const(beta, op.dtype))
        return result
    return te.compute(op.shape, value, name=op.name("gemm"), tag="elementwise")


def reduced_axes(op: Op) -> list[int]:
    rank = len(op.in_shape())
    axes = op.ints(1, "axes") if op.has(1) or op.attr("axes") is not None else None
    if not axes:
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in axes)


def reduction(element: Callable[[te.Expr], te.Expr], combine: Any, finish: Callable[[te.Expr, int], te.Expr] | None) -> Compute:
    """combine(element(x)) over the axes, then finish(result, count)."""
    def compute(op: Op) -> te.Tensor:
        axes, source, keep = reduced_axes(op), op.in_shape(), bool(op.attr("keepdims", 1))
        if not axes:
            return te.compute(op.shape, lambda *i: element(op.x[i]), name=op.name(), tag="elementwise")
        r = {a: te.reduce_axis(source[a], f"r{a}") for a in axes}

        def where(i: At) -> At:
            rest = iter(i if not keep else [j for d, j in enumerate(i) if d not in r])
            return tuple(r[d] if d in r else next(rest) for d in range(len(source)))
        total = te.compute(op.shape, lambda *i: combine(element(op.x[where(i)]), axis=tuple(r.values())), name=op.name(),
                           tag="reduce")
        if finish is None:
            return total
        count = math.prod(source[a] for a in axes)
        return te.compute(op.shape, lambda *i: finish(total[i], count), name=op.name("finish"), tag="elementwise")
    return compute


def _same(x: te.Expr) -> te.Expr:
    return x


def _mean(x: te.Expr, count: int) -> te.Expr:
    return x * te.const(1.0 / count, x.dtype) if dtypes.is_float(x.dtype) else x / te.const(count, x.dtype)


def _axis_reduction(op: Op, t: te.Tensor, axis: int, name: str, combine: Any, value: Callable[[At], te.Expr]) -> te.Tensor:
    """Reduce dimension `axis` away to extent one."""
    r = te.reduce_axis(t.shape[axis], "r")
    shape = tuple(1 if d == axis else n for d, n in enumerate(t.shape))
    return te.compute(shape, lambda *i: combine(value((*i[:axis], r, *i[axis + 1:])), axis=r), name=op.name(name), tag="reduce")


def _at(t: te.Tensor, i: At, axis: int) -> te.Expr:
    return t[(*i[:axis], 0, *i[axis + 1:])]


def softmax(op: Op) -> te.Tensor:
    """exp(x - max) / sum: four stages, scheduled in one row loop."""
    x, axis = op.x, op.axis("axis", -1)
    top = _axis_reduction(op, x, axis, "top", te.max, lambda i: x[i])
    e = te.compute(x.shape, lambda *i: te.exp(x[i] - _at(top, i, axis)), name=op.name("exp"), tag="elementwise")
    total = _axis_reduction(op, e, axis, "total", te.sum, lambda i: e[i])
    return te.compute(x.shape, lambda *i: e[i] / _at(total, i, axis), name=op.name("softmax"), tag="elementwise")


def log_softmax(op: Op) -> te.Tensor:
    x, axis = op.x, op.axis("axis", -1)
    top = _axis_reduction(op, x, axis, "top", te.max, lambda i: x[i])
    total = _axis_reduction(op, x, axis, "total", te.sum, lambda i: te.exp(x[i] - _at(top, i, axis)))
    return te.compute(x.shape, lambda *i: x[i] - _at(top, i, axis) - te.log(_at(total, i, axis)), name=op.name("log_softmax"),
                      tag="elementwise")


def layer_norm(op: Op) -> te.Tensor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the axes from `axis` on. Source: ONNX LayerNormalization."""
    x, rank = op.x, len(op.in_shape())
    axis, epsilon = op.axis("axis", -1), op.attr("epsilon", 1e-5)
    inner = x.shape[axis:]
    count = math.prod(inner)
    outer = (*x.shape[:axis], *(1 for _ in inner))
    r = [te.reduce_axis(n, f"r{d}") for d, n in enumerate(inner)]
    q = [te.reduce_axis(n, f"q{d}") for d, n in enumerate(inner)]

    def head(i: Sequence[Any]) -> At:
        return (*i[:axis], *(0 for _ in inner))
    total = te.compute(outer, lambda *i: te.sum(x[(*i[:axis], *r)], axis=r), name=op.name("total"), tag="reduce")
    mean = te.compute(outer, lambda *i: total[i] * (1.0 / count), name=op.name("mean"), tag="elementwise")

    def deviation(i: Sequence[Any]) -> te.Expr:
        return x[tuple(i)] - mean[head(i)]
    square = te.compute(outer, lambda *i: te.sum(deviation((*i[:axis], *q)) * deviation((*i[:axis], *q)), axis=q),
                        name=op.name("square"), tag="reduce")
    inverse = te.compute(outer, lambda *i: te.const(1.0, x.dtype) / te.sqrt(square[i] * (1.0 / count) + epsilon), name=op.name("inverse"),
                         tag="elementwise")

    def value(*i: Any) -> te.Expr:
        result = deviation(i) * inverse[head(i)] * op.read(1, i)
        return result + op.read(2, i) if op.has(2) else result
    assert rank == len(outer)
    return te.compute(op.shape, value, name=op.name("layer_norm"), tag="elementwise")


def arg(kind: str) -> Compute:
    """ArgMax, ArgMin: the best value, then the first (or last) position that holds it."""
    def compute(op: Op) -> te.Tensor:
        x, axis, keep = op.x, op.axis("axis", 0), bool(op.attr("keepdims", 1))
        n, last = x.shape[axis], bool(op.attr("select_last_index", 0))
        best = _axis_reduction(op, x, axis, "best", te.max if kind == "max" else te.min, lambda i: x[i])
        r = te.reduce_axis(n, "r")

        def value(*i: Any) -> te.Expr:
            at = (*i[:axis], r, *(i[axis + 1:] if keep else i[axis:]))
            miss = te.const(-1 if last else n, "int64")
            hit = te.select(x[at].equal(_at(best, at, axis)), te.index(r).astype("int64"), miss)
            return (te.max if last else te.min)(hit, axis=r)
        return te.compute(op.shape, value, name=op.name(f"arg{kind}"), tag="reduce")
    return compute


REDUCE: dict[str, Compute] = {
    "ArgMax": arg("max"),
    "ArgMin": arg("min"),
    "Gemm": gemm,
    "LayerNormalization": layer_norm,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "ReduceL1": reduction(te.abs, te.sum, None),
    "ReduceL2": reduction(lambda x: x * x, te.sum, lambda x, n: te.sqrt(x)),
    "ReduceLogSum": reduction(_same, te.sum, lambda x, n: te.log(x)),
    "ReduceMax": reduction(_same, te.max, None),
    "ReduceMean": reduction(_same, te.sum, _mean),
    "ReduceMin": reduction(_same, te.min, None),
    "ReduceProd": reduction(_same, te.prod, None),
    "ReduceSum": reduction(_same, te.sum, None),
    "ReduceSumSquare": reduction(lambda x: x * x, te.sum, None),
    "Softmax": softmax,
}
