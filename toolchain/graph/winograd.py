"""Winograd's minimal filtering F(m x m, 3 x 3): its matrices, and what they make of weights. Pure NumPy.

    Y = A^T [ (G g G^T) * (B^T d B) ] A         per tile: d is (m+2) x (m+2) of input, Y is m x m of output, g is 3 x 3

Per output element and pair of channels (m+2)^2/m^2 multiplications instead of 9: 4 with m = 2, 2.25 with m = 4.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016; points 0, 1, -1, (2, -2,) infinity.
"""

from __future__ import annotations

import numpy as np

B_T: dict[int, np.ndarray] = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
    4: np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                 [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float),
}
A_T: dict[int, np.ndarray] = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
}
G: dict[int, np.ndarray] = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], float),
    4: np.array([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
                 [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]], float),
}
SIZES = (4, 2)              # of output tiles, m
CHUNK = 1 << 11             # pairs of channels transformed at a time: a product that stays in a cache and on one thread


def transform_weights(weights: np.ndarray, m: int) -> np.ndarray:
    """U = G g G^T of (O, I, 3, 3) weights, as (m+2, m+2, O, I): computed in float64 and rounded once."""
    flat = np.ascontiguousarray(weights.reshape(-1, 9).T)
    made = np.empty(((m + 2) ** 2, flat.shape[1]), weights.dtype)
    for rows in np.array_split(np.arange(flat.shape[1]), -(-flat.shape[1] // CHUNK)):        # what float64 needs stays small
        made[:, rows[0]:rows[-1] + 1] = np.kron(G[m], G[m]) @ flat[:, rows[0]:rows[-1] + 1].astype(np.float64)
    return made.reshape(m + 2, m + 2, *weights.shape[:2])


def tiles(extent: int, m: int) -> int:
    """How many output tiles cover an extent; the last one may stand over."""
    return -(-extent // m)


def convolve(x: np.ndarray, u: np.ndarray, pads: tuple[int, ...], m: int) -> np.ndarray:
    """The convolution of (N, C, H, W) through the transforms, in float64. `pads`: before and after, as of ONNX Conv."""
    top, left, bottom, right = pads
    n, _, h, w = x.shape
    height, width = h + top + bottom - 2, w + left + right - 2
    rows, columns = tiles(height, m), tiles(width, m)
    border = ((0, 0), (0, 0), (top, rows * m + 2 - top - h), (left, columns * m + 2 - left - w))
    padded = np.pad(x.astype(np.float64), border)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (m + 2, m + 2), (2, 3))[:, :, ::m, ::m]
    v = np.einsum("ja,ncyxab,kb->jkcnyx", B_T[m], windows, B_T[m], optimize=True)
    products = np.matmul(u.astype(np.float64), v.reshape(m + 2, m + 2, x.shape[1], -1))
    products = products.reshape(m + 2, m + 2, -1, n, rows, columns)
    y = np.einsum("pj,jkonyx,qk->noypxq", A_T[m], products, A_T[m], optimize=True)
    return np.asarray(y.reshape(n, -1, rows * m, columns * m)[:, :, :height, :width])
