"""A genetic algorithm on measured times: parents by rank, uniform crossover, mutation.

Source: AutoTVM's GATuner (Chen et al., "Learning to Optimize Tensor Programs", 2018): elite 3, mutation 0.1. The population
is smaller than its 100, for budgets of tens of trials.
"""

from __future__ import annotations

from toolchain.te.tune.searchers.searcher import PATIENCE, Searcher
from toolchain.te.tune.space import Point

POPULATION = 12
ELITE = 3
MUTATION = 0.1          # per child


class Genetic(Searcher):
    """A first population by chance; then children of the POPULATION fastest points."""

    def next(self) -> Point | None:
        parents = self.ranked()[:POPULATION]
        if len(self.trials) < POPULATION or not parents:
            return self.draw()
        return self.first_new(self._child(parents) for _ in range(PATIENCE)) or self.draw()

    def _child(self, parents: list[Point]) -> Point:
        weights = [len(parents) - n + (ELITE if n < ELITE else 0) for n in range(len(parents))]
        a, b = self.rng.choices(parents, weights, k=2)
        child = self.space.crossover(a, b, self.rng)
        return self.space.mutate(child, self.rng) if child in self.trials or self.rng.random() < MUTATION else child
