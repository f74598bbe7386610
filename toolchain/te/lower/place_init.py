"""place_init: give every reduction its start. Removes `Update` from the loop IR."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import map_children, rewrite, walk
from toolchain.core.target import Target
from toolchain.te.expr import COMBINERS, Compare, Const, Expr, Index, Load, Var, binary, index, variables
from toolchain.te.loop_ir import Block, For, If, PrimFunc, Stmt, Store, Update, block, is_reduction_loop, loops, statements
from toolchain.te.lower.shared import without
from toolchain.te.primitives.partition import conjuncts
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Tensor


def place_init(func: PrimFunc, target: Target) -> PrimFunc:
    """Turn each Update into a store of its init and an accumulating store.

        for i:                                          for i:
          for k:                                          for j: C[i, j] = 0
            for j:                                 ->     for k:
              C[i, j] (+)= A[i, k]*B[k, j] init 0           for j: C[i, j] = C[i, j] + A[i, k]*B[k, j]

    The init runs over the non-reduction loops found inside the outermost reduction loop around the Update, and stands before
    that loop. `init` None: the tensor already holds its start value. A guard around the Update stays around the init as far
    as it does not depend on reduction loops. Of a reduction whose loop was partitioned, only the first piece gets the init.

    Needs: the pieces of one reduction stand in one block, in order. Keeps: the order of accumulation.
    Raises CodegenError: two pieces of one reduction overlap in part.
    """
    body = _Placer({loop.var.name for loop in loops(func.body)}).place(func.body)
    return func if body is func.body else replace(func, body=body)


S = TypeVar("S", bound=Stmt)


@dataclass(frozen=True, slots=True)
class _Span:
    """What an index takes inside a statement: outside + low, + low + step, ... + high; all of those when `dense`."""

    outside: Index
    low: int
    high: int
    step: int
    dense: bool

    def cut(self, op: str, bound: int) -> _Span:
        """What of it is below the bound, or from it on; the same when the bound is not a number from out here."""
        if not self.outside.is_constant:
            return replace(self, dense=False)
        at, step = bound - self.outside.constant, self.step or 1
        if op == "<":
            return replace(self, high=min(self.high, self.low + (at - 1 - self.low) // step * step))
        return replace(self, low=max(self.low, self.low - (self.low - at) // step * step))

    def relation(self, other: _Span) -> str:
        """"inside" (self within other), "apart", or "overlap"."""
        shift = self.outside - other.outside
        if not (isinstance(shift, Index) and shift.is_constant):
            return "overlap"
        low, high = self.low + shift.constant, self.high + shift.constant
        if high < other.low or low > other.high or (low - other.low) % (math.gcd(self.step, other.step) or 1):
            return "apart"
        aligned = (low - other.low) % (other.step or 1) == self.step % (other.step or 1) == 0
        return "inside" if aligned and other.dense and other.low <= low and high <= other.high else "overlap"


@dataclass(frozen=True, slots=True)
class _Region:
    """What one Update writes, seen from outside a statement."""

    tensor: Tensor
    box: tuple[_Span, ...]

    def relation(self, other: _Region) -> str:
        found = {a.relation(b) for a, b in zip(self.box, other.box, strict=True)} or {"inside"}
        return next(r for r in ("apart", "overlap", "inside") if r in found)


class _Placer:
    """The walk. `names` are the loop names taken, for the loops of the inits."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def place(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Block():
                return self.place_pieces(stmt)
            case For():
                inits, rest = self.before(stmt)
                return block(*inits, map_children(rest, self._visit))
            case Update(tensor, idx, combiner, value, init):
                start = Load(tensor, idx) if init is None else init
                return Store(tensor, idx, binary(COMBINERS[combiner], start, value))
        return map_children(stmt, self._visit)

    def _visit(self, node: object) -> object:
        return self.place(node) if isinstance(node, Stmt) else node

    def place_pieces(self, stmt: Block) -> Stmt:
        """Statements of one block: a later piece of a reduction already started here only accumulates."""
        started: list[_Region] = []
        out: list[Stmt] = []
        for s in statements(stmt):
            for path in _pending(s):
                update = _update(path)
                relations = {_region(path).relation(r) for r in started if r.tensor is update.tensor}
                if "inside" in relations:
                    s = _continue(s, update)
                elif "overlap" in relations:
                    raise CodegenError(f"place_init: two pieces of {update.tensor.name} overlap only in part")
            read = _tensors_read(s)
            fresh = [_region(path) for path in _pending(s)]
            out.append(self.place(s))
            started = [r for r in (*started, *fresh) if r.tensor not in read]
        return block(*out)

    def before(self, loop: For) -> tuple[list[Stmt], For]:
        """The inits of every Update for which `loop` is the outermost reduction loop, and the loop that only accumulates."""
        inits: list[Stmt] = []
        done: list[_Region] = []
        for path in _pending(loop):
            update = _update(path)
            if not is_reduction_loop(loop, update):
                continue
            region = _region(path)
            if not any(region.tensor is r.tensor and region.relation(r) == "inside" for r in done):
                done.append(region)
                inits.append(self.init_nest(path))
            loop = _continue(loop, update)
        return inits, loop

    def init_nest(self, path: Path) -> Stmt:
        """The store of an Update's init under the loops and guards of `path` that its destination depends on."""
        update = _update(path)
        assert update.init is not None
        spatial = _destination_vars(update)
        dropped = {s.var for s in path if isinstance(s, For) and s.var not in spatial}
        fresh = {s.var: Var(self._fresh(s.var.name), s.var.extent) for s in path if isinstance(s, For) and s.var in spatial}
        stmt: Stmt = Store(update.tensor, update.index, update.init)
        for s in reversed(path[:-1]):
            match s:
                case For() if s.var in spatial:
                    stmt = replace(s, var=fresh[s.var], body=stmt)
                case If(condition) if not isinstance(kept := without(condition, dropped), Const):
                    stmt = If(kept, stmt)
        return substitute(stmt, fresh)  # type: ignore[no-any-return]

    def _fresh(self, name: str) -> str:
        new, n = f"{name}_init", 1
        while new in self.names:
            n += 1
            new = f"{name}_init{n}"
        self.names.add(new)
        return new


