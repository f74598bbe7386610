"""Tables inside kernels: every value at its place, and no larger than what repeats."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain import te
from toolchain.core.rewrite import walk
from toolchain.kernels.op import table
from toolchain.te.expr import Select

TABLES = {
    "constant": [2.5] * 40, "period_of_two": [1.0, -3.0] * 30, "period_cut_short": [1.0, 2.0, 3.0] * 9 + [1.0],
    "steps": [0.0] * 20 + [1.0] * 20, "no_period": list(map(float, range(17))), "signed_zeros": [0.0, -0.0, 0.0],
    "one": [7.0], "repeats_but_for_the_last": [1.0, 2.0] * 10 + [5.0],
}


@pytest.mark.parametrize("name", TABLES)
def test_every_value_at_its_place(name: str) -> None:
    values = TABLES[name]
    t = te.compute((len(values),), lambda i: table(values, i, "float32"), name="T")
    got = te.interpret(te.create_schedule(t).func, {})["T"]
    want = np.array(values, np.float32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def test_what_repeats_is_there_once() -> None:
    i = te.reduce_axis(600, "i")
    assert sum(isinstance(n, Select) for n in walk(table([1.0, 2.0, 3.0] * 200, i, "float32"))) == 2
