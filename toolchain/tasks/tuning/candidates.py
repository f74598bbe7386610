"""The search space of one kernel, and the kernel of one of its points."""

from __future__ import annotations

from collections.abc import Mapping

from toolchain.core.digest import digest_json
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import schedule
from toolchain.kernels.sketches.select import sketch
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.tasks.tuning.static import footprint, refusal
from toolchain.te.schedule import Schedule, steps_to_json
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.features import features
from toolchain.te.tune.space import Made, Space


def space_of(body: Graph, target: Target, default: Mapping[str, str]) -> Space:
    """All schedules the sketch of a canonical body may give. default: the answers of the untuned kernel.

    Refuses without lowering it what leaves cores idle that the default uses, or is hopeless by its size (static.py).
    """
    usual = footprint(scheduled(body, target, default).func, target)

    def program(choices: Choices) -> Made:
        s = schedule(body, target, sketch, choices)
        if why := refusal(footprint(s.func, target), usual, target):
            raise ScheduleError(why)
        return Made(digest_json(steps_to_json(s.steps)), features(s.func))
    return Space(program, default)


def scheduled(body: Graph, target: Target, answers: Mapping[str, str]) -> Schedule:
    """One point of the space. Raises ScheduleError."""
    return schedule(body, target, sketch, Choices(answers))


def compile_candidate(body: Graph, target: Target, answers: Mapping[str, str]) -> Kernel:
    """The kernel of one point; no plainer schedule takes its place. Raises ScheduleError and CodegenError."""
    return compile_kernel(scheduled(body, target, answers).func, target)
