"""Lowered loop IR -> LLVM text: statements, loops, functions. Expressions are in `values`.

    void symbol_p(void *const *buf, int64_t lo, int64_t hi, void *scratch)          one function per phase p

The exported function loads the pointers and calls an internal one whose pointers are `noalias align` arguments; all shapes
are constants. Unrolled loops are repeated here, with a Python int as loop variable; the loop IR stays rolled. A `local`
buffer is one alloca with constant offsets: the single LLVM pass that runs, SROA, makes registers of it. An address is
computed in the header of the innermost loop it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.addresses import LINE_BYTES, Place
from toolchain.targets.llvm.arithmetic import ELEMENT_BITS
from toolchain.targets.llvm.bursts import Fetch, bursts, emit_burst
from toolchain.targets.llvm.dot_products import (
    FACTORS,
    JOIN,
    PAIRS,
    Staggered,
    accumulate,
    group_type,
    is_dot,
    joined,
    lanes_of,
    paired,
)
from toolchain.targets.llvm.hold_sums import holding
from toolchain.targets.llvm.saturate import level_of, narrowed
from toolchain.targets.llvm.spelling import FALSE, MEMORY, SPLAT_TRUE, TRUE, value_type, vector
from toolchain.targets.llvm.split_tasks import Phase, Tasks
from toolchain.targets.llvm.tiles import Tiles
from toolchain.targets.llvm.values import Values
from toolchain.te.expr import Call, Const, Expr, Index, Load, Ramp, Var, index
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together
from toolchain.te.lower.shared import Lanes, nodes
from toolchain.te.tensor import Tensor

EMITTER_VERSION = 7                # part of every kernel's digest: raise it when the same loop IR would give other text
MAX_LOCAL_BYTES = 64 * 1024        # of stack
FREE = 2                           # vector registers beside sums and what they share: a factor, and one that is being loaded
AS_WRITTEN = "#1"                  # attributes of functions in an order of our own; of all others "#0"


def emit(func: PrimFunc, target: Target, tasks: Tasks, symbol: str) -> str:
    """The text of one LLVM module. Needs `func` lowered; raises CodegenError for what has no instruction."""
    declared: set[str] = set()
    functions = [_phase(func, target, tasks, phase, f"{symbol}_{n}", declared) for n, phase in enumerate(tasks.phases)]
    width = 512 if target.vector_bits >= 512 else 256
    attributes = f'attributes #0 = {{ nounwind "prefer-vector-width"="{width}" }}\n'
    if any(AS_WRITTEN in f for f in functions):
        attributes += f"attributes {AS_WRITTEN} = {{ nounwind {_as_written(target)} }}\n"
    return "\n".join([f'target triple = "{target.triple}"\n', *functions, *sorted(declared), attributes])


def _as_written(target: Target) -> str:
    """Attributes of a function whose instructions shall stay in the order they have here, loads together (see bursts).

    LLVM's own order for the Cortex-A53 has a load between any two multiply-adds. The model of another in-order core, and no
    second look at the order, keep them as they are.
    """
    features = ",".join((*target.features, "-use-postra-scheduler", "+disable-latency-sched-heuristic"))
    return f'"tune-cpu"="cortex-a320" "target-features"="{features}"'


def _alignment(func: PrimFunc, tensor: Tensor) -> int:
    """Plain tensors may be the caller's arrays, aligned as their elements only; everything else lies where plans put it."""
    kind = func.attrs.get("types", {}).get(tensor.name)
    return dtypes.itemsize(tensor.dtype) if kind is not None and kind.layout.is_row_major else LINE_BYTES


