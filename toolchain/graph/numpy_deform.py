"""The NumPy meaning of DeformSample, the samples of a deformable convolution (see toolchain/kernels/sampled.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolchain.graph.ir import Node

Arrays = Sequence[np.ndarray | None]


def deform_sample(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    """samples[N, G, oh, ow, taps, C/G] of x[N, H, W, C] at offset[N, 2*D*taps, oh, ow], times mask[N, D*taps, oh, ow]."""
    x, offset, mask = (*arrays, None)[:3]
    assert x is not None and offset is not None
    kind: Any = np.float64 if x.dtype == np.float64 else np.float32
    groups, parts = node.attrs["group"], node.attrs["offset_group"]
    (n, height, width, channels), (rows, columns) = x.shape, offset.shape[2:]
    taps = int(np.prod(node.attrs["kernel_shape"]))
    moved = offset.astype(kind).reshape(n, parts, taps, 2, rows, columns)
    strides, dilations, pads = (node.attrs[name] for name in ("strides", "dilations", "pads"))
    steps = np.divmod(np.arange(taps), node.attrs["kernel_shape"][1])
    places = []
    for d, extent in enumerate((rows, columns)):
        start = np.arange(extent) * strides[d] - pads[d]
        home = steps[d][:, None, None] * dilations[d] + (start[:, None] if d == 0 else start[None, :])
        places.append(home.astype(kind) + moved[:, :, :, d])
    v, u = places                                                           # (N, D, taps, oh, ow)
    total = np.zeros((*v.shape, channels // parts), kind)
    source = x.reshape(n, height, width, parts, channels // parts).astype(kind)
    image, part = np.arange(n)[:, None, None, None, None], np.arange(parts)[None, :, None, None, None]
    scale = np.ones(v.shape, kind) if mask is None else mask.astype(kind).reshape(v.shape)
    for p, wy in ((np.floor(v), 1 - (v - np.floor(v))), (np.floor(v) + 1, v - np.floor(v))):
        for q, wx in ((np.floor(u), 1 - (u - np.floor(u))), (np.floor(u) + 1, u - np.floor(u))):
            inside = (p >= 0) & (p < height) & (q >= 0) & (q < width)
            row, column = (np.where(inside, w, 0).astype(np.int64) for w in (p, q))
            weight = np.where(inside, np.multiply(wy * wx, scale), 0)[..., None].astype(kind)
            total += np.where(inside[..., None], source[image, row, column, part] * weight, 0)
    whole = total.transpose(0, 3, 4, 2, 1, 5).reshape(n, rows, columns, taps, groups, channels // groups)
    return (np.ascontiguousarray(whole.transpose(0, 4, 1, 2, 3, 5)).astype(x.dtype),)


RULES = {"DeformSample": deform_sample}
