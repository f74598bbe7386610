"""Static cycles: what llvm-mca says of loops, and of a board's products and convolutions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from programs import program

from toolchain import te
from toolchain.core.errors import CodegenError, MissingToolError
from toolchain.targets.llvm import mca
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.object import assembly
from toolchain.targets.presets import PRESETS
from toolchain.te.lower import lower

A53 = PRESETS["cortex-a53"]


@pytest.fixture(autouse=True)
def installed() -> None:
    program("llvm-mca")
    mca.mca_path.cache_clear()


def test_cycles_of_loops_one_by_one():
    """24 sums that do not wait for each other: one a cycle. One sum: its latency. And in the order they were given."""
    many = [f"fmla v{n}.4s, v30.4s, v31.s[1]" for n in range(24)]
    one, several, none = mca.static_cycles([many[:1], many, ["add x0, x0, #1"]], A53)
    assert several == pytest.approx(24, abs=0.5) and 3 < one < 12 and none < 2
    assert mca.static_cycles([], A53) == []


def test_loops_of_a_kernel():
    a = te.placeholder((512,), name="A")
    c = te.compute((512,), lambda i: a[i] * 2.0 + 1.0, name="C")
    s = te.create_schedule(c)
    s[c].vectorize(s[c].split(c.op.axis[0], factor=4)[1])
    code = assembly(str(LLVM.stages[0].run(lower(s.func, A53, LLVM.passes), "k", {}, A53)), A53)
    (loop,) = mca.loop_cycles(code, A53)
    assert loop.multiply_adds == 1 and loop.instructions >= 5 and loop.cycles >= 3
    assert loop.per_multiply_add == loop.cycles


def test_what_it_cannot_read_is_said():
    with pytest.raises(CodegenError, match=r"llvm-mca failed \(exit code 1\): .*error: "):
        mca.static_cycles([["vfmadd231ps %zmm0, %zmm1, %zmm2"]], A53)


def test_a_machine_without_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingToolError, match="llvm-mca is not installed"):
        mca.static_cycles([["nop"]], A53)


def test_inner_loops_of_products_and_direct_convolutions(monkeypatch):
    """At most 1.5 static cycles per multiply-add on a Cortex-A53, and no vector on the stack."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from a53 import lines

    found = {}
    for line in lines(A53):
        if (m := re.match(r"  (\S.{30,32}?) +\d+ +(\d+) +(\d+) +([\d.]+) +([\d.]+)$", line)) and m[1].strip() not in found:
            found[m[1].strip()] = int(m[3]), float(m[5])
    assert len(found) >= 9
    for name, (spilled, cycles) in found.items():
        if "default" in name or re.match(r"\dx\d,", name):
            assert cycles <= 1.5 and not spilled, name
