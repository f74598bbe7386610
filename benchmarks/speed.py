"""Speed of built models beside the rivals installed here: `toolchain.report.measure` for one build of a recipe."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from processes import busy_core
from recipe_builds import RecipeBuild, inputs_of

from toolchain.build.store import Store
from toolchain.build.task import Input
from toolchain.core.digest import digest_json
from toolchain.graph.serialize import load_files
from toolchain.report.contenders import BASELINES, baseline_entries, version_of
from toolchain.report.facts import MeasureFacts, to_json
from toolchain.report.measure import measure, rounds_for
from toolchain.tasks.contender import artifact_entry
from toolchain.tasks.data import samples
from toolchain.tasks.measure import named_onnx
from toolchain.tasks.steps import assembled_folder, model_path


def speed_of(store: Store, build: RecipeBuild, known: Mapping[str, Any], *, against: Sequence[str], threads: int,
             seconds: float, busy: bool = False) -> Mapping[str, Any]:
    """The facts of one measurement, as plain data; those in `known` (by measurement) when it was done before.

    busy: while another process spins on one core (processes.busy_core).

    {"what": identity, "build", "threads", "medians_us": {contender: time}, "variation", "speedup": {rival: [median, low,
    high]}, "passed", "errors": {contender: text}, "facts": MeasureFacts}. Raises the error of a step that fails.
    """
    inputs = inputs_of(store, build, build.bucket.measure)
    what = measurement(inputs["module"], against, threads, seconds)
    if (before := known.get(key_of(build, threads, busy))) and before["what"] == what:
        return before
    data = asdict(build.binding.data or build.model.data)
    (sample, *_) = samples({"data": data}, inputs, load_files(inputs["graph"].files))
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="tc-figures-"))
        if busy:
            stack.enter_context(busy_core())
        folder = assembled_folder(inputs["module"], Path(temporary) / "artifact")
        model = named_onnx(model_path(inputs), Path(temporary))
        entries = [artifact_entry(folder), *baseline_entries(against, model)]
        facts = measure(entries, sample.inputs, threads=threads, rounds=rounds_for(seconds),
                        reference=sample.expected or None)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"what": what, "build": build.name, "threads": threads, "busy": busy, "date": date, **summary(facts),
            "facts": to_json(facts)}


def key_of(build: RecipeBuild, threads: int, busy: bool = False) -> str:
    return f"{build.name} threads={threads}{' busy core' if busy else ''}"


def measurement(module: Input, against: Sequence[str], threads: int, seconds: float) -> str:
    """What makes two measurements the same one: the artifact's bytes, rivals and their versions, threads, time."""
    versions = {name: version_of(BASELINES[name].packages[0]) for name in against if name in BASELINES}
    files = {name: path.parent.name + path.name for name, path in module.files.items()}     # a blob's path is its digest
    return digest_json([files, versions, threads, seconds])


def summary(facts: MeasureFacts) -> dict[str, Any]:
    """What tables show of a measurement."""
    return {
        "medians_us": {c.name: c.median_us for c in facts.contenders if not c.error},
        "variation": {c.name: round(c.variation, 4) for c in facts.contenders if not c.error},
        "speedup": {c.baseline: [c.speedup, c.low, c.high] for c in facts.comparisons},
        "unstable": any(c.unstable for c in facts.contenders),
        "passed": all(o.passed for c in facts.contenders if c.ours for o in c.outputs),
        "errors": {c.name: c.error for c in facts.contenders if c.error},
        "steal_percent": facts.system.steal_percent,
    }
