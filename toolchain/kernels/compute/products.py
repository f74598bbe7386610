"""Products and convolutions of small integers with int32 sums, as `graph/passes/integer_products.py` writes them.

The tag "dot" says that a schedule may take groups of the summed index by one instruction (`kernels/instructions.py`); the
definitions know nothing of groups. The attribute "pairs": the weights were looked at, and the sum of any two products of a
column fits 16 bits. Columns beyond the result's are padding of the weights and computed for nobody.
"""

from __future__ import annotations

import math
from typing import Any

from toolchain import te
from toolchain.kernels.compute.nn import axis_names
from toolchain.kernels.compute.shape import unflatten_index
from toolchain.kernels.op import Compute, Op, row_major


def integer_matmul(op: Op) -> te.Tensor:
    """P[..., m, n] = start[..., n] + sum over k of X[..., m, k] * W[..., n, k]; all rows of a batch against one W."""
    x, w = op.x, op.tensor(1)
    if len(x.shape) > 2 and len(w.shape) == 2:
        return _rows_matmul(op, x, w)
    k = te.reduce_axis(w.shape[-1], "k")

    def value(*i: Any) -> te.Expr:
        batch = i[len(i) - len(w.shape):len(i) - 2]
        start = op.tensor(2)[(*batch, i[-1])] if op.has(2) else None
        product = x[(*i[:-1], k)].astype("int32") * w[(*batch, i[-1], k)].astype("int32")
        return te.sum(product, axis=k, init=start)
    total = te.compute((*op.shape[:-1], w.shape[-2]), value, name=op.name(), tag="dot", attrs={"k": k.extent, **_pairs(op)})
    return _kept(op, total)


def _rows_matmul(op: Op, x: te.Tensor, w: te.Tensor) -> te.Tensor:
    """A product of two dimensions, so that a register tile spans batches: Y[b, m, n] = P[b*M + m, n]."""
    outer, k = x.shape[:-1], te.reduce_axis(w.shape[-1], "k")

    def value(r: Any, n: Any) -> te.Expr:
        product = x[(*unflatten_index(r, outer), k)].astype("int32") * w[n, k].astype("int32")
        return te.sum(product, axis=k, init=op.tensor(2)[n] if op.has(2) else None)
    total = te.compute((math.prod(outer), w.shape[0]), value, name=op.name("rows"), tag="dot",
                       attrs={"k": k.extent, **_pairs(op)})
    return te.compute(op.shape, lambda *i: total[row_major(i[:-1], outer), i[-1]], name=op.name("kept"), tag="elementwise")


def integer_conv(op: Op) -> te.Tensor:
    """P[n, o, y...] = start[o] + sum over (ic, k...) of X[n, ic, y*s + k*d ...] * W[o, ic, k...]."""
    if op.attr("group", 1) > 1:
        return _depthwise(op)
    x, w = op.x, op.tensor(1)
    strides, dilations = op.attr("strides"), op.attr("dilations")
    _, channels, *kernel = w.shape
    ic = te.reduce_axis(channels, "ic")
    taps = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", len(kernel)), strict=True)]

    def value(n: Any, o: Any, *at: Any) -> te.Expr:
        where = [i * s + k * d for i, s, k, d in zip(at, strides, taps, dilations, strict=True)]
        product = x[(n, ic, *where)].astype("int32") * w[(o, ic, *taps)].astype("int32")
        return te.sum(product, axis=(ic, *taps), init=op.tensor(2)[o] if op.has(2) else None)
    total = te.compute((op.shape[0], w.shape[0], *op.shape[2:]), value, name=op.name(), tag="dot_conv",
                       attrs={"strides": strides, "kernel": kernel, **_pairs(op)})
    return _kept(op, total)


def _depthwise(op: Op) -> te.Tensor:
    """P[n, c, y...] = start[c] + int32 of the sum over k... of X[n, c, y*s + k*d ...] * W[c, 0, k...], exact in float32."""
    x, w = op.x, op.tensor(1)
    strides, dilations, kernel = op.attr("strides"), op.attr("dilations"), w.shape[2:]
    taps = [te.reduce_axis(k, name) for k, name in zip(kernel, axis_names("k", len(kernel)), strict=True)]

    def value(n: Any, c: Any, *at: Any) -> te.Expr:
        where = [i * s + k * d for i, s, k, d in zip(at, strides, taps, dilations, strict=True)]
        return te.sum(x[(n, c, *where)].astype("float32") * w[(c, 0, *taps)], axis=taps)
    total = te.compute(op.shape, value, name=op.name(), tag="depthwise",
                       attrs={"strides": strides, "kernel": kernel, "dilations": dilations, "group": op.attr("group")})

    def whole(*i: Any) -> te.Expr:
        made = total[i].astype("int32")
        return made + op.tensor(2)[i[1]] if op.has(2) else made
    return te.compute(op.shape, whole, name=op.name("whole"), tag="elementwise")


def _pairs(op: Op) -> dict[str, bool]:
    """What a schedule may know of the weights: that any two products of a column add up within 16 bits."""
    return {"pairs": True} if op.attr("pairs", False) else {}


def _kept(op: Op, total: te.Tensor) -> te.Tensor:
    """The columns of the result."""
    return te.compute(op.shape, lambda *i: total[i], name=op.name("kept"), tag="elementwise")


PRODUCTS: dict[str, Compute] = {"IntegerConv": integer_conv, "IntegerMatMul": integer_matmul}
