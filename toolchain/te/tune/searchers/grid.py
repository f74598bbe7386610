"""Grid search: every point, in the order of its answers. For small spaces, and to know the truth about others."""

from __future__ import annotations

from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.searcher import Searcher
from toolchain.te.tune.space import Point, Space


class Grid(Searcher):
    """All points, the last question fastest."""

    def __init__(self, space: Space, seed: int, model: CostModel | None = None) -> None:
        super().__init__(space, seed, model)
        self._all = space.all()

    def next(self) -> Point | None:
        return self.first_new(self._all)
