"""Simulated annealing on the cost model: chains that take worse steps while they are hot; the best places they have seen are
measured.

Source: AutoTVM (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018): chains that go on from batch to batch,
temperature 1 to 0, some proposals by chance. It has 128 chains of 500 steps on spaces of billions of points; ours have
hundreds to thousands, and making a point costs milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.guided import Guided
from toolchain.te.tune.space import Point, Space

CHAINS = 8
STEPS = 6
HOT = 1.0               # in scores of the model: odds of e to one


class Annealing(Guided):
    """Each step of a chain is a mutation; one that lowers the score by d is taken with probability exp(-d / temperature)."""

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        super().__init__(space, seed, model)
        self._chains: list[Point] = []

    def candidates(self) -> Sequence[Point]:
        if not self._chains:
            self._chains = [self.space.default, *(self.space.sample(self.rng) for _ in range(CHAINS - 1))]
        seen = list(self._chains)
        scores = self.model.scores(self._chains)
        for step in range(STEPS):
            temperature = HOT * (1 - step / STEPS)
            moved = [self.space.mutate(at, self.rng) for at in self._chains]
            for n, (point, score) in enumerate(zip(moved, self.model.scores(moved), strict=True)):
                if not point.refused and self._accepts(float(scores[n] - score), temperature):
                    self._chains[n], scores[n] = point, score
            seen += moved
        return self.by_model(seen)

    def _accepts(self, worse: float, temperature: float) -> bool:
        return worse <= 0 or self.rng.random() < math.exp(-worse / temperature)
