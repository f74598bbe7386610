"""elide_guards: drop conditions that the storage makes unnecessary: what they keep away is a zero that is really there.

Two rules of layouts (core/layout.py) are what this pass lives from: the halo of a parameter holds zeros, and so does the
tail of a blocked dimension, for everybody who writes a tensor writes zeros there. In return a guard that stands between a
store and its tail must go: where the value is not zero by itself, it becomes `select(inside, value, 0)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.rewrite import map_children
from toolchain.core.target import Target
from toolchain.te.expr import (
    TRUE,
    Bin,
    Call,
    Cast,
    Compare,
    Const,
    Expr,
    Index,
    Load,
    Select,
    Var,
    all_of,
    const,
    select,
)
from toolchain.te.loop_ir import Block, Evaluate, For, If, PrimFunc, Stmt, Store, Together, block
from toolchain.te.lower.shared import nodes, rewrite_shared
from toolchain.te.numpy_functions import FUNCTIONS, OPERATORS
from toolchain.te.tensor import Tensor

REGISTERS = ("local", "lane")


def elide_guards(func: PrimFunc, target: Target) -> PrimFunc:
    """Drop padding selects and tail guards where halo and tail make them true or harmless.

        X : float32[64, 56, 56] ABC16a+h1                                       halo: one zero around rows and columns
        select(y + kh >= 1 and y + kh < 57, X[c, y + kh - 1, x], 0)   ->   X[c, y + kh - 1, x]

        C : float32[30, 8] AB16a                                                tail: rows 30 and 31 are zero
        if 16*o + l < 30: C[16*o + l, y] = max(A[16*o + l, y], 0)     ->   C[16*o + l, y] = max(A[16*o + l, y], 0)
        if 16*o + l < 30: C[16*o + l, y] = sigmoid(A[16*o + l, y])    ->   C[...] = select(16*o + l < 30, sigmoid(...), 0)
        if 16*c + k < 30: acc[x] = acc[x] + A[16*c + k, x]*W[16*c + k] ->  acc[x] = acc[x] + A[...]*W[...]

    A condition goes when the memory it protects exists (halo, tail), and what is computed where it fails is what would be
    there: the select's other value, the tail's zero, a sum's zero, or anything in registers that nobody reads. A product
    with a zero counts as zero: tails hold no infinity. What cannot be dropped stays, as a mask or a branch.

    Needs: no Update; logical indices. Keeps: every value of every output, halos, and zeros in tails.
    """
    eliding = _Eliding(func)
    body = eliding.stmt(func.body, (), ())
    return func if body is func.body else replace(func, body=body)


@dataclass(frozen=True, slots=True)
class Region:
    """Where a comparison fails: the values of `index` from `low` to `high` (None: no bound)."""

    index: Index
    low: int | None
    high: int | None

    @classmethod
    def failing(cls, test: Compare) -> Region | None:
        if test.op == "<":
            return cls(test.index, test.bound, None)
        return cls(test.index, None, test.bound - 1) if test.op == ">=" else None

    def of(self, index: Index) -> tuple[int | None, int | None] | None:
        """The values another index has in this region; None when it does not move along.

        Comparisons are kept without common factors: where t >= 14 fails, 4*t + 3 is 59 and more.
        """
        atom, c = self.index.terms[0] if self.index.terms else (None, 1)
        factor = index.coefficient(atom) // c if atom is not None else 1
        shift = index - self.index * factor
        if factor < 1 or not (isinstance(shift, Index) and shift.is_constant):
            return None
        low, high = (None if end is None else end * factor + shift.constant for end in (self.low, self.high))
        return low, high


Conditions = tuple[Compare, ...]


class _Eliding:
    def __init__(self, func: PrimFunc) -> None:
        self.func = func
        self.lifetime = _enclosing_loops(func.body)
        # (dimension, outer part, bound) of registers that are zero where outer part + index >= bound
        self.zeros: dict[Tensor, dict[tuple[int, Index, int], bool]] = {}

    # --- statements ---

    def stmt(self, s: Stmt, known: Conditions, loops: tuple[Var, ...]) -> Stmt:
        match s:
            case Store(value=value):
                new = self.value(value, known)
                self.note(s, known)
                return s if new is value else replace(s, value=new)
            case Evaluate(Call(args=(Load(tensor), *_))):
                self.zeros.pop(tensor, None)     # an instruction writes a whole fragment
            case Together(stores):
                new_stores = tuple(self.stmt(part, known, loops) for part in stores)
                return s if all(a is b for a, b in zip(new_stores, stores, strict=True)) else Together(new_stores)  # type: ignore[arg-type]
            case If(condition, body):
                return self.guard(condition, self.stmt(body, (*known, *conjuncts(condition)), loops), known)
            case For(var, body):
                new_body = self.stmt(body, known, (*loops, var))
                return s if new_body is body else replace(s, body=new_body)
            case Block(stmts):
                new_stmts = tuple(self.stmt(part, known, loops) for part in stmts)
                return s if all(a is b for a, b in zip(new_stmts, stmts, strict=True)) else block(*new_stmts)
        return s

    def guard(self, condition: Expr, body: Stmt, known: Conditions) -> Stmt:
        """`if condition: body` with as few conjuncts as possible."""
        kept = list(parts(condition))
        for part in parts(condition):
            if not isinstance(part, Compare) or (region := Region.failing(part)) is None:
                continue
            others = (*known, *(k for k in kept if isinstance(k, Compare) and k is not part))
            if (new := self.without(part, region, body, others)) is not None:
                body = new
                kept.remove(part)
        return body if not kept else If(all_of(*kept), body)

    def without(self, test: Compare, region: Region, body: Stmt, known: Conditions) -> Stmt | None:
        """The body that may run where `test` fails as well; None when there is none."""
        stores = [n for n in nodes(body) if isinstance(n, Store)]
        inner = {id(s): (*known, *conditions) for s, conditions in _guarded_stores(body, ())}
        values: dict[int, Expr] = {}
        for s in stores:
            kind = self.droppable(s, region, inner[id(s)])
            if kind is None:
                return None
            if kind == "select":
                values[id(s)] = select(test, s.value, const(0, s.tensor.dtype))
        for s in stores:
            self.note_dropped(s, region)

        def rule(n: Any) -> Any:
            if isinstance(n, Store) and id(n) in values:
                return replace(n, value=values[id(n)])
            return map_children(n, lambda c: rule(c) if isinstance(c, Stmt) else c) if isinstance(n, Stmt) else n

        result: Stmt = rule(body)
        return result

    def droppable(self, s: Store, region: Region, known: Conditions) -> str | None:
        """How a store can do without its guard: "drop", "select" (store zero there), or not at all."""
        if not all(self.in_storage(s.tensor, i, d, known, region) for d, i in enumerate(s.index)):
            return None
        match s.value:
            case Bin("+", Load(tensor, at), term) if tensor is s.tensor and at == s.index:
                zero = self.constant(term, region) == 0
                return "drop" if zero and self.readable(s.value, known, region) else None
        if self.func.buffers[s.tensor].scope in REGISTERS:
            alive = self.lifetime.get(s.tensor, frozenset())
            if _accumulates(s) and region.index.vars() <= alive:
                return None                      # the guard keeps whole registers as they are, and they may be read
            moves = any(isinstance(b := region.index - i, Index) and b.vars() <= alive for i in s.index)
            return "drop" if moves and self.readable(s.value, known, region) else None
        n = self.func.buffers[s.tensor].type.shape
        starts = [(region.of(index(i)) or (None, None))[0] for i in s.index]
        if not any(low is not None and low >= n[d] for d, low in enumerate(starts)):
            return None                          # the guard keeps more away than a tail
        zero = self.constant(s.value, region) == 0 and self.readable(s.value, known, region)
        return "drop" if zero else "select"

    # --- registers whose tail is zero ---

    def note(self, s: Store, known: Conditions) -> None:
        """A store that is guarded leaves places unwritten: its registers are zero nowhere until the guard is dropped."""
        if self.func.buffers[s.tensor].scope in REGISTERS and not _accumulates(s):
            self.zeros[s.tensor] = {}

    def note_dropped(self, s: Store, region: Region) -> None:
        if self.func.buffers[s.tensor].scope not in REGISTERS or _accumulates(s) or region.low is None:
            return
        zero = self.constant(s.value, region) == 0
        for d, i in enumerate(s.index):
            outer = region.index - i
            if isinstance(outer, Index) and outer.vars() <= self.lifetime.get(s.tensor, frozenset()):
                key = (d, Index(outer.terms), region.low - outer.constant)
                facts = self.zeros.setdefault(s.tensor, {})
                facts[key] = facts.get(key, True) and zero

    def zero_in_registers(self, load: Load, region: Region) -> bool:
        for (d, outer, bound), zero in self.zeros.get(load.tensor, {}).items():
            at = region.of(index(outer + load.index[d]))
            if zero and at is not None and at[0] is not None and at[0] >= bound:
                return True
        return False

    # --- expressions ---

    def value(self, e: Expr, known: Conditions) -> Expr:
        """`e` without the selects that the storage decides."""
        def rule(n: Any) -> Any:
            return self.padding(n, known) if isinstance(n, Select) else None

        new: Expr = rewrite_shared(e, rule)
        return new

    def padding(self, e: Select, known: Conditions) -> Expr | None:
        kept = list(parts(e.condition))
        for part in parts(e.condition):
            if not isinstance(part, Compare) or (region := Region.failing(part)) is None:
                continue
            other = self.constant(e.b, region)
            others = (*known, *(k for k in kept if isinstance(k, Compare) and k is not part))
            if other is not None and self.constant(e.a, region) == other and self.readable(e.a, others, region):
                kept.remove(part)
        if len(kept) == len(list(parts(e.condition))):
            return None
        return select(all_of(*kept), e.a, e.b)

    def constant(self, e: Expr, region: Region) -> Any:
        """The value that `e` has everywhere in the region, when it is one and known; None otherwise."""
        match e:
            case Const(value):
                return value
            case Load():
                return 0 if self.is_zero(e, region) else None
            case Cast(dtype, value):
                inner = self.constant(value, region)
                return None if inner is None else _plain(np.asarray(inner).astype(dtypes.to_numpy(dtype)))
            case Select(condition, a, b):
                test, x, y = self.constant(condition, region), self.constant(a, region), self.constant(b, region)
                if test is not None:
                    return x if test else y
                return x if x is not None and x == y else None
            case Compare():
                return _decide(e, region)
            case Bin(op, a, b):
                x, y = self.constant(a, region), self.constant(b, region)
                if op == "*" and (x == 0 or y == 0):
                    return 0
                if x is None or y is None:
                    return None
                kind = dtypes.to_numpy(a.dtype)
                return _evaluate(OPERATORS[op], np.asarray(x, kind), np.asarray(y, kind))
            case Call(name, args) if name in FUNCTIONS:
                values = [self.constant(a, region) for a in args]
                if any(v is None for v in values):
                    return None
                arrays = (np.asarray(v, dtypes.to_numpy(a.dtype)) for v, a in zip(values, args, strict=True))
                return _evaluate(FUNCTIONS[name], *arrays)
        return None

    def is_zero(self, load: Load, region: Region) -> bool:
        """Whether everything a load reads in the region is halo or tail of a parameter, or a tail in registers."""
        buffer = self.func.buffers[load.tensor]
        if buffer.scope in REGISTERS:
            return self.zero_in_registers(load, region)
        if buffer.scope != "global":
            return False
        for d, i in enumerate(load.index):
            at = region.of(index(i))
            if at is None:
                continue
            low, high = self.storage(load.tensor, d)
            first, last = index(i).range()
            if at[0] is not None and at[0] >= buffer.type.shape[d] and last < high:
                return True
            if at[1] is not None and at[1] < 0 and first >= low:
                return True
        return False

    def storage(self, tensor: Tensor, d: int) -> tuple[int, int]:
        """The logical indices of a dimension that have storage: [low, high). Scratch has no trustworthy halo."""
        buffer = self.func.buffers[tensor]
        n, layout = buffer.type.shape[d], buffer.type.layout
        before, after = layout.halo[d] if tensor in self.func.params else (0, 0)
        return -before, max(layout.padded(buffer.type.shape)[d], n + after)

    def in_storage(self, tensor: Tensor, i: Expr, d: int, known: Conditions, region: Region) -> bool:
        idx = index(i)
        if not idx.vars() & region.index.vars():
            return True                          # the guard says nothing about this dimension
        low, high = self.storage(tensor, d)
        first, last = bounds(idx, known)
        return low <= first and last < high

    def readable(self, e: Expr, known: Conditions, region: Region) -> bool:
        """Whether every load of `e` stays in storage when the region's guard is gone."""
        return all(
            self.in_storage(load.tensor, i, d, conditions, region)
            for load, conditions in _guarded_loads(e, known)
            for d, i in enumerate(load.index)
        )


