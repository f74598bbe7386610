"""One case through the whole stack: imported, optimized, compiled, linked, loaded, run; each step compared."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
    REQUIRED,
    GraphPass,
    MemoryPlan,
    check_memory,
    choosing_algorithms,
    decomposing,
    fuse_operators,
    narrowing_dequantized,
    narrowing_products,
    plan_memory,
    planning_layouts,
    run_passes,
)
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.integer_forms import in_floats, integer_forms
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.table import KERNELS
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.in_process import LoadedPlan
from toolchain.targets.llvm.load import load
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Plan
from toolchain.targets.presets import PRESETS
from toolchain.tasks import optimize
from toolchain.tasks.assemble import assemble, weights_segment, workspaces
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.steps import supported_operators

from .builder import Case
from .guarded import guarded
from .judging import Arrays, Judge

HOST = host_target(cores=2)
TARGETS = (HOST, *(t for t in PRESETS.values() if set(t.features) <= set(HOST.features)))


@dataclass(frozen=True)
class Verdict:
    """kind: passed, unstable (rounding decides), refused (an error in the user's words), wrong, or crashed (any other
    exception). detail: why; of a case that passed, what is special about it."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Variant:
    """How a case is compiled: for what, with which of the graph passes, blocked layouts, Winograd sizes, fused or not."""

    target: Target = HOST
    passes: tuple[GraphPass, ...] = PASSES
    layouts: bool = True
    winograd: int | None = None         # the tile of every convolution that can; None: as the kernels choose
    fusion: bool = True

    def __str__(self) -> str:
        kept = "" if self.passes == PASSES else " ".join(["passes", *(p.__name__ for p in self.passes)])
        winograd = f"Winograd {self.winograd}" if self.winograd is not None else ""
        return ", ".join(filter(None, [self.target.name, "" if self.layouts else "plain layouts", winograd,
                                       "" if self.fusion else "nothing fused", kept]))


def subset(rng: random.Random) -> tuple[GraphPass, ...]:
    """Some of the passes, in their order: all that are required, and each other one by chance."""
    return tuple(p for p in PASSES if p in REQUIRED or rng.random() < 0.5)


def random_variant(rng: random.Random, targets: tuple[Target, ...] = TARGETS) -> Variant:
    passes = PASSES if rng.random() < 0.5 else subset(rng)
    return Variant(rng.choice(targets), passes, rng.random() < 0.7, rng.choice((None, 0, 2, 4)), rng.random() < 0.9)


O0 = Variant(passes=tuple(p for p in PASSES if p in REQUIRED), layouts=False, winograd=0, fusion=False)
O3 = Variant()


def metamorphic(rng: random.Random) -> tuple[Variant, ...]:
    """Everything on, everything off that can be, and two mixtures: on AVX2 and AVX-512 as far as this machine has them."""
    wide = tuple(t for t in TARGETS if t.vector_bits >= 256)
    mixed = (replace(random_variant(rng, (target,)), passes=subset(rng)) for target in rng.sample(wide, min(2, len(wide))))
    return O3, O0, *mixed


