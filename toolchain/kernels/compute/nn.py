"""Convolution, pooling, normalisation over spatial windows: any number of spatial dimensions, logical (N, C, ...) indices.

There is one convolution. Padding is a select in the definition; a layout with a halo makes it vanish at lowering. Groups and
depthwise are an index; a transposed convolution visits only the taps that meet an input (no multiplications by zero).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.compute.reduce import Factor, narrowed, requantized, zero_point
from toolchain.kernels.op import Compute, Op, largest, row_major, wide

SPATIAL = "zyx"


def axis_names(prefix: str, rank: int) -> list[str]:
    return [f"{prefix}{c}" for c in SPATIAL[-rank:]]


def window(op: Op, kernel: Sequence[int], spatial: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and padding before each spatial dimension; auto_pad resolved."""
    rank = len(spatial)
    strides = [int(s) for s in op.attr("strides") or [1] * rank]
    dilations = [int(d) for d in op.attr("dilations") or [1] * rank]
    auto = op.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return strides, dilations, [int(p) for p in (op.attr("pads") or [0] * (2 * rank))[:rank]]
    before = []
    for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        total = 0 if auto == "VALID" else max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        before.append(total // 2 if auto == "SAME_UPPER" else -(-total // 2))
    return strides, dilations, before


def inside(at: Sequence[Any], extents: Sequence[int]) -> te.Expr:
    """Whether every index lies in its dimension."""
    return te.all(*(te.all(te.index(i) >= 0, te.index(i) < n) for i, n in zip(at, extents, strict=True)))


def conv(op: Op) -> te.Tensor:
    """Y[n, o, y...] = B[o] + sum over (ic, k...) of X[n, group(o)*IC + ic, y*s + k*d - p ...] * W[o, ic, k...].

    The bias is the initial value of the reduction. Source: ONNX Conv.
    """
    kind = wide(op.dtype)
    bias = (lambda o: op.read(2, (o,)).astype(kind)) if op.has(2) else None
    return narrowed(op, _convolution(op, op.x, op.tensor(1), lambda x, _: x.astype(kind), lambda w, _: w.astype(kind), bias))


Bias = Callable[[Any], te.Expr]


def _convolution(op: Op, x: te.Tensor, w: te.Tensor, left: Factor, right: Factor, bias: Bias | None) -> te.Tensor:
    """The sum of left(x) * right(w) over the window; padding counts as zero after `left`."""
    spatial, (out_channels, ic, *kernel) = x.shape[2:], w.shape
    strides, dilations, before = window(op, kernel, spatial)
    group = op.attr("group", 1)
    per_group = out_channels // group
    rc = te.reduce_axis(ic, "ic")
    rk = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", len(kernel)), strict=True)]

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, rk, dilations, before, strict=True)]
        channel = te.index(o) // per_group * ic + rc if group > 1 else rc
        element = left(x[(n, channel, *where)], o)
        read = te.select(inside(where, spatial), element, te.const(0, element.dtype))
        return te.sum(read * right(w[(o, rc, *rk)], o), axis=(rc, *rk), init=bias(o) if bias else None)

    depthwise = ic == 1 and group > 1
    return te.compute(op.shape, value, name=op.name(), tag="depthwise" if depthwise else "conv",
                      attrs={"strides": strides, "kernel": kernel, "dilations": dilations, "group": group})


def conv_integer(op: Op) -> te.Tensor:
    """(x - x_zero_point) convolved with (w - w_zero_point) in int32; padding is the zero point."""
    return _convolution(op, op.x, op.tensor(1), zero_point(op, 2), zero_point(op, 3), None)


def qlinear_conv(op: Op) -> te.Tensor:
    """The convolution of the quantized arrays in int32, scaled and quantized again. Source: ONNX QLinearConv."""
    bias = (lambda o: op.tensor(8)[o]) if op.has(8) else None
    total = _convolution(op, op.x, op.tensor(3), zero_point(op, 2), zero_point(op, 5), bias)

    def factor(i: tuple[Any, ...]) -> te.Expr:
        w_scale = op.scalar(4) if math.prod(op.in_shape(4)) == 1 else op.tensor(4)[i[1]]
        return op.scalar(1) * w_scale
    return requantized(op, total, 6, factor)


