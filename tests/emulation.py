"""Kernels of boards called in this process, on an emulated Cortex-A53 (PyPI `unicorn`), as `load` calls the host's.

A kernel is linked as in an artifact, so that it imports nothing, and laid out in the emulator's memory. Every buffer has
pages of its own: it ends where its last page does (to the alignment that the code may rely on), what it only reads cannot be
written, and an access outside of all of them, or an instruction the CPU does not have, raises Fault.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, UC_PROT_EXEC, UC_PROT_READ, UC_PROT_WRITE, Uc, UcError
from unicorn.arm64_const import (
    UC_ARM64_REG_LR,
    UC_ARM64_REG_PC,
    UC_ARM64_REG_SP,
    UC_ARM64_REG_X0,
    UC_ARM64_REG_X1,
    UC_ARM64_REG_X2,
    UC_ARM64_REG_X3,
    UC_CPU_ARM64_A53,
    UC_CPU_ARM64_MAX,
)

from toolchain.core.dtype import to_numpy
from toolchain.core.target import Target
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.link import LINK_FLAGS, run_zig
from toolchain.te.loop_ir import PrimFunc

PAGE = 4096
CODE, STACK, RETURN, BUFFERS = 0x10_0000, 0x7000_0000, 0x7FFF_0000, 0x1_0000_0000
STACK_BYTES = 1 << 20                   # as a worker thread has: STACK_BYTES in runtime/sys.h
_ARGUMENTS = (UC_ARM64_REG_X0, UC_ARM64_REG_X1, UC_ARM64_REG_X2, UC_ARM64_REG_X3)
_RELATIVE = 1027                        # R_AARCH64_RELATIVE


class Fault(Exception):
    """The code did what the CPU cannot, or touched what is not its own."""


class Machine:
    """An emulated Cortex-A53 with a shared library in its memory."""

    def __init__(self, library: bytes, cpu: int = UC_CPU_ARM64_A53) -> None:
        self._uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self._uc.ctl_set_cpu_model(cpu)
        self.symbols = {name: CODE + at for name, at in _symbols(library)}
        self._uc.mem_map(CODE, _round_up(max(at + size for at, _, size, _ in _segments(library)), PAGE),
                         UC_PROT_READ | UC_PROT_EXEC)
        for at, data, _, _ in _segments(library):
            self._uc.mem_write(CODE + at, data)
        for at, value in _relocations(library):
            self._uc.mem_write(CODE + at, struct.pack("<Q", CODE + value))
        self._uc.mem_map(STACK, STACK_BYTES, UC_PROT_READ | UC_PROT_WRITE)
        self._end = BUFFERS

    def place(self, data: bytes, *, alignment: int = 64, writable: bool = True) -> int:
        """The address of a copy of `data` that ends with its last page, less what alignment takes; a gap on either side."""
        size = _round_up(max(len(data), 1), alignment)
        pages = _round_up(size, PAGE)
        first = self._end + PAGE
        self._uc.mem_map(first, pages, UC_PROT_READ | (UC_PROT_WRITE if writable else 0))
        at = first + pages - size
        self._uc.mem_write(at, data)
        self._end = first + pages
        return at

    def read(self, at: int, size: int) -> bytes:
        return bytes(self._uc.mem_read(at, size))

    def call(self, symbol: str, *arguments: int) -> None:
        """A function of up to four integers. Raises Fault."""
        for register, value in zip(_ARGUMENTS, arguments):
            self._uc.reg_write(register, value)
        self._uc.reg_write(UC_ARM64_REG_SP, STACK + STACK_BYTES)
        self._uc.reg_write(UC_ARM64_REG_LR, RETURN)
        try:
            self._uc.emu_start(self.symbols[symbol], RETURN)
        except UcError as error:
            pc = self._uc.reg_read(UC_ARM64_REG_PC)
            raise Fault(f"{error} in {symbol} at +{pc - self.symbols[symbol]:#x}") from None


class EmulatedKernel:
    """A kernel on an emulated machine; called as a LoadedKernel: all phases on the parameters' storage."""

    def __init__(self, kernel: Kernel, func: PrimFunc, target: Target | None = None) -> None:
        """func: what the kernel was compiled from (which of its buffers it reads, and how they are aligned). target: one
        newer than a Cortex-A53 runs on a CPU that has everything the emulator knows."""
        self.cpu = UC_CPU_ARM64_MAX if target is not None and target.has("dotprod") else UC_CPU_ARM64_A53
        self.kernel, self.func = kernel, func
        self.library = linked(kernel.object, [symbol for symbol, _ in kernel.phases])

    def __call__(self, *buffers: np.ndarray) -> None:
        machine = Machine(self.library, self.cpu)
        at = []
        for tensor, buffer in zip(self.func.params, buffers, strict=True):
            plain = self.func.buffers[tensor].type.layout.is_row_major
            at.append(machine.place(buffer.tobytes(), alignment=buffer.dtype.itemsize if plain else 64,
                                    writable=tensor in self.func.outputs))
        at += [machine.place(bytes(size)) for size in self.kernel.workspace]
        table = machine.place(struct.pack(f"<{len(at)}Q", *at), alignment=8, writable=False)
        scratch = machine.place(bytes(self.kernel.scratch_bytes))
        for symbol, extent in self.kernel.phases:
            machine.call(symbol, table, 0, extent, scratch)
        for place, buffer in zip(at, buffers):
            buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(machine.read(place, buffer.nbytes), np.uint8)


