"""One forward sweep of local rewrite rules over a graph: the engine of `simplify`, `fold_batch_norm` and others.

A rule sees a node whose producers are final already, looks backwards from there, and answers with

    None          leave the node as it is
    a value       the node's (first) output is that existing value
    nodes         what stands in its place; together they make the same outputs; rules are applied to them again

What nobody reads any more is dropped on the way. The cost is linear in the nodes, however many rules fire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from toolchain.core.errors import InternalError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node, array_type, rename_inputs

MAX_FIRINGS = 200           # per node of the original graph; more means that two rules undo each other


def reads(node: Node) -> tuple[str, ...]:
    """Every value a node reads; its bodies read nothing else (what they capture is among the inputs)."""
    return tuple(i for i in node.inputs if i)


def bodies(node: Node) -> dict[str, Graph]:
    """The graphs among a node's attributes (Scan, If, Loop, Fused), by attribute."""
    return {key: value for key, value in node.attrs.items() if isinstance(value, Graph)}


class Rewriting:
    """The graph under a sweep: what rules look things up in, and make new values with."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types: dict[str, TensorType] = dict(graph.types)
        self.params: dict[str, np.ndarray] = dict(graph.params)
        self.uses: Counter[str] = Counter(graph.outputs)      # reads by nodes, plus one per graph output
        for node in graph.nodes:
            self.uses.update(reads(node))
        self.changed = False
        self._outputs = set(graph.outputs)
        self._made: dict[Node, None] = {}                     # in order; a dict, so that one can be taken out again
        self._producers: dict[str, Node] = {}
        self._renamed: dict[str, str] = {}
        self._final: dict[str, str] = {}                      # values that take over the name of a graph output
        self._numbers: Counter[str] = Counter()
        self._memo: dict[Hashable, str] = {}

    def producer(self, value: str) -> Node | None:
        """The finished node that computes a value; None for inputs and parameters."""
        return self._producers.get(value)

    def made_by(self, value: str, *ops: str) -> Node | None:
        """The producer of a value, if it is one of those operators."""
        node = self._producers.get(value)
        return node if node is not None and node.op in ops else None

    def read_once(self, value: str) -> bool:
        """Whether the node at hand is the only reader of a value, which is no graph output."""
        return self.uses[value] == 1

    def constant(self, value: str) -> np.ndarray | None:
        return self.params.get(value)

    def uniform(self, value: str) -> float | None:
        """The one number that all elements of a constant are; None when it is not a constant, or has no such number."""
        array = self.params.get(value)
        if array is None or array.size == 0 or array.dtype.kind not in "fiub":
            return None
        first = array.flat[0]
        if array.size > 1 and not (array.size <= 65_536 and bool((array == first).all())):
            return None
        return float(first)

    def integers(self, value: str) -> tuple[int, ...] | None:
        """The elements of a constant integer tensor (axes, pads, shapes)."""
        array = self.params.get(value)
        return None if array is None else tuple(int(n) for n in array.reshape(-1))

    def shape(self, value: str) -> tuple[int, ...]:
        return self.types[value].shape

    def fresh(self, base: str) -> str:
        name = base
        while name in self.types:
            self._numbers[base] += 1
            name = f"{base}.{self._numbers[base]}"
        return name

    def value(self, base: str, kind: TensorType) -> str:
        """A new value of that type; a node that computes it is due."""
        name = self.fresh(base)
        self.types[name] = kind
        return name

    def param(self, base: str, array: np.ndarray, key: Hashable = None) -> str:
        """A new parameter. With a `key`, the same one for every call with that key."""
        if key is not None and key in self._memo:
            return self._memo[key]
        name = self.fresh(base)
        self.params[name] = np.asarray(array)
        self.types[name] = array_type(self.params[name])
        if key is not None:
            self._memo[key] = name
        return name

    def define(self, value: str, array: np.ndarray) -> str:
        """Make the output of the node at hand a parameter of that content; the rule returns the answer."""
        self.params[value] = np.asarray(array)
        return value

    def int64(self, *values: int) -> str:
        """A parameter holding these integers (a shape, axes, pads), shared within the graph."""
        text = "x".join(map(str, values)) or "empty"
        return self.param(f"int64.{text}", np.array(values, np.int64), key=("int64", values))

    def sweep(self, rules: Callable[[Node, Rewriting], Sequence[Node] | str | None]) -> Graph:
        """Apply the rules once to every node, in order, and again to what they put in its place."""
        for original in self.graph.nodes:
            pending, firings = [original], 0
            while pending:
                node = rename_inputs(pending.pop(), self._renamed)
                if not any(self.uses[o] for o in node.outputs if o):
                    self.changed = True
                    self._release(node)
                    continue
                result = rules(node, self)
                if result is None:
                    self._make(node)
                    continue
                firings += 1
                if firings > MAX_FIRINGS:
                    raise InternalError(f"rewrite rules do not come to an end on node {original.name!r} ({node.op})")
                if isinstance(result, str) and result == node.output:       # `define` made it a parameter
                    self.changed = True
                    self._release(node)
                    continue
                if isinstance(result, str):
                    self._forward(node, result)
                    continue
                self.changed = True
                sources = tuple(dict.fromkeys((*self._sources_of(result), *node.sources)))
                for new in result:
                    self.uses.update(reads(new))
                self._release(node)
                pending.extend(replace(new, sources=sources) for new in reversed(result))
        return self._finish()

    def _sources_of(self, nodes: Iterable[Node]) -> Iterable[str]:
        return (source for node in nodes for source in node.sources)

    def _make(self, node: Node) -> None:
        self._made[node] = None
        for out in node.outputs:
            self._producers[out] = node

    def _release(self, node: Node) -> None:
        """`node` is gone: so is what only it read."""
        stack = [node]
        while stack:
            for read in reads(stack.pop()):
                self.uses[read] -= 1
                producer = self._producers.get(read)
                if producer in self._made and not any(self.uses[o] for o in producer.outputs if o):
                    del self._made[producer]
                    stack.append(producer)

    def _forward(self, node: Node, target: str) -> None:
        """The first output of `node` is the value `target` from now on."""
        old = node.output
        if old in self._outputs:
            if target in self._final or target in self._outputs or target not in self._producers:
                if node.op != "Identity":                     # an output must be written by some node, under its name
                    self.changed = True
                    self.uses[target] += 1
                    self._release(node)
                    node = Node("Identity", (target,), (old,), name=node.name, sources=node.sources)
                self._make(node)
                return
            self._final[target] = old
        self.changed = True
        self.uses[target] += self.uses.pop(old)
        self._renamed[old] = target
        self._release(node)

    def _finish(self) -> Graph:
        if not self.changed:
            return self.graph
        nodes = tuple(self._made)
        if final := self._final:
            nodes = tuple(
                replace(n, outputs=tuple(final.get(o, o) for o in n.outputs)) if any(o in final for o in n.outputs) else n
                for n in (rename_inputs(n, final) for n in nodes)
            )
            for now, name in final.items():
                self.types[name] = self.types[now]
        return used_only(replace(self.graph, nodes=unique_names(nodes), types=self.types, params=self.params))


def unique_names(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes with `.1`, `.2`, ... appended to names that occur before; nodes may have no name."""
    taken: dict[str, int] = {}
    named = []
    for node in nodes:
        name = node.name
        while name and name in taken:
            taken[node.name] += 1
            name = f"{node.name}.{taken[node.name]}"
        taken.setdefault(name, 0)
        named.append(node if name == node.name else replace(node, name=name))
    return tuple(named)


def used_only(graph: Graph) -> Graph:
    """`graph` without the types and parameters of values that nothing makes or reads."""
    used = {*graph.inputs, *graph.outputs}
    for node in graph.nodes:
        used.update(node.outputs)
        used.update(reads(node))
    return replace(
        graph,
        types={name: kind for name, kind in graph.types.items() if name in used},
        params={name: array for name, array in graph.params.items() if name in used},
    )


Rule: TypeAlias = Callable[[Node, Rewriting], Sequence[Node] | str | None]


def rewrite_graph(graph: Graph, table: Mapping[str, Sequence[Rule]]) -> Graph:
    """Sweep with the rules of each operator, the first that answers wins; `graph` itself when none did."""

    def first(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
        for rule in table.get(node.op, ()):
            result = rule(node, state)
            if result is not None:
                return result
        return None

    return Rewriting(graph).sweep(first)
