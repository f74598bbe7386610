"""Code for boards: what the emulated Cortex-A53 catches, and what cross-compiled artifacts are."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from emulation import Fault, Machine, linked, run
from small_plans import own_store

from toolchain import te
from toolchain.core.errors import DeviceError
from toolchain.targets.fingerprint import host_kind
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.link import compile_c
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Plan
from toolchain.targets.presets import PRESETS

__all__ = ["own_store"]

BOARD = PRESETS["cortex-a53"]
# One instruction each, of what came after Armv8.0
NEWER = {"sdot v0.4s, v1.16b, v2.16b": 0x4E829420, "fadd v0.8h, v1.8h, v2.8h": 0x4E421420, "casal x0, x1, [sp]": 0xC8E0FFE1,
         "ptrue p0.s": 0x2598E3E0, "sqrdmlah v0.4s, v1.4s, v2.4s": 0x6E828420, "bfdot v0.4s, v1.8h, v2.8h": 0x6E42FC20}


def machine(text: str) -> Machine:
    """A machine with C code in it."""
    return Machine(linked(compile_c(f"#define PUBLIC __attribute__((visibility(\"default\")))\n{text}", BOARD, name="f.c",
                                    includes={}), ["f"]))


@pytest.mark.parametrize("word", NEWER.values(), ids=NEWER)
def test_an_instruction_that_the_board_lacks_is_caught(word: int):
    with pytest.raises(Fault, match=r"\+0x0"):
        machine(f"PUBLIC __attribute__((naked)) void f(void) {{ __asm__(\".inst {word}\\n ret\"); }}").call("f")


def test_what_armv8_0_has_is_no_fault():
    machine('PUBLIC __attribute__((naked)) void f(void) { __asm__("fmla v0.4s, v1.4s, v2.s[3]\\n ret"); }').call("f")


@pytest.mark.parametrize(("at", "message"), [(-1, "READ_UNMAPPED"), (3, "READ_UNMAPPED"), (0, None), (2, None)])
def test_reads_beyond_a_buffer_are_caught(at: int, message: str | None):
    """Three floats: nothing before the page they begin in, nothing after the last one."""
    emulated = machine("PUBLIC float f(const float *a, long n) { return *(volatile const float *)(a + n); }")
    place = emulated.place(struct.pack("<3f", 1, 2, 3), alignment=4)
    offset = at if at >= 0 else -(place % 4096) // 4 - 1
    if message is None:
        emulated.call("f", place, offset)
    else:
        with pytest.raises(Fault, match=message):
            emulated.call("f", place, offset & (1 << 64) - 1)


def test_writes_to_an_input_are_caught():
    emulated = machine("PUBLIC void f(float *a) { *a = 1; }")
    emulated.call("f", emulated.place(bytes(4)))
    with pytest.raises(Fault, match="WRITE_PROT"):
        emulated.call("f", emulated.place(bytes(4), writable=False))


def test_constants_of_a_kernel_are_found_in_its_library():
    """Coefficients of a polynomial, lanes of a ramp: loaded relative to the code."""
    a = te.placeholder((37,), name="A")
    c = te.compute((37,), lambda i: te.erf(a[i]) + te.exp(a[i]), name="C")
    s = te.create_schedule(c)
    s[c].vectorize(s[c].split(c.op.axis[0], factor=4)[1])
    x = np.linspace(-3, 3, 37, dtype=np.float32)
    np.testing.assert_allclose(run(s.func, BOARD, {"A": x})["C"], te.interpret(s.func, {"A": x})["C"], rtol=1e-6)


ELF_MACHINES = {"aarch64": 183, "riscv64": 243}           # EM_AARCH64, EM_RISCV


@pytest.mark.parametrize("name", [name for name, t in PRESETS.items() if t.kind in ELF_MACHINES])
def test_an_artifact_for_a_board_is_an_elf_of_its_own_and_refused_here(name: str, tmp_path):
    write_artifact(tmp_path, "net", (Plan("net", (), (), ()),), {}, b"", PRESETS[name])
    library = (tmp_path / "libnet.so").read_bytes()
    kind = PRESETS[name].kind
    assert library[:5] == b"\x7fELF\x02" and struct.unpack_from("<H", library, 18) == (ELF_MACHINES[kind],)
    assert len(library) < 50_000
    if host_kind() != kind:
        with pytest.raises(DeviceError, match=f"artifact for {kind}; this machine is "):
            Module.load(tmp_path)
