"""A lowered function as plain data: the part of a kernel's identity that is its program. Names of tensors and loops are left
out, so two layers of one shape give one kernel; shared parts of expressions are listed once."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from toolchain.core.rewrite import Node
from toolchain.te.expr import Index, Var
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.tensor import Tensor


def structure(func: PrimFunc) -> list[Any]:
    """A list of plain values, equal for functions that differ in names only."""
    return _Lister(func).rows


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind))


class _Lister:
    """Every distinct node becomes a row [class, fields...]; a field that is a node is its row's number."""

    def __init__(self, func: PrimFunc) -> None:
        self.func = func
        self.rows: list[Any] = []
        self.known: dict[int, int] = {}
        for n, tensor in enumerate(func.params):
            self.row(tensor, ["param", n, *self.storage(tensor)])
        self.value(func.body)

    def storage(self, tensor: Tensor) -> list[Any]:
        buffer = self.func.buffers[tensor]
        return [buffer.scope, tensor.dtype, str(buffer.type)]

    def row(self, node: Node, content: list[Any]) -> int:
        self.rows.append(content)
        return self.known.setdefault(id(node), len(self.rows) - 1)

    def value(self, v: Any) -> Any:
        match v:
            case Tensor() | Var():
                if (known := self.known.get(id(v))) is None:
                    known = self.row(v, self.storage(v) if isinstance(v, Tensor) else ["loop", v.extent])
                return known
            case Index():                        # equal by content, in any order of its terms
                return ["index", sorted(([self.value(a), c] for a, c in v.terms), key=str), v.constant]
            case Node():
                if (known := self.known.get(id(v))) is not None:
                    return known
                return self.row(v, [type(v).__name__, *(self.value(getattr(v, name)) for name in _names(type(v)))])
            case tuple():
                return [self.value(x) for x in v]
            case float():
                return v.hex()                   # exact, and told apart from an integer
        return v


__all__ = ["structure"]
