"""The search space of one kernel, and the kernel of one of its points."""

from __future__ import annotations

from collections.abc import Mapping

from toolchain.core.digest import digest_json
from toolchain.core.errors import ScheduleError
from toolchain.core.rewrite import walk
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.te.loop_ir import For, ForKind, PrimFunc
from toolchain.te.schedule import Schedule, steps_to_json
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.features import features
from toolchain.te.tune.space import Made, Space


def space_of(body: Graph, target: Target, default: Mapping[str, str]) -> Space:
    """All schedules the sketch of a canonical body may give. default: the answers of the untuned kernel.

    Refuses without building what leaves cores idle that the default uses. What makes too much code or needs too many
    registers the sketches do not offer, or its build refuses before LLVM sees it (targets/llvm/limits.py).
    """
    enough = min(target.cores, chunks(scheduled(body, target, default).func))

    def program(choices: Choices) -> Made:
        s = schedule(body, target, sketch, choices)
        if (n := chunks(s.func)) < enough:
            raise ScheduleError(f"work for {n} cores, the default schedule has it for {enough}")
        return Made(digest_json(steps_to_json(s.steps)), features(s.func))
    return Space(program, default)


def scheduled(body: Graph, target: Target, answers: Mapping[str, str]) -> Schedule:
    """One point of the space. Raises ScheduleError."""
    return schedule(body, target, sketch, Choices(answers))


def compile_candidate(body: Graph, target: Target, answers: Mapping[str, str]) -> Kernel:
    """The kernel of one point; no plainer schedule takes its place. Raises ScheduleError and CodegenError."""
    return compile_kernel(scheduled(body, target, answers).func, target)


def chunks(func: PrimFunc) -> int:
    """Into how many pieces the largest parallel loop can be cut; 1: there is none."""
    return max((n.extent for n in walk(func.body) if isinstance(n, For) and n.kind is ForKind.PARALLEL), default=1)