def conv_transpose(op: Op) -> te.Tensor:
    """The gradient of Conv: output y meets only the taps k = (y + p) mod s + s*j, at input (y + p) // s - j.

    Two stages, so that every phase y mod s is a dense convolution with its own taps (no multiplications by zero):

        P[n, o, phase..., i...] = B[o] + sum over (ic, j) of
                                  X[n, ic, (s*i + phase + p)//s - j] * W[ic, o, (phase + p)%s + s*j]
        Y[n, o, y...] = P[n, o, y % s ..., y // s ...]                                  Source: ONNX ConvTranspose.
    """
    x, w, kind = op.x, op.tensor(1), wide(op.dtype)
    if any(d != 1 for d in op.attr("dilations") or [1]):
        return _dilated_transpose(op)
    spatial, (channels, per_group, *kernel) = x.shape[2:], w.shape
    rank, group = len(spatial), op.attr("group", 1)
    strides = [int(s) for s in op.attr("strides") or [1] * rank]
    before = _transpose_pads(op, kernel, strides)
    ic = channels // group
    rc = te.reduce_axis(ic, "ic")
    taps = [te.reduce_axis(-(-k // s), name) for k, s, name in zip(kernel, strides, axis_names("j", rank), strict=True)]
    zero = te.const(0, kind)

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        moved = [te.index(i) * s + ph + p for i, ph, s, p in zip(at[rank:], at[:rank], strides, before, strict=True)]
        where = [m // s - j for m, s, j in zip(moved, strides, taps, strict=True)]
        k = [(te.index(ph) + p) % s + j * s for ph, p, s, j in zip(at[:rank], before, strides, taps, strict=True)]
        g = te.index(o) // per_group * ic if group > 1 else 0
        weight = w[(rc + g, te.index(o) % per_group if group > 1 else o, *k)].astype(kind)
        read = te.select(inside(where, spatial), x[(n, rc + g, *where)].astype(kind), zero)
        return te.sum(read * te.select(inside(k, kernel), weight, zero), axis=(rc, *taps),
                      init=op.read(2, (o,)).astype(kind) if op.has(2) else None)

    phases = (*op.shape[:2], *strides, *(-(-n // s) for n, s in zip(op.shape[2:], strides, strict=True)))
    p = te.compute(phases, value, name=op.name(), tag="conv_transpose",
                   attrs={"strides": strides, "kernel": kernel, "group": group})

    def interleaved(n: Any, o: Any, *at: Any) -> te.Expr:
        phase = [te.index(y) % s for y, s in zip(at, strides, strict=True)]
        return p[(n, o, *phase, *(te.index(y) // s for y, s in zip(at, strides, strict=True)))].astype(op.dtype)
    return te.compute(op.shape, interleaved, name=op.name("interleave"), tag="elementwise")


def _dilated_transpose(op: Op) -> te.Tensor:
    """With dilations: every tap k, where (y + p - k*d) is a multiple of the stride (the others add zero)."""
    x, w, kind = op.x, op.tensor(1), wide(op.dtype)
    spatial, (channels, per_group, *kernel) = x.shape[2:], w.shape
    rank, group = len(spatial), op.attr("group", 1)
    strides, dilations, before = window(op, kernel, spatial)
    ic = channels // group
    rc = te.reduce_axis(ic, "ic")
    rk = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", rank), strict=True)]

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        moved = [te.index(y) + p - k * d for y, p, k, d in zip(at, before, rk, dilations, strict=True)]
        where = [m // s for m, s in zip(moved, strides, strict=True)]
        met = te.all(*((m % s).equal(0) for m, s in zip(moved, strides, strict=True)), inside(where, spatial))
        g = te.index(o) // per_group * ic if group > 1 else 0
        read = te.select(met, x[(n, rc + g, *where)].astype(kind), te.const(0, kind))
        weight = w[(rc + g, te.index(o) % per_group if group > 1 else o, *rk)].astype(kind)
        return te.sum(read * weight, axis=(rc, *rk), init=op.read(2, (o,)).astype(kind) if op.has(2) else None)
    return narrowed(op, te.compute(op.shape, value, name=op.name(), tag="reduce"))


def _transpose_pads(op: Op, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    rank = len(kernel)
    auto = op.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", "") and not op.attr("output_shape"):
        return [int(p) for p in (op.attr("pads") or [0] * (2 * rank))[:rank]]
    extra = op.attr("output_padding") or [0] * rank
    before = []
    for n, o, k, s, e in zip(op.in_shape()[2:], op.shape[2:], kernel, strides, extra, strict=True):
        total = max(0, s * (n - 1) + e + k - o)
        before.append(total - total // 2 if auto != "SAME_UPPER" else total // 2)
    return before


def _pool_window(op: Op) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = [int(k) for k in op.attr("kernel_shape")]
    return kernel, *window(op, kernel, op.in_shape()[2:])


def _pool(op: Op, tag: str, kernel: list[int], strides: list[int], reduce: Any) -> te.Tensor:
    axes = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", len(kernel)), strict=True)]
    return te.compute(op.shape, lambda n, c, *at: reduce(n, c, at, axes), name=op.name(), tag=tag,
                      attrs={"strides": strides, "kernel": kernel})


def _is_separable(op: Op) -> bool:
    """Whether a window is better reduced one dimension after the other: rows of a plain layout (the padding of a blocked one
    is its halo), windows of more than one row."""
    kernel = op.attr("kernel_shape")
    plain = all(t is None or t.layout.is_row_major for t in (*op.types, *op.input_types))
    return plain and kernel[-1] > 1 and math.prod(kernel[:-1]) > 1


def _separable(op: Op, combine: Any, element: Callable[[te.Expr], te.Expr], outside: te.Expr) -> te.Tensor:
    """A window's columns first, for all places of a padded row, then along that row.

        C[..., y, x] = combine over ky of x[..., y*s + ky*d - p, x - p]
        Y[..., y, x] = combine over kx of C[..., y, x*s + kx*d]
    """
    kernel, strides, dilations, before = _pool_window(op)
    spatial, rank = op.in_shape()[2:], len(kernel)
    axes = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", rank), strict=True)]
    width = (op.shape[-1] - 1) * strides[-1] + (kernel[-1] - 1) * dilations[-1] + 1

    def column(n: Any, c: Any, *at: Any) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, axes, dilations, before)][:-1]
        where.append(te.index(at[-1]) - before[-1])
        return combine(te.select(inside(where, spatial), element(op.x[(n, c, *where)]), outside), axis=tuple(axes[:-1]))
    columns = te.compute((*op.shape[:-1], width), column, name=op.name("columns"), tag="reduce")

    def along(n: Any, c: Any, *at: Any) -> te.Expr:
        return combine(columns[(n, c, *at[:-1], at[-1] * strides[-1] + axes[-1] * dilations[-1])], axis=axes[-1])
    return te.compute(op.shape, along, name=op.name(), tag="reduce")


def max_pool(op: Op) -> te.Tensor | tuple[te.Tensor, ...]:
    """The largest element of each window; second output: its position in the whole tensor, of equal ones the first."""
    kernel, strides, dilations, before = _pool_window(op)
    spatial = op.in_shape()[2:]
    lowest = te.const(dtypes.lowest(op.dtype), op.dtype)

    def places(at: Any, axes: Sequence[te.Var]) -> list[Any]:
        return [i * s + k * d - p for i, s, k, d, p in zip(at, strides, axes, dilations, before, strict=True)]

    def reduce(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
        where = places(at, axes)
        return largest(te.select(inside(where, spatial), op.x[(n, c, *where)], lowest), axis=axes)
    single = len(op.node.outputs) < 2 or not op.node.outputs[1]
    if single and _is_separable(op):
        return _separable(op, largest, lambda x: x, lowest)
    best = _pool(op, "pool", kernel, strides, reduce)
    if len(op.node.outputs) < 2 or not op.node.outputs[1]:
        return best
    nowhere = te.const(dtypes.highest("int64"), "int64")

    def position(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
        where = places(at, axes)
        flat = row_major((n, c, *where), op.in_shape())
        hit = te.select(inside(where, spatial), op.x[(n, c, *where)].equal(best[(n, c, *at)]), te.const(False, "bool"))
        return te.min(te.select(hit, te.index(flat).astype("int64"), nowhere), axis=axes)
    first = _pool(op, "reduce", kernel, strides, position)
    if not op.attr("storage_order", 0):
        return best, first
    return best, te.compute(op.shape, lambda *i: _column_major(first[i], spatial), name=op.name("position"),
                            tag="elementwise")


def _column_major(at: te.Expr, spatial: Sequence[int]) -> te.Expr:
    """A row-major position with the order of its last dimensions turned round."""
    rest, turned = at, te.const(0, "int64")
    weight = math.prod(spatial)
    for n in reversed(spatial):
        weight //= n
        turned, rest = turned + rest % te.const(n, "int64") * te.const(weight, "int64"), rest // te.const(n, "int64")
    return rest * te.const(math.prod(spatial), "int64") + turned


def average_pool(op: Op) -> te.Tensor:
    """The divisor counts the elements met (or, count_include_pad, the padding too), constant where no border is met."""
    kernel, strides, dilations, before = _pool_window(op)
    spatial, out, kind = op.in_shape()[2:], op.shape[2:], wide(op.dtype)
    pads = op.attr("pads") or [0] * (2 * len(kernel))
    include = bool(op.attr("count_include_pad", 0))
    counts = []                                     # per dimension: how many taps count at each output position
    for d, n in enumerate(spatial):
        low, high = (-before[d], n + pads[len(kernel) + d]) if include else (0, n)
        first = np.arange(out[d]) * strides[d] - before[d]
        taps = first[:, None] + np.arange(kernel[d])[None, :] * dilations[d]
        counts.append(((taps >= low) & (taps < high)).sum(1).tolist())
    total = _window_sum(op, lambda x: x.astype(kind), kind)
    if all(len(set(c)) == 1 for c in counts):
        scale = 1.0 / math.prod(c[0] for c in counts)
        return _finished(op, total, lambda x: x * scale)

    def share(at: Any) -> te.Expr:
        result: te.Expr | None = None
        for c, i in zip(counts, at, strict=True):
            factor = runs([1.0 / taps if taps else math.inf for taps in c], i, kind)
            result = factor if result is None else result * factor
        assert result is not None
        return result
    return te.compute(op.shape, lambda n, c, *at: (total[(n, c, *at)] * share(at)).astype(op.dtype),
                      name=op.name("average"), tag="elementwise")


def _window_sum(op: Op, element: Callable[[te.Expr], te.Expr], kind: str) -> te.Tensor:
    """The sum of element(x) over each window, padding left out."""
    if _is_separable(op):
        return _separable(op, te.sum, element, te.const(0, kind))
    kernel, strides, dilations, before = _pool_window(op)

    def reduce(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, axes, dilations, before, strict=True)]
        read = te.select(inside(where, op.in_shape()[2:]), element(op.x[(n, c, *where)]), te.const(0, kind))
        return te.sum(read, axis=axes)
    return _pool(op, "pool", kernel, strides, reduce)


def lp_pool(op: Op) -> te.Tensor:
    """The p-norm of each window."""
    element, finish = _p_norm(op)
    return _finished(op, _window_sum(op, element, wide(op.dtype)), finish)


def _p_norm(op: Op) -> tuple[Callable[[te.Expr], te.Expr], Callable[[te.Expr], te.Expr]]:
    """(what is summed, what is made of the sum) of a p-norm."""
    p, kind = int(op.attr("p", 2)), wide(op.dtype)
    if p == 1:
        return lambda x: te.abs(x.astype(kind)), lambda x: x
    if p == 2:
        return lambda x: x.astype(kind) * x.astype(kind), te.sqrt
    return lambda x: te.pow(te.abs(x.astype(kind)), float(p)), lambda x: te.pow(x, 1.0 / p)


def _finished(op: Op, total: te.Tensor, finish: Callable[[te.Expr], te.Expr]) -> te.Tensor:
    return te.compute(op.shape, lambda *i: finish(total[i]).astype(op.dtype), name=op.name("finish"), tag="elementwise")


def runs(values: Sequence[float], at: Any, dtype: str) -> te.Expr:
    """values[at] for a table with few runs of equal values: nested selects on the run ends."""
    pieces = [(v, len(list(g))) for v, g in itertools.groupby(values)]
    result: te.Expr = te.const(pieces[-1][0], dtype)
    end = len(values) - pieces[-1][1]
    for v, n in reversed(pieces[:-1]):
        result = te.select(te.index(at) < end, te.const(v, dtype), result)
        end -= n
    return result


def _whole(op: Op, reduce: Any, element: Callable[[te.Expr], te.Expr]) -> te.Tensor:
    """A pool whose window is all of the spatial dimensions."""
    spatial = list(op.in_shape()[2:])
    return _pool(op, "pool", spatial, [1] * len(spatial),
                 lambda n, c, at, axes: reduce(element(op.x[(n, c, *axes)]), axis=axes))


def global_max_pool(op: Op) -> te.Tensor:
    return _whole(op, largest, lambda x: x)


def global_average_pool(op: Op) -> te.Tensor:
    scale = 1.0 / math.prod(op.in_shape()[2:])
    return _finished(op, _whole(op, te.sum, lambda x: x.astype(wide(op.dtype))), lambda x: x * scale)


def global_lp_pool(op: Op) -> te.Tensor:
    element, finish = _p_norm(op)
    return _finished(op, _whole(op, te.sum, element), finish)


def lrn(op: Op) -> te.Tensor:
    """x / (bias + alpha/size * sum of squares over `size` neighbouring channels) ** beta.  Source: ONNX LRN."""
    size, channels, kind = op.attr("size"), op.shape[1], wide(op.dtype)
    alpha, beta, bias = op.attr("alpha", 1e-4), op.attr("beta", 0.75), op.attr("bias", 1.0)
    r = te.reduce_axis(size, "r")

    def square(n: Any, c: Any, *at: Any) -> te.Expr:
        near = c + r - (size - 1) // 2
        x = te.select(te.all(near >= 0, near < channels), op.x[(n, near, *at)].astype(kind), te.const(0, kind))
        return te.sum(x * x, axis=r)
    total = te.compute(op.shape, square, name=op.name("square_sum"), tag="pool", attrs={"strides": [1], "kernel": [size]})

    def value(*i: Any) -> te.Expr:
        base, x = total[i] * (alpha / size) + bias, op.x[i].astype(kind)
        if beta == 0.75:                            # base ** -0.75 without a logarithm
            root = te.sqrt(base)
            return (x / (root * te.sqrt(root))).astype(op.dtype)
        return (x / te.pow(base, te.const(beta, kind))).astype(op.dtype)
    return te.compute(op.shape, value, name=op.name(), tag="elementwise")


def batch_norm(op: Op) -> te.Tensor:
    """Inference form only; passes fold it away wherever its parameters are constant."""
    if op.attr("training_mode", 0):
        raise CodegenError("BatchNormalization in training mode is not supported", where=op.node.name,
                           fix="export the model for inference")
    epsilon = op.attr("epsilon", 1e-5)
    kind = "float64" if op.dtype == "float64" else "float32"
    parameters = [op.tensor(k) for k in (1, 2, 3, 4)]

    def value(n: Any, *rest: Any) -> te.Expr:
        c = rest[0] if rest else 0
        gamma, beta, mean, var = (t[c].astype(kind) for t in parameters)
        x = op.x[(n, *rest)].astype(kind)
        return ((x - mean) / te.sqrt(var + epsilon) * gamma + beta).astype(op.dtype)
    return te.compute(op.shape, value, name=op.name(), tag="elementwise")


def instance_norm(op: Op) -> te.Tensor:
    """Normalised per (n, c) over the spatial dimensions. Source: ONNX InstanceNormalization."""
    spatial, kind = op.in_shape()[2:], wide(op.dtype)
    count, epsilon = math.prod(spatial), op.attr("epsilon", 1e-5)
    nc = op.in_shape()[:2]
    r = [te.reduce_axis(n, name) for n, name in zip(spatial, axis_names("r", len(spatial)), strict=True)]
    q = [te.reduce_axis(n, name) for n, name in zip(spatial, axis_names("q", len(spatial)), strict=True)]
    gamma, beta = op.tensor(1), op.tensor(2)
    total = te.compute(nc, lambda n, c: te.sum(op.x[(n, c, *r)].astype(kind), axis=r), name=op.name("total"), tag="reduce")
    mean = te.compute(nc, lambda n, c: total[n, c] * (1.0 / count), name=op.name("mean"), tag="elementwise")

    def deviation(n: Any, c: Any, at: Sequence[Any]) -> te.Expr:
        return op.x[(n, c, *at)].astype(kind) - mean[n, c]
    square = te.compute(nc, lambda n, c: te.sum(deviation(n, c, q) * deviation(n, c, q), axis=q), name=op.name("square"),
                        tag="reduce")
    scale = te.compute(nc, lambda n, c: gamma[c].astype(kind) / te.sqrt(square[n, c] * (1.0 / count) + epsilon),
                       name=op.name("scale"), tag="elementwise")
    return te.compute(op.shape, lambda n, c, *at: (
        deviation(n, c, at) * scale[n, c] + beta[c].astype(kind)).astype(op.dtype), name=op.name(), tag="elementwise")


NN: dict[str, Compute] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "QLinearConv": qlinear_conv,
}
