"""Kernels run many times over on several threads: the result of one run on one, phase by phase."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from toolchain import te
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import LoadedKernel, aligned, load
from toolchain.targets.llvm.repeat import Lanes, Repeated
from toolchain.te.ir_builder import IRBuilder
from toolchain.te.loop_ir import ForKind

HOST = host_target(cores=2)
ROWS, COLUMNS = 37, 8


def two_phases() -> LoadedKernel:
    """m[i] = x[i] + 1, then y[i] = m[ROWS - 1 - i] + y[i]: the second phase reads what other lanes wrote in the first."""
    x, y = (te.placeholder((ROWS, COLUMNS), name=name) for name in "xy")
    m = te.placeholder((ROWS, COLUMNS), name="m")
    b = IRBuilder()
    with b.loop("i", ROWS, kind=ForKind.PARALLEL) as i, b.loop("j", COLUMNS) as j:
        b.store(m, (i, j), x[i, j] + te.const(1.0, "float32"))
    with b.loop("i2", ROWS, kind=ForKind.PARALLEL) as i, b.loop("j2", COLUMNS) as j:
        b.store(y, (i, j), y[i, j] + m[ROWS - 1 - i, j])
    loaded = load(compile_kernel(b.function("two_phases", inputs=[x], outputs=[m, y]), HOST))
    assert len(loaded.phases) == 2
    return loaded


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_every_run_is_whole_and_lanes_meet_behind_each_phase(lanes):
    loaded = two_phases()
    copies = [[aligned(ROWS * COLUMNS, "float32") for _ in "xmy"] for _ in range(3)]
    for n, (x, _, _) in enumerate(copies):
        x[:] = np.arange(x.size) + 1000 * n
    with Lanes(lanes) as team:
        repeated = Repeated(loaded, copies, [], [aligned(64) for _ in range(lanes)])
        team.run(repeated, 300)
        team.run(repeated, 0)
        team.run(repeated, 2, first=1)
    for (x, m, y), runs in zip(copies, (100, 101, 101), strict=True):
        np.testing.assert_array_equal(m, x + 1)
        np.testing.assert_array_equal(y.reshape(ROWS, COLUMNS), runs * (x + 1).reshape(ROWS, COLUMNS)[::-1])


def test_threads_end_with_their_block():
    before = threading.active_count()
    with Lanes(3):
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
