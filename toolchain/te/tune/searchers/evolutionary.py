"""Evolutionary search on the cost model: generations of mutated and crossed schedules, of which the fittest are measured.

Source: Ansor (Zheng et al., OSDI 2020, section 5.1): a first population of measured schedules and random ones, offspring by
mutation or by crossover of two parents, fitness by the learned model, a few proposals by chance. Its rates (mutation 0.85,
one part in five of the population from what was measured) and its 4 generations are kept; its 2,048 schedules are as many as
making one in milliseconds allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.te.tune.searchers.guided import Guided
from toolchain.te.tune.space import Point

POPULATION = 16
GENERATIONS = 4
MUTATION = 0.85             # of the offspring; the others have two parents
MEASURED = 0.2              # of the first population


class Evolutionary(Guided):
    """Parents are drawn with odds by their score; all that any generation has seen is ranked in the end."""

    def candidates(self) -> Sequence[Point]:
        best = self.ranked()[:math.ceil(MEASURED * POPULATION)]
        population = [*best, *(self.space.sample(self.rng) for _ in range(POPULATION - len(best)))]
        seen = list(population)
        for _ in range(GENERATIONS):
            population = self._offspring(population)
            seen += population
        return self.by_model(seen)

    def _offspring(self, population: list[Point]) -> list[Point]:
        scores = self.model.scores(population)
        odds = [0.0 if p.refused else math.exp(s - scores.max()) for p, s in zip(population, scores, strict=True)]
        if not any(odds):
            return [self.space.sample(self.rng) for _ in population]
        made = []
        for _ in population:
            a, b = self.rng.choices(population, odds, k=2)
            made.append(self.space.mutate(a, self.rng) if a == b or self.rng.random() < MUTATION
                        else self.space.crossover(a, b, self.rng))
        return made
