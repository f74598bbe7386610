"""Whole networks in `tc tune`: built with what has won alone, and compared with what would be there without it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from toolchain.build.records import GraphChoice
from toolchain.build.store import Store
from toolchain.cli.build import execute
from toolchain.cli.project import Project
from toolchain.core.artifact import Artifact
from toolchain.core.errors import UsageError
from toolchain.core.target import Target
from toolchain.core.unit import MICROSECONDS, Unit
from toolchain.graph.serialize import from_json
from toolchain.remote.board import Board
from toolchain.tasks.boards import board_of
from toolchain.tasks.plan import UNTUNED, BuildTasks, Costs, Tuned, graph_digest, target_digest
from toolchain.tasks.tuning.confirm import (
    MOST_NETWORK_ROUNDS,
    NETWORK_ROUNDS,
    NetworkVerdict,
    compare_networks,
    compare_networks_on,
)
from toolchain.tasks.tuning.deadline import Deadline
from toolchain.tasks.tuning.emulated import NetworkCosts, compare_network_costs
from toolchain.tasks.tuning.graphs import GraphOf, decided
from toolchain.tasks.tuning.tune import of_unit

NOT_BUILT = "could not be built"
OTHER_RESULT = "the tuned artifact does not compute the same"


def boards_of(project: Project, tasks: Sequence[BuildTasks]) -> list[Board]:
    """The devices that all these builds are tuned on; none: this machine. Raises UsageError: they are not the same."""
    used = list(dict.fromkeys(b.devices for b in tasks))
    if len(used) > 1:
        where = [f"{', '.join(b.name for b in tasks if b.devices == d)} on {', '.join(d) or 'this machine'}" for d in used]
        raise UsageError(f"builds that are tuned in different places: {'; '.join(where)}", fix="tune one after the other")
    return [board_of(name, project.deployfile.devices[name]) for devices in used for name in devices]


@dataclass(frozen=True, slots=True)
class Told:
    """What came of comparing two artifacts of a build. verdict: None where there is none, and `text` says why."""

    text: str
    verdict: NetworkVerdict | None = None

    @property
    def is_refused(self) -> bool:
        """Whether winners that were confirmed alone make no artifact to be had."""
        return self.verdict is None or self.verdict.comparison.verdict == "slower"

    @property
    def is_faster(self) -> bool:
        return self.verdict is not None and self.verdict.comparison.verdict == "faster"


@dataclass(slots=True)
class Networks:
    """The builds of one `tc tune`. default, artifacts: as Target facts make them. other, others: those of them whose graphs
    measured costs have changed, and their artifacts. deadline: until then networks are compared.
    unit: of costs; static cycles where the builds' devices are emulated."""

    project: Project
    names: Sequence[str]
    default: Sequence[BuildTasks]
    artifacts: Mapping[str, Artifact]
    store: Store
    deadline: Deadline
    unit: Unit = MICROSECONDS
    by: Mapping[GraphOf, Costs] = field(default_factory=dict)
    other: tuple[BuildTasks, ...] = ()
    others: Mapping[str, Artifact] = field(default_factory=dict)

    def decide_graphs(self, by: Mapping[GraphOf, Costs]) -> None:
        """Find the builds whose graphs are other ones by these costs, and build them with default schedules."""
        tasks = self.project.tasks(self.names, decided(UNTUNED, by))
        goals = {b.name: tuple(bucket.optimized for bucket in b.buckets) for b in tasks}
        made = execute(self.project, goals, keep_going=True, is_result=False, noun="graphs").artifacts
        other = tuple(b for before, b in zip(self.default, tasks, strict=True)
                      if _is_another(before, self.artifacts, b, made))
        self.by, self.other = by, ()
        if other:
            goals = {b.name: (b.module, *(bucket.optimized for bucket in b.buckets)) for b in other}
            self.others = execute(self.project, goals, keep_going=True, is_result=False, noun="other graphs").artifacts
            self.other = tuple(b for b in other if b.module.name in self.others)

    def compare(self, tuned: Tuned) -> tuple[dict[str, Told], dict[str, Told]]:
        """By build, what comparing them showed: winners beside default schedules in the graph that Target facts decide; and
        the graph that costs decide, with its winners, beside the better of the two."""
        first = self._with(self.names, tuned, "tuned builds")
        left = sum(b.module.name in first and first[b.module.name].digest != self.artifacts[b.module.name].digest
                   for b in self.default) + len(self.other)
        told: dict[str, Told] = {}
        best = dict(self.artifacts)
        for b in self.default:
            if (made := first.get(b.module.name)) is None:
                told[b.name] = Told(NOT_BUILT)
            elif made.digest != best[b.module.name].digest:
                told[b.name], left = self._beside(b, best[b.module.name], made, left), left - 1
                best[b.module.name] = best[b.module.name] if told[b.name].is_refused else made
        graphs: dict[str, Told] = {}
        for b in self.other:
            schedules = UNTUNED if b.name in told and told[b.name].is_refused else tuned
            made = self._with((b.name,), decided(schedules, self.by), "tuned builds").get(b.module.name)
            graphs[b.name] = self._beside(b, best[b.module.name], made, left) if made is not None else Told(NOT_BUILT)
            left -= 1
        return told, graphs

    def _with(self, names: Sequence[str], tuned: Tuned, noun: str) -> Mapping[str, Artifact]:
        tasks = self.project.tasks(names, tuned)
        return execute(self.project, {b.name: (b.module,) for b in tasks}, keep_going=True, is_result=False,
                       noun=noun).artifacts

    def _beside(self, b: BuildTasks, before: Artifact, after: Artifact, left: int) -> Told:
        """left: how many comparisons share the time that is left."""
        target = Target.from_json(self.artifacts[b.target.name].meta["target"])
        boards, later_s = boards_of(self.project, [b]), (left - 1) / max(1, left) * max(0.0, self.deadline.left_s())
        more = self.deadline.rounds(NETWORK_ROUNDS, MOST_NETWORK_ROUNDS, later_s)
        verdict = (compare_network_costs(boards[0], self._costs(b, target), before, after, self.store, target.cores)
                   if not self.unit.is_time else
                   compare_networks_on(boards[0], before, after, self.store, target.cores, more) if boards else
                   compare_networks(before, after, self.store, target.cores, more))
        return Told(OTHER_RESULT) if verdict is None else Told(str(verdict), verdict)

    def _costs(self, b: BuildTasks, target: Target) -> NetworkCosts:
        """Of a build's artifacts, by whatever graph."""
        optimized = [found[bucket.optimized.name].meta["kernels"] for found, some in
                     ((self.artifacts, self.default), (self.others, self.other)) for same in some if same.name == b.name
                     for bucket in same.buckets]
        bodies = {key: from_json(body["graph"]) for kernels in optimized for key, body in kernels.items()}
        return NetworkCosts(bodies, target, self.store)

    def choices(self, graphs: Mapping[str, Told], machine: str, versions: Mapping[str, str]) -> list[GraphChoice]:
        """What the records keep of graphs that were compared. One of two builds (for targets that are alike) that did not
        become faster refuses for both."""
        found: dict[GraphOf, GraphChoice] = {}
        for b in sorted(self.other, key=lambda b: graphs[b.name].is_faster, reverse=True):
            told, target = graphs[b.name], target_digest(self.artifacts[b.target.name].meta["target"])
            for bucket in b.buckets:
                of = graph_digest(self.artifacts[bucket.graph.name]), target
                kept = self.by.get(of, {}) if told.is_faster else {}
                before, after = (told.verdict.default_cost, told.verdict.tuned_cost) if told.verdict else (0.0, 0.0)
                provenance = {"machine": machine, "versions": dict(versions), "compared": told.text,
                              "rejected": {} if told.is_faster else self.by.get(of, {}), **of_unit(self.unit)}
                found[of] = GraphChoice(*of, kept, bucket.name, before, min(before, after) if kept else before,
                                        time.time(), provenance)
        return list(found.values())


def _is_another(
    before: BuildTasks, artifacts: Mapping[str, Artifact], after: BuildTasks, made: Mapping[str, Artifact],
) -> bool:
    return any(y.optimized.name in made and made[y.optimized.name].files != artifacts[x.optimized.name].files
               for x, y in zip(before.buckets, after.buckets, strict=True))
