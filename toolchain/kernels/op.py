"""What a compute function sees of one graph node: its attributes, its inputs as te tensors, its constants, its result types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One node on its way into te. `constants[i]` is the array of input i when the kernel may bake it in, else None."""

    node: Node
    inputs: tuple[te.Tensor | None, ...]
    constants: tuple[np.ndarray | None, ...]
    types: tuple[TensorType, ...]
    input_types: tuple[TensorType | None, ...]
    names: set[str]

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
        return self.node.attrs.get(name, default)

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
        """Input i as a te tensor. Raises CodegenError when it was baked in as a constant array."""
        t = self.inputs[i]
        if t is None:
            raise CodegenError(f"{self.node.op}: input {i} is not a tensor here", where=self.node.name)
        return t

    def constant(self, i: int) -> np.ndarray:
        """The value of input i, which the operator needs at build time. Raises CodegenError when it is computed at run time."""
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
        t = self.inputs[i]
        if t is None:
            value = self.constant(i)
            type_ = self.input_types[i]
            assert type_ is not None
            return te.const(value.reshape(-1)[0].item(), type_.dtype)
        return broadcast(t, at)


def broadcast(t: te.Tensor, at: Sequence[Any]) -> te.Expr:
    """t at the trailing part of an index; dimensions of extent one stand still."""
    tail = tuple(at)[len(at) - len(t.shape):]
    return t[tuple(i if n != 1 else 0 for i, n in zip(tail, t.shape, strict=True))]


Compute = Callable[[Op], "te.Tensor | tuple[te.Tensor, ...]"]


def injective(op: Op, fn: Callable[..., Any], tag: str = "injective") -> te.Tensor:
    """A stage with one value per point of the result: `fn` gets the index as a tuple."""
    return te.compute(op.shape, lambda *i: fn(i), name=op.name(), tag=tag)

