"""insert_tokens: order the queues of a decoupled accelerator by explicit dependency tokens; check_tokens proves them.

A decoupled accelerator runs loads, computations and stores in queues of their own, each in order but not ordered among each
other. `push.load.compute()` makes the load queue send a token to the compute queue when all before it is done;
`pop.load.compute()` makes the compute queue wait for one. Source: Moreau et al., VTA (arXiv:1807.04188), section 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.te.expr import Call, Index, Load, distinct
from toolchain.te.loop_ir import (
    Block,
    Evaluate,
    For,
    PrimFunc,
    Stmt,
    Store,
    Update,
    block,
    leaves,
    statements,
    walk_statements,
)
from toolchain.te.tensor import Tensor

QUEUES = ("load", "compute", "store")
Place: TypeAlias = tuple[Tensor, int | None]        # a tensor, or one virtual thread's piece of it
Pair: TypeAlias = tuple[str, str]                   # from queue, to queue


@dataclass(slots=True)
class Accesses:
    """What one queue reads and writes on chip."""

    reads: set[Place] = field(default_factory=set)
    writes: set[Place] = field(default_factory=set)

    def conflicts(self, later: Accesses) -> bool:
        return bool(self.writes & (later.reads | later.writes) or self.reads & later.writes)


def insert_tokens(func: PrimFunc, target: Target) -> PrimFunc:
    """Put a push behind the last statement another queue must wait for, and a pop before the one that waits.

        for k:                                     push.compute.load()             (nothing to wait for yet)
          inp[i] = A[8*k + i]                      for k:
          gemm(acc[0], inp[0])             ->        pop.compute.load()            (the last gemm has read inp)
                                                     inp[i] = A[8*k + i]
                                                     push.load.compute()
                                                     pop.load.compute()
                                                     gemm(acc[0], inp[0])
                                                     push.compute.load()
                                                   pop.compute.load()

    A statement's queue is that of the scope it fills (`Scope.queue` of the Target); what writes global memory is a store.
    A loop counts as one statement to those beside it. Waiting for the previous iteration costs one token more before the
    loop and one less after it. `check_tokens` proves the result.

    Needs: virtual threads interleaved. Keeps: every statement and their order.
    """
    inserter = _Inserter(func, {s.name: s.queue for s in target.scopes if s.queue})
    result = replace(func, body=inserter.insert(func.body))
    check_tokens(result, target)
    return result


def queue_of(func: PrimFunc, stmt: Stmt, queues: Mapping[str, str]) -> str:
    """The queue that runs a leaf statement (or a nest around one)."""
    for leaf in leaves(stmt):
        tensor = leaf.call.args[0].tensor if isinstance(leaf, Evaluate) else leaf.tensor  # type: ignore[attr-defined]
        scope = func.buffers[tensor].scope
        return "store" if scope == "global" else queues.get(scope, "compute")
    raise CodegenError("insert_tokens: a statement without effect", where=func.name)


def accesses(func: PrimFunc, stmt: Stmt) -> Accesses:
    """The on-chip places a statement reads and writes."""
    found = Accesses()
    for leaf in leaves(stmt):
        if isinstance(leaf, Store | Update):
            found.writes |= {_place(func, Load(t, leaf.index)) for t in leaf.tensors}
        elif isinstance(leaf.call.args[0], Load):
            found.writes.add(_place(func, leaf.call.args[0]))
    found.reads = {_place(func, n) for n in distinct(stmt) if isinstance(n, Load)}
    for places in (found.reads, found.writes):
        places -= {p for p in places if func.buffers[p[0]].scope == "global"}
    return found


def _place(func: PrimFunc, access: Load) -> Place:
    first = access.index[0] if access.index else None
    widened = len(func.buffers[access.tensor].type.shape) > len(access.tensor.shape)
    return access.tensor, first.constant if widened and isinstance(first, Index) and first.is_constant else None


def _is_leaf(stmt: Stmt) -> bool:
    return not any(isinstance(s, Block) for s in walk_statements(stmt))


class _Inserter:
    def __init__(self, func: PrimFunc, queues: Mapping[str, str]) -> None:
        self.func, self.queues = func, queues

    def insert(self, stmt: Stmt) -> Stmt:
        """Tokens between the statements of every block; those of a loop's back edge stand around the loop."""
        match stmt:
            case Block(stmts):
                return self.sequence(stmts, repeated=False)[0]
            case For(body=body) if not _is_leaf(stmt):
                inner, carried = self.sequence(statements(body), repeated=stmt.extent > 1)
                pushes, pops = ([_token(kind, pair) for pair in carried] for kind in ("push", "pop"))
                return block(*pushes, replace(stmt, body=inner), *pops)
        return stmt

    def sequence(self, items: Sequence[Stmt], repeated: bool) -> tuple[Stmt, list[Pair]]:
        """The items with tokens between them, and the pairs of queues that also need one from iteration to iteration."""
        parts = [self.by_queue(s) for s in items]
        pushes: list[list[Pair]] = [[] for _ in items]
        pops: list[list[Pair]] = [[] for _ in items]
        known: dict[Pair, int] = {}
        back: dict[Pair, int] = {}
        carried: list[tuple[int, int, Pair]] = []
        for j, later in enumerate(parts):
            for q in later:
                for p in (p for p in QUEUES if p != q):
                    i = _last_conflict(parts[:j], p, later[q])
                    if i is not None and i > known.get((p, q), -1):
                        known[p, q] = i
                        pushes[i].append((p, q))
                        pops[j].append((p, q))
                    elif repeated and (p, q) not in known:
                        i = _last_conflict(parts, p, later[q])
                        if i is not None and i > back.get((p, q), -1):
                            back[p, q] = i
                            carried.append((i, j, (p, q)))
        for i, j, pair in carried:              # never before a token of this iteration: tokens of one pair are all alike
            pushes[max(i, known.get(pair, -1))].append(pair)
            pops[j].insert(0, pair)
        out: list[Stmt] = []
        for item, before, after in zip(items, pops, pushes):
            out += [*(_token("pop", p) for p in before), self.insert(item), *(_token("push", p) for p in after)]
        return block(*out), [pair for _, _, pair in carried]

    def by_queue(self, stmt: Stmt) -> dict[str, Accesses]:
        """What each queue does in a statement or, for a loop around several, in all of it."""
        found: dict[str, Accesses] = {}
        for leaf in _leaf_nests(stmt):
            own, queue = accesses(self.func, leaf), queue_of(self.func, leaf, self.queues)
            known = found.setdefault(queue, Accesses())
            known.reads |= own.reads
            known.writes |= own.writes
        return found


