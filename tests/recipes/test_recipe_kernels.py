"""Every kernel of the recipes as the default schedules make it, for AVX2 and AVX-512: none gives way to a plainer sketch,
and no hot loop spills a vector register.

A sketch that refuses costs a factor of ten and nothing fails: the next plainer one takes over. Here it does fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.cli.build import PRELOAD
from toolchain.cli.project import open_project
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.graph.serialize import load_files
from toolchain.kernels.build import anchor_name, schedule
from toolchain.kernels.sketches.select import SKETCHES
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.object import assembly, spills
from toolchain.targets.presets import PRESETS
from toolchain.tasks.optimize import optimize_graph
from toolchain.te.lower import lower

RECIPES = Path(__file__).parents[2] / "recipes"
TARGETS = (replace(PRESETS["x86-64-v3"], l2_bytes=512 << 10, l3_bytes=16 << 20), PRESETS["x86-64-v4"])


def graphs(recipe: str, folder: Path) -> Iterator[tuple[str, Graph]]:
    """(model, its imported graph) of every build and shape bucket of a recipe, made in a store of its own."""
    project = open_project(None, RECIPES / recipe)
    buckets = {(b.build.model, bucket.graph.name): bucket.graph
               for b in project.tasks([b.name for b in project.deployfile.all_builds()]) for bucket in b.buckets}
    store = Store(folder)
    made = Executor(store, folder, preload=PRELOAD).build(list(buckets.values())).check().artifacts
    for (model, name) in buckets:
        yield model, load_files(store.blobs.paths(made[name].files))
    store.close()


SEEN: set[tuple[str, str]] = set()                              # (target, kernel): recipes share some


@pytest.mark.parametrize("recipe", ["light", "vision", "language", "ocr", "paper", "speech", "quickstart"])
def test_default_schedules_take_every_kernel(recipe: str, tmp_path: Path) -> None:
    wrong: list[str] = []
    for model, graph in graphs(recipe, tmp_path):
        for target in TARGETS:
            for key, workload in optimize_graph(graph, target)[1].items():
                if (target.name, key) not in SEEN:
                    SEEN.add((target.name, key))
                    wrong += [f"{model} on {target.name}: {w}" for w in complaints(workload.body, target)]
    assert not wrong, "\n".join(wrong)


def complaints(body: Graph, target: Target) -> Iterator[str]:
    name = anchor_name(body)
    types = ", ".join(str(body.types[v]) for v in (*body.inputs[:2], *body.outputs))
    try:
        func = lower(schedule(body, target, SKETCHES[0]).func, target, LLVM.passes)
        code = assembly(str(LLVM.stages[0].run(func, "k", {}, target)), target)
    except (ScheduleError, CodegenError) as error:
        yield f"{name} ({types}) is refused: {error.what}"
        return
    lines = spills(code)
    stored, loaded = sum("Spill" in line for line in lines), sum("Reload" in line for line in lines)
    if stored:                                                         # one that only reads has a constant there
        yield f"{name} ({types}) spills: {stored} stores, {loaded} loads"
