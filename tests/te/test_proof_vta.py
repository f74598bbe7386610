"""The lecture's gemm8x8 on a decoupled accelerator: own scopes, two virtual threads, dependency tokens checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import map_children
from toolchain.core.target import Scope, Target
from toolchain.te.loop_ir import Block, Evaluate, PrimFunc, Stmt, block, walk_statements
from toolchain.te.lower.inject_vthread import inject_vthread
from toolchain.te.lower.insert_tokens import check_tokens, insert_tokens

ACCELERATOR = Target(
    "vta", "vta",
    scopes=(Scope("vta.inp", queue="load"), Scope("vta.wgt", queue="load"), Scope("vta.acc", queue="compute")),
)


def gemm8x8() -> te.Intrin:
    a, w = te.placeholder((8, 8), "int8", name="a"), te.placeholder((8, 8), "int8", name="w")
    k = te.reduce_axis(8, "k")

    def product(i, j):
        return te.sum(a[i, k].astype("int32") * w[j, k].astype("int32"), axis=k)

    acc = te.compute((8, 8), product, name="acc")
    return te.intrin("gemm8x8", acc, {a: "vta.inp", w: "vta.wgt", acc: "vta.acc"})


def scheduled(m: int, n: int, depth: int, threads: int = 2) -> te.Schedule:
    A, W = te.placeholder((m, depth), "int8", name="A"), te.placeholder((n, depth), "int8", name="W")
    k = te.reduce_axis(depth, "k")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, k].astype("int32") * W[j, k].astype("int32"), axis=k), name="C")
    s = te.create_schedule(C, name="gemm")
    CL = s.cache_write(C, "vta.acc")
    AL, WL = s.cache_read(A, "vta.inp", CL), s.cache_read(W, "vta.wgt", CL)
    io, jo, ii, ji = s[C].tile(*C.op.axis, 8, 8)
    io, thread = s[C].split(io, threads)
    s[C].reorder(io, jo, thread, ii, ji)
    s[C].bind(thread, te.thread_axis("vthread"))
    s[CL].compute_at(s[C], thread)
    i, j = s[CL].op.axis
    ko, ki = s[CL].split(s[CL].op.reduce_axis[0], 8)
    s[CL].reorder(ko, i, j, ki)
    s[AL].compute_at(s[CL], ko)
    s[WL].compute_at(s[CL], ko)
    s[CL].tensorize(i, gemm8x8())
    return s


def check(func: PrimFunc, m: int, n: int, depth: int) -> None:
    rng = np.random.default_rng(0)
    a, w = rng.integers(-128, 128, (m, depth)).astype(np.int8), rng.integers(-128, 128, (n, depth)).astype(np.int8)
    np.testing.assert_array_equal(te.interpret(func, {"A": a, "W": w})["C"], a.astype(np.int32) @ w.astype(np.int32).T)


def lowered(m: int, n: int, depth: int, threads: int = 2) -> PrimFunc:
    return insert_tokens(inject_vthread(scheduled(m, n, depth, threads).func, ACCELERATOR), ACCELERATOR)


def test_gemm8x8(golden):
    s = scheduled(32, 16, 24)
    golden(te.to_text(s.func), "scheduled")
    check(s.func, 32, 16, 24)
    interleaved = inject_vthread(s.func, ACCELERATOR)
    check(interleaved, 32, 16, 24)
    func = insert_tokens(interleaved, ACCELERATOR)
    golden(te.to_text(func), "tokens")
    check(func, 32, 16, 24)


@pytest.mark.parametrize(("m", "n", "depth", "threads"), [(16, 8, 8, 2), (16, 8, 32, 2), (48, 16, 16, 3), (8, 8, 16, 1)])
def test_other_shapes_and_thread_counts(m, n, depth, threads):
    check(lowered(m, n, depth, threads), m, n, depth)


def is_token(stmt: Stmt) -> bool:
    return isinstance(stmt, Evaluate) and stmt.call.name.startswith(("push.", "pop."))


def without(stmt: Stmt, wanted: Stmt) -> Stmt:
    if isinstance(stmt, Block):
        return block(*(without(s, wanted) for s in stmt.stmts if s is not wanted))
    return map_children(stmt, lambda c: without(c, wanted) if isinstance(c, Stmt) else c)


def test_no_single_token_can_be_left_out():
    func = lowered(32, 16, 24)
    tokens = [s for s in walk_statements(func.body) if is_token(s)]
    assert len(tokens) >= 8
    for token in tokens:
        with pytest.raises(CodegenError):
            check_tokens(replace(func, body=without(func.body, token)), ACCELERATOR)


def test_without_tokens_the_queues_race():
    func = inject_vthread(scheduled(32, 16, 24).func, ACCELERATOR)
    with pytest.raises(CodegenError, match="compute does not wait for load"):
        check_tokens(func, ACCELERATOR)


def test_more_threads_wait_on_their_own_piece_only():
    """With one thread the next load waits for the gemm just issued; with two it waits for the gemm before that."""
    text = te.to_text(lowered(32, 16, 24))
    assert "A_vta_inp: int8[2, 8, 8]" in text
    assert text.count("gemm8x8(") == 2
