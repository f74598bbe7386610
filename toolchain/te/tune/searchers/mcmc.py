"""Metropolis sampling: a walk whose places are as frequent as exp(-BETA * relative cost).

Source: FlexFlow (Jia, Zaharia, Aiken, "Beyond Data and Model Parallelism for Deep Neural Networks", MLSys 2019): symmetric
proposals, accepted with min(1, exp(BETA * (cost - cost'))); a new walk from the best point after half the search in vain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.searchers.annealing import Annealing
from toolchain.te.tune.space import Point, Space

BETA = 10.0             # a step that is 10 % slower is taken with probability 1/e


class MCMC(Annealing):
    """Annealing's walk at one temperature."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._improved_at = 0

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        before = self.best
        super().learn(trials)
        if self.best is not before:
            self._improved_at = len(self.trials)
        elif self._improved_at and len(self.trials) > 2 * self._improved_at:
            self.at, self._improved_at = self.best, len(self.trials)

    def accepts(self, worse: float) -> bool:
        return worse <= 0 or self.rng.random() < math.exp(-BETA * worse)
