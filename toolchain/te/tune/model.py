"""What ranks schedules that nobody has measured: a `CostModel`, and the one that is always there.

A model learns from the trials of all tasks of a session, and from those of earlier ones; it never asks a clock, so a
session that is replayed trains it to the same state. What is learned online lies in `tasks.tuning.boosted`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from toolchain.te.tune.space import Point


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A measured schedule as a model sees it: its features, what the analytic model expected of it (relative to the
    default's cost), and the time it took; infinite: it failed."""

    features: np.ndarray
    expected: float
    cost: float


class CostModel(Protocol):
    """Ranks points of one space. Scores of different spaces say nothing about each other."""

    def learn(self, group: str, samples: Sequence[Sample]) -> None:
        """What was measured. group: samples whose times may be compared, which are those of one task on one machine."""
        ...

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        """One number per point: higher is faster. A difference of one: the odds are e to one."""
        ...


class Analytic:
    """The analytic policy of the sketches alone. Learns nothing."""

    def learn(self, group: str, samples: Sequence[Sample]) -> None:
        pass

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        return np.array([prior(p.expected) for p in points], np.float32)


def prior(expected: float) -> float:
    """The score of an analytic cost: twice the cost, odds of e to one and more."""
    return -math.log2(max(expected, 1e-6))
