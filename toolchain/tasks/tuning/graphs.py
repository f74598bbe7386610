"""Which algorithms and layouts a network takes, by measurement: its heavy nodes, what their alternatives cost.

    heavy_nodes    the distinct nodes of some builds that can be computed in several ways, each way as a kernel, with the
                   operators that the network fuses behind it
    costs          what a session found of those kernels, as `kernels.alternatives` decides graphs by it
    decided        for `plan`: builds whose graphs are decided by costs

A graph that costs change is built, its kernels are tuned like all others, and it stays if the whole network is faster by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from toolchain.build.store import Store
from toolchain.core.artifact import Artifact
from toolchain.core.errors import ScheduleError
from toolchain.core.target import Target
from toolchain.core.unit import MICROSECONDS, Unit
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.fuse_operators import behind
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.serialize import load_files
from toolchain.kernels.alternatives import Alternative, alternatives, fused_alternative, node_key
from toolchain.kernels.build import anchor_name
from toolchain.kernels.flops import computed_flops
from toolchain.kernels.layouts import CLOCK_GHZ
from toolchain.tasks.optimize import prepare_graph, workload_of
from toolchain.tasks.plan import BuildTasks, Costs, Tuned, graph_digest, target_digest
from toolchain.tasks.tuning.candidates import scheduled, space_of
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.local import Job, cores_for
from toolchain.tasks.tuning.static import footprint
from toolchain.te.tune.session import Standing

SHARE = 0.005       # of what Target facts expect of all that leaves a choice: lighter nodes are left as they are
HOPELESS = 3.0      # times what the cheapest way is expected to cost: not measured
TRIALS = 4          # schedules of each way, the default one first
BUDGET = 0.2        # the part of a budget that goes into this, at most

GraphOf = tuple[str, str]       # digests of an imported graph and of a Target


@dataclass(frozen=True, slots=True, eq=False)
class HeavyNode:
    """Nodes of one `node_key`, for one target. graphs: that have some. ways: kernels by name of the alternative; idle: how
    many times longer than its share the busiest core works, by the same names. weight: microseconds that all of them are
    expected to take in a run, times how close the best two ways are expected to be: where measuring decides most."""

    key: str
    ways: Mapping[str, TunedKernel]
    idle: Mapping[str, float]
    weight: float
    graphs: set[GraphOf] = field(default_factory=set)


def heavy_nodes(tasks: Sequence[BuildTasks], artifacts: Mapping[str, Artifact], store: Store) -> list[HeavyNode]:
    """Of all builds together, those first where measuring decides most. artifacts: of the builds' tasks, by name."""
    found: dict[tuple[str, str], HeavyNode] = {}
    for build in tasks:
        target = Target.from_json(artifacts[build.target.name].meta["target"])
        digest = target_digest(target.to_json())
        for bucket in build.buckets:
            imported = artifacts[bucket.graph.name]
            graph = prepare_graph(load_files(store.blobs.paths(imported.files)), target)
            for node in _of_graph(graph, target, digest, build.name):
                found.setdefault((node.key, digest), node).graphs.add((graph_digest(imported), digest))
    return sorted(found.values(), key=lambda n: -n.weight)


def _of_graph(graph: Graph, target: Target, digest: str, build: str) -> Iterator[HeavyNode]:
    uses: Counter[str] = Counter()
    seen: dict[str, list[_Seen]] = {}
    fused: dict[int, dict[Node, tuple[Node, ...]]] = {}
    for node, owner in _nodes(graph):
        if node.op in ("If", "Loop", "Scan") or not (some := alternatives(node, owner, target)) or len(some) == 1:
            continue
        key = node_key(node, owner)
        uses[key] += 1
        if id(owner) not in fused:
            fused[id(owner)] = behind(owner)
        seen.setdefault(key, []).append(_Seen(fused[id(owner)].get(node, ()), owner, some))
    usual = {key: _usual(some) for key, some in seen.items()}
    promised = {key: sorted(a.option.cost for a in one.ways) for key, one in usual.items()}
    total = sum(uses[key] * costs[0] for key, costs in promised.items())
    for key, one in usual.items():
        best, second, *_ = promised[key]
        near = [a for a in one.ways if a.option.cost <= HOPELESS * best]
        if len(near) < 2 or uses[key] * best < SHARE * total:
            continue
        made = {a.name: kernel for a in near
                if (kernel := _kernel(a, one, target, digest, build, uses[key])) is not None}
        if len(made) > 1:
            idle = {name: _idle(kernel, target) for name, kernel in made.items()}
            yield HeavyNode(key, made, idle, uses[key] * best * best / second)


