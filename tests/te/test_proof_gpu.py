"""The lecture's GPU matrix multiply: blocks and threads bound, cooperative copies into shared memory, a register tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import map_children
from toolchain.core.target import Target
from toolchain.te.expr import Call
from toolchain.te.loop_ir import Block, Evaluate, PrimFunc, Stmt, block, walk_statements
from toolchain.te.lower.insert_barriers import insert_barriers

GPU = Target("gpu", "cuda", max_threads_per_block=1024, warp_size=32)


def matmul(n: int, block_size: int, tile: int, step: int) -> te.Schedule:
    """block_size x block_size results per block, tile x tile of them per thread, `step` rows of A and B in shared memory."""
    A, B = te.placeholder((n, n), name="A"), te.placeholder((n, n), name="B")
    k = te.reduce_axis(n, name="k")
    C = te.compute((n, n), lambda y, x: te.sum(A[k, y] * B[k, x], axis=k), name="C")
    s = te.create_schedule(C, name="matmul")
    CL = s.cache_write(C, "local")
    AA = s.cache_read(A, "shared", [CL])
    BB = s.cache_read(B, "shared", [CL])
    block_x, block_y = te.thread_axis("blockIdx.x"), te.thread_axis("blockIdx.y")
    thread_x, thread_y = te.thread_axis("threadIdx.x"), te.thread_axis("threadIdx.y")
    by, bx, yi, xi = s[C].tile(C.op.axis[0], C.op.axis[1], block_size, block_size)
    ty, tx, yi, xi = s[C].tile(yi, xi, tile, tile)
    s[C].bind(by, block_y)
    s[C].bind(bx, block_x)
    s[C].bind(ty, thread_y)
    s[C].bind(tx, thread_x)
    s[CL].compute_at(s[C], tx)
    yo, xo = s[CL].op.axis
    (k,) = s[CL].op.reduce_axis
    ko, ki = s[CL].split(k, step)
    s[CL].reorder(ko, ki, yo, xo)
    s[CL].unroll(yo)
    s[CL].unroll(xo)
    threads = block_size // tile
    for copy in (AA, BB):
        s[copy].compute_at(s[CL], ko)
        fused = s[copy].fuse(*s[copy].op.axis)
        outer, inner = s[copy].split(fused, threads)
        rounds, middle = s[copy].split(outer, threads)
        s[copy].reorder(middle, inner, rounds)
        s[copy].bind(middle, thread_y)
        s[copy].bind(inner, thread_x)
    return s


def check(func: PrimFunc, n: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (n, n)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(te.interpret(func, {"A": a, "B": b})["C"], a.T @ b)    # small integers: exact


def test_gpu_matmul(golden):
    s = matmul(16, 8, 2, 4)
    golden(te.to_text(s.func), "scheduled")
    check(s.func, 16)
    lowered = insert_barriers(s.func, GPU)
    golden(te.to_text(lowered), "barriers")
    check(lowered, 16)


def without(stmt: Stmt, wanted: Stmt) -> Stmt:
    """The nest without one barrier."""
    def visit(s: Stmt) -> Stmt:
        if isinstance(s, Block):
            return block(*(visit(c) for c in s.stmts if c is not wanted))
        return map_children(s, lambda c: visit(c) if isinstance(c, Stmt) else c)

    return visit(stmt)


def barriers(func: PrimFunc) -> Iterator[Stmt]:
    return (s for s in walk_statements(func.body) if isinstance(s, Evaluate) and s.call.name == "barrier")


def test_every_barrier_is_needed():
    lowered = insert_barriers(matmul(16, 8, 2, 4).func, GPU)
    found = list(barriers(lowered))
    assert len(found) == 2
    for barrier in found:
        broken = replace(lowered, body=without(lowered.body, barrier))
        with pytest.raises(AssertionError, match="Arrays are not equal"):
            check(broken, 16)


def test_a_barrier_that_some_threads_miss_is_refused():
    A = te.placeholder((8,), name="A")
    P = te.compute((8,), lambda i: A[i] + 1.0, name="P")
    C = te.compute((8,), lambda i: P[i] * 2.0, name="C")
    s = te.create_schedule(C)
    s[C].bind("i_1", "threadIdx.x")
    s[P].set_scope("shared")
    s[P].compute_at(s[C], "i_1")
    s[P].bind(s[P].op.axis[0], "threadIdx.x")
    lowered = insert_barriers(s.func, GPU)

    def only_some(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Evaluate) and stmt.call.name == "barrier":
            return te.loop_ir.If(te.expr.compare("<", thread, 4), Evaluate(Call("barrier", (), "bool")))
        return map_children(stmt, lambda c: only_some(c) if isinstance(c, Stmt) else c)

    thread = next(te.loop_ir.loops(lowered.body)).var
    with pytest.raises(ScheduleError, match="a barrier in divergent control flow"):
        te.interpret(replace(lowered, body=only_some(lowered.body)), {"A": np.ones(8, np.float32)})


def test_nothing_shared_needs_no_barrier():
    s = matmul(8, 4, 2, 2)
    for name in ("A_shared", "B_shared"):
        s[name].set_scope("local")
    assert insert_barriers(s.func, GPU) is s.func
