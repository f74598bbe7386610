"""Loops written statement by statement: their text, their meaning in the interpreter and as code, and after each pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import run
from toolchain.te.ir_builder import STEP, IRBuilder
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.lower import lower
from toolchain.te.tensor import Placeholder, Tensor

HOST = host_target(cores=1)


def prefix_sums(n: int, most: int) -> PrimFunc:
    """Y[i] = X[0] + ... + X[i] for i below `count`, else 0."""
    x, count = te.placeholder((n,), "int64", name="X"), te.placeholder((), "int64", name="count")
    y = Tensor("Y", (n,), "int64", Placeholder())
    b = IRBuilder()
    with b.loop("z", n) as z:
        b.store(y, (z,), te.const(0, "int64"))
    total = b.variable("total", "int64", 0)
    with b.loop_up_to("i", count[()], most) as i:
        b.set(total, total.value + x[i])
        b.store(y, (i,), total.value)
    return b.function("prefix_sums", [x, count], [y])


def test_text(golden):
    golden(te.to_text(prefix_sums(20, 20)))


def test_parameters():
    func = prefix_sums(4, 4)
    assert [t.name for t in func.inputs] == ["X", "count"] and [t.name for t in func.outputs] == ["Y"]


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 3 * STEP + 2), data=st.data())
def test_interpreter_and_code_agree_with_numpy(n: int, data: st.DataObject):
    count = data.draw(st.integers(0, n))
    x = np.random.default_rng(n).integers(-9, 9, n)
    func, arrays = prefix_sums(n, n), {"X": x, "count": np.array(count)}
    want = np.where(np.arange(n) < count, np.cumsum(x), 0)
    np.testing.assert_array_equal(te.interpret(func, arrays)["Y"], want)
    np.testing.assert_array_equal(te.interpret(lower(func, HOST), arrays)["Y"], want)
    np.testing.assert_array_equal(run(func, HOST, arrays)["Y"], want)


def test_a_guard_that_reads_what_its_loop_stores_is_asked_each_time():
    """Y[i + 1] = 1 if Y[i] == 1: one iteration after the other, in the interpreter too."""
    start, y = te.placeholder((), "int64", name="start"), Tensor("Y", (9,), "int64", Placeholder())
    b = IRBuilder()
    with b.loop("z", 9) as z:
        b.store(y, (z,), te.const(0, "int64"))
    b.store(y, (0,), start[()])
    with b.loop("i", 8) as i, b.when(y[i].equal(te.const(1, "int64"))):
        b.store(y, (te.index(i) + 1,), te.const(1, "int64"))
    func = b.function("spread", [start], [y])
    for value in (0, 1):
        for made in (te.interpret(func, {"start": np.array(value)}), run(func, HOST, {"start": np.array(value)})):
            np.testing.assert_array_equal(made["Y"], np.full(9, value))


def test_parallel_iterations_may_not_share_what_they_store():
    y, b = Tensor("Y", (1,), "int64", Placeholder()), IRBuilder()
    with b.loop("i", 4, ForKind.PARALLEL) as i:
        b.store(y, (0,), te.index(i).astype("int64"))
    with pytest.raises(CodegenError, match="every iteration of parallel loop i stores to the same place of Y"):
        lower(b.function("race", [], [y]), HOST)
