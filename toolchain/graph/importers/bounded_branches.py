"""The branches of an If whose results differ in shape, or have one that depends on data, made to have one type (bounded.py).

    If(c) {then: y: float32[3, 4]; else: y: float32[9 at most, 4] of extent %n}
        ->   If(c) {then: y: float32[9, 4], 3; else: y: float32[9, 4], %n}     the second result is the extent of the first

A result with fewer dimensions than the other's gets ones in front, where that is all they differ in. How many it truly has
depends on data then, so it may be read only where that makes no difference: see `Scope.loose`.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.bounded import Bounding, Extents, Number, State
from toolchain.graph.importers.bounded_sizes import resized
from toolchain.graph.infer import where
from toolchain.graph.ir import Node


def one_type(
    node: Node, states: Sequence[State], results: Sequence[Sequence[str]],
) -> tuple[list[tuple[str, ...]], list[tuple[int, ...]], set[int]]:
    """Per branch its outputs: the results, and the extents behind them; the bounds of these per result and dimension (-1:
    static); and which results are loose. Raises ImportModelError for types that differ in more than extents."""
    own: list[list[str]] = [[] for _ in states]
    behind: list[list[str]] = [[] for _ in states]
    bounds: list[tuple[int, ...]] = []
    loose: set[int] = set()
    for k, values in enumerate(zip(*results, strict=True)):
        pens = [Bounding(state, node) for state in states]
        rank = max(len(b.shape(v)) for b, v in zip(pens, values))
        if any(len(b.shape(v)) < rank for b, v in zip(pens, values)):
            loose.add(k)
        raised = [_raised(b, v, rank) for b, v in zip(pens, values)]
        if len({b.state.types[v].dtype for b, v in zip(pens, raised)}) > 1 or (k in loose and not _same(pens, raised)):
            show = "; ".join(str(b.state.types[v]) for b, v in zip(pens, values))
            raise ImportModelError(f"its branches yield different types ({show})", where=where(node))
        found = []
        for d in range(rank):
            sizes = [b.size(v, d) for b, v in zip(pens, raised)]
            static = len({*sizes}) == 1 and isinstance(sizes[0], int)
            found.append(-1 if static else max(b.bound(n) for b, n in zip(pens, sizes)))
            if not static:
                raised = [_reaching(b, v, d, found[-1]) for b, v in zip(pens, raised)]
                for b, n, outputs in zip(pens, sizes, behind):
                    outputs.append(b.value(n))
        bounds.append(tuple(found))
        for v, outputs in zip(raised, own):
            outputs.append(v)
    return [(*mine, *extents) for mine, extents in zip(own, behind)], bounds, loose


def _same(pens: Sequence[Bounding], values: Sequence[str]) -> bool:
    """Whether all have one static shape."""
    return len({b.shape(v) for b, v in zip(pens, values)}) == 1 and not any(any(b.extents(v)) for b, v in zip(pens, values))


def _raised(b: Bounding, x: str, rank: int) -> str:
    missing = rank - len(b.shape(x))
    if not missing:
        return x
    extents: Extents = (*("",) * missing, *b.extents(x))
    x = b.op("Unsqueeze", x, b.int64(range(missing)))
    b.set(x, extents)
    return x


def _reaching(b: Bounding, x: str, axis: int, bound: int) -> str:
    """x with so many elements along an axis; its extents stay."""
    if b.shape(x)[axis] == bound:
        return x
    sizes: list[Number] = [b.size(x, d) for d in range(len(b.shape(x)))]
    y = resized(b, x, axis, bound)
    b.set(y, tuple(n if isinstance(n, str) and d != axis else "" for d, n in enumerate(sizes)))
    return y


__all__ = ["one_type"]
