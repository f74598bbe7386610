"""What an import shares among its scopes, and what the names of a proto stand for in one of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from onnx import FunctionProto

from toolchain.core.dtype import itemsize
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.limits import Limits
from toolchain.graph.importers.tensors import TensorReader


@dataclass
class Model:
    """What all scopes of one import share, and the counters the limits bound."""

    reader: TensorReader
    limits: Limits
    supported: Collection[str] | None
    functions: Mapping[tuple[str, str, str], FunctionProto]
    nodes: int = 0
    folded_bytes: int = 0

    def count_node(self, here: str) -> None:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            raise ImportModelError(f"the model has more than {self.limits.nodes} nodes, functions inlined", where=here)

    def check_depth(self, depth: int, here: str) -> None:
        if depth <= self.limits.depth:
            return
        if cycle := self.recursion():
            raise ImportModelError(f"functions call themselves: {' -> '.join(cycle)}",
                                   fix="ONNX has no recursion: export the model without it")
        raise ImportModelError(f"subgraphs or functions are nested deeper than {self.limits.depth}", where=here)

    def recursion(self) -> list[str]:
        """The names of functions that call each other in a circle, the first one again at the end; empty: there are none."""
        calls = {(domain, name): [(n.domain, n.op_type) for n in function.node]
                 for (domain, name, _), function in self.functions.items()}
        try:
            TopologicalSorter(calls).prepare()
        except CycleError as error:
            return [name for _, name in reversed(error.args[1])]
        return []

    def check_value(self, name: str, t: TensorType, here: str) -> None:
        if t.elements * itemsize(t.dtype) > self.limits.value_bytes:
            raise ImportModelError(f"{name!r} would be {t}, over {self.limits.value_bytes} bytes", where=here)

    def count_folded(self, size_bytes: int, here: str) -> None:
        self.folded_bytes += size_bytes
        if self.folded_bytes > self.limits.folded_bytes:
            raise ImportModelError(f"constants computed while importing need more than {self.limits.folded_bytes} bytes",
                                   where=here, fix="if the model is trusted, import it with larger Limits (folded_bytes)")


@dataclass
class Names:
    """What names mean in one piece of proto: value names, and attributes of the function being inlined."""

    opset: int
    depth: int
    values: dict[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] | None = None
    prefix: str = ""                        # of node and value names made inside; empty: the model's own names
    outer: Names | None = None              # an inlined branch sees its surroundings, a function does not
    source: str = ""                        # the model's node all this comes from, when ONNX's own function expands it
