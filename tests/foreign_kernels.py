"""Kernels for what this machine is not, called as `load` calls the host's: an artifact of one call is made of each, and run.

QemuKernel: by the boards' own program, on an emulated CPU. Inputs and outputs end at pages that nobody may touch. The CPU
has what the target demands and no extension more, as far as qemu can do without: other instructions are a fault.
WasmKernel: in wasmtime, which validates the module before.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from programs import program

from toolchain.core.target import Target
from toolchain.remote.board import Board
from toolchain.remote.model import RemoteModel, upload_artifact
from toolchain.remote.session import Session
from toolchain.remote.transport import LocalTransport
from toolchain.targets.backend import Kernel
from toolchain.targets.features import with_features
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.plan import Call, Plan, Slot, Value
from toolchain.targets.llvm.runner_program import machine_of, runner_program
from toolchain.targets.llvm.wasm_module import WasmModule
from toolchain.targets.presets import PRESETS
from toolchain.te.loop_ir import PrimFunc

_RV64 = "qemu-riscv64-static -cpu rv64,zba=false,zbb=false,zbc=false,zbs=false"
# (target, how it is emulated): without vectors; with the least vectors, and on registers twice as long; with those demanded
RISCV = {
    "rv64gc": (PRESETS["rv64gc"], "qemu-riscv64-static -cpu sifive-u54"),
    "rv64gcv": (PRESETS["rv64gcv"], f"{_RV64},v=true,vlen=128"),
    "rv64gcv on 256 bits": (PRESETS["rv64gcv"], f"{_RV64},v=true,vlen=256"),
    "rv64gcv, zvl256b": (with_features(PRESETS["rv64gcv"], ("+zvl256b",)), f"{_RV64},v=true,vlen=256"),
}


# vfcvt.rtz, vfwcvt.rtz, vfncvt.rtz: funct6, two bits of vs1, funct3, opcode (RISC-V "V" 1.0, 13.17 to 13.19)
_RTZ_MASK, _RTZ = 0xFC03707F, 0x48031057


@functools.cache
def _qemu_version() -> int:
    said = subprocess.run([program("qemu-riscv64-static"), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)", said)
    assert found, said
    return int(found.group(1))


def cannot_be_emulated(code: bytes) -> bool:
    """Whether it may hold a conversion that QEMU before 8.0 (Debian 12: 7.2) ends at: decode_save_opc, Assertion failed."""
    words = (int.from_bytes(code[at:at + 4], "little") for at in range(0, len(code) - 3, 2))
    return _qemu_version() < 8 and any(word & _RTZ_MASK == _RTZ for word in words)


@contextmanager
def emulated_session(target: Target, exec_prefix: str, folder: Path) -> Iterator[Session]:
    program(exec_prefix.split()[0])
    board = Board("emulated", "local", folder=str(folder), exec_prefix=exec_prefix)
    with Session(board, LocalTransport(), runner_program(machine_of(target))) as session:
        yield session


class ArtifactKernel(ABC):
    """Called as a LoadedKernel: all phases on the parameters' storage."""

    def __init__(self, kernel: Kernel, func: PrimFunc, target: Target) -> None:
        self.kernel, self.func, self.target = kernel, func, target

    def __call__(self, *buffers: np.ndarray) -> None:
        func, places, arena = self.func, [], 0
        values: dict[str, list[Value]] = {"input": [], "output": []}
        for tensor in func.params:
            segment = "output" if tensor in func.outputs else "input"
            size = func.buffers[tensor].type.layout.size(tensor.shape)
            places.append(Slot(segment, len(values[segment])))
            values[segment].append(Value(tensor.name, tensor.dtype, (size,)))
        for size in self.kernel.workspace:
            places.append(Slot("arena", arena))
            arena += size
        call = Call("k", self.kernel.phases, tuple(places), name="k")
        plan = Plan("kernel", tuple(values["input"]), tuple(values["output"]), (call,), arena_bytes=arena,
                    scratch_bytes=self.kernel.scratch_bytes)
        given = [b for t, b in zip(func.params, buffers, strict=True) if t not in func.outputs]
        made = [b for t, b in zip(func.params, buffers, strict=True) if t in func.outputs]
        with tempfile.TemporaryDirectory(prefix="tc-emulated-") as temporary:
            folder = Path(temporary)
            write_artifact(folder, "kernel", [plan], {"k": self.kernel.object}, b"", self.target)
            for buffer, data in zip(made, self.run(folder, plan, given), strict=True):
                buffer.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)

    @abstractmethod
    def run(self, folder: Path, plan: Plan, given: Sequence[np.ndarray]) -> list[bytes]:
        """What the artifact in `folder` makes of its inputs."""


class QemuKernel(ArtifactKernel):
    def __init__(self, kernel: Kernel, func: PrimFunc, target: Target, session: Session) -> None:
        super().__init__(kernel, func, target)
        self.session = session

    def run(self, folder: Path, plan: Plan, given: Sequence[np.ndarray]) -> list[bytes]:
        names = upload_artifact(self.session, folder / "libkernel.so", folder / "weights.bin")
        with RemoteModel(self.session, 0, *names, threads=2) as model:
            model.set_inputs([buffer.tobytes() for buffer in given])
            model.run()
            return [model.output(n)[1] for n in range(len(plan.outputs))]


class WasmKernel(ArtifactKernel):
    def run(self, folder: Path, plan: Plan, given: Sequence[np.ndarray]) -> list[bytes]:
        with WasmModule.load(folder) as module:
            made = module.run({v.name: buffer for v, buffer in zip(plan.inputs, given, strict=True)})
        return [made[v.name].tobytes() for v in plan.outputs]
