"""What is refused before it is lowered: figures of the rolled loop nest, and what they are compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toolchain import te
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.limits import MAX_INSTRUCTIONS
from toolchain.tasks.tuning.static import ERROR, Footprint, footprint, refusal

HOST = replace(host_target(cores=2), vector_bits=256, vector_registers=16, l2_bytes=1 << 20)
FINE = Footprint(100, 12, 1000, 8)


def product(unroll: int = 1) -> te.Schedule:
    a, b = te.placeholder((12, 64), name="a"), te.placeholder((64, 32), name="b")
    k = te.reduce_axis(64, name="k")
    c = te.compute((12, 32), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    s = te.create_schedule([c], name="product", inputs=[a, b])
    acc = s.cache_write(c, "local")
    i, j = s[c].op.axis
    io, ii = s[c].split(i, factor=4)
    s[c].reorder(io, ii, j)
    s[acc].compute_at(s[c], io)
    ai, aj = s[acc].op.axis
    (ak,) = s[acc].op.reduce_axis
    ko, ki = s[acc].split(ak, factor=unroll)
    s[acc].reorder(ko, ki, ai, aj)
    jo, ji = s[acc].split(aj, factor=8)
    for axis in (ki, ai, jo):
        s[acc].unroll(axis)
    s[acc].vectorize(ji)
    s[c].parallel(io)
    return s


def test_figures_of_a_register_tile():
    f = footprint(product().func, HOST)
    assert (f.registers, f.chunks, f.scratch_bytes) == (16, 3, 0)                # 4 x 32 floats in vectors of 8
    more = footprint(product(unroll=8).func, HOST)
    assert more.registers == f.registers and f.instructions * 6 < more.instructions < f.instructions * 8


def test_scratch_of_a_lane_is_counted():
    x = te.placeholder((4, 1000), name="x")
    y = te.compute((4, 1000), lambda i, j: x[i, j] * 2.0, name="y")
    z = te.compute((4, 1000), lambda i, j: y[i, j] + 1.0, name="z")
    s = te.create_schedule([z], name="chain", inputs=[x])
    s[y].compute_at(s[z], s[z].op.axis[0])
    s[y].set_scope("lane")
    assert footprint(s.func, HOST).scratch_bytes == 4000


@pytest.mark.parametrize(("figures", "why"), [
    (FINE, ""),
    (replace(FINE, chunks=1), "work for 1 cores, the default schedule has it for 2"),
    (replace(FINE, instructions=int(ERROR * MAX_INSTRUCTIONS) + 1), "it would unroll to about 12001 instructions"),
    (replace(FINE, registers=17), "accumulators need 17 vector registers, "),
    (replace(FINE, scratch_bytes=1 << 21), "2097152 bytes of scratch per core, the second cache has 1048576"),
])
def test_what_is_hopeless_says_why(figures, why):
    assert refusal(figures, FINE, HOST).startswith(why) and bool(refusal(figures, FINE, HOST)) == bool(why)


def test_what_the_default_has_is_never_too_much():
    huge = Footprint(10**6, 99, 1 << 30, 1)
    assert refusal(huge, huge, HOST) == ""
