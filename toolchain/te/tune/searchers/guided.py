"""What methods that follow the cost model have in common: ranked candidates for each batch, and a few taken by chance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from toolchain.te.tune.measure import Trial
from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.searcher import Searcher
from toolchain.te.tune.space import Point, Space

EPSILON = 0.05          # of the proposals by chance, against a model that is sure and wrong (AutoTVM and Ansor alike)


class Guided(Searcher):
    """Proposes `candidates()` in order until there are trials to learn from; then asks for them anew."""

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        super().__init__(space, seed, model)
        self._queue: list[Point] | None = None

    @abstractmethod
    def candidates(self) -> Sequence[Point]:
        """What to measure next, the most promising first. What is not new in it is passed over."""

    def learn(self, trials: Sequence[tuple[Point, Trial]]) -> None:
        super().learn(trials)
        self._queue = None

    def next(self) -> Point | None:
        if self._queue is None:
            self._queue = list(self.candidates())
        if self.rng.random() < EPSILON:
            return self.draw()
        return self.first_new(self._queue) or self.draw()
