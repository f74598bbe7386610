"""Search methods on one space and one interface: propose a batch, learn from its trials. The seed decides all chance.

`SEARCHERS` is what `tc tune --searcher` and the deployfile know them by.
"""

from __future__ import annotations

from typing import Protocol

from toolchain.te.tune.model import CostModel
from toolchain.te.tune.searchers.annealing import Annealing
from toolchain.te.tune.searchers.auto import Auto
from toolchain.te.tune.searchers.beam import Beam
from toolchain.te.tune.searchers.coordinate import CoordinateDescent
from toolchain.te.tune.searchers.evolutionary import Evolutionary
from toolchain.te.tune.searchers.genetic import Genetic
from toolchain.te.tune.searchers.grid import Grid
from toolchain.te.tune.searchers.mcmc import MCMC
from toolchain.te.tune.searchers.random import Random
from toolchain.te.tune.searchers.searcher import Searcher
from toolchain.te.tune.space import Space


class MakeSearcher(Protocol):
    def __call__(self, space: Space, seed: int, model: CostModel | None = None) -> Searcher: ...


SEARCHERS: dict[str, MakeSearcher] = {
    "auto": Auto,
    "evolutionary": Evolutionary,
    "annealing": Annealing,
    "beam": Beam,
    "coordinate": CoordinateDescent,
    "genetic": Genetic,
    "mcmc": MCMC,
    "random": Random,
    "grid": Grid,
}

__all__ = ["SEARCHERS", "Searcher"]
