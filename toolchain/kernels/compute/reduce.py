"""Products of matrices, reductions along axes, and what is made of them: Softmax, LayerNormalization, ArgMax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.graph.einsum import letters
from toolchain.kernels.compute.shape import unflatten_index
from toolchain.kernels.op import Compute, Op, broadcast, largest, row_major, smallest, wide

At = tuple[Any, ...]


def matmul(op: Op) -> te.Tensor:
    """NumPy's matmul: batch dimensions broadcast, one-dimensional operands stand for a row or a column."""
    a, b = op.tensor(0), op.tensor(1)
    kind = wide(op.dtype)
    if len(a.shape) > 2 and len(b.shape) == 2:
        return _rows_matmul(op, a, b)
    product = _product(op, a, b, lambda x, row: x.astype(kind), lambda x, column: x.astype(kind))
    return narrowed(op, product)


Factor = Callable[[te.Expr, Any], te.Expr]          # an element, and the row or column of the product it belongs to


def _product(op: Op, a: te.Tensor, b: te.Tensor, left: Factor, right: Factor) -> te.Tensor:
    """sum_k left(A[m, k]) * right(B[k, n]) of NumPy's matmul."""
    k = te.reduce_axis(a.shape[-1], "k")
    row, column = len(a.shape) > 1, len(b.shape) > 1

    def value(*i: Any) -> te.Expr:
        batch = i[:len(i) - row - column]
        m, n = i[len(i) - 1 - column] if row else 0, i[-1] if column else 0
        x = left(_batched(a, batch, (m, k) if row else (k,)), m)
        return te.sum(x * right(_batched(b, batch, (k, n) if column else (k,)), n), axis=k)
    tag = "matmul" if row and column and a.dtype == b.dtype and dtypes.is_float(a.dtype) else "reduce"
    return te.compute(op.shape, value, name=op.name(), tag=tag, attrs={"k": a.shape[-1]})


