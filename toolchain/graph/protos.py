"""Nodes as onnx.NodeProto and back: the one place that knows how ONNX spells an attribute.

Protos made here name their inputs and outputs by position ("i0", "o0"), so a model's names never reach ONNX's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, TypeProto, numpy_helper

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node

OPSET = onnx.defs.onnx_opset_version()
"""The opset all imported operators are converted to: the newest one of the installed onnx."""

DTYPE_OF: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.INT2: "int2",
    TensorProto.UINT2: "uint2",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    TensorProto.FLOAT8E8M0: "float8_e8m0fnu",
    TensorProto.FLOAT4E2M1: "float4_e2m1fn",
}
ELEM_TYPE_OF: dict[str, int] = {name: code for code, name in DTYPE_OF.items()}


@cache
def schema(op: str, opset: int = OPSET) -> onnx.defs.OpSchema | None:
    """ONNX's schema of an operator as of that opset; None when ONNX has no such operator."""
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def dtype_of(elem_type: int, where: str) -> str:
    """The dtype of an ONNX element type. Raises ImportModelError for one this project does not hold (strings)."""
    if elem_type not in DTYPE_OF:
        known = elem_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(elem_type) if known else str(elem_type)
        raise ImportModelError(f"element type {name} is not supported", where=where,
                               fix=f"use one of: {', '.join(ELEM_TYPE_OF)}")
    return DTYPE_OF[elem_type]


def type_proto(t: TensorType) -> TypeProto:
    proto = TypeProto()
    proto.tensor_type.elem_type = ELEM_TYPE_OF[t.dtype]
    dims = proto.tensor_type.shape.dim
    proto.tensor_type.shape.SetInParent()           # a scalar has a shape without dimensions, not no shape
    for n in t.shape:
        dims.add().dim_value = n
    return proto


def node_proto(node: Node) -> NodeProto:
    """`node` for ONNX's own code; its attributes are typed by the schema. Bodies (Graph attributes) are left out."""
    known = schema(node.op)
    if known is None:
        raise ImportModelError(f"ONNX has no operator {node.op}", where=f"node {node.name!r}")
    proto = NodeProto(op_type=node.op)
    proto.input.extend(f"i{n}" if name else "" for n, name in enumerate(node.inputs))
    proto.output.extend(f"o{n}" for n in range(len(node.outputs)))
    for name, value in node.attrs.items():
        if not isinstance(value, Graph) and name in known.attributes:
            proto.attribute.append(_attribute(name, value, known.attributes[name].type))
    return proto


def _attribute(name: str, value: Any, kind: onnx.defs.OpSchema.AttrType) -> AttributeProto:
    proto = AttributeProto(name=name, type=int(kind.value))
    match kind.name:
        case "FLOAT":
            proto.f = value
        case "INT":
            proto.i = value
        case "STRING":
            proto.s = value.encode()
        case "FLOATS":
            proto.floats.extend(value)
        case "INTS":
            proto.ints.extend(value)
        case "STRINGS":
            proto.strings.extend(v.encode() for v in value)
        case "TENSOR":
            proto.t.CopyFrom(tensor_proto(value))
        case _:
            raise ImportModelError(f"attribute {name!r} has kind {kind.name}, which is not supported")
    return proto


def tensor_proto(array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"))


def attribute_value(proto: AttributeProto) -> Any:
    """The plain value of an attribute that is neither a tensor nor a graph. Raises ImportModelError for other kinds."""
    match proto.type:
        case AttributeProto.FLOAT:
            return float(proto.f)
        case AttributeProto.INT:
            return int(proto.i)
        case AttributeProto.STRING:
            return proto.s.decode(errors="replace")
        case AttributeProto.FLOATS:
            return tuple(map(float, proto.floats))
        case AttributeProto.INTS:
            return tuple(map(int, proto.ints))
        case AttributeProto.STRINGS:
            return tuple(s.decode(errors="replace") for s in proto.strings)
    kinds = AttributeProto.AttributeType
    kind = kinds.Name(proto.type) if proto.type in kinds.values() else proto.type
    raise ImportModelError(f"attribute {proto.name!r} has kind {kind}, which is not supported")


def default(node: Node, name: str) -> Any:
    """An attribute of a node, or the schema's default; None when it has neither."""
    if name in node.attrs:
        return node.attrs[name]
    known = schema(node.op)
    if known is None or name not in known.attributes or not known.attributes[name].default_value.type:
        return None
    return attribute_value(known.attributes[name].default_value)


def attributes(node: Node) -> Mapping[str, Any]:
    """All attributes of a node, the schema's defaults filled in."""
    known = schema(node.op)
    if known is None:
        return node.attrs
    filled = {name: default(node, name) for name in known.attributes}
    return {**{k: v for k, v in filled.items() if v is not None}, **node.attrs}
