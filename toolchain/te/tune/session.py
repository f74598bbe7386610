"""A tuning session: many tasks, one budget. Which task is next, what is measured, when to stop; how to go on after a kill.

    for each task: the default schedule              candidate 0: nothing slower can ever replace it
    until the budget is spent, or nothing is left:
        the task where a second buys most            weights, recent gains, time spent so far
        its searcher proposes a batch; measure, commit, learn

Every trial is committed to the log with what it cost before the next begins. A session that is started again finds there
what it asks for, and measures nothing twice; since it decides from trials and their recorded cost alone, never from the
clock, it arrives where the killed one was, and goes on as that would have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from toolchain.core.errors import TuneError
from toolchain.core.unit import Unit
from toolchain.te.tune.measure import Measurer, Trial
from toolchain.te.tune.model import Analytic, CostModel, Sample
from toolchain.te.tune.searchers import SEARCHERS, Searcher
from toolchain.te.tune.space import Point, Space

BATCH = 4
RECENT = 0.5                # weight of recent gains against what may be left, in `_Search.gain`
WINDOW = 3                  # batches that are recent
ALL_FAIL = 12               # candidates that fail for one reason, before anything succeeds, end the session


@dataclass(frozen=True, slots=True, eq=False)
class TuneTask:
    """One kernel to tune. key: its canonical workload. uses: how many times a run of the networks needs it, weighted.

    hints: answers that did well elsewhere (another machine, another compiler), which are measured next to the default.
    """

    key: str
    name: str
    space: Space
    uses: float = 1.0
    hints: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a session's log. point: what was measured, where the log does not know it from elsewhere."""

    task: str
    trial: Trial
    point: Point | None = field(default=None, compare=False)


