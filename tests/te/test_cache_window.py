from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import conv2d, matmul

import toolchain.te as te
from toolchain.core.errors import ScheduleError


def chunked(m: int, n: int, k: int, tile: tuple[int, int], chunk: int) -> tuple[te.Schedule, te.Tensor, tuple]:
    work = matmul(m, n, k)
    C = work.output
    s = te.create_schedule(C)
    io, jo, ii, ji = s[C].tile("i", "j", min(tile[0], m), min(tile[1], n))
    ko, ki = s[C].split("k", min(chunk, k))
    s[C].reorder(ko, io, jo, ki, ii, ji)
    window, load, store = s.cache_window(C, "local", jo)
    work.check(s.func)
    return s, window, (ko, io, jo, load, store)


def test_a_reduction_in_chunks(golden):
    s, _, (ko, *_) = chunked(8, 8, 8, (4, 4), 4)
    golden(te.to_text(s.func))
    s["C"].partition(ko)
    golden(te.to_text(s.func), "peeled")
    matmul(8, 8, 8).check(s.func)


@given(m=st.integers(1, 9), n=st.integers(1, 9), k=st.integers(1, 9), a=st.integers(1, 9), b=st.integers(1, 9),
       c=st.integers(1, 9), peel=st.booleans())
@settings(max_examples=60)
def test_keeps_the_result(m, n, k, a, b, c, peel):
    s, _, (ko, io, jo, _, _) = chunked(m, n, k, (a, b), c)
    if peel:
        for loop in (jo, io, ko):
            s["C"].partition(loop)
    matmul(m, n, k).check(s.func)


def test_bias_is_the_start_of_the_first_chunk():
    work = conv2d(1, 4, 5, 5, 4, 3, 1, 1)
    s = te.create_schedule(work.output)
    io, ii = s["Y"].split("ic", 2)
    s["Y"].reorder(io, "n", "o", "y", ii, "kh", "kw", "x")
    s.cache_window(s["Y"].tensor, "local", "y")
    s["Y"].partition(io)
    work.check(s.func)


def test_refuses_a_loop_around_part_of_it():
    work = conv2d(1, 2, 4, 4, 2, 1, 1, 0)
    s = te.create_schedule(work.output)
    with pytest.raises(ScheduleError, match="cache_window: loop 'x_1' does not hold exactly the updates of Y"):
        s.cache_window(s["Y"].tensor, "local", "x_1")


def test_refuses_a_window_inside_of_lanes():
    """One accumulator for all lanes would turn the lanes into a sum."""
    work = matmul(2, 1, 2)
    s = te.create_schedule(work.output)
    s[work.output].vectorize("i")
    for loop in ("i", "j", "k"):
        with pytest.raises(ScheduleError, match="cache_window: 'i' is vectorized, the window of C would be computed inside"):
            s.cache_window(work.output, "local", loop)
