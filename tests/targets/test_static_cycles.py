"""Static cycles of whole kernels: how often blocks run, what they are in the machine code, sums that grow with work."""

from __future__ import annotations

import pytest
from programs import program

from toolchain import te
from toolchain.targets.base import backend
from toolchain.targets.llvm import mca
from toolchain.targets.llvm.object import assembly
from toolchain.targets.llvm.static_cycles import code_blocks, emitted, kernel_cycles, run_counts
from toolchain.targets.presets import PRESETS
from toolchain.tasks.tuning.static_cost import static_cost
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import lower

A53 = PRESETS["cortex-a53"]


@pytest.fixture(autouse=True)
def installed() -> None:
    program("llvm-mca")
    mca.mca_path.cache_clear()


def product(m: int = 16, n: int = 32, k: int = 24, rows: int = 4) -> te.Schedule:
    a, b = te.placeholder((m, k), name="a"), te.placeholder((k, n), name="b")
    r = te.reduce_axis(k, name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    s = te.create_schedule([c], name="product", inputs=[a, b])
    acc = s.cache_write(c, "local")
    io, jo, ii, ji = s[c].tile(*s[c].op.axis, rows, 8)
    s[acc].compute_at(s[c], jo)
    i, j = s[acc].op.axis
    jv, jl = s[acc].split(j, factor=4)
    s[acc].reorder(s[acc].op.reduce_axis[0], i, jv, jl)
    for axis in (i, jv):
        s[acc].unroll(axis)
    s[acc].vectorize(jl)
    s[c].unroll(ii)
    s[c].vectorize(ji)
    s[c].parallel(io)
    return s


def lowered(s: te.Schedule) -> PrimFunc:
    return lower(s.func, A53, backend(A53).passes)


def test_how_often_blocks_run():
    """The parallel loop 4 times, columns 4, the sum 24; and every loop is found again in the machine code."""
    text, extents = emitted(lowered(product()), A53)
    counts = run_counts(text, extents)
    headers = sorted(count for (_, name), count in counts.items() if name.startswith("h"))
    assert max(headers) == 4 * 4 * 24 and {4, 16} <= set(headers)
    assert counts["k_0.task", "run"] == counts["k_0.task", "done"] == 1
    blocks = list(code_blocks(assembly(text, A53)))
    found = {(b.function, b.name) for b in blocks}
    assert {key for key in counts if key[1].startswith("h")} <= found
    (inner,) = (b for b in blocks if counts.get((b.function, b.name)) == 4 * 4 * 24)
    assert sum("fmla" in line for line in inner.instructions) == 4 * 2
    assert all("//" not in line for b in blocks for line in b.instructions)


def test_cycles_grow_with_work_in_every_dimension():
    def cycles(**extents: int) -> float:
        return kernel_cycles(lowered(product(**extents)), A53)
    usual = cycles()
    assert usual >= 16 * 32 * 24 / 4                            # a multiply-add of four lanes a cycle at the most
    for more in ({"m": 32}, {"n": 64}, {"k": 48}):
        assert 1.7 * usual < cycles(**more) < 2.1 * usual


def test_a_worse_schedule_costs_more():
    """One row at a time: every multiply-add waits for the one before it, and each value of b is read for one row only."""
    good, bad = static_cost(product(rows=8).func, A53), static_cost(product(rows=1).func, A53)
    assert bad.compute > 1.5 * good.compute and bad.cycles > good.cycles
    assert good.cycles == good.compute + sum(size / rate for size, rate in good.moved)
