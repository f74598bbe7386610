"""place_init: give every reduction its start. Removes `Update` from the loop IR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from toolchain.core.errors import CodegenError
from toolchain.core.rewrite import map_children, rewrite, walk
from toolchain.core.target import Target
from toolchain.te.combiner import combine
from toolchain.te.expr import Compare, Const, Expr, Index, Load, Var, index, join, variables
from toolchain.te.loop_ir import Block, For, If, PrimFunc, Stmt, Update, block, is_reduction_loop, loops, statements, stores
from toolchain.te.lower.shared import without
from toolchain.te.primitives.partition import conjuncts
from toolchain.te.spans import Span, span
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Tensor


def place_init(func: PrimFunc, target: Target) -> PrimFunc:
    """Turn each Update into a store of its init and an accumulating store.

        for i:                                          for i:
          for k:                                          for j: C[i, j] = 0
            for j:                                 ->     for k:
              C[i, j] (+)= A[i, k]*B[k, j] init 0           for j: C[i, j] = C[i, j] + A[i, k]*B[k, j]

    A combiner that a user defined is written out; of several values, the stores happen together.
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
class _Region:
    """What one Update writes, seen from outside a statement."""

    tensors: tuple[Tensor, ...]
    box: tuple[Span, ...]

    @property
    def tensor(self) -> Tensor:
        return self.tensors[0]

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
            case Update(tensors, idx, combiner, value, init):
                start = join([Load(t, idx) for t in tensors]) if init is None else init
                return stores(tensors, idx, combine(combiner, start, value))
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
            started = [r for r in (*started, *fresh) if not read.intersection(r.tensors)]
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
        stmt: Stmt = stores(update.tensors, update.index, update.init)
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
    return _Region(update.tensors, _guarded([index(i) for i in update.index], inner, guards))


def _guarded(at: Sequence[Index], inner: set[Var], guards: Sequence[Expr]) -> tuple[Span, ...]:
    """The span of each index where the guards hold: `i + 1 < 5` ends that of i at 3. Others leave gaps nobody knows."""
    spans = [span(i, inner) for i in at]
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
    return tuple(s if dense else replace(s, dense=False) for s in spans)


def _continue(stmt: S, update: Update) -> S:
    """`stmt` with this Update only accumulating."""
    accumulate = replace(update, init=None)
    return rewrite(stmt, lambda n: accumulate if n is update else None)  # type: ignore[no-any-return]


def _tensors_read(stmt: Stmt) -> set[Tensor]:
    return {n.tensor for n in walk(stmt) if isinstance(n, Load)}


__all__ = ["place_init"]
