"""The graph IR: frozen nodes in topological order, values named as in ONNX.

A Graph is what passes take and give. Nodes, parameters and types refer to values by name; "" is a missing optional input.
Operators are ONNX's (of the newest opset the importer converts to), plus a few of our own, all listed in `graph/ops.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from toolchain.core.layout import TensorType


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation. `sources` are the names of the model's own nodes it came from, through every pass.

    attrs are plain data (int, float, str, bool, tuples of them), NumPy arrays, or Graphs (bodies of Scan, If, Loop, Fused).
    An output named "" is a missing optional one, which nothing reads.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    sources: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order over named values.

    `types` holds the TensorType of every value; `params` the arrays of the constant ones (they are in `types` too).
    `extents`, of each output whose shape depends on data: per dimension the value (an int64 without dimensions, an output
    behind the model's own) that says how far it goes, or "". The type's shape is the most it can be, and the elements lie in
    the row-major order of the true shape: the first of the array (see `results`).
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, TensorType]
    params: Mapping[str, np.ndarray] = field(default_factory=dict)
    extents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def own_outputs(self) -> tuple[str, ...]:
        """The outputs the model has: without those that say how far another one goes."""
        counts = {e for extents in self.extents.values() for e in extents}
        return tuple(o for o in self.outputs if o not in counts) if counts else self.outputs

    def results(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs from those of the graph, in their true shapes."""
        found = {}
        for name in self.own_outputs:
            array, extents = arrays[name], self.extents.get(name)
            if extents is not None:
                shape = tuple(int(arrays[e]) if e else n for e, n in zip(extents, array.shape, strict=True))
                array = array.reshape(-1)[:math.prod(shape)].reshape(shape)
            found[name] = array
        return found

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {out: n for n in self.nodes for out in n.outputs if out}

    @cached_property
    def _readers(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, dict[Node, None]] = {}
        for n in self.nodes:
            for name in n.inputs:
                if name:
                    found.setdefault(name, {})[n] = None
        return {name: tuple(nodes) for name, nodes in found.items()}

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs and parameters."""
        return self._producers.get(value)

    def readers(self, value: str) -> tuple[Node, ...]:
        """The nodes that read a value, in order, each once (graph outputs are not counted)."""
        return self._readers.get(value, ())

    def is_constant(self, value: str) -> bool:
        return value in self.params

    def fresh(self, base: str, taken: Iterable[str] = ()) -> str:
        """A value name not yet in use: `base`, else `base.1`, `base.2`, ..."""
        used = {*taken}
        name, n = base, 0
        while name in self.types or name in used:
            n += 1
            name = f"{base}.{n}"
        return name

    def edit(
        self,
        changes: Mapping[Node, Node | Iterable[Node] | None],
        types: Mapping[str, TensorType] | None = None,
        params: Mapping[str, np.ndarray] | None = None,
        outputs: Iterable[str] | None = None,
    ) -> Graph:
        """A new Graph with nodes replaced (by one, by several in order, or None: removed) and new values added.

        Types of new parameters are taken from their arrays. Values nothing uses any more stay until `eliminate_dead_code`.
        """
        nodes: list[Node] = []
        for node in self.nodes:
            new = changes.get(node, node) if changes else node
            if new is not None:
                nodes.extend((new,) if isinstance(new, Node) else new)
        added = params or {}
        return replace(
            self,
            nodes=tuple(nodes),
            outputs=tuple(outputs) if outputs is not None else self.outputs,
            types={**self.types, **{k: array_type(v) for k, v in added.items()}, **(types or {})},
            params={**self.params, **added} if added else self.params,
        )


def array_type(array: np.ndarray) -> TensorType:
    return TensorType.plain(array.shape, array.dtype.name)


def rename_inputs(node: Node, mapping: Mapping[str, str]) -> Node:
    """`node` reading `mapping[x]` in place of x; the same object when it reads none of them."""
    if not any(i in mapping for i in node.inputs):
        return node
    return replace(node, inputs=tuple(mapping.get(i, i) for i in node.inputs))
