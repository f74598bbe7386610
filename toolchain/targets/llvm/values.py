"""Expressions -> LLVM text: arithmetic, conversions, loads. `emit` adds statements around it.

Every method returns an operand: an SSA name, or a literal. Operands are remembered per statement (by node) and loads per
basic block (by address): a shared part of an expression is computed once, as is a value loaded twice. More optimisation than
that belongs into a pass on the loop IR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import ELEMENT_BITS, ORDER, Arithmetic
from toolchain.targets.llvm.hold_sums import holding, needs_holding
from toolchain.targets.llvm.spelling import FALSE, MEMORY, TRUE, VALUE, constant, intrinsic, value_type, vector
from toolchain.te.expr import (
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
    index,
)
from toolchain.te.lower.shared import Lanes, nodes
from toolchain.te.substitute import substitute_index
from toolchain.te.tensor import Tensor

HERE = 1 << 30                     # the depth of a value that no loop header may compute: it was read from memory
MAX_SPAN = 4                       # strides up to this load whole vectors and shuffle; beyond, a gather is no slower
LINE_BYTES = 64

UNARY = {"abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven", "sqrt": "sqrt"}
SPLAT_TRUE = "splat (i1 true)"


@dataclass(frozen=True, slots=True)
class Place:
    """Storage of a tensor within a task: its base pointer, element count, whether it is an alloca (registers), alignment."""

    base: str
    elements: int
    local: bool
    alignment_bytes: int = LINE_BYTES


@dataclass(frozen=True, slots=True)
class Guard:
    """The condition under which values are wanted just now: a scalar, lanes, or both. Loads must not fault outside of it."""

    scalar: str = ""
    lanes: str = ""


NO_GUARD = Guard()


class Values(Arithmetic):
    """The state of one task function and the emission of expressions. `places` says where each tensor is."""

    def __init__(self, places: dict[Tensor, Place], lanes: Lanes, declared: set[str], target: Target) -> None:
        super().__init__(declared, target)
        self.places, self.lanes = places, lanes
        self.env: dict[Var, int | str] = {}            # a loop variable is a Python int while its loop is unrolled
        self.depth: dict[str, int] = {}                # SSA integer -> the loop whose header computes it
        self.heads: list[list[str]] = [[]]             # per open loop: address arithmetic placed in its header
        self.hoisted: dict[Any, str] = {}
        self.hoisted_keys: list[list[Any]] = [[]]
        self.loaded: dict[Any, str] = {}               # this basic block's loads
        self.turned: dict[Any, list[str]] = {}         # this basic block's squares of registers, by columns
        self.lane_of: dict[Any, tuple[str, int, int]] = {}     # its scalars that are lanes: vector, lane, of how many
        self.memo: dict[Any, tuple[Expr, str]] = {}    # this statement's values
        self.guard = NO_GUARD
        self._wider: list[Guard] = []                  # the guards around the present one, each implied by the next
        self._faults: dict[int, tuple[Expr, bool]] = {}
        self._emitters: dict[type, Callable[[Any], str]] = {
            Const: self.const, Index: self.index_value, Var: self.index_value, Load: self.load, Bin: self.bin,
            Select: self.select, Broadcast: self.broadcast, Call: self.call, Cast: self.cast, Compare: self.compare,
            Ramp: self.ramp,
        }

    def type(self, e: Expr) -> str:
        return value_type(e.dtype, self.lanes(e))

    def value(self, e: Expr) -> str:
        """The operand that holds `e`."""
        key: Any = id(e)
        known = self.memo.get(key)
        if known is not None:
            return known[1]
        emitter = self._emitters.get(type(e))
        if emitter is None:
            raise CodegenError(f"{type(e).__name__} reached the code generator")
        if (self.guard.scalar or self.guard.lanes) and self.may_fault(e):
            # what holds under a wider guard holds here; else a chain of selects would compute its operands once per guard
            for guard in (self.guard, *reversed(self._wider)):
                if (known := self.memo.get((key, guard))) is not None:
                    return known[1]
            key = (key, self.guard)
        result = emitter(e)
        self.memo[key] = (e, result)
        return result

    def may_fault(self, e: Expr) -> bool:
        """Whether `e` loads anything that may lie outside of its storage: then it is computed under its guard only."""
        if (known := self._faults.get(id(e))) is not None:
            return known[1]
        found = any(isinstance(n, Load) and not self._inside(n) for n in nodes(e))
        self._faults[id(e)] = (e, found)
        return found

    def _inside(self, load: Load) -> bool:
        at = load.index[0]
        return isinstance(at, Index | Ramp) and self.within(at, self.places[load.tensor])

    # --- integers: loop variables, indices, addresses ---

    def linear(self, idx: Index) -> tuple[list[tuple[str, int]], int]:
        """An index as [(SSA integer, coefficient)] and what is known now."""
        total, terms = idx.constant, []
        for atom, c in idx.terms:
            value = self.env[atom] if type(atom) is Var else self.atom(atom)
            if type(value) is int:
                total += c * value
            else:
                terms.append((value, c))
        return terms, total

    def atom(self, atom: FloorDiv | FloorMod | Dynamic) -> int | str:
        if isinstance(atom, Dynamic):
            value = self.to_int64(atom.value)
            self.depth.setdefault(value, HERE)
            return value
        known = {v: n for v in atom.index.vars() if type(n := self.env[v]) is int}
        inner = substitute_index(atom.index, known)
        whole = index(inner // atom.divisor if isinstance(atom, FloorDiv) else inner % atom.divisor)
        if whole.is_constant:
            return whole.constant
        match whole.terms:
            case ((FloorDiv() | FloorMod() as opaque, 1),) if whole.constant == 0:
                return self.division(opaque, *self.linear(opaque.index))
        return self.sum(*self.linear(whole))

    def division(self, atom: FloorDiv | FloorMod, terms: list[tuple[str, int]], total: int) -> int | str:
        kind, k = ("div" if isinstance(atom, FloorDiv) else "rem"), atom.divisor
        if not terms:
            return total // k if kind == "div" else total % k
        a = self.sum(terms, total)
        assert isinstance(a, str)
        depth = self.depth[a]
        if atom.index.range()[0] >= 0:
            return self.hoist(depth, f"u{kind} i64 {a}, {k}")
        negative = self.hoist(depth, f"icmp slt i64 {a}, 0")
        lower = self.hoist(depth, f"sub i64 {a}, {k - 1}")
        rounded = self.hoist(depth, f"select i1 {negative}, i64 {lower}, i64 {a}")
        quotient = self.hoist(depth, f"sdiv i64 {rounded}, {k}")
        if kind == "div":
            return quotient
        product = self.hoist(depth, f"mul i64 {quotient}, {k}")
        return self.hoist(depth, f"sub i64 {a}, {product}")

    def hoist(self, depth: int, text: str) -> str:
        """Compute `text` once, in the header of the loop at `depth` (or here)."""
        if depth == HERE:
            name = self.emit(text)
            self.depth[name] = HERE
            return name
        if (known := self.hoisted.get(text)) is not None:
            return known
        name = self.name()
        self.heads[depth].append(f" {name} = {text}")
        self.hoisted[text] = name
        self.hoisted_keys[depth].append(text)
        self.depth[name] = depth
        return name

    def sum(self, terms: list[tuple[str, int]], total: int) -> int | str:
        """One integer: sum of coefficient * SSA integer + total."""
        result: str | None = None
        depth = 0
        for ssa, c in sorted(terms, key=lambda term: self.depth[term[0]]):
            depth = self.depth[ssa]
            product = ssa if c == 1 else self.hoist(depth, f"mul i64 {ssa}, {c}")
            result = product if result is None else self.hoist(depth, f"add i64 {result}, {product}")
        if result is None:
            return total
        return self.hoist(depth, f"add i64 {result}, {total}") if total else result

    def address(self, place: Place, element: str, size: int, terms: list[tuple[str, int]], total: int) -> tuple[str, int]:
        """The pointer to an element and its alignment in bytes. One getelementptr per loop, each in that loop's header."""
        base, alignment = place.base, math.gcd(place.alignment_bytes, total * size)
        if len(terms) > 1:
            terms.sort(key=lambda term: self.depth[term[0]])
        for ssa, c in terms:
            depth = self.depth[ssa]
            alignment = math.gcd(alignment, c * size)
            offset = ssa if c == 1 else self.hoist(depth, f"mul i64 {ssa}, {c}")
            base = self.hoist(depth, f"getelementptr inbounds {element}, ptr {base}, i64 {offset}")
        if total:
            text = f"getelementptr inbounds {element}, ptr {base}, i64 {total}"
            base = self.hoist(0, text) if place.local and not terms else self.emit(text)     # a register tile: one each
        return base, alignment

    def index_value(self, e: Index | Var) -> str:
        return str(self.sum(*self.linear(index(e))))

    def to_int64(self, e: Expr) -> str:
        name = self.value(e)
        bits = dtypes.bits(e.dtype)
        if bits == 64:
            return name
        extend = "sext" if e.dtype in dtypes.INTS else "zext"
        return self.emit(f"{extend} {self.type(e)} {name} to {vector('i64', self.lanes(e))}")

    def ramp(self, e: Ramp) -> str:
        steps = ", ".join(f"i64 {n * e.stride}" for n in range(e.lanes))
        base = self.index_value(e.base)
        if base == "0":
            return f"<{steps}>"
        return self.emit(f"add {vector('i64', e.lanes)} {self.splat('i64', base, e.lanes)}, <{steps}>")

    def narrow_ramp(self, e: Ramp) -> str:
        """The lanes' indices modulo 2**32: twice as many to a register."""
        steps = ", ".join(f"i32 {n * e.stride}" for n in range(e.lanes))
        base = self.index_value(e.base)
        if base == "0":
            return f"<{steps}>"
        low = self.emit(f"trunc i64 {base} to i32")
        return self.emit(f"add {vector('i32', e.lanes)} {self.splat('i32', low, e.lanes)}, <{steps}>")

    # --- loads ---

    def load(self, e: Load) -> str:
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

    guard_lanes = 0                              # how many lanes the present guard has

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

    def from_memory(self, e: Load, name: str) -> str:
        if e.dtype != "bool":
            return name
        return self.emit(f"icmp ne {vector('i8', self.lanes(e))} {name}, zeroinitializer" if self.lanes(e) else
                         f"icmp ne i8 {name}, 0")

    # --- values ---

    def const(self, e: Const) -> str:
        return constant(e.value, e.dtype)

    def broadcast(self, e: Broadcast) -> str:
        if isinstance(e.value, Const):
            return constant(e.value.value, e.dtype, e.lanes)
        if self.lane_of and isinstance(e.value, Load) and (splat := self.splat_lane(e.value, e.lanes)):
            return splat
        scalar = self.value(e.value)
        if isinstance(e.value, Load):            # a value splat twice in one block is splat once
            key = ("splat", scalar, e.lanes)
            if (known := self.loaded.get(key)) is None:
                known = self.loaded[key] = self.splat(VALUE[e.dtype], scalar, e.lanes)
            return known
        return self.splat(VALUE[e.dtype], scalar, e.lanes)

    def splat_lane(self, e: Load, lanes: int) -> str:
        """A scalar that is a lane of a vector there already, in all lanes; "" where it is not."""
        if not isinstance(at := e.index[0], Index):
            return ""
        terms, total = self.linear(at)
        key = (e.tensor, tuple(terms), total)
        if (found := self.lane_of.get(key)) is None:
            return ""
        if (known := self.loaded.get((*key, "splat", lanes))) is None:
            name, lane, width = found
            known = self.loaded[(*key, "splat", lanes)] = self.pick(name, VALUE[e.dtype], width, [lane] * lanes)
        return known

    def fragment(self, e: Load, type: str, lanes: int, element: str) -> str:
        """What lies at `e`, read as `lanes` values of `type` (0: one), once per basic block."""
        place = self.places[e.tensor]
        terms, total = self.linear(index(e.index[0]))
        key = (e.tensor, tuple(terms), total, type, lanes)
        if (known := self.loaded.get(key)) is None:
            size = dtypes.itemsize(e.dtype)
            pointer, alignment = self.address(place, element, size, terms, total)
            known = self.loaded[key] = self.emit(f"load {vector(type, lanes)}, ptr {pointer}, align {max(size, alignment)}")
        return known

    def select(self, e: Select) -> str:
        condition = self.value(e.condition)
        if condition in (TRUE, SPLAT_TRUE):
            return self.value(e.a)
        if condition == FALSE:
            return self.value(e.b)
        mask_type = self.type(e.condition)
        if (lanes := self.lanes(e)) and mask_type == "i1":       # x86 would branch around a vector; a mask is cheaper
            key = ("splat", condition, lanes)
            if (mask := self.loaded.get(key)) is None:
                mask = self.loaded[key] = self.splat("i1", condition, lanes)
            condition, mask_type = mask, vector("i1", lanes)
        a = self.guarded(e.a, condition, mask_type)
        if self.may_fault(e.b):
            opposite = self.emit(f"xor {mask_type} {condition}, {SPLAT_TRUE if mask_type != 'i1' else TRUE}")
            b = self.guarded(e.b, opposite, mask_type)
        else:
            b = self.value(e.b)
        type = self.type(e)
        return self.emit(f"select {mask_type} {condition}, {type} {a}, {type} {b}")

    def guarded(self, e: Expr, condition: str, mask_type: str) -> str:
        """The value of `e`, wanted only where `condition` holds."""
        if not self.may_fault(e):
            return self.value(e)
        outer, outer_lanes = self.guard, self.guard_lanes
        self._wider.append(outer)
        if mask_type == "i1":
            scalar = condition if not outer.scalar else self.emit(f"and i1 {outer.scalar}, {condition}")
            self.guard = Guard(scalar, outer.lanes)
        else:
            both = condition if not outer.lanes else self.emit(f"and {mask_type} {outer.lanes}, {condition}")
            self.guard, self.guard_lanes = Guard(outer.scalar, both), int(mask_type[1:].partition(" ")[0])
        try:
            return self.value(e)
        finally:
            self.guard, self.guard_lanes = outer, outer_lanes
            self._wider.pop()

    def compare(self, e: Compare) -> str:
        terms, total = self.linear(e.index)
        if not terms:
            n, bound = total, e.bound
            return constant({"<": n < bound, ">=": n >= bound, "==": n == bound, "!=": n != bound}[e.op], "bool")
        value = self.sum(terms, total)
        predicate = {"<": "slt", ">=": "sge", "==": "eq", "!=": "ne"}[e.op]
        return self.hoist(self.depth[str(value)], f"icmp {predicate} i64 {value}, {e.bound}")

    def bin(self, e: Bin) -> str:
        if e.op in ORDER and isinstance(e.a, Ramp) and isinstance(e.b, Broadcast) and isinstance(e.b.value, Const):
            return self.mask(e.op, e.a, int(e.b.value.value))
        a = self.value(e.a)
        if e.dtype == "bool" and e.op in ("and", "or"):
            stop, skip = ((FALSE,), (TRUE, SPLAT_TRUE)) if e.op == "and" else ((TRUE, SPLAT_TRUE), (FALSE,))
            if a in stop:
                return a
            b = self.value(e.b)
            if a in skip or b in stop:
                return b
            if b in skip:
                return a
        else:
            b = self.value(e.b)
        return self.arithmetic(e.op, e.a.dtype, self.lanes(e), a, b)

    def mask(self, op: str, ramp: Ramp, bound: int) -> str:
        """Which lanes pass `base + stride*lane op bound`: decided now where the base is known, else narrowly compared."""
        terms, total = self.linear(ramp.base)
        test: dict[str, Callable[[int], bool]] = {
            "<": lambda n: n < bound, "<=": lambda n: n <= bound, ">": lambda n: n > bound, ">=": lambda n: n >= bound}
        if not terms:
            passed = [test[op](total + n * ramp.stride) for n in range(ramp.lanes)]
            if all(passed):
                return SPLAT_TRUE
            return "<" + ", ".join(f"i1 {TRUE if p else FALSE}" for p in passed) + ">"
        low, high = ramp.base.range()
        ends = (low, high, low + ramp.stride * (ramp.lanes - 1), high + ramp.stride * (ramp.lanes - 1))
        base = str(self.sum(terms, total))
        depth, element = self.depth[base], "i64"
        if max(*map(abs, ends), abs(bound)) < 2**31:
            base, element = self.hoist(depth, f"trunc i64 {base} to i32"), "i32"
        type = vector(element, ramp.lanes)
        one = self.hoist(depth, f"insertelement {type} poison, {element} {base}, i32 0")
        wide = self.hoist(depth, f"shufflevector {type} {one}, {type} poison, <{ramp.lanes} x i32> zeroinitializer")
        limits = ", ".join(f"{element} {bound - n * ramp.stride}" for n in range(ramp.lanes))
        return self.hoist(depth, f"icmp s{ORDER[op]} {type} {wide}, <{limits}>")

    def call(self, e: Call) -> str:
        type, lanes = self.type(e), self.lanes(e)
        if e.name.startswith("reduce_"):
            return self.reduce(e)
        args = [self.value(a) for a in e.args]
        if e.name == "fma" and e.dtype in ("float32", "float64"):
            total = self.emit(self.intrinsic(type, "fmuladd", (type,), tuple((type, a) for a in args)))
            if needs_holding(e, self.env, self.target) and self.places[e.args[2].tensor].local:
                self.lines.append(f" {holding(type, (*args[:2], total), self.target)}")
            return total
        if e.name == "ldexp":                    # vscalefps, where there is one
            power = self.type(e.args[1])
            return self.emit(self.intrinsic(type, "ldexp", (type, power), ((type, args[0]), (power, args[1]))))
        if e.name in UNARY and e.dtype in ("float32", "float64"):
            return self.emit(self.intrinsic(type, UNARY[e.name], (type,), ((type, args[0]),)))
        if e.name == "bitcast" and dtypes.bits(e.dtype) == dtypes.bits(e.args[0].dtype):
            return self.emit(f"bitcast {self.type(e.args[0])} {args[0]} to {type}")
        if e.name == "isnan":
            return self.emit(f"fcmp uno {self.type(e.args[0])} {args[0]}, {args[0]}")
        if e.name == "abs" and e.dtype in dtypes.INTS:
            minus = self.arithmetic("-", e.dtype, lanes, constant(0, e.dtype, lanes), args[0])
            return self.arithmetic("max", e.dtype, lanes, args[0], minus)
        raise CodegenError(f"no instruction for {e.name} of {e.dtype}", fix="lower_intrinsics has to expand it")

    def reduce(self, e: Call) -> str:
        """All lanes into one: the upper half joins the lower half until one is left; of an odd number the middle waits."""
        (source,) = e.args
        op = {"reduce_sum": "+", "reduce_prod": "*", "reduce_max": "max", "reduce_min": "min"}[e.name]
        lanes, element = self.lanes(source), VALUE[e.dtype]
        value = self.value(source)
        while lanes > 1:
            pairs, half = lanes // 2, (lanes + 1) // 2
            low, high = (self.pick(value, element, lanes, range(first, first + pairs)) for first in (0, half))
            joined = self.arithmetic(op, e.dtype, pairs, low, high)
            if lanes % 2:
                middle = self.emit(f"extractelement {vector(element, lanes)} {value}, i32 {pairs}")
                wide = self.pick(joined, element, pairs, [*range(pairs), 0])
                joined = self.emit(f"insertelement {vector(element, half)} {wide}, {element} {middle}, i32 {pairs}")
            value, lanes = joined, half
        return self.emit(f"extractelement {vector(element, 1)} {value}, i32 0")

    # --- conversions ---

    def cast(self, e: Cast) -> str:
        if isinstance(e.value, Ramp) and e.dtype == "int32":
            return self.narrow_ramp(e.value)
        return self.convert(self.value(e.value), e.value.dtype, e.dtype, self.lanes(e))


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
