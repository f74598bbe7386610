"""A cache model of a schedule: bytes that its loop nest moves into each cache, in closed form, from the rolled loop IR.

    for i in 64: for j in 64: for k in 64: C[i, j] += A[i, k] * B[k, j]
    ->  one k loop touches a row of A and a column of B; if that fits, the next j finds the row of A in the cache; if all
        that one i touches fits, the next i finds B

Each tensor's accesses are boxes. From the innermost loop outwards, one iteration of a loop touches some lines in all; where
they fit into a cache, the next iteration finds there what both touch, and the loop moves the lines of the union of its
boxes. Where they do not fit, the loop moves each iteration's lines anew. This is the localized iteration space of Wolf and
Lam ("A Data Locality Optimizing Algorithm", PLDI 1991, section 4) with the reuse distance of Mattson et al. (1970) against a
fully associative cache that replaces the least recently used line; conflicts, prefetches and what is there before are left
out. A line that is written is moved twice: allocated, and written back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.rewrite import children, walk_shared
from toolchain.te.expr import Expr, Index, Load, Var
from toolchain.te.loop_ir import Block, For, If, PrimFunc, Stmt, Store, Together, Update
from toolchain.te.tensor import Tensor
from toolchain.te.tune.features import steps_of


@dataclass(frozen=True, slots=True, eq=False)
class _Box:
    """What a statement touches of a tensor. span: elements along each dimension; steps: per dimension how far each loop
    variable moves it; moved: bytes into each cache."""

    span: tuple[float, ...]
    steps: tuple[dict[Var, float], ...]
    moved: tuple[float, ...]
    written: bool


def traffic_bytes(func: PrimFunc, capacities: Sequence[int], line_bytes: int) -> tuple[float, ...]:
    """Bytes that one run on one core moves into caches of these sizes, which are empty before. Needs: not lowered."""
    model = _Model(func, capacities, line_bytes)
    boxes = model.stmt(func.body)
    return tuple(sum((2 if b.written else 1) * b.moved[n] for b in boxes.values()) for n in range(len(capacities)))


class _Model:
    def __init__(self, func: PrimFunc, capacities: Sequence[int], line_bytes: int) -> None:
        self.func, self.capacities, self.line_bytes = func, capacities, line_bytes

    def stmt(self, s: Stmt) -> dict[Tensor, _Box]:
        """Boxes of one run of a statement."""
        match s:
            case Block(parts) | Together(parts):
                return self.together([self.stmt(part) for part in parts])
            case If():
                return self.stmt(s.body)
            case For():
                return self.loop(s, self.stmt(s.body))
            case Store() | Update():
                written = [(t, s.index, True) for t in s.tensors]
                return self.together([{t: self.element(t, index, w)} for t, index, w in
                                      (*written, *((n.tensor, n.index, False) for n in _loads(s)))
                                      if self.func.buffers[t].scope != "local"])
        return {}

    def element(self, tensor: Tensor, index: Sequence[Expr], written: bool) -> _Box:
        span, steps = (1.0,) * len(index), tuple(steps_of(i) for i in index)
        return _Box(span, steps, (self.bytes(tensor, span),) * len(self.capacities), written)

    def bytes(self, tensor: Tensor, span: Sequence[float]) -> float:
        """Of the lines of a box, by its place in memory: what lies less than a line apart, or without a gap, is one run."""
        type, itemsize = self.func.buffers[tensor].type, dtypes.itemsize(tensor.dtype)
        run, runs, stride, left, blocked = 1.0, 1.0, 1, list(span), [1] * len(span)
        for d, block in reversed(type.layout.dims):
            size = block or math.ceil(tensor.shape[d] / blocked[d])
            n = max(1.0, min(left[d], float(size)))
            if stride * itemsize < self.line_bytes or run >= stride:
                run += (n - 1) * stride
            else:
                runs *= n
            left[d], blocked[d], stride = left[d] / n, blocked[d] * size, stride * size
        return runs * max(float(self.line_bytes), run * itemsize)

    def footprint(self, boxes: dict[Tensor, _Box]) -> float:
        return sum(self.bytes(t, b.span) for t, b in boxes.items())

    def together(self, parts: Iterable[dict[Tensor, _Box]]) -> dict[Tensor, _Box]:
        """One after the other. What several touch is moved once if all of it fits."""
        found: dict[Tensor, list[_Box]] = {}
        for boxes in parts:
            for tensor, box in boxes.items():
                found.setdefault(tensor, []).append(box)
        merged = {t: _union(boxes) for t, boxes in found.items()}
        whole = self.footprint(merged)
        fits = [whole <= c for c in self.capacities]
        return {t: _Box(b.span, b.steps, tuple(
            max(x.moved[n] for x in found[t]) if fit else sum(x.moved[n] for x in found[t]) for n, fit in enumerate(fits)),
            b.written) for t, b in merged.items()}

    def loop(self, loop: For, boxes: dict[Tensor, _Box]) -> dict[Tensor, _Box]:
        if loop.extent == 1:
            return boxes
        once = self.footprint(boxes)
        return {t: self.repeated(loop, t, b, once) for t, b in boxes.items()}

    def repeated(self, loop: For, tensor: Tensor, b: _Box, once: float) -> _Box:
        span = tuple(min(n + steps.get(loop.var, 0.0) * (loop.extent - 1), float(most))
                     for n, steps, most in zip(b.span, b.steps, tensor.shape, strict=True))
        grows = min(self.bytes(tensor, span) / self.bytes(tensor, b.span), float(loop.extent))
        return _Box(span, b.steps, tuple(moved * (max(grows, 1.0) if once <= c else loop.extent)
                                         for moved, c in zip(b.moved, self.capacities, strict=True)), b.written)


def _union(boxes: Sequence[_Box]) -> _Box:
    span = tuple(max(n) for n in zip(*(b.span for b in boxes), strict=True))
    steps: list[dict[Var, float]] = [{} for _ in span]
    for b in boxes:
        for into, more in zip(steps, b.steps, strict=True):
            for v, step in more.items():
                into[v] = max(step, into.get(v, 0.0))
    return _Box(span, tuple(steps), (), any(b.written for b in boxes))


def _loads(s: Store | Update) -> list[Load]:
    """What a statement reads itself; what an index reads is not counted."""
    roots = (s.value, s.init if isinstance(s, Update) else s.mask)
    return list({id(n): n for root in roots if root is not None for n in walk_shared(root, _operands)
                 if isinstance(n, Load)}.values())


def _operands(n: Any) -> tuple[Any, ...]:
    return () if isinstance(n, Load | Index) else tuple(c for c in children(n) if isinstance(c, Expr))


__all__ = ["traffic_bytes"]
