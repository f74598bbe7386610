"""Which operators of a model nobody implements: all of them at once, with counts and node names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.contrib import contrib_function
from toolchain.graph.importers.limits import Limits
from toolchain.graph.importers.upgrade import BECOMES, VANISHES
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import RANDOM
from toolchain.graph.protos import schema

SHOWN = 5
"""So many node names per operator stand in a message."""

WRITTEN_OUT = frozenset({("ai.onnx.preview", "FlexAttention")})
"""Operators of other domains that the importer writes out as ONNX's own."""

RUNTIMES_OWN = "com.microsoft.nchwc."
"""Operators in ONNX Runtime's layouts of one processor, which it writes into a model that it has optimized."""

Functions = Mapping[tuple[str, str, str], onnx.FunctionProto]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An operator without an implementation, and the model's nodes that use it."""

    op: str
    nodes: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.nodes[:SHOWN]) + (", ..." if len(self.nodes) > SHOWN else "")
        return f"{self.op} ({len(self.nodes)}x: {shown})"


def unsupported(graph: Graph, supported: Collection[str]) -> tuple[Unsupported, ...]:
    """The operators of `graph`, bodies included, that are not in `supported`: the most used first."""
    return _grouped((n.op, n.sources[0] if n.sources else n.name) for n in _nodes(graph) if n.op not in supported)


def refuse(found: tuple[Unsupported, ...], where: str) -> None:
    """Raises one ImportModelError with the full list, if there is anything in it."""
    if found:
        written = any(u.op.startswith(RUNTIMES_OWN) for u in found)
        raise ImportModelError("operators without an implementation:\n  " + "\n  ".join(map(str, found)), where=where, fix=(
            "this file holds what ONNX Runtime makes of a model for one processor: deploy the model it was made from, or let"
            " it write that with ORT_ENABLE_EXTENDED" if written
            else "export the model with other operators, or leave these nodes out of it"))


def unsupported_in_model(
    model: onnx.ModelProto, supported: Collection[str], limits: Limits, constants: Collection[str] = (),
) -> tuple[Unsupported, ...]:
    """The same for a model not yet imported, before anything of it is computed.

    A node that reads only constants and shapes is left out, since importing folds it; so is one that ONNX describes by a
    function, since importing expands it.
    """
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    weights = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    live = {i.name for i in model.graph.input} - weights - {*constants}
    return _grouped(_walk(model.graph.node, live, supported, functions, limits.depth))


def _walk(
    nodes: Iterable[onnx.NodeProto], live: set[str], supported: Collection[str], functions: Functions, depth: int,
) -> Iterator[tuple[str, str]]:
    """(operator, node name) of each unsupported node; adds to `live` every value that depends on the inputs' elements."""
    for index, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{index}"
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        key = (node.domain, node.op_type, node.overload)
        function = functions.get(key) or contrib_function(node)
        known = node.domain in ("", "ai.onnx") or function is not None
        depends = node.op_type not in ("Shape", "Size") and any(i in live for i in node.input)
        if known and not (depends or bodies or node.op_type in RANDOM):
            continue
        live.update(o for o in node.output if o)
        for body in bodies if depth else ():
            inner = live | {i.name for i in body.input}
            yield from _walk(body.node, inner, supported, functions, depth - 1)
        if function is not None:
            inner = {formal for formal, given in zip(function.input, node.input) if given in live}
            for op, at in _walk(function.node, inner, supported, functions, depth - 1) if depth else ():
                yield op, f"{name}/{at}"
            continue
        op = BECOMES.get(node.op_type, node.op_type)
        if (node.domain, node.op_type) in WRITTEN_OUT:
            continue
        if node.domain not in ("", "ai.onnx"):
            yield f"{node.domain}.{node.op_type}", name
        elif op not in supported and op not in VANISHES and not _expands(op, supported, depth):
            yield op, name


def has_function(op: str) -> bool:
    """Whether ONNX describes the operator by simpler ones."""
    known = schema(op)
    return known is not None and bool(known.has_function or known.has_context_dependent_function)


def is_covered(function: onnx.FunctionProto, supported: Collection[str], depth: int) -> bool:
    """Whether all that the body of a function asks for is supported, given that its inputs are not constant."""
    return depth > 0 and not any(_walk(function.node, {*function.input}, supported, {}, depth - 1))


def _expands(op: str, supported: Collection[str], depth: int) -> bool:
    """A body that depends on types is not known yet; the import looks at it when it gets there."""
    known = schema(op)
    if known is None or not known.has_function:
        return has_function(op)
    return is_covered(known.function_body, supported, depth)


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for value in node.attrs.values():
            if isinstance(value, Graph):
                yield from _nodes(value)


def _grouped(found: Iterable[tuple[str, str]]) -> tuple[Unsupported, ...]:
    groups: dict[str, list[str]] = {}
    for op, name in found:
        groups.setdefault(op, []).append(name)
    return tuple(Unsupported(op, tuple(names)) for op, names in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])))
