"""Winograd's minimal filtering F(m x m, r x r): its matrices, and what they make of weights. Pure NumPy.

    Y = A^T [ (G g G^T) * (B^T d B) ] A         per tile: d is side x side of input, Y is m x m of output, g is r x r

with side = m + r - 1. Per output element and pair of channels side^2/m^2 multiplications instead of r^2:

    r    m = 2          m = 3         m = 4
    2    2.25 of 4      1.78 of 4     1.56 of 4       of phases of strides, 4x4 with stride 2, say, transposed or not
    3    4 of 9                       2.25 of 9
    5    9 of 25

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016; points 0, 1, -1, 2, -2, the first
side - 1 of them, and infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Form = tuple[int, int]      # (m, r)

B_T: dict[int, np.ndarray] = {              # by side: the points decide it
    3: np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]], float),
    4: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
    5: np.array([[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]], float),
    6: np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                 [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float),
}
A_T: dict[Form, np.ndarray] = {
    (2, 2): np.array([[1, 1, 0], [0, 1, 1]], float),
    (2, 3): np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    (2, 5): np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 1]], float),
    (3, 2): np.array([[1, 1, 1, 0], [0, 1, -1, 0], [0, 1, 1, -1]], float),
    (4, 2): np.array([[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]], float),
    (4, 3): np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
}
G: dict[Form, np.ndarray] = {
    (2, 2): np.array([[1, 0], [1, 1], [0, 1]], float),
    (2, 3): np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], float),
    (2, 5): np.array([[1 / 4, 0, 0, 0, 0], [-1 / 6, -1 / 6, -1 / 6, -1 / 6, -1 / 6],
                      [-1 / 6, 1 / 6, -1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3],
                      [1 / 24, -1 / 12, 1 / 6, -1 / 3, 2 / 3], [0, 0, 0, 0, 1]], float),
    (3, 2): np.array([[1, 0], [1 / 2, 1 / 2], [1 / 2, -1 / 2], [0, 1]], float),
    (4, 2): np.array([[1 / 2, 0], [-1 / 2, -1 / 2], [-1 / 6, 1 / 6], [1 / 6, 1 / 3], [0, 1]], float),
    (4, 3): np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                      [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], float),
}
SIZES = (4, 2)              # of output tiles, m, of 3x3 kernels
EVERY_SIZE = (4, 3, 2)
CHUNK = 1 << 11             # pairs of channels transformed at a time: a product that stays in a cache and on one thread


def sizes_of(taps: int) -> tuple[int, ...]:
    """The tile sizes m there are for kernels of taps x taps."""
    return tuple(m for m in EVERY_SIZE if (m, taps) in G)


def transform_weights(weights: np.ndarray, m: int) -> np.ndarray:
    """U = G g G^T of (O, I, r, r) weights, as (side, side, O, I): computed in float64 and rounded once."""
    taps = weights.shape[-1]
    g = G[m, taps]
    both = np.kron(g, g)
    flat = np.ascontiguousarray(weights.reshape(-1, taps * taps).T)
    made = np.empty((len(g) ** 2, flat.shape[1]), weights.dtype)
    for rows in np.array_split(np.arange(flat.shape[1]), -(-flat.shape[1] // CHUNK)):        # what float64 needs stays small
        made[:, rows[0]:rows[-1] + 1] = both @ flat[:, rows[0]:rows[-1] + 1].astype(np.float64)
    return made.reshape(len(g), len(g), *weights.shape[:2])


def phase_weights(weights: np.ndarray, stride: int, pads: Sequence[int]) -> np.ndarray:
    """(I, O, K, K) weights of a transposed convolution as (stride, stride, O, I, r, r): by what its outputs stride*i + phase
    are a convolution. Tap t of phase a meets input i + (a + pad)//stride - (r-1) + t; taps beyond K are zero.

    pads: before rows and columns.
    """
    channels, outputs, size, _ = weights.shape
    taps = -(-size // stride)
    padded = np.zeros((channels, outputs, taps * stride, taps * stride), weights.dtype)
    padded[:, :, :size, :size] = weights
    at = [[(a + pad) % stride + stride * (taps - 1 - np.arange(taps)) for a in range(stride)] for pad in pads]
    made = [[padded[:, :, rows[:, None], columns[None, :]].swapaxes(0, 1) for columns in at[1]] for rows in at[0]]
    return np.array(made)


def transform_phases(weights: np.ndarray, m: int, stride: int, pads: Sequence[int]) -> np.ndarray:
    """U of each phase of a transposed convolution, (stride, stride, side, side, O, I)."""
    return np.array([[transform_weights(w, m) for w in row] for row in phase_weights(weights, stride, pads)])


def tiles(extent: int, m: int) -> int:
    """How many output tiles cover an extent; the last one may stand over."""
    return -(-extent // m)


def split_strides(weights: np.ndarray, stride: int) -> np.ndarray:
    """(O, I, K, K) weights of a convolution with a stride as (O, stride * stride * I, r, r): those of the convolution with
    stride 1 that reads every stride-th row and column as channels of its own. Taps beyond K are zero.

    Channel (a * stride + b) * I + i holds taps K = stride * t + a (rows), stride * t + b (columns).
    """
    outputs, channels, size, _ = weights.shape
    taps = tiles(size, stride)
    padded = np.zeros((outputs, channels, taps * stride, taps * stride), weights.dtype)
    padded[:, :, :size, :size] = weights
    apart = padded.reshape(outputs, channels, taps, stride, taps, stride).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(apart.reshape(outputs, stride * stride * channels, taps, taps))


def convolve_strided(
    x: np.ndarray, u: np.ndarray, pads: Sequence[int], m: int, taps: int, stride: int, size: tuple[int, int]
) -> np.ndarray:
    """The convolution with a stride to (N, O, *size) by transformed weights of `split_strides`, in float64."""
    extents = [(n + taps - 1) * stride for n in size]
    padded = np.zeros((*x.shape[:2], *(max(e, p + n) for e, p, n in zip(extents, pads, x.shape[2:]))), x.dtype)
    padded[:, :, pads[0]:pads[0] + x.shape[2], pads[1]:pads[1] + x.shape[3]] = x
    padded = padded[:, :, :extents[0], :extents[1]]
    apart = [padded[:, :, a::stride, b::stride] for a in range(stride) for b in range(stride)]
    return convolve(np.concatenate(apart, 1), u, (0, 0, 0, 0), m, taps)


def convolve(x: np.ndarray, u: np.ndarray, pads: Sequence[int], m: int, taps: int = 3) -> np.ndarray:
    """The convolution of (N, C, H, W) through the transforms, in float64. `pads`: before and after, as of ONNX Conv;
    negative ones crop."""
    top, left, bottom, right = pads
    n, _, h, w = x.shape
    side = m + taps - 1
    height, width = h + top + bottom - taps + 1, w + left + right - taps + 1
    rows, columns = tiles(height, m), tiles(width, m)
    after = (rows * m + taps - 1 - top - h, columns * m + taps - 1 - left - w)
    border = ((0, 0), (0, 0), (max(top, 0), max(after[0], 0)), (max(left, 0), max(after[1], 0)))
    padded = np.pad(x.astype(np.float64), border)[:, :, max(-top, 0):, max(-left, 0):]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))[:, :, ::m, ::m][:, :, :rows, :columns]
    v = np.einsum("ja,ncyxab,kb->jkcnyx", B_T[side], windows, B_T[side], optimize=True)
    products = np.matmul(u.astype(np.float64), v.reshape(side, side, x.shape[1], -1))
    products = products.reshape(side, side, -1, n, rows, columns)
    y = np.einsum("pj,jkonyx,qk->noypxq", A_T[m, taps], products, A_T[m, taps], optimize=True)
    return np.asarray(y.reshape(n, -1, rows * m, columns * m)[:, :, :height, :width])


def convolve_transposed(
    x: np.ndarray, u: np.ndarray, pads: Sequence[int], m: int, taps: int, size: tuple[int, int]
) -> np.ndarray:
    """The transposed convolution to (N, O, *size) by weights of `transform_phases`, in float64. `pads`: before."""
    stride = u.shape[0]
    y = np.empty((x.shape[0], u.shape[4], *size))
    for a in range(min(stride, size[0])):
        for b in range(min(stride, size[1])):
            extents = [tiles(n - phase, stride) for n, phase in zip(size, (a, b))]
            before = [taps - 1 - (phase + pad) // stride for phase, pad in zip((a, b), pads)]
            after = [e + taps - 1 - n - p for e, n, p in zip(extents, x.shape[2:], before)]
            y[:, :, a::stride, b::stride] = convolve(x, u[a, b], (*before, *after), m, taps)
    return y