def _nodes(graph: Graph) -> Iterator[tuple[Node, Graph]]:
    for node in graph.nodes:
        yield node, graph
        for body in bodies(node).values():
            yield from _nodes(body)


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A node of some key: what fuses behind it, in its graph; the ways to compute it."""

    behind: tuple[Node, ...]
    owner: Graph
    ways: tuple[Alternative, ...]

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(n.op for n in self.behind)


def _usual(seen: Sequence[_Seen]) -> _Seen:
    """Nodes of one key share their costs: one that has behind it what most of them have."""
    counts = Counter(one.ops for one in seen)
    return max(seen, key=lambda one: counts[one.ops])


def _kernel(
    a: Alternative, one: _Seen, target: Target, digest: str, build: str, uses: int,
) -> TunedKernel | None:
    """As the network has it, with what fuses behind it. None: it has no schedule of its own."""
    body, weights = fused_alternative(a, one.behind, one.owner)
    workload = workload_of(body)
    try:
        space = space_of(workload.body, target, {})
    except ScheduleError:
        return None
    job = Job(f"{workload.key}.{digest[:12]}", workload.body, target, weights, computed_flops(a.node, a.types))
    name = f"{anchor_name(workload.body)} {a.name}"
    return TunedKernel(job.key, workload.key, digest, job, space, uses, frozenset((build,)), name)


def _idle(kernel: TunedKernel, target: Target) -> float:
    assert kernel.space is not None
    chunks = footprint(scheduled(kernel.job.body, target, kernel.space.default.answers).func, target).chunks
    return target.cores * math.ceil(chunks / target.cores) / chunks


def distinct(nodes: Sequence[HeavyNode]) -> list[TunedKernel]:
    """All kernels of these nodes, each once, in order."""
    return list({kernel.key: kernel for node in nodes for kernel in node.ways.values()}.values())


def costs(
    nodes: Sequence[HeavyNode], standings: Mapping[str, Standing], unit: Unit = MICROSECONDS, all_cores: bool = False,
) -> dict[GraphOf, dict[str, dict[str, float]]]:
    """What was measured, by graph: of nodes all of whose ways were. One that failed has no cost. standings: by kernel;
    unit: of theirs. Beside what comes back stand nodes and conversions that nobody measured, by a model in microseconds:
    cycles become what they take at that model's clock.

    Costs are of all cores together, as those of conversions are. all_cores: kernels were timed so; else, on one thread, what
    leaves cores idle costs their time as well.
    """
    scale = 1.0 if unit.is_time else 1 / (CLOCK_GHZ * 1e3)
    found: dict[GraphOf, dict[str, dict[str, float]]] = {}
    for node in nodes:
        of = {name: standings[kernel.key] for name, kernel in node.ways.items()}
        times = {name: cores_for(kernel.job.target) if all_cores else node.idle[name] for name, kernel in node.ways.items()}
        us = {name: float(f"{s.best_cost * scale * times[name]:.4g}") for name, s in of.items()
              if math.isfinite(s.best_cost)}
        if len(us) > 1 and all(s.trials for s in of.values()):
            for graph in node.graphs:
                found.setdefault(graph, {})[node.key] = us
    return found


def decided(schedules: Tuned, by: Mapping[GraphOf, Costs]) -> Tuned:
    """`schedules`, with graphs decided by costs."""
    return Tuned(schedules.schedules, lambda build, graph, target: by.get((graph, target), {}))
