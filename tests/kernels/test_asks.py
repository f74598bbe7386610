"""Questions that the stages of a kernel share: asked once, and only where there is something to choose."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolchain.kernels.sketches.asks import VECTORS, Asks
from toolchain.te.tune.choices import Choices


def test_each_question_is_asked_once_and_known_to_all_stages():
    choices = Choices({"vectors": "2", "unroll": "4"})
    asks = Asks(choices)
    assert (asks.vectors(), asks.vectors(), asks.unroll(128, 16), asks.unroll(64, 16)) == (2, 2, 4, 2)
    assert list(choices.asked) == ["vectors", "unroll"]


def test_nothing_is_asked_where_there_is_no_choice():
    choices = Choices({"unroll": "8", "square": "4"})
    asks = Asks(choices)
    assert asks.unroll(16, 16) == asks.unroll(17, 16) == asks.unroll(5, 1) == 1 and asks.square([8]) == 8
    assert not choices.asked


def test_the_defaults_change_nothing():
    asks = Asks(Choices())
    assert (asks.vectors(), asks.unroll(1 << 20, 16), asks.square([16, 8, 4]), asks.square([8, 4])) == (VECTORS, 1, 16, 8)


@given(st.integers(1, 4096), st.sampled_from((1, 4, 8, 16)), st.sampled_from(("1", "2", "4", "8")))
def test_unrolling_leaves_no_tail(extent, lanes, answer):
    assert extent % (lanes * (n := Asks(Choices({"unroll": answer})).unroll(extent, lanes))) == 0 or n == 1
