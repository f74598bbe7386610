"""vectorize_loops: loops marked VECTORIZED become lanes of Ramp, Broadcast and masks. Nothing before this pass knows lanes.

What one lane's address is decides the access: coefficient 1 of the lane variable is contiguous, none a broadcast, another
constant strided, and a lane inside a division or a value read at run time a gather.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import map_children
from toolchain.core.target import Target
from toolchain.te.expr import (
    COMBINERS,
    Bin,
    Broadcast,
    Call,
    Cast,
    Compare,
    Const,
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    Load,
    Ramp,
    Select,
    Var,
    const,
    index,
)
from toolchain.te.loop_ir import Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together, block, statements
from toolchain.te.lower.shared import depends_on
from toolchain.te.substitute import substitute

REDUCTIONS = {op: f"reduce_{name}" for name, op in COMBINERS.items()}


def vectorize_loops(func: PrimFunc, target: Target) -> PrimFunc:
    """Replace each VECTORIZED loop by its body with one lane per iteration.

        for l in vectorized(16): C[16*i + l] = A[16*i + l]*B[i]
                                                   ->   C[ramp(16*i, 1, 16)] = A[ramp(16*i, 1, 16)]*broadcast(B[i], 16)
        for l in vectorized(16): s[0] = s[0] + A[l]
                                                   ->   s[0] = s[0] + reduce_sum(A[ramp(0, 1, 16)])
        if 16*i + l < n: C[...] = v   (l a lane)   ->   C[...] = v, masked: lanes that fail store nothing and load nothing

    A reduce_ call adds the upper half of the lanes to the lower half until one is left: the same order everywhere.

    Needs: flattened indices; no vectorized loop inside another. Keeps: every value stored; a reduction over
    lanes changes its order.
    Raises CodegenError: a store whose place no lane decides, and which is no reduction.
    """
    def visit(node: Any) -> Any:
        match node:
            case For(var, body, ForKind.VECTORIZED):
                if var.extent == 1:
                    return replace(node, body=visit(body), kind=ForKind.SERIAL)
                return block(*_Vectorizer(var, func.name).stmt(body, None))
            case Stmt():
                return map_children(node, visit)
        return node

    body: Stmt = visit(func.body)
    return func if body is func.body else replace(func, body=body)


class _Vectorizer:
    """One vectorized loop; `lane` is its variable. A result without lanes is the same in all of them."""

    def __init__(self, lane: Var, kernel: str) -> None:
        self.lane, self.lanes, self.kernel = lane, lane.extent, kernel
        self.memo: dict[int, tuple[Expr, Expr]] = {}
        self.wide: set[int] = set()              # ids of results that have lanes (all kept alive by `memo`)

    def stmt(self, stmt: Stmt, mask: Expr | None) -> tuple[Stmt, ...]:
        match stmt:
            case Store():
                return (self.store(stmt, mask),)
            case Together(stores):
                return (self.together(stores, mask),)
            case If(condition, body):
                test = self.expr(condition)
                if id(test) not in self.wide:
                    return (If(test, block(*self.stmt(body, mask))),)
                return self.stmt(body, test if mask is None else Bin("and", mask, test))
            case For(var, body, kind):
                if kind is ForKind.VECTORIZED:
                    raise CodegenError(f"{self.kernel}: vectorized loop {var.name} inside vectorized loop {self.lane.name}")
                return (replace(stmt, body=block(*self.stmt(body, mask))),)
            case Evaluate():                     # a prefetch: one for all lanes
                return (substitute(stmt, {self.lane: 0}),)
        return tuple(v for s in statements(stmt) for v in self.stmt(s, mask))

    def together(self, stores: tuple[Store, ...], mask: Expr | None) -> Together:
        """Lane by lane: factor_lanes has taken reductions of tuples over lanes apart."""
        for s in stores:
            if not any(depends_on(i, self.lane) for i in s.index):
                raise CodegenError(f"{self.kernel}: every lane of vectorized loop {self.lane.name} stores to one place of "
                                   f"{s.tensor.name}", fix="vectorize a loop that the store's index depends on")
        return Together(tuple(self.store(s, mask) for s in stores))

    def store(self, s: Store, mask: Expr | None) -> Store:
        at = tuple(self.expr(i) for i in s.index)
        if any(id(i) in self.wide for i in at):
            return Store(s.tensor, at, self.widen(self.expr(s.value)), mask)
        match s.value:
            case Bin(op, Load(tensor, idx), value) if op in REDUCTIONS and tensor is s.tensor and idx == s.index:
                values = self.widen(self.expr(value))
                if mask is not None:             # lanes that fail contribute the identity
                    values = Select(mask, values, Broadcast(_identity(op, value.dtype), self.lanes))
                total = Call(REDUCTIONS[op], (values,), value.dtype)
                return Store(s.tensor, at, Bin(op, Load(tensor, at), total))
        if mask is None and not depends_on(s.value, self.lane):
            return Store(s.tensor, at, self.expr(s.value))
        raise CodegenError(
            f"{self.kernel}: every lane of vectorized loop {self.lane.name} stores to one place of {s.tensor.name}",
            fix="vectorize a loop that the store's index depends on",
        )

    def widen(self, value: Expr) -> Expr:
        return value if id(value) in self.wide else Broadcast(value, self.lanes)

    def expr(self, e: Expr) -> Expr:
        """`e` in every lane; the same object when it does not depend on the lane."""
        if (known := self.memo.get(id(e))) is not None:
            return known[1]
        new = self._expr(e)
        self.memo[id(e)] = (e, new)
        if new is not e:
            self.wide.add(id(new))
        return new

    def _expr(self, e: Expr) -> Expr:
        match e:
            case Index() | Var():
                return self.index(index(e)) if depends_on(e, self.lane) else e
            case Const():
                return e
            case Compare(op, idx, bound):
                if not depends_on(idx, self.lane):
                    return e
                return Bin(op, self.index(idx), Broadcast(const(bound, "int64"), self.lanes))
            case Load(tensor, idx):
                at = tuple(self.expr(i) for i in idx)
                return e if all(a is b for a, b in zip(at, idx, strict=True)) else Load(tensor, at)
            case Cast(dtype, value):
                new = self.expr(value)
                return e if new is value else Cast(dtype, new)
            case Select(condition, a, b):
                test, x, y = (self.expr(part) for part in (condition, a, b))
                if test is condition and x is a and y is b:
                    return e
                return Select(test, self.widen(x), self.widen(y))
            case Bin(op, a, b):
                x, y = self.expr(a), self.expr(b)
                return e if x is a and y is b else Bin(op, self.widen(x), self.widen(y))
            case Call(name, args, dtype):
                values = tuple(self.expr(a) for a in args)
                if all(v is a for v, a in zip(values, args, strict=True)):
                    return e
                return Call(name, tuple(self.widen(v) for v in values), dtype)
        raise CodegenError(f"{self.kernel}: {type(e).__name__} inside vectorized loop {self.lane.name}")

    def index(self, idx: Index) -> Expr:
        """A Ramp when the lane stands alone in one term; otherwise integer arithmetic on lanes, for a gather."""
        base = Index(tuple((a, c) for a, c in idx.terms if not depends_on(index_of(a), self.lane)), idx.constant)
        inner = [(a, c) for a, c in idx.terms if depends_on(index_of(a), self.lane)]
        direct = sum(c for a, c in inner if a is self.lane)
        result: Expr = Ramp(base, direct, self.lanes) if direct else Broadcast(base, self.lanes)
        for atom, c in inner:
            if atom is self.lane:
                continue
            value = self.atom(atom)
            if c != 1:
                value = Bin("*", value, Broadcast(const(c, "int64"), self.lanes))
            result = value if isinstance(result, Broadcast) and base == Index() else Bin("+", result, value)
        return result

    def atom(self, atom: object) -> Expr:
        match atom:
            case FloorDiv(inner, k):
                return Bin("//", self.index(inner), Broadcast(const(k, "int64"), self.lanes))
            case FloorMod(inner, k):
                return Bin("%", self.index(inner), Broadcast(const(k, "int64"), self.lanes))
            case Dynamic(value):
                wide = self.expr(value)
                return wide if value.dtype == "int64" else Cast("int64", wide)
        raise TypeError(atom)


def index_of(atom: Var | FloorDiv | FloorMod | Dynamic) -> Expr:
    """An atom as an expression that can be asked for its variables."""
    return Index(((atom, 1),))


def _identity(op: str, dtype: str) -> Const:
    match op:
        case "+":
            return const(0, dtype)
        case "*":
            return const(1, dtype)
        case "max":
            return const(dtypes.lowest(dtype), dtype)
    return const(dtypes.highest(dtype), dtype)


__all__ = ["REDUCTIONS", "vectorize_loops"]
