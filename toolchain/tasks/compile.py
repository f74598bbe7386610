"""One workload to one kernel: define, schedule, lower, emit; with a plainer schedule when the default one does not fit."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Mapping
from typing import Any

from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.te.schedule import steps_to_json
from toolchain.te.tune.choices import Choices

SMALLER_TILES = 2            # how often a register tile that makes too much code, or needs too many registers, is halved


def compile_workload(
    body: Graph, target: Target, tuned: Mapping[str, str] | None = None,
) -> tuple[Kernel, dict[str, Any]]:
    """The kernel of a canonical body, and facts about it: the schedule's steps, and how long scheduling took.

    tuned: answers of tuning, in place of the default ones.
    The sketches are tried in order, each with smaller register tiles where its default does not fit; one that cannot
    schedule the group gives way to the next plainer one, and the facts say so. Raises CodegenError when none fits.
    """
    refused: list[str] = []
    for sketch in SKETCHES:
        answers: dict[str, str] | None = dict(tuned or {})
        for _ in range(1 + SMALLER_TILES):
            if answers is None:
                break
            started, choices = time.perf_counter(), Choices(answers)
            try:
                s = schedule(body, target, sketch, choices)
                scheduled = time.perf_counter()
                kernel = compile_kernel(s.func, target)
            except (ScheduleError, CodegenError) as error:
                refused.append(f"{sketch.__name__}: {error}")
                answers = smaller_tile(choices) if isinstance(error, CodegenError) else None
                continue
            return kernel, {
                "name": anchor_name(body), "schedule": steps_to_json(s.steps), "sketch": sketch.__name__, "refused": refused,
                "tuned": bool(tuned),
                "answers": {name: q.answer for name, q in choices.asked.items()},
                "schedule_ms": round((scheduled - started) * 1e3, 3),
            }
    why = dict.fromkeys(textwrap.indent(text, "    ").replace("    ", "  ", 1) for text in refused)
    raise CodegenError("no schedule fits:\n" + "\n".join(why), where=anchor_name(body), fix=(
        "a gap in the toolchain: please report it, with the failed task's folder (its run.sh writes each form of the kernel "
        "to dump/)"))


def accumulators(tile: str) -> int:
    """Of a register tile as records write it: "1x6x2" -> 12."""
    return math.prod(map(int, tile.split("x")))


def smaller_tile(choices: Choices) -> dict[str, str] | None:
    """The same answers with the best tile of at most half the accumulators; None: there is no such tile."""
    if "tile" not in choices.asked:
        return None
    question = choices.asked["tile"]
    most = accumulators(question.answer) // 2
    smaller = next((tile for tile in question.options if accumulators(tile) <= most), None)
    return None if smaller is None else {**choices.answers, "tile": smaller}
