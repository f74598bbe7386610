"""What a cost model sees of a schedule: one row of numbers per innermost statement, read off the rolled loop IR.

    for i in parallel(8): for j in vectorized(16): for k: C[i, j] += A[i, k] * B[k, j]
    ->  operations, loops by kind, bytes per operation at ten depths, and per buffer what is touched, how much of it is new,
        how soon it is needed again, and how far apart neighbouring lanes read

Nothing is lowered and no index is composed: a buffer's footprint is the product of its dimensions' spans. Sizes are base-2
logarithms. Rows of different kernels are alike, so one model learns from all of them.

Source: the features per statement of Ansor (Zheng et al., "Ansor: Generating High-Performance Tensor Programs for Deep
Learning", OSDI 2020, appendix B): these are its groups, without those of GPUs. An instruction (`tensorize`) is one row, with
the operations and the lanes of its meaning, and fragments in place of elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.rewrite import children
from toolchain.te.expr import (
    Bin,
    Broadcast,
    Call,
    Cast,
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    Load,
    Reduce,
    Select,
    Tuple,
    Var,
)
from toolchain.te.intrin import Intrin
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together, Update
from toolchain.te.tensor import Tensor

VERSION = 2                 # of the columns: rows of another version say nothing to a model
STATEMENTS = 8              # per schedule, those with most work: peeled loops repeat statements
BUFFERS = 4                 # per statement, those with most bytes
DEPTHS = 10                 # at which the arithmetic intensity is taken
LINE_BYTES = 64             # a unit to count in, whatever the target's lines are

_OPERATIONS = ("add", "mul", "div", "compare", "call", "cast")
_LOOPS = ("iterations", "vector", "unrolled", "unrolled_loops", "parallel", "serial_loops", "innermost", "innermost_reduces",
          "second", "reduced", "vector_reduces", "instructions", "local_bytes", "statements", "guards", "dots", "dot_steps")
_BUFFER = ("writes", "reads", "local", "touched_bytes", "unique_bytes", "lines", "reuse_iterations", "reuse_bytes", "reuses",
           "lane_stride", "innermost_stride")
_Moved: TypeAlias = dict[Var, list[tuple[int, float]]]
COLUMNS = (*_OPERATIONS, *_LOOPS, *(f"intensity{n}" for n in range(DEPTHS)),
           *(f"{name}{n}" for n in range(BUFFERS) for name in _BUFFER))

_KIND = {"+": 0, "-": 0, "*": 1, "/": 2, "//": 2, "%": 2}
_COMPARE, _CALL, _CAST = 3, 4, 5
_WITHIN: Mapping[type, int | None] = {Select: _COMPARE, Call: _CALL, Cast: _CAST, Tuple: None, Reduce: None, Broadcast: None}


def features(func: PrimFunc) -> np.ndarray:
    """A row per innermost statement, (n, len(COLUMNS)) float32, the one with most work first."""
    every: list[_Statement] = []
    _statements(func.body, (), 0, func.attrs.get("intrinsics", {}), every)
    found = sorted(every, key=lambda s: -s.work)[:STATEMENTS]
    return np.array([_row(func, s, len(found)) for s in found], np.float32).reshape(len(found), len(COLUMNS))


@dataclass(frozen=True, slots=True, eq=False)
class _Statement:
    """A Store, Update or instruction, the loops around it (outermost first), how often it runs; its operations and loads,
    once each. lanes, steps: how much of each an instruction computes at once (1 of others). fragments: elements of what it
    names, by tensor."""

    written: tuple[Tensor, ...]
    index: tuple[Expr, ...]
    accumulates: bool
    loops: tuple[For, ...]
    guards: int
    iterations: int
    operations: tuple[int, ...]
    loads: tuple[Load, ...]
    lanes: int = 1
    steps: int = 1
    fragments: Mapping[Tensor, int] = field(default_factory=dict)

    @property
    def work(self) -> int:
        return self.iterations * (sum(self.operations) + len(self.loads) + 1)


def _statements(
    stmt: Stmt, around: tuple[For, ...], guards: int, known: Mapping[str, Intrin], found: list[_Statement],
) -> None:
    """Appends those below a statement. known: the instructions of the function, by name."""
    if type(stmt) is For:
        loops = list(around)
        while type(stmt) is For:
            loops.append(stmt)
            stmt = stmt.body
        around = tuple(loops)
    match stmt:
        case Block(parts) | Together(parts):
            for part in parts:
                _statements(part, around, guards, known, found)
        case If():
            _statements(stmt.body, around, guards + 1, known, found)
        case Store() | Update():
            operations, loads = _operations(stmt.value)
            operations[0] += isinstance(stmt, Update)
            found.append(_Statement(stmt.tensors, stmt.index, isinstance(stmt, Update), around, guards,
                                    math.prod([f.var.extent for f in around]), tuple(operations), tuple(loads)))
        case Evaluate(Call(name, (Load() as out, *read))) if name in known:
            found.append(_instruction(known[name], out, [r for r in read if isinstance(r, Load)], around, guards))


def _instruction(
    intrin: Intrin, out: Load, read: Sequence[Load], around: tuple[For, ...], guards: int,
) -> _Statement:
    """As the statement it stands for, once for all that it computes."""
    body = intrin.definition.body
    sums = isinstance(body, Reduce)
    operations, _ = _operations(body.value if isinstance(body, Reduce) else body)
    operations[0] += sums
    lanes = math.prod(intrin.output.shape)
    steps = math.prod(axis.extent for axis in intrin.definition.reduce_axis) if sums else 1
    fragments = {load.tensor: math.prod(t.shape) for load, t in zip((out, *read), intrin.operands, strict=False)}
    return _Statement((out.tensor,), out.index, sums, around, guards, math.prod(f.extent for f in around),
                      tuple(n * lanes * steps for n in operations), tuple(read), lanes, steps, fragments)


def _operations(value: Expr) -> tuple[list[int], list[Load]]:
    """How many of each of _OPERATIONS, what is shared counted once; and the loads."""
    count, loads, seen, stack = [0] * len(_OPERATIONS), list[Load](), set[int](), [value]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        kind = type(e)
        if kind is Load:
            loads.append(e)  # type: ignore[arg-type]
        elif kind is Bin:
            count[_KIND.get(e.op, _COMPARE)] += 1  # type: ignore[attr-defined]
            stack += (e.a, e.b)  # type: ignore[attr-defined]
        elif kind in _WITHIN:
            if (at := _WITHIN[kind]) is not None:
                count[at] += 1
            stack += [c for c in children(e) if isinstance(c, Expr)]
    return count, loads


# -- a row ------------------------------------------------------------------------------------------------------------


def _row(func: PrimFunc, s: _Statement, statements: int) -> list[float]:
    accesses = _accesses(func, s)
    moved = {id(a): _moved(a) for a in accesses}
    inside, footprints = _footprints(s.loops, accesses, moved)
    operations = sum(s.operations)
    kinds: dict[ForKind, list[For]] = {}
    for loop in s.loops:
        if loop.var.extent > 1:
            kinds.setdefault(loop.kind, []).append(loop)
    row = [_log(n * s.iterations) for n in s.operations]
    row += _loop_features(s, accesses, kinds, statements)
    row += _intensity(operations, inside, footprints)
    ordered = sorted(accesses, key=lambda a: -a.unique[-1])[:BUFFERS]
    for a in ordered:
        row += _buffer_features(s, a, moved[id(a)], kinds, inside, footprints)
    return row + [0.0] * (len(COLUMNS) - len(row))


def _loop_features(
    s: _Statement, accesses: Sequence[_Access], kinds: Mapping[ForKind, Sequence[For]], statements: int,
) -> list[float]:
    vector, serial = kinds.get(ForKind.VECTORIZED, []), kinds.get(ForKind.SERIAL, [])
    unrolled = math.prod(f.extent for f in kinds.get(ForKind.UNROLLED, ()))
    stored = {v for a in accesses if a.writes for steps in a.steps for v in steps}
    own = [f for f in s.loops if f.extent > 1 and f.var not in stored]
    emitted = unrolled * (sum(s.operations) // (s.lanes * s.steps) + len(s.loads))
    return [
        _log(s.iterations), _log(s.lanes * math.prod(f.extent for f in vector)), _log(unrolled),
        float(len(kinds.get(ForKind.UNROLLED, ()))), _log(math.prod(f.extent for f in kinds.get(ForKind.PARALLEL, ()))),
        float(len(serial)), _log(serial[-1].extent) if serial else 0.0, float(bool(serial) and serial[-1] in own),
        _log(serial[-2].extent) if len(serial) > 1 else 0.0, _log(math.prod(f.extent for f in own)),
        float(any(f in own for f in vector)), _log(emitted),
        _log(sum(a.unique[-1] for a in accesses if a.local)), float(statements), float(s.guards),
        _log(s.iterations) if s.lanes > 1 else 0.0, _log(s.steps - 1),
    ]


def _intensity(operations: int, inside: Sequence[int], footprints: Sequence[float]) -> list[float]:
    """log2 of operations per byte, DEPTHS times from the innermost loop to all of them."""
    curve = [_log(operations * n) - _log(b) for n, b in zip(inside, footprints, strict=True)]
    return [curve[round(d * (len(curve) - 1) / (DEPTHS - 1))] for d in range(DEPTHS)]


# -- buffers ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Access:
    """One buffer of a statement. steps: per dimension, how far a variable's next value is; unique: bytes it touches inside
    each number of loops, innermost first (0 loops: one element)."""

    tensor: Tensor
    steps: list[dict[Var, float]]
    writes: bool
    reads: bool
    local: bool
    run: int                    # the dimension along which it is contiguous, -1: a scalar
    unique: list[float]
    fragment: int = 1           # elements that are taken at once
    places: int = 1             # of fragments, overlapping ones too, inside the loops so far


def _accesses(func: PrimFunc, s: _Statement) -> list[_Access]:
    """Per tensor and index shape; loads of one tensor that differ in constants only are one access."""
    found: dict[object, _Access] = {}
    written = [(t, s.index, True, s.accumulates) for t in s.written]
    for tensor, index, writes, reads in (*written, *((n.tensor, n.index, False, True) for n in s.loads)):
        steps = [steps_of(i) for i in index]
        key = tensor, tuple(frozenset(d.items()) for d in steps)
        if (same := found.get(key)) is not None:
            same.writes, same.reads = same.writes or writes, same.reads or reads
            continue
        buffer = func.buffers[tensor]
        run = buffer.type.layout.dims[-1][0] if buffer.type.layout.dims else -1
        found[key] = _Access(tensor, steps, writes, reads, buffer.scope == "local", run, [], s.fragments.get(tensor, 1))
    return list(found.values())


def steps_of(index: Expr) -> dict[Var, float]:
    """|coefficient| of every variable; those inside a division are divided."""
    if isinstance(index, Var):
        return {index: 1.0}
    found: dict[Var, float] = {}
    if isinstance(index, Index):
        for atom, c in index.terms:
            if isinstance(atom, Var):
                found[atom] = found.get(atom, 0.0) + abs(c)
            elif isinstance(atom, FloorDiv | FloorMod):
                scale = abs(c) / atom.divisor if isinstance(atom, FloorDiv) else abs(c)
                for v, inner in steps_of(atom.index).items():
                    found[v] = found.get(v, 0.0) + inner * scale
            elif isinstance(atom, Dynamic):
                continue
    return found


def _footprints(
    loops: Sequence[For], accesses: Sequence[_Access], known: Mapping[int, _Moved],
) -> tuple[list[int], list[float]]:
    """(iterations, bytes that all buffers together touch) inside 0, 1, ... loops, innermost first; fills `unique`."""
    inside, spans, moved = [1], [[1.0] * len(a.steps) for a in accesses], [known[id(a)] for a in accesses]
    for a in accesses:
        a.unique.append(float(a.fragment * dtypes.itemsize(a.tensor.dtype)))
    for loop in reversed(loops):
        extent = loop.var.extent
        inside.append(inside[-1] * extent)
        for a, span, steps in zip(accesses, spans, moved, strict=True):
            if extent == 1 or (places := steps.get(loop.var)) is None:
                a.unique.append(a.unique[-1])
                continue
            for d, step in places:
                span[d] = min(span[d] + step * (extent - 1), float(a.tensor.shape[d]))
            a.places *= extent
            touched = math.prod(span)
            if a.fragment > 1:
                touched = min(a.fragment * min(touched, a.places), float(math.prod(a.tensor.shape)))
            a.unique.append(touched * dtypes.itemsize(a.tensor.dtype))
    return inside, [sum(column) for column in zip(*(a.unique for a in accesses), strict=True)]


def _moved(a: _Access) -> _Moved:
    """Which dimensions each variable moves along, and how far."""
    found: _Moved = {}
    for d, steps in enumerate(a.steps):
        for v, step in steps.items():
            found.setdefault(v, []).append((d, step))
    return found


def _buffer_features(
    s: _Statement, a: _Access, moved: _Moved, wide: Mapping[ForKind, Sequence[For]], inside: Sequence[int],
    footprints: Sequence[float],
) -> list[float]:
    """wide: the loops of more than one iteration, by kind."""
    depth = _reused_at(s.loops, moved)
    itemsize = dtypes.itemsize(a.tensor.dtype)
    run = a.steps[a.run] if a.steps else {}
    along = sum(run[loop.var] * (loop.var.extent - 1) for loop in s.loops if loop.var in run) + 1
    lines = a.unique[-1] / min(LINE_BYTES, max(itemsize, min(along, float(a.tensor.shape[a.run])) * itemsize
                                               if a.steps else itemsize))
    reuse = ((_log(inside[depth]), _log(footprints[depth]), _log(s.loops[len(s.loops) - 1 - depth].extent))
             if depth is not None else (0.0, 0.0, 0.0))
    return [float(a.writes), float(a.reads), float(a.local), _log(s.iterations * itemsize), _log(a.unique[-1]), _log(lines),
            *reuse, _stride(a, wide.get(ForKind.VECTORIZED, [])[-1:]), _stride(a, wide.get(ForKind.SERIAL, [])[-1:])]


def _reused_at(loops: Sequence[For], moved: _Moved) -> int | None:
    """How many loops stand inside the innermost one that touches the same elements again; None: none does."""
    for n, loop in enumerate(reversed(loops)):
        if loop.var.extent > 1 and loop.var not in moved:
            return n
    return None


def _stride(a: _Access, loops: Sequence[For]) -> float:
    """Between neighbours along a loop: 0 the same element, 1 the next one, up to 4 a few apart, 5 elsewhere."""
    if not loops:
        return -1.0
    moved: Mapping[int, float] = {d: steps[loops[0].var] for d, steps in enumerate(a.steps) if loops[0].var in steps}
    if not moved:
        return 0.0
    return min(4.0, moved[a.run]) if list(moved) == [a.run] else 5.0


def _log(x: float) -> float:
    return math.log2(1 + x)
