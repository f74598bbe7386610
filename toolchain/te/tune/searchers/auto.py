"""The default method: what the analytic model likes first, then coordinate descent from the best, then mixtures of the best.

An analytic prior before trial 1 and a descent at the end are where published tuners save most of their trials (Droplet:
300 trials of Ansor and a descent beat 10,000 of Ansor).
"""

from __future__ import annotations

from toolchain.te.tune.searchers.coordinate import CoordinateDescent
from toolchain.te.tune.searchers.searcher import PATIENCE
from toolchain.te.tune.space import Point, Space

POOL = 16               # points by chance that the analytic model ranks, beside the default's neighbours
BY_MODEL = 6            # of them measured before the descent begins
PARENTS = 4


class Auto(CoordinateDescent):
    """BY_MODEL points by expected cost; neighbours of the best; children of the PARENTS best; points by chance."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self._promising: list[Point] | None = None

    def next(self) -> Point | None:
        if self._promising is None:
            pool = [*self.space.neighbours(self.space.default), *(self.space.sample(self.rng) for _ in range(POOL))]
            self._promising = sorted(dict.fromkeys(pool), key=lambda p: p.expected)
        if len(self.trials) <= BY_MODEL and (point := self.first_new(self._promising)) is not None:
            return point
        if (best := self.best) is not None and (point := self.first_new(self.around(best))) is not None:
            return point
        return self._child() or self.draw()

    def _child(self) -> Point | None:
        parents = self.ranked()[:PARENTS]
        if len(parents) < 2:
            return None
        return self.first_new(self._mixture(parents) for _ in range(PATIENCE))

    def _mixture(self, parents: list[Point]) -> Point:
        a, b = self.rng.sample(parents, 2)
        return self.space.mutate(self.space.crossover(a, b, self.rng), self.rng)
