"""Expressions -> LLVM text: arithmetic, conversions, choices. `emit` adds statements around it.

Every method returns an operand: an SSA name, or a literal. Operands are remembered per statement (by node): a shared part of
an expression is computed once. More optimisation than that, and than `loads` does, belongs into a pass on the loop IR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.addresses import Place
from toolchain.targets.llvm.arithmetic import ORDER
from toolchain.targets.llvm.conversions import convert
from toolchain.targets.llvm.hold_sums import holding, needs_holding
from toolchain.targets.llvm.loads import Guard, Loads
from toolchain.targets.llvm.scale import scale
from toolchain.targets.llvm.spelling import FALSE, SPLAT_TRUE, TRUE, VALUE, constant, vector
from toolchain.te.expr import Bin, Broadcast, Call, Cast, Compare, Const, Expr, Index, Load, Ramp, Select, Var
from toolchain.te.lower.shared import Lanes, nodes
from toolchain.te.tensor import Tensor

UNARY = {"abs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven", "sqrt": "sqrt"}


class Values(Loads):
    """The state of one task function and the emission of expressions."""

    def __init__(self, places: dict[Tensor, Place], lanes: Lanes, declared: set[str], target: Target) -> None:
        super().__init__(places, lanes, declared, target)
        self.lane_of: dict[Any, tuple[str, int, int]] = {}     # its scalars that are lanes: vector, lane, of how many
        self.memo: dict[Any, tuple[Expr, str]] = {}    # this statement's values
        self._wider: list[Guard] = []                  # the guards around the present one, each implied by the next
        self._faults: dict[int, tuple[Expr, bool]] = {}
        self._emitters: dict[type, Callable[[Any], str]] = {
            Const: self.const, Index: self.index_value, Var: self.index_value, Load: self.load, Bin: self.bin,
            Select: self.select, Broadcast: self.broadcast, Call: self.call, Cast: self.cast, Compare: self.compare,
            Ramp: self.ramp,
        }

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
        if e.name == "ldexp":
            return scale(self, self.target, e.dtype, lanes, *args)
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

    def cast(self, e: Cast) -> str:
        if isinstance(e.value, Ramp) and e.dtype == "int32":
            return self.ramp(e.value, "i32")
        return convert(self, self.value(e.value), e.value.dtype, e.dtype, self.lanes(e))