def _last_conflict(parts: Sequence[Mapping[str, Accesses]], queue: str, later: Accesses) -> int | None:
    return next((i for i in reversed(range(len(parts))) if queue in parts[i] and parts[i][queue].conflicts(later)), None)


def _leaf_nests(stmt: Stmt) -> Iterator[Stmt]:
    if _is_leaf(stmt):
        yield stmt
    else:
        for s in statements(stmt.body if isinstance(stmt, For) else stmt):
            yield from _leaf_nests(s)


def _token(kind: str, pair: Pair) -> Stmt:
    return Evaluate(Call(f"{kind}.{pair[0]}.{pair[1]}", (), "bool"))


def check_tokens(func: PrimFunc, target: Target) -> None:
    """Prove the tokens of `func` by running it with vector clocks: every pop finds a token, none is left at the end, and
    two accesses of which one writes are always ordered by queue order and tokens alone.

    Loops run at most three times: the third iteration sees what all later ones see.
    Raises CodegenError: a pop without push, tokens left over, or two accesses in no order.
    """
    queues = {s.name: s.queue for s in target.scopes if s.queue}
    clocks = {q: dict.fromkeys(QUEUES, 0) for q in QUEUES}
    tokens: dict[Pair, deque[dict[str, int]]] = {(p, q): deque() for p in QUEUES for q in QUEUES}
    done: dict[Place, list[tuple[str, int, bool]]] = {}
    for stmt in _trace(func.body):
        if isinstance(stmt, Evaluate) and stmt.call.name.split(".")[0] in ("push", "pop"):
            kind, p, q = stmt.call.name.split(".")
            if kind == "push":
                tokens[p, q].append(dict(clocks[p]))
            elif not tokens[p, q]:
                raise CodegenError(f"{stmt.call.name} waits for a token that nobody pushes", where=func.name)
            else:
                sent = tokens[p, q].popleft()
                clocks[q] = {name: max(clocks[q][name], sent[name]) for name in QUEUES}
            continue
        queue, own = queue_of(func, stmt, queues), accesses(func, stmt)
        clocks[queue][queue] += 1
        for writes, places in ((False, own.reads), (True, own.writes)):
            for place in places:
                for other, time, wrote in done.get(place, ()):
                    if (writes or wrote) and time > clocks[queue][other]:
                        raise CodegenError(f"{place[0].name}: {queue} does not wait for {other}", where=func.name)
                done.setdefault(place, []).append((queue, clocks[queue][queue], writes))
    if left := [f"push.{p}.{q}" for (p, q), waiting in tokens.items() if waiting]:
        raise CodegenError(f"tokens are left over: {', '.join(left)}", where=func.name)


def _trace(stmt: Stmt) -> Iterator[Stmt]:
    if _is_leaf(stmt):
        yield stmt
    elif isinstance(stmt, For):
        for _ in range(min(stmt.extent, 3)):
            yield from _trace(stmt.body)
    else:
        for s in statements(stmt):
            yield from _trace(s)


__all__ = ["QUEUES", "check_tokens", "insert_tokens"]
