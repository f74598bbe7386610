"""Python source for a PrimFunc, for the interpreter: see `interpret`.

    for i: for j: for k: C[i, j] += A[i, k]*B[k, j]        becomes

    for v2 in range(64):                                    # k: a reduction loop, in order
      store(b2, 64*g0 + g1, add(b2[64*g0 + g1], mul(b0[64*g0 + v2], b1[64*v2 + g1])), None)     # g0, g1: index arrays
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te import numpy_functions as runtime
from toolchain.te.combiner import combine
from toolchain.te.create import create_func
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
    distinct,
    index,
    join,
    parts,
    variables,
)
from toolchain.te.intrin import Intrin
from toolchain.te.loop_ir import (
    Block,
    Evaluate,
    For,
    If,
    PrimFunc,
    Stmt,
    Store,
    Together,
    Update,
    is_reduction_loop,
    loops,
    reads,
)
from toolchain.te.tensor import Tensor

GRID_LIMIT = 1 << 16        # elements of one NumPy operation: index arrays of half a megabyte
LANES = 1                   # arrays have one axis more than the grid: the lanes


def generate(func: PrimFunc, storage: Mapping[str, np.ndarray]) -> Callable[[], None]:
    """A function that runs `func` on flat physical storage (by tensor name, changed in place)."""
    source = _Source(func, storage)
    source.statement(func.body)
    text = "def run():\n" + "\n".join(source.lines or ["  pass"])
    exec(compile(text, f"<interpret {func.name}>", "exec"), source.env)
    run: Callable[[], None] = source.env["run"]
    return run


def instruction(intrin: Intrin) -> Callable[..., None]:
    """A function of (storage, offset) per operand, output first, that does what the instruction means on dense fragments.
    It raises ScheduleError where what is in between does not fit its type."""
    func = intrin.function()
    fragments = {t.name: np.zeros(math.prod(t.shape), dtypes.to_numpy(t.dtype)) for t in func.buffers}
    run, check = generate(func, fragments), _check_between(intrin, fragments)

    def call(*operands: tuple[np.ndarray, int]) -> None:
        for tensor, (storage, offset) in zip(intrin.operands, operands, strict=True):
            fragment = fragments[tensor.name]
            fragment[:] = storage[offset : offset + fragment.size]
        check()
        run()
        storage, offset = operands[0]
        fragment = fragments[intrin.output.name]
        storage[offset : offset + fragment.size] = fragment

    return call


def _check_between(intrin: Intrin, fragments: Mapping[str, np.ndarray]) -> Callable[[], None]:
    if intrin.between is None:
        return lambda: None
    tensor, dtype = intrin.between
    made, limits = np.zeros(math.prod(tensor.shape), dtypes.to_numpy(tensor.dtype)), np.iinfo(dtype)
    run = generate(create_func(tensor, f"{intrin.name} between"), {**fragments, tensor.name: made})

    def check() -> None:
        run()
        if (wrong := made[(made < limits.min) | (made > limits.max)]).size:
            raise ScheduleError(f"{intrin.name} has {wrong[0]} in between, which is no {dtype}",
                                fix="take the instruction only where its operands are known to allow it")
    return check


class _Source:
    """The source being written, the names it uses, and the loops around the current statement."""

    def __init__(self, func: PrimFunc, storage: Mapping[str, np.ndarray]) -> None:
        self.func = func
        self.intrinsics: Mapping[str, Intrin] = func.attrs.get("intrinsics", {})
        self.flat = "types" in func.attrs
        self.storage = storage
        self.lines: list[str] = []
        self.depth = 1
        operators = {f"op{n}": f for n, f in enumerate(runtime.OPERATORS.values())}
        self.env: dict[str, Any] = {"np": np, "rt": runtime, **operators}
        self.operators = {op: f"op{n}" for n, op in enumerate(runtime.OPERATORS)}
        self.buffers: dict[Tensor, str] = {}
        self.variables: dict[Var, str] = {}
        self.around: list[For] = []
        self.count = 0
        self.kernels = 0
        self.threads: dict[str, int] = {}           # the thread axes of the kernel being written, and their extents
        self.cooperative = any(b.scope == "shared" for b in func.buffers.values())
        self.strict = "barriers" in func.attrs
        for n, tensor in enumerate(func.buffers):
            self.buffers[tensor] = f"b{n}"
            self.env[f"b{n}"] = storage[tensor.name]

    # ---- statements

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def statement(self, stmt: Stmt) -> None:
        depth = self.depth
        match stmt:
            case Block(stmts):
                for s in stmts:
                    self.statement(s)
                    if self.threads and not self.strict:
                        self.line("yield")
            case For(thread=thread) if self.cooperative and thread.startswith("threadIdx"):
                self._thread_loop(stmt)
            case For():
                if not self._on_grid(stmt):
                    self._open_loop(stmt)
                    self.statement(stmt.body)
                    self.around.pop()
            case If(condition, body):
                self.line(f"if {self.expr(condition, 'None')}:")
                self.depth += 1
                self.statement(body)
            case Store() | Together() | Update():
                self._leaf(stmt, "None")
            case Evaluate(call):
                self._evaluate(call)
            case _:
                raise ScheduleError(f"the interpreter has no meaning for {type(stmt).__name__}")
        if self.depth > depth and len(self.lines) and self.lines[-1].endswith(":"):
            self.line("pass")
        self.depth = depth

    def _thread_loop(self, loop: For) -> None:
        """The outermost one launches a kernel, a generator per thread; those inside run the iteration of their thread."""
        if not self.threads:
            self._kernel(loop)
            return
        name = self._variable(loop.var)
        self.line(f"{name} = {_thread_name(loop.thread)}")
        if loop.extent < self.threads[loop.thread]:
            self.line(f"if {name} < {loop.extent}:")
            self.depth += 1
        self.around.append(loop)
        self.statement(loop.body)
        self.around.pop()

    def _kernel(self, loop: For) -> None:
        for inner in loops(loop):
            if inner.thread.startswith("threadIdx"):
                self.threads[inner.thread] = max(inner.extent, self.threads.get(inner.thread, 1))
        private = [self.buffers[t] for t, b in self.func.buffers.items() if b.scope == "local"]
        shared = [self.buffers[t] for t, b in self.func.buffers.items() if b.scope == "shared"]
        kernel, depth = f"kernel{self.kernels}", self.depth
        self.kernels += 1
        self.line(f"def {kernel}({', '.join([_thread_name(t) for t in self.threads] + private)}):")
        self.depth += 1
        self._thread_loop(loop)
        self.depth = depth + 1
        self.line("yield from ()")
        self.depth = depth
        extents, mine, ours = (
            "".join(f"{name}, " for name in names) for names in (self.threads.values(), private, shared)
        )
        self.line(f"rt.launch({kernel}, ({extents}), ({mine}), ({ours}), {self.strict})")
        self.threads = {}

    def _open_loop(self, loop: For) -> None:
        name = self._variable(loop.var)
        self.line(f"for {name} in range({loop.extent}):")
        self.depth += 1
        self.around.append(loop)

    def _variable(self, var: Var) -> str:
        if var not in self.variables:
            self.variables[var] = f"v{self.count}"
            self.count += 1                 # never reuse a name: a Python local and a global grid must not share one
        return self.variables[var]

    def _on_grid(self, top: For) -> bool:
        """A perfect nest around one leaf that stores: independent loops become one array operation. False: no such nest."""
        chain: list[For] = []
        guards: list[Expr] = []
        at: Stmt = top
        while isinstance(at, For | If):
            if isinstance(at, For):
                chain.append(at)
            else:
                guards.append(at.condition)
            at = at.body
        if self.cooperative and any(loop.thread.startswith("threadIdx") for loop in chain):
            return False
        if not isinstance(at, Store | Together | Update) or not (grid := self._independent(chain, at, guards)):
            return False
        depth = self.depth
        for loop in chain:
            if loop.var not in grid:
                self._open_loop(loop)
            else:
                self.around.append(loop)
        for n, var in enumerate(grid):
            name = self._variable(var)
            self.env[name] = np.arange(var.extent).reshape([var.extent if d == n else 1 for d in range(len(grid) + LANES)])
        mask = "None"
        for guard in guards:
            if variables(guard) & set(grid):
                self.line(f"m = rt.active({self.expr(guard, mask)}, {mask})")
                mask = "m"
            else:
                self.line(f"if {self.expr(guard, 'None')}:")
                self.depth += 1
        self._leaf(at, mask)
        del self.around[len(self.around) - len(chain):]
        for var in grid:                    # another statement may run the same loop variable serially
            del self.variables[var]
        self.depth = depth
        return True

    def _independent(self, chain: Sequence[For], leaf: Store | Together | Update, guards: Sequence[Expr]) -> list[Var]:
        """The loops (inner ones fill the grid first) whose iterations each write other elements and read none of them."""
        pieces = leaf.stores if isinstance(leaf, Together) else (leaf,)
        if isinstance(leaf, Update):
            places = dict.fromkeys(leaf.tensors, leaf.index)
        else:
            places = {s.tensor: s.index for s in pieces}
        values = [v for s in pieces for v in (s.value, s.mask if isinstance(s, Store) else None) if v is not None]
        for n in (n for v in values for n in distinct(v)):
            if isinstance(n, Load) and n.tensor in places and not _same_place(n.index, places[n.tensor]):
                return []
        if any(reads(guard, *places) for guard in guards):
            return []
        if not all(isinstance(i, Index | Ramp) for at in places.values() for i in at):
            return []
        offsets = [self._offset_index(t, at) for t, at in places.items()]
        used = set[Var].intersection(*(variables(offset) for offset, _ in offsets))
        grid: list[Var] = []
        size = max(lanes for _, (_, lanes) in offsets)
        for loop in reversed(chain):
            if loop.var in used and size * loop.extent <= GRID_LIMIT:
                grid.insert(0, loop.var)
                size *= loop.extent
        return grid if all(_injective(offset, grid, lanes) for offset, lanes in offsets) else []

    def _leaf(self, leaf: Store | Together | Update, mask: str) -> None:
        match leaf:
            case Store():
                self._stores((leaf,), mask)
            case Together(stores):
                self._stores(stores, mask)
            case Update(tensors, at, combiner, value, init):
                if init is not None:
                    first = [f"{self._variable(loop.var)} == 0" for loop in self.around if is_reduction_loop(loop, leaf)]
                    if first:
                        self.line(f"if {' and '.join(first)}:")
                        self.depth += 1
                    self._stores([Store(t, at, v) for t, v in zip(tensors, parts(init), strict=True)], mask)
                    self.depth -= bool(first)
                new = combine(combiner, join([Load(t, at) for t in tensors]), value)
                self._stores([Store(t, at, v) for t, v in zip(tensors, parts(new), strict=True)], mask)

    def _stores(self, stores: Sequence[Store], mask: str) -> None:
        """All values, then all stores; the last one first, whose value needs no name."""
        lines: list[str] = []
        for n, s in enumerate(stores):
            where, last = mask, n == len(stores) - 1
            if s.mask is not None:
                where = f"m{n}"
                self.line(f"{where} = rt.active({self.expr(s.mask, mask)}, {mask})")
            place, value = self.place(s.tensor, s.index, where), self.expr(s.value, where)
            if not last:
                self.line(f"p{n}, x{n} = {place}, {value}")
                place, value = f"p{n}", f"x{n}"
            lines.append(f"rt.store({self.buffers[s.tensor]}, {place}, {value}, {where})")
        for line in reversed(lines):
            self.line(line)

    def _evaluate(self, call: Call) -> None:
        if call.name.split(".")[0] in runtime.NO_EFFECT:
            self.line("pass")
            return
        if call.name == "barrier":
            self.line("yield 'barrier'")
            return
        if call.name not in self.intrinsics:
            raise ScheduleError(f"the interpreter has no meaning for the call {call.name}", where=self.func.name)
        name = f"do_{call.name}".replace(".", "_")
        self.env[name] = instruction(self.intrinsics[call.name])
        places = [(a.tensor, self.place(a.tensor, a.index, "None")) for a in call.args if isinstance(a, Load)]
        self.line(f"{name}({', '.join(f'({self.buffers[tensor]}, {place})' for tensor, place in places)})")

    # ---- places

    def _type(self, tensor: Tensor) -> TensorType:
        return self.func.buffers[tensor].type

    def _offset_index(self, tensor: Tensor, at: Sequence[Expr]) -> tuple[Index, tuple[int, int]]:
        """The element offset as an Index, and (stride, lanes) of its lanes."""
        bases = [i.base if isinstance(i, Ramp) else index(i) for i in at]
        if self.flat:
            ((only,), (base,)) = at, bases
            return base, (only.stride, only.lanes) if isinstance(only, Ramp) else (0, 1)
        type = self._type(tensor)
        offset = index(type.layout.offset(type.shape, bases))
        ramps = [(d, i) for d, i in enumerate(at) if isinstance(i, Ramp)]
        if not ramps:
            return offset, (0, 1)
        lane = Var("lane", ramps[0][1].lanes)
        moved = [i.base + lane * i.stride if isinstance(i, Ramp) else b for i, b in zip(at, bases)]
        with_lane = index(type.layout.offset(type.shape, moved))
        if variables(index(with_lane - offset)) == {lane} and (stride := index(with_lane - offset).coefficient(lane)):
            return offset, (stride, lane.extent)
        raise ScheduleError(f"interpret: the lanes of {tensor.name} have no constant stride in {type}")

    def place(self, tensor: Tensor, at: Sequence[Expr], mask: str) -> str:
        """Source of the element offset, with checks for the dimensions whose range does not already prove them in bounds."""
        if not all(isinstance(i, Index | Ramp) for i in at):
            return self._gathered(tensor, at, mask)
        offset, (stride, lanes) = self._offset_index(tensor, at)
        text = self.index(offset, mask)
        if lanes > 1:
            text = f"({text} + {self._lanes(stride, lanes)})"
        checks = []
        for d, (low, high) in enumerate(self._bounds(tensor)):
            i = at[d]
            base = i.base if isinstance(i, Ramp) else index(i)
            first, last = base.range()
            reach = (i.lanes - 1) * i.stride if isinstance(i, Ramp) else 0
            if first + min(reach, 0) < low or last + max(reach, 0) >= high:
                value = self.index(base, mask)
                value = f"({value} + {self._lanes(i.stride, i.lanes)})" if isinstance(i, Ramp) else value
                checks.append(f"({d}, {value}, {low}, {high})")
        if not checks:
            return text
        return f"rt.checked({text}, ({', '.join(checks)},), {mask}, {tensor.name!r})"

    def _gathered(self, tensor: Tensor, at: Sequence[Expr], mask: str) -> str:
        """The place when lanes have no common stride: the flat index is a vector of integers."""
        if not self.flat:
            raise ScheduleError(f"interpret: a vector of logical indices of {tensor.name}", where=self.func.name)
        text = self.expr(at[0], mask)
        ((low, high),) = self._bounds(tensor)
        return f"rt.checked({text}, ((0, {text}, {low}, {high}),), {mask}, {tensor.name!r})"

    def _bounds(self, tensor: Tensor) -> list[tuple[int, int]]:
        """Per index, the half-open range that is storage: halo and tail included."""
        if self.flat:
            return [(0, len(self.storage[tensor.name]))]
        type = self._type(tensor)
        return [(-before, n + after) for n, (before, after) in zip(type.layout.padded(type.shape), type.layout.halo)]

    def _lanes(self, stride: int, lanes: int) -> str:
        name = f"lanes_{lanes}_{stride}".replace("-", "_")
        self.env[name] = np.arange(lanes) * stride
        return name

    # ---- expressions

    def index(self, at: Index, mask: str) -> str:
        pieces = [f"{c}*{self._atom(atom, mask)}" if c != 1 else self._atom(atom, mask) for atom, c in at.terms]
        if at.constant or not pieces:
            pieces.append(str(at.constant))
        return f"({' + '.join(pieces)})" if len(pieces) > 1 else pieces[0]

    def _atom(self, atom: Var | FloorDiv | FloorMod | Dynamic, mask: str) -> str:
        match atom:
            case Var():
                return self._variable(atom) if atom.extent > 1 or atom in self.variables else "0"
            case FloorDiv(inner, k):
                return f"({self.index(inner, mask)} // {k})"
            case FloorMod(inner, k):
                return f"({self.index(inner, mask)} % {k})"
            case Dynamic(value, low, high):
                return f"rt.dynamic({self.expr(value, mask)}, {low}, {high}, {mask})"

    def expr(self, e: Expr, mask: str) -> str:
        match e:
            case Const(value, dtype):
                return self._constant(value, dtype)
            case Load(tensor, at):
                return f"{self.buffers[tensor]}[{self.place(tensor, at, mask)}]"
            case Bin("and" | "or" as op, a, b) if e.dtype == "bool":
                lazy = "both" if op == "and" else "either"
                return f"rt.{lazy}({self.expr(a, mask)}, {mask}, lambda m: {self.expr(b, 'm')})"
            case Bin(op, a, b):
                return f"{self.operators[op]}({self.expr(a, mask)}, {self.expr(b, mask)})"
            case Compare(op, at, bound):
                return f"({self.index(at, mask)} {op} {bound})"
            case Select(condition, a, b):
                branches = f"lambda m: {self.expr(a, 'm')}, lambda m: {self.expr(b, 'm')}"
                return f"rt.select({self.expr(condition, mask)}, {mask}, {branches})"
            case Cast(dtype, value):
                return f"rt.cast({self.expr(value, mask)}, {dtype!r})"
            case Call(name, (value,)) if name in runtime.REDUCTIONS:
                lanes = next((n.lanes for n in distinct(value) if isinstance(n, Ramp | Broadcast)), 1)
                return f"rt.reduce_lanes({name!r}, {self.expr(value, mask)}, {lanes})"
            case Call(name, args, dtype):
                values = "".join(f"{self.expr(a, mask)}, " for a in args)
                return f"rt.function({name!r}, {dtype!r}, ({values}))"
            case Index() | Var():
                return f"rt.cast({self.index(index(e), mask)}, 'int64')"
            case Ramp(base, stride, lanes):
                return f"({self.index(base, mask)} + {self._lanes(stride, lanes)})"
            case Broadcast(value):
                return self.expr(value, mask)
        raise ScheduleError(f"the interpreter has no meaning for {type(e).__name__}", where=self.func.name)

    def _constant(self, value: Any, dtype: str) -> str:
        name = f"c{len(self.env)}"
        self.env[name] = np.asarray(value).astype(dtypes.to_numpy(dtype))[()]
        return name


def _thread_name(thread: str) -> str:
    return f"t_{thread.replace('.', '_')}"


def _same_place(a: Sequence[Expr], b: Sequence[Expr]) -> bool:
    def same(x: Expr, y: Expr) -> bool:
        if isinstance(x, Ramp) and isinstance(y, Ramp):
            return x.base == y.base and (x.stride, x.lanes) == (y.stride, y.lanes)
        return isinstance(x, Index) and isinstance(y, Index) and x == y

    return all(same(x, y) for x, y in zip(a, b, strict=True))


def _injective(offset: Index, grid: Sequence[Var], lanes: tuple[int, int]) -> bool:
    """Whether each point of the grid (and each lane) is another offset, whatever the other variables are."""
    chosen = set(grid)
    moving = Index(tuple((atom, c) for atom, c in offset.terms if variables(Index(((atom, 1),))) & chosen))
    if any(isinstance(n, Dynamic) for n in distinct(moving)) or not variables(moving) <= chosen:
        return False
    points = np.arange(lanes[1]) * lanes[0] if lanes[1] > 1 else np.zeros(1, np.int64)
    values: dict[Var, Any] = {}
    for n, var in enumerate(grid):
        values[var] = np.arange(var.extent).reshape([var.extent if d == n else 1 for d in range(len(grid) + LANES)])
    everything = np.broadcast_to(_evaluate(moving, values) + points, [v.extent for v in grid] + [lanes[1]])
    return len(np.unique(everything)) == math.prod(everything.shape)


def _evaluate(at: Index, values: Mapping[Var, Any]) -> Any:
    total: Any = at.constant
    for atom, c in at.terms:
        match atom:
            case Var():
                value = values[atom]
            case FloorDiv(inner, k):
                value = _evaluate(inner, values) // k
            case FloorMod(inner, k):
                value = _evaluate(inner, values) % k
        total = total + c * value
    return total
