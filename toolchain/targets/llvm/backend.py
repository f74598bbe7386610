"""The code generator for CPUs: loop IR -> LLVM text -> object code."""

from __future__ import annotations

from toolchain.core.target import Target
from toolchain.targets.backend import Kernel, Made, Stage
from toolchain.targets.llvm.emit import EMITTER_VERSION, emit
from toolchain.targets.llvm.limits import check_limits
from toolchain.targets.llvm.object import object_bytes
from toolchain.targets.llvm.split_tasks import round_up, size_bytes, split_tasks
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import LoopPass


class LlvmBackend:
    """The code generator for x86, AArch64, RISC-V and WebAssembly."""

    kind = "llvm"
    version = EMITTER_VERSION
    passes: tuple[LoopPass, ...] = ()

    def __init__(self) -> None:
        self.stages = (Stage("ll", _text), Stage("o", _object))

    def kernel(self, func: PrimFunc, symbol: str, binary: bytes) -> Kernel:
        """Describe the object: phases, workspace, lane scratch."""
        tasks = split_tasks(func)
        return Kernel(
            symbol=symbol,
            object=binary,
            phases=tuple((f"{symbol}_{n}", phase.parallel) for n, phase in enumerate(tasks.phases)),
            n_params=len(func.params),
            workspace=tuple(round_up(size_bytes(func, t)) for t in tasks.workspace),
            scratch_bytes=tasks.scratch_bytes,
        )


def _text(func: PrimFunc, symbol: str, made: Made, target: Target) -> str:
    check_limits(func, target)
    return emit(func, target, split_tasks(func), symbol)


def _object(func: PrimFunc, symbol: str, made: Made, target: Target) -> bytes:
    return object_bytes(str(made["ll"]), target)


LLVM = LlvmBackend()

__all__ = ["LLVM", "LlvmBackend"]
