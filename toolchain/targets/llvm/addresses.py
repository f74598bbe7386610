"""Integer indices -> LLVM text: loop variables, divisions, addresses. Each is computed once, in the header of the innermost
loop it depends on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.target import Target
from toolchain.targets.llvm.arithmetic import Arithmetic
from toolchain.targets.llvm.spelling import value_type, vector
from toolchain.te.expr import Dynamic, Expr, FloorDiv, FloorMod, Index, Ramp, Var, index
from toolchain.te.lower.shared import Lanes
from toolchain.te.substitute import substitute_index

HERE = 1 << 30                     # the depth of a value that no loop header may compute: it was read from memory
LINE_BYTES = 64
PAIR_BYTES = 1008                  # how far from its base an Arm core loads two registers at once


@dataclass(frozen=True, slots=True)
class Place:
    """Storage of a tensor within a task: its base pointer, element count, whether it is an alloca (registers), alignment."""

    base: str
    elements: int
    local: bool
    alignment_bytes: int = LINE_BYTES


@dataclass(frozen=True, slots=True)
class Base:
    """A pointer to an element, which loads near it are addressed by. is_own: it was made for that."""

    pointer: str
    total: int
    is_own: bool = False


class Addresses(Arithmetic):
    """The loops that are open, what their headers compute, and the emission of indices."""

    def __init__(self, lanes: Lanes, declared: set[str], target: Target) -> None:
        super().__init__(declared, target)
        self.lanes = lanes
        self.env: dict[Var, int | str] = {}            # a loop variable is a Python int while its loop is unrolled
        self.depth: dict[str, int] = {}                # SSA integer -> the loop whose header computes it
        self.heads: list[list[str]] = [[]]             # per open loop: address arithmetic placed in its header
        self.hoisted: dict[Any, str] = {}
        self.hoisted_keys: list[list[Any]] = [[]]
        self.bases: dict[Any, Base] = {}               # what bursts of this basic block load by

    def type(self, e: Expr) -> str:
        return value_type(e.dtype, self.lanes(e))

    def value(self, e: Expr) -> str:
        """The operand that holds `e`: what an index reads at run time is an expression."""
        raise NotImplementedError

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
        """Its value: a number where the loops' present values decide it, else an i64 register."""
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
        """(sum of terms + total) // divisor, or % divisor, flooring, in the outermost loop that knows all terms."""
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
        moved = self.bases.get((place.base, tuple(sorted(terms))))
        if moved is not None and moved.is_own and 0 <= (total - moved.total) * size <= PAIR_BYTES:
            return self.emit(f"getelementptr inbounds {element}, ptr {moved.pointer}, i64 {total - moved.total}"), alignment
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

    def ramp(self, e: Ramp, element: str = "i64") -> str:
        """The lanes' indices; as i32 modulo 2**32, twice as many to a register."""
        steps = ", ".join(f"{element} {n * e.stride}" for n in range(e.lanes))
        base = self.index_value(e.base)
        if base == "0":
            return f"<{steps}>"
        if element != "i64":
            base = self.emit(f"trunc i64 {base} to {element}")
        return self.emit(f"add {vector(element, e.lanes)} {self.splat(element, base, e.lanes)}, <{steps}>")
