from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import Workload, conv2d, matmul, relu

import toolchain.te as te
from toolchain.core.rewrite import walk
from toolchain.te.expr import Select
from toolchain.te.loop_ir import If, loops


def branches(func: te.PrimFunc) -> int:
    return sum(isinstance(n, If | Select) for n in walk(func.body))


def test_peels_the_tail(golden):
    work = relu(10)
    s = te.create_schedule(work.output)
    io, _ = s["Y"].split("i", 4)
    main, tail = s["Y"].partition(io)
    assert (main.extent, tail.extent) == (2, 1)
    golden(te.to_text(s.func))
    work.check(s.func)


@given(n=st.integers(1, 40), data=st.data())
def test_no_branch_is_left(n, data):
    work = relu(n)
    s = te.create_schedule(work.output)
    io, _ = s["Y"].split("i", data.draw(st.integers(1, n)))
    s["Y"].partition(io)
    assert branches(s.func) == 0
    work.check(s.func)


@given(m=st.integers(2, 12), n=st.integers(2, 12), k=st.integers(1, 5), f=st.integers(2, 6), g=st.integers(2, 6))
@settings(max_examples=50)
def test_two_tails_of_a_register_tile(m, n, k, f, g):
    work = matmul(m, n, k)
    s = te.create_schedule(work.output)
    C = work.output
    CC = s.cache_write(C, "local")
    io, jo, _, _ = s[C].tile("i", "j", min(f, m), min(g, n))
    s[CC].compute_at(s[C], jo)
    i, j = s[CC].op.axis
    s[CC].reorder(*s[CC].op.reduce_axis, i, j)
    s[C].partition(jo)
    for piece in s[C].partition(io):
        assert piece.extent > 0
    assert branches(s.func) == 0
    work.check(s.func)


def test_padding_splits_into_border_and_middle():
    work = conv2d(1, 2, 8, 8, 3, 3, 1, 1)
    s = te.create_schedule(work.output)
    pieces = s["Y"].partition("y")
    assert [p.extent for p in pieces] == [1, 6, 1]
    main = next(loop for loop in loops(s.func.body) if loop.var is pieces[1])
    assert "y" not in {v.name for n in walk(main.body) if isinstance(n, Select) for v in te.expr.variables(n.condition)}
    work.check(s.func)


def test_concat_becomes_pieces(golden):
    P, Q, R = (te.placeholder((n,), name=name) for n, name in ((4, "P"), (6, "Q"), (3, "R")))
    Z = te.compute((13,), lambda i: te.select(i < 4, P[i], te.select(i < 10, Q[i - 4], R[i - 10])), name="Z")
    s = te.create_schedule(Z)
    assert [p.extent for p in s[Z].partition("i")] == [4, 6, 3]
    golden(te.to_text(s.func))
    Workload(Z, (P, Q, R), lambda p, q, r: [*p, *q, *r]).check(s.func)


@given(k=st.integers(2, 17), factor=st.integers(1, 17))
@settings(max_examples=40)
def test_only_the_first_chunk_initialises(k, factor):
    work = matmul(3, 4, k)
    s = te.create_schedule(work.output)
    ko, _ = s["C"].split("k", min(factor, k))
    s["C"].reorder(ko, "i", "j")
    s["C"].partition(ko)
    work.check(s.func)


def test_a_vectorized_tail_keeps_its_guard(golden):
    work = relu(10)
    s = te.create_schedule(work.output)
    io, ii = s["Y"].split("i", 4)
    s["Y"].vectorize(ii)
    s["Y"].partition(io)
    golden(te.to_text(s.func))
    work.check(s.func)


def test_flattened_positions_with_padding():
    work = conv2d(1, 2, 5, 5, 2, 3, 1, 1)
    s = te.create_schedule(work.output)
    p = s["Y"].fuse("y", "x")
    s["Y"].partition(p)
    work.check(s.func)


def test_nothing_to_cut():
    work = relu(8)
    s = te.create_schedule(work.output)
    before = s.func
    (only,) = s["Y"].partition("i")
    assert only.name == "i"
    assert s.func is before
