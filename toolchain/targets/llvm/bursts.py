"""Loads of an unrolled reduction ahead of its multiply-adds, a few vectors at once, where a multiply-add takes one lane.

    for k in unrolled(4):                              x: 8 vectors of 4 steps, w: 2 vectors of each      one burst
      for p in unrolled(8):                            k = 0:  acc[p, v] += w[0, v] * x[p].lane 0
        for v in unrolled(2):                   ->     k = 1:  acc[p, v] += w[1, v] * x[p].lane 1
          acc[p, v] += x[p, k] * w[k, v]               ...

Scalars that lie together become lanes of one vector (`fmla v0.4s, v1.4s, v2.s[3]`): a quarter of the loads, and no splats.
An in-order core then waits once per burst, not once per load between two multiply-adds: each would have to retire behind the
multiply-add before it. A burst is as many steps as the registers beside the accumulators can hold.

Products of bytes in pairs take three instructions each, between which a load costs less: what a later step reads is loaded
behind the product that was the last to read something else, into the register of that (`behind`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from toolchain.core import dtype as dtypes
from toolchain.targets.llvm.addresses import PAIR_BYTES, Base
from toolchain.targets.llvm.dot_products import APART, FACTORS, PAIRS, UNDER_WAY, is_dot, lanes_of
from toolchain.targets.llvm.spelling import MEMORY, vector
from toolchain.targets.llvm.values import Values
from toolchain.te.expr import Broadcast, Call, Dynamic, Expr, Index, Load, Ramp, Select, Var, index
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, Stmt, Store
from toolchain.te.lower.shared import nodes
from toolchain.te.tensor import Tensor

NEAR_BYTES = 4096               # how far one instruction moves a pointer
LOAD_PRODUCTS = 3               # products in pairs for which a load is under way
FEWEST = 8                      # multiply-adds, below which a block is no inner loop of a product
Key: TypeAlias = tuple[Any, ...]
Known: TypeAlias = Mapping[Var, int]


@dataclass(slots=True)
class Fetch:
    """One vector register's load, and the steps that need it. load, known: an expression of it and the values of unrolled
    loop variables there; of a group of scalars that of its first, with `width` lanes."""

    load: Load
    known: Known
    first: int
    last: int
    width: int = 0              # 0: a vector load as the program has it
    group: int = 1              # elements that are one scalar: four bytes of a dot product
    dot: str = ""               # the dot product whose factors of all lanes this loads
    first_use: int = 0          # of products in pairs: which of them read it
    last_use: int = 0


@dataclass(slots=True)
class _Reads:
    """What the steps of a loop read: scalars that are splat by place, and vectors."""

    scalars: dict[Key, dict[int, Fetch]] = field(default_factory=dict)      # (tensor, terms, group) -> element -> the read
    vectors: dict[Key, Fetch] = field(default_factory=dict)
    accumulators: set[tuple[Tensor, int]] = field(default_factory=set)
    multiply_adds: int = 0
    beside: int = 0             # registers that multiply-adds take on their way
    products: int = 0           # in pairs


@dataclass(frozen=True, slots=True)
class Bursts:
    """What to load before which step of an unrolled loop, and behind which product in pairs."""

    before: dict[int, list[Fetch]]
    behind: dict[int, list[Fetch]]


class _Irregular(Exception):
    """The loop is not one straight run of multiply-adds."""


def bursts(values: Values, loop: For, registers: int) -> Bursts | None:
    """What to load where in an unrolled loop; None: it gains nothing here, or does not fit.

    Needs: the loops around it are open (`values.env`). registers: how many vector registers there are.
    """
    before = dict(values.env)
    try:
        reads = _collect(values, loop)
    except _Irregular:
        return None
    finally:
        values.env = before
    fetches = [*reads.vectors.values(), *(f for at in reads.scalars.values() for f in _windows(at, values))]
    if reads.multiply_adds < FEWEST or not fetches:
        return None
    steps, room = loop.extent, registers - len(reads.accumulators) - reads.beside
    for size in range(steps, 0, -1):
        starts = range(0, steps, size)
        if all(_alive(fetches, s, min(s + size, steps) - 1) <= room for s in starts):
            planned: dict[int, list[Fetch]] = {s: [] for s in starts}
            for f in sorted(fetches, key=lambda f: (f.first, f.width == 0)):
                planned[f.first - f.first % size].append(f)
            return Bursts(planned, _behind(planned) if reads.products else {})
    return None


def _behind(before: dict[int, list[Fetch]]) -> dict[int, list[Fetch]]:
    """Loads of later steps than the first, behind the products that free a register for them: early enough, but no earlier,
    as far as there is a choice. They are taken out of `before`."""
    free = sorted(f.last_use for fetches in before.values() for f in fetches)
    found: dict[int, list[Fetch]] = {}
    for step in sorted(before)[1:]:
        for fetch in sorted(before[step], key=lambda f: f.first_use):
            early = [n for n, at in enumerate(free) if at + APART + LOAD_PRODUCTS <= fetch.first_use]
            chosen = early[-1] if early else 0
            if free[chosen] + APART < fetch.first_use:
                found.setdefault(free.pop(chosen), []).append(fetch)
                before[step].remove(fetch)
    return found


def _alive(fetches: list[Fetch], first: int, last: int) -> int:
    return sum(f.first <= last and f.last >= first for f in fetches)


def _collect(values: Values, loop: For) -> _Reads:
    reads = _Reads()
    for step in range(loop.extent):
        values.env[loop.var] = step
        for stmt, known in _leaves(values, loop.body, {loop.var: step}):
            if isinstance(stmt, Store):
                _collect_store(values, stmt, known, step, reads)
            else:
                _collect_dot(values, stmt.call, known, step, reads)
    return reads


def _leaves(values: Values, stmt: Stmt, known: Known) -> Iterator[tuple[Store | Evaluate, Known]]:
    """Each store and dot product as often as unrolled loops repeat it. Raises _Irregular for any other statement."""
    match stmt:
        case Block(parts):
            for part in parts:
                yield from _leaves(values, part, known)
        case For(var, body, kind) if kind is ForKind.UNROLLED or var.extent == 1:
            for n in range(var.extent):
                values.env[var] = n
                yield from _leaves(values, body, {**known, var: n})
        case Store(mask=None):
            yield stmt, known
        case Evaluate(call) if is_dot(call.name):
            yield stmt, known
        case _:
            raise _Irregular


def _collect_store(values: Values, store: Store, known: Known, step: int, reads: _Reads) -> None:
    place = values.places[store.tensor]
    at = store.index[0]
    if not place.local or not isinstance(at, Ramp) or at.stride != 1:
        raise _Irregular
    terms, total = values.linear(at.base)
    if terms:
        raise _Irregular
    reads.accumulators.add((store.tensor, total))
    splat: set[int] = set()
    for n in nodes(store.value):
        if isinstance(n, Select):
            raise _Irregular
        if isinstance(n, Call) and n.name == "fma":
            reads.multiply_adds += 1
        elif isinstance(n, Broadcast) and isinstance(n.value, Load):
            splat.add(id(n.value))
            _note_scalar(values, n.value, known, step, reads)
        elif isinstance(n, Load) and id(n) not in splat:
            _note_vector(values, n, known, step, reads)


def _collect_dot(values: Values, call: Call, known: Known, step: int, reads: _Reads) -> None:
    """c += a . b: `a` is a scalar that becomes a lane, `b` a vector; of pairs both are vectors."""
    c, a, b = call.args
    if not (isinstance(c, Load) and isinstance(a, Load) and isinstance(b, Load) and values.places[c.tensor].local):
        raise _Irregular
    ends = [values.linear(index(e.index[0])) for e in (c, a, b)]
    (c_terms, c_total), (a_terms, a_total), (b_terms, b_total) = ends
    kind = call.name.partition(".")[0]
    _, group = FACTORS[kind]
    if c_terms or a_total % group:
        raise _Irregular
    reads.accumulators.add((c.tensor, c_total))
    reads.multiply_adds += 1
    if kind == PAIRS:
        reads.multiply_adds += 1                        # two instructions multiply
        reads.beside = UNDER_WAY
        for load, terms, total in ((a, a_terms, a_total), (b, b_terms, b_total)):
            key = (load.tensor, tuple(terms), total, call.name)
            if (before := reads.vectors.get(key)) is not None and before.last < step - 1:
                reads.vectors[*key, before.last] = before           # not kept for so long, but loaded again
                del reads.vectors[key]
            if key not in reads.vectors:
                reads.vectors[key] = Fetch(load, known, step, step, dot=call.name, first_use=reads.products)
            reads.vectors[key].last, reads.vectors[key].last_use = step, reads.products
        reads.products += 1
        return
    scalars = reads.scalars.setdefault((a.tensor, tuple(a_terms), group), {})
    _note(scalars, a_total // group, a, known, step, group=group)
    _note(reads.vectors, (b.tensor, tuple(b_terms), b_total, call.name), b, known, step, dot=call.name)


def _note_scalar(values: Values, load: Load, known: Known, step: int, reads: _Reads) -> None:
    at = load.index[0]
    if not _steady(at) or values.places[load.tensor].local or not dtypes.is_float(load.dtype):
        return
    terms, total = values.linear(at)
    _note(reads.scalars.setdefault((load.tensor, tuple(terms), 1), {}), total, load, known, step)


def _note_vector(values: Values, load: Load, known: Known, step: int, reads: _Reads) -> None:
    at = load.index[0]
    if isinstance(at, Ramp) and at.stride == 1 and _steady(at.base) and not values.places[load.tensor].local:
        terms, total = values.linear(at.base)
        _note(reads.vectors, (load.tensor, tuple(terms), total, at.lanes), load, known, step)


def _note(found: dict[Any, Fetch], key: Any, load: Load, known: Known, step: int, group: int = 1, dot: str = "") -> None:
    if key in found:
        found[key].last = step
    else:
        found[key] = Fetch(load, known, step, step, group=group, dot=dot)


def _steady(at: Expr) -> bool:
    return isinstance(at, Index) and not any(isinstance(atom, Dynamic) for atom, _ in at.terms)


def _windows(reads: Mapping[int, Fetch], values: Values) -> Iterator[Fetch]:
    """Vectors that hold nothing but elements that are read: whole ones, the last of a run early; of shorter runs halves and
    quarters. A lonely scalar stays one."""
    one = next(iter(reads.values()))
    width = values.target.lanes(dtypes.bits(one.load.dtype) * one.group)
    for run in _runs(sorted(reads)):
        size = next(n for n in (width, width // 2, width // 4, 2) if n <= max(2, len(run)))
        starts = [*range(0, len(run) - size + 1, size)]
        if len(run) >= width and len(run) % width:
            starts.append(len(run) - width)
        for start in starts:
            inside = [reads[n] for n in run[start:start + size]]
            yield Fetch(inside[0].load, inside[0].known, min(f.first for f in inside), max(f.last for f in inside), size,
                        one.group)


def _runs(elements: list[int]) -> Iterator[list[int]]:
    """Neighbours together."""
    run: list[int] = []
    for n in elements:
        if run and n != run[-1] + 1:
            yield run
            run = []
        run.append(n)
    yield run


def emit_burst(values: Values, fetches: list[Fetch], upcoming: list[Fetch]) -> None:
    """The loads, remembered for the rest of the basic block: `Values.load` and `Values.broadcast` find them. upcoming: those
    of the next burst, whose pointers are made before the multiply-adds, so that nothing waits for them."""
    before = dict(values.env)
    if not values.bases:
        _move_bases(values, fetches)
    for fetch in fetches:
        values.env.update(fetch.known)
        if fetch.dot:
            element, group = FACTORS[fetch.dot.partition(".")[0]]
            values.fragment(fetch.load, element, lanes_of(fetch.dot) * group, element, anew=True)
            continue
        if not fetch.width:
            values.load(fetch.load)
            continue
        tensor = fetch.load.tensor
        terms, total = values.linear(index(fetch.load.index[0]))
        place, element, size = values.places[tensor], MEMORY[tensor.dtype], dtypes.itemsize(tensor.dtype)
        key = tuple(terms)
        pointer, alignment = values.address(place, element, size, terms, total)
        type = vector(element if fetch.group == 1 else f"i{8 * size * fetch.group}", fetch.width)
        name = values.emit(f"load {type}, ptr {pointer}, align {max(size, alignment)}")
        for lane in range(fetch.width):
            values.lane_of.setdefault((tensor, key, total + lane * fetch.group), (name, lane, fetch.width))
    values.env = before
    _move_bases(values, upcoming)


def _move_bases(values: Values, fetches: list[Fetch]) -> None:
    """New pointers for what lies too far from the block's first loads to be loaded in pairs: `ldp` reaches PAIR_BYTES. Only
    where the pairs save more instructions than the pointer takes. LLVM would fold it into each load again, so an empty
    instruction makes it."""
    found: dict[tuple[Tensor, Key], list[int]] = {}
    before = dict(values.env)
    for fetch in fetches:
        values.env.update(fetch.known)
        at = fetch.load.index[0]
        terms, total = values.linear(index(at.base if isinstance(at, Ramp) else at))
        found.setdefault((fetch.load.tensor, tuple(sorted(terms))), []).append(total)
    values.env = before
    for (tensor, terms), totals in found.items():
        place, low, size, element = values.places[tensor], min(totals), dtypes.itemsize(tensor.dtype), MEMORY[tensor.dtype]
        base = values.bases.get((place.base, terms))
        if base is None:
            values.bases[place.base, terms] = Base(values.address(place, element, size, [*terms], low)[0], low)
            continue
        far = (low - base.total) * size
        if (max(totals) - base.total) * size > PAIR_BYTES and len(totals) // 2 > (1 if 0 < far < NEAR_BYTES else 2):
            moved = values.emit(f"getelementptr inbounds {element}, ptr {base.pointer}, i64 {low - base.total}")
            values.bases[place.base, terms] = Base(values.emit(f'call ptr asm "", "=r,0"(ptr {moved})'), low, True)


__all__ = ["Bursts", "Fetch", "bursts", "emit_burst"]
