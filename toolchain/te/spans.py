"""What an index takes while some loops run: an arithmetic progression around a place that stands still."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from toolchain.te.expr import Index, Var, variables


@dataclass(frozen=True, slots=True)
class Span:
    """What an index takes inside a statement: outside + low, + low + step, ... + high; all of those when `dense`."""

    outside: Index
    low: int
    high: int
    step: int
    dense: bool

    def cut(self, op: str, bound: int) -> Span:
        """What of it is below the bound, or from it on; the same when the bound is not a number from out here."""
        if not self.outside.is_constant:
            return replace(self, dense=False)
        at, step = bound - self.outside.constant, self.step or 1
        if op == "<":
            return replace(self, high=min(self.high, self.low + (at - 1 - self.low) // step * step))
        return replace(self, low=max(self.low, self.low - (self.low - at) // step * step))

    def relation(self, other: Span) -> str:
        """"inside" (self within other), "apart", or "overlap"."""
        shift = self.outside - other.outside
        if not (isinstance(shift, Index) and shift.is_constant):
            return "overlap"
        low, high = self.low + shift.constant, self.high + shift.constant
        if high < other.low or low > other.high or (low - other.low) % (math.gcd(self.step, other.step) or 1):
            return "apart"
        aligned = (low - other.low) % (other.step or 1) == self.step % (other.step or 1) == 0
        return "inside" if aligned and other.dense and other.low <= low and high <= other.high else "overlap"


def span(at: Index, inner: set[Var]) -> Span:
    """Of an index while the variables in `inner` run."""
    outside = Index(tuple((a, c) for a, c in at.terms if not inner & variables(a)))
    rest = at - outside
    assert isinstance(rest, Index)
    reach, step, dense = 0, 0, True
    for atom, c in sorted(rest.terms, key=lambda term: abs(term[1])):
        low, high = Index(((atom, 1),)).range()
        dense = dense and (not step or (c % step == 0 and abs(c) <= reach + step))      # smaller terms fill its steps
        step = math.gcd(step, c)
        reach += abs(c) * (high - low)
    return Span(outside, *rest.range(), step, dense)


__all__ = ["Span", "span"]
