"""Static cycles: what LLVM's model of a core says of a loop, by `llvm-mca` (Machine Code Analyzer), where it is installed.

The model knows issue, latencies and the order of retirement; no caches, no branches, no memory. It ranks inner loops whose
data is near, for a CPU that is not here, and is no clock: a report calls these figures static cycles, never a time.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.core.errors import CodegenError, MissingToolError
from toolchain.core.target import Target
from toolchain.targets.llvm.object import innermost_loops

ITERATIONS = 100                # of each loop: what begins it is then a hundredth
TIMEOUT_S = 60.0
_CYCLES = re.compile(r"^Total Cycles:\s+(\d+)", re.MULTILINE)
_COMMENT = re.compile(r"\s*//.*")
_MULTIPLY_ADD = re.compile(r"\s(?:fml[as]|vfn?m(?:add|sub)\w+|[su]?ml[as]l2?)\s")


@dataclass(frozen=True, slots=True)
class LoopCycles:
    """An innermost loop of a kernel. cycles: of one iteration; multiply_adds: vector instructions in one."""

    instructions: int
    multiply_adds: int
    cycles: float

    @property
    def per_multiply_add(self) -> float:
        return self.cycles / self.multiply_adds if self.multiply_adds else float("inf")


@functools.cache
def mca_path() -> str | None:
    """The program; None: it is not installed (Debian: the package llvm)."""
    return shutil.which("llvm-mca")


def loop_cycles(assembly: str, target: Target) -> list[LoopCycles]:
    """Every innermost loop of an `object.assembly`, in order. Raises MissingToolError, CodegenError."""
    loops = [[line for line in map(_plain, loop) if line] for loop in innermost_loops(assembly)]
    cycles = static_cycles(loops, target)
    return [LoopCycles(len(loop), sum(bool(_MULTIPLY_ADD.search(line)) for line in loop), c)
            for loop, c in zip(loops, cycles, strict=True)]


def static_cycles(loops: Sequence[Sequence[str]], target: Target) -> list[float]:
    """Cycles of one iteration of each loop, given as instructions. Raises MissingToolError, CodegenError."""
    if (program := mca_path()) is None:
        raise MissingToolError("llvm-mca is not installed: there are no static cycles",
                               fix="install LLVM's tools (Debian: apt-get install llvm)")
    if not loops:
        return []
    text = "".join(f"# LLVM-MCA-BEGIN r{n}\n" + "\n".join(loop) + "\n# LLVM-MCA-END\n" for n, loop in enumerate(loops))
    command = [program, f"-mtriple={target.triple}", f"-mcpu={target.cpu}", f"-iterations={ITERATIONS}"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise CodegenError(f"llvm-mca: no end after {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise CodegenError(f"llvm-mca failed (exit code {done.returncode}): {done.stderr.strip()[:1000]}")
    found = [int(cycles) / ITERATIONS for cycles in _CYCLES.findall(done.stdout)]
    if len(found) != len(loops):
        raise CodegenError(f"llvm-mca told of {len(found)} loops of {len(loops)}")
    return found


def _plain(line: str) -> str:
    return _COMMENT.sub("", line).rstrip()


__all__ = ["LoopCycles", "loop_cycles", "mca_path", "static_cycles"]
