"""What a NodeProto must look like before its numbers mean anything: counts, attributes, and the value of a Constant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from toolchain.core.errors import ImportModelError
from toolchain.graph.ir import Node
from toolchain.graph.protos import attribute_value


def check_strings(model: onnx.ModelProto) -> None:
    """Protobuf hands over a string that is not UTF-8 as bytes. Raises ImportModelError when a name is one."""
    def check(*texts: object) -> None:
        for text in texts:
            if isinstance(text, bytes):
                raise ImportModelError(f"a name is not valid UTF-8: {text[:60]!r}")

    def check_nodes(nodes: Iterable[NodeProto]) -> None:
        for n in nodes:
            check(n.op_type, n.domain, n.name, n.overload, *n.input, *n.output)
            for a in n.attribute:
                check(a.name, a.ref_attr_name)
                for body in (a.g, *a.graphs):
                    check_graph(body)

    def check_graph(graph: onnx.GraphProto) -> None:        # protobuf has bounded the depth already
        check(graph.name, *(t.name for t in graph.initializer), *(t.values.name for t in graph.sparse_initializer))
        for v in (*graph.input, *graph.output):
            check(v.name, *(d.dim_param for d in v.type.tensor_type.shape.dim))
        check_nodes(graph.node)

    check_graph(model.graph)
    for f in model.functions:
        check(f.name, f.domain, f.overload, *f.input, *f.output, *f.attribute)
        check_nodes(f.node)


def plain(proto: AttributeProto, here: str) -> Any:
    """The value of an attribute that is neither tensor nor graph, errors naming the place."""
    try:
        return attribute_value(proto)
    except ImportModelError as e:
        raise ImportModelError(e.what, where=here) from None


def check_form(proto: NodeProto, known: onnx.defs.OpSchema, here: str) -> None:
    """Counts of inputs and outputs, and names and kinds of attributes, as the schema of the model's opset has them."""
    for what, count, low, high in (("inputs", len(proto.input), known.min_input, known.max_input),
                                   ("outputs", len(proto.output), known.min_output, known.max_output)):
        if not low <= count <= high:
            raise ImportModelError(f"has {count} {what}, its operator takes {low} to {high}", where=here)
    for a in proto.attribute:
        if a.name not in known.attributes:
            raise ImportModelError(f"its operator has no attribute {a.name!r} in opset {known.since_version}", where=here)
        if a.type != known.attributes[a.name].type.value:
            raise ImportModelError(f"attribute {a.name!r} is not a {known.attributes[a.name].type.name}", where=here)
    given = {a.name for a in proto.attribute}
    if missing := [n for n, a in known.attributes.items() if a.required and n not in given]:
        raise ImportModelError(f"needs the attribute {', '.join(missing)}", where=here)


_CONSTANT_DTYPES = {"value_float": "float32", "value_floats": "float32", "value_int": "int64", "value_ints": "int64"}


def constant_of(node: Node, here: str) -> np.ndarray:
    """The array a Constant node stands for, however it is spelled."""
    if len(node.attrs) != 1:
        raise ImportModelError(f"states {len(node.attrs)} values", where=here)
    (name, value), = node.attrs.items()
    if name in ("value", "sparse_value"):
        return np.asarray(value)
    if name not in _CONSTANT_DTYPES:
        raise ImportModelError("holds strings, which are not supported", where=here)
    return np.asarray(value, _CONSTANT_DTYPES[name])
