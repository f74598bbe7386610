"""Quantizing by a constant step: every level as a division gives it, also at the numbers where levels change."""

from __future__ import annotations

import numpy as np
import pytest
from running import RUNNABLE, compiled, defined, one_node


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("kind, step, zero", [
    ("uint8", 0.0695303529, 128), ("int8", 3.7e-5, -3), ("uint8", 0.25, 0), ("int8", 41.3, 0), ("uint8", 1.1754944e-38, 5)])
def test_kernels_quantize_as_a_division_does(kind, step, zero, target):
    limits, scale = np.iinfo(kind), np.float32(step)
    halves = ((np.arange(limits.min - 2, limits.max + 3) + 0.5 - zero) * step).astype(np.float32)
    x = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), np.nextafter(halves, np.float32(-np.inf)),
                        np.asarray([np.inf, -np.inf, 1e38, -1e38, 0, -0.0, 1e-45], np.float32)])
    body, arrays = one_node("QuantizeLinear", [x, scale, np.asarray(zero, kind)], constants=(1, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        want = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(kind)
    np.testing.assert_array_equal(compiled(body, arrays, target)[0], want)
    np.testing.assert_array_equal(defined(body, arrays)[0], want)
