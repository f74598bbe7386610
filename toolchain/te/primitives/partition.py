"""partition: cut a loop where its conditions change, so that each piece runs without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from toolchain.te.create import fresh
from toolchain.te.expr import Bin, Compare, Const, Expr, Index, Var, compare, distinct, index, variables
from toolchain.te.loop_ir import Block, For, ForKind, If, PrimFunc, Stmt, Update, block, is_reduction_loop
from toolchain.te.primitives.loops import loop_at, names, path_to_loop, replace_at
from toolchain.te.primitives.restructure import rename_loops
from toolchain.te.substitute import substitute, substitute_index

MAX_CUTS = 4            # of one condition: a condition that flips more often (a modulo) is no border
MAX_SCAN = 1024         # iterations looked at one by one when a condition is not linear in the loop


def partition(func: PrimFunc, loop: str) -> tuple[PrimFunc, tuple[Var, ...]]:
    """Cut `loop` at every iteration where a condition inside becomes or stops being decided.

        for i_0 in range(3):                       for i_0 in range(2):
          for i_1 in range(4):                       for i_1 in range(4): f(4*i_0 + i_1)
            if 4*i_0 + i_1 < 10:           ->      for i_0_1 in range(1):
              f(4*i_0 + i_1)                         for i_1_1 in range(2): f(8 + i_1_1)

    Guards and selects that a piece decides are gone; a guard `i < n` that is left on a loop shortens that loop (not a
    vectorized one: there the guard becomes a mask). The longest piece keeps the loop names. Of a reduction loop, only the
    first piece initialises. Returns one loop variable per piece, in order; one when there is nothing to cut.
    Called: LoopPartition in TVM, cut_loop in Exo, RoundUp/peeling of tails in Halide.
    Raises ScheduleError: there is no such loop.
    """
    path = path_to_loop(func, loop, "partition")
    old = loop_at(path)
    cuts = sorted({c for n in distinct(old.body) if isinstance(n, Compare) for c in _cuts(n, old.var)})
    if not cuts:
        return func, (old.var,)
    ends = [*cuts, old.extent]
    bounds = list(zip([0, *cuts], ends, strict=True))
    longest = max(bounds, key=lambda b: b[1] - b[0])
    taken = names(func)
    pieces: list[Stmt] = []
    handles: list[Var] = []
    for start, end in bounds:
        main = (start, end) == longest
        var = Var(loop if main else fresh(loop, taken), end - start)
        body = _without_init(old) if start > 0 else old.body
        body = substitute(body if main else rename_loops(body, taken), {old.var: index(var + start)})
        pieces.append(shorten(drop_decided(replace(old, var=var, body=body))))
        handles.append(var)
    return replace_at(func, path, block(*pieces)), tuple(handles)


def _cuts(condition: Compare, var: Var) -> list[int]:
    """The iterations, other than the first, from which on the condition is newly decided or undecided."""
    coefficient = condition.index.coefficient(var)
    rest = Index(tuple((a, c) for a, c in condition.index.terms if a is not var))
    if var not in variables(condition.index):
        return []
    if coefficient and var not in variables(rest):
        cuts = _linear_cuts(condition, rest, coefficient)
    elif var.extent <= MAX_SCAN:
        cuts = _scanned_cuts(condition, var)
    else:
        return []
    inside = sorted({c for c in cuts if 0 < c < var.extent})
    return inside if len(inside) <= MAX_CUTS else []


def _linear_cuts(condition: Compare, rest: Index, c: int) -> Iterator[int]:
    """c*v + rest op bound: where the value surely is, or surely is not, on one side of the bound."""
    low, high = rest.range()
    edges = [condition.bound] if condition.op in ("<", ">=") else [condition.bound, condition.bound + 1]
    for edge in edges:
        for end in (low, high):                     # c*v + end < edge changes at v = (edge - end)/c
            yield -(-(edge - end) // c) if c > 0 else (edge - end) // c + 1


def _scanned_cuts(condition: Compare, var: Var) -> Iterator[int]:
    last: object = None
    for v in range(var.extent):
        at = compare(condition.op, substitute_index(condition.index, {var: v}), condition.bound)
        state = at.value if isinstance(at, Const) else "open"
        if v and state != last:
            yield v
        last = state


def _without_init(loop: For) -> Stmt:
    """The body for a later piece: what reduces over the loop already holds a value."""
    def visit(stmt: Stmt) -> Stmt:
        match stmt:
            case Update() if is_reduction_loop(loop, stmt):
                return replace(stmt, init=None)
            case For(body=body) | If(body=body):
                return replace(stmt, body=visit(body))
            case Block(stmts):
                return Block(tuple(visit(s) for s in stmts))
        return stmt

    return visit(loop.body)


def drop_decided(stmt: Stmt) -> Stmt:
    """Guards that are always true vanish; statements under guards that are never true too, and loops left empty."""
    match stmt:
        case If(Const(value=holds), body):
            return drop_decided(body) if holds else block()
        case For(body=body) | If(body=body):
            new = drop_decided(body)
            return block() if _is_empty(new) else stmt if new is body else replace(stmt, body=new)
        case Block(stmts):
            return block(*(drop_decided(s) for s in stmts))
    return stmt


def _is_empty(stmt: Stmt) -> bool:
    return isinstance(stmt, Block) and not stmt.stmts


def shorten(stmt: Stmt) -> Stmt:
    """A guard `low <= v < high` around all that a loop over v does becomes its range.

        for v in range(8): if v < 3: f(v)      ->      for v in range(3): f(v)
    """
    match stmt:
        case Block(stmts):
            return block(*(shorten(s) for s in stmts))
        case If(body=body):
            return replace(stmt, body=shorten(body))
        case For(var, body, kind) if kind is not ForKind.VECTORIZED:
            low, high = _range_of(var, body)
            if low >= high:
                return block()
            if (low, high) != (0, var.extent):
                var = Var(var.name, high - low)
                body = drop_decided(substitute(body, {stmt.var: index(var + low)}))
            return replace(stmt, var=var, body=shorten(body))
        case For(body=body):
            return replace(stmt, body=shorten(body))
    return stmt


def _range_of(var: Var, body: Stmt) -> tuple[int, int]:
    low, high = 0, var.extent
    while isinstance(body, For | If):
        if isinstance(body, If):
            for condition in conjuncts(body.condition):
                match condition:
                    case Compare("<", Index(((atom, 1),), 0), bound) if atom is var:
                        high = min(high, bound)
                    case Compare(">=", Index(((atom, 1),), 0), bound) if atom is var:
                        low = max(low, bound)
        body = body.body
    return low, high


def conjuncts(condition: Expr) -> Iterator[Expr]:
    """The conditions that `and` joins."""
    if isinstance(condition, Bin) and condition.op == "and":
        yield from conjuncts(condition.a)
        yield from conjuncts(condition.b)
    else:
        yield condition

