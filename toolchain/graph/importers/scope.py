"""A Graph in the making: its values, what they are called, and what is known of those whose shape depends on data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.importers import ranges
from toolchain.graph.importers.bounded import Extents, Number
from toolchain.graph.importers.names import Model, Names
from toolchain.graph.ir import Graph, Node


class Scope:
    """The main graph's, or a body's: then `parent` is where it stands, and what it reads from there it captures."""

    def __init__(
        self, model: Model, name: str, reserved: Iterable[str] = (), parent: tuple[Scope, Names] | None = None,
    ) -> None:
        self.model, self.name, self.parent = model, name, parent
        self.types: dict[str, TensorType] = {}
        self.params: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.captured: dict[str, str] = {}              # value of the parent -> input here
        self.extents: dict[str, Extents] = {}           # of values whose shape depends on data: see bounded.py
        self.numbers: dict[str, tuple[Number, ...]] = {}
        self.bounds: dict[str, int] = {}
        self.factors: dict[str, tuple[int, tuple[str, ...]]] = {}
        self.loose: set[str] = set()                    # values that may have fewer leading ones: see bounded_branches.py
        self.masks: dict[Any, str] = {}
        self.ranges: dict[str, ranges.Range] = {}       # between which numbers elements lie, where that is known
        self._reserved = set(reserved)                  # names of the model that stand for themselves, defined or not yet
        self._node_names: set[str] = set()

    def fresh(self, hint: str) -> str:
        name, n = hint, 0
        while name in self.types or name in self._reserved:
            n += 1
            name = f"{hint}.{n}"
        return name

    def constant(self, hint: str, array: np.ndarray) -> str:
        name = self.fresh(hint)
        self._add_param(name, array)
        return name

    def _add_param(self, name: str, array: np.ndarray) -> None:
        self.params[name] = array
        self.types[name] = TensorType.plain(array.shape, array.dtype.name)

    def range_of(self, name: str) -> ranges.Range:
        """Between which numbers the elements of a value lie; see ranges.py."""
        if not name:
            return ranges.UNKNOWN
        if name not in self.ranges:
            array = self.params.get(name)
            self.ranges[name] = ranges.of_type(self.types[name].dtype) if array is None else ranges.of_constant(array)
        return self.ranges[name]

    def _note_ranges(self, node: Node) -> None:
        if node.op in ranges.RULES:
            found = ranges.of_results(node, [self.range_of(i) for i in node.inputs], self.types)
            self.ranges.update((name, r) for name, r in zip(node.outputs, found) if name)

    def resolve(self, name: str, names: Names, here: str) -> str:
        """The value a proto's name stands for here; captured from the parent scope when it is defined there."""
        level: Names | None = names
        while level is not None:
            if name in level.values:
                return level.values[name]
            level = level.outer
        if self.parent is None or names.attrs is not None:
            raise ImportModelError(f"reads {name!r}, which is defined later or nowhere", where=here)
        scope, outside = self.parent
        return self._capture(scope, scope.resolve(name, outside, here))

    def _capture(self, scope: Scope, value: str) -> str:
        """A value of the parent as an input here; what is known of its shape and its numbers comes with it."""
        if value not in self.captured:
            local = self.fresh(value)
            if value in scope.params:
                self._add_param(local, scope.params[value])
            else:
                self.types[local] = scope.types[value]
                self.ranges[local] = scope.range_of(value)
                self.inputs.append(local)
            self.captured[value] = local
            if value in scope.bounds:
                self.bounds[local] = scope.bounds[value]
            if value in scope.extents:
                self.extents[local] = tuple(e and self._capture(scope, e) for e in scope.extents[value])
            if value in scope.numbers:
                self.numbers[local] = tuple(
                    self._capture(scope, n) if isinstance(n, str) else n for n in scope.numbers[value])
            if value in scope.loose:
                self.loose.add(local)
        return self.captured[value]

    def refuse_loose(self, value: str, here: str) -> None:
        """Raises ImportModelError for a value whose number of dimensions depends on data."""
        if value in self.loose:
            raise ImportModelError(f"the number of dimensions of {value!r} depends on data", where=here,
                                   fix="give the branches of the If it comes from results with equally many dimensions")

    def note_results(self, outputs: Sequence[str], bounds: list[tuple[int, ...]], loose: set[int], names: Names) -> None:
        """Of the values that an If has made: what `one_type` found of its branches."""
        extents = iter(outputs[len(bounds):])
        for k, per_dimension in enumerate(bounds):
            found = tuple(names.values[next(extents)] if bound >= 0 else "" for bound in per_dimension)
            self.bounds.update((e, bound) for e, bound in zip(found, per_dimension) if e)
            if (out := outputs[k]) and any(found):
                self.extents[names.values[out]] = found
            if out and k in loose:
                self.loose.add(names.values[out])

    def _define(self, name: str, names: Names, here: str) -> str:
        """A new value for a proto's output name."""
        if name in names.values:
            raise ImportModelError(f"defines {name!r} a second time", where=here)
        value = self.fresh(f"{names.prefix}{name}") if names.prefix or name in self.types else name
        names.values[name] = value
        return value

    def bind(self, name: str, value: str, names: Names, here: str) -> None:
        if name in names.values:
            raise ImportModelError(f"defines {name!r} a second time", where=here)
        names.values[name] = value

    def add_constant(self, name: str, array: np.ndarray, names: Names) -> None:
        self._add_param(self._define(name, names, f"constant {name!r}"), array)

    def _graph(self, outputs: tuple[str, ...]) -> Graph:
        """What was built, without the constants that only folded nodes read."""
        used = {*outputs, *(i for n in self.nodes for i in n.inputs)}
        params = {name: array for name, array in self.params.items() if name in used}
        made = {*self.inputs, *params, *(o for n in self.nodes for o in n.outputs)}
        types = {name: t for name, t in self.types.items() if name in made}
        return Graph(self.name, tuple(self.nodes), tuple(self.inputs), outputs, types, params)

    def _name_outputs(self, outputs: Iterable[str], names: Names) -> None:
        """Outputs keep the model's names. One that is another name for a computed value renames it; when it is one for an
        input, or for an output already named, it gets an Identity; for a constant, a second parameter."""
        values = {name: self.resolve(name, names, f"output {name!r}") for name in outputs}
        computed = {o for n in self.nodes for o in n.outputs}
        renamed: dict[str, str] = {}
        for name, value in values.items():
            if value == name:
                continue
            self.types[name] = self.types[value]
            if value in self.params:
                self.params[name] = self.params[value]
                if value in self.extents:
                    self.extents[name] = self.extents[value]
            elif value in computed and value not in values and value not in renamed:
                renamed[value] = name
            else:
                self.nodes.append(Node("Identity", (value,), (name,), {}, self.node_name(f"Identity_{name}")))
                if value in self.extents:
                    self.extents[name] = self.extents[value]
        if renamed:
            self.rename(renamed)

    def rename(self, names: Mapping[str, str], start: int = 0) -> None:
        """Give computed values other names, in the nodes from `start` on (which are all that know them)."""
        self.nodes[start:] = [_renamed(n, names) for n in self.nodes[start:]]
        for old, new in names.items():
            self.types[new] = self.types[old]
            if old in self.params:
                self.params[new] = self.params.pop(old)
        self.extents = {names.get(v, v): tuple(names.get(e, e) for e in known) for v, known in self.extents.items()}
        self.numbers = {names.get(v, v): tuple(names.get(n, n) if isinstance(n, str) else n for n in known)
                        for v, known in self.numbers.items()}
        self.bounds = {names.get(v, v): bound for v, bound in self.bounds.items()}
        self.factors = {names.get(v, v): (k, tuple(names.get(e, e) for e in of)) for v, (k, of) in self.factors.items()}
        self.ranges = {names.get(v, v): found for v, found in self.ranges.items()}
        self.masks = {}                                 # its keys have names of values

    def node_name(self, wanted: str) -> str:
        name, n = wanted, 0
        while name in self._node_names:
            n += 1
            name = f"{wanted}.{n}"
        self._node_names.add(name)
        return name


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    if not any(v in names for v in (*node.inputs, *node.outputs)):
        return node
    inputs, outputs = (tuple(names.get(v, v) for v in values) for values in (node.inputs, node.outputs))
    return replace(node, inputs=inputs, outputs=outputs)
