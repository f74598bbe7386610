"""Quantizing without a division: every level as a division gives it, also at the numbers where levels change."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain import te
from toolchain.core.target import Target
from toolchain.te.lower import lower
from toolchain.te.lower.divide_levels import reciprocal

STEPS = st.floats(2.0**-60, 2.0**60, width=32, allow_subnormal=False)


@given(step=STEPS, zero=st.integers(0, 255), level=st.integers(0, 255), ulps=st.integers(-6, 6), half=st.booleans())
def test_levels_are_those_of_a_division(step, zero, level, ulps, half):
    """In exact arithmetic, rounded to float32 where the kernel rounds."""
    found = reciprocal(step, -zero * step, (255 - zero) * step)
    if found is None:
        return
    main, rest = found
    x = np.float32((level - zero + 0.5 * half) * step)
    for _ in range(abs(ulps)):
        x = np.nextafter(x, np.float32(np.copysign(np.inf, ulps)))
    if not np.float32(-zero * step) <= x <= np.float32((255 - zero) * step):
        return
    low = np.float32(float(x) * rest)                           # of a product of 48 bits: rounded once
    exact = Fraction(float(x)) * Fraction(main) + Fraction(float(low))
    assert round(Fraction(float(nearest(exact)))) == round(Fraction(float(x / np.float32(step))))


def nearest(exact: Fraction) -> np.float32:
    """The float32 number next to it, halves to even."""
    near = np.float32(float(exact))
    candidates = [near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


@pytest.mark.parametrize("step", [2.0**-110, 2.0**110, 0.0, -1.0, float("nan"), float("inf")])
def test_other_steps_are_divided_by(step):
    assert reciprocal(step, -128 * step, 127 * step) is None


def test_many_levels_are_divided_for():
    assert reciprocal(0.01, -327.68, 327.67) is None


@pytest.mark.parametrize("fuses", [True, False])
def test_the_division_goes_where_products_fuse(fuses):
    x = te.placeholder((64,), name="x")
    step = float(np.float32(0.07))
    y = te.compute((64,), lambda i: te.round(te.minimum(te.maximum(x[i], -128 * step), 127 * step) / step), name="y")
    func = lower(te.create_schedule(y).func, Target("test", "x86", has_fma=fuses))
    assert ("/0.07" in te.to_text(func)) == (not fuses)
    values = np.linspace(-12, 12, 64, dtype=np.float32)
    want = np.rint(np.clip(values, np.float32(-128 * step), np.float32(127 * step)) / np.float32(step))
    np.testing.assert_array_equal(te.interpret(func, {"x": values})["y"], want)
