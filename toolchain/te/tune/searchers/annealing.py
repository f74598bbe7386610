"""Simulated annealing on measured times: a walk that takes worse steps while it is hot.

Source: Kirkpatrick, Gelatt, Vecchi, "Optimization by Simulated Annealing", 1983; temperature from 1 to 0 as in AutoTVM, here
over measured trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.searchers.searcher import PATIENCE, Searcher
from toolchain.te.tune.space import Point, Space

COOLING = 0.93          # per trial: from HOT to 1/10 of it in 32 trials
HOT = 0.5               # a step that is 50 % slower is taken with probability 1/e


class Annealing(Searcher):
    """Mutations of where the walk is. A step to a relative cost of d is taken with probability exp(-d / temperature)."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self.at: Point | None = None
        self.temperature = HOT

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        super().learn(trials)
        for point, trial in trials:
            if not trial.error and (self.at is None or self.accepts(trial.best_us / self.time_us(self.at) - 1)):
                self.at = point
            self.temperature *= COOLING

    def accepts(self, worse: float) -> bool:
        """Whether the walk takes a step whose time is higher by that part."""
        return worse <= 0 or self.rng.random() < math.exp(-worse / self.temperature)

    def next(self) -> Point | None:
        if self.at is None:
            return self.draw()
        at = self.at
        return self.first_new(self.space.mutate(at, self.rng) for _ in range(PATIENCE)) or self.draw()
