"""What a compiled network does when it runs: a plan, as plain data.

A plan is a sequence of ops on buffers at offsets known at build time. The C runtime interprets it (runtime/interpret.h);
table.py writes it out as constants. Buffers lie in four segments:

    weights   read-only, one piece      arena    read and written, one piece
    input     one array per input       output   one array per output

A loop's `strides` moves its body's slots from iteration to iteration: one number of bytes per slot, in the order of
`slots_of(body)`. A slot inside two loops moves by the sum of both.

    Repeat(3, (Call(k, ..., (x, y)),), strides=(16, -4))       k(x, y); k(x+16, y-4); k(x+32, y-8)
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain.core.dtype import STORED, itemsize
from toolchain.core.errors import CodegenError

SEGMENTS = ("weights", "arena", "input", "output")
SCHEDULERS = ("steal", "spmd")
PERMISSIONS = ("amx",)
EXTENT_BYTES = 8
MAX_DEPTH = 8  # loops within loops; TC_MAX_DEPTH in runtime/plan.h


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a buffer begins. `at`: byte offset in the weights or the arena, or the number of the input or output;
    `offset_bytes`: further bytes into it (a slice of an input)."""

    segment: str
    at: int
    offset_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the network: contiguous, row-major.

    extents: of an output whose shape depends on data, per dimension where in the arena a run leaves its extent (an int64),
    -1 for a static dimension; `shape` is the most it can be, and the elements of the true shape come first. Else empty.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    extents: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)

    def true_shape(self, arena: np.ndarray) -> tuple[int, ...]:
        """Its shape after a run that left `arena` (bytes) behind."""
        return tuple(n if at < 0 else int(arena[at:at + EXTENT_BYTES].view("int64")[0])
                     for n, at in zip(self.shape, self.extents or (-1,) * len(self.shape), strict=True))

    def result(self, array: np.ndarray, arena: np.ndarray) -> np.ndarray:
        """What a run left in `array`, in its true shape: a view of it."""
        if not self.extents:
            return array
        shape = self.true_shape(arena)
        return array.reshape(-1)[:math.prod(shape)].reshape(shape)


@dataclass(frozen=True, slots=True)
class Call:
    """Run a kernel: each phase `(function symbol, parallel extent)` on all lanes, then the next.

    kernel: which object has the functions. buffers: parameters in order, then the kernel's workspaces. chunks: into how many
    pieces an extent is cut for the lanes; 0 leaves it to the runtime, 1 keeps it on one lane. sources: nodes it came from.
    """

    kernel: str
    phases: tuple[tuple[str, int], ...]
    buffers: tuple[Slot, ...]
    name: str = ""
    sources: tuple[str, ...] = ()
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy bytes; source and destination do not overlap."""

    src: Slot
    dst: Slot
    size_bytes: int
    name: str = "copy"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Zero:
    """Set bytes to zero."""

    dst: Slot
    size_bytes: int
    name: str = "zero"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run `body` `count` times; see the module's docstring for `strides` (empty: nothing moves)."""

    count: int
    body: tuple[Op, ...]
    strides: tuple[int, ...] = ()
    name: str = "repeat"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """Run `then` if the byte at `condition` is not zero, else `otherwise`."""

    condition: Slot
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...] = ()
    name: str = "if"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """Run `body` while the byte at `condition` is not zero, at most `max_count` times; it is read before each iteration.
    `strides` moves the body's slots as in Repeat, and leaves the condition where it is."""

    condition: Slot
    max_count: int
    body: tuple[Op, ...]
    strides: tuple[int, ...] = ()
    name: str = "loop"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fail:
    """End the run with the status that says so. name: what does not fit."""

    name: str = "fail"
    sources: tuple[str, ...] = ()


Op = Call | Copy | Zero | Repeat | If | Loop | Fail
_KINDS: dict[str, type[Op]] = {c.__name__.lower(): c for c in (Call, Copy, Zero, Repeat, If, Loop, Fail)}


