"""compute_with and reuse_buffer: what a row is made of in one pass, and in one place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import chain, row_statistics

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.te.lower import lower

TARGET = Target("avx2", "x86", features=("+avx2", "+fma"), vector_bits=256)


def rows_together(n: int, m: int) -> tuple[te.Schedule, te.Tensor]:
    """M, E and S of a row in one loop over rows of D."""
    work = row_statistics(n, m)
    s = te.create_schedule(work.output)
    for name in ("S", "E", "M"):
        s[name].compute_at(s["D"], s["D"].op.axis[0])
    return s, work.output


def test_a_sum_in_the_loop_that_stores_its_terms(golden):
    s, _ = rows_together(4, 6)
    s["S"].compute_with(s["S"].op.reduce_axis[0], s["E"], s["E"].op.axis[1])
    golden(te.to_text(s.func))


@given(n=st.integers(1, 4), m=st.integers(2, 20), factor=st.integers(1, 8), cut=st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_pass_keeps_the_result(n, m, factor, cut):
    """Blocks and lanes of a sum in the loops of the stage it adds up; tails peeled; the stage in the output's storage."""
    work = row_statistics(n, m)
    s = te.create_schedule(work.output)
    _, lane = s["S"].split(s["S"].op.reduce_axis[0], factor)
    lanes = s.rfactor(s["S"].tensor, lane)
    for stage in (s["S"].tensor, lanes, s["E"].tensor, s["M"].tensor):
        s[stage].compute_at(s["D"], s["D"].op.axis[0])
    step = s[lanes].op.reduce_axis[0]
    s[lanes].reorder(s[lanes].op.axis[1], step, s[lanes].op.axis[0])
    outer, inner = s["E"].split(s["E"].op.axis[1], factor)
    s[lanes].compute_with(step, s["E"], outer)
    s["E"].vectorize(inner)
    if cut:
        s["E"].partition(outer)
    s["E"].reuse_buffer(s["D"])
    work.check(s.func)
    work.check(lower(s.func, TARGET))
    assert te.to_text(te.replay(te.create_schedule(work.output).func, s.steps).func) == te.to_text(s.func)


def test_compute_with_refuses():
    s, _ = rows_together(4, 6)
    k, j = s["S"].op.reduce_axis[0], s["E"].op.axis[1]
    with pytest.raises(ScheduleError, match="is not directly behind"):
        s["D"].compute_with(s["D"].op.axis[1], s["E"], j)
    with pytest.raises(ScheduleError, match="is not directly behind"):
        s["E"].compute_with(j, s["S"], k)
    outer, _ = s["E"].split(j, 2)
    with pytest.raises(ScheduleError, match=r"has 3 iterations \(serial\), 'k.*' has 6 \(serial\)\nfix: split both alike"):
        s["S"].compute_with(k, s["E"], outer)


def test_compute_with_refuses_what_another_iteration_stores():
    work = chain(3, 6)
    s = te.create_schedule(work.output)
    s["Q"].compute_inline()
    for name in ("P", "D"):
        s[name].reorder(*reversed(s[name].op.axis))
    p, d = s["P"].split(s["P"].op.axis[1], 4)[0], s["D"].split(s["D"].op.axis[1], 3)[0]
    with pytest.raises(ScheduleError, match=r"reads P where another iteration of '.*' may store"):
        s["D"].compute_with(d, s["P"], p)


def test_compute_with_refuses_the_sum_that_the_loop_reads():
    work = row_statistics(4, 6)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match=r"reads S where another iteration of '.*' may store"):
        s["D"].compute_with(s["D"].op.axis[0], s["S"], s["S"].op.axis[0])


def test_a_stage_in_the_output(golden):
    s, d = rows_together(4, 6)
    s["E"].reuse_buffer(d)
    golden(te.to_text(s.func))
    row_statistics(4, 6).check(s.func)
    row_statistics(4, 6).check(lower(s.func, TARGET))


def test_reuse_buffer_refuses():
    s, d = rows_together(4, 6)
    with pytest.raises(ScheduleError, match="S cannot lie in D: it takes a stage that is no reduction"):
        s["S"].reuse_buffer(d)
    with pytest.raises(ScheduleError, match="D cannot lie in D: it takes a stage"):
        s["D"].reuse_buffer(d)
    with pytest.raises(ScheduleError, match="reuse_buffer: X is an input, not a stage"):
        s.apply("reuse_buffer", "E", "X")
    windows = te.create_schedule(chain(3, 6).output)
    windows["Q"].compute_inline()
    with pytest.raises(ScheduleError, match="or several elements of it"):
        windows["P"].reuse_buffer(windows["D"])
    again = te.create_schedule(row_statistics(1, 7).output)
    again["S"].compute_at(again["D"], again["D"].op.axis[1])
    with pytest.raises(ScheduleError, match="somebody uses it again in the loops that store the output"):
        again["E"].reuse_buffer(again["D"])
