"""What the lock file pins of a build: everything outside the deployfile that decides what is made, and what came out.

    [tools]             versions of all packages that shape bytes, and the digest of our own code
    [models.NAME]       what the deployfile says of the model, digests of its files and data, of what a recipe or wheel gave
    [targets.NAME]      what the deployfile says of the target, and everything that was found out about its processor
    [builds."M@T"]      its model and target, the digest of these three sections, its tuned schedules and what its graph was
                        decided by (which a locked build takes from here), the digests of the artifact and its files

Sections of models and targets are shared between builds, which may have been made at different times: the digest a build
keeps of its three sections ("inputs") says whether it was made from what they say now.

Tools, models and targets are known before anything is compiled (`pinned`), builds afterwards (`results`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolchain.build.deployfile import Deployfile, Model, TargetSpec
from toolchain.build.lockfile import Difference, Lock, Name, Section, compare, flatten
from toolchain.build.task import Task
from toolchain.core.artifact import Artifact
from toolchain.core.digest import digest_json
from toolchain.core.versions import installed_version
from toolchain.tasks.code import code_digest
from toolchain.tasks.plan import (
    IMPORT_CODE,
    KERNEL_CODE,
    LINK_CODE,
    OPTIMIZE_CODE,
    VERIFY_CODE,
    BuildTasks,
    Tuned,
    answers_of,
)

TOOLS = ("llvmlite", "ml_dtypes", "numpy", "onnx", "toolchain", "ziglang")     # each is in the keys of the tasks it shapes
CODE = tuple(sorted({*IMPORT_CODE, *KERNEL_CODE, *LINK_CODE, *OPTIMIZE_CODE, *VERIFY_CODE}))
SAID = "deployfile"             # below this key: what the deployfile says
MADE = "made"                   # ... digests of what a recipe wrote, or a wheel held
FILES = "files"                 # ... digests of the files a model and its data are read from, or an artifact has
SCHEDULES = "schedules"         # ... by canonical workload, how kernels with tuned schedules answered their sketch
COSTS = "costs"                 # ... by imported graph, then by node, the measured costs that decided algorithms and layouts
TOOLS_SECTION: Name = ("tools", "")

Sections = dict[Name, Section]


def tools() -> Section:
    return {"code": code_digest(*CODE), **{name: installed_version(name) for name in TOOLS}}


def model_name(b: BuildTasks) -> Name:
    return "models", b.build.model


def target_name(b: BuildTasks) -> Name:
    return "targets", b.build.target


def build_name(b: BuildTasks) -> Name:
    return "builds", b.name


def declared(deployfile: Deployfile) -> frozenset[Name]:
    """The sections that a lock file of this deployfile may have."""
    builds = deployfile.all_builds()
    return frozenset((TOOLS_SECTION, *(("models", b.model) for b in builds), *(("targets", b.target) for b in builds),
                      *(("builds", b.name) for b in builds)))


def makers(b: BuildTasks) -> tuple[Task, ...]:
    """The tasks whose artifacts `pinned` looks into: those that bring the model and resolve the target."""
    return (b.target,) if b.source is None else (b.source, b.target)


def source_files(b: BuildTasks) -> dict[str, Path]:
    """Every file the build reads outside the store, under the names its tasks have for them; where shape buckets have data
    of their own under one name, with the bucket's."""
    files: dict[str, Path] = {}
    pending: list[tuple[Task, str]] = [(b.module, ""), *((x.verify, x.name.partition("@")[0]) for x in reversed(b.buckets))]
    seen: set[str] = set()
    while pending:
        task, bucket = pending.pop()
        if task.name not in seen:
            seen.add(task.name)
            for name, path in task.files.items():
                files[name if files.get(name, path) == path else f"{name} of {bucket}"] = path
            pending.extend((child, bucket) for child in task.inputs.values())
    return files


def pinned(
    tasks: Iterable[BuildTasks], deployfile: Deployfile, artifacts: Mapping[str, Artifact], digests: Mapping[Path, str],
) -> Sections:
    """The sections of tools, models and targets. artifacts: of `makers`; where one is missing, what it would tell is left
    out. digests: of all `source_files`."""
    found: Sections = {TOOLS_SECTION: tools()}
    for b in tasks:
        model, spec = deployfile.models[b.build.model], deployfile.targets[b.build.target]
        made = artifacts.get(b.source.name) if b.source is not None else None
        found[model_name(b)] = flatten({
            SAID: _said_of_model(model), FILES: {n: digests[path] for n, path in source_files(b).items()},
            MADE: {name: file.digest for name, file in made.files.items()} if made is not None else None})
        target = artifacts.get(b.target.name)
        found[target_name(b)] = flatten({SAID: _said_of_target(spec), **(_resolved(target) if target is not None else {})})
    return found


