"""Questions that all stages of a memory-bound kernel share: asked when a stage first needs the answer, then known.

An answer is a limit, so that one fits stages of different lengths: each takes what of it its own extent has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from toolchain.te.tune.choices import Choices

VECTORS = 4                  # of partial results: an addition takes four cycles, and one may start in each


@dataclass
class Asks:
    """The answers so far, by question."""

    choices: Choices
    _known: dict[str, int] = field(default_factory=dict)

    def vectors(self) -> int:
        """Vectors of partial results, or of columns reduced side by side, at most."""
        return self._once("vectors", (1, 2, 4, 8), VECTORS)

    def unroll(self, extent: int, lanes: int) -> int:
        """Vectors of a loop without a reduction in one basic block: the largest number up to the answer that leaves no
        tail. Asked where more than one is possible."""
        fitting = [n for n in (1, 2, 4, 8) if extent % (n * lanes) == 0 and extent > n * lanes]
        if len(fitting) < 2:
            return 1
        most = self._once("unroll", (1, 2, 4, 8), 1)
        return max(n for n in fitting if n <= most)

    def square(self, sizes: Sequence[int]) -> int:
        """Rows and columns of a tile that is turned in registers. sizes: those that are possible, the largest first."""
        if len(sizes) < 2:
            return sizes[0]
        answer = self._once("square", (4, 8, 16), sizes[0])
        return next((n for n in sizes if n <= answer), sizes[-1])

    def _once(self, name: str, options: Sequence[int], default: int) -> int:
        if name not in self._known:
            self._known[name] = self.choices.one_of(name, options, default)
        return self._known[name]
