"""The code of the TVM lecture, as written there apart from the import."""

from __future__ import annotations

import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.errors import ScheduleError


def test_declare_split_reorder_print(golden):
    m, n, h = 64, 64, 64
    A, B = te.placeholder((m, h), name="A"), te.placeholder((n, h), name="B")
    k = te.reduce_axis((0, h), name="k")
    C = te.compute((m, n), lambda y, x: te.sum(A[y, k] * B[x, k], axis=k), name="C")
    s = te.create_schedule(C.op)
    golden(str(s), "start")
    yo, xo, yi, xi = s[C].tile(C.op.axis[0], C.op.axis[1], 8, 8)
    (k,) = s[C].op.reduce_axis
    ko, ki = s[C].split(k, factor=4)
    s[C].reorder(yo, xo, ko, yi, xi, ki)
    golden(str(s), "tiled")
    s[C].unroll(ki)
    s[C].vectorize(xi)
    s[C].parallel(yo)
    golden(str(s), "marked")
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (m, h)).astype(np.float32), rng.integers(-4, 5, (n, h)).astype(np.float32)
    np.testing.assert_array_equal(te.interpret(s.func, {"A": a, "B": b})["C"], a @ b.T)


def test_cache_write_and_compute_at(golden):
    A, B = te.placeholder((32, 32), name="A"), te.placeholder((32, 32), name="B")
    k = te.reduce_axis(32, name="k")
    C = te.compute((32, 32), lambda i, j: te.sum(A[i, k] * B[k, j], axis=k), name="C")
    s = te.create_schedule([C])
    CC = s.cache_write(C, "local")
    _, yo, _, _ = s[C].tile(C.op.axis[0], C.op.axis[1], 16, 8)
    s[CC].compute_at(s[C], yo)
    xc, yc = s[CC].op.axis
    (k,) = s[CC].op.reduce_axis
    ko, ki = s[CC].split(k, factor=4)
    s[CC].reorder(ko, xc, ki, yc)
    s[CC].unroll(ki)
    s[CC].vectorize(yc)
    golden(te.to_text(s.func))
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (32, 32)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(te.interpret(s.func, {"A": a, "B": b})["C"], a @ b)


def test_bind_names_the_thread(golden):
    A = te.placeholder((1024,), name="A")
    B = te.compute((1024,), lambda i: A[i] + 1.0, name="B")
    s = te.create_schedule(B)
    bx, tx = s[B].split(B.op.axis[0], factor=64)
    s[B].bind(bx, te.thread_axis("blockIdx.x"))
    s[B].bind(tx, te.thread_axis((0, 64), "threadIdx.x"))
    golden(te.to_text(s.func))
    a = np.arange(1024, dtype=np.float32)
    np.testing.assert_array_equal(te.interpret(s.func, {"A": a})["B"], a + 1)
    with pytest.raises(ScheduleError, match="no thread axis 'warp'"):
        s[B].bind(tx, te.thread_axis("warp"))


def test_softmax_reads_as_in_the_paper():
    n, m = 4, 9
    X = te.placeholder((n, m), name="X")
    k, k2 = te.reduce_axis(m, "k"), te.reduce_axis(m, "k2")
    top = te.compute((n,), lambda i: te.max(X[i, k], axis=k), name="top")
    e = te.compute((n, m), lambda i, j: te.exp(X[i, j] - top[i]), name="e")
    total = te.compute((n,), lambda i: te.sum(e[i, k2], axis=k2), name="total")
    Y = te.compute((n, m), lambda i, j: e[i, j] / total[i], name="Y")
    s = te.create_schedule(Y)
    for stage in (total, e, top):
        s[stage].compute_at(s[Y], Y.op.axis[0])
    x = np.random.default_rng(0).standard_normal((n, m)).astype(np.float32)
    expected = np.exp(x - x.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    # the sums run in another order than NumPy's pairwise one: a few ulp
    np.testing.assert_allclose(te.interpret(s.func, {"X": x})["Y"], expected, rtol=1e-6)