@dataclass(frozen=True, slots=True)
class Plan:
    """A network, ready to run.

    scratch_bytes: private to each lane, any content. zero: (offset, bytes) of the arena that hold zeros from the start and
    that no op may spoil (halos): fresh arenas are zero, so this only says what a debugger must leave alone or put back.
    scheduler: "steal" (lanes help each other out) or "spmd" (each lane its share, barriers; for networks of tiny operators).
    permissions: what the system must be asked for first ("amx").
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    weights_bytes: int = 0
    arena_bytes: int = 0
    scratch_bytes: int = 0
    zero: tuple[tuple[int, int], ...] = ()
    scheduler: str = "steal"
    permissions: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data. Slots are [segment, at] or [segment, at, offset_bytes]; an op says its kind under "op"."""
        return _fields(self)

    def to_text(self) -> str:
        """to_json() as JSON text with a line per op."""
        data = {name: json.dumps(_plain(getattr(self, name))) for name in self.__slots__ if name != "ops"}
        data["ops"] = "[" + ",".join("\n  " + json.dumps(_op_to_json(op)) for op in self.ops) + "]"
        return "{" + ",".join(f"\n {json.dumps(name)}: {text}" for name, text in data.items()) + "\n}\n"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_text` wrote."""
        values = {
            **data,
            "inputs": tuple(_value(v) for v in data["inputs"]),
            "outputs": tuple(_value(v) for v in data["outputs"]),
            "ops": tuple(_op_from_json(op) for op in data["ops"]),
            "zero": tuple((int(offset), int(size)) for offset, size in data["zero"]),
            "permissions": tuple(data["permissions"]),
        }
        return cls(**values)


def plans_to_text(plans: Sequence[Plan]) -> str:
    """The plans of all shape buckets as one JSON list: what plan.json holds."""
    return "[" + ",\n".join(plan.to_text().rstrip("\n") for plan in plans) + "]\n"


def plans_from_json(data: Sequence[Any]) -> tuple[Plan, ...]:
    return tuple(Plan.from_json(plan) for plan in data)


def _value(data: Mapping[str, Any]) -> Value:
    return Value(data["name"], data["dtype"], tuple(data["shape"]), tuple(data.get("extents", ())))


def _fields(node: Any) -> dict[str, Any]:
    """Field name -> plain value, as dataclasses.asdict: that one copies deeply and takes ten times as long."""
    return {name: _plain(getattr(node, name)) for name in node.__slots__}


def _plain(value: Any) -> Any:
    match value:
        case str() | int():
            return value
        case Slot(segment, at, offset):
            return [segment, at, offset] if offset else [segment, at]
        case Value():
            bounded = {"extents": list(value.extents)} if value.extents else {}
            return {"name": value.name, "dtype": value.dtype, "shape": list(value.shape), **bounded}
        case tuple():
            return [_plain(v) for v in value]
    return _op_to_json(value)


def _op_to_json(op: Op) -> dict[str, Any]:
    return {"op": type(op).__name__.lower(), **_fields(op)}


def _op_from_json(data: Mapping[str, Any]) -> Op:
    values: dict[str, Any] = {}
    for name, value in data.items():
        match name:
            case "op":
                continue
            case "body" | "then" | "otherwise":
                values[name] = tuple(_op_from_json(o) for o in value)
            case "src" | "dst" | "condition":
                values[name] = Slot(*value)
            case "buffers":
                values[name] = tuple(Slot(*s) for s in value)
            case "phases":
                values[name] = tuple((symbol, extent) for symbol, extent in value)
            case _:
                values[name] = tuple(value) if isinstance(value, list) else value
    return _KINDS[data["op"]](**values)


def calls_of(plan: Plan) -> Counter[str]:
    """How often a run calls each kernel, by symbol; a loop of unknown length counts once."""
    count: Counter[str] = Counter()

    def visit(ops: Sequence[Op], times: int) -> None:
        for op in ops:
            if isinstance(op, Call):
                count[op.kernel] += times
            visit(children(op), times * (op.count if isinstance(op, Repeat) else 1))
    visit(plan.ops, 1)
    return count


def children(op: Op) -> tuple[Op, ...]:
    """The ops right inside: a loop's body, or both branches of an If."""
    match op:
        case Repeat(body=body) | Loop(body=body):
            return body
        case If(then=then, otherwise=otherwise):
            return then + otherwise
    return ()


def walk(ops: tuple[Op, ...]) -> Iterator[Op]:
    """All ops in pre-order: an op, what is inside it, the next. An op's place in it is its index at run time."""
    for op in ops:
        yield op
        yield from walk(children(op))


def own_slots(op: Op) -> tuple[Slot, ...]:
    """The slots of the op itself, in the order of its fields."""
    match op:
        case Call(buffers=buffers):
            return buffers
        case Copy(src=src, dst=dst):
            return (src, dst)
        case Zero(dst=dst):
            return (dst,)
        case If(condition=condition) | Loop(condition=condition):
            return (condition,)
    return ()


def slots_of(ops: tuple[Op, ...]) -> tuple[Slot, ...]:
    """Every slot of `ops` and of what is inside them, in pre-order: what a loop's `strides` line up with."""
    return tuple(slot for op in walk(ops) for slot in own_slots(op))


def calls(plan: Plan) -> tuple[Call, ...]:
    return tuple(op for op in walk(plan.ops) if isinstance(op, Call))


def verify_plan(plan: Plan) -> None:
    """Refuse a plan the runtime could not run, or that would leave its memory.

    Sizes of a kernel's buffers are not in the plan: of those only the beginning is checked, in every iteration.
    """

    def refuse(what: str, where: str = "") -> None:
        raise CodegenError(what, where=f"plan {plan.name!r}" + (f", op {where!r}" if where else ""))

    for value in (*plan.inputs, *plan.outputs):
        if value.dtype not in STORED or any(d < 0 for d in value.shape):
            refuse(f"{value.name!r} has no storage: {value.dtype}{list(value.shape)}")
        if value.extents and len(value.extents) != len(value.shape):
            refuse(f"{value.name!r} has {len(value.extents)} extents for {len(value.shape)} dimensions")
        if any(at != -1 and not 0 <= at <= plan.arena_bytes - EXTENT_BYTES for at in value.extents):
            refuse(f"an extent of {value.name!r} leaves the arena: {list(value.extents)}")
    for kind, values in (("inputs", plan.inputs), ("outputs", plan.outputs)):
        if twice := [name for name, n in Counter(v.name for v in values).items() if n > 1]:
            refuse(f"two {kind} of the name {twice[0]!r}")
    if plan.scheduler not in SCHEDULERS:
        refuse(f"scheduler {plan.scheduler!r} is none of {', '.join(SCHEDULERS)}")
    if unknown := set(plan.permissions) - set(PERMISSIONS):
        refuse(f"unknown permission {sorted(unknown)[0]!r}")
    if any(offset < 0 or size < 0 or offset + size > plan.arena_bytes for offset, size in plan.zero):
        refuse("a range to keep zero leaves the arena")
    for op in walk(plan.ops):
        if problem := _op_problem(op):
            refuse(problem, op.name)
    for op, slot, size, reach in _placed(plan.ops, ()):
        if problem := _slot_problem(plan, slot, size, reach):
            refuse(problem, op.name)


def _op_problem(op: Op) -> str:
    match op:
        case Call(phases=phases, chunks=chunks) if chunks < 0 or any(extent < 0 for _, extent in phases):
            return "negative chunks or extent"
        case Copy(size_bytes=size) | Zero(size_bytes=size) if size < 0:
            return "negative size"
        case Repeat(count=count) | Loop(max_count=count) if count < 0:
            return "negative count"
        case Repeat(body=body, strides=strides) | Loop(body=body, strides=strides):
            if strides and len(strides) != (n := len(slots_of(body))):
                return f"{len(strides)} strides for the {n} slots of the body"
    return ""


_Reach = tuple[tuple[int, int], ...]  # of the loops around: (iterations, stride)


def _placed(ops: tuple[Op, ...], around: tuple[tuple[int, Iterator[int]], ...]) -> Iterator[tuple[Op, Slot, int, _Reach]]:
    """Each slot with the bytes it surely covers and how the loops `around` (count, strides still to hand out) move it."""
    if len(around) > MAX_DEPTH:
        raise CodegenError(f"loops nested more than {MAX_DEPTH} deep", where=f"op {ops[0].name!r}" if ops else "")
    for op in ops:
        size = op.size_bytes if isinstance(op, (Copy, Zero)) else 1 if isinstance(op, (If, Loop)) else 0
        for slot in own_slots(op):
            yield op, slot, size, tuple((count, next(strides)) for count, strides in around)
        inside = around
        match op:
            case Repeat(count=count, body=body, strides=strides) | Loop(max_count=count, body=body, strides=strides):
                inside = (*around, (count, iter(strides or (0,) * len(slots_of(body)))))
        yield from _placed(children(op), inside)


def _slot_problem(plan: Plan, slot: Slot, size: int, reach: _Reach) -> str:
    match slot.segment:
        case "weights":
            limit, start = plan.weights_bytes, slot.at
        case "arena":
            limit, start = plan.arena_bytes, slot.at
        case "input" | "output":
            values = plan.inputs if slot.segment == "input" else plan.outputs
            if not 0 <= slot.at < len(values):
                return f"there is no {slot.segment} number {slot.at}"
            limit, start = values[slot.at].size_bytes, 0
        case _:
            return f"segment {slot.segment!r} is none of {', '.join(SEGMENTS)}"
    if any(count == 0 for count, _ in reach):
        return ""  # never runs
    start += slot.offset_bytes
    low = start + sum(min(0, stride * (count - 1)) for count, stride in reach)
    high = start + sum(max(0, stride * (count - 1)) for count, stride in reach)
    if low < 0 or high + size > limit:
        return f"bytes {low} to {high + size} leave {slot.segment} ({limit} bytes): {slot}"
    return ""
