"""Loads -> LLVM text: elements, vectors, strides, turned squares of registers, gathers; none outside of its storage.

Loads are remembered per basic block, by address: a value loaded twice is loaded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.targets.llvm.addresses import Addresses, Place
from toolchain.targets.llvm.arithmetic import ELEMENT_BITS
from toolchain.targets.llvm.spelling import MEMORY, SPLAT_TRUE, intrinsic, vector
from toolchain.te.expr import Bin, Broadcast, Cast, Const, Expr, Index, Load, Ramp, Var, index
from toolchain.te.lower.shared import Lanes
from toolchain.te.tensor import Tensor

MAX_SPAN = 4                       # strides up to this load whole vectors and shuffle; beyond, a gather is no slower


@dataclass(frozen=True, slots=True)
class Guard:
    """The condition under which values are wanted just now: a scalar, lanes, or both. Loads must not fault outside of it."""

    scalar: str = ""
    lanes: str = ""


NO_GUARD = Guard()


class Loads(Addresses):
    """What this basic block has loaded, and the emission of loads. `places` says where each tensor is."""

    def __init__(self, places: dict[Tensor, Place], lanes: Lanes, declared: set[str], target: Target) -> None:
        super().__init__(lanes, declared, target)
        self.places = places
        self.loaded: dict[Any, str] = {}               # this basic block's loads
        self.turned: dict[Any, list[str]] = {}         # this basic block's squares of registers, by columns
        self.guard = NO_GUARD
        self.guard_lanes = 0                           # how many lanes the present guard has

    def load(self, e: Load) -> str:
        """The value, or the vector of values, at a Load's place: by one load, by pieces that are shuffled, or lane by lane,
        as the stride and the present guard allow. Where the guard excludes it, nothing is read.
        """
        place, at = self.places[e.tensor], e.index[0]
        element, size = MEMORY[e.dtype], dtypes.itemsize(e.dtype)
        if not isinstance(at, Index | Ramp):
            return self.load_scattered(e, place, element, size, at)
        base, stride, lanes = (at, 0, 0) if isinstance(at, Index) else (at.base, at.stride, at.lanes)
        terms, total = self.linear(base)
        if stride < 0:
            total += stride * (lanes - 1)
        span = 1 if not lanes else abs(stride) * (lanes - 1) + 1
        guard = self.guard if (self.guard.scalar or self.guard.lanes) and not self.within(at, place) else NO_GUARD
        if place.local and not terms:
            if total + span <= 0 or total >= place.elements:
                return "poison"                  # a guarded read of a register tile that the guard excludes
            if not 0 <= total <= place.elements - span:
                return self.from_memory(e, self.load_part(place, element, total, stride, lanes))
            square = lanes > 1 and stride == lanes and lanes & (lanes - 1) == 0
            if square and total // stride * stride + lanes * stride <= place.elements:
                return self.from_memory(e, self.column(e.tensor, place, element, total, lanes))
            if stride in (0, 1):                 # SROA makes registers of these: nothing to remember
                pointer, alignment = self.address(place, element, size, terms, total)
                return self.from_memory(e, self.emit(f"load {vector(element, lanes)}, ptr {pointer}, align {alignment}"))
        key = (e.tensor, tuple(terms), total, stride, lanes, guard)
        if not place.local and (known := self.loaded.get(key)) is not None:
            return known
        if abs(stride) > MAX_SPAN:
            result = self.gather(e, place.base, element, size, self.value(Ramp(base, stride, lanes)), guard)
        else:
            pointer, alignment = self.address(place, element, size, terms, total)
            if stride in (0, 1):
                result = self.load_span(place, element, pointer, max(size, alignment), span if lanes else 0, guard)
            else:
                result = self.load_strided(place, element, pointer, stride, lanes, guard, size)
        result = self.from_memory(e, result)
        self.loaded[key] = result
        return result

    def column(self, tensor: Tensor, place: Place, element: str, total: int, size: int) -> str:
        """A column of a square of registers: all columns at once, by shuffles, remembered until the square is stored to."""
        first = total // size * size
        key = (tensor, "columns", first, size)
        columns: Any = self.turned.get(key)
        if columns is None:
            raw = {"half": "i16"}.get(element, element)
            rows = []
            for n in range(size):
                pointer = self.hoist(0, f"getelementptr inbounds {element}, ptr {place.base}, i64 {first + n * size}")
                rows.append(self.emit(f"load {vector(raw, size)}, ptr {pointer}, align {ELEMENT_BITS[raw] // 8}"))
            columns = self.transpose(rows, raw)
            if raw != element:
                columns = [self.emit(f"bitcast {vector(raw, size)} {c} to {vector(element, size)}") for c in columns]
            self.turned[key] = columns
        return str(columns[total - first])

    def load_part(self, place: Place, element: str, total: int, stride: int, lanes: int) -> str:
        """A guarded read of a register tile that reaches over its end: the lanes inside, one by one, the others anything."""
        type, result = vector(element, lanes), "poison"
        first = total if stride > 0 else total - stride * (lanes - 1)
        for n in range(lanes):
            if 0 <= (at := first + n * stride) < place.elements:
                pointer = self.emit(f"getelementptr inbounds {element}, ptr {place.base}, i64 {at}")
                one = self.emit(f"load {element}, ptr {pointer}")
                result = self.emit(f"insertelement {type} {result}, {element} {one}, i32 {n}")
        return result

    def within(self, at: Index | Ramp, place: Place) -> bool:
        """Whether every address that the loops can produce is inside the storage: then no guard is needed."""
        base, extra = (at, 0) if isinstance(at, Index) else (at.base, at.stride * (at.lanes - 1))
        low, high = base.range()
        return low + min(extra, 0) >= 0 and high + max(extra, 0) < place.elements

    def load_span(self, place: Place, element: str, pointer: str, alignment: int, lanes: int, guard: Guard) -> str:
        """Load consecutive elements. Outside of its guard it reads the start of the storage, or nothing (masked)."""
        type = vector(element, lanes)
        if guard.lanes and lanes:
            mask = guard.lanes if not guard.scalar else self.emit(
                f"and {vector('i1', lanes)} {guard.lanes}, {self.splat('i1', guard.scalar, lanes)}")
            return self.masked_load(type, lanes, pointer, mask, alignment)
        if guard.scalar or guard.lanes:
            condition = self.scalar_guard(guard)
            if lanes > place.elements:
                return self.masked_load(type, lanes, pointer, self.splat("i1", condition, lanes), alignment)
            pointer = self.emit(f"select i1 {condition}, ptr {pointer}, ptr {place.base}")
        return self.emit(f"load {type}, ptr {pointer}, align {alignment}")

    def load_strided(
        self, place: Place, element: str, pointer: str, stride: int, lanes: int, guard: Guard, alignment: int,
    ) -> str:
        """Every stride-th element from `pointer` up (backwards when negative): whole vectors and shuffles of two.

        Stride 2, 4 lanes:   a b c d      the last vector begins early, so that nothing beyond the last element is read
                                   d e f g    ->  a c e g
        """
        step = abs(stride)
        at = [n * step if stride > 0 else (lanes - 1 - n) * step for n in range(lanes)]
        result, found = "poison", set[int]()
        for start in dict.fromkeys(min(chunk * lanes, max(at) + 1 - lanes) for chunk in range(step)):
            new = {n: at[n] - start for n in range(lanes) if n not in found and 0 <= at[n] - start < lanes}
            found |= new.keys()
            wanted_by = {at: n for n, at in new.items()}
            mask = guard.lanes and self.shuffle("i1", lanes, guard.lanes, "zeroinitializer",
                                                [wanted_by.get(n, lanes) for n in range(lanes)])
            chunk = self.emit(f"getelementptr inbounds {element}, ptr {pointer}, i64 {start}") if start else pointer
            chunk = self.load_span(place, element, chunk, alignment, lanes, Guard(guard.scalar, mask))
            result = self.shuffle(element, lanes, result, chunk, [lanes + new[n] if n in new else n for n in range(lanes)])
        return result

    def masked_load(self, type: str, lanes: int, pointer: str, mask: str, alignment: int) -> str:
        args = (("ptr", f"align {alignment} {pointer}"), (vector("i1", lanes), mask), (type, "zeroinitializer"))
        full = intrinsic("masked.load", type, "ptr")
        self.declared.add(f"declare {type} @{full}(ptr, {vector('i1', lanes)}, {type})")
        return self.emit(f"call {type} @{full}({', '.join(f'{t} {a}' for t, a in args)})")

    def scalar_guard(self, guard: Guard) -> str:
        """One condition: any lane, and the scalar part."""
        if not guard.lanes:
            return guard.scalar
        lanes = self.guard_lanes
        mask = vector("i1", lanes)
        some = self.emit(self.intrinsic("i1", "vector.reduce.or", (mask,), ((mask, guard.lanes),)))
        return some if not guard.scalar else self.emit(f"and i1 {some}, {guard.scalar}")

    def gather(self, e: Load, base: str, element: str, size: int, offsets: str, guard: Guard) -> str:
        """Load elements at these offsets from a pointer; nothing (zero) outside of the guard."""
        lanes = self.lanes(e)
        pointers = self.emit(f"getelementptr inbounds {element}, ptr {base}, {vector('i64', lanes)} {offsets}")
        mask = guard.lanes or SPLAT_TRUE
        if guard.scalar:
            both = self.splat("i1", guard.scalar, lanes)
            mask = both if mask == SPLAT_TRUE else self.emit(f"and {vector('i1', lanes)} {mask}, {both}")
        type, many, bits = vector(element, lanes), vector("ptr", lanes), vector("i1", lanes)
        full = intrinsic("masked.gather", type, many)
        self.declared.add(f"declare {type} @{full}({many}, {bits}, {type})")
        return self.emit(f"call {type} @{full}({many} align {size} {pointers}, {bits} {mask}, {type} zeroinitializer)")

    def load_scattered(self, e: Load, place: Place, element: str, size: int, at: Expr) -> str:
        """Load at places that are no ramp. Where they lie close to each other, at distances known now, one wide load and a
        shuffle do (x // 2 of neighbours: a a b b c c d d); else a gather, from a pointer all lanes have in common when
        what is left for the lanes has 32 bits."""
        lanes = self.lanes(e)
        known = None if self.guard.scalar or self.guard.lanes else distances(at)
        if known is None or (span := max(known[1]) - min(known[1]) + 1) > 2 * lanes:
            start = place.base
            match at:
                case Bin("+", Broadcast(Index() as same), Cast("int64", narrow)) if dtypes.bits(narrow.dtype) == 32:
                    start, at = self.address(place, element, size, *self.linear(same))[0], at.b
            return self.from_memory(e, self.gather(e, start, element, size, self.value(at), self.guard))
        base, offsets = known
        terms, total = self.linear(base + min(offsets))
        key = (e.tensor, tuple(terms), total, offsets)
        if not place.local and key in self.loaded:
            return self.loaded[key]
        pointer, alignment = self.address(place, element, size, terms, total)
        near = self.emit(f"load {vector(element, span)}, ptr {pointer}, align {max(size, alignment)}")
        result = self.from_memory(e, self.shuffle(element, span, near, "poison", [n - min(offsets) for n in offsets]))
        self.loaded[key] = result
        return result

    def fragment(self, e: Load, type: str, lanes: int, element: str, anew: bool = False) -> str:
        """What lies at `e`, read as `lanes` values of `type` (0: one), once per basic block; `anew`: once more."""
        place = self.places[e.tensor]
        terms, total = self.linear(index(e.index[0]))
        key = (e.tensor, tuple(terms), total, type, lanes)
        if anew or (known := self.loaded.get(key)) is None:
            size = dtypes.itemsize(e.dtype)
            pointer, alignment = self.address(place, element, size, terms, total)
            known = self.loaded[key] = self.emit(f"load {vector(type, lanes)}, ptr {pointer}, align {max(size, alignment)}")
        return known

    def from_memory(self, e: Load, name: str) -> str:
        if e.dtype != "bool":
            return name
        return self.emit(f"icmp ne {vector('i8', self.lanes(e))} {name}, zeroinitializer" if self.lanes(e) else
                         f"icmp ne i8 {name}, 0")


def distances(at: Expr) -> tuple[Index, tuple[int, ...]] | None:
    """Lanes of integers as (what they have in common, what each adds to it), where the latter is known now."""
    match at:
        case Ramp(base, stride, lanes):
            return base, tuple(n * stride for n in range(lanes))
        case Broadcast(Index() | Var() as same, lanes):
            return index(same), (0,) * lanes
        case Bin("+", a, b):
            if (x := distances(a)) is None or (y := distances(b)) is None:
                return None
            return x[0] + y[0], tuple(n + m for n, m in zip(x[1], y[1], strict=True))
        case Bin("*" | "//" | "%" as op, a, Broadcast(Const(k), _)) if (x := distances(a)) is not None:
            base, steps, k = *x, int(k)
            if op == "*":
                return base * k, tuple(n * k for n in steps)
            if any(c % k for _, c in base.terms):
                return None
            whole = Index(tuple((atom, c // k) for atom, c in base.terms)) if op == "//" else Index()
            return whole, tuple((base.constant + n) // k if op == "//" else (base.constant + n) % k for n in steps)
    return None