def _rows_matmul(op: Op, a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """All rows of a batch against one matrix: a product of two dimensions, so that a register tile spans batches.

        P[r, j] = sum_k A[r // M, r % M, k] * B[k, j];      Y[n, m, j] = P[n*M + m, j]
    """
    outer, kind = a.shape[:-1], wide(op.dtype)
    k = te.reduce_axis(a.shape[-1], "k")
    product = te.compute(
        (math.prod(outer), b.shape[1]),
        lambda r, j: te.sum(a[(*unflatten_index(r, outer), k)].astype(kind) * b[k, j].astype(kind), axis=k),
        name=op.name("rows"), tag="matmul", attrs={"k": k.extent},
    )
    return te.compute(op.shape, lambda *i: product[row_major(i[:-1], outer), i[-1]].astype(op.dtype), name=op.name(),
                      tag="elementwise")


def zero_point(op: Op, i: int) -> Factor:
    """x minus zero point i as int32: none, one number, or one per row (column)."""
    def minus(x: te.Expr, at: Any) -> te.Expr:
        if not op.has(i):
            return x.astype("int32")
        shape = op.in_shape(i)
        z = op.scalar(i) if math.prod(shape) == 1 else op.tensor(i)[at] if len(shape) == 1 else None
        if z is None:
            raise CodegenError(f"{op.node.op} with zero points of shape {list(shape)} is not supported", where=op.node.name)
        return x.astype("int32") - z.astype("int32")
    return minus


def matmul_integer(op: Op) -> te.Tensor:
    """(A - a_zero_point)(B - b_zero_point) in int32."""
    return _product(op, op.tensor(0), op.tensor(1), zero_point(op, 2), zero_point(op, 3))


def qlinear_matmul(op: Op) -> te.Tensor:
    """The product of the quantized matrices in int32, scaled and quantized again. Source: ONNX QLinearMatMul."""
    total = _product(op, op.tensor(0), op.tensor(3), zero_point(op, 2), zero_point(op, 5))
    return requantized(op, total, 6, lambda i: op.scalar(1).astype("float32") * _column(op, 4, i).astype("float32"))


def _column(op: Op, n: int, i: At) -> te.Expr:
    return op.scalar(n) if math.prod(op.in_shape(n)) == 1 else op.tensor(n)[i[-1]]


def requantized(op: Op, total: te.Tensor, scale: int, factor: Callable[[At], te.Expr]) -> te.Tensor:
    """round(total * factor / y_scale) + y_zero_point, saturated; inputs `scale` and `scale + 1` are the result's."""
    low, high = dtypes.lowest(op.dtype), dtypes.highest(op.dtype)

    def value(*i: Any) -> te.Expr:
        exact = total[i].astype("float32") * (factor(i) / op.scalar(scale).astype("float32"))
        level = te.round(exact).astype("float64") + op.scalar(scale + 1).astype("float64")
        return te.minimum(te.maximum(level, float(low)), float(high)).astype(op.dtype)
    return te.compute(op.shape, value, name=op.name("requantized"), tag="elementwise")


def narrowed(op: Op, t: te.Tensor) -> te.Tensor:
    """`t` in the result's type: sums of half-size floats are kept in float32 and rounded once."""
    if t.dtype == op.dtype:
        return t
    return te.compute(t.shape, lambda *i: t[i].astype(op.dtype), name=op.name(), tag="elementwise")


def _batched(t: te.Tensor, batch: At, last: At) -> te.Expr:
    own = len(t.shape) - len(last)
    return broadcast(t, (*batch[len(batch) - own:], *last)) if own else t[last]


def gemm(op: Op) -> te.Tensor:
    """alpha * A' B' + beta * C; passes rewrite it to MatMul + Add wherever its weights are constant."""
    a, b = op.tensor(0), op.tensor(1)
    ta, tb, kind = op.attr("transA", 0), op.attr("transB", 0), wide(op.dtype)
    k = te.reduce_axis(a.shape[0] if ta else a.shape[1], "k")

    def product_at(i: Any, j: Any) -> te.Expr:
        return te.sum((a[k, i] if ta else a[i, k]).astype(kind) * (b[j, k] if tb else b[k, j]).astype(kind), axis=k)
    product = te.compute(op.shape, product_at, name=op.name("matmul"), tag="matmul", attrs={"k": k.extent})
    alpha, beta = op.attr("alpha", 1.0), op.attr("beta", 1.0)
    if not op.has(2) and alpha == 1.0:
        return narrowed(op, product)

    def value(i: Any, j: Any) -> te.Expr:
        result = product[i, j] if alpha == 1.0 else _scaled(product[i, j], alpha)
        if op.has(2):
            c = op.read(2, (i, j)).astype(kind)
            result = result + (c if beta == 1.0 else _scaled(c, beta))
        return result.astype(op.dtype)
    return te.compute(op.shape, value, name=op.name("gemm"), tag="elementwise")


def _scaled(x: te.Expr, factor: float) -> te.Expr:
    """x * factor; of integers, as NumPy has it, in float64 rounded towards zero."""
    if dtypes.is_float(x.dtype):
        return x * factor
    return (x.astype("float64") * factor).astype(x.dtype)


def einsum(op: Op) -> te.Tensor:
    """The sum of products an equation states: letters of the result are its axes, all others are summed over.

    An ellipsis stands for broadcast dimensions. Source: ONNX Einsum (NumPy's einsum).
    """
    shapes = [op.in_shape(n) for n in range(len(op.node.inputs))]
    terms, result = letters(str(op.attr("equation")), shapes)
    extent: dict[str, int] = {}
    for t, s in zip(terms, shapes, strict=True):
        for c, n in zip(t, s, strict=True):
            extent[c] = max(extent.get(c, 1), n)
    summed = {c: te.reduce_axis(n, f"r{k}") for k, (c, n) in enumerate((c, n) for c, n in extent.items() if c not in result)}
    kind = wide(op.dtype)

    def value(*i: Any) -> te.Expr:
        at = {**summed, **dict(zip(result, i, strict=True))}
        factors = [op.read_at(n, [at[c] for c in t]).astype(kind) for n, t in enumerate(terms)]
        product = factors[0]
        for f in factors[1:]:
            product = product * f
        return te.sum(product, axis=tuple(summed.values())) if summed else product
    total = te.compute(op.shape, value, name=op.name(), tag="reduce" if summed else "injective")
    return narrowed(op, total)


def reduced_axes(op: Op) -> list[int]:
    rank = len(op.in_shape())
    axes = op.ints(1, "axes") if op.has(1) or op.attr("axes") is not None else None
    if not axes:
        return [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(a % rank for a in axes)


Element = Callable[[te.Expr], te.Expr]
Finish = Callable[[te.Expr, int], te.Expr]


class _Over:
    """Indices of a reduction over some axes: `where(i)` is the place in the operand for the place i in the result."""

    def __init__(self, op: Op, axes: Sequence[int], keep: bool, prefix: str = "r") -> None:
        self.source, self.keep = op.in_shape(), keep
        self.axis = {a: te.reduce_axis(self.source[a], f"{prefix}{a}") for a in axes}
        self.count = math.prod(self.source[a] for a in axes)

    def __call__(self, i: At) -> At:
        rest = iter(i if not self.keep else [j for d, j in enumerate(i) if d not in self.axis])
        return tuple(self.axis[d] if d in self.axis else next(rest) for d in range(len(self.source)))

    @property
    def axes(self) -> tuple[te.Var, ...]:
        return tuple(self.axis.values())


def reduction(element: Element, combine: Any, finish: Finish | None, widen: bool = True) -> Compute:
    """combine(element(x)) over the axes, then finish(result, count); sums of half-size floats in float32."""
    def compute(op: Op) -> te.Tensor:
        axes, kind = reduced_axes(op), wide(op.dtype) if widen else op.dtype
        if not axes:
            return te.compute(op.shape, lambda *i: _alone(element, finish, op.x[i].astype(kind)).astype(op.dtype),
                              name=op.name(), tag="elementwise")
        over = _Over(op, axes, bool(op.attr("keepdims", 1)))
        total = te.compute(op.shape, lambda *i: combine(element(op.x[over(i)].astype(kind)), axis=over.axes), name=op.name(),
                           tag="reduce")
        if finish is None:
            return narrowed(op, total)
        return te.compute(op.shape, lambda *i: finish(total[i], over.count).astype(op.dtype), name=op.name("finish"),
                          tag="elementwise")
    return compute


def _alone(element: Element, finish: Finish | None, x: te.Expr) -> te.Expr:
    return element(x) if finish is None else finish(element(x), 1)


def log_sum_exp(op: Op) -> te.Tensor:
    """log(sum(exp(x))) with the largest x taken out first, so that nothing overflows."""
    axes, keep, kind = reduced_axes(op), bool(op.attr("keepdims", 1)), _float_of(op.dtype)
    if not axes:
        return te.compute(op.shape, lambda *i: op.x[i], name=op.name(), tag="elementwise")
    over, again = _Over(op, axes, keep), _Over(op, axes, keep, "q")
    top = te.compute(op.shape, lambda *i: te.max(op.x[over(i)].astype(kind), axis=over.axes), name=op.name("top"),
                     tag="reduce")

    def finite(i: At) -> te.Expr:
        return te.select(te.abs(top[i]).equal(math.inf), te.const(0, kind), top[i])
    total = te.compute(op.shape, lambda *i: te.sum(te.exp(op.x[again(i)].astype(kind) - finite(i)), axis=again.axes),
                       name=op.name("total"), tag="reduce")
    return te.compute(op.shape, lambda *i: (te.log(total[i]) + finite(i)).astype(op.dtype), name=op.name(),
                      tag="elementwise")


def _same(x: te.Expr) -> te.Expr:
    return x


def _float_of(dtype: str) -> str:
    """The type functions of a value are computed in."""
    return wide(dtype) if dtypes.is_float(dtype) else "float64"


def _mean(x: te.Expr, count: int) -> te.Expr:
    return x * te.const(1.0 / count, x.dtype) if dtypes.is_float(x.dtype) else x / te.const(count, x.dtype)


def _root(x: te.Expr, count: int) -> te.Expr:
    return te.sqrt(x.astype(_float_of(x.dtype))).astype(x.dtype)


def _log(x: te.Expr, count: int) -> te.Expr:
    return te.log(x.astype(_float_of(x.dtype))).astype(x.dtype)


def _axis_reduction(op: Op, t: te.Tensor, axis: int, name: str, combine: Any, value: Callable[[At], te.Expr]) -> te.Tensor:
    """Reduce dimension `axis` away to extent one."""
    r = te.reduce_axis(t.shape[axis], "r")
    shape = tuple(1 if d == axis else n for d, n in enumerate(t.shape))
    return te.compute(shape, lambda *i: combine(value((*i[:axis], r, *i[axis + 1:])), axis=r), name=op.name(name),
                      tag="reduce")


def _at(t: te.Tensor, i: At, axis: int) -> te.Expr:
    return t[(*i[:axis], 0, *i[axis + 1:])]


def softmax(op: Op) -> te.Tensor:
    """exp(x - max) * (1/sum): five stages, scheduled in one row loop."""
    x, axis, kind = op.x, op.axis("axis", -1), wide(op.dtype)
    if not x.shape:
        return te.compute((), lambda: te.exp(x[()] - x[()]), name=op.name(), tag="elementwise")
    top = _axis_reduction(op, x, axis, "top", te.max, lambda i: x[i].astype(kind))
    e = te.compute(x.shape, lambda *i: te.exp_nonpositive(x[i].astype(kind) - _at(top, i, axis)), name=op.name("exp"),
                   tag="elementwise")
    total = _axis_reduction(op, e, axis, "total", te.sum, lambda i: e[i])
    inverse = te.compute(total.shape, lambda *i: te.const(1.0, kind) / total[i], name=op.name("inverse"), tag="elementwise")
    return te.compute(x.shape, lambda *i: (e[i] * _at(inverse, i, axis)).astype(op.dtype), name=op.name("softmax"),
                      tag="elementwise")


def log_softmax(op: Op) -> te.Tensor:
    x, axis, kind = op.x, op.axis("axis", -1), wide(op.dtype)
    if not x.shape:
        return te.compute((), lambda: x[()] - x[()], name=op.name(), tag="elementwise")

    def below(i: At) -> te.Expr:
        return x[i].astype(kind) - _at(top, i, axis)
    top = _axis_reduction(op, x, axis, "top", te.max, lambda i: x[i].astype(kind))
    total = _axis_reduction(op, x, axis, "total", te.sum, lambda i: te.exp_nonpositive(below(i)))
    log = te.compute(total.shape, lambda *i: te.log(total[i]), name=op.name("log"), tag="elementwise")     # one per row
    return te.compute(x.shape, lambda *i: (below(i) - _at(log, i, axis)).astype(op.dtype),
                      name=op.name("log_softmax"), tag="elementwise")


def hardmax(op: Op) -> te.Tensor:
    """1 at the first largest element along `axis`, else 0."""
    axis = op.axis("axis", -1)
    first = _best_position(op, "max", axis, last=False)
    return te.compute(op.shape, lambda *i: te.select(
        _at(first, i, axis).equal(te.index(i[axis]).astype(first.dtype)), te.const(1, op.dtype), te.const(0, op.dtype),
    ), name=op.name(), tag="elementwise")


def layer_norm(op: Op) -> tuple[te.Tensor, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the axes from `axis` on; also mean and inverse deviation.

    Source: ONNX LayerNormalization.
    """
    x, axis, epsilon, kind = op.x, op.axis("axis", -1), op.attr("epsilon", 1e-5), wide(op.dtype)
    inner = x.shape[axis:]
    count = math.prod(inner)
    outer = (*x.shape[:axis], *(1 for _ in inner))
    r = [te.reduce_axis(n, f"r{d}") for d, n in enumerate(inner)]
    q = [te.reduce_axis(n, f"q{d}") for d, n in enumerate(inner)]

    def head(i: Sequence[Any]) -> At:
        return (*i[:axis], *(0 for _ in inner))
    total = te.compute(outer, lambda *i: te.sum(x[(*i[:axis], *r)].astype(kind), axis=r), name=op.name("total"),
                       tag="reduce")
    mean = te.compute(outer, lambda *i: total[i] * (1.0 / count), name=op.name("mean"), tag="elementwise")

    def deviation(i: Sequence[Any]) -> te.Expr:
        return x[tuple(i)].astype(kind) - mean[head(i)]
    square = te.compute(outer, lambda *i: te.sum(deviation((*i[:axis], *q)) * deviation((*i[:axis], *q)), axis=q),
                        name=op.name("square"), tag="reduce")
    inverse = te.compute(outer, lambda *i: te.const(1.0, kind) / te.sqrt(square[i] * (1.0 / count) + epsilon),
                         name=op.name("inverse"), tag="elementwise")

    def value(*i: Any) -> te.Expr:
        result = deviation(i) * inverse[head(i)] * op.read(1, i).astype(kind)
        return (result + op.read(2, i).astype(kind) if op.has(2) else result).astype(op.dtype)
    return te.compute(op.shape, value, name=op.name("layer_norm"), tag="elementwise"), mean, inverse


def rms_norm(op: Op) -> te.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale over the axes from `axis` on. Source: ONNX RMSNormalization."""
    x, axis, epsilon, kind = op.x, op.axis("axis", -1), op.attr("epsilon", 1e-5), wide(op.dtype)
    inner = x.shape[axis:]
    outer = (*x.shape[:axis], *(1 for _ in inner))
    r = [te.reduce_axis(n, f"r{d}") for d, n in enumerate(inner)]

    def square_sum(*i: Any) -> te.Expr:
        here = x[(*i[:axis], *r)].astype(kind)
        return te.sum(here * here, axis=r)
    total = te.compute(outer, square_sum, name=op.name("square"), tag="reduce")
    inverse = te.compute(outer, lambda *i: te.const(1.0, kind) / te.sqrt(total[i] * (1.0 / math.prod(inner)) + epsilon),
                         name=op.name("inverse"), tag="elementwise")
    return te.compute(op.shape, lambda *i: (
        x[i].astype(kind) * inverse[(*i[:axis], *(0 for _ in inner))] * op.read(1, i).astype(kind)
    ).astype(op.dtype), name=op.name(), tag="elementwise")


def lp_norm(op: Op) -> te.Tensor:
    """x / ||x||_p along one axis; 0 where the norm is 0. Source: ONNX LpNormalization."""
    x, axis, kind, p = op.x, op.axis("axis", -1), wide(op.dtype), op.attr("p", 2)

    def size(i: At) -> te.Expr:
        here = x[i].astype(kind)
        return te.abs(here) if p == 1 else here * here
    norm = total = _axis_reduction(op, x, axis, "total", te.sum, size)
    if p != 1:
        norm = te.compute(total.shape, lambda *i: te.sqrt(total[i]), name=op.name("norm"), tag="elementwise")

    def value(*i: Any) -> te.Expr:
        by = _at(norm, i, axis)
        return te.select(by.equal(0.0), te.const(0, kind), x[i].astype(kind) / by).astype(op.dtype)
    return te.compute(op.shape, value, name=op.name(), tag="elementwise")


def _combine_best(largest: bool, last: bool) -> te.Reducer:
    """Of two (value, position) the one that NumPy's argmax gives: NaN is best of all, of equal ones the first (or last)."""
    def combine(x: Sequence[te.Expr], y: Sequence[te.Expr]) -> tuple[te.Expr, te.Expr]:
        def as_good(a: te.Expr, b: te.Expr) -> te.Expr:
            better = a >= b if largest else a <= b
            return te.any(better, te.isnan(a)) if dtypes.is_float(a.dtype) else better
        x_wins, y_wins = as_good(x[0], y[0]), as_good(y[0], x[0])
        both = te.maximum(x[1], y[1]) if last else te.minimum(x[1], y[1])
        # the value waits for no position: from one step to the next only a comparison and a choice
        return te.select(x_wins, x[0], y[0]), te.select(x_wins, te.select(y_wins, both, x[1]), y[1])

    def identity(value: str, position: str) -> tuple[te.Expr, te.Expr]:
        worst = te.min_value(value) if largest else te.max_value(value)
        return worst, te.const(-1, position) if last else te.max_value(position)
    return te.comm_reducer(combine, identity, name=("last" if last else "first") + ("_largest" if largest else "_smallest"))


BEST = {(largest, last): _combine_best(largest, last) for largest in (True, False) for last in (True, False)}


def _best_position(op: Op, kind: str, axis: int, last: bool) -> te.Tensor:
    """The first (or last) position along `axis` that holds its largest (smallest) element; that axis stays with extent 1.

    One reduction of (value, position); positions in 32 bits where they fit, as many to a vector as float32 values.
    """
    x, n = op.x, op.in_shape()[axis]
    r = te.reduce_axis(n, "r")
    position = te.index(r).astype("int32" if n < 2**31 else "int64")

    def value(*i: Any) -> te.TupleReduce:
        return BEST[kind == "max", last]((x[(*i[:axis], r, *i[axis + 1:])].astype(wide(x.dtype)), position), axis=r)
    shape = tuple(1 if d == axis else extent for d, extent in enumerate(x.shape))
    return te.compute(shape, value, name=op.name("best"), tag="reduce")[1]


def arg(kind: str) -> Compute:
    """ArgMax, ArgMin: the position of the best value, the first (or last) of equal ones. NaN is the best (as in NumPy)."""
    def compute(op: Op) -> te.Tensor:
        axis, keep = op.axis("axis", 0), op.attr("keepdims", 1)
        found = _best_position(op, kind, axis, bool(op.attr("select_last_index", 0)))
        return te.compute(op.shape, lambda *i: found[i if keep else (*i[:axis], 0, *i[axis:])].astype("int64"),
                          name=op.name(f"arg{kind}"), tag="elementwise")
    return compute


def prefix_scan(
    op: Op, shape: Sequence[int], axis: int, first: Callable[[At], te.Expr], combine: Callable[[te.Expr, te.Expr], te.Expr],
    neutral: te.Expr, reverse: bool = False,
) -> te.Tensor:
    """first(0), first(0)+first(1), ...: along an axis, in log4(n) stages of four terms each (Hillis and Steele's scan).

        s1[i] = x[i] + x[i-1] + x[i-2] + x[i-3];    s2[i] = s1[i] + s1[i-4] + s1[i-8] + s1[i-12];    ...
    """
    n, step = shape[axis], 1
    made = te.compute(shape, lambda *i: first(i), name=op.name("scan"), tag="scan")
    while step < n:
        made = _scan_step(op, made, axis, [k * step for k in (1, 2, 3) if k * step < n], combine, neutral, reverse)
        step *= 4
    return made


def _scan_step(
    op: Op, before: te.Tensor, axis: int, distances: Sequence[int], combine: Callable[[te.Expr, te.Expr], te.Expr],
    neutral: te.Expr, reverse: bool,
) -> te.Tensor:
    n = before.shape[axis]

    def value(*i: Any) -> te.Expr:
        total: te.Expr = before[i]
        for d in distances:
            at = te.index(i[axis]) + (d if reverse else -d)
            inside = te.index(i[axis]) < n - d if reverse else te.index(i[axis]) >= d
            total = combine(total, te.select(inside, before[(*i[:axis], at, *i[axis + 1:])], neutral))
        return total
    return te.compute(before.shape, value, name=op.name("scan"), tag="scan")


def cumulative(combine: Callable[[te.Expr, te.Expr], te.Expr], neutral: int) -> Compute:
    """CumSum, CumProd: a prefix scan, moved by one where the element itself does not count."""
    def compute(op: Op) -> te.Tensor:
        axis, kind = int(op.constant(1).reshape(-1)[0]) % len(op.shape), wide(op.dtype)
        reverse, exclusive = bool(op.attr("reverse", 0)), bool(op.attr("exclusive", 0))
        start, n = te.const(neutral, kind), op.shape[axis]

        def element(i: At) -> te.Expr:
            if not exclusive:
                return op.x[i].astype(kind)
            at = te.index(i[axis]) + (1 if reverse else -1)
            inside = te.index(i[axis]) < n - 1 if reverse else te.index(i[axis]) >= 1
            return te.select(inside, op.x[(*i[:axis], at, *i[axis + 1:])].astype(kind), start)
        return narrowed(op, prefix_scan(op, op.shape, axis, element, combine, start, reverse))
    return compute


REDUCE: dict[str, Compute] = {
    "ArgMax": arg("max"),
    "ArgMin": arg("min"),
    "CumProd": cumulative(lambda a, b: a * b, 1),
    "CumSum": cumulative(lambda a, b: a + b, 0),
    "Einsum": einsum,
    "Gemm": gemm,
    "Hardmax": hardmax,
    "LayerNormalization": layer_norm,
    "LogSoftmax": log_softmax,
    "LpNormalization": lp_norm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
    "RMSNormalization": rms_norm,
    "ReduceL1": reduction(te.abs, te.sum, None),
    "ReduceL2": reduction(lambda x: x * x, te.sum, _root),
    "ReduceLogSum": reduction(_same, te.sum, _log),
    "ReduceLogSumExp": log_sum_exp,
    "ReduceMax": reduction(_same, largest, None, widen=False),
    "ReduceMean": reduction(_same, te.sum, _mean),
    "ReduceMin": reduction(_same, smallest, None, widen=False),
    "ReduceProd": reduction(_same, te.prod, None),
    "ReduceSum": reduction(_same, te.sum, None),
    "ReduceSumSquare": reduction(lambda x: x * x, te.sum, None),
    "Softmax": softmax,
}
