"""What `tc tune` optimizes where nothing can be timed: static cycles, a declared cost and never a time.

    compute     llvm-mca's cycles of every block of the kernel's code, times how often it runs  targets/llvm/static_cycles.py
    moved       bytes that the loop nest moves into L1 and L2, by a cache model                 te/tune/traffic.py
    cycles      compute + bytes into L1 / what L2 gives per cycle + bytes into L2 / what memory gives per cycle

The sum is an in-order core's, which waits for what it loads; a core that reorders hides the smaller of the two behind the
larger one. Sizes and bytes per cycle are facts of the Target. Of one run on one core, from empty caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.targets.base import backend
from toolchain.targets.llvm.static_cycles import kernel_cycles
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.tuning.candidates import scheduled
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower import lower
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.traffic import traffic_bytes

EXPLAINED = "llvm-mca, cache model"


@dataclass(frozen=True, slots=True)
class StaticCost:
    """compute: cycles; moved: (bytes into a cache, bytes per cycle that feed it), from L1 outwards."""

    compute: float
    moved: tuple[tuple[float, float], ...]
    in_order: bool

    @property
    def cycles(self) -> float:
        waits = sum(size / rate for size, rate in self.moved)
        return self.compute + waits if self.in_order else max(self.compute, waits)


def static_cost(func: PrimFunc, target: Target) -> StaticCost:
    """Of a scheduled function. Raises MissingToolError: llvm-mca is not installed; CodegenError."""
    compute = kernel_cycles(lower(func, target, backend(target).passes), target)
    levels = [(target.l1d_bytes, target.l2_bytes_per_cycle)]
    if target.l3_bytes:
        levels += [(target.l2_bytes, target.l3_bytes_per_cycle), (target.l3_bytes, target.memory_bytes_per_cycle)]
    else:
        levels += [(target.l2_bytes, target.memory_bytes_per_cycle)]
    moved = traffic_bytes(func, [size for size, _ in levels], target.line_bytes)
    return StaticCost(compute, tuple(zip(moved, (rate for _, rate in levels), strict=True)), target.in_order)


def candidate_cost(body: Graph, target: Target, answers: Mapping[str, str]) -> StaticCost:
    """Of one point of a kernel's space. Raises ScheduleError, CodegenError, MissingToolError."""
    return static_cost(scheduled(body, target, answers).func, target)


def workload_cost(body: Graph, target: Target, tuned: Mapping[str, str]) -> tuple[str, StaticCost]:
    """(symbol, cost) of the kernel that a build makes of a canonical body."""
    symbol, func = as_built(body, target, tuned)
    return symbol, static_cost(func, target)


def as_built(body: Graph, target: Target, tuned: Mapping[str, str] | None = None) -> tuple[str, PrimFunc]:
    """(symbol, scheduled function) of the kernel that a build makes of a canonical body."""
    kernel, facts = compile_workload(body, target, tuned)
    sketch = next(s for s in SKETCHES if s.__name__ == facts["sketch"])
    return kernel.symbol, schedule(body, target, sketch, Choices(facts["answers"])).func


__all__ = ["EXPLAINED", "StaticCost", "as_built", "candidate_cost", "static_cost", "workload_cost"]