def run(func: PrimFunc, target: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `targets.llvm.load.run`, on the emulated machine."""
    kernel = EmulatedKernel(compile_kernel(func, target), func)
    types = {t.name: func.buffers[t].type for t in func.params}
    storage = {name: np.zeros(type.layout.size(type.shape), to_numpy(type.dtype)) for name, type in types.items()}
    for t in func.inputs:
        storage[t.name][:] = types[t.name].layout.pack(np.asarray(arrays[t.name])).reshape(-1)
    kernel(*(storage[t.name] for t in func.params))
    return {t.name: types[t.name].layout.unpack(storage[t.name], types[t.name].shape) for t in func.outputs}


def linked(code: bytes, exports: Sequence[str]) -> bytes:
    """A shared library of one object. Raises CodegenError: it needs something from elsewhere."""
    with tempfile.TemporaryDirectory(prefix="tc-emulated-") as folder:
        path = Path(folder)
        (path / "k.o").write_bytes(code)
        (path / "exports.map").write_text(f"{{ global: {' '.join(f'{e};' for e in exports)} local: *; }};\n")
        run_zig(["ld.lld", *LINK_FLAGS, "--version-script=exports.map", "-o", "k.so", "k.o"], path, what="linking failed")
        return (path / "k.so").read_bytes()


# --- ELF -------------------------------------------------------------------------------------------------------------------

def _segments(elf: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """(address, content, size in memory, flags) of what is loaded."""
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    for n in range(count):
        kind, flags, offset, at, _, stored, room, _ = struct.unpack_from("<IIQQQQQQ", elf, table + n * size)
        if kind == 1:
            yield at, elf[offset:offset + stored], room, flags


def _sections(elf: bytes, wanted: int) -> Iterator[tuple[bytes, bytes]]:
    """(content, content of the section it links to) of the sections of one type."""
    table, size, count = struct.unpack_from("<Q", elf, 40)[0], *struct.unpack_from("<HH", elf, 58)
    heads = [struct.unpack_from("<IIQQQQIIQQ", elf, table + n * size) for n in range(count)]
    for _, kind, _, _, offset, length, link, *_ in heads:
        if kind == wanted:
            _, _, _, _, there, long, *_ = heads[link]
            yield elf[offset:offset + length], elf[there:there + long]


def _symbols(elf: bytes) -> Iterator[tuple[str, int]]:
    for symbols, names in _sections(elf, 11):                           # SHT_DYNSYM
        for name, _, _, _, value, _ in struct.iter_unpack("<IBBHQQ", symbols):
            yield names[name:names.index(0, name)].decode(), value


def _relocations(elf: bytes) -> Iterator[tuple[int, int]]:
    for entries, _ in _sections(elf, 4):                                # SHT_RELA
        for at, info, value in struct.iter_unpack("<QQq", entries):
            assert info & 0xFFFFFFFF == _RELATIVE, "a kernel refers to itself only"
            yield at, value


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to
