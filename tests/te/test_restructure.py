from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import conv2d, matmul, relu, row_statistics

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.te.primitives import fuse, reorder, split

extents = st.integers(1, 12)


def test_split_guards_the_tail(golden):
    golden(te.to_text(split(te.create_schedule(relu(10).output).func, "i", 4)[0]))


@given(n=st.integers(1, 40), data=st.data())
def test_split_keeps_the_result(n, data):
    work = relu(n)
    s = te.create_schedule(work.output)
    axis = work.output.op.axis[0]
    for _ in range(2):
        _, axis = s[work.output].split(axis, data.draw(st.integers(1, s[work.output]._extent(axis))))
    work.check(s.func)


def test_split_names_the_loops_there_are():
    func = te.create_schedule(relu(10).output).func
    with pytest.raises(ScheduleError) as e:
        split(func, "j", 4)
    assert str(e.value) == "split: main has no loop 'j'\nfix: pick one of: i"
    with pytest.raises(ScheduleError) as e:
        split(func, "i", 0)
    assert str(e.value) == "split: factor 0 of loop 'i'\nfix: choose a factor of 1 or more"


def test_split_pads_a_short_loop():
    work = relu(10)
    s = te.create_schedule(work.output)
    outer, inner = s[work.output].split(work.output.op.axis[0], 16)
    assert (outer.extent, inner.extent) == (1, 16)
    work.check(s.func)


def test_split_by_parts():
    work = relu(10)
    s = te.create_schedule(work.output)
    outer, inner = s[work.output].split("i", nparts=3)
    assert (outer.extent, inner.extent) == (3, 4)
    work.check(s.func)


def test_a_consumed_handle_is_refused():
    work = relu(10)
    s = te.create_schedule(work.output)
    s[work.output].split(work.output.op.axis[0], 4)
    with pytest.raises(ScheduleError, match="loop 'i' is no longer there: an earlier step replaced it") as e:
        s[work.output].vectorize(work.output.op.axis[0])
    assert e.value.fix == "use the handles that step returned; loops now: i_0, i_1"


def test_fuse_makes_one_loop(golden):
    func, _ = fuse(te.create_schedule(conv2d(1, 2, 7, 7, 3, 1, 1, 0).output).func, "y_1", "x_1")
    golden(te.to_text(func))


@given(m=extents, n=extents, k=extents, factor=st.integers(1, 12))
@settings(max_examples=50)
def test_fuse_and_split_keep_the_result(m, n, k, factor):
    work = matmul(m, n, k)
    s = te.create_schedule(work.output)
    fused = s[work.output].fuse("i", "j")
    s[work.output].split(fused, min(factor, m * n))
    work.check(s.func)


def test_fuse_through_a_guard():
    work = matmul(7, 5, 3)
    s = te.create_schedule(work.output)
    _, ii = s[work.output].split("i", 4)
    s[work.output].fuse(ii, "j")
    work.check(s.func)


def test_fuse_refuses():
    func = te.create_schedule(matmul(4, 4, 4).output).func
    with pytest.raises(ScheduleError, match="fuse: 'k' is not directly inside 'i'"):
        fuse(func, "i", "k")
    with pytest.raises(ScheduleError, match="fuse: only one of 'j', 'k' reduces into C"):
        fuse(func, "j", "k")


def test_reorder_moves_guards(golden):
    work = matmul(6, 10, 5)
    s = te.create_schedule(work.output)
    jo, ji = s[work.output].split("j", 4)
    ko, ki = s[work.output].split("k", 3)
    s[work.output].reorder(ko, jo, ki, "i", ji)
    golden(te.to_text(s.func))
    work.check(s.func)


@given(order=st.permutations(["n", "o", "y", "x", "ic", "kh", "kw"]), stride=st.integers(1, 2), pad=st.integers(0, 1))
@settings(max_examples=40)
def test_reorder_keeps_the_result(order, stride, pad):
    work = conv2d(2, 3, 6, 5, 4, 3, stride, pad)
    s = te.create_schedule(work.output)
    s.apply("reorder", *order)
    work.check(s.func)


def test_reorder_refuses():
    work = conv2d(1, 2, 4, 4, 2, 1, 1, 0)
    func = te.create_schedule(work.output).func
    with pytest.raises(ScheduleError) as e:
        reorder(func, "n", "x_1")
    assert str(e.value) == (
        "reorder: 'x_1' is not in one perfect nest with 'n'\n"
        "fix: loops that can be reordered with it: n, o, y, x, ic, kh, kw"
    )
    with pytest.raises(ScheduleError, match="a loop is named twice"):
        reorder(func, "n", "n")


def test_vectorizing_around_a_stage_without_lanes_is_refused():
    work = row_statistics(4, 6)
    s = te.create_schedule(work.output)
    for name in ("S", "E", "M"):
        s[name].compute_at(s["D"], "i_3")
    with pytest.raises(ScheduleError) as e:
        s["D"].vectorize("i_3")
    assert str(e.value) == (
        "vectorize: M is computed inside 'i_3', once for all lanes\n"
        "fix: compute M outside of 'i_3' and vectorize its own loop"
    )


def test_decompose_a_reduction(golden):
    work = matmul(4, 6, 8)
    s = te.create_schedule(work.output)
    ko, ki = s["C"].split("k", 4)
    s["C"].reorder("i", ko, "j", ki)
    loops = s["C"].decompose_reduction()
    assert [v.name for v in loops] == ["j_init"]
    golden(te.to_text(s.func))
    work.check(s.func)
    with pytest.raises(ScheduleError, match="decompose_reduction: C has no pending initialisation"):
        s["C"].decompose_reduction()


@given(order=st.permutations(["i", "j", "k_0", "k_1"]), m=extents, n=extents, k=extents, f=st.integers(1, 12))
@settings(max_examples=50)
def test_decomposing_keeps_the_result(order, m, n, k, f):
    work = matmul(m, n, k)
    s = te.create_schedule(work.output)
    s["C"].split("k", min(f, k))
    s["C"].reorder(*order)
    s["C"].decompose_reduction()
    work.check(s.func)


def test_marking_a_reduction_loop_is_refused():
    work = matmul(4, 4, 4)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="parallel: loop 'k' reduces into C"):
        s[work.output].parallel("k")
    s[work.output].unroll("k")
    with pytest.raises(ScheduleError, match="vectorize: loop 'k' is already unrolled"):
        s[work.output].vectorize("k")
