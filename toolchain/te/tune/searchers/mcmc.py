"""Metropolis sampling: a walk whose places are as frequent as exp(-BETA * relative cost).

A step is decided in two stages. What the analytic model says of the one answer that changes is known at once (FlexFlow's
delta evaluation): most bad steps end there, before their schedule is even made. What is left is measured, and the second
stage corrects the first, so that the walk is the one that measuring everything would give.

Source: FlexFlow (Jia, Zaharia, Aiken, "Beyond Data and Model Parallelism for Deep Neural Networks", MLSys 2019): symmetric
proposals, accepted with min(1, exp(BETA * (cost - cost'))); a new walk from the best point after half the search in vain.
The two stages: Christen and Fox, "Markov Chain Monte Carlo Using an Approximation", 2005.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.searcher import PATIENCE, Searcher
from toolchain.te.tune.space import Point, Space

BETA = 10.0             # a step that is 10 % slower is taken with probability 1/e
MOST = 2.0              # that the analytic model may say of a step, as a logarithm: it knows little of great differences


class MCMC(Searcher):
    """Mutations of where the walk is, at one temperature."""

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        super().__init__(space, seed, model)
        self._at: Point | None = None
        self._improved_at = 0

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        before = self.best
        super().learn(trials)
        for point, trial in trials:
            if not trial.error and (self._at is None or self._accepts(
                    trial.best_cost / self.cost(self._at) - 1 - self._expected(self._at, point))):
                self._at = point
        if self.best is not before:
            self._improved_at = len(self.trials)
        elif self._improved_at and len(self.trials) > 2 * self._improved_at:
            self._at, self._improved_at = self.best, len(self.trials)

    def next(self) -> Point | None:
        if self._at is None:
            return self.draw()
        return self.first_new(p for _ in range(PATIENCE) if (p := self._step(self._at)) is not None) or self.draw()

    def _step(self, at: Point) -> Point | None:
        """One answer changed by chance, if the first stage takes it."""
        open_ = [q for q in at.questions if len(q.options) > 1]
        if not open_:
            return None
        q = self.rng.choice(open_)
        answer = self.rng.choice([o for o in q.options if o != q.answer])
        change = math.log(q.costs[q.options.index(answer)] / q.costs[q.options.index(q.answer)])
        if not self._accepts(max(-MOST, min(MOST, change))):
            return None
        return self.space.point({**at.answers, q.name: answer})

    def _expected(self, a: Point, b: Point) -> float:
        """What the first stage has said of a step between the two, as near as the questions of both tell."""
        return max(-MOST, min(MOST, math.log(b.expected / a.expected)))

    def _accepts(self, worse: float) -> bool:
        """Whether the walk takes a step whose cost is higher by that part."""
        return worse <= 0 or self.rng.random() < math.exp(-BETA * worse)