def _phase(func: PrimFunc, target: Target, tasks: Tasks, phase: Phase, name: str, declared: set[str]) -> str:
    table = (*func.params, *tasks.workspace)
    used = {n.tensor for n in nodes(phase.body) if isinstance(n, Load | Store)}
    places: dict[Tensor, Place] = {}
    arguments, passed, loads = [], [], []
    allocas: list[str] = []
    for n, t in enumerate(table):
        if t in used:
            loads += [f" %s{n} = getelementptr inbounds ptr, ptr %buf, i64 {n}",
                      f" %q{n} = load ptr, ptr %s{n}, align {target.pointer_bits // 8}"]
            alignment = _alignment(func, t)
            arguments.append(f"ptr noalias align {alignment} %b{n}")
            passed.append(f"ptr %q{n}")
            places[t] = Place(f"%b{n}", func.buffers[t].type.elements, False, alignment)
    for n, (t, offset) in enumerate(tasks.lane.items()):
        if t in used:
            loads.append(f" %w{n} = getelementptr inbounds i8, ptr %scratch, i64 {offset}")
            arguments.append(f"ptr noalias align 64 %l{n}")
            passed.append(f"ptr %w{n}")
            places[t] = Place(f"%l{n}", func.buffers[t].type.elements, False)
    lanes = max((target.vector_bits // dtypes.bits(t.dtype) for t in used), default=0)     # of the narrowest type
    for n, (t, b) in enumerate(func.buffers.items()):
        if b.scope == "local" and t in used:
            room = b.type.elements + lanes                  # whole vectors: the masked end
            if room * dtypes.itemsize(t.dtype) > MAX_LOCAL_BYTES:
                raise CodegenError(f"{func.name}: {t.name} takes {room * dtypes.itemsize(t.dtype)} bytes of stack",
                                   fix=f"give {t.name} the scope lane")
            allocas.append(f" %a{n} = alloca [{room} x {MEMORY[t.dtype]}], align 64")
            places[t] = Place(f"%a{n}", room, True)
        elif b.scope not in ("global", "lane", "local"):
            raise CodegenError(f"{func.name}: {t.name} is in scope {b.scope}, which {target.name} does not have")
    task = _Task(places, declared, target, Tiles(func, phase.body))
    task.stmt(phase.body)
    arguments += ["i64 %lo", "i64 %hi"]
    passed += ["i64 %lo", "i64 %hi"]
    attributes = AS_WRITTEN if task.bursts and target.in_order else "#0"
    return "\n".join([
        f"define internal void @{name}.task({', '.join(arguments)}) {attributes} {{", "entry:", *allocas, *task.heads[0],
        " %some = icmp slt i64 %lo, %hi", " br i1 %some, label %run, label %done", "run:", *task.lines,
        " br label %done", "done:", " ret void", "}",
        f"define void @{name}(ptr %buf, i64 %lo, i64 %hi, ptr %scratch) #0 {{", "entry:", *loads,
        f" call void @{name}.task({', '.join(passed)})", " ret void", "}\n",
    ])


class _Task(Values):
    """One task function: statements."""

    def __init__(self, places: dict[Tensor, Place], declared: set[str], target: Target, tiles: Tiles) -> None:
        super().__init__(places, Lanes(), declared, target)
        self.tiles = tiles
        self.bursts = 0                                 # how often loads were placed together
        self.in_burst = 0                               # loops around whose loads were placed together
        self.staggered = Staggered()
        self.behind: dict[int, list[Fetch]] = {}        # loads in a burst, by the product in pairs that they follow
        self.products = 0                               # of these, so far
        self.overlaps: dict[For, bool] = {}             # asked once per loop, however often an outer one repeats it

    def overlapping(self, loop: For) -> bool:
        if loop not in self.overlaps:
            self.overlaps[loop] = windows_overlap(loop, self.target.vector_registers)
        return self.overlaps[loop]

    def stmt(self, s: Stmt) -> None:
        match s:
            case Store():
                self.stores((s,))
            case Together(stores):
                self.stores(stores)
            case Block(stmts):
                for part in stmts:
                    self.stmt(part)
            case For(var, body, kind):
                if kind is ForKind.PARALLEL:
                    self.loop(s, "%lo", "%hi")
                elif kind is ForKind.UNROLLED or var.extent == 1:
                    self.unrolled(s)
                elif kind is ForKind.SERIAL:
                    self.loop(s, "0", str(var.extent))
                else:
                    raise CodegenError(f"loop {var.name} is {kind}: a CPU has no such loops")
            case If(condition, body):
                self.branch(condition, body)
            case Evaluate(call):
                self.evaluate(call)
            case _:
                raise CodegenError(f"{type(s).__name__} reached the code generator")

    def unrolled(self, s: For) -> None:
        """The body once per iteration; where multiply-adds take lanes, what several iterations load stands before them."""
        planned = None
        if self.target.lane_multiply and not self.in_burst and s.extent > 1:
            planned = bursts(self, s, self.target.vector_registers)
            if planned is not None:
                self.behind, self.products = planned.behind, 0
        apart = planned is None and s.extent > 1 and self.overlapping(s)
        self.in_burst += planned is not None
        self.bursts += planned is not None
        for n in range(s.extent):
            if apart and n:
                self.separate()
            self.env[s.var] = n
            self.tiles.begin(s, len(self.heads))
            if planned is not None and n in planned.before:
                emit_burst(self, planned.before[n], next((fetches for at, fetches in planned.before.items() if at > n), []))
            self.stmt(s.body)
        self.in_burst -= planned is not None
        if not self.in_burst:
            self.staggered.finish()

    def loop(self, s: For, low: str, high: str) -> None:
        """`do { body } while (++i < high)`: extents are at least one, and a task does not run an empty range."""
        self.count += 1
        n, before = self.count, self.lines
        self.env[s.var] = f"%i{n}"
        self.depth[f"%i{n}"] = len(self.heads)
        self.lines = []
        self.forget()
        self.heads.append([])
        self.hoisted_keys.append([])
        self.memo.clear()
        self.tiles.begin(s, len(self.heads))
        self.stmt(s.body)
        before += [f" br label %p{n}", f"p{n}:", f" br label %h{n}", f"h{n}:",
                   f" %i{n} = phi i64 [{low}, %p{n}], [%n{n}, %x{n}]", *self.heads.pop(), *self.lines,
                   f" br label %x{n}", f"x{n}:", f" %n{n} = add nuw nsw i64 %i{n}, 1",
                   f" %c{n} = icmp slt i64 %n{n}, {high}", f" br i1 %c{n}, label %h{n}, label %e{n}", f"e{n}:"]
        for key in self.hoisted_keys.pop():
            del self.hoisted[key]
        self.lines = before
        self.forget()
        self.memo.clear()

    def forget(self) -> None:
        """Another basic block begins: what was loaded in the one before is unknown there."""
        self.loaded, self.turned, self.lane_of, self.bases = {}, {}, {}, {}

    def separate(self) -> None:
        """Keep what follows from sharing loads with what was before: an empty instruction that may touch any memory."""
        self.lines.append(' call void asm sideeffect "", "~{memory}"()')
        self.forget()

    def branch(self, condition: object, body: Stmt) -> None:
        self.memo.clear()
        test = self.value(condition)  # type: ignore[arg-type]
        if test == FALSE:
            return
        if test == TRUE:
            self.stmt(body)
            return
        self.count += 1
        n, before, turned, lanes, bases = (
            self.count, dict(self.loaded), dict(self.turned), dict(self.lane_of), dict(self.bases))
        self.lines += [f" br i1 {test}, label %y{n}, label %z{n}", f"y{n}:"]
        self.stmt(body)
        self.lines += [f" br label %z{n}", f"z{n}:"]
        self.loaded = {k: v for k, v in before.items() if k in self.loaded}      # what the body stored is gone
        self.turned = {k: v for k, v in turned.items() if k in self.turned}
        self.lane_of = {k: v for k, v in lanes.items() if k in self.lane_of}
        self.bases = bases
        self.memo.clear()

    def stores(self, stores: tuple[Store, ...]) -> None:
        """All values, then all stores; what the values share is computed once."""
        self.memo.clear()
        made: list[tuple[Store, str, str]] = []
        for s in stores:
            mask = "" if s.mask is None else self.value(s.mask)
            if mask == FALSE or (mask.startswith("<") and TRUE not in mask):
                continue
            mask = "" if mask in (TRUE, SPLAT_TRUE) else mask
            if mask:
                value = self.guarded(s.value, mask, vector("i1", self.lanes(s.index[0])))
            elif (level := level_of(s.value, lanes := self.lanes(s.index[0]), self.target)) is not None:
                value = narrowed(self, self.value(level[0]), level[1], s.tensor.dtype, lanes)
            else:
                value = self.value(s.value)
            made.append((s, value, mask))
        for s, value, mask in made:
            self.store(s, value, mask)

    def store(self, s: Store, value: str, mask: str) -> None:
        lanes, place = self.lanes(s.index[0]), self.places[s.tensor]
        element, size = MEMORY[s.tensor.dtype], dtypes.itemsize(s.tensor.dtype)
        if s.tensor.dtype == "bool":
            value = self.emit(f"zext {value_type('bool', lanes)} {value} to {vector('i8', lanes)}")
        if s.tensor in self.tiles:
            needed = self.tiles.needs_mask(s.tensor, len(self.heads), self.elements(s.index[0], lanes))
            mask = mask if needed else ""
        match s.index[0]:
            case Index() as at:
                pointer, alignment = self.address(place, element, size, *self.linear(at))
                self.lines.append(f" store {element} {value}, ptr {pointer}, align {max(size, alignment)}")
            case Ramp(base, 1):
                pointer, alignment = self.address(place, element, size, *self.linear(base))
                if mask and place.local and self.within(s.index[0], place):     # a masked store would keep SROA away
                    type = vector(element, lanes)
                    old = self.emit(f"load {type}, ptr {pointer}, align {max(size, alignment)}")
                    value = self.emit(f"select {vector('i1', lanes)} {mask}, {type} {value}, {type} {old}")
                    mask = ""
                self.store_vector(vector(element, lanes), lanes, value, pointer, max(size, alignment), mask)
            case Ramp(base, stride) if not mask:
                pointer, _ = self.address(place, element, size, *self.linear(base))
                for n in range(lanes):
                    one = self.emit(f"extractelement {vector(element, lanes)} {value}, i32 {n}")
                    to = self.emit(f"getelementptr inbounds {element}, ptr {pointer}, i64 {n * stride}")
                    self.lines.append(f" store {element} {one}, ptr {to}, align {size}")
            case offsets:
                many, bits, type = vector("ptr", lanes), vector("i1", lanes), vector(element, lanes)
                offset = self.value(offsets)
                to = self.emit(f"getelementptr inbounds {element}, ptr {place.base}, {vector('i64', lanes)} {offset}")
                self.effect("masked.scatter", (type, many), (
                    (type, type, value), (many, f"{many} align {size}", to), (bits, bits, mask or SPLAT_TRUE)))
        if place.local and self.turned:
            self.turned = {k: v for k, v in self.turned.items() if k[0] is not s.tensor}
        if not place.local:
            for key in [k for k in self.loaded if k[0] is s.tensor]:
                del self.loaded[key]
            for key in [k for k in self.lane_of if k[0] is s.tensor]:
                del self.lane_of[key]

    def elements(self, at: Expr, lanes: int) -> range | None:
        """The elements at an index, where they are known now."""
        base, stride = (at.base, at.stride) if isinstance(at, Ramp) else (at, 1)
        terms, total = self.linear(base) if isinstance(base, Index) else ([("", 1)], 0)
        return None if terms else range(total, total + stride * max(lanes, 1), stride)

    def store_vector(self, type: str, lanes: int, value: str, pointer: str, alignment: int, mask: str) -> None:
        if not mask:
            self.lines.append(f" store {type} {value}, ptr {pointer}, align {alignment}")
            return
        if mask.startswith("<") and mask.count(TRUE) == 1:      # LLVM 22 stores a narrowed lane in its former width
            lane, element = mask[1:-1].split(", ").index(f"i1 {TRUE}"), type[1:-1].partition(" x ")[2]
            one = self.emit(f"extractelement {type} {value}, i32 {lane}")
            to = self.emit(f"getelementptr inbounds {element}, ptr {pointer}, i64 {lane}") if lane else pointer
            aligned = math.gcd(alignment, ELEMENT_BITS.get(element, 16) // 8)
            self.lines.append(f" store {element} {one}, ptr {to}, align {aligned}")
            return
        bits = vector("i1", lanes)
        self.effect("masked.store", (type, "ptr"), (
            (type, type, value), ("ptr", f"ptr align {alignment}", pointer), (bits, bits, mask)))

    def effect(self, name: str, mangled: tuple[str, ...], args: tuple[tuple[str, str, str], ...]) -> None:
        """A call without result; `args` are (type, type with attributes, operand)."""
        text = self.intrinsic("void", name, mangled, ((t, a) for t, _, a in args))
        for plain, full, operand in args:
            text = text.replace(f"{plain} {operand}", f"{full} {operand}", 1) if plain != full else text
        self.lines.append(f" {text}")

    def evaluate(self, call: Call) -> None:
        """`prefetch(tensor[index], locality)`: bring a line close; 3 (default) into L1, 2 into L2. Never faults."""
        match call:
            case Call("prefetch", (Load(tensor, (Index() as at,)), *rest)):
                locality = int(rest[0].value) if rest and isinstance(rest[0], Const) else 3
                place = self.places[tensor]
                element, size = MEMORY[tensor.dtype], dtypes.itemsize(tensor.dtype)
                pointer, _ = self.address(place, element, size, *self.linear(at))
                self.lines.append(" " + self.intrinsic("void", "prefetch", ("ptr",), (
                    ("ptr", pointer), ("i32", "0"), ("i32", str(locality)), ("i32", "1"))))
            case Call(name, (Load() as c, Load() as a, Load() as b)) if is_dot(name):
                self.dot(name, c, a, b)
            case Call(name, (Load() as c, Load() as r)) if name.partition(".")[0] == JOIN:
                self.join(lanes_of(name), c, r)
            case _:
                raise CodegenError(f"no instruction for {call.name}")

    def dot(self, name: str, c: Load, a: Load, b: Load) -> None:
        """c += a . b: a register tile's vector, one group of factors for all lanes, the factors of each lane."""
        kind, lanes = name.partition(".")[0], lanes_of(name)
        element, group = FACTORS[kind]
        if kind == PAIRS:
            self.pairs(c, *(self.fragment(e, element, lanes * group, element) for e in (a, b)))
            return
        wide = self.splat_group(a, group_type(name), element, lanes)
        right = self.fragment(b, element, lanes * group, element)
        place, (at,) = self.places[c.tensor], c.index
        pointer, alignment = self.address(place, "i32", 4, *self.linear(index(at)))
        before = self.emit(f"load {vector('i32', lanes)}, ptr {pointer}, align {alignment}")
        after = accumulate(self, self.target, name, before, wide, right)
        self.lines.append(f" store {vector('i32', lanes)} {after}, ptr {pointer}, align {alignment}")

    def pairs(self, c: Load, a: str, b: str) -> None:
        """c += a . b in pairs, beside other products where their loads stand before."""
        pointer, alignment = self.address(self.places[c.tensor], "i32", 4, *self.linear(index(c.index[0])))
        loads = self.behind.get(self.products, ()) if self.in_burst else ()
        self.products += 1
        self.staggered.begin(paired(self, pointer, alignment, a, b, lambda: [emit_burst(self, [f], []) for f in loads]))
        if not self.in_burst:
            self.staggered.finish()

    def join(self, lanes: int, c: Load, r: Load) -> None:
        """c[j] += the sum over l of r[j, l]."""
        type, (terms, total) = vector("i32", lanes), self.linear(index(r.index[0]))
        rows = []
        for n in range(lanes):
            pointer, alignment = self.address(self.places[r.tensor], "i32", 4, terms, total + n * lanes)
            rows.append(self.emit(f"load {type}, ptr {pointer}, align {alignment}"))
        pointer, alignment = self.address(self.places[c.tensor], "i32", 4, *self.linear(index(c.index[0])))
        before = self.emit(f"load {type}, ptr {pointer}, align {alignment}")
        after = joined(self, before, rows)
        self.lines.append(f" {holding(type, (after,), self.target)}")       # else branches keep what it is the sum of
        self.lines.append(f" store {type} {after}, ptr {pointer}, align {alignment}")

    def splat_group(self, e: Load, type: str, element: str, lanes: int) -> str:
        """One group of factors in all lanes: a lane of a vector that a burst has loaded, or loaded by itself."""
        terms, total = self.linear(index(e.index[0]))
        there = self.lane_of.get((e.tensor, tuple(terms), total))
        key = ("splat", *there, lanes) if there else ("splat", self.fragment(e, type, 0, element), lanes)
        if (known := self.loaded.get(key)) is None:
            known = (self.pick(there[0], type, there[2], [there[1]] * lanes) if there else
                     self.splat(type, str(key[1]), lanes))
            self.loaded[key] = known
        return known


def windows_overlap(loop: For, registers: int) -> bool:
    """Whether iterations of an unrolled loop read places that unrolled loops inside read in other iterations, and these are
    more than registers hold beside the sums.

    Source lines 2*x + kx for x and kx unrolled: kx = 2 reads again what kx = 0 read for x + 1. LLVM would keep all of these
    in registers from one iteration to the next, and spill. Eight rows that a window of three takes down one column are ten
    vectors: loaded once, where there is room for them.
    """
    inner = [n.var for n in nodes(loop.body) if isinstance(n, For) and n.kind is ForKind.UNROLLED and n.extent > 1]
    sums = max((len(_places(s, inner)) for s in nodes(loop.body) if isinstance(s, Store)), default=0)
    for load in (n for n in nodes(loop.body) if inner and isinstance(n, Load)):
        at = _base(load)
        step = at.coefficient(loop.var) if isinstance(at, Index) else 0
        for var in inner if step else ():
            reached = {at.coefficient(var) * n for n in range(1 - var.extent, var.extent) if n}
            if any(step * n in reached for n in range(1, loop.extent)) and \
                    len(_places(load, [loop.var, *inner])) + sums + FREE > registers:
                return True
    return False


def _base(access: Load | Store) -> Expr:
    return access.index[0].base if isinstance(access.index[0], Ramp) else access.index[0]


def _places(access: Load | Store, loops: Sequence[Var]) -> set[int]:
    """What unrolled loops add to an index, each place once."""
    at, places = _base(access), {0}
    for var in loops:
        step = at.coefficient(var) if isinstance(at, Index) else 0
        places = {p + step * n for p in places for n in range(var.extent if step else 1)}
    return places


__all__ = ["EMITTER_VERSION", "emit"]
