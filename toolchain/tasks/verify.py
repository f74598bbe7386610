"""Steps `compare` and `verify`: an artifact against what it should compute, and the verdict.

`compare` finds facts out and keeps them whatever they say; `verify` fails where they are bad. So a report can show what went
wrong, and nothing is computed again to fail again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.build.task import Input, Result
from toolchain.build.worker import progress
from toolchain.core.errors import ToolchainError, VerificationError
from toolchain.graph.ir import Graph
from toolchain.graph.passes.plan_memory import plan_memory
from toolchain.graph.serialize import load_files
from toolchain.report.facts import OutputError, VerifyFacts, from_json, to_json
from toolchain.report.statistics import output_error
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.wasm_module import WasmModule
from toolchain.tasks.assemble import assemble_with_origins, workspaces
from toolchain.tasks.boards import BoardModule, board_of, load_on
from toolchain.tasks.data import Sample, recorded_files, samples
from toolchain.tasks.diagnose import Finding, first_wrong_op, save_finding
from toolchain.tasks.diagnose_device import first_wrong_kernel
from toolchain.tasks.plan import RECORDED
from toolchain.tasks.reference import computed, exact
from toolchain.tasks.steps import assembled_folder

REPRO = "repro"                     # folder of a comparison's artifact with the first wrong kernel

# What is demanded where the deployfile says nothing: (relative, absolute part). The absolute part is a fraction of the
# output's largest magnitude, for rounding errors of sums go with the size of what was summed, not of what is left. Two
# correct fp32 programs differ by about 1e-6 of the largest value per layer (other order of sums, FMA); after a hundred
# layers 1e-4 is far above that, and far below what any wrong kernel makes. A network that rounds to 8 bits inside turns a
# difference of 1e-7 into a whole step where it lies on two sides of a tie; of such steps, 1/256 of a value's range, a few
# may meet in an output. One that computes in float16 rounds every value to one of 2048 steps per power of two, in places
# that depend on what is fused: a hundred such errors of half a step, of both signs, make some 5e-3; eight times that in
# bfloat16.
TOLERANCE: dict[str, tuple[float, float]] = {
    "fp32": (1e-3, 1e-4), "quantized": (1e-2, 1 / 64), "float16": (1e-2, 1 / 128), "bfloat16": (5e-2, 1 / 16),
}
ROUNDING = frozenset(("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"))
SMALLEST = 1e-3                     # an output that is zero everywhere is compared as if its largest value were this


def compare(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """Run the artifact on every sample, beside recorded outputs and the reference's; the worst error of each output.

    Never fails for being wrong. The meta holds VerifyFacts under "facts". When an output is wrong, files below `repro/`
    hold the first wrong kernel.
    """
    graph = load_files(inputs["graph"].files)
    sets = samples(params, inputs, graph)
    if rounding := "quantized" if rounds_inside(graph) else half_inside(graph):
        params = {**params, "precision": rounding}
    if "device" in params:
        return _compare_on_device(params, inputs, graph, sets, out)
    if "engine" in params:
        return _compare_in_engine(params, inputs, graph, sets)
    with tempfile.TemporaryDirectory(prefix="tc-compare-") as folder, Module.load(
            assembled_folder(inputs["module"], Path(folder)), params["threads"] or None) as module:
        facts, wrong = _compare_all(module, graph, sets, params, inputs)
        finding = _find(module, inputs, wrong or (sets[0] if params["check"] else None), poison=params["check"])
    error = first = ""
    if finding is not None:
        save_finding(finding, out / REPRO)
        first, error = finding.name, "" if wrong else finding.what
    facts = replace(facts, first_bad_node=first, error=error)
    return Result("facts", {"facts": to_json(facts), "what": finding.what if finding else ""})


def _compare_on_device(
    params: Mapping[str, Any], inputs: Mapping[str, Input], graph: Graph, sets: Sequence[Sample], out: Path,
) -> Result:
    """The outputs are those that the device computed. Where one is wrong, each kernel is run there alone."""
    with tempfile.TemporaryDirectory(prefix="tc-compare-") as folder, load_on(
            board_of(params["device_name"], params["device"]), assembled_folder(inputs["module"], Path(folder)),
            params["threads"], lambda text: progress(0, 0, text)) as module:
        facts, wrong = _compare_all(module, graph, sets, params, inputs)
        finding = first_wrong_kernel(
            module.session, load_files(inputs["optimized"].files), module.artifact.target,
            inputs["module"].meta.get("schedules", {}), wrong.inputs) if wrong is not None else None
    if finding is not None:
        save_finding(finding, out / REPRO)
    facts = replace(facts, device=params["device_name"], first_bad_node=finding.name if finding else "")
    return Result("facts", {"facts": to_json(facts), "what": finding.what if finding else ""})


def _compare_in_engine(
    params: Mapping[str, Any], inputs: Mapping[str, Input], graph: Graph, sets: Sequence[Sample],
) -> Result:
    """The outputs are those that a WebAssembly engine computed here. Kernels are not looked into one by one in it."""
    with tempfile.TemporaryDirectory(prefix="tc-compare-") as folder, WasmModule.load(
            assembled_folder(inputs["module"], Path(folder))) as module:
        facts, _ = _compare_all(module, graph, sets, params, inputs)
    return Result("facts", {"facts": to_json(replace(facts, engine=module.engine)), "what": "", "diagnosed": False})


def verify(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """The verdict. Raises VerificationError when the artifact disagrees with a reference."""
    facts = from_json(VerifyFacts, inputs["facts"].meta["facts"])
    if facts.passed:
        return Result("verified")
    bad = [o for o in facts.outputs if not o.passed]
    what = "; ".join(f"output {o.output!r} differs from {facts.reference} by up to {o.max_abs_error:.3g} "
                     f"({o.tolerance_used:.3g} times the tolerance)" for o in bad[:3]) or facts.error
    if facts.first_bad_node:
        what += f"\nthe first wrong kernel: {inputs['facts'].meta['what']}\nit computes: {facts.first_bad_node}"
    elif bad and not inputs["facts"].meta.get("diagnosed", True):
        what += f"\ncomputed in {facts.engine}"
    elif bad:
        what += f"\ncomputed on device {facts.device!r}" if facts.device else ""
        what += ("\nevery kernel alone computes what its operators mean: "
                 "errors accumulate, or the reference belongs to other inputs or another model")
    raise VerificationError(what, where=params["name"], fix=(
        "its inputs and the smallest model that shows it are below inputs/facts/repro of the folder to reproduce it"
        if facts.first_bad_node else "if this accuracy is enough, say so: verify.tolerance in the deployfile"))


def _compare_all(
    module: Module | BoardModule | WasmModule, graph: Graph, sets: Sequence[Sample], params: Mapping[str, Any],
    inputs: Mapping[str, Input],
) -> tuple[VerifyFacts, Sample | None]:
    """The worst of all samples and references, and the first sample that an output is wrong on."""
    worst: dict[str, OutputError] = {}
    wrong: Sample | None = None
    labels: dict[str, None] = {}
    used_atol = 0.0
    for k, sample in enumerate(sets):
        ours = module.run(sample.inputs)
        for label, expected in _expected(sample, k, inputs):
            errors = _errors(ours, expected, params)
            if label.startswith("onnxruntime") and not all(e.passed for e in errors.values()):
                label, expected, errors = _second_opinion(graph, sample, ours, label, expected, params) or (
                    label, expected, errors)
            labels[label] = None
            used_atol = max(used_atol, *(tolerance(params, array)[1] for array in expected.values()))
            for name, error in errors.items():
                if name not in worst or not error.tolerance_used <= worst[name].tolerance_used:
                    worst[name] = error
                if not error.passed and wrong is None:
                    wrong = sample
    rtol, _ = tolerance(params, np.zeros(1))
    return VerifyFacts(" and ".join(labels), sets[0].source, rtol, used_atol, tuple(worst.values())), wrong


Outputs = Mapping[str, np.ndarray]


def _errors(ours: Outputs, expected: Outputs, params: Mapping[str, Any]) -> dict[str, OutputError]:
    return {name: output_error(name, ours[name], array, rtol=rtol, atol=atol)
            for name, array in expected.items() for rtol, atol in (tolerance(params, array),)}


def _second_opinion(
    graph: Graph, sample: Sample, ours: Outputs, label: str, theirs: Outputs, params: Mapping[str, Any],
) -> tuple[str, Outputs, dict[str, OutputError]] | None:
    """(who, outputs, our errors) where ours is right and the other single-precision program is the one that is off: its
    approximations of Sigmoid, for one, are good to 1e-7, which is nothing left of a probability of 1e-6.

    What decides is the network in double precision. None: ours is not within the tolerance of that either, or it cannot be
    computed.
    """
    try:
        expected = exact(graph, sample)
    except (ToolchainError, MemoryError) as error:
        print(f"no second opinion: {error}")
        return None
    errors = _errors(ours, expected, params)
    if not all(e.passed for e in errors.values()):
        return None
    off = max(e.tolerance_used for e in _errors(theirs, expected, params).values())
    return f"the interpreter in float64 ({label} is off by {off:.2g} times the tolerance)", expected, errors


def _expected(sample: Sample, k: int, inputs: Mapping[str, Input]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    """(who says so, outputs by name): what was recorded, and what the step `reference` computed."""
    if sample.expected:
        yield RECORDED if recorded_files(inputs) else "declared outputs", sample.expected
    label, outputs = computed(inputs["reference"], k)
    if label:
        yield label, outputs


def rounds_inside(graph: Graph) -> bool:
    """Whether values are rounded to few bits on the way."""
    return any(node.op in ROUNDING or any(isinstance(a, Graph) and rounds_inside(a) for a in node.attrs.values())
               for node in graph.nodes)


def half_inside(graph: Graph) -> str:
    """The narrowest float in which something is computed on the way, if it is a half; "": none is."""
    found = {graph.types[o].dtype for node in graph.nodes if node.op not in ("Cast", "CastLike") for o in node.outputs if o}
    inner = (half_inside(a) for node in graph.nodes for a in node.attrs.values() if isinstance(a, Graph))
    return next((half for half in ("bfloat16", "float16") if half in {*found, *inner}), "")


def tolerance(params: Mapping[str, Any], expected: np.ndarray) -> tuple[float, float]:
    """(rtol, atol) for one output: as declared, else what is built in for the precision or for rounding inside."""
    if (declared := params["tolerance"]) is not None:
        return declared["rtol"], declared["atol"]
    rtol, fraction = TOLERANCE[params["precision"]]
    finite = np.abs(np.asarray(expected, np.float64)[np.isfinite(expected)])
    return rtol, float(f"{fraction * max(float(finite.max(initial=0.0)), SMALLEST):.2g}")


def _find(module: Module, inputs: Mapping[str, Input], sample: Sample | None, *, poison: bool) -> Finding | None:
    """Look for the first wrong op, when there is a sample to look with."""
    if sample is None:
        return None
    optimized = load_files(inputs["optimized"].files)
    kernels = {key: Kernel("", b"", (), 0, tuple(sizes), 0) for key, sizes in inputs["module"].meta["workspaces"].items()}
    memory = plan_memory(optimized, workspaces(kernels))
    _, origins = assemble_with_origins(module.name, optimized, memory, kernels)
    return first_wrong_op(module, optimized, memory, origins, sample.inputs, poison=poison)
