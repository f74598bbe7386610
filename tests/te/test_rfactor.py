from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import Workload, chain, matmul

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout


def row_sum(n: int, m: int, combiner=te.sum) -> Workload:
    X = te.placeholder((n, m), name="X")
    k = te.reduce_axis(m, "k")
    C = te.compute((n,), lambda i: combiner(X[i, k], axis=k), name="C")
    numpy = {te.sum: lambda x: x.sum(1), te.max: lambda x: x.max(1), te.min: lambda x: x.min(1)}[combiner]
    return Workload(C, (X,), numpy)


def test_partial_sums_in_lanes(golden):
    work = row_sum(3, 32)
    s = te.create_schedule(work.output)
    _, ki = s["C"].split("k", 8)
    R = s.rfactor(work.output, ki)
    s[R].compute_at(s["C"], "i")
    s[R].set_scope("local")
    lane, _ = s[R].op.axis
    s[R].reorder(*s[R].op.reduce_axis, lane)
    s[R].vectorize(lane)
    golden(te.to_text(s.func))
    work.check(s.func)


@given(n=st.integers(1, 5), m=st.integers(1, 20), f=st.integers(1, 20), at=st.sampled_from([0, -1]),
       combiner=st.sampled_from([te.sum, te.max, te.min]), outer=st.booleans())
@settings(max_examples=60)
def test_keeps_the_result(n, m, f, at, combiner, outer):
    work = row_sum(n, m, combiner)
    s = te.create_schedule(work.output)
    ko, ki = s["C"].split("k", min(f, m))
    R = s.rfactor(work.output, ko if outer else ki, at)
    assert R.shape[at] == (ko if outer else ki).extent
    work.check(s.func)


def test_refusals():
    work = matmul(4, 4, 4)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="rfactor: 'i' is no reduction loop of C's own nest"):
        s.rfactor(work.output, "i")
    s["C"].split("i", 2)
    with pytest.raises(ScheduleError, match="loops over the result were split already"):
        s.rfactor(work.output, "k")


def test_prefetch_asks_for_whole_lines(golden):
    X = te.placeholder((32, 18, 8), name="X")
    k = te.reduce_axis(3, "k")
    Y = te.compute((32, 16, 8), lambda c, y, x: te.sum(X[c, y + k, x], axis=k), name="Y")
    s = te.create_schedule(Y)
    s.set_layout(X, Layout.parse("CHW16c", axes="CHW"))
    s[Y].prefetch(X, s[Y].op.axis[1], 1)
    golden(te.to_text(s.func))
    Workload(Y, (X,), lambda x: x[:, :-2] + x[:, 1:-1] + x[:, 2:]).check(s.func)
    s[Y].prefetch(X, s[Y].op.axis[0], 2, level=2)
    assert "], int32(2))" in te.to_text(s.func)
    with pytest.raises(ScheduleError, match="prefetch: distance 0"):
        s[Y].prefetch(X, s[Y].op.axis[1], 0)


def test_prefetch_of_blocks_in_blocks_asks_for_each_line_once():
    """Panels of 64 columns in groups of four bytes: a line holds 16 columns."""
    X = te.placeholder((64, 32), "int8", name="X")
    k = te.reduce_axis(32, "k")
    Y = te.compute((64,), lambda n: te.sum(X[n, k].astype("int32"), axis=k), name="Y")
    s = te.create_schedule(Y)
    s.set_layout(X, Layout.parse("NK64n4k"))
    (n,), (k,) = s[Y].op.axis, s[Y].op.reduce_axis
    ko, ki = s[Y].split(k, factor=8)
    s[Y].reorder(ko, n, ki)
    lines = s[Y].prefetch(X, ko, 1, level=2)
    assert [axis.extent for axis in lines] == [4, 2]
    assert "prefetch(X[16*ax0, 8*k_0 + 4*ax1 + 8], int32(2))" in te.to_text(s.func)


def test_iterations_of_a_loop_around_share_the_lines_of_a_prefetch(golden):
    """Three tiles of rows read one panel: each asks for a third of the next one's lines."""
    A, B = te.placeholder((12, 8), name="A"), te.placeholder((8, 64), name="B")
    k = te.reduce_axis(8, "k")
    Y = te.compute((12, 64), lambda i, j: te.sum(A[i, k] * B[k, j], axis=k), name="Y")
    s = te.create_schedule(Y)
    s.set_layout(B, Layout.parse("NK32n", axes="KN"))
    (i, j), (k,) = s[Y].op.axis, s[Y].op.reduce_axis
    io, ii = s[Y].split(i, factor=4)
    jo, ji = s[Y].split(j, factor=32)
    ko, ki = s[Y].split(k, factor=4)
    s[Y].reorder(jo, io, ko, ki, ii, ji)
    lines = s[Y].prefetch(B, ko, ko.extent, level=2, over=io)
    assert [axis.extent for axis in lines] == [3]                    # four steps of two lines in three shares
    golden(te.to_text(s.func))
    Workload(Y, (A, B), lambda a, b: a @ b).check(s.func)
    with pytest.raises(ScheduleError, match="prefetch: 'k_1' is no loop around"):
        s[Y].prefetch(B, ko, 1, over=ki)


def test_storage_align_pads_rows():
    work = chain(4, 6)
    s = te.create_schedule(work.output)
    s["P"].storage_align(s["P"].op.axis[0], 32, 1)
    type = s.func.buffers[s["P"].tensor].type
    assert type.layout.strides(type.shape) == (33, 1)
    work.check(s.func)
    with pytest.raises(ScheduleError, match="storage_align: dimension 1 of P"):
        s["P"].storage_align(s["P"].op.axis[1], 32, 1)


def test_double_buffer_and_scope_are_recorded():
    work = chain(2, 3)
    s = te.create_schedule(work.output)
    s["P"].double_buffer()
    s["P"].set_scope("shared")
    assert s.func.attrs["double_buffer"] == ("P",)
    assert s.func.buffers[s["P"].tensor].scope == "shared"
    for step in (s["D"].double_buffer, lambda: s["D"].set_scope("local")):
        with pytest.raises(ScheduleError, match="D is a parameter of main"):
            step()
