"""Random search: the fairest baseline."""

from __future__ import annotations

from toolchain.te.tune.searchers.searcher import Searcher
from toolchain.te.tune.space import Point


class Random(Searcher):
    """Every answer by chance."""

    def next(self) -> Point | None:
        return self.draw()
