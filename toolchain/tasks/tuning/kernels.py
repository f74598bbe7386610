"""Which kernels there are to tune: those of the built artifacts, each once, and how often a run of the networks needs it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolchain.build.store import Store
from toolchain.core.artifact import Artifact
from toolchain.core.errors import ScheduleError, UsageError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.serialize import from_json, load_files
from toolchain.kernels.flops import computed_flops
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.plan import calls_of, plans_from_json
from toolchain.tasks.plan import ENGINES, BuildTasks, target_digest
from toolchain.tasks.tuning.candidates import space_of
from toolchain.tasks.tuning.local import Job
from toolchain.te.tune.session import TuneTask
from toolchain.te.tune.space import Space

SKETCH = "sketch"           # the one that asks questions; plainer ones took a kernel that it refused


@dataclass(frozen=True, slots=True, eq=False)
class TunedKernel:
    """A distinct kernel for one target. key: of sessions and measurers. space: None where there is nothing to choose."""

    key: str
    workload: str
    target_key: str
    job: Job
    space: Space | None
    uses: int
    builds: frozenset[str]
    name: str

    @property
    def task(self) -> TuneTask:
        assert self.space is not None
        return TuneTask(self.key, self.name, self.space, self.uses)


def kernels(tasks: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], store: Store) -> list[TunedKernel]:
    """Of all builds together, in the order they are first needed. artifacts: of all tasks that made the builds, by name.

    Raises UsageError: a target whose code this machine cannot run.
    """
    found: dict[str, TunedKernel] = {}
    for build in tasks:
        target = Target.from_json(artifacts[build.target.name].meta["target"])
        if not build.devices:
            check_runs_here(build.build.target, target)
        for kernel in _of_build(build, target, artifacts, store):
            if (same := found.get(kernel.key)) is not None:
                kernel = _together(same, kernel)
            found[kernel.key] = kernel
    return list(found.values())


def check_runs_here(name: str, target: Target) -> None:
    """Raises UsageError: this processor lacks what the target's code uses."""
    host = host_target()
    here = {f for f in host.features if f.startswith("+")}
    missing = sorted(f[1:] for f in target.features if f.startswith("+") and f not in here)
    if target.kind != host.kind or missing:
        what = f"code for {target.kind}" if target.kind != host.kind else ", ".join(missing[:5])
        if target.kind in ENGINES:
            raise UsageError(f"not yet: tuning in {ENGINES[target.kind]}", where=f"targets.{name}.kind: {target.kind}",
                             fix="tune other targets; this one takes default schedules")
        raise UsageError(f"target {name!r} cannot be tuned here: this processor has no {what}",
                         fix="give the target a `device` that runs it; or tune on a machine that does, then `tc tune "
                             "--export` there and `--import` here")


def _of_build(
    build: BuildTasks, target: Target, artifacts: Mapping[str, Artifact], store: Store,
) -> Iterator[TunedKernel]:
    assert build.module.needs is not None
    made = build.module.needs({name: artifacts[task.name] for name, task in build.module.inputs.items()})
    facts = {name.removeprefix("kernel "): artifacts[task.name].meta for name, task in made.items()}
    bodies = {k: b for bucket in build.buckets for k, b in artifacts[bucket.optimized.name].meta["kernels"].items()}
    graphs = [load_files(_files(artifacts[bucket.optimized.name], store)) for bucket in build.buckets]
    nodes = {key: node for graph in graphs for key, node in fused_nodes(graph)}
    uses = calls_by_symbol(json.loads(_files(artifacts[build.module.name], store)["plan.json"].read_text(encoding="utf-8")))
    digest = target_digest(target.to_json())
    for key, node in nodes.items():
        body = from_json(bodies[key]["graph"])
        job = Job(f"{key}.{digest[:12]}", body, target, node.weights, node.flops)
        yield TunedKernel(job.key, key, digest, job, _space(body, target, facts[key]), max(1, uses[facts[key]["symbol"]]),
                          frozenset((build.name,)), facts[key]["name"])


def _space(body: Graph, target: Target, facts: Mapping[str, Any]) -> Space | None:
    if facts["sketch"] != SKETCH or not facts["answers"]:
        return None
    try:
        space = space_of(body, target, facts["answers"])
    except ScheduleError:
        return None
    return space if any(len(q.options) > 1 for q in space.default.questions) else None


def together(some: Sequence[TunedKernel], more: Sequence[TunedKernel]) -> list[TunedKernel]:
    """The kernels of two ways to build the same networks: what both need is needed as often as by the one that needs it
    more often."""
    found = {k.key: k for k in some}
    for k in more:
        if (same := found.get(k.key)) is not None:
            k = replace(_together(same, k), uses=max(same.uses, k.uses))
        found[k.key] = k
    return list(found.values())


def _together(a: TunedKernel, b: TunedKernel) -> TunedKernel:
    """One kernel of two builds: what is a weight in one of them only is no weight."""
    weights = tuple(n for n in a.job.weights if n in b.job.weights)
    job = Job(a.key, a.job.body, a.job.target, weights, a.job.flops)
    return TunedKernel(a.key, a.workload, a.target_key, job, a.space, a.uses + b.uses, a.builds | b.builds, a.name)


@dataclass(frozen=True, slots=True)
class KernelNode:
    """What a graph says of a kernel: which of its inputs are constants everywhere, and what a call computes."""

    weights: tuple[int, ...]
    flops: int


def fused_nodes(graph: Graph) -> Iterator[tuple[str, KernelNode]]:
    """Per kernel key, bodies of control flow included."""
    constant: dict[str, set[int]] = {}
    flops: dict[str, int] = {}
    for node, owner in _nodes(graph):
        if node.op == "Fused":
            inputs = [i for i in node.inputs if i]
            here = {n for n, name in enumerate(inputs) if name in owner.params}
            key = node.attrs["kernel"]
            constant[key] = constant.get(key, here) & here
            flops[key] = computed_flops(node, owner.types)
    for key, at in constant.items():
        yield key, KernelNode(tuple(sorted(at)), flops[key])


def _nodes(graph: Graph) -> Iterator[tuple[Node, Graph]]:
    for node in graph.nodes:
        yield node, graph
        if node.op != "Fused":
            for value in node.attrs.values():
                if isinstance(value, Graph):
                    yield from _nodes(value)


def calls_by_symbol(plans: Any) -> Counter[str]:
    """How often a run calls each kernel, by symbol, over all shape buckets; a loop of unknown length counts once."""
    return sum(map(calls_of, plans_from_json(plans)), Counter[str]())


def _files(artifact: Artifact, store: Store) -> Mapping[str, Path]:
    return store.blobs.paths(artifact.files)
