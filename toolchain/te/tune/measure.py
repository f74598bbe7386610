"""What measuring a candidate is: `Trial`, and the Protocol of whatever does it (this machine, a board, a simulation)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from toolchain.core.unit import MICROSECONDS, Unit
from toolchain.te.tune.space import Point

# Why a candidate has no cost; the first word of `Trial.error`.
CAUSES = ("refused", "build", "timeout", "crash", "wrong", "bounds", "implausible", "drift")


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate, measured. samples: raw costs of one call, in `unit`; of times each is the mean of `number` calls; empty
    where it failed.

    error: "" or a cause of CAUSES, a colon, and what happened: "crash: killed by SIGSEGV". cost_s: wall time it took, its
    build included. stopped: measured just long enough to see that it is hopeless. default_cost: the best cost of the default
    schedule so far, measured again with this candidate (0: it was not), which no record keeps.
    """

    answers: Mapping[str, str]
    samples: tuple[float, ...] = ()
    error: str = ""
    cost_s: float = 0.0
    stopped: bool = False
    default_cost: float = field(default=0.0, compare=False)
    unit: Unit = MICROSECONDS

    @property
    def best_cost(self) -> float:
        """The shortest sample: what disturbs a measurement only makes it longer. Infinite where it failed."""
        return min(self.samples) if self.samples and not self.error else math.inf

    @property
    def cause(self) -> str:
        return self.error.partition(":")[0]


class Measurer(Protocol):
    """Builds and measures candidates of one task, one result each, in order, each as soon as it is known.

    task: the key of what is tuned. best_cost: what is to be beaten (infinite: nothing yet), so that a hopeless candidate is
    given up early. All costs are in one unit. Never raises for what a candidate does: crashes, hangs and wrong results are
    errors of its Trial.
    """

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]: ...