Path: TypeAlias = tuple[Stmt, ...]              # the loops and guards around an Update, outermost first, and the Update


def _update(path: Path) -> Update:
    update = path[-1]
    assert isinstance(update, Update)
    return update


def _pending(stmt: Stmt) -> Iterator[Path]:
    """The path from `stmt` to each Update whose init is pending, Blocks left out."""
    match stmt:
        case Update(init=init):
            if init is not None:
                yield (stmt,)
        case Block(stmts):
            for s in stmts:
                yield from _pending(s)
        case For(body=body) | If(body=body):
            for path in _pending(body):
                yield (stmt, *path)


def _destination_vars(update: Update) -> set[Var]:
    return {v for i in update.index for v in variables(i)}


def _region(path: Path) -> _Region:
    update = _update(path)
    inner = {s.var for s in path if isinstance(s, For)}
    dropped = inner - _destination_vars(update)
    guards = [c for s in path if isinstance(s, If) for c in conjuncts(without(s.condition, dropped))]
    return _Region(update.tensor, _guarded([index(i) for i in update.index], inner, guards))


def _guarded(at: Sequence[Index], inner: set[Var], guards: Sequence[Expr]) -> tuple[_Span, ...]:
    """The span of each index where the guards hold: `i + 1 < 5` ends that of i at 3. Others leave gaps nobody knows."""
    spans = [_span(i, inner) for i in at]
    dense = True
    for guard in guards:
        match guard:
            case Const(value=True):
                continue
            case Compare("<" | ">=" as op, i, bound):
                found = next((d for d, own in enumerate(at) if index(own - i).is_constant), None)
                if found is not None:
                    spans[found] = spans[found].cut(op, index(at[found] - i).constant + bound)
                    continue
        dense = False
    return tuple(span if dense else replace(span, dense=False) for span in spans)


def _span(at: Index, inner: set[Var]) -> _Span:
    outside = Index(tuple((a, c) for a, c in at.terms if not inner & variables(a)))
    rest = at - outside
    assert isinstance(rest, Index)
    reach, step, dense = 0, 0, True
    for atom, c in sorted(rest.terms, key=lambda term: abs(term[1])):
        low, high = Index(((atom, 1),)).range()
        dense = dense and (not step or (c % step == 0 and abs(c) <= reach + step))      # smaller terms fill its steps
        step = math.gcd(step, c)
        reach += abs(c) * (high - low)
    return _Span(outside, *rest.range(), step, dense)


def _continue(stmt: S, update: Update) -> S:
    """`stmt` with this Update only accumulating."""
    accumulate = replace(update, init=None)
    return rewrite(stmt, lambda n: accumulate if n is update else None)  # type: ignore[no-any-return]


def _tensors_read(stmt: Stmt) -> set[Tensor]:
    return {n.tensor for n in walk(stmt) if isinstance(n, Load)}


__all__ = ["place_init"]
