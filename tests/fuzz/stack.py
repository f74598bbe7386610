"""One case through the whole stack: imported, optimized, compiled, linked, loaded, run; each step compared."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolchain.core.errors import InternalError, ToolchainError
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.graph.passes import (
    FUSION,
    PASSES,
    GraphPass,
    check_memory,
    choosing_algorithms,
    decomposing,
    plan_memory,
    planning_layouts,
    run_passes,
)
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.table import KERNELS
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.module import Module
from toolchain.targets.presets import PRESETS
from toolchain.tasks import optimize
from toolchain.tasks.assemble import assemble, weights_segment, workspaces
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.steps import supported_operators

from .builder import Case
from .guarded import guarded

Arrays = Mapping[str, np.ndarray]
HOST = host_target(cores=2)
TARGETS = (HOST, *(t for t in PRESETS.values() if set(t.features) <= set(HOST.features)))


@dataclass(frozen=True)
class Verdict:
    """kind: passed, refused (an error in the user's words), wrong, or crashed (any other exception)."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Variant:
    """How a case is compiled: for what, with which of the graph passes, with or without blocked layouts."""

    target: Target = HOST
    passes: tuple[GraphPass, ...] = PASSES
    layouts: bool = True
    winograd: int | None = None         # the tile of every convolution that can; None: as the kernels choose

    def __str__(self) -> str:
        left_out = [p.__name__ for p in PASSES if p not in self.passes]
        without = f"without {' '.join(left_out)}" if left_out else ""
        winograd = f"Winograd {self.winograd}" if self.winograd is not None else ""
        return ", ".join(filter(None, [self.target.name, "" if self.layouts else "plain layouts", winograd, without]))


def random_variant(rng: random.Random) -> Variant:
    passes = PASSES if rng.random() < 0.5 else tuple(p for p in PASSES if rng.random() < 0.5)
    return Variant(rng.choice(TARGETS), passes, rng.random() < 0.7, rng.choice((None, 0, 2, 4)))


class Stack:
    """Compiles cases into `folder`; a kernel two cases share is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernels: dict[tuple[str, str], Kernel] = {}

    def check(self, case: Case, variants: tuple[Variant, ...] = (Variant(),)) -> Verdict:
        where = "import"
        try:
            graph = import_model(case.model, self.folder, {}, {}, supported_operators())
            where = "interpreter"
            reference = graph.results(interpret(graph, case.inputs))
            if problem := compare(reference, case.expected, roughness(case)):
                return Verdict("wrong", f"interpreter of the imported graph: {problem}")
            for variant in variants:
                where = str(variant)
                if problem := self._check_variant(case, graph, reference, variant):
                    return Verdict("wrong", f"{where}: {problem}")
        except InternalError as error:
            return Verdict("crashed", f"{where}: {type(error).__name__}: {error}")
        except ToolchainError as error:
            return Verdict("refused", f"{where}: {type(error).__name__}: {error}")
        except Exception as error:
            return Verdict("crashed", f"{where}: {type(error).__name__}: {error} {_origin(error)}")
        return Verdict("passed")

    def _check_variant(self, case: Case, graph: Graph, reference: Arrays, variant: Variant) -> str:
        optimized = self._optimize(graph, variant)
        slack = {n: spread(reference[n], case.expected[n]) for n in case.expected}
        rough = roughness(case)
        if problem := compare(optimized.results(interpret(optimized, case.inputs)), case.expected, rough, slack):
            return f"graph passes: {problem}"
        self._build(optimized, variant.target)
        one: Arrays = {}
        for threads in (1, 2):
            with Module.load(self.folder, threads) as module:
                made = run_guarded(module, case.inputs, at_end=threads == 1)
                if problem := compare(made, case.expected, rough, slack):
                    return f"compiled, {threads} threads: {problem}"
                one = one or made
                if any(made[n].tobytes() != one[n].tobytes() for n in made):
                    return "two threads compute something else than one"
        return ""

    def _optimize(self, graph: Graph, variant: Variant) -> Graph:
        layouts = (planning_layouts(layout_options(variant.target)),) if variant.layouts else ()
        supported = KERNELS | optimize.CONTROL_FLOW
        choose = algorithms(variant.target) if variant.winograd is None else lambda node, graph: variant.winograd
        graph = run_passes(graph, (
            decomposing(supported), *variant.passes, choosing_algorithms(choose), *layouts, *FUSION))
        self.workloads: dict[str, optimize.Workload] = {}
        return optimize._with_keys(graph, self.workloads)

    def _build(self, graph: Graph, target: Target) -> None:
        kernels = {}
        for key, workload in self.workloads.items():
            if (key, target.name) not in self.kernels:
                self.kernels[key, target.name] = compile_workload(workload.body, target)[0]
            kernels[key] = self.kernels[key, target.name]
        memory = plan_memory(graph, workspaces(kernels))
        check_memory(graph, memory, workspaces(kernels))
        weights = bytearray(memory.weights_bytes)
        for offset, array in weights_segment(graph, memory):
            data = array.tobytes()
            weights[offset:offset + len(data)] = data
        plan = assemble("fuzz", graph, memory, kernels)
        write_artifact(self.folder, "fuzz", (plan,), {k.symbol: k.object for k in kernels.values()}, bytes(weights), target)


def run_guarded(module: Module, inputs: Arrays, *, at_end: bool) -> dict[str, np.ndarray]:
    """Run on guarded arrays, in an arena of NaNs (but for what the plan keeps zero), after a run on other numbers."""
    arena = module.arena()
    keep = np.zeros(len(arena), bool)
    for offset, size in module.buckets[0].zero:
        keep[offset:offset + size] = True
    arena[~keep] = 0xFF
    given = {v.name: guarded(v.shape, inputs[v.name].dtype, at_end=at_end) for v in module.inputs}
    made = {v.name: guarded(v.shape, np.dtype(v.dtype), at_end=at_end) for v in module.outputs}
    bound = module.bind(given, made)
    for name, array in given.items():           # other numbers of the same kind: an index stays an index
        array[...] = np.flip(inputs[name])
    bound()
    for name, array in given.items():
        array[...] = inputs[name]
    bound()
    for name, array in given.items():
        if array.tobytes() != np.ascontiguousarray(inputs[name]).tobytes():
            raise AssertionError(f"the run changed its input {name}")
    return {name: array.copy() for name, array in bound.results().items()}


# ---- comparing

def roughness(case: Case) -> float:
    """The relative error that is fine: by the narrowest type in the network."""
    narrow = any(a.dtype == np.float16 for a in (*case.inputs.values(), *case.expected.values()))
    narrow = narrow or any(t.data_type == 10 for t in case.model.graph.initializer)
    narrow = narrow or any(n.op_type == "Cast" and n.attribute[0].i == 10 for n in case.model.graph.node)
    return 2e-2 if narrow else 2e-4


def spread(a: np.ndarray, b: np.ndarray) -> float:
    """How far two correct computations are apart: what the case's numbers make of rounding."""
    if a.dtype.kind != "f":
        return 0.0
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def compare(made: Arrays, expected: Arrays, rough: float, slack: Mapping[str, float] | None = None) -> str:
    """What is wrong, or "". Small integers may differ by one: a rounded tie falls either way."""
    for name, want in expected.items():
        got = made[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{name} is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        a, b = got.astype(np.float64), want.astype(np.float64)
        if want.dtype.kind == "f":
            limit = rough * (np.abs(b) + np.abs(b).max() + 0.01) + 30 * (slack or {}).get(name, 0.0)
        else:
            limit = np.full(b.shape, 1.0 if want.dtype.itemsize == 1 and want.dtype.kind != "b" else 0.0)
        bad = ~(np.abs(a - b) <= limit)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            return f"{name}{list(at)} is {got[at]}, not {want[at]} ({int(bad.sum())} of {bad.size} elements)"
    return ""


def _origin(error: BaseException) -> str:
    """Where in the code an exception came from."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        found = f"({Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name})"
        trace = trace.tb_next
    return found
