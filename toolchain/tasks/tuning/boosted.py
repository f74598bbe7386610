"""The learned cost model: gradient-boosted trees (xgboost) on the features of statements, with a loss on pairs.

    score of a schedule = analytic prior + sum over its statements of trees(row)
    loss = sum over pairs of one task, i faster than j, of weight * log(1 + exp(score_j - score_i))

Only the order within a task counts, so all tasks of a machine teach one model, and absolute times never meet. The trees
start from the analytic model and correct it. A sum over statements, as in Ansor (Zheng et al., OSDI 2020, section 5.2),
where fast schedules weigh more, too; the pairwise loss is AutoTVM's (Chen et al., NeurIPS 2018).

Training repeats exactly: one thread, no sampling, and samples in the order they were learned.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolchain.te.tune.features import COLUMNS
from toolchain.te.tune.model import Analytic, Sample, prior
from toolchain.te.tune.space import Point

PARAMETERS = {"max_depth": 6, "eta": 0.3, "lambda": 1.0, "min_child_weight": 0.1, "tree_method": "hist", "max_bin": 64,
              "nthread": 1, "seed": 0, "base_score": 0.0, "verbosity": 0}
TREES = 60
FEWEST = 8                      # samples of one group before anything is learned from it
GROWTH = 1.15                   # a group has that many times the samples of the last training: there is another
MOST_SAMPLES = 2000             # the latest ones of each group
SAME = 0.01                     # times this close (as a logarithm) are equal: noise
CERTAIN = 0.2                   # times this far apart make a pair of full weight
FAILED = math.log(2.0)          # how much slower than the slowest a failed candidate counts


def is_installed() -> bool:
    """Whether the extra `tune` is there. Asking imports nothing."""
    return importlib.util.find_spec("xgboost") is not None


@dataclass(slots=True, eq=False)
class _Group:
    """Samples of one task; how many of them there were at the last training."""

    samples: list[Sample] = field(default_factory=list)
    trained: int = 0

    @property
    def is_due(self) -> bool:
        return len(self.samples) >= max(FEWEST, GROWTH * self.trained)


class Boosted:
    """Implements `te.tune.model.CostModel`. Until there is enough to learn from, it scores as the analytic model does."""

    def __init__(self) -> None:
        import xgboost  # a heavy optional library: 0.3 s, and only tuning wants it

        self._xgboost = xgboost
        self._groups: dict[str, _Group] = {}
        self._booster: Any = None

    def learn(self, group: str, samples: Sequence[Sample]) -> None:
        usable = [s for s in samples if s.features.ndim == 2 and s.features.shape[1:] == (len(COLUMNS),)]
        self._groups.setdefault(group, _Group()).samples.extend(usable)

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        """See `CostModel`. Trains first, where enough has come in since the last time."""
        if any(g.is_due for g in self._groups.values()):
            self._train()
        analytic = Analytic().scores(points)
        if self._booster is None or not points or any(p.features.size == 0 and not p.refused for p in points):
            return analytic
        owner = np.repeat(np.arange(len(points)), [len(p.features) for p in points])
        if not len(owner):
            return analytic
        rows = np.concatenate([p.features for p in points if len(p.features)])
        trees = self._booster.inplace_predict(rows, predict_type="margin")
        return analytic + np.bincount(owner, trees, len(points)).astype(np.float32)

    def _train(self) -> None:
        for group in self._groups.values():
            group.trained = len(group.samples)
        groups = [g.samples for g in self._groups.values() if len(g.samples) >= FEWEST]
        share = max(FEWEST, MOST_SAMPLES // len(groups))
        data = Training.of([g[-share:] for g in groups])
        if not len(data.faster):
            return
        matrix = self._xgboost.DMatrix(data.rows)
        self._booster = self._xgboost.train(PARAMETERS, matrix, TREES, obj=lambda predicted, _: data.gradient(predicted))


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """rows: of all statements; owner: the schedule of each; start: a schedule's analytic score; pairs of schedules with
    their weight."""

    rows: np.ndarray
    owner: np.ndarray
    start: np.ndarray
    faster: np.ndarray
    slower: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, groups: Sequence[Sequence[Sample]]) -> Training:
        samples = [s for group in groups for s in group]
        counts = [len(s.features) for s in samples]
        parts, first = [], 0
        for group in groups:
            parts.append(_pairs(first, _log_times(group)))
            first += len(group)
        faster, slower, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(np.concatenate([s.features for s in samples]), np.repeat(np.arange(len(samples)), counts),
                   np.array([prior(s.expected) for s in samples]), faster, slower, weight)

    def gradient(self, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative of the loss by each row's prediction. All rows of a schedule move its score together,
        so each is told that the others move, too (their number in the second derivative)."""
        n = len(self.start)
        score = self.start + np.bincount(self.owner, predicted, n)
        wrong = 1 / (1 + np.exp(np.clip(score[self.faster] - score[self.slower], -30, 30)))
        pull, curve = self.weight * wrong, self.weight * wrong * (1 - wrong)
        gradient = np.bincount(self.slower, pull, n) - np.bincount(self.faster, pull, n)
        curvature = np.bincount(self.slower, curve, n) + np.bincount(self.faster, curve, n)
        rows = np.bincount(self.owner, minlength=n)
        return gradient[self.owner], np.maximum(curvature * rows, 1e-6)[self.owner]


def _log_times(group: Sequence[Sample]) -> np.ndarray:
    """Logarithms of the times; failed ones beyond the slowest."""
    times = np.log([s.cost if math.isfinite(s.cost) else np.nan for s in group])
    slowest = np.nanmax(times) if not np.isnan(times).all() else 0.0
    return np.where(np.isnan(times), slowest + FAILED, times)


def _pairs(first: int, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(faster, slower, weight): each schedule with those 1, 2, 4, ... places behind it, so that their number stays near
    linear. Those near the fastest weigh more, since it is the top that a search asks for."""
    order = np.argsort(times, kind="stable")
    steps = [1 << n for n in range(max(1, len(times)).bit_length())]
    a = np.concatenate([order[:len(order) - step] for step in steps if step < len(order)] or [order[:0]])
    b = np.concatenate([order[step:] for step in steps if step < len(order)] or [order[:0]])
    apart = times[b] - times[a]
    weight = np.minimum(1.0, apart / CERTAIN) * np.exp(times[order[:1]] - times[a])
    keep = apart > SAME
    return a[keep] + first, b[keep] + first, weight[keep]