class Stack:
    """Compiles cases into `folder`; a kernel two cases share is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernels: dict[tuple[str, str], Kernel] = {}

    def check(self, case: Case, variants: tuple[Variant, ...] = (Variant(),), *, link: bool = True) -> Verdict:
        """Each variant compared with ONNX Runtime, and with the first variant.

        That one is linked and run by the C runtime on 1, 2 and 3 threads (link), the others run in this process.
        """
        where = "import"
        try:
            graph = import_model(case.model, self.folder, {}, {}, supported_operators())
            where = "interpreter"
            judge = Judge(case, graph)
            if problem := judge.interpreter():
                return Verdict("wrong", f"interpreter of the imported graph: {problem}")
            first: Arrays = {}
            for variant in variants:
                where = str(variant)
                optimized = self._optimize(graph, variant)
                if problem := judge.problem(optimized.results(interpret(optimized, case.inputs))):
                    return Verdict("wrong", f"{where}: graph passes: {problem}")
                memory, plan, kernels = self._build(optimized, variant.target)
                if link and not first:
                    self._link(optimized, memory, plan, kernels, variant.target)
                    first, problem = self._run_linked(case, judge)
                else:
                    made = run_in_process(plan, kernels, weights_segment(optimized, memory), case.inputs)
                    first = first or made
                    problem = judge.problem(made) or judge.apart(made, first)
                if problem:
                    return Verdict("wrong", f"{where}: compiled: {problem}")
        except InternalError as error:
            return Verdict("crashed", f"{where}: {type(error).__name__}: {error}")
        except ToolchainError as error:
            return Verdict("refused", f"{where}: {type(error).__name__}: {error}")
        except Exception as error:
            return Verdict("crashed", f"{where}: {type(error).__name__}: {error} {_origin(error)}")
        if judge.unstable:
            why = "NaN or Inf on the way" if judge.special else "rounding decides"
            return Verdict("unstable", f"{why}: {judge.unstable}")
        return Verdict("passed", "NaN or Inf on the way" if judge.special else "")

    def _run_linked(self, case: Case, judge: Judge) -> tuple[Arrays, str]:
        one: Arrays = {}
        for threads in (1, 2, 3):
            with Module.load(self.folder, threads) as module:
                made = run_guarded(module, case.inputs, at_end=threads == 1)
                if problem := judge.problem(made):
                    return one, f"{threads} threads: {problem}"
                one = one or made
                if any(made[n].tobytes() != one[n].tobytes() for n in made):
                    return one, f"{threads} threads compute something else than one"
        return one, ""

    def _optimize(self, graph: Graph, variant: Variant) -> Graph:
        layouts = (planning_layouts(layout_options(variant.target)),) if variant.layouts else ()
        supported = KERNELS | optimize.CONTROL_FLOW
        choose = algorithms(variant.target) if variant.winograd is None else lambda node, graph: variant.winograd
        fusion = FUSION if variant.fusion else tuple(fuse_nothing if p is fuse_operators else p for p in FUSION)
        graph = run_passes(graph, (
            narrowing_dequantized(integer_forms(variant.target), in_floats(variant.target)), decomposing(supported),
            *variant.passes,
            choosing_algorithms(choose),
            narrowing_products(integer_forms(variant.target)), *layouts, *fusion))
        self.workloads: dict[str, optimize.Workload] = {}
        return optimize._with_keys(graph, self.workloads)

    def _build(self, graph: Graph, target: Target) -> tuple[MemoryPlan, Plan, dict[str, Kernel]]:
        kernels = {}
        for key, workload in self.workloads.items():
            if (key, target.name) not in self.kernels:
                self.kernels[key, target.name] = compile_workload(workload.body, target)[0]
            kernels[key] = self.kernels[key, target.name]
        memory = plan_memory(graph, workspaces(kernels))
        check_memory(graph, memory, workspaces(kernels))
        return memory, assemble("fuzz", graph, memory, kernels), kernels

    def _link(self, graph: Graph, memory: MemoryPlan, plan: Plan, kernels: dict[str, Kernel], target: Target) -> None:
        weights = bytearray(memory.weights_bytes)
        for offset, array in weights_segment(graph, memory):
            data = array.tobytes()
            weights[offset:offset + len(data)] = data
        write_artifact(self.folder, "fuzz", (plan,), {k.symbol: k.object for k in kernels.values()}, bytes(weights), target)


def fuse_nothing(graph: Graph) -> Graph:
    """A kernel per operator."""
    return fuse_operators(graph, frozenset(n.op for n in graph.nodes))


def run_in_process(
    plan: Plan, kernels: dict[str, Kernel], weights: Iterable[tuple[int, np.ndarray]], inputs: Arrays,
) -> Arrays:
    loaded = {k.symbol: load(k) for k in kernels.values()}
    made = LoadedPlan(plan, loaded, weights)([inputs[v.name] for v in plan.inputs])
    return dict(zip((v.name for v in plan.outputs), made, strict=True))


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


def _origin(error: BaseException) -> str:
    """Where in the code an exception came from."""
    trace, found = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        found = f"({Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name})"
        trace = trace.tb_next
    return found
