"""The rules every graph keeps between passes. A graph that breaks one is our bug, whatever model it came from."""

from __future__ import annotations

from toolchain.core.dtype import STORED, from_numpy
from toolchain.core.errors import ImportModelError, InternalError
from toolchain.graph.infer import infer, where
from toolchain.graph.ir import Graph, Node


def verify(graph: Graph, after: str = "") -> Graph:
    """Check `graph` and give it back. `after` names the pass that made it, for the message.

    Checked: every value is defined once and before it is read; every value has a type and every parameter's array has just
    that type; outputs exist; node names are unique; the types of node outputs are those the operator yields; bodies too.
    Raises InternalError naming the graph, the node and the rule.
    """
    context = f"graph {graph.name!r}" + (f" after {after}" if after else "")
    _check_params(graph, context)
    defined = {*graph.params}
    for name in graph.inputs:
        if name in defined:
            raise InternalError(f"{context}: {name!r} is an input and a parameter, or an input twice")
        _check_typed(graph, name, context)
        defined.add(name)
    names: set[str] = set()
    for node in graph.nodes:
        here = f"{context}: {where(node)}"
        if node.name and node.name in names:
            raise InternalError(f"{here}: another node has the same name")
        names.add(node.name)
        for name in node.inputs:
            if name and name not in defined:
                raise InternalError(f"{here}: reads {name!r}, which is defined later or nowhere")
        for name in node.outputs:
            if name in defined:
                raise InternalError(f"{here}: defines {name!r} a second time")
            if name:
                _check_typed(graph, name, here)
                defined.add(name)
        _check_types(graph, node, here)
        for value in node.attrs.values():
            if isinstance(value, Graph):
                verify(value, after)
    for name in graph.outputs:
        if name not in defined:
            raise InternalError(f"{context}: output {name!r} is defined nowhere")
    _check_extents(graph, context)
    return graph


def _check_extents(graph: Graph, context: str) -> None:
    for name, extents in graph.extents.items():
        if name not in graph.outputs or len(extents) != len(graph.types[name].shape):
            raise InternalError(f"{context}: {name!r} has extents {list(extents)}, which do not fit an output of that name")
        for extent in filter(None, extents):
            if extent not in graph.outputs or (graph.types[extent].shape, graph.types[extent].dtype) != ((), "int64"):
                raise InternalError(f"{context}: the extent {extent!r} of {name!r} is no int64 output without dimensions")


def _check_params(graph: Graph, context: str) -> None:
    for name, array in graph.params.items():
        _check_typed(graph, name, context)
        t = graph.types[name]
        if array.shape != t.shape or from_numpy(array.dtype) != t.dtype:
            raise InternalError(f"{context}: parameter {name!r} is {array.dtype}{list(array.shape)}, its type says {t}")


def _check_typed(graph: Graph, name: str, here: str) -> None:
    if (t := graph.types.get(name)) is None:
        raise InternalError(f"{here}: {name!r} has no type")
    if t.dtype not in STORED or len(t.layout.axes) != len(t.shape) or any(n < 0 for n in t.shape):
        raise InternalError(f"{here}: {name!r} has the type {t}, which is none")


def _check_types(graph: Graph, node: Node, here: str) -> None:
    try:
        inferred = infer(node, graph.types, graph.params)
    except ImportModelError as e:
        raise InternalError(f"{here}: {e.what}") from e
    if len(inferred) != len(node.outputs):
        raise InternalError(f"{here}: has {len(node.outputs)} outputs, its operator yields {len(inferred)}")
    for name, t in zip(node.outputs, inferred, strict=True):
        if name and (graph.types[name].shape, graph.types[name].dtype) != (t.shape, t.dtype):
            raise InternalError(f"{here}: {name!r} is stated as {graph.types[name]}, its operator yields {t}")
    for value in node.attrs.values():
        if isinstance(value, Graph) and node.op == "Fused":
            given = [graph.types.get(i) for i in node.inputs]
            stated = [value.types[i] for i in value.inputs]
            if [t and (t.shape, t.dtype) for t in given] != [(t.shape, t.dtype) for t in stated]:
                show = f"{', '.join(map(str, given))} differ from its body's {', '.join(map(str, stated))}"
                raise InternalError(f"{here}: its inputs {show}")
