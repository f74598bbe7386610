"""Proposals with weights and windows: convolutions, pools, products, normalizations, reductions, recurrences, integers."""

from __future__ import annotations

import numpy as np

from .builder import Builder
from .operators import F


def image(b: Builder, rank: int) -> str:
    """(N, C, ...) with `rank` spatial dimensions: a value so far, or a new input."""
    if b.chance(0.75):
        return b.some(rank + 2, F)
    spatial = [b.rng.choice((1, 3, 5, 7, 8, 9, 14) if rank > 1 else (1, 7, 16, 33)) for _ in range(rank)]
    spatial = spatial[:2] + [min(n, 4) for n in spatial[2:]]
    return b.input((b.one_of(1, 1, 2), b.rng.choice((1, 2, 3, 4, 8, 16, 17, 24)), *spatial))


def window(b: Builder, spatial: tuple[int, ...], *, dilated: bool = True) -> tuple[list[int], dict]:
    """A kernel's extents that fit, and strides, dilations and padding of many kinds."""
    kernel = [b.rng.choice([k for k in (1, 1, 2, 3, 3, 5) if k <= n + 2]) for n in spatial]
    attrs: dict = {"strides": [b.one_of(1, 1, 1, 2, 3) for _ in spatial]}
    if dilated and b.chance(0.25):
        attrs["dilations"] = [b.one_of(1, 2) for _ in spatial]
    if b.chance(0.2):
        attrs["auto_pad"] = b.one_of("SAME_UPPER", "SAME_LOWER", "VALID")
        kernel = [min(k, n) for k, n in zip(kernel, spatial, strict=True)]
        attrs.pop("dilations", None)
        if attrs["auto_pad"] != "VALID":    # padding below zero: ONNX Runtime crops, refuses or ignores it
            attrs["strides"] = [s if -(-n // s) * s - s + k >= n else min(s, k)
                                for s, k, n in zip(attrs["strides"], kernel, spatial, strict=True)]
    else:
        pads = [b.rng.randint(0, k - 1) if b.chance(0.6) else k // 2 for k in kernel + kernel]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, attrs.get("dilations", [1] * len(kernel)), strict=True)]
        for d, (n, r) in enumerate(zip(spatial, reach, strict=True)):
            kernel[d] = kernel[d] if n + pads[d] + pads[d + len(kernel)] >= r else 1       # the window fits
            if kernel[d] == 1:
                pads[d] = pads[d + len(kernel)] = 0
        attrs["pads"] = pads
    if b.chance(0.15):
        del attrs["strides"]
    return kernel, attrs


def conv(b: Builder) -> None:
    rank = b.one_of(1, 2, 2, 2, 2, 3)
    x = image(b, rank)
    channels = b[x].shape[1]
    group = b.rng.choice([g for g in range(1, channels + 1) if channels % g == 0]) if b.chance(0.35) else 1
    group = channels if b.chance(0.15) else group
    out = group * b.rng.choice((1, 1, 2, 3) if group > 1 else (1, 2, 3, 8, 16, 17, 20, 32))
    kernel, attrs = window(b, b[x].shape[2:])
    w = b.weight(out, channels // group, *kernel)
    b.op("Conv", x, w, *([b.const(b.array((out,)))] if b.chance(0.6) else []), group=group, exact=False,
         kernel_shape=kernel if b.chance(0.8) else None, **attrs)


def conv_transpose(b: Builder) -> None:
    rank = b.one_of(1, 2, 2)
    x = image(b, rank)
    channels = b[x].shape[1]
    group = b.rng.choice([g for g in range(1, channels + 1) if channels % g == 0]) if b.chance(0.3) else 1
    kernel = [b.rng.randint(1, 4) for _ in range(rank)]
    strides = [b.one_of(1, 2, 3) for _ in range(rank)]
    attrs: dict = {"strides": strides, "pads": [b.rng.randint(0, k - 1) for k in kernel + kernel]}
    if b.chance(0.3):
        attrs["output_padding"] = [b.rng.randint(0, s - 1) for s in strides]
    if b.chance(0.2):
        attrs["dilations"] = [b.one_of(1, 2) for _ in range(rank)]
    if b.chance(0.15) and all(k >= s for k, s in zip(kernel, strides, strict=True)):
        attrs = {"strides": strides, "auto_pad": b.one_of("SAME_UPPER", "SAME_LOWER", "VALID")}
    out = b.rng.choice((1, 2, 5, 8, 16))
    w = b.weight(channels, out, *kernel)
    bias = [b.const(b.array((out * group,)))] if b.chance(0.6) else []
    b.op("ConvTranspose", x, w, *bias, group=group, exact=False, **attrs)


def pool(b: Builder) -> None:
    op = b.one_of("MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
                  "GlobalLpPool", "LRN", "MaxPool with places")
    rank = b.one_of(1, 2, 2, 2, 3)
    x = image(b, rank)
    if op.startswith("Global"):
        b.op(op, x, exact=None if op == "GlobalMaxPool" else False)
        return
    if op == "LRN":
        b.op(op, x, size=b.one_of(1, 3, 5), alpha=0.1, beta=0.75, bias=1.0, exact=False)
        return
    kernel, attrs = window(b, b[x].shape[2:], dilated=op != "LpPool")
    if "auto_pad" not in attrs and b.chance(0.3) and op != "LpPool":
        attrs["ceil_mode"] = 1
    if op == "AveragePool":             # a window that meets padding only divides by zero
        attrs.pop("dilations", None)
        attrs["count_include_pad"] = b.rng.randint(0, 1)
    if op == "LpPool":
        attrs["p"] = b.one_of(1, 2)
    if op.endswith("places"):
        if x in b.exact:
            b.op("MaxPool", x, outputs=2, kernel_shape=kernel, **attrs)
        return
    b.op(op, x, kernel_shape=kernel, exact=None if op == "MaxPool" else False, **attrs)


def matmul(b: Builder) -> None:
    if b.chance(0.3):
        gemm(b)
        return
    a = b.some((1, 4), F)
    shape = b[a].shape
    n = b.rng.choice((1, 2, 5, 8, 16, 17, 33))
    match b.one_of("weight", "weight", "batch", "vector", "value", "left"):
        case "weight":
            other = b.weight(shape[-1], n)
        case "batch":
            lead = [m if b.chance(0.6) else 1 for m in shape[:-2]]
            other = b.given(b.array((*lead, shape[-1], n), scale=0.3))
        case "vector":
            other = b.weight(shape[-1])
        case "left":
            if len(shape) < 2:
                return
            b.op("MatMul", b.weight(n, shape[-2]), a, exact=False)
            return
        case _:
            fits = [v for v, m in b.values.items() if m.dtype == np.float32 and m.ndim >= 2 and m.shape[-2] == shape[-1]]
            if not fits:
                return
            other = b.rng.choice(fits)
    b.op("MatMul", a, other, exact=False)


def gemm(b: Builder) -> None:
    a = b.some(2, F)
    ta, tb = b.rng.randint(0, 1), b.rng.randint(0, 1)
    m, k = b[a].shape[::-1] if ta else b[a].shape
    n = b.rng.choice((1, 3, 8, 16, 20))
    c = [b.const(b.array(b.one_of((n,), (1, n), (m, 1), (m, n), (1,), ())))] if b.chance(0.7) else []
    b.op("Gemm", a, b.weight(*((n, k) if tb else (k, n))), *c, transA=ta, transB=tb, exact=False,
         alpha=b.one_of(1.0, 1.0, 0.5), beta=b.one_of(1.0, 1.0, 2.0))


def einsum(b: Builder) -> None:
    equation = b.one_of("ij,jk->ik", "bij,bjk->bik", "ij->ji", "bhid,bhjd->bhij", "ij,ij->", "i,j->ij", "bij,bkj->bik",
                        "ii->i", "...ij,jk->...ik", "ij,jk,kl->il", "bij->bj")
    left = equation.split("->")[0].split(",")
    extents = {c: b.rng.choice((1, 2, 3, 5, 8)) for c in "bhijkld"}
    operands = []
    for term in left:
        lead = (2, 3) if term.startswith("...") else ()
        shape = (*lead, *(extents[c] for c in term.lstrip(".")))
        operands.append(b.given(b.array(shape)) if b.chance(0.8) else b.weight(*shape))
    b.op("Einsum", *operands, equation=equation, exact=False)


def normalization(b: Builder) -> None:
    op = b.one_of("Softmax", "Softmax", "LogSoftmax", "LayerNormalization", "LayerNormalization", "BatchNormalization",
                  "InstanceNormalization", "GroupNormalization", "LpNormalization", "MeanVarianceNormalization",
                  "RMSNormalization")
    image_ops = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization")
    x = image(b, b.one_of(1, 2)) if op in image_ops else b.some((1, 4), F)
    shape = b[x].shape

    def weight(*of: int) -> str:
        return b.const(b.array(of) * np.float32(0.3) + np.float32(1))

    match op:
        case "Softmax" | "LogSoftmax":
            b.op(op, x, axis=b.rng.randint(-len(shape), len(shape) - 1), exact=False)
        case "LayerNormalization" | "RMSNormalization":
            axis = b.rng.randint(-len(shape), -1)
            if np.prod(shape[axis:]) < 2 or b[x].std(axis=tuple(range(axis, 0))).min() < 0.05:
                return
            bias = [b.const(b.array(shape[axis:]))] if b.chance(0.6) and op[0] == "L" else []
            b.op(op, x, weight(*shape[axis:]), *bias, axis=axis, epsilon=b.one_of(1e-5, 1e-3), exact=False)
        case "BatchNormalization":
            c = shape[1]
            b.op(op, x, weight(c), b.const(b.array((c,))), b.const(b.array((c,))),
                 b.const(abs(b.array((c,))) + np.float32(0.5)), epsilon=1e-5, exact=False)
        case "InstanceNormalization" if b[x].std(axis=tuple(range(2, len(shape)))).min() > 0.05:
            b.op(op, x, weight(shape[1]), b.const(b.array((shape[1],))), exact=False)
        case "GroupNormalization":
            groups = b.rng.choice([g for g in range(1, shape[1] + 1) if shape[1] % g == 0])
            if b[x].reshape(shape[0], groups, -1).std(-1).min() > 0.05:
                b.op(op, x, weight(shape[1]), b.const(b.array((shape[1],))), num_groups=groups, exact=False)
        case "LpNormalization" if abs(b[x]).min() > 1e-3:
            b.op(op, x, axis=b.rng.randint(-len(shape), len(shape) - 1), p=b.one_of(1, 2), exact=False)
        case "MeanVarianceNormalization":
            axes = (0, *range(2, len(shape)))
            if b[x].std(axis=axes).min() > 0.05:
                b.op(op, x, axes=list(axes), exact=False)


def reduce(b: Builder) -> None:
    op = b.one_of("Sum", "Sum", "Mean", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp", "LogSum")
    plain = op in ("Sum", "Max", "Min", "Mean")
    x = b.some((1, 5), ("float32", "float32", "float64", "int32") if plain else F)
    if op == "LogSum" and b[x].min() < 0.1:
        return
    axes = [d - b[x].ndim * b.chance(0.4) for d in range(b[x].ndim) if b.chance(0.5)]
    given = [b.ints(*axes)] if axes else []
    exact = None if op in ("Max", "Min") or (b[x].dtype.kind == "i" and op == "Sum") else False
    b.op(f"Reduce{op}", x, *given, keepdims=b.rng.randint(0, 1), exact=exact,
         noop_with_empty_axes=b.rng.randint(0, 1) if not axes and b.chance(0.3) else None)


def arg_reduce(b: Builder) -> None:
    x = b.some((1, 4), ("float32", "float32", "int32"), exact=True)
    b.op(b.one_of("ArgMax", "ArgMin"), x, axis=b.rng.randint(-b[x].ndim, b[x].ndim - 1), keepdims=b.rng.randint(0, 1),
         select_last_index=b.rng.randint(0, 1))


def recurrent(b: Builder) -> None:
    x = b.some(3, F, when=lambda a: a.shape[0] < 10 and a.size < 400)
    _, batch, width = b[x].shape
    hidden = b.one_of(1, 3, 8, 16)
    op, gates = b.one_of(("LSTM", 4), ("LSTM", 4), ("GRU", 3), ("RNN", 1))
    direction = b.one_of("forward", "reverse", "bidirectional")
    d = 2 if direction == "bidirectional" else 1
    more = [b.const(b.array((d, 2 * gates * hidden), scale=0.3))] if b.chance(0.6) else []
    if more and b.chance(0.4):
        states = 2 if op == "LSTM" else 1
        more += ["", *(b.given(b.array((d, batch, hidden), scale=0.5)) for _ in range(states))]
    w, r = (b.const(b.array((d, gates * hidden, n), scale=0.3)) for n in (width, hidden))
    b.op(op, x, w, r, *more, outputs=3 if op == "LSTM" else 2, hidden_size=hidden, direction=direction, exact=False,
         linear_before_reset=b.rng.randint(0, 1) if op == "GRU" else None)


def dequantized_product(b: Builder, kind: str) -> None:
    """A product of floats that were bytes, as quantizers write it; its weights with one scale, or one per output."""
    def dequantized(x: str, axis: int | None) -> str:
        shape, kind = (b[x].shape[axis],) if axis is not None else (), b[x].dtype
        scale, zero = b.numpy.uniform(0.002, 0.01, shape).astype(np.float32), b.one_of(0, 3, 128 if kind == "uint8" else 0)
        given = [b.const(np.asarray(scale)), *([b.const(np.full(shape, zero, kind))] if b.chance(0.7) else [])]
        made = b.op("DequantizeLinear", x, *given, axis=axis, exact=False)
        assert made is not None
        return made[0]

    op, many, other = b.one_of("Conv", "Conv", "MatMul", "Gemm"), b.chance(0.5), b.one_of("int8", "uint8")
    if op == "Conv":
        c, o = b.rng.randint(1, 20), b.rng.randint(1, 20)
        group = c if b.chance(0.3) else 1
        x = b.given(b.array((1, c, b.rng.randint(3, 9), b.rng.randint(3, 9)), kind))
        w = dequantized(b.const(b.array((c if group > 1 else o, c // group, 3, 3), other)), 0 if many else None)
        attrs = {"pads": [b.rng.randint(0, 1) for _ in range(4)], "strides": [b.rng.randint(1, 2), 1], "group": group}
        outputs = b[w].shape[0]
    else:
        k, outputs, turned = b.rng.randint(1, 20), b.rng.randint(1, 20), op == "Gemm" and b.chance(0.5)
        x = b.given(b.array((b.rng.randint(1, 20), k), kind))
        shape, axis = ((outputs, k), 0) if turned else ((k, outputs), 1)
        w = dequantized(b.const(b.array(shape, other)), axis if many else None)
        attrs = {"transB": 1} if turned else {}
    bias = [b.const(b.array((outputs,)))] if op != "MatMul" and b.chance(0.6) else []
    b.op(op, dequantized(x, None), w, *bias, exact=False, **attrs)


def quantized(b: Builder) -> None:
    kind = b.one_of("uint8", "int8")
    match b.one_of("QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv",
                   "between", "between"):
        case "between":
            dequantized_product(b, kind)
        case "QuantizeLinear":
            x = b.some((1, 4), F, exact=True)
            axis = b.rng.randrange(b[x].ndim)
            shape = (b[x].shape[axis],) if b.chance(0.4) else ()
            scale = b.const((b.numpy.random(shape) * 0.1 + 0.03).astype(np.float32))
            b.op("QuantizeLinear", x, scale, b.const(b.array(shape, kind)), axis=axis)
        case "DequantizeLinear":
            x = b.some((1, 4), (kind,))
            axis = b.rng.randrange(b[x].ndim)
            shape = (b[x].shape[axis],) if b.chance(0.4) else ()
            scale = b.const((b.numpy.random(shape) * 0.1 + 0.03).astype(np.float32))
            zero = [b.const(b.array(shape, kind))] if b.chance(0.7) else []
            b.op("DequantizeLinear", x, scale, *zero, axis=axis, exact=False)
        case "MatMulInteger":
            k = b.rng.randint(1, 20)
            x = b.given(b.array((*b.shape(b.rng.randint(1, 2), 60), k), kind))
            weights = b.array((k, b.rng.randint(1, 80)), other := b.one_of("uint8", "int8"))
            w = b.const(weights) if b.chance(0.7) else b.given(weights)
            zero = [b.const(np.array(3, kind))] if b.chance(0.6) else []
            middle = 0 if other == "int8" else 128
            b.op("MatMulInteger", x, w, *zero, *(
                [b.const(np.array(b.one_of(middle, 1), other))] if zero and b.chance(0.7) else []))
        case "ConvInteger":
            c = b.rng.randint(1, 9)
            x = b.given(b.array((1, c, b.rng.randint(3, 9), b.rng.randint(3, 9)), "uint8"))
            w = b.const(b.array((b.rng.randint(1, 9), c, 3, 3), "uint8"))
            b.op("ConvInteger", x, w, *([b.const(np.array(3, "uint8"))] if b.chance(0.6) else []), pads=[1, 1, 1, 1])
        case "QLinearMatMul":
            k, n = b.rng.randint(1, 20), b.rng.randint(1, 20)
            x, w = b.given(b.array((b.rng.randint(1, 20), k), "uint8")), b.const(b.array((k, n), "uint8"))

            def parameters(zero: int) -> tuple[str, str]:
                return b.const(np.float32(b.rng.uniform(0.01, 0.1))), b.const(np.array(zero, np.uint8))

            b.op("QLinearMatMul", x, *parameters(3), w, *parameters(5), *parameters(100))
        case "QLinearConv":
            c, o = b.rng.randint(1, 40), b.rng.randint(1, 40)
            group = c if b.chance(0.3) else 1
            o = c if group > 1 else o
            x = b.given(b.array((1, c, b.rng.randint(3, 9), b.rng.randint(3, 9)), kind))
            other = "int8" if kind == "int8" else b.one_of("uint8", "int8")          # what ONNX Runtime has
            w = b.const(b.array((o, c // group, 3, 3), other))
            many = other == "int8" and b.chance(0.5)

            def pair(zero: int, kind: str, shape: tuple[int, ...] = ()) -> tuple[str, str]:
                scale = b.numpy.uniform(0.01, 0.1, shape).astype(np.float32)
                return b.const(np.asarray(scale)), b.const(np.full(shape, zero, kind))

            middle = 0 if other == "int8" else b.one_of(5, 128)
            bias = [b.const(b.array((o,), "int32"))] if b.chance(0.6) else []
            b.op("QLinearConv", x, *pair(3, kind), w, *pair(middle, other, (o,) if many else ()), *pair(100, kind), *bias,
                 pads=[b.rng.randint(0, 1) for _ in range(4)], strides=[b.rng.randint(1, 2), 1], group=group)
