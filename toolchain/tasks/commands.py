"""From what a build made to what a report shows: facts of tasks gathered into `report.facts.Report`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolchain.build.failed import failed_folder
from toolchain.build.records import Records, records_path
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.core.artifact import Artifact
from toolchain.core.settings import settings
from toolchain.core.versions import installed_version
from toolchain.report.facts import (
    BuildFacts,
    BuildReport,
    LayerFacts,
    MachineFacts,
    MeasureFacts,
    Report,
    VerifyFacts,
    from_json,
)
from toolchain.tasks.machine import FACTS_FILE as MACHINE_FILE
from toolchain.tasks.measure import FACTS_FILE
from toolchain.tasks.plan import BucketTasks, BuildTasks, graph_digest, machine_name, target_digest
from toolchain.tasks.verify import REPRO

VERSIONS = ("toolchain", "numpy", "onnx", "llvmlite", "ziglang")


def collect(tasks: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], project: Path | None = None) -> Report:
    """The report of these builds. artifacts: of all tasks that are done, by name. Builds without an artifact are left out.

    project: the folder whose history says how long the tasks took, and where failures are kept.
    """
    store = Store(settings().store)
    try:
        builds = tuple(_bucket_report(b, bucket, artifacts, store, project)
                       for b in tasks if b.module.name in artifacts for bucket in b.buckets)
    finally:
        store.close()
    versions = {name: found for name in VERSIONS if (found := installed_version(name))}
    return Report(builds, date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), versions=versions)


def _bucket_report(
    b: BuildTasks, bucket: BucketTasks, artifacts: Mapping[str, Artifact], store: Store, project: Path | None,
) -> BuildReport:
    measured, layers = _measured(artifacts.get(bucket.measure.name), store)
    elsewhere, static = tuned_elsewhere(artifacts[b.target.name].meta["target"], b.devices)
    layers = tuple(replace(x, schedule="static" if x.workload in static else "transferred")
                   if x.schedule == "tuned" and x.workload in elsewhere | static else x for x in layers)
    build, verified = _build_facts(b, bucket, artifacts, store, project), _verified(bucket, artifacts, project)
    tuned = set(artifacts[b.module.name].meta.get("schedules", ()))
    build = replace(build, transferred_kernels=len(elsewhere & tuned), static_kernels=len(static & tuned))
    machine = None if b.device else _machine(artifacts.get(b.machine.name), store)
    return BuildReport(build, verified, layers, measured, machine)


def tuned_elsewhere(target: Mapping[str, Any], devices: Sequence[str] = ()) -> tuple[frozenset[str], frozenset[str]]:
    """Workloads whose schedule for a target was confirmed elsewhere than here, or on its devices, as records say; and those
    whose schedule nobody has timed, for it was chosen by a declared cost."""
    if not records_path(settings().store).exists():
        return frozenset(), frozenset()
    here = machine_name(devices)
    with Records(settings().store) as records:
        choices = [c for c in records.choices(target_digest(target)).values() if c.answers]
    timed = [c for c in choices if c.unit.is_time]
    return (frozenset(c.workload for c in timed if c.provenance.get("machine") != here),
            frozenset(c.workload for c in choices) - frozenset(c.workload for c in timed))


def _build_facts(
    b: BuildTasks, bucket: BucketTasks, artifacts: Mapping[str, Artifact], store: Store, project: Path | None,
) -> BuildFacts:
    module = artifacts[b.module.name]
    graph = artifacts[bucket.graph.name]
    return BuildFacts(
        name=bucket.name, artifact=b.name, model=b.build.model, target=b.build.target, precision=b.build.precision,
        size_bytes=module.size_bytes,
        weights_bytes=module.meta.get("weights_bytes", 0), arena_bytes=module.meta.get("arena_bytes", 0),
        compile_s=round(sum(_duration_s(t, store, project) for t in _made_by(b.module, artifacts)), 3),
        kernels=module.meta.get("kernels", 0), tuned_kernels=len(module.meta.get("schedules", ())),
        tuned_graph=graph_digest(graph) in module.meta.get("costs", ()),
        digests={"graph": graph.digest, "artifact": module.digest},
    )


def _made_by(task: Task, artifacts: Mapping[str, Artifact]) -> Iterator[Task]:
    """The tasks that made an artifact, each once; those that fetch or generate the model are not compiling."""
    seen: dict[str, Task] = {}
    pending = [task]
    while pending:
        t = pending.pop()
        if t.name in seen or t.name not in artifacts or artifacts[t.name].kind == "model":
            continue
        seen[t.name] = t
        inputs = dict(t.inputs)
        if t.needs is not None:
            inputs |= t.needs({name: artifacts[i.name] for name, i in t.inputs.items()})
        pending.extend(inputs.values())
    yield from seen.values()


def _duration_s(task: Task, store: Store, project: Path | None) -> float:
    past = store.past(str(project), task.name) if project is not None else None
    trace = store.find(past.key) if past is not None else None
    return trace.duration_s if trace is not None else 0.0


def _verified(b: BucketTasks, artifacts: Mapping[str, Artifact], project: Path | None) -> VerifyFacts | None:
    """What the comparison found, whether or not the verdict was good."""
    comparison = b.verify.inputs.get("facts")
    if comparison is None or (artifact := artifacts.get(comparison.name)) is None:
        return None
    facts = dict(artifact.meta["facts"])
    if project is not None and any(name.startswith(f"{REPRO}/") for name in artifact.files):
        facts["repro"] = str(failed_folder(project, b.verify.name) / "inputs" / "facts" / REPRO)
    return from_json(VerifyFacts, facts)


def _measured(artifact: Artifact | None, store: Store) -> tuple[MeasureFacts | None, tuple[LayerFacts, ...]]:
    if artifact is None or FACTS_FILE not in artifact.files:
        return None, ()
    data = json.loads(store.blobs.path(artifact.files[FACTS_FILE].digest).read_text(encoding="utf-8"))
    return from_json(MeasureFacts, data["measure"]), tuple(from_json(LayerFacts, x) for x in data["layers"])


def _machine(artifact: Artifact | None, store: Store) -> MachineFacts | None:
    if artifact is None or MACHINE_FILE not in artifact.files:
        return None
    data = json.loads(store.blobs.path(artifact.files[MACHINE_FILE].digest).read_text(encoding="utf-8"))
    return from_json(MachineFacts, data)