def results(tasks: Iterable[BuildTasks], inputs: Mapping[Name, Section], artifacts: Mapping[str, Artifact]) -> Sections:
    """The sections of builds. inputs: what `pinned` found; artifacts: of the builds' modules."""
    found: Sections = {}
    for b in tasks:
        module, model, target = artifacts[b.module.name], b.build.model, b.build.target
        found[build_name(b)] = flatten({
            "model": model, "target": target, "inputs": inputs_digest(inputs, model, target), "artifact": module.digest,
            SCHEDULES: module.meta.get("schedules", {}), COSTS: module.meta.get("costs", {}),
            FILES: {name: file.digest for name, file in module.files.items()}})
    return found


def locked_tuning(lock: Lock) -> Tuned:
    """For `plan`: the tuned schedules of locked builds, and what decided their graphs, in place of the user's records."""
    def below(build: str, prefix: str) -> dict[str, dict[str, str]]:
        section = lock.sections.get(("builds", build), {})
        said = {key.removeprefix(prefix): str(text) for key, text in section.items() if key.startswith(prefix)}
        return {key: answers_of(text) for key, text in said.items()}

    def costs(build: str, graph: str, target: str) -> dict[str, dict[str, float]]:
        found = below(build, f"{COSTS}.{graph}.")
        return {key: {name: float(us) for name, us in pairs.items()} for key, pairs in found.items()}
    return Tuned(lambda build, target: below(build, f"{SCHEDULES}."), costs)


def inputs_digest(sections: Mapping[Name, Section], model: str, target: str) -> str:
    """Of all that one build is made from."""
    names: tuple[Name, ...] = (TOOLS_SECTION, ("models", model), ("targets", target))
    return digest_json([sections.get(name, {}) for name in names])


def differing_inputs(
    lock: Lock, tasks: Sequence[BuildTasks], deployfile: Deployfile, artifacts: Mapping[str, Artifact],
    digests: Mapping[Path, str],
) -> Iterator[Difference]:
    """What these builds would be made from that is not as locked; a build that is not locked, or was not made from what is.

    Of `makers` without an artifact only what is known without them is compared.
    """
    locked = [b for b in tasks if build_name(b) in lock.sections]
    unknown = {name for b in locked for name, task in ((model_name(b), b.source), (target_name(b), b.target))
               if task is not None and task.name not in artifacts}
    for name, section in pinned(locked, deployfile, artifacts, digests).items() if locked else ():
        yield from compare(name, lock.sections.get(name), section, whole=name not in unknown)
    for b in locked:
        name, now = build_name(b), inputs_digest(lock.sections, b.build.model, b.build.target)
        if (then := lock.sections[name]["inputs"]) != now:
            yield Difference(name, "inputs", then, now)
    for b in tasks:
        if build_name(b) not in lock.sections:
            yield Difference(build_name(b), "", None, None)


def differing_artifacts(lock: Lock, tasks: Iterable[BuildTasks], artifacts: Mapping[str, Artifact]) -> Iterator[Difference]:
    """Artifacts that are not those of the lock file: the files that differ, or the whole where no file does."""
    for b in tasks:
        name = build_name(b)
        section = results((b,), lock.sections, artifacts)[name]
        found = list(compare(name, lock.sections[name], section))
        yield from [d for d in found if d.key.startswith(f"{FILES}.")] or [d for d in found if d.key == "artifact"]


def common_cpu(locked: Section, present: Section, levels: Mapping[str, Sequence[str]]) -> str | None:
    """The highest of the CPU levels (name -> features, the lowest first) that both processors have; None: not one."""
    both = set(_features(locked)) & set(_features(present))
    return next((name for name, features in reversed(levels.items()) if both.issuperset(features)), None)


def _features(section: Section) -> Sequence[str]:
    found = section.get("features", [])
    return found if isinstance(found, list) else []


def _said_of_model(model: Model) -> dict[str, Any]:
    buckets = {label: asdict(bucket) for label, bucket in model.bindings().items() if label}
    wheel = asdict(model.wheel) if model.wheel is not None else None
    return {"path": model.path, "recipe": model.recipe, "wheel": wheel, "shapes": model.shapes, "dims": model.dims,
            "data": asdict(model.data), "buckets": tuple(buckets), "bucket": buckets}


def _said_of_target(spec: TargetSpec) -> dict[str, Any]:
    return {"kind": spec.kind, "cpu": spec.cpu, "features": spec.features, "threads": spec.threads}


def _resolved(artifact: Artifact) -> dict[str, Any]:
    """Everything code generation asks about the processor, and which LLVM makes its code."""
    facts = {name: fact for name, fact in artifact.meta["target"].items() if fact or fact is False}
    facts["scopes"] = {scope["name"]: scope for scope in facts.get("scopes", ())}
    return {"llvm": artifact.meta["llvm"], **facts}

