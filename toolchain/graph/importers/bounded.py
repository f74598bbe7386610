"""Shapes that depend on data in a graph whose every shape is static: a bound known when building, a size known when running.

A dimension whose extent only the data tells gets the largest extent it can have, and a value beside it, its *extent*: an
int64 number that the graph computes. Elements past the extent are padding: any number at all, never used as an index that
could leave its tensor, never part of a sum.

    %y = NonZero(%x: float32[4, 5])   ->   %p: int64[20], %n: int64[] = FlatNonZero(%x != 0);  %y: int64[2, 20] = ...
    %z = Relu(%y)                          %z: int64[2, 20], its extents ("", %n) as those of %y

The rules (bounded_rules.py, bounded_shapes.py) turn each node that reads such a value into ordinary nodes on the bound and
say what the extents of its results are. What has no rule is refused. Where a graph ends, an output that is not compact is
made so (`dense`): its elements lie in the row-major order of its true shape; `Graph.extents` says what tells that shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from toolchain.core.errors import ImportModelError, InternalError, MisfitError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.ranges import Range
from toolchain.graph.infer import where
from toolchain.graph.ir import Node

Extents = tuple[str, ...]               # per dimension the value that is its extent; "": the dimension is static
Number = int | str                      # a known number, or the value (int64, one element) that holds it


class State(Protocol):
    """What rules need of the importer's scope."""

    types: dict[str, TensorType]
    params: dict[str, np.ndarray]
    extents: dict[str, Extents]
    numbers: dict[str, tuple[Number, ...]]          # contents of small integer tensors, as far as they are known
    bounds: dict[str, int]                          # of each extent, and of each number that is a value
    masks: dict[Any, str]                           # what was made once already
    factors: dict[str, tuple[int, tuple[str, ...]]] # of an extent that is a number times other extents
    ranges: dict[str, Range]                        # between which numbers elements lie: see ranges.py

    def range_of(self, name: str) -> Range: ...
    def constant(self, hint: str, array: np.ndarray) -> str: ...
    def fresh(self, hint: str) -> str: ...
    def node_name(self, wanted: str) -> str: ...
    def rename(self, names: Mapping[str, str]) -> None: ...
    def emit_static(self, node: Node) -> None: ...
    def emit_by_rule(self, node: Node) -> None: ...


