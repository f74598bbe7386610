from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from te_workloads import conv2d, matmul

import toolchain.te as te
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.te.lower import lower


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


def test_refuses_a_window_with_gaps():
    """Every fourth row is updated: storing the rows between them would undo what other iterations store."""
    work = matmul(6, 3, 2)
    s = te.create_schedule(work.output)
    outer, inner = s[work.output].split("i", 4)
    s[work.output].reorder(inner, outer)
    with pytest.raises(ScheduleError, match="cache_window: in loop 'i_1' the updates of C store only some places"):
        s.cache_window(work.output, "local", inner)
    s.cache_window(work.output, "local", outer)
    work.check(s.func)


def test_refuses_a_guard_that_is_not_the_edge():
    """Tiles of three rows padded to four: the fourth belongs to the next tile."""
    work = matmul(9, 3, 2)
    s = te.create_schedule(work.output)
    outer, inner = s[work.output].split("i", 3)
    s[work.output].split(inner, 2)
    with pytest.raises(ScheduleError, match="cache_window: in loop 'i_0' the updates of C store only some places"):
        s.cache_window(work.output, "local", outer)


def test_a_guard_of_the_reduction_keeps_the_window_as_it_is():
    """A padded reduction loop around the window: iterations past its end must not change what they store back."""
    X = te.placeholder((5, 3), name="X")
    k = te.reduce_axis(3, "k")
    Y = te.compute((5,), lambda i: te.max(X[i, k], axis=k), name="Y")
    s = te.create_schedule(Y)
    _, inner = s[Y].split(k, 4)
    s.cache_window(Y, "lane", inner)
    x = np.random.default_rng(0).integers(-4, 5, (5, 3)).astype(np.float32)
    for func in (s.func, lower(s.func, Target("test", "x86"))):
        np.testing.assert_array_equal(te.interpret(func, {"X": x})["Y"], x.max(1))