def index(e: Expr) -> Index:
    assert isinstance(e, Index)
    return e


def parts(condition: Expr) -> Iterator[Expr]:
    """The conjuncts of a condition."""
    match condition:
        case Bin("and", a, b):
            yield from parts(a)
            yield from parts(b)
        case _ if condition is not TRUE:
            yield condition


def conjuncts(condition: Expr) -> Conditions:
    return tuple(p for p in parts(condition) if isinstance(p, Compare))


def bounds(idx: Index, known: Conditions) -> tuple[int, int]:
    """The range of an index, given comparisons that hold."""
    low, high = idx.range()
    for test in known:
        if not test.index.terms:
            continue
        atom, c = test.index.terms[0]
        k = idx.coefficient(atom)
        if not k or k % c:
            continue
        m = k // c
        rest = idx - test.index * m
        assert isinstance(rest, Index)
        first, last = rest.range()
        if test.op not in ("<", ">="):
            continue
        end = m * (test.bound - 1 if test.op == "<" else test.bound)     # the index minus rest, at the end that holds
        if (m > 0) == (test.op == "<"):
            high = min(high, end + last)
        else:
            low = max(low, end + first)
    return low, high


def _decide(test: Compare, region: Region) -> bool | None:
    at = region.of(test.index)
    if at is None:
        return None
    low, high = at
    if test.op == "<":
        return False if low is not None and low >= test.bound else True if high is not None and high < test.bound else None
    if test.op == ">=":
        return True if low is not None and low >= test.bound else False if high is not None and high < test.bound else None
    return None


