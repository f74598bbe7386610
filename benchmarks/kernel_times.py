"""How long single kernels take to compile: what tasks/compile.py and targets/base.py do, part by part.

    schedule    te definitions, layouts, sketch        Python
    lower       the passes of te/lower                 Python
    emit        loop IR -> LLVM text                   Python
    llvm        parse, verify, SROA, object code       LLVM

Each kernel is compiled once, in this process, after a first one has paid for what is made once per process. Processor time
of this thread stands beside wall time: it hardly changes when other programs want the same cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.targets.base import backend, kernel_symbol
from toolchain.te.lower import lower

PYTHON = ("schedule", "lower", "emit")
PARTS = (*PYTHON, "llvm")


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Milliseconds per part. refused_ms: Python time spent on sketches that then gave way to a plainer one."""

    name: str
    wall_ms: dict[str, float]
    cpu_ms: dict[str, float]
    refused_ms: float
    sketch: str
    users: tuple[str, ...] = field(default=())

    @property
    def python_ms(self) -> float:
        return sum(self.wall_ms[part] for part in PYTHON) + self.refused_ms

    @property
    def python_cpu_ms(self) -> float:
        return sum(self.cpu_ms[part] for part in PYTHON) + self.refused_ms


class _Watch:
    """Wall and processor time of consecutive parts."""

    def __init__(self) -> None:
        self.wall_ms: dict[str, float] = {}
        self.cpu_ms: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        self.wall_ms[name] = (time.perf_counter() - wall) * 1e3
        self.cpu_ms[name] = (time.thread_time() - cpu) * 1e3


def time_kernel(body: Graph, target: Target, users: tuple[str, ...] = ()) -> KernelTime:
    """Compile one canonical body and throw the code away. Raises CodegenError when no sketch fits."""
    begun = time.thread_time()
    errors = []
    for sketch in SKETCHES:
        refused_ms = (time.thread_time() - begun) * 1e3 if errors else 0.0
        watch = _Watch()
        try:
            _compile(body, target, sketch, watch)
        except (ScheduleError, CodegenError) as error:
            errors.append(str(error))
            continue
        return KernelTime(anchor_name(body), watch.wall_ms, watch.cpu_ms, refused_ms, sketch.__name__, users)
    raise CodegenError("no schedule fits:\n  " + "\n  ".join(errors), where=anchor_name(body))


def _compile(body: Graph, target: Target, sketch: Any, watch: _Watch) -> None:
    generator = backend(target)
    *texts, binary = generator.stages
    made: dict[str, str | bytes] = {}
    with watch.part("schedule"):
        func = schedule(body, target, sketch).func
    with watch.part("lower"):
        lowered = lower(func, target, generator.passes)
        symbol = kernel_symbol(lowered, target)
    with watch.part("emit"):
        for stage in texts:
            made[stage.ext] = stage.run(lowered, symbol, made, target)
    with watch.part("llvm"):
        made[binary.ext] = binary.run(lowered, symbol, made, target)
