"""A function in the making: what the recipes for ONNX Runtime's own operators write with (contrib.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import NodeProto, ValueInfoProto, helper

from toolchain.core.errors import ImportModelError
from toolchain.graph.protos import attribute_value


class UnwrittenError(ImportModelError):
    """A form of a known operator that has no function here."""


def require(fits: bool) -> None:
    if not fits:
        raise UnwrittenError("this form is not written")


class Body:
    """A function in the making. Its formal inputs are x0, x1, ...; "" stands for one the node leaves out."""

    def __init__(self, proto: NodeProto) -> None:
        self.proto, self.nodes, self.count = proto, list[NodeProto](), 0
        self.attrs: Mapping[str, Any] = {a.name: attribute_value(a) for a in proto.attribute}
        self.inputs = [f"x{n}" if name else "" for n, name in enumerate(proto.input)]

    def has(self, n: int) -> bool:
        return n < len(self.inputs) and bool(self.inputs[n])

    def get(self, n: int) -> str:
        return self.inputs[n] if n < len(self.inputs) else ""

    def attr(self, name: str, default: Any) -> Any:
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def required(self, name: str) -> Any:
        if name not in self.attrs:
            raise ImportModelError(f"needs the attribute {name}", where=f"node {self.proto.name!r} ({self.proto.op_type})")
        return self.attrs[name]

    def several(self, op: str, outputs: int, *inputs: str, **attrs: Any) -> list[str]:
        self.count += 1
        made = [f"v{self.count}.{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, f"{op}_{self.count}", **attrs))
        return made

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        return self.several(op, 1, *inputs, **attrs)[0]

    def ints(self, *values: int) -> str:
        return self.op("Constant", value_ints=values)

    def number(self, value: float, like: str) -> str:
        """A scalar of the type of another value."""
        return self.op("CastLike", self.op("Constant", value_float=float(value)), like)

    def scaled(self, value: str, by: float) -> str:
        return value if by == 1 else self.op("Mul", value, self.number(by, value))

    def plus(self, value: str, n: int) -> str:
        """value + input n, where the node has it."""
        return self.op("Add", value, self.get(n)) if self.has(n) else value

    def dequantized(self, n: int, **attrs: Any) -> str:
        """Of inputs n (quantized), n + 1 (its scale), n + 2 (its zero point)."""
        return self.op("DequantizeLinear", self.get(n), self.get(n + 1), self.get(n + 2), **attrs)

    def quantized(self, value: str, n: int) -> str:
        """By inputs n (scale) and n + 1 (zero point)."""
        return self.op("QuantizeLinear", value, self.get(n), self.get(n + 1))

    # --- dimensions: constants once types are known, so nothing of them stays

    def size(self, value: str, axis: int) -> str:
        """One dimension, as a vector of one int64; negative axes count from the end."""
        return self.op("Shape", value, start=axis, **({"end": axis + 1} if axis != -1 else {}))

    def dims(self, *sizes: str | int) -> str:
        """A shape of known numbers and of sizes."""
        return self.op("Concat", *(self.ints(n) if isinstance(n, int) else n for n in sizes), axis=0)

    def number_of(self, size: str) -> str:
        """A vector of one number as a number without dimensions."""
        return self.op("Squeeze", size, self.ints(0))

    def places(self, size: str) -> str:
        """0, 1, ... of a size, int64."""
        zero, one = (self.op("Constant", value_int=n) for n in (0, 1))
        return self.op("Range", zero, self.number_of(size), one)

    def chosen(self, condition: str, yes: Callable[[], str], no: Callable[[], str]) -> str:
        """What one of two writes, by a condition that is known when types are: an If that the importer resolves."""
        branches = []
        for write in (yes, no):
            outside, self.nodes = self.nodes, []
            result = self.op("Identity", write())
            graph = helper.make_graph(self.nodes, "branch", [], [ValueInfoProto(name=result)])
            branches.append(graph)
            self.nodes = outside
        return self.op("If", condition, then_branch=branches[0], else_branch=branches[1])

    def by_rank(self, value: str, forms: Mapping[int, Callable[[], str]]) -> str:
        """What is written for a value of so many dimensions; the last form for any other number."""
        (rank, write), *others = forms.items()
        if not others:
            return write()
        count = self.op("Size", self.op("Shape", value))
        is_it = self.op("Equal", count, self.op("Constant", value_int=rank))
        return self.chosen(is_it, write, lambda: self.by_rank(value, dict(others)))


Recipe = Callable[[Body], Sequence[str]]
"""Writes the body; gives the outputs, in order, as many as there are (a node may ask for fewer)."""

__all__ = ["Body", "Recipe", "UnwrittenError", "require"]
