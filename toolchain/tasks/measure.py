"""Step `measure`: the artifact beside the rivals installed here, and the time of each of its layers.

The only step whose result depends on the machine's mood: it runs quite alone, and its facts say how steady it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.build.task import Input, Result
from toolchain.build.worker import progress
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import UsageError
from toolchain.core.target import Target
from toolchain.graph.serialize import load_files
from toolchain.report.contenders import baseline_entries, missing_baselines
from toolchain.report.facts import MISSING, ContenderFacts, LayerFacts, MeasureFacts, to_json
from toolchain.report.measure import measure as measure_contenders
from toolchain.report.measure import rounds_for
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Call, children
from toolchain.tasks.contender import artifact_entry
from toolchain.tasks.data import samples
from toolchain.tasks.steps import assembled_folder, model_path

Values = Mapping[str, np.ndarray]
FACTS_FILE = "facts.json"           # in the artifact: {"measure": MeasureFacts, "layers": [LayerFacts]}
PROFILES = 20                       # runs that a layer's time in the network is the median of
HOT_TIME_US = 4_000                 # how long one layer is repeated alone
HOT_REPEATS = (5, 200)              # at least, at most


def measure(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """Measure the artifact interleaved with the declared rivals that are installed, then profile it alone."""
    (sample, *_) = samples(params, inputs, load_files(inputs["graph"].files))
    against, seconds = params["report"]["against"], params["report"]["time"]
    model = model_path(inputs)
    with tempfile.TemporaryDirectory(prefix="tc-measure-") as temporary:
        folder = assembled_folder(inputs["module"], Path(temporary) / "artifact")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        threads = params["report"]["threads"] or params["threads"] or Target.from_json(manifest["target"]).cores
        progress(0, 0, f"beside {', '.join(against)}" if against else "")
        rivals = baseline_entries(against, named_onnx(model, Path(temporary)))
        ours = artifact_entry(folder, options={"schedules": schedules(manifest)})
        facts = measure_contenders([ours, *rivals], sample.inputs, threads=threads, rounds=rounds_for(seconds))
        progress(0, 0, "layer by layer")
        layers: tuple[LayerFacts, ...] = ()
        if "engine" not in params:                      # engines have no clock for the layers inside
            with Module.load(folder, threads) as module:
                layers = profile(module, sample.inputs, manifest["layers"][module.bucket_of(sample.inputs)])
    absent = tuple(ContenderFacts(name, error=f"{MISSING}{why}") for name, why in missing_baselines(against).items())
    facts = replace(facts, contenders=(*facts.contenders, *absent))
    written = json.dumps({"measure": to_json(facts), "layers": to_json(layers)}, allow_nan=False)
    (out / FACTS_FILE).write_text(written, encoding="utf-8")
    return Result("facts", {"median_us": _median_us(facts)})


def schedules(manifest: Mapping[str, Any]) -> str:
    """Of an artifact, for the report: "default", or how many kernels are tuned."""
    kernels = manifest["kernels"].values()
    tuned = sum(k["tuned"] for k in kernels)
    return f"{tuned} of {len(kernels)} tuned" if tuned else "default"


def named_onnx(model: Path, folder: Path) -> Path:
    """The model under a name that ends in .onnx, by which rivals and shape binding know it (in the store it has none).

    External data lies beside a user's own file, which has its name: no link is made then.
    """
    if model.suffix == ".onnx":
        return model
    link = folder / "model.onnx"
    link.symlink_to(model)
    return link


def _median_us(facts: MeasureFacts) -> float:
    if facts.ours is None or facts.ours.error:
        raise UsageError(f"our artifact cannot be measured: {facts.ours.error if facts.ours else 'it took no part'}")
    return facts.ours.median_us


def profile(
    module: Module, inputs: Mapping[str, np.ndarray], described: list[Mapping[str, Any]],
) -> tuple[LayerFacts, ...]:
    """Each layer's time inside the network, and hot. described: the manifest's "layers", one per op of the profile."""
    hot_us = hot_times_us(module, inputs)
    return tuple(
        LayerFacts(kernel=d["kernel"], sources=tuple(d["sources"]), network_us=t.ns / 1e3, flops=float(d["flops"]),
                   hot_us=hot_us.get(t.index), moved_bytes=int(d["moved_bytes"]), weights_bytes=int(d["weights_bytes"]),
                   computed_flops=float(d["computed_flops"]), chunks=int(d["chunks"]), schedule=d["schedule"],
                   workload=d["workload"])
        for t, d in zip(module.profile(inputs, PROFILES), described, strict=True)
    )


def hot_times_us(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[int, float]:
    """Median time of each call of the outermost level when it alone is repeated, by its number in pre-order.

    Measured by the runtime, so what calling the library costs is no part of it.
    """
    plan = module.buckets[module.bucket_of(inputs)]
    outputs = {v.name: np.empty(v.shape, to_numpy(v.dtype)) for v in plan.outputs}
    module.run(inputs)
    found: dict[int, float] = {}
    at = 0
    for op in plan.ops:
        end = at + 1 + _inside(op)
        if isinstance(op, Call):
            found[at] = _hot_us(module, inputs, outputs, at, end)
        at = end
    return found


def _inside(op: Any) -> int:
    return sum(1 + _inside(child) for child in children(op))


def _hot_us(module: Module, inputs: Values, outputs: Values, at: int, end: int) -> float:
    """Median time of the ops [at, end), run for HOT_TIME_US within the limits of HOT_REPEATS."""
    least, most = HOT_REPEATS
    first_us = module.profile_range(inputs, outputs, at, end, least)
    repeats = min(most, int(HOT_TIME_US / max(first_us, 1.0)))
    return module.profile_range(inputs, outputs, at, end, repeats) if repeats > least else first_us
