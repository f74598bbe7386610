"""One workload to one kernel: define, schedule, lower, emit; with a plainer schedule when the default one does not fit."""

from __future__ import annotations

import time
from typing import Any

from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.te.schedule import steps_to_json


def compile_workload(body: Graph, target: Target) -> tuple[Kernel, dict[str, Any]]:
    """The kernel of a canonical body, and facts about it: the schedule's steps, and how long the parts took (ms).

    The sketches are tried in order; one that cannot schedule the group, or makes code beyond the limits, gives way to the
    next plainer one, and the facts say so. Raises CodegenError when none fits, naming the operators.
    """
    refused: list[str] = []
    for sketch in SKETCHES:
        started = time.perf_counter()
        try:
            s = schedule(body, target, sketch)
            scheduled = time.perf_counter()
            kernel = compile_kernel(s.func, target)
        except (ScheduleError, CodegenError) as error:
            refused.append(f"{sketch.__name__}: {error}")
            continue
        return kernel, {
            "name": anchor_name(body), "schedule": steps_to_json(s.steps), "sketch": sketch.__name__, "refused": refused,
            "schedule_ms": round((scheduled - started) * 1e3, 3),
        }
    raise CodegenError("no schedule fits:\n  " + "\n  ".join(refused), where=anchor_name(body))
