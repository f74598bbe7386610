"""Coordinate descent: from the best point one answer at a time, to a local optimum; then from somewhere else.

Source: Droplet Search (Canesche et al., "The Droplet Search Algorithm for Kernel Scheduling", TACO 2024), where it follows a
broader search and beats it at a fraction of its trials.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.searcher import Searcher
from toolchain.te.tune.space import Point, Space

REACH = 2               # places among a question's options that one step may go


class CoordinateDescent(Searcher):
    """Neighbours of the best point, nearest and most promising first; when all are known, of a new point by chance."""

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        super().__init__(space, seed, model)
        self._centre: Point | None = None
        self._around: list[Point] = []

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        """A proposed point that is faster than the centre becomes the centre."""
        super().learn(trials)
        for point, trial in trials:
            if trial.best_cost < (self.cost(self._centre) if self._centre in self.trials else float("inf")):
                self._centre = point
                self._around = self.around(point)

    def around(self, point: Point) -> list[Point]:
        return sorted(self.space.neighbours(point, REACH), key=lambda p: p.expected)

    def next(self) -> Point | None:
        if (point := self.first_new(self._around)) is not None:
            return point
        self._centre, self._around = None, []               # a local optimum: what is measured next is the new centre
        return self.draw()