class Bounding:
    """One node on its way through its rule: it emits ordinary nodes and says what extents their results have."""

    def __init__(self, state: State, node: Node) -> None:
        self.state, self.node = state, node

    # --- asking

    def refuse(self, what: str) -> ImportModelError:
        return ImportModelError(what, where=where(self.node),
                                fix="make the inputs that decide it constant, or cut the model before this node")

    def misfit(self, what: str) -> MisfitError:
        return MisfitError(what, where=where(self.node))

    def undecided(self) -> ImportModelError:
        """For a shape that comes from the elements of tensors, not from their shapes: it has no bound."""
        given = ", ".join(str(self.state.types[i]) for i in self.node.inputs if i)
        return self.refuse(f"the shape of {self.node.outputs[0]!r} depends on data (inputs: {given}), and has no bound")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.state.types[name].shape

    def extents(self, name: str) -> Extents:
        """Of a value; all "" for a static one."""
        return self.state.extents.get(name) or ("",) * len(self.shape(name)) if name else ()

    def has(self, i: int) -> bool:
        return i < len(self.node.inputs) and bool(self.node.inputs[i])

    def constant(self, i: int) -> np.ndarray:
        """Input i, which a rule needs now. Raises ImportModelError when it is computed at run time."""
        array = self.state.params.get(name := self.node.inputs[i])
        if array is None or name in self.state.extents:
            raise self.refuse(f"its input {i} decides a shape together with the data; that needs a constant")
        return array

    def ints(self, i: int) -> list[int] | None:
        """Optional constant input i as integers."""
        return [int(v) for v in self.constant(i).reshape(-1)] if self.has(i) else None

    def numbers(self, name: str) -> tuple[Number, ...] | None:
        """The contents of a small integer tensor: constant, followed since the Shape it came from, or bounded."""
        array = None if name in self.state.extents else self.state.params.get(name)
        if array is not None and array.dtype.kind in "biu":
            return tuple(int(v) for v in array.reshape(-1))
        if name and name not in self.state.numbers and array is None and self.is_number(name):
            most = self.state.range_of(name)[1]
            if not math.isinf(most):
                self.state.numbers[name] = (self.extent(self.scalar(name), max(int(most), 0)),)
        return self.state.numbers.get(name)

    def is_number(self, name: str) -> bool:
        """Whether it is one integer."""
        t = self.state.types[name]
        return t.elements == 1 and t.dtype in ("int32", "int64") and not any(self.extents(name))

    def scalar(self, name: str) -> str:
        """A tensor of one integer as an int64 without dimensions."""
        if self.state.types[name].dtype != "int64":
            name = self.op("Cast", name, to=7)
        return name if not self.shape(name) else self.op("Reshape", name, self.int64(np.zeros(0)))

    def size(self, name: str, axis: int) -> Number:
        """A dimension of a value: its extent where it has one, else the number."""
        return self.extents(name)[axis] or self.shape(name)[axis]

    def attr(self, name: str, default: Any) -> Any:
        return self.node.attrs.get(name, default)

    def axis(self, name: str = "axis", default: int = 0, rank: int | None = None) -> int:
        rank = len(self.shape(self.node.inputs[0])) if rank is None else rank
        return int(self.attr(name, default)) % rank if rank else 0

    # --- emitting

    def op(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        """One node on bounds; gives its (first) result."""
        return self.ops(op, inputs, (out or self.state.fresh(f"{self.node.name}/{op}"),), attrs)[0]

    def ops(self, op: str, inputs: Sequence[str], outputs: Sequence[str], attrs: Mapping[str, Any]) -> tuple[str, ...]:
        name = self.state.node_name(f"{self.node.name}/{op}")
        self.state.emit_static(Node(op, tuple(inputs), tuple(outputs), dict(attrs), name, self.node.sources))
        return tuple(outputs)

    def rule(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        """One node that goes through its own rule if need be; gives its result."""
        y = out or self.state.fresh(f"{self.node.name}/{op}")
        name = self.state.node_name(f"{self.node.name}/{op}")
        self.state.emit_by_rule(Node(op, inputs, (y,), attrs, name, self.node.sources))
        return y

    def same(self, *extents: Extents) -> None:
        """The node itself, on bounds; its results have these extents."""
        self.state.emit_static(self.node)
        for name, given in zip(self.node.outputs, extents, strict=True):
            self.set(name, given)

    def set(self, name: str, extents: Sequence[str]) -> None:
        """State what the extents of an emitted value are; one that cannot but be 0 is static."""
        for n, extent in zip(self.shape(name) if name else (), extents, strict=bool(name)):
            if extent and self.state.bounds[extent] != n:
                raise InternalError(f"{where(self.node)}: {name!r} has a dimension of {n} for an extent of at most "
                                    f"{self.state.bounds[extent]}")
        extents = tuple(e if e and self.state.bounds[e] else "" for e in extents)
        if name and any(extents):
            self.state.extents[name] = extents

    def int64(self, value: int | Sequence[int] | np.ndarray) -> str:
        return self.state.constant(f"{self.node.name}/number", np.asarray(value, "int64"))

    def array(self, array: np.ndarray) -> str:
        return self.state.constant(f"{self.node.name}/constant", array)

    # --- numbers known at run time

    def value(self, number: Number) -> str:
        """A number as an int64 value without dimensions."""
        return number if isinstance(number, str) else self.int64(number)

    def compute(self, op: str, a: Number, b: Number, bound: int) -> Number:
        """op(a, b) of two numbers: known now, or a value of at most `bound`."""
        if isinstance(a, int) and isinstance(b, int):
            return {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a // max(b, 1), "Min": min(a, b), "Max": max(a, b)}[op]
        neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(op)
        if neutral is not None and b == neutral:
            return a
        if op in ("Add", "Mul") and a == neutral:
            return b
        made = self.extent(self.op(op, self.value(a), self.value(b)), bound)
        if op == "Mul":
            (m, of), (n, also) = self.factors(a), self.factors(b)
            self.state.factors[made] = (m * n, tuple(sorted((*of, *also))))
        return made

    def factors(self, number: Number) -> tuple[int, tuple[str, ...]]:
        """The number as a known one times extents."""
        return (number, ()) if isinstance(number, int) else self.state.factors.get(number, (1, (number,)))

    def extent(self, name: str, bound: int) -> str:
        self.state.bounds[name] = bound
        return name

    def bound(self, number: Number) -> int:
        return number if isinstance(number, int) else self.state.bounds[number]

    # --- padding

    def mask(self, extent: str, bound: int, axis: int, rank: int) -> str:
        """bool[1, ..., bound, ..., 1]: true where the index along `axis` is below the extent."""
        key = (extent, bound, axis, rank)
        if key not in self.state.masks:
            shape = [bound if d == axis else 1 for d in range(rank)]
            at = self.array(np.arange(bound, dtype="int64").reshape(shape))
            self.state.masks[key] = self.op("Less", at, extent)
        return self.state.masks[key]

    def masked(self, name: str, fill: Any, axes: Sequence[int] | None = None) -> str:
        """The value with `fill` in the padding of these axes (None: all)."""
        t, extents = self.state.types[name], self.extents(name)
        for axis, extent in enumerate(extents):
            if extent and (axes is None or axis in axes):
                neutral = self.array(np.asarray(fill).astype(t.dtype))
                name = self.op("Where", self.mask(extent, t.shape[axis], axis, len(t.shape)), name, neutral)
        self.set(name, extents)
        return name

    def flags(self, name: str) -> str:
        """bool, as the value is not zero; false in its padding."""
        t, extents = self.state.types[name], self.extents(name)
        flags = name if t.dtype == "bool" else self.op("Cast", name, to=9)
        for axis, extent in enumerate(extents):
            if extent:
                flags = self.op("And", flags, self.mask(extent, t.shape[axis], axis, len(t.shape)))
        return flags

    def is_compact(self, name: str) -> bool:
        """Whether its elements lie as in its true shape: only the outermost dimension (of more than one) is bounded."""
        shape, extents = self.shape(name), self.extents(name)
        first = next((d for d, n in enumerate(shape) if n != 1 or extents[d]), len(shape))
        return not any(extents[first + 1:])

    def total(self, name: str) -> Number:
        """How many elements it truly has."""
        total: Number = 1
        for axis, n in enumerate(self.shape(name)):
            total = self.compute("Mul", total, self.size(name, axis), self.bound(total) * n)
        return total

    def dense(self, name: str) -> str:
        """Its elements in the row-major order of its true shape, as one dimension.

            x: float32[2, 9], extents ("", n)   ->   y: float32[18], extents (2*n),   y[i*n + j] = x[i, j]
        """
        shape, elements = self.shape(name), math.prod(self.shape(name))
        flat = self.op("Reshape", name, self.int64([elements]))
        total = self.total(name)
        if not self.is_compact(name):
            rest, at = self.int64(np.arange(elements)), ""
            for axis in reversed(range(len(shape))):
                n = self.value(self.compute("Max", self.size(name, axis), 1, shape[axis]))
                index = self.op("Mod", rest, n)
                rest = self.op("Div", rest, n)
                step = self.op("Mul", index, self.int64(math.prod(shape[axis + 1:])))
                at = self.op("Add", at, step) if at else step
            at = self.op("Min", at, self.int64(elements - 1))
            flat = self.op("Gather", flat, at, axis=0)
        self.set(flat, (str(total),) if isinstance(total, str) else ("",))
        return flat


def is_bounded(state: State, node: Node) -> bool:
    """Whether the node reads a value whose shape depends on data."""
    return any(i in state.extents for i in node.inputs)


def finish(state: State, outputs: Sequence[str]) -> tuple[dict[str, Extents], tuple[str, ...]]:
    """Make bounded outputs compact. Gives `Graph.extents`, and the extents as outputs of their own."""
    found: dict[str, Extents] = {}
    own: dict[str, str] = {}
    for name in outputs:
        if name not in state.extents:
            continue
        b = Bounding(state, Node("Output", (name,), (name,), {}, f"output {name}"))
        extents = b.extents(name)
        if not b.is_compact(name):
            inner = state.fresh(f"{name}/padded")
            state.rename({name: inner})
            b.op("Reshape", b.dense(inner), b.int64(b.shape(inner)), out=name)
        for extent in extents:
            if extent and extent not in own:
                own[extent] = b.op("Identity", extent, out=state.fresh(f"{name}/extent"))
        found[name] = tuple(own[e] if e else "" for e in extents)
    return found, tuple(own.values())


__all__ = ["Bounding", "Extents", "Number", "State", "finish", "is_bounded"]
