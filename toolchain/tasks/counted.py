"""What can be said of an artifact on an emulated device: instructions and static cycles of its kernels, counted, not run.

    instructions    of each block of machine code, times how often it runs     targets/llvm/static_cycles.py
    static cycles   those of `tc tune` there: llvm-mca's, and a cache model's   tasks/tuning/static_cost.py

Of one run on one thread; any number executes as many. Of the runtime between kernels, and of copies, nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.graph.serialize import from_json
from toolchain.kernels.build import anchor_name
from toolchain.report.facts import CountedKernel
from toolchain.targets.base import backend
from toolchain.targets.llvm.mca import mca_path, static_cycles
from toolchain.targets.llvm.plan import Plan, calls_of
from toolchain.targets.llvm.static_cycles import instruction_runs
from toolchain.tasks.plan import answers_of
from toolchain.tasks.tuning.static_cost import as_built, static_cost
from toolchain.te.lower import lower


def counted(
    bodies: Mapping[str, Any], schedules: Mapping[str, str], plan: Plan, target: Target,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[CountedKernel, ...]:
    """bodies: canonical ones, by workload, as `optimize` left them; schedules: answers of tuned ones. Those that the plan
    calls, most instructions first. Raises CodegenError: some cannot be counted."""
    calls, cycles_too, found = calls_of(plan), has_model(target), []
    for n, (workload, kept) in enumerate(bodies.items()):
        told(n, len(bodies))
        body = from_json(kept["graph"])
        symbol, func = as_built(body, target, answers_of(schedules.get(workload, "")))
        if not (runs := calls[symbol]):
            continue
        blocks = instruction_runs(lower(func, target, backend(target).passes), target)
        each = sum(len(instructions) * times for instructions, times in blocks)
        cycles = static_cost(func, target).cycles * runs if cycles_too else None
        found.append(CountedKernel(anchor_name(body), runs, each * runs, cycles))
    return tuple(sorted(found, key=lambda k: -k.instructions))


def has_model(target: Target) -> bool:
    """Whether llvm-mca is here and knows the CPU."""
    if mca_path() is None:
        return False
    try:
        static_cycles([["nop"]], target)
    except CodegenError:
        return False
    return True


__all__ = ["counted", "has_model"]
