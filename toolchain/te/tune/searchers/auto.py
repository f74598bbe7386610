"""The default method: what the cost model likes first; then coordinate descent from the best, and mixtures of the best few.

Before trial 1 the model is the sketches' analytic one, corrected by what earlier sessions have measured on this machine.
An analytic prior and a descent are where published tuners save most of their trials (Droplet: 300 trials of Ansor and a
descent beat 10,000 of Ansor); the model says which neighbour and which mixture is worth one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

from toolchain.te.tune.searchers.guided import Guided
from toolchain.te.tune.space import Point

REACH = 2               # places among a question's options that one step of the descent may go
POOL = 16               # points by chance that the model ranks, beside the default's neighbours
BY_MODEL = 6            # of them measured before the descent begins
PARENTS = 4


class Auto(Guided):
    """BY_MODEL points by their score; then, in turns, neighbours of the best and what the model likes of other points."""

    def candidates(self) -> Sequence[Point]:
        best = self.best or self.space.default
        near = self.by_model(self.space.neighbours(best, 1 if len(self.trials) <= BY_MODEL else REACH))
        if len(self.trials) <= BY_MODEL:
            return self.by_model([*near, *(self.space.sample(self.rng) for _ in range(POOL))])
        parents = self.ranked()[:PARENTS]
        mixed = [self._mixture(parents) for _ in range(POOL)] if len(parents) > 1 else []
        others = self.by_model([*mixed, *(self.space.sample(self.rng) for _ in range(POOL // 2))])
        return [p for p in chain.from_iterable(zip_longest(near, others)) if p is not None]

    def _mixture(self, parents: list[Point]) -> Point:
        a, b = self.rng.sample(parents, 2)
        return self.space.mutate(self.space.crossover(a, b, self.rng), self.rng)
