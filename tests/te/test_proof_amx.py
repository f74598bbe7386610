"""A 16x16 tile product of bfloat16 as AMX does it: two-element dot products into float32 tiles."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.errors import ScheduleError


def tdpbf16ps() -> te.Intrin:
    """C[i, j] += A[i, 2*k]*B[k, j, 0] + A[i, 2*k + 1]*B[k, j, 1] for 16 rows, 16 columns, 16 pairs."""
    a = te.placeholder((16, 32), "bfloat16", name="a")
    b = te.placeholder((16, 16, 2), "bfloat16", name="b")
    k, pair = te.reduce_axis(16, "k"), te.reduce_axis(2, "pair")
    c = te.compute(
        (16, 16),
        lambda i, j: te.sum(a[i, 2 * k + pair].astype("float32") * b[k, j, pair].astype("float32"), axis=(k, pair)),
        name="c",
    )
    scopes = {a: "tile.a", b: "tile.b", c: "tile.c"}
    return te.intrin("x86.tdpbf16ps", c, scopes, setup="amx.tileconfig", needs=frozenset({"amx-bf16"}))


def matmul(m: int, n: int, k: int) -> te.Tensor:
    """A (m, k) times B, whose rows come in pairs: B[k/2, n, 2], as the instruction reads them."""
    A = te.placeholder((m, k), "bfloat16", name="A")
    B = te.placeholder((k // 2, n, 2), "bfloat16", name="B")
    r, pair = te.reduce_axis(k // 2, "r"), te.reduce_axis(2, "pair")
    return te.compute(
        (m, n),
        lambda i, j: te.sum(A[i, 2 * r + pair].astype("float32") * B[r, j, pair].astype("float32"), axis=(r, pair)),
        name="C",
    )


def scheduled(C: te.Tensor) -> te.Schedule:
    s = te.create_schedule(C, name="tile_product")
    A, B = C.op.input_tensors
    CC = s.cache_write(C, "tile.c")
    AA, BB = s.cache_read(A, "tile.a", CC), s.cache_read(B, "tile.b", CC)
    _, jo, _, _ = s[C].tile(*C.op.axis, 16, 16)
    s[CC].compute_at(s[C], jo)
    i, j = s[CC].op.axis
    r, pair = s[CC].op.reduce_axis
    ro, ri = s[CC].split(r, 16)
    s[CC].reorder(ro, i, j, ri, pair)
    s[AA].compute_at(s[CC], ro)
    s[BB].compute_at(s[CC], ro)
    s[CC].tensorize(i, tdpbf16ps())
    return s


def test_tile_product(golden):
    C = matmul(32, 32, 64)
    s = scheduled(C)
    golden(te.to_text(s.func))
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 9, (32, 64)).astype(ml_dtypes.bfloat16)
    b = rng.integers(-8, 9, (32, 32, 2)).astype(ml_dtypes.bfloat16)
    dense = b.transpose(0, 2, 1).reshape(64, 32)
    expected = a.astype(np.float32) @ dense.astype(np.float32)          # small integers: exact in any order
    np.testing.assert_array_equal(te.interpret(s.func, {"A": a, "B": b})["C"], expected)


def test_replays_with_the_instruction_by_name():
    C = matmul(16, 16, 32)
    s = scheduled(C)
    data = json.loads(json.dumps(te.steps_to_json(s.steps)))
    steps = te.steps_from_json(data, {"x86.tdpbf16ps": tdpbf16ps()})
    again = te.replay(te.create_schedule(C, name="tile_product").func, steps)
    assert te.to_text(again.func) == te.to_text(s.func)
    with pytest.raises(ScheduleError, match="a step uses the instruction x86"):
        te.steps_from_json(data)


def refusal(change) -> str:
    C = matmul(32, 32, 64)
    s = te.create_schedule(C)
    with pytest.raises(ScheduleError) as e:
        change(s, C)
    return e.value.what


def test_what_does_not_match_is_said():
    def outer(s, C):
        s[C].tensorize("i", tdpbf16ps())

    def scope(s, C):
        _, _, ii, ji = s[C].tile("i", "j", 16, 16)
        ro, ri = s[C].split("r", 16)
        s[C].reorder(ro, ii, ji, ri, "pair")
        s[C].tensorize(ii, tdpbf16ps())

    def tail(s, C):
        _, ii = s[C].split("i", 15)
        s[C].tensorize(ii, tdpbf16ps())

    assert refusal(outer).endswith("no pairing of the loops has the same extents")
    assert refusal(scope).endswith("C is in global, c must be in tile.c")
    assert refusal(tail).endswith("it is no perfect nest without guards")


def test_another_product_is_no_match():
    A, B = te.placeholder((16, 32), "bfloat16", name="A"), te.placeholder((16, 16, 2), "bfloat16", name="B")
    r, pair = te.reduce_axis(16, "r"), te.reduce_axis(2, "pair")

    def value(i, j):
        return te.sum(A[i, r + 16 * pair].astype("float32") * B[r, j, pair].astype("float32"), axis=(r, pair))

    C = te.compute((16, 16), value, name="C")
    s = te.create_schedule(C)
    with pytest.raises(ScheduleError, match="A is not accessed as a"):
        s[C].tensorize("i", tdpbf16ps())


def test_a_fragment_must_be_dense():
    C = matmul(32, 32, 64)
    s = te.create_schedule(C)
    CC = s.cache_write(C, "tile.c")
    i, j = s[CC].op.axis
    r, pair = s[CC].op.reduce_axis
    for tensor, scope in zip(C.op.input_tensors, ("tile.a", "tile.b"), strict=True):
        s.cache_read(tensor, scope, CC)
    _, ii = s[CC].split(i, 16)
    _, ji = s[CC].split(j, 16)
    ro, ri = s[CC].split(r, 16)
    s[CC].reorder(ro, ii, ji, ri, pair)
    with pytest.raises(ScheduleError, match="the fragment of C_tile_c is not dense"):
        s[CC].tensorize(ii, tdpbf16ps())
