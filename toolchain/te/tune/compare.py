"""Search methods beside each other: the same spaces, the same measurements, several seeds; only the method varies.

    Shared      a measurer that measures each schedule once, whoever asks first
    compare     a session per task, method and seed -> Run: the best time after each trial
    quality     runs -> per method: which part of the best known speed is reached after n trials, at quantiles of the seeds

Because a schedule has one time for all, no method wins by a lucky sample; and because searches are decided by their seed, a
comparison that was killed goes on from the trials in its log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from toolchain.te.tune.measure import Measurer, Trial
from toolchain.te.tune.model import Analytic, CostModel
from toolchain.te.tune.session import Entry, Limits, Log, Session, TuneTask
from toolchain.te.tune.space import Point, Space

QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Run:
    """One search. best_costs: after each trial, the default's first; infinite: nothing yet. failed: trials without one."""

    task: str
    searcher: str
    seed: int
    best_costs: tuple[float, ...]
    failed: int

    def at(self, n: int) -> float:
        """After n trials; a search that had tried everything stays where it was."""
        return self.best_costs[min(n, len(self.best_costs)) - 1]


class Shared:
    """Implements `Measurer` with another one that it asks only for what nobody has asked for. Everything is in the log."""

    def __init__(self, measurer: Measurer, log: Log, spaces: dict[str, Space]) -> None:
        self._measurer, self._log = measurer, log
        self._known = {(e.task, spaces[e.task].point(e.trial.answers).signature): e.trial
                       for e in log.entries() if e.task in spaces}
        self._best = {task: min((t.best_cost for (of, _), t in self._known.items() if of == task), default=math.inf)
                         for task in spaces}

    @property
    def trials(self) -> list[Trial]:
        """What was measured."""
        return list(self._known.values())

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]:
        """How long a hopeless one is measured does not depend on who asks: what counts is the best of all."""
        missing = [p for p in points if (task, p.signature) not in self._known]
        for point, trial in zip(missing, self._measurer.measure(task, missing, self._best[task]) if missing else (),
                                strict=True):
            self._log.append(Entry(task, trial, point))
            self._known[task, point.signature] = trial
            self._best[task] = min(self._best[task], trial.best_cost)
        yield from (self._known[task, p.signature] for p in points)


class _Nothing:
    """A log that keeps nothing: `Shared` has it all."""

    def entries(self) -> Sequence[Entry]:
        return ()

    def append(self, entry: Entry) -> None:
        pass


def compare(
    tasks: Sequence[TuneTask], measurer: Shared, searchers: Sequence[str], seeds: int, trials: int,
    model: Callable[[], CostModel] = Analytic, on_run: Callable[[Run], None] = lambda run: None,
) -> list[Run]:
    """Every method with every seed on every task alone, each with a new model: nothing is known from before."""
    runs = []
    for task in tasks:
        for searcher in searchers:
            for seed in range(seeds):
                done: list[Trial] = []
                session = Session([task], measurer, _Nothing(), searcher=searcher, seed=seed, limits=Limits(trials=trials),
                                  on_trial=lambda _, trial, done=done: done.append(trial), model=model())  # type: ignore[misc]
                session.run()
                best = np.minimum.accumulate([t.best_cost for t in done])
                runs.append(Run(task.name, searcher, seed, tuple(map(float, best)), sum(bool(t.error) for t in done)))
                on_run(runs[-1])
    return runs


def quality(runs: Sequence[Run], searcher: str, n: int, task: str | None = None) -> tuple[float, ...]:
    """The part of the best known speed that a method reaches after n trials, at QUANTILES of its seeds. Over several tasks:
    the geometric mean of a seed's tasks (None: all tasks)."""
    known = {t: min(r.best_costs[-1] for r in runs if r.task == t) for t in {r.task for r in runs if task in (None, r.task)}}
    by_seed: dict[int, list[float]] = {}
    for r in runs:
        if r.searcher == searcher and r.task in known:
            by_seed.setdefault(r.seed, []).append(math.log(known[r.task] / r.at(n)) if math.isfinite(r.at(n)) else -math.inf)
    means = [math.exp(sum(parts) / len(parts)) for parts in by_seed.values()]
    return tuple(float(q) for q in np.quantile(means, QUANTILES))


def trials_to(runs: Sequence[Run], searcher: str, part: float, trials: int) -> int | None:
    """After how many trials the median seed has that part of the best known speed over all tasks; None: not within them."""
    return next((n for n in range(1, trials + 1) if quality(runs, searcher, n)[1] >= part), None)