class Log(Protocol):
    """Where a session's trials are kept: on disk before `append` returns."""

    def entries(self) -> Sequence[Entry]:
        """Of this session."""
        ...

    def append(self, entry: Entry) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When a session ends: budget_s of trials (infinite: no limit), or `trials` per task (the default's included)."""

    budget_s: float = math.inf
    trials: int = 1000
    batch: int = BATCH


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a task. Costs are of one call; infinite: not measured. default_cost: the best cost of the default,
    which is measured again beside candidates; so best_cost may be above it. failures: how many, by cause."""

    name: str
    trials: int
    default_cost: float
    best_cost: float
    best: Point | None
    failures: Counter[str]
    exhausted: bool


@dataclass(slots=True, eq=False)
class _Search:
    """A task under way."""

    task: TuneTask
    searcher: Searcher
    spent_s: float = 0.0
    trials: int = 0
    proposed_all: bool = False
    again_cost: float = math.inf        # the default, measured again beside candidates: it is reported, and decides nothing
    failures: Counter[str] = field(default_factory=Counter)
    history: list[tuple[float, float]] = field(default_factory=list)     # (spent_s, best_cost) after each batch

    @property
    def best_cost(self) -> float:
        best = self.searcher.best
        return math.inf if best is None else self.searcher.cost(best)

    @property
    def default_cost(self) -> float:
        default = self.task.space.default
        return self.searcher.cost(default) if default in self.searcher.trials else math.inf

    def gain(self) -> float:
        """Microseconds of a run of the networks that a second here may save: what the last batches did, and what as much
        time again might, at most (Ansor's gradient, Zheng et al. 2020, section 6, without similarity between tasks)."""
        best = self.best_cost
        if math.isinf(best):
            return 0.0
        (then_s, then_cost), (now_s, now_cost) = self.history[-min(len(self.history), WINDOW + 1)], self.history[-1]
        recent = (then_cost - now_cost) / (now_s - then_s) if now_s > then_s and math.isfinite(then_cost) else 0.0
        return self.task.uses * (RECENT * recent + (1 - RECENT) * best / max(self.spent_s, 1e-9))


_Place = tuple[str, frozenset[tuple[str, str]]]         # a task's key, a point's answers


def _by_place(entries: Iterable[Entry]) -> dict[_Place, Trial]:
    return {(e.task, frozenset(e.trial.answers.items())): e.trial for e in entries}


class Session:
    """Runs once. `standings` may be asked at any time, after an exception too."""

    def __init__(
        self, tasks: Sequence[TuneTask], measurer: Measurer, log: Log, *, searcher: str = "auto", seed: int = 0,
        limits: Limits = Limits(), on_trial: Callable[[TuneTask, Trial], None] = lambda task, trial: None,
        clock: Callable[[], float] = lambda: 0.0, model: CostModel | None = None, earlier: Sequence[Limits] = (),
        known: Sequence[Entry] = (),
    ) -> None:
        """clock: seconds; what passes between two batches (proposing takes time) is a cost of the second one's first trial.
        model: learns from the trials of all tasks; None: the analytic one. earlier: limits of the runs that came to their
        end before, which are gone through again (the log has all of it): what follows then follows from the same state.
        known: what others have measured of these tasks: not measured again, not in the log, and no cost of the budget.
        """
        self.earlier = tuple(earlier)
        self._clock, self._since_s = clock, clock()
        self.measurer, self.log, self.limits, self.on_trial = measurer, log, limits, on_trial
        self.model: CostModel = Analytic() if model is None else model
        self.searches = {t.key: _Search(t, SEARCHERS[searcher](t.space, _seed(seed, t.key), self.model)) for t in tasks}
        for search in self.searches.values():
            search.searcher.hints = list(search.task.hints)
        self.spent_s = 0.0
        self.unit: Unit | None = None                   # of all costs; the first trial tells
        self.replayed, self.replayed_s = 0, 0.0         # trials that the log had, and what they have cost once
        self.reused = 0                                 # trials that others had measured
        self._logged: dict[_Place, Trial] = {}
        self._known = _by_place(known)

    def run(self) -> None:
        """Raises TuneError: the first candidates all fail for one reason."""
        self._logged = _by_place(self.log.entries())
        for limits in (*self.earlier, self.limits):
            self.limits = limits
            self._until_spent()

    def _until_spent(self) -> None:
        for first in self.searches.values():
            if not first.trials and self._affordable(first) >= 1:
                self._measure(first, [first.task.space.default])
        while (search := self._next()) is not None:
            wanted = min(self.limits.batch, self.limits.trials - search.trials, self._affordable(search))
            points = search.searcher.propose(wanted)
            search.proposed_all = len(points) < wanted
            self._measure(search, points)
            self._stop_if_all_fail()

    def extend(self, budget_s: float) -> None:
        """After `run`: go on until trials have cost so much. Raises as it does."""
        self.limits, self._since_s = replace(self.limits, budget_s=budget_s), self._clock()
        self._until_spent()

    def standings(self) -> list[Standing]:
        return [Standing(s.task.name, s.trials, min(s.default_cost, s.again_cost), s.best_cost, s.searcher.best,
                         s.failures, self._is_done(s))
                for s in self.searches.values()]

    def best(self, key: str, n: int, below: float = math.inf) -> list[Point]:
        """The fastest points of a task that take less than below, at most n, the default left out."""
        task, searcher = self.searches[key].task, self.searches[key].searcher
        return [p for p in searcher.ranked() if p != task.space.default and searcher.cost(p) < below][:n]

    def first_error(self) -> str:
        """Of the trials; "": none has failed."""
        errors = (t.error for s in self.searches.values() for t in s.searcher.trials.values() if t.error)
        return next(errors, "")

    # -- choosing -----------------------------------------------------------------------------------------------------

    def _next(self) -> _Search | None:
        """The task where time buys most; None: nothing is left to do, or no time to do it."""
        open_ = [s for s in self.searches.values() if not self._is_done(s) and self._affordable(s) >= 1]
        return max(open_, key=_Search.gain, default=None)

    def _is_done(self, search: _Search) -> bool:
        broken = search.trials > 0 and math.isinf(search.default_cost)        # nothing to compare with
        return search.proposed_all or broken or search.trials >= self.limits.trials

    def _affordable(self, search: _Search) -> int:
        """How many more trials of a task the budget holds, by what its trials have cost."""
        each = search.spent_s / search.trials if search.trials else self._mean_cost_s()
        left = self.limits.budget_s - self.spent_s
        return int(min(left / each, 1e6)) if each > 0 and math.isfinite(left) else self.limits.batch if left > 0 else 0

    def _mean_cost_s(self) -> float:
        trials = sum(s.trials for s in self.searches.values())
        return sum(s.spent_s for s in self.searches.values()) / trials if trials else 0.0

    # -- measuring ----------------------------------------------------------------------------------------------------

    def _measure(self, search: _Search, points: Sequence[Point]) -> None:
        """From the log where it has them, else for real, committed one by one."""
        learned: list[tuple[Point, Trial]] = []
        for point, trial in self._trials(search, points):
            self.unit = self.unit or trial.unit
            if trial.unit is not self.unit:
                raise ValueError(f"a cost in {trial.unit} in a session of {self.unit}")
            learned.append((point, trial))
            search.trials += 1
            search.spent_s += trial.cost_s
            if trial.default_cost:
                search.again_cost = min(search.again_cost, trial.default_cost)
            if trial.error:
                search.failures[trial.cause] += 1
            self.on_trial(search.task, trial)
        search.searcher.learn(learned)
        self.model.learn(search.task.key, [Sample(p.features, p.expected, t.best_cost) for p, t in learned])
        search.history.append((search.spent_s, search.best_cost))

    def _trials(self, search: _Search, points: Sequence[Point]) -> Iterator[tuple[Point, Trial]]:
        places = [(search.task.key, frozenset(p.key)) for p in points]
        measured = self._measured(search, [p for p, place in zip(points, places, strict=True)
                                           if place not in self._logged and place not in self._known])
        reused = 0
        for point, place in zip(points, places, strict=True):
            if (trial := self._logged.get(place)) is not None:
                self.replayed += 1
                self.replayed_s += trial.cost_s
            elif (trial := self._known.get(place)) is not None:
                reused += 1
                yield point, trial
                continue
            else:
                trial = next(measured)
            self.spent_s += trial.cost_s
            yield point, trial
        self.reused += reused
        if reused < len(points):            # else the time that proposing took is a cost of the next that is measured
            self._since_s = self._clock()

    def _measured(self, search: _Search, points: Sequence[Point]) -> Iterator[Trial]:
        """For real: each is in the log before it is given out."""
        if not points:
            return
        if points[0].refused:               # only ever a default
            found: Iterable[Trial] = [Trial(p.answers, error=f"refused: {p.refused}") for p in points]
        else:
            found = self.measurer.measure(search.task.key, points, search.best_cost)
        between_s = self._clock() - self._since_s
        for point, trial in zip(points, found, strict=True):
            trial = replace(trial, answers=point.answers, cost_s=trial.cost_s + between_s)
            between_s = 0.0
            self.log.append(Entry(search.task.key, trial, point))
            yield trial

    def _stop_if_all_fail(self) -> None:
        causes = sum((s.failures for s in self.searches.values()), Counter())
        trials = sum(s.trials for s in self.searches.values())
        candidates = trials - len(self.searches)
        if candidates >= ALL_FAIL and len(causes) == 1 and causes.total() >= candidates:
            raise TuneError(f"the first {candidates} candidates all failed: {self.first_error()}",
                            fix="nothing was changed; the default schedules stay")


def _seed(seed: int, key: str) -> int:
    """Another one for each task, the same in every process (hash() is not)."""
    return int.from_bytes(f"{seed}:{key}".encode(), "big")
