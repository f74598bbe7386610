"""The time a run of `tc tune` has: one clock that every stage asks, and what is kept for the stages behind it.

    graphs   search   confirm   search on ...        builds of winners   networks side by side   records, screen
    |<----------- until `left_s` is the reserve ----------->|<------ until `left_s` is nothing ------>|

The reserve is estimated from what was measured: what confirming a kernel took, and what building one does. The last stage,
comparing networks, takes rounds until the deadline: more of them say more, and what was estimated too high is no loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

END_S = 0.4         # of the last stage: outputs compared, records and summary written


class Deadline:
    """budget_s: from now on (None: nobody waits, and nothing ever ends for want of time)."""

    def __init__(self, budget_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget_s = math.inf if budget_s is None else budget_s
        self.clock, self._begun, self._charged_s = clock, clock(), 0.0

    @property
    def is_set(self) -> bool:
        return math.isfinite(self.budget_s)

    def used_s(self) -> float:
        return self.clock() - self._begun + self._charged_s

    def left_s(self) -> float:
        return self.budget_s - self.used_s()

    def charge(self, seconds: float) -> None:
        """What a process of this run that was killed has used before."""
        self._charged_s += seconds

    def rounds(self, fewest: int, most: int, keep_s: float = 0.0) -> Callable[[int], bool]:
        """`more(done)`: whether another round is due after so many. At least `fewest`; then while the time left, without
        keep_s, holds one that takes as long as the mean of those before, and `most` are not done."""
        begun: list[float] = []

        def more(done: int) -> bool:
            begun.append(self.clock())
            if done < fewest or not self.is_set:
                return done < fewest
            each_s = (begun[-1] - begun[0]) / max(1, len(begun) - 1)
            return done < most and self.left_s() - keep_s - END_S >= each_s
        return more


@dataclass(slots=True)
class Estimate:
    """Seconds that something takes: a guess until it has been measured, then the mean."""

    guess_s: float
    total_s: float = 0.0
    times: int = 0

    def add(self, seconds: float, times: int = 1) -> None:
        self.total_s, self.times = self.total_s + seconds, self.times + times

    @property
    def each_s(self) -> float:
        return self.total_s / self.times if self.times else self.guess_s


__all__ = ["END_S", "Deadline", "Estimate"]
