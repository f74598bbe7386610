"""What a code generator is: passes after the common ones, then stages named by file extension. It makes a Kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from toolchain.core.target import Target
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import LoopPass

Made: TypeAlias = Mapping[str, "str | bytes"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step towards the binary. `run(func, symbol, made, target)` returns the content of a file with extension `ext`;
    `made` holds what the stages before it returned, by extension."""

    ext: str
    run: Callable[[PrimFunc, str, Made, Target], str | bytes]


@dataclass(frozen=True, slots=True)
class Kernel:
    """The object code of one PrimFunc, and what its caller has to know.

    phases: (function symbol, parallel extent); each is `void f(void *const *buf, int64_t lo, int64_t hi, void *scratch)` and
    may be called for any parts [lo, hi) that cover [0, extent); every part of one phase before any part of the next.
    The buffer table holds `n_params` parameters in order, then one buffer per entry of `workspace` (sizes in bytes), all
    64-byte aligned and none overlapping another. `scratch_bytes`: what each lane needs for itself while a phase runs.
    Equal kernels have equal symbols: the symbol is made of the digest.
    """

    symbol: str
    object: bytes
    phases: tuple[tuple[str, int], ...]
    n_params: int
    workspace: tuple[int, ...]
    scratch_bytes: int


class Backend(Protocol):
    """A code generator: `passes` after te.lower's common ones, `stages` (the last one makes the binary), a `version`."""

    kind: str
    version: int
    passes: tuple[LoopPass, ...]
    stages: tuple[Stage, ...]

    def kernel(self, func: PrimFunc, symbol: str, binary: bytes) -> Kernel:
        """Describe the binary of a lowered function."""
        ...


__all__ = ["Backend", "Kernel", "Made", "Stage"]
