"""What a compute function sees of one graph node: attributes, inputs as te tensors, constants, result types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node
from toolchain.graph.protos import default as attribute_default
from toolchain.te.combiner import Axes


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One node on its way into te. `constants[i]` is the array of input i when the kernel may bake it in, else None."""

    node: Node
    inputs: tuple[te.Tensor | None, ...]
    constants: tuple[np.ndarray | None, ...]
    types: tuple[TensorType, ...]
    input_types: tuple[TensorType | None, ...]
    names: set[str]
    input_kinds: tuple[str, ...] = ()           # the dtypes as the graph has them; `input_types` say how they are stored
    kinds: tuple[str, ...] = ()

    def name(self, base: str = "") -> str:
        """A stage name not yet used in this kernel: the operator's, or `base`. The model's own names are untrusted text and
        stay out of code."""
        base = base or self.node.op.lower()
        name, n = base, 1
        while name in self.names:
            n += 1
            name = f"{base}{n}"
        self.names.add(name)
        return name

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, else the default of ONNX's schema, else `default`."""
        value = attribute_default(self.node, name)
        return default if value is None else value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.types[0].shape

    @property
    def dtype(self) -> str:
        return self.types[0].dtype

    @property
    def x(self) -> te.Tensor:
        return self.tensor(0)

    def has(self, i: int) -> bool:
        """Whether optional input i is there."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i])

    def in_shape(self, i: int = 0) -> tuple[int, ...]:
        t = self.input_types[i]
        assert t is not None
        return t.shape

    def tensor(self, i: int) -> te.Tensor:
        """Input i as a te tensor; a constant that is part of the kernel becomes a stage that looks its elements up."""
        if (t := self.inputs[i]) is not None:
            return t
        value, shape = self.constant(i), self.in_shape(i)
        elements = [v.item() for v in value.reshape(-1)]
        type_ = self.input_types[i]
        assert type_ is not None
        return te.compute(shape, lambda *at: table(elements, row_major(at, shape), type_.dtype), name=self.name("constant"),
                          tag="elementwise")

    def constant(self, i: int) -> np.ndarray:
        """The value of input i, needed at build time. Raises CodegenError when it is only known at run time."""
        if i >= len(self.constants) or (value := self.constants[i]) is None:
            raise CodegenError(
                f"{self.node.op} needs its input {i} ('{self.node.inputs[i]}') at build time", where=self.node.name,
                fix="make it a constant of the model",
            )
        return value

    def ints(self, i: int, attr: str, default: Sequence[int] | None = None) -> list[int] | None:
        """A list of integers that ONNX has as input i or, in older models, as an attribute."""
        if self.has(i):
            return [int(v) for v in self.constant(i).reshape(-1)]
        value = self.attr(attr, default)
        return None if value is None else [int(v) for v in value]

    def axis(self, name: str = "axis", default: int = -1, rank: int | None = None) -> int:
        """An axis attribute, counted from the front."""
        rank = len(self.in_shape()) if rank is None else rank
        return int(self.attr(name, default)) % rank if rank else 0

    def read(self, i: int, at: Sequence[Any]) -> te.Expr:
        """Input i at an index of the result, broadcast by NumPy's rules; a one-element constant is a number."""
        if self.inputs[i] is None and (value := self.constant(i)).size == 1:
            type_ = self.input_types[i]
            assert type_ is not None
            return te.const(value.reshape(-1)[0].item(), type_.dtype)
        return broadcast(self.tensor(i), at)

    def read_at(self, i: int, at: Sequence[Any]) -> te.Expr:
        """Input i at an index of its own, where an extent of one stands for any."""
        return broadcast(self.tensor(i), at)

    def element(self, i: int, at: Sequence[Any]) -> te.Expr:
        """Input i at an index of its own, for kernels that are loops: a constant that is part of the kernel is looked up
        where it stands, for loops have no stages."""
        if (t := self.inputs[i]) is not None:
            return t[tuple(at)]
        type_ = self.input_types[i]
        assert type_ is not None
        return table([v.item() for v in self.constant(i).reshape(-1)], row_major(at, type_.shape), type_.dtype)

    def scalar(self, i: int) -> te.Expr:
        """The one element of input i, whatever its rank."""
        return self.read(i, (0,) * len(self.in_shape(i)))


def broadcast(t: te.Tensor, at: Sequence[Any]) -> te.Expr:
    """t at the trailing part of an index; dimensions of extent one stand still."""
    tail = tuple(at)[len(at) - len(t.shape):]
    return t[tuple(i if n != 1 else 0 for i, n in zip(tail, t.shape, strict=True))]


STORED = "stored"            # the tag of a stage that is computed once and kept, because its elements are read many times
Compute = Callable[[Op], "te.Tensor | tuple[te.Tensor, ...]"]


def row_major(at: Sequence[Any], shape: Sequence[int]) -> Any:
    """The row-major position of an index."""
    total: Any = 0
    for i, n in zip(at, shape, strict=True):
        total = total * n + i
    return total


def table(values: Sequence[float], at: Any, dtype: str) -> te.Expr:
    """values[at] for a short list known at build time: a search tree of selects over one period, equal neighbours joined."""
    texts = [str(v) for v in values]                            # 0.0 is not -0.0, and NaN is itself
    period = next(p for p in range(1, len(texts) + 1) if texts[p:] == texts[:-p])
    place = te.index(at) % period if period < len(texts) else te.index(at)

    def tree(low: int, high: int) -> te.Expr:
        if len({*texts[low:high]}) == 1:
            return te.const(values[low], dtype)
        middle = (low + high) // 2
        return te.select(place < middle, tree(low, middle), tree(middle, high))
    return tree(0, period)


def _propagating(pick: Callable[[te.Expr, te.Expr], te.Expr], start: Callable[[str], te.Expr], name: str) -> te.Reducer:
    """x86's maximum gives its second operand when one is NaN: a NaN that is there stays, one that comes is chosen."""
    return te.comm_reducer(lambda x, y: te.select(te.isnan(y), y, pick(y, x)), start, name)


_LARGEST, _SMALLEST = (_propagating(te.maximum, te.min_value, "largest"), _propagating(te.minimum, te.max_value, "smallest"))


def largest(value: te.Expr, axis: Axes) -> te.Expr:
    """The largest over `axis`, NaN if there is one, as NumPy has it. (te.max promises nothing of NaN, for two operations
    less per element.)"""
    return _LARGEST(value, axis) if dtypes.is_float(value.dtype) else te.max(value, axis)


def smallest(value: te.Expr, axis: Axes) -> te.Expr:
    """The smallest over `axis`, NaN if there is one."""
    return _SMALLEST(value, axis) if dtypes.is_float(value.dtype) else te.min(value, axis)


def wide(dtype: str) -> str:
    """The type sums of many elements are kept in: float32 for the half-size floats."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def injective(op: Op, fn: Callable[..., Any], tag: str = "injective") -> te.Tensor:
    """A stage with one value per point of the result: `fn` gets the index as a tuple."""
    return te.compute(op.shape, lambda *i: fn(i), name=op.name(), tag=tag)

