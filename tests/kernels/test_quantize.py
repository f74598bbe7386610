"""Quantizing by a constant step: every level as a division gives it, also at the numbers where levels change."""

from __future__ import annotations

import numpy as np
import pytest
from running import BOARD, RUNNABLE, compiled, defined, one_node

from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.object import assembly
from toolchain.te.lower import lower


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


@pytest.mark.parametrize("count", [1024, 1021])
@pytest.mark.parametrize("kind, zero", [
    ("int8", 0), ("int8", 3), ("int8", -128), ("int8", 127), ("uint8", 0), ("uint8", 255)])
def test_levels_by_instructions_that_saturate(kind, zero, count):
    """On a board: every tie and its neighbours, what leaves 8, 16, 24 and 32 bits, and infinities; a ragged end."""
    limits = np.iinfo(kind)
    ties = (np.arange(limits.min - 130, limits.max + 130) + 0.5 - zero).astype(np.float32)
    far = np.concatenate([2.0**np.arange(8, 40), 2.0**np.arange(8, 40) - 1, [np.inf, 1e38]]).astype(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)), far, -far])
    x = np.resize(x, 2 * count).reshape(2, count)
    body, arrays = one_node("QuantizeLinear", [x, np.float32(1), np.asarray(zero, kind)], constants=(1, 2))
    want = np.clip(np.rint(x.astype(np.float64)) + zero, limits.min, limits.max).astype(kind)
    np.testing.assert_array_equal(compiled(body, arrays, BOARD)[0], want)
    lowered = lower(schedule(body, BOARD, sketch).func, BOARD, LLVM.passes)
    code = assembly(str(LLVM.stages[0].run(lowered, "k", {}, BOARD)), BOARD)
    assert "fcvtns" in code and ("sqxtn" if kind == "int8" else "sqxtun") in code and ("frintn" in code) == (count % 4 > 0)
