"""Partitioned Boolean quadratic problems: choose one alternative per vertex so that vertex and edge costs are least.

Vertices of degree 0, 1 and 2 are taken out exactly (R0, R1, R2); when only larger ones are left, one is decided by what is
best for it and its neighbours (RN), which may miss the optimum. Graphs of networks are nearly series-parallel, so RN is
rare. Source: Scholz and Eckstein, "Register allocation for irregular architectures", LCTES 2002; used for layouts by
Anderson and Gregg, arXiv:1710.01079.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class Problem:
    """Vertices with one cost per alternative, edges with one cost per pair of alternatives; solved once."""

    def __init__(self) -> None:
        self._vertex: list[np.ndarray] = []
        self._edges: list[dict[int, np.ndarray]] = []

    def add_vertex(self, costs: Sequence[float]) -> int:
        self._vertex.append(np.asarray(costs, float))
        self._edges.append({})
        return len(self._vertex) - 1

    def add_edge(self, a: int, b: int, costs: np.ndarray) -> None:
        """Add `costs[alternative of a, alternative of b]`; costs of the same edge add up."""
        if a == b:
            self._vertex[a] = self._vertex[a] + np.diagonal(costs)
            return
        known = self._edges[a].get(b)
        total = costs if known is None else known + costs
        self._edges[a][b] = total
        self._edges[b][a] = total.T

    def cost(self, choice: Sequence[int]) -> float:
        """What a choice costs; only before `solve`, which takes the problem apart."""
        total = sum(float(v[c]) for v, c in zip(self._vertex, choice, strict=True))
        return total + sum(
            float(m[choice[a], choice[b]]) for a, edges in enumerate(self._edges) for b, m in edges.items() if a < b)

    def solve(self) -> list[int]:
        """The alternative chosen for each vertex."""
        choice = [0] * len(self._vertex)
        undo: list[Callable[[], None]] = []         # decisions, to be made in reverse
        small = [v for v in range(len(self._vertex)) if len(self._edges[v]) <= 2]
        left = set(range(len(self._vertex)))
        while left:
            while small:
                v = small.pop()
                if v in left and len(self._edges[v]) <= 2:
                    left.remove(v)
                    small.extend(self._remove(v, choice, undo))
            if left:
                v = max(left, key=lambda u: (len(self._edges[u]), -u))
                left.remove(v)
                small.extend(self._decide(v, choice))
        for decide in reversed(undo):
            decide()
        return choice

    def _detach(self, v: int) -> list[tuple[int, np.ndarray]]:
        """Take out the edges of `v`: (neighbour, costs[alternative of v, of neighbour])."""
        edges = list(self._edges[v].items())
        for u, _ in edges:
            del self._edges[u][v]
        self._edges[v] = {}
        return edges

    def _remove(self, v: int, choice: list[int], undo: list[Callable[[], None]]) -> list[int]:
        """R0, R1, R2: fold the best of `v`, for every choice of its neighbours, into them."""
        own, edges = self._vertex[v], self._detach(v)

        def decide() -> None:
            choice[v] = int(np.argmin(own + sum((m[:, choice[u]] for u, m in edges), np.zeros_like(own))))

        undo.append(decide)
        match edges:
            case [(a, m)]:
                self._vertex[a] = self._vertex[a] + (own[:, None] + m).min(axis=0)
            case [(a, m), (b, n)]:
                self.add_edge(a, b, (own[:, None, None] + m[:, :, None] + n[:, None, :]).min(axis=0))
        return [u for u, _ in edges]

    def _decide(self, v: int, choice: list[int]) -> list[int]:
        """RN: fix the alternative of `v` that is best when every neighbour answers with its own best."""
        edges = self._detach(v)
        hopes = self._vertex[v] + sum((m + self._vertex[u]).min(axis=1) for u, m in edges)
        choice[v] = best = int(np.argmin(hopes))
        for u, m in edges:
            self._vertex[u] = self._vertex[u] + m[best]
        return [u for u, _ in edges]