def _evaluate(fn: Any, *args: np.ndarray) -> Any:
    with np.errstate(all="ignore"):
        value = _plain(np.asarray(fn(*args)))
    return value if np.isfinite(value) else None


def _plain(value: np.ndarray) -> Any:
    return value.item() if value.dtype.kind in "biuf" else float(value)


def _accumulates(s: Store) -> bool:
    """Whether the new value depends on what is there."""
    return any(isinstance(n, Load) and n.tensor is s.tensor and n.index == s.index for n in nodes(s.value))


def _guarded_loads(e: Expr, known: Conditions) -> Iterator[tuple[Load, Conditions]]:
    """Every load of an expression, with the comparisons that hold where it is executed."""
    if isinstance(e, Select):
        yield from _guarded_loads(e.condition, known)
        yield from _guarded_loads(e.a, (*known, *conjuncts(e.condition)))
        yield from _guarded_loads(e.b, known)
        return
    if isinstance(e, Load):
        yield e, known
    for child in _children(e):
        yield from _guarded_loads(child, known)


def _children(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Bin(_, a, b):
            return (a, b)
        case Cast(_, value):
            return (value,)
        case Call(_, args):
            return args
    return ()


def _guarded_stores(s: Stmt, known: Conditions) -> Iterator[tuple[Store, Conditions]]:
    match s:
        case Store():
            yield s, known
        case If(condition, body):
            yield from _guarded_stores(body, (*known, *conjuncts(condition)))
        case For(body=body):
            yield from _guarded_stores(body, known)
        case Block(parts) | Together(parts):
            for part in parts:
                yield from _guarded_stores(part, known)


def _enclosing_loops(body: Stmt) -> dict[Tensor, frozenset[Var]]:
    """For each tensor the loops around all of its accesses: each of their iterations starts with fresh registers."""
    found: dict[Tensor, frozenset[Var]] = {}

    def visit(s: Stmt, loops: frozenset[Var]) -> None:
        match s:
            case For(var, inner):
                visit(inner, loops | {var})
            case Block(parts) | Together(parts):
                for part in parts:
                    visit(part, loops)
            case If(condition, inner):
                touch(condition, loops)
                visit(inner, loops)
            case Store(tensor):
                found[tensor] = found.get(tensor, loops) & loops
                touch(s, loops)
            case Evaluate(call):
                touch(call, loops)

    def touch(node: Any, loops: frozenset[Var]) -> None:
        for n in nodes(node):
            if isinstance(n, Load):
                found[n.tensor] = found.get(n.tensor, loops) & loops

    visit(body, frozenset())
    return found


__all__ = ["elide_guards"]
