"""Definitions the te tests share, each with its NumPy reference. Inputs are small integers: every order of sums is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import toolchain.te as te


@dataclass(frozen=True)
class Workload:
    """Output tensors, inputs by name, and what they must give."""

    output: te.Tensor
    inputs: tuple[te.Tensor, ...]
    reference: Callable[..., np.ndarray]

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {t.name: rng.integers(-4, 5, t.shape).astype(t.dtype) for t in self.inputs}

    def check(self, func: te.PrimFunc, seed: int = 0) -> None:
        """Interpret `func` and compare exactly: inputs are small integers, so float32 sums are exact in any order."""
        arrays = self.arrays(seed)
        expected = self.reference(*(arrays[t.name] for t in self.inputs))
        np.testing.assert_array_equal(te.interpret(func, arrays)[self.output.name], expected)


def relu(n: int) -> Workload:
    X = te.placeholder((n,), name="X")
    Y = te.compute((n,), lambda i: te.maximum(X[i], 0.0), name="Y")
    return Workload(Y, (X,), lambda x: np.maximum(x, 0))


def matmul(m: int, n: int, k: int) -> Workload:
    A, B = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis(k, name="k")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, r] * B[r, j], axis=r), name="C")
    return Workload(C, (A, B), lambda a, b: a @ b)


def chain(n: int, m: int) -> Workload:
    """Two injective stages and a window reading them: D[i, j] = P[i, j] + P[i, j + 2], P = 2*Q, Q = X + 1."""
    X = te.placeholder((n, m + 2), name="X")
    Q = te.compute((n, m + 2), lambda i, j: X[i, j] + 1.0, name="Q")
    P = te.compute((n, m + 2), lambda i, j: Q[i, j] * 2.0, name="P")
    D = te.compute((n, m), lambda i, j: P[i, j] + P[i, j + 2], name="D")
    return Workload(D, (X,), lambda x: 2 * (x[:, :-2] + 1) + 2 * (x[:, 2:] + 1))


def row_statistics(n: int, m: int) -> Workload:
    """The stages of a softmax with exact arithmetic: E = X - max(X), D = E + sum(E)."""
    X = te.placeholder((n, m), name="X")
    k, k2 = te.reduce_axis(m, "k"), te.reduce_axis(m, "k")
    M = te.compute((n,), lambda i: te.max(X[i, k], axis=k), name="M")
    E = te.compute((n, m), lambda i, j: X[i, j] - M[i], name="E")
    S = te.compute((n,), lambda i: te.sum(E[i, k2], axis=k2), name="S")
    D = te.compute((n, m), lambda i, j: E[i, j] + S[i], name="D")

    def reference(x: np.ndarray) -> np.ndarray:
        e = x - x.max(1, keepdims=True)
        return e + e.sum(1, keepdims=True)

    return Workload(D, (X,), reference)


def conv2d(batch: int, channels: int, height: int, width: int, out: int, kernel: int, stride: int, pad: int) -> Workload:
    """Convolution with zero padding by select, bias as the start of the sum, and relu."""
    X = te.placeholder((batch, channels, height, width), name="X")
    W = te.placeholder((out, channels, kernel, kernel), name="W", constant=True)
    B = te.placeholder((out,), name="B", constant=True)
    oh, ow = (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
    ic, kh, kw = te.reduce_axis(channels, "ic"), te.reduce_axis(kernel, "kh"), te.reduce_axis(kernel, "kw")

    def value(n, o, y, x):
        iy, ix = y * stride + kh - pad, x * stride + kw - pad
        inside = te.all(iy >= 0, iy < height, ix >= 0, ix < width)
        padded = te.select(inside, X[n, ic, iy, ix], 0.0)
        return te.sum(padded * W[o, ic, kh, kw], axis=(ic, kh, kw), init=B[o])

    Y = te.compute((batch, out, oh, ow), value, name="Y")
    R = te.compute((batch, out, oh, ow), lambda n, o, y, x: te.maximum(Y[n, o, y, x], 0.0), name="R")

    def reference(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]
        y = np.einsum("ncyxhw,ochw->noyx", windows, w) + b[None, :, None, None]
        return np.maximum(y, 0).astype(np.float32)

    return Workload(R, (X, W, B), reference)
