"""Convolution, pooling and normalisation over spatial windows: any number of spatial dimensions, logical (N, C, ...) indices.

There is one convolution. Padding is a select in the definition; a layout with a halo makes it vanish at lowering. Groups and
depthwise are an index; a transposed convolution visits only the taps that meet an input (no multiplications by zero).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import Compute, Op

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
    x, w = op.x, op.tensor(1)
    spatial, (out_channels, ic, *kernel) = x.shape[2:], w.shape
    strides, dilations, before = window(op, kernel, spatial)
    group = op.attr("group", 1)
    per_group = out_channels // group
    rc = te.reduce_axis(ic, "ic")
    rk = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", len(kernel)), strict=True)]

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, rk, dilations, before, strict=True)]
        channel = te.index(o) // per_group * ic + rc if group > 1 else rc
        read = te.select(inside(where, spatial), x[(n, channel, *where)], te.const(0, x.dtype))
        bias = op.read(2, (o,)) if op.has(2) else None
        return te.sum(read * w[(o, rc, *rk)], axis=(rc, *rk), init=bias)

    depthwise = ic == 1 and group > 1
    return te.compute(op.shape, value, name=op.name(), tag="depthwise" if depthwise else "conv",
                      attrs={"strides": strides, "kernel": kernel, "dilations": dilations, "group": group})


def conv_transpose(op: Op) -> te.Tensor:
    """The gradient of Conv: output y meets only the taps k = (y + p) mod s + s*j, at input (y + p) // s - j.

    Two stages, so that every phase y mod s is a dense convolution with its own taps (no multiplications by zero):

        P[n, o, phase..., i...] = B[o] + sum over (ic, j) of X[n, ic, (s*i + phase + p)//s - j] * W[ic, o, (phase + p)%s + s*j]
        Y[n, o, y...] = P[n, o, y % s ..., y // s ...]                                  Source: ONNX ConvTranspose.
    """
    x, w = op.x, op.tensor(1)
    if any(d != 1 for d in op.attr("dilations") or [1]):
        raise CodegenError("ConvTranspose with dilations is not supported", where=op.node.name)
    spatial, (channels, per_group, *kernel) = x.shape[2:], w.shape
    rank, group = len(spatial), op.attr("group", 1)
    strides = [int(s) for s in op.attr("strides") or [1] * rank]
    before = _transpose_pads(op, kernel, strides)
    ic = channels // group
    rc = te.reduce_axis(ic, "ic")
    taps = [te.reduce_axis(-(-k // s), name) for k, s, name in zip(kernel, strides, axis_names("j", rank), strict=True)]
    zero = te.const(0, x.dtype)

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        moved = [te.index(i) * s + ph + p for i, ph, s, p in zip(at[rank:], at[:rank], strides, before, strict=True)]
        where = [m // s - j for m, s, j in zip(moved, strides, taps, strict=True)]
        k = [(te.index(ph) + p) % s + j * s for ph, p, s, j in zip(at[:rank], before, strides, taps, strict=True)]
        g = te.index(o) // per_group * ic if group > 1 else 0
        weight = w[(rc + g, te.index(o) % per_group if group > 1 else o, *k)]
        read = te.select(inside(where, spatial), x[(n, rc + g, *where)], zero)
        return te.sum(read * te.select(inside(k, kernel), weight, zero), axis=(rc, *taps),
                      init=op.read(2, (o,)) if op.has(2) else None)

    phases = (*op.shape[:2], *strides, *(-(-n // s) for n, s in zip(op.shape[2:], strides, strict=True)))
    p = te.compute(phases, value, name=op.name(), tag="conv_transpose",
                   attrs={"strides": strides, "kernel": kernel, "group": group})
    return te.compute(op.shape, lambda n, o, *at: p[(n, o, *(te.index(y) % s for y, s in zip(at, strides, strict=True)),
                                                     *(te.index(y) // s for y, s in zip(at, strides, strict=True)))],
                      name=op.name("interleave"), tag="elementwise")


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


def max_pool(op: Op) -> te.Tensor:
    if len(op.types) > 1 and len(op.node.outputs) > 1 and op.node.outputs[1]:
        raise CodegenError("MaxPool's second output (indices) is not supported", where=op.node.name)
    kernel, strides, dilations, before = _pool_window(op)
    lowest = te.const(dtypes.lowest(op.dtype), op.dtype)

    def reduce(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, axes, dilations, before, strict=True)]
        read = te.select(inside(where, op.in_shape()[2:]), op.x[(n, c, *where)], lowest)
        return te.max(read, axis=axes)
    return _pool(op, "pool", kernel, strides, reduce)


def average_pool(op: Op) -> te.Tensor:
    """The divisor counts the elements met (or, count_include_pad, the padding too), constant where no border is met."""
    kernel, strides, dilations, before = _pool_window(op)
    spatial, out = op.in_shape()[2:], op.shape[2:]
    pads = op.attr("pads") or [0] * (2 * len(kernel))
    include = bool(op.attr("count_include_pad", 0))
    counts = []                                     # per dimension: how many taps count at each output position
    for d, n in enumerate(spatial):
        low, high = (-before[d], n + pads[len(kernel) + d]) if include else (0, n)
        first = np.arange(out[d]) * strides[d] - before[d]
        taps = first[:, None] + np.arange(kernel[d])[None, :] * dilations[d]
        counts.append(((taps >= low) & (taps < high)).sum(1).tolist())

    def reduce(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
        where = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, axes, dilations, before, strict=True)]
        read = te.select(inside(where, spatial), op.x[(n, c, *where)], te.const(0, op.dtype))
        return te.sum(read, axis=axes)
    total = _pool(op, "pool", kernel, strides, reduce)
    if all(len(set(c)) == 1 for c in counts):
        scale = 1.0 / math.prod(c[0] for c in counts)
        return te.compute(op.shape, lambda *i: total[i] * scale, name=op.name("average"), tag="elementwise")

    def divisor(at: Any) -> te.Expr:
        result: te.Expr = te.const(1.0, op.dtype)
        for c, i in zip(counts, at, strict=True):
            result = result * runs(c, i, op.dtype)
        return result
    return te.compute(op.shape, lambda n, c, *at: total[(n, c, *at)] / divisor(at), name=op.name("average"), tag="elementwise")


def runs(values: Sequence[float], at: Any, dtype: str) -> te.Expr:
    """values[at] for a table with few runs of equal values: nested selects on the run ends."""
    pieces = [(v, len(list(g))) for v, g in itertools.groupby(values)]
    result: te.Expr = te.const(pieces[-1][0], dtype)
    end = len(values) - pieces[-1][1]
    for v, n in reversed(pieces[:-1]):
        result = te.select(te.index(at) < end, te.const(v, dtype), result)
        end -= n
    return result


def global_pool(kind: str) -> Compute:
    def compute(op: Op) -> te.Tensor:
        spatial = list(op.in_shape()[2:])
        def reduce(n: Any, c: Any, at: Any, axes: list[te.Var]) -> te.Expr:
            read = op.x[(n, c, *axes)]
            return te.max(read, axis=axes) if kind == "max" else te.sum(read, axis=axes)
        total = _pool(op, "pool", spatial, [1] * len(spatial), reduce)
        if kind == "max":
            return total
        scale = 1.0 / math.prod(spatial)
        return te.compute(op.shape, lambda *i: total[i] * scale, name=op.name("average"), tag="elementwise")
    return compute


def lrn(op: Op) -> te.Tensor:
    """x / (bias + alpha/size * sum of squares over `size` neighbouring channels) ** beta.  Source: ONNX LRN."""
    size, channels = op.attr("size"), op.shape[1]
    alpha, beta, bias = op.attr("alpha", 1e-4), op.attr("beta", 0.75), op.attr("bias", 1.0)
    r = te.reduce_axis(size, "r")

    def square(n: Any, c: Any, *at: Any) -> te.Expr:
        near = c + r - (size - 1) // 2
        ok = te.all(near >= 0, near < channels)
        zero = te.const(0, op.dtype)
        return te.sum(te.select(ok, op.x[(n, near, *at)], zero) * te.select(ok, op.x[(n, near, *at)], zero), axis=r)
    total = te.compute(op.shape, square, name=op.name("square_sum"), tag="pool", attrs={"strides": [1], "kernel": [size]})

    def value(*i: Any) -> te.Expr:
        base = total[i] * (alpha / size) + bias
        if beta == 0.75:                            # base ** -0.75 without a logarithm
            root = te.sqrt(base)
            return op.x[i] / (root * te.sqrt(root))
        return op.x[i] / te.call("pow", base, te.const(beta, op.dtype))
    return te.compute(op.shape, value, name=op.name(), tag="elementwise")


def batch_norm(op: Op) -> te.Tensor:
    """Inference form only; passes fold it away wherever its parameters are constant."""
    epsilon = op.attr("epsilon", 1e-5)

    def value(n: Any, c: Any, *at: Any) -> te.Expr:
        gamma, beta, mean, var = (op.tensor(k)[c] for k in (1, 2, 3, 4))
        return (op.x[(n, c, *at)] - mean) / te.sqrt(var + epsilon) * gamma + beta
    return te.compute(op.shape, value, name=op.name(), tag="elementwise")


def instance_norm(op: Op) -> te.Tensor:
    """Normalised per (n, c) over the spatial dimensions. Source: ONNX InstanceNormalization."""
    spatial = op.in_shape()[2:]
    count, epsilon = math.prod(spatial), op.attr("epsilon", 1e-5)
    nc = op.in_shape()[:2]
    r = [te.reduce_axis(n, name) for n, name in zip(spatial, axis_names("r", len(spatial)), strict=True)]
    q = [te.reduce_axis(n, name) for n, name in zip(spatial, axis_names("q", len(spatial)), strict=True)]
    total = te.compute(nc, lambda n, c: te.sum(op.x[(n, c, *r)], axis=r), name=op.name("total"), tag="reduce")
    mean = te.compute(nc, lambda n, c: total[n, c] * (1.0 / count), name=op.name("mean"), tag="elementwise")
    square = te.compute(nc, lambda n, c: te.sum((op.x[(n, c, *q)] - mean[n, c]) * (op.x[(n, c, *q)] - mean[n, c]), axis=q),
                        name=op.name("square"), tag="reduce")
    scale = te.compute(nc, lambda n, c: op.tensor(1)[c] / te.sqrt(square[n, c] * (1.0 / count) + epsilon), name=op.name("scale"),
                       tag="elementwise")
    return te.compute(op.shape, lambda n, c, *at: (op.x[(n, c, *at)] - mean[n, c]) * scale[n, c] + op.tensor(2)[c],
                      name=op.name(), tag="elementwise")


NN: dict[str, Compute] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_pool("average"),
    "GlobalMaxPool": global_pool("max"),
    "InstanceNormalization": instance_norm,
    "LRN": lrn,
    "MaxPool": max_pool,
}
