"""What a search method is: `Searcher`. It keeps what was tried and what was best; a method adds how it proposes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.model import Analytic, CostModel
from toolchain.te.tune.space import Point, Space

PATIENCE = 200          # draws in a row that bring nothing new, after which a method takes the space for exhausted


class Searcher(ABC):
    """One search in one space. `propose` never repeats a point, nor a schedule under another name, nor a refused point;
    fewer than asked for: there are no more. The caller measures the default first, and tells it by `learn`.

    model: ranks points; somebody else teaches it. hints: answers to begin with.
    """

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        self.space, self.rng = space, random.Random(seed)
        self.model: CostModel = Analytic() if model is None else model
        self.hints: list[Mapping[str, str]] = []
        self.trials: dict[Point, Trial] = {}
        self._taken: set[str] = set()

    def propose(self, n: int) -> list[Point]:
        """The next `n` points to measure."""
        batch: list[Point] = []
        while len(batch) < n and (point := self._hinted() or self.next()) is not None:
            batch.append(point)
        return batch

    def _hinted(self) -> Point | None:
        while self.hints:
            if self.take(point := self.space.point(self.hints.pop(0))):
                return point
        return None

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        """What became of proposed points (or of points that others measured)."""
        for point, trial in trials:
            self._taken.add(point.signature)
            self.trials[point] = trial

    @abstractmethod
    def next(self) -> Point | None:
        """One new point, taken by `take`; None: there are no more."""

    def is_new(self, point: Point) -> bool:
        """Whether a point may be proposed."""
        return not point.refused and point.signature not in self._taken

    def take(self, point: Point) -> bool:
        """Whether a point is new; from now on it is not."""
        if not self.is_new(point):
            return False
        self._taken.add(point.signature)
        return True

    def by_model(self, points: Iterable[Point]) -> list[Point]:
        """The new ones among points, each once, what the model likes best first."""
        found = [p for p in dict.fromkeys(points) if self.is_new(p)]
        order = np.argsort(-self.model.scores(found), kind="stable") if found else ()
        return [found[n] for n in order]

    def first_new(self, points: Iterable[Point]) -> Point | None:
        return next((p for p in points if self.take(p)), None)

    def draw(self) -> Point | None:
        """A new point by chance; None: PATIENCE draws brought nothing new."""
        return self.first_new(self.space.sample(self.rng) for _ in range(PATIENCE))

    @property
    def best(self) -> Point | None:
        """The fastest point so far; None: none has a time."""
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def ranked(self) -> list[Point]:
        """All points that have a time, the fastest first."""
        timed = [p for p, t in self.trials.items() if not t.error]
        return sorted(timed, key=lambda p: self.trials[p].best_cost)

    def cost(self, point: Point) -> float:
        return self.trials[point].best_cost
