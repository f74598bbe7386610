"""NumPy meanings of operators that onnx.reference computes too slowly for real models, or wrongly.

Each rule returns None for a case it leaves to onnx.reference. Sums are kept in float32 or wider, whatever the data type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from toolchain.graph.ir import Node
from toolchain.graph.protos import default

Arrays = Sequence[np.ndarray | None]
Made = tuple[np.ndarray, ...] | None
Rule = Callable[[Node, Arrays], Made]


def _array(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type sums are kept in: float32 for the half-size floats, int64 for small integers."""
    if dtype.name in ("float16", "bfloat16"):
        return np.dtype("float32")
    return np.dtype("int64") if dtype.kind in "iub" and dtype.itemsize < 8 else dtype


def _at(array: np.ndarray, index: tuple[Any, ...]) -> np.ndarray:
    """A view at `index` of the last dimensions."""
    view: np.ndarray = array[(..., *index)]
    return view


class _Window:
    """A sliding window over the spatial dimensions: strides, dilations, and the pads (auto_pad is resolved at import)."""

    def __init__(self, node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> None:
        rank = len(spatial)
        self.kernel = tuple(kernel)
        self.strides = node.attrs.get("strides") or (1,) * rank
        self.dilations = node.attrs.get("dilations") or (1,) * rank
        pads = node.attrs.get("pads") or (0,) * (2 * rank)
        self.before, after = pads[:rank], list(pads[rank:])
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations)]
        self.out: tuple[int, ...] = ()
        for d in range(rank):
            room = spatial[d] + self.before[d] + after[d] - reach[d]
            n = room // self.strides[d] + 1
            if node.attrs.get("ceil_mode") and room % self.strides[d] and n * self.strides[d] < spatial[d] + self.before[d]:
                n += 1                          # the last window must start inside the input or its left padding
            self.out += (n,)
        self.after = after
        self.extra = [max(0, (n - 1) * s + r - (size + b + a)) for n, s, r, size, b, a in
                      zip(self.out, self.strides, reach, spatial, self.before, after)]

    def padded(self, x: np.ndarray, value: Any) -> np.ndarray:
        pads = [(b, a + e) for b, a, e in zip(self.before, self.after, self.extra)]
        return np.pad(x, [(0, 0)] * (x.ndim - len(pads)) + pads, constant_values=value) if any(map(any, pads)) else x

    def taps(self, padded: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Each kernel position with the elements of `padded` it meets, one per output position."""
        for at in product(*map(range, self.kernel)):
            cut = tuple(slice(k * d, k * d + (n - 1) * s + 1, s)
                        for k, d, n, s in zip(at, self.dilations, self.out, self.strides))
            yield at, _at(padded, cut)


def _conv(node: Node, arrays: Arrays) -> Made:
    """One matrix product per kernel position, summed: no im2col copy."""
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    x, w, bias = _array(arrays[0]), _array(arrays[1]), arrays[2] if len(arrays) > 2 else None
    groups, dtype = node.attrs.get("group", 1), x.dtype
    x, w = x.astype(wide(dtype), copy=False), w.astype(wide(dtype), copy=False)
    window = _Window(node, x.shape[2:], w.shape[2:])
    n, m = x.shape[0], w.shape[0]
    grouped = w.reshape(groups, m // groups, w.shape[1], *w.shape[2:])
    total = np.zeros((n, groups, m // groups, math.prod(window.out)), x.dtype)
    for at, tap in window.taps(window.padded(x, 0)):
        total += np.matmul(_at(grouped, at), tap.reshape(n, groups, w.shape[1], -1))
    y = total.reshape(n, m, *window.out)
    if bias is not None:
        y += bias.astype(y.dtype).reshape(-1, *(1,) * len(window.out))
    return (y.astype(dtype, copy=False),)


def _integer_conv(node: Node, arrays: Arrays) -> Made:
    """As Conv of int64, wrapped to 32 bits; the start of the sums is its bias."""
    x, w = _array(arrays[0]).astype("int64"), _array(arrays[1]).astype("int64")
    made = _conv(node, (x, w, arrays[2] if len(arrays) > 2 else None))
    assert made is not None
    return (made[0][:, :node.attrs["columns"]].astype("int32"),)


def _integer_matmul(node: Node, arrays: Arrays) -> Made:
    x, w = _array(arrays[0]).astype("int64"), _array(arrays[1]).astype("int64")
    total = x @ np.swapaxes(w, -1, -2)
    if len(arrays) > 2 and arrays[2] is not None:
        total = total + _array(arrays[2])[..., None, :]
    return (total[..., :node.attrs["columns"]].astype("int32"),)


def _conv_transpose(node: Node, arrays: Arrays) -> Made:
    """Each kernel position adds its product to the output positions it reaches."""
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attrs:
        return None
    x, w, bias = _array(arrays[0]), _array(arrays[1]), arrays[2] if len(arrays) > 2 else None
    groups, dtype, rank = node.attrs.get("group", 1), x.dtype, x.ndim - 2
    strides = node.attrs.get("strides") or (1,) * rank
    dilations = node.attrs.get("dilations") or (1,) * rank
    pads = node.attrs.get("pads") or (0,) * (2 * rank)
    extra = node.attrs.get("output_padding") or (0,) * rank
    n, c, spatial, kernel = x.shape[0], x.shape[1], x.shape[2:], w.shape[2:]
    m = w.shape[1] * groups
    whole = [(i - 1) * s + (k - 1) * d + 1 + e for i, s, k, d, e in zip(spatial, strides, kernel, dilations, extra)]
    xs = x.astype(wide(dtype), copy=False).reshape(n, groups, c // groups, -1)
    ws = w.astype(wide(dtype), copy=False).reshape(groups, c // groups, w.shape[1], *kernel)
    total = np.zeros((n, m, *whole), xs.dtype)
    for at in product(*map(range, kernel)):
        part = np.matmul(_at(ws, at).transpose(0, 2, 1), xs).reshape(n, m, *spatial)
        cut = tuple(slice(k * d, k * d + (i - 1) * s + 1, s) for k, d, i, s in zip(at, dilations, spatial, strides))
        _at(total, cut)[...] += part
    y = _at(total, tuple(slice(pads[d], whole[d] - pads[rank + d]) for d in range(rank)))
    if bias is not None:
        y = y + bias.astype(y.dtype).reshape(-1, *(1,) * rank)
    return (y.astype(dtype, copy=False),)


def _max_pool(node: Node, arrays: Arrays) -> Made:
    """Also where each maximum stands: of equal ones the first, row by row (onnx.reference has that in two dimensions)."""
    x = _array(arrays[0])
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = _Window(node, x.shape[2:], node.attrs["kernel_shape"])
    lowest = -np.inf if x.dtype.kind not in "iu" else np.iinfo(x.dtype).min
    y: np.ndarray | None = None
    for _, tap in window.taps(window.padded(x, lowest)):
        y = tap.copy() if y is None else np.maximum(y, tap, out=y)
    if len(node.outputs) < 2:
        return (_array(y),)
    places = np.arange(x.size, dtype="int64").reshape(x.shape)
    if node.attrs.get("storage_order"):
        places = places.reshape(*x.shape[:2], *reversed(x.shape[2:])).transpose(0, 1, *reversed(range(2, x.ndim)))
    at = np.full(_array(y).shape, -1, "int64")
    for (_, tap), (_, place) in zip(window.taps(window.padded(x, lowest)), window.taps(window.padded(places, -1))):
        at = np.where((at < 0) & (place >= 0) & (tap == y), place, at)
    return _array(y), at


def _average_pool(node: Node, arrays: Arrays) -> Made:
    x = _array(arrays[0])
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = _Window(node, x.shape[2:], node.attrs["kernel_shape"])
    ones = np.ones(x.shape[2:], wide(x.dtype))
    if node.attrs.get("count_include_pad"):             # the declared pads count; what ceil_mode adds beyond them never does
        ones = np.pad(ones, list(zip(window.before, window.after)), constant_values=1)
        ones = np.pad(ones, [(0, e) for e in window.extra])
    else:
        ones = window.padded(ones, 0)
    total = sum(tap for _, tap in window.taps(window.padded(x.astype(wide(x.dtype), copy=False), 0)))
    count = sum(tap for _, tap in window.taps(ones))
    return (np.asarray(total / count).astype(x.dtype, copy=False),)


def _global_average_pool(node: Node, arrays: Arrays) -> Made:
    x = _array(arrays[0])
    return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=wide(x.dtype)).astype(x.dtype, copy=False),)


def _global_max_pool(node: Node, arrays: Arrays) -> Made:
    x = _array(arrays[0])
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _global_lp_pool(node: Node, arrays: Arrays) -> Made:
    x = _array(arrays[0])
    p = default(node, "p")
    total = np.sum(np.abs(x.astype(wide(x.dtype))) ** p, axis=tuple(range(2, x.ndim)), keepdims=True)
    return ((total ** (1 / p)).astype(x.dtype, copy=False),)


def _lp_pool(node: Node, arrays: Arrays) -> Made:
    """The p-norm of what each window meets; onnx.reference scales windows that reach outside."""
    x, p = _array(arrays[0]), default(node, "p")
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = _Window(node, x.shape[2:], node.attrs["kernel_shape"])
    powers = np.abs(x.astype(wide(x.dtype), copy=False)) ** p
    total = np.asarray(sum(tap for _, tap in window.taps(window.padded(powers, 0))))
    return ((total ** (1 / p)).astype(x.dtype, copy=False),)


def _lp_normalization(node: Node, arrays: Arrays) -> Made:
    """x / norm, 0 where the norm is 0; onnx.reference takes no absolute values."""
    x, p = _array(arrays[0]), default(node, "p")
    norm = np.sum(np.abs(x.astype(wide(x.dtype))) ** p, axis=default(node, "axis"), keepdims=True) ** (1 / p)
    return (np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


def _log_softmax(node: Node, arrays: Arrays) -> Made:
    """x - max - log(sum(exp(x - max))); onnx.reference has the logarithm of a quotient that may be 0."""
    x, axis = _array(arrays[0]), default(node, "axis")
    if not x.ndim or not x.size:
        return None
    below = x.astype(wide(x.dtype)) - x.max(axis=axis, keepdims=True).astype(wide(x.dtype))
    return ((below - np.log(np.exp(below).sum(axis=axis, keepdims=True))).astype(x.dtype, copy=False),)


def _reduce_log_sum_exp(node: Node, arrays: Arrays) -> Made:
    """The largest x taken out first, where it is finite."""
    x = _array(arrays[0])
    axes = _reduced(node, arrays)
    if not x.ndim:
        return (x,)
    if x.dtype.kind in "iu" or not axes or not x.size:
        return None
    top = x.astype(wide(x.dtype)).max(axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    y = np.log(np.exp(x.astype(wide(x.dtype)) - top).sum(axis=axes, keepdims=True)) + top
    return (_kept(y, axes, node).astype(x.dtype, copy=False),)


def _reduced(node: Node, arrays: Arrays) -> tuple[int, ...]:
    """The axes of a reduction; none when it asks for nothing to be done."""
    rank = _array(arrays[0]).ndim
    given = arrays[1] if len(arrays) > 1 else None
    if given is not None and given.size:
        return tuple(int(a) % rank for a in given)
    return () if node.attrs.get("noop_with_empty_axes") else tuple(range(rank))


def _kept(y: np.ndarray, axes: tuple[int, ...], node: Node) -> np.ndarray:
    return y if default(node, "keepdims") else np.asarray(np.squeeze(y, axis=axes))


def _half_sum(element: Callable[[np.ndarray], np.ndarray], finish: Callable[[np.ndarray], np.ndarray] | None) -> Rule:
    """Sums of half-size floats, kept in float32; other types are left to onnx.reference."""

    def rule(node: Node, arrays: Arrays) -> Made:
        x, axes = _array(arrays[0]), _reduced(node, arrays)
        if x.dtype.name not in ("float16", "bfloat16") or not axes:
            return None
        y = element(x.astype("float32")).sum(axis=axes, keepdims=True)
        y = y / np.float32(math.prod(x.shape[a] for a in axes)) if node.op == "ReduceMean" else y
        return (_kept(finish(y) if finish else y, axes, node).astype(x.dtype),)

    return rule


def _gather_elements(node: Node, arrays: Arrays) -> Made:
    """x[.., index[..], ..]; the index may be shorter than x in the other dimensions, which onnx.reference refuses."""
    x, index = _array(arrays[0]), _array(arrays[1])
    axis = default(node, "axis") % x.ndim
    within = x[tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(index.shape))]
    return (np.take_along_axis(within, np.where(index < 0, index + x.shape[axis], index), axis),)


def _mean(node: Node, arrays: Arrays) -> Made:
    """Of operands that are broadcast against each other, which onnx.reference cannot."""
    total = np.asarray(sum(_array(a).astype(wide(_array(a).dtype)) for a in arrays))
    return ((total / len(arrays)).astype(_array(arrays[0]).dtype),)


def _pad(node: Node, arrays: Arrays) -> Made:
    """Cropping, which onnx.reference cannot, before padding; the rest is left to it.

    ONNX does not say which comes first; where a mode repeats elements it matters: ONNX Runtime crops first.
    """
    x, amounts = _array(arrays[0]), [int(n) for n in _array(arrays[1])]
    if min(amounts, default=0) >= 0:
        return None
    axes = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.arange(x.ndim)
    pads = {int(a) % x.ndim: (amounts[k], amounts[len(axes) + k]) for k, a in enumerate(axes)}
    both = [pads.get(a, (0, 0)) for a in range(x.ndim)]
    cut = x[tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(both, x.shape))]
    grow = [(max(b, 0), max(a, 0)) for b, a in both]
    mode = default(node, "mode")
    if mode != "constant":
        return (np.pad(cut, grow, mode),)
    fill = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.zeros((), x.dtype)
    return (np.pad(cut, grow, constant_values=fill.reshape(())[()]),)


def _lrn(node: Node, arrays: Arrays) -> Made:
    """y = x / (bias + alpha/size * sum of x^2 over `size` neighbouring channels) ^ beta"""
    x = _array(arrays[0])
    size = node.attrs["size"]
    alpha, beta, bias = (default(node, k) for k in ("alpha", "beta", "bias"))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = np.pad(np.square(x), [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
    total = sum(squares[:, k:k + x.shape[1]] for k in range(size))
    return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype, copy=False),)


def _batch_norm(node: Node, arrays: Arrays) -> Made:
    x, scale, shift, mean, var = map(_array, arrays)
    if node.attrs.get("training_mode") or len(node.outputs) > 1:
        return None
    per_channel = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    factor = scale / np.sqrt(var + np.asarray(default(node, "epsilon"), var.dtype))
    return (((x - mean.reshape(per_channel)) * factor.reshape(per_channel) + shift.reshape(per_channel)).astype(x.dtype),)


def _resize(node: Node, arrays: Arrays) -> Made:
    """One dimension at a time. Antialiased and cropping forms are left to onnx.reference (which puts the single element of
    pytorch_half_pixel at -0.5, where ONNX's text says 0)."""
    x = _array(arrays[0])
    scales = arrays[2] if len(arrays) > 2 else None
    sizes = arrays[3] if len(arrays) > 3 else None
    mode, transform = default(node, "mode"), default(node, "coordinate_transformation_mode")
    plain = not node.attrs.get("antialias") and default(node, "keep_aspect_ratio_policy") == "stretch"
    if mode not in ("nearest", "linear", "cubic") or transform not in _COORDINATES or not plain:
        return None
    axes = [a % x.ndim for a in node.attrs.get("axes", range(x.ndim))]
    y = x
    for k, axis in enumerate(axes):
        n = x.shape[axis]
        exact = float(sizes[k]) if sizes is not None and sizes.size else n * float(_array(scales)[k])
        if exact == n:
            continue
        at = _COORDINATES[transform](np.arange(math.floor(exact), dtype="float64"), exact / n, n, exact)
        if mode == "nearest":
            y = _nearest(y, axis, at, default(node, "nearest_mode"))
        elif mode == "linear":
            y = _linear(y, axis, at)
        else:
            y = _cubic(y, axis, at, default(node, "cubic_coeff_a"), bool(default(node, "exclude_outside")))
    return (y.astype(x.dtype, copy=False),)


# Where in the input an output element lies; `out` is the exact length, n * scale, before it is rounded down.
_COORDINATES: dict[str, Callable[[np.ndarray, float, int, float], np.ndarray]] = {
    "half_pixel": lambda i, scale, n, out: (i + 0.5) / scale - 0.5,
    "asymmetric": lambda i, scale, n, out: i / scale,
    "align_corners": lambda i, scale, n, out: i * (n - 1) / (out - 1) if out > 1 else np.zeros_like(i),
    "pytorch_half_pixel": lambda i, scale, n, out: (i + 0.5) / scale - 0.5 if out > 1 else np.zeros_like(i),
}
_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(x: np.ndarray, axis: int, at: np.ndarray, mode: str) -> np.ndarray:
    index = np.clip(_NEAREST[mode](at).astype("int64"), 0, x.shape[axis] - 1)
    return np.asarray(np.take(x, index, axis))


def _linear(x: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
    n = x.shape[axis]
    low = np.floor(at).astype("int64")
    kind = wide(x.dtype) if x.dtype.kind == "f" else np.dtype("float64")
    part = (at - low).astype(kind).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    a, b = (np.take(x, np.clip(i, 0, n - 1), axis).astype(kind) for i in (low, low + 1))
    return np.asarray(a * (1 - part) + b * part)


def _cubic(x: np.ndarray, axis: int, at: np.ndarray, a: float, exclude_outside: bool) -> np.ndarray:
    """Keys' cubic convolution (1981): four neighbours; those outside are the edge's, or left out of the mean."""
    n, low = x.shape[axis], np.floor(at).astype("int64")
    picks = low[:, None] + np.arange(-1, 3)
    s = np.abs(at[:, None] - picks)
    near, far = ((a + 2) * s - (a + 3)) * s * s + 1, ((s - 5) * s + 8) * s * a - 4 * a
    weights = np.where(s <= 1, near, far)
    if exclude_outside:
        weights = np.where((picks >= 0) & (picks < n), weights, 0.0)
        weights /= weights.sum(1, keepdims=True)
    kind = wide(x.dtype) if x.dtype.kind == "f" else np.dtype("float64")
    read = np.take(np.moveaxis(x, axis, -1), np.clip(picks, 0, n - 1), -1).astype(kind)
    return np.ascontiguousarray(np.moveaxis((read * weights.astype(kind)).sum(-1), -1, axis))


def _unique(node: Node, arrays: Arrays) -> Made:
    """Rows along `axis` (or elements), each once: sorted, or as they are met first. onnx.reference gathers those along
    axis 0, whatever `axis` says."""
    x, axis = _array(arrays[0]), node.attrs.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, int(axis))
    y, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.reshape(-1)
    if not default(node, "sorted"):
        order = np.argsort(first)
        y, first, counts = np.take(x, first[order], axis), first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return (y, *(a.astype("int64") for a in (first, inverse, counts)))[:len(node.outputs)]


def _one_hot(node: Node, arrays: Arrays) -> Made:
    """The depth may have a dimension, which onnx.reference does not take."""
    classes, depth, values = (_array(a) for a in arrays)
    n = int(depth.reshape(-1)[0])
    axis = int(node.attrs.get("axis", -1)) % (classes.ndim + 1)
    wide = classes.astype("int64")
    at = np.expand_dims(np.where(wide < 0, wide + n, wide), axis)
    each = np.arange(n).reshape(-1, *(1,) * (classes.ndim - axis))
    return (np.where(at == each, values[1], values[0]),)


def _constant_of_shape(node: Node, arrays: Arrays) -> Made:
    """A view of one element with stride 0: a model of generated weights costs no memory until something is computed."""
    value = np.asarray(node.attrs.get("value", np.zeros(1, "float32"))).reshape(())
    return (np.broadcast_to(value, tuple(int(n) for n in _array(arrays[0]))),)


def _shape(node: Node, arrays: Arrays) -> Made:
    shape = np.asarray(_array(arrays[0]).shape, "int64")
    return (shape[node.attrs.get("start", 0):node.attrs.get("end", len(shape))],)


RULES: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GatherElements": _gather_elements,
    "GlobalAveragePool": _global_average_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_max_pool,
    "IntegerConv": _integer_conv,
    "IntegerMatMul": _integer_matmul,
    "LRN": _lrn,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "OneHot": _one_hot,
    "Pad": _pad,
    "ReduceL1": _half_sum(np.abs, None),
    "ReduceL2": _half_sum(np.square, np.sqrt),
    "ReduceLogSum": _half_sum(np.positive, np.log),
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceMean": _half_sum(np.positive, None),
    "ReduceSum": _half_sum(np.positive, None),
    "ReduceSumSquare": _half_sum(np.square, None),
    "Resize": _resize,
    "Shape": _shape,
    "Unique": _unique,
}
