"""Tuning for a CPU that is only emulated: candidates have static cycles, which are counted here, and are run on the
emulated device to compare what they compute. What it takes to run them there is no time of anything.

    measure     static cycles of every candidate; those that would be the best so far are run
    compare     static cycles of the default and the winners, all of them run
    networks    sums of their kernels' static cycles, both run on the same inputs
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from toolchain.build.store import Store
from toolchain.core.artifact import Artifact
from toolchain.core.errors import CodegenError, DeviceError, MissingToolError, TuneError, UsageError
from toolchain.core.target import Target
from toolchain.core.unit import STATIC_CYCLES
from toolchain.graph.ir import Graph
from toolchain.remote.board import Board
from toolchain.remote.facts import board_facts
from toolchain.report.facts import ContenderFacts
from toolchain.report.statistics import compare, summarize
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.link import cached_runtime_object
from toolchain.targets.llvm.mca import mca_path, static_cycles
from toolchain.targets.llvm.runner_program import machine_of
from toolchain.tasks.boards import RUN_LIMIT_S, open_session
from toolchain.tasks.plan import answers_of
from toolchain.tasks.tuning.boards import Seat, candidate_library
from toolchain.tasks.tuning.confirm import NETWORK_ROUNDS, NetworkVerdict, same_results_on
from toolchain.tasks.tuning.kernels import calls_by_symbol
from toolchain.tasks.tuning.local import Job, LocalMeasurer
from toolchain.tasks.tuning.static_cost import workload_cost
from toolchain.tasks.tuning.trial_run import Workload, prepare
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.space import Point


def is_emulated(boards: Sequence[Board], target: Target, told: Callable[[str], None] = lambda text: None) -> bool:
    """Whether these devices are emulated. Raises UsageError: some are, or nothing counts cycles of that CPU;
    MissingToolError: they are, and llvm-mca is not installed; DeviceError: one is away."""
    emulated = {}
    for board in boards:
        with open_session(board, machine_of(target), told) as session:
            emulated[board.name] = bool(board_facts(session).emulated)
    if not any(emulated.values()):
        return False
    if not all(emulated.values()):
        names = [name for name, it_is in emulated.items() if it_is]
        raise UsageError(f"{', '.join(names)}: emulated, beside boards that are not: times and {STATIC_CYCLES} do not mix",
                         fix="tune on boards alone, or on emulated devices alone")
    if mca_path() is None:
        raise MissingToolError(f"an emulated device is tuned by {STATIC_CYCLES}, and llvm-mca, which counts them, is not "
                               "installed", fix="install LLVM's tools (Debian: apt-get install llvm)")
    try:
        static_cycles([["nop"]], target)
    except CodegenError:
        raise UsageError(f"{', '.join(emulated)}: emulated, and llvm-mca has no model of CPU {target.cpu!r} to count "
                         f"{STATIC_CYCLES} by", where=f"target {target.name!r}", fix="tune on a board") from None
    return True


class StaticMeasurer:
    """Implements `te.tune.measure.Measurer` and `confirm.Comparing`, in static cycles. Use as a context manager: it has a
    session and a worker."""

    def __init__(self, jobs: Sequence[Job], board: Board, told: Callable[[str], None] = lambda text: None) -> None:
        self.jobs = {job.key: job for job in jobs}
        self._builder = LocalMeasurer(jobs)
        self._seat = Seat(board, jobs[0].target if jobs else None, told)
        self._cycles: dict[tuple[str, str], float | str] = {}
        self._ran: dict[tuple[str, str], str] = {}
        self._workload: tuple[str, Workload] | None = None
        try:
            self._seat.check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StaticMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._seat.close()
        self._builder.close()

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]:
        """See `Measurer`. Raises TuneError: the device is away."""
        begun = time.monotonic()
        costs, best, trials = self._costs(task, points), best_cost, list[Trial]()
        for point, cost in zip(points, costs, strict=True):
            error = cost if isinstance(cost, str) else self._run(task, point) if cost < best else ""
            if error or isinstance(cost, str):
                trials.append(Trial(point.answers, (), error, unit=STATIC_CYCLES))
            else:
                best = min(best, cost)
                trials.append(Trial(point.answers, (cost,), unit=STATIC_CYCLES))
        cost_s = (time.monotonic() - begun) / len(points)
        for trial in trials:
            yield replace(trial, cost_s=cost_s)

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]:
        """The same cost in every round. Raises TuneError: one of them fails, or computes something else."""
        costs = self._costs(task, points)
        for point, cost in zip(points, costs, strict=True):
            if error := cost if isinstance(cost, str) else self._run(task, point):
                raise TuneError(error)
        return [[float(cost)] * rounds for cost in costs]

    def _costs(self, task: str, points: Sequence[Point]) -> list[float | str]:
        missing = [p for p in points if (task, p.signature) not in self._cycles]
        if missing:
            found = self._builder.static_cycles(task, missing)
            self._cycles.update({(task, p.signature): cost for p, cost in zip(missing, found, strict=True)})
        return [self._cycles[task, p.signature] for p in points]

    def _run(self, task: str, point: Point) -> str:
        """On the emulated device; what is wrong with it, "" for nothing."""
        key = task, point.signature
        if key not in self._ran:
            self._ran[key] = self._run_anew(task, point)
        return self._ran[key]

    def _run_anew(self, task: str, point: Point) -> str:
        if error := self._builder.build(task, [point])[0]:
            return error
        job = self.jobs[task]
        if self._workload is None or self._workload[0] != task:
            self._workload = None                               # one at a time: arrays may be large
            self._workload = task, prepare(job.body, job.weights, 0)
        kernel: Kernel = pickle.loads(self._builder.file(task, point).read_bytes())        # written by our own worker
        workload = self._workload[1]
        try:
            library = candidate_library(kernel, workload, job.target, cached_runtime_object(job.target).read_bytes())
            ((_, error),) = self._seat.run(workload, [library], RUN_LIMIT_S, None)
        except CodegenError as refused:
            return f"build: {refused.what}"
        except DeviceError as away:
            raise TuneError(away.what, fix="the same command goes on where this one ended") from None
        return error


# -- networks ---------------------------------------------------------------------------------------------------------------


class NetworkCosts:
    """Static cycles of whole artifacts. bodies: of all kernels that may be in them, by workload."""

    def __init__(self, bodies: Mapping[str, Graph], target: Target, store: Store) -> None:
        self._bodies, self._target, self._store = bodies, target, store
        self._costs: dict[tuple[str, str], tuple[str, float]] = {}

    def cycles(self, artifact: Artifact) -> float:
        """One run on one core: every kernel as often as the plan calls it."""
        plans = json.loads(self._store.blobs.paths(artifact.files)["plan.json"].read_text(encoding="utf-8"))
        calls = calls_by_symbol(plans)
        costs = dict(self._cost(key, artifact.meta["schedules"].get(key, "")) for key in self._bodies)
        return math.fsum(costs[symbol] * n for symbol, n in calls.items())

    def _cost(self, workload: str, schedule: str) -> tuple[str, float]:
        """(symbol, static cycles) of a kernel by its answers as artifacts state them."""
        if (workload, schedule) not in self._costs:
            symbol, cost = workload_cost(self._bodies[workload], self._target, answers_of(schedule))
            self._costs[workload, schedule] = symbol, cost.cycles
        return self._costs[workload, schedule]


def compare_network_costs(
    board: Board, costs: NetworkCosts, default: Artifact, tuned: Artifact, store: Store, threads: int,
) -> NetworkVerdict | None:
    """As `compare_networks`, by static cycles. None: on the emulated device one of them did not run, or their outputs differ
    by more than rounding."""
    if not same_results_on(board, default, tuned, store, threads):
        return None
    before, after = (summarize(ContenderFacts(name, bursts_us=((costs.cycles(artifact),),) * NETWORK_ROUNDS))
                     for name, artifact in (("default", default), ("tuned", tuned)))
    comparison = compare(after, before)
    assert comparison is not None
    return NetworkVerdict(comparison, before.median_us, after.median_us)


__all__ = ["NetworkCosts", "StaticMeasurer", "compare_network_costs", "is_emulated"]
