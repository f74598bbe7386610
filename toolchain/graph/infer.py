"""Types of a node's outputs from its inputs: ONNX's own rules for ONNX operators, ours for the internal and control ones.

Control flow carries its bodies as Graphs. What a body reads from outside is passed explicitly: captured values are the last
inputs of the node and the last inputs of the body.

    If(cond, captures...)                    then_branch(captures...), else_branch(captures...) -> outputs
    Fail()                                   ends the run with an error; stands for a branch that these shapes do not fit
    Loop(M, cond, states..., captures...)    body(iteration, cond, states..., captures...) -> cond, states..., scan outputs
    Scan(states..., scans..., captures...)   body(states..., scan elements..., captures...) -> states..., scan outputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import TypeProto

from toolchain.core.errors import ImportModelError, MisfitError
from toolchain.core.layout import TensorType
from toolchain.graph.einsum import letters
from toolchain.graph.ir import Graph, Node
from toolchain.graph.protos import dtype_of, node_proto, schema, tensor_proto, type_proto

NOTHING = TensorType.plain((0,), "bool")

DATA_LIMIT = 4096
"""Constants of up to so many elements are shown to ONNX's rules: shapes, axes, scales; never weights."""


def infer(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    """One type per output of `node`, all static and in the plain layout. For a missing optional output it means nothing.

    Raises ImportModelError naming the node: a shape that depends on data, or (MisfitError) types that do not fit.
    """
    rule = RULES.get(node.op, _infer_onnx)
    return rule(node, types, params)


def where(node: Node) -> str:
    """How errors name a node."""
    return f"node {node.name!r} ({node.op})"


def _infer_onnx(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    known = schema(node.op)
    if known is None:
        raise ImportModelError("ONNX has no such operator", where=where(node))
    inputs: dict[str, TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for n, name in enumerate(node.inputs):
        if not name:
            continue
        inputs[f"i{n}"] = type_proto(types[name])
        if (array := params.get(name)) is not None and array.size <= DATA_LIMIT and array.ndim <= 2:
            data[f"i{n}"] = tensor_proto(array)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            known, node_proto(node), inputs, data, opset_imports=None, ir_version=onnx.IR_VERSION)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError,
            IndexError) as e:
        given = ", ".join(str(types[name]) for name in node.inputs if name)
        raise MisfitError(f"does not fit its inputs ({given}): {_reason(e)}", where=where(node)) from None
    made = {n: _static(node, n, found.get(f"o{n}"), types) for n, name in enumerate(node.outputs) if name}
    return tuple(made.get(n, NOTHING) for n in range(len(node.outputs)))


def _reason(error: Exception) -> str:
    """ONNX's message without the place in its sources: "[ShapeInferenceError] Incompatible dimensions"."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _static(node: Node, n: int, proto: TypeProto | None, types: Mapping[str, TensorType]) -> TensorType:
    name = node.outputs[n]
    if proto is None or not proto.HasField("tensor_type"):
        kind = proto.WhichOneof("value") if proto is not None else None
        problem = f"yields a {kind.removesuffix('_type')}; only tensors are supported" if kind else "has no known type"
        raise ImportModelError(f"{name!r} {problem}", where=where(node))
    dtype = dtype_of(proto.tensor_type.elem_type, where(node))
    dims = proto.tensor_type.shape.dim
    if not proto.tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
        given = ", ".join(str(types[i]) for i in node.inputs if i)
        raise ImportModelError(
            f"the shape of {name!r} depends on data (inputs: {given}); every shape must be known when building",
            where=where(node), fix="make the inputs that decide it constant, or cut the model before this node")
    shape = tuple(d.dim_value for d in dims)
    if any(n < 0 for n in shape):
        raise MisfitError(f"{name!r} would have the shape {list(shape)}", where=where(node))
    return TensorType.plain(shape, dtype)


def _infer_same(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    """The output is like the first input. Of a layout conversion the graph's types state the layout; it is not inferred."""
    t = types[node.inputs[0]]
    return (TensorType.plain(t.shape, t.dtype),)


def _infer_prelu(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    """ONNX's rule does not look at the slope, which may not be larger than x."""
    x, slope = (types[name].shape for name in node.inputs)
    missing = (1,) * (len(x) - len(slope))
    if len(slope) > len(x) or any(n not in (1, m) for n, m in zip(missing + slope, x)):
        raise MisfitError(f"its slope of shape {list(slope)} does not broadcast to {list(x)}", where=where(node))
    return _infer_same(node, types, params)


def _infer_winograd(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    """As of the convolution that it computes."""
    x, u = types[node.inputs[0]], types[node.inputs[1]]
    taps, pads, stride = node.attrs.get("taps", 3), node.attrs["pads"], node.attrs.get("stride", 1)
    side = node.attrs["m"] + taps - 1
    if len(x.shape) != 4 or u.shape[:2] != (side, side) or u.shape[3:] != (x.shape[1] * stride ** 2,):
        raise ImportModelError(f"does not fit its inputs ({x}, {u})", where=where(node))
    if stride > 1:
        return (TensorType.plain((x.shape[0], u.shape[2], *node.attrs["size"]), x.dtype),)
    spatial = (n + before + after - taps + 1 for n, before, after in zip(x.shape[2:], pads[:2], pads[2:], strict=True))
    return (TensorType.plain((x.shape[0], u.shape[2], *spatial), x.dtype),)


def _infer_integer_matmul(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    x, w = types[node.inputs[0]], types[node.inputs[1]]
    if x.shape[-1] != w.shape[-1] or not 0 < node.attrs["columns"] <= w.shape[-2]:
        raise ImportModelError(f"does not fit its inputs ({x}, {w})", where=where(node))
    return (TensorType.plain((*x.shape[:-1], node.attrs["columns"]), "int32"),)


def _infer_integer_conv(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    """Of an image that holds its padding."""
    x, w = types[node.inputs[0]], types[node.inputs[1]]
    if x.shape[1] != w.shape[1] * node.attrs.get("group", 1) or len(x.shape) != len(w.shape):
        raise ImportModelError(f"does not fit its inputs ({x}, {w})", where=where(node))
    spatial = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(
        x.shape[2:], w.shape[2:], node.attrs["strides"], node.attrs["dilations"], strict=True)]
    return (TensorType.plain((x.shape[0], node.attrs["columns"], *spatial), "int32"),)


def _infer_winograd_transpose(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    x, u = types[node.inputs[0]], types[node.inputs[1]]
    side = node.attrs["m"] + node.attrs["taps"] - 1
    if len(x.shape) != 4 or u.shape[0] != u.shape[1] or u.shape[2:4] != (side, side) or u.shape[5:] != x.shape[1:2]:
        raise ImportModelError(f"does not fit its inputs ({x}, {u})", where=where(node))
    return (TensorType.plain((x.shape[0], u.shape[4], *node.attrs["size"]), x.dtype),)


def _body_types(body: Graph) -> tuple[TensorType, ...]:
    return tuple(body.types[o] for o in body.outputs)


def _infer_fused(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    return _body_types(node.attrs["body"])


def _infer_fail(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    """As its node says: the types of the other branch."""
    return tuple(node.attrs["types"])


def _infer_if(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    yes, no = _body_types(node.attrs["then_branch"]), _body_types(node.attrs["else_branch"])
    if yes != no:
        show = "; ".join(", ".join(map(str, side)) for side in (yes, no))
        raise ImportModelError(f"its branches yield different types ({show}), so its shape depends on data",
                               where=where(node))
    return yes


def _infer_loop(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    body: Graph = node.attrs["body"]
    count = len(node.inputs) - 2 - node.attrs.get("captures", 0)
    _, *out = _body_types(body)
    states, scans = out[:count], out[count:]
    _check_states(node, body.inputs[2:2 + count], states, body)
    if not scans:
        return tuple(states)
    trip, cond_in, cond_out = node.inputs[0], node.inputs[1], body.outputs[0]
    always = (not cond_in or bool(params.get(cond_in, np.False_))) and (
        cond_out == body.inputs[1] or bool(body.params.get(cond_out, np.False_)))
    if trip not in params or not always:
        raise ImportModelError("the number of its iterations depends on data, and so does the shape of its scan outputs",
                               where=where(node))
    length = max(int(params[trip].reshape(())), 0)
    return (*states, *(TensorType.plain((length, *t.shape), t.dtype) for t in scans))


def _infer_scan(node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray]) -> tuple[TensorType, ...]:
    body: Graph = node.attrs["body"]
    scan_inputs = node.attrs["num_scan_inputs"]
    count = len(node.inputs) - node.attrs.get("captures", 0) - scan_inputs
    out = _body_types(body)
    _check_states(node, body.inputs[:count], out[:count], body)
    in_axes = node.attrs.get("scan_input_axes", (0,) * scan_inputs)
    out_axes = node.attrs.get("scan_output_axes", (0,) * (len(out) - count))
    lengths = {types[name].shape[axis] for name, axis in zip(node.inputs[count:count + scan_inputs], in_axes, strict=True)}
    if len(lengths) != 1:
        raise MisfitError(f"its scan inputs have different lengths: {sorted(lengths)}", where=where(node))
    length = lengths.pop()
    scans = []
    for t, axis in zip(out[count:], out_axes, strict=True):
        at = axis % (len(t.shape) + 1)
        scans.append(TensorType.plain((*t.shape[:at], length, *t.shape[at:]), t.dtype))
    return (*out[:count], *scans)


def _check_states(node: Node, names: tuple[str, ...], after: tuple[TensorType, ...] | list[TensorType], body: Graph) -> None:
    for name, t in zip(names, after, strict=True):
        if body.types[name] != t:
            raise MisfitError(f"loop state {name!r} changes from {body.types[name]} to {t}", where=where(node))


def _infer_range(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    """ONNX's rule leaves out the half-size floats, and wants numbers without dimensions, unlike its functions."""
    if any(name not in params or params[name].size != 1 for name in node.inputs):
        return _infer_onnx(node, types, params)
    start, limit, delta = (float(params[name].reshape(())) for name in node.inputs)
    if delta == 0:
        raise ImportModelError("delta is 0", where=where(node))
    return (TensorType.plain((max(math.ceil((limit - start) / delta), 0),), types[node.inputs[0]].dtype),)


def _infer_max_unpool(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    """ONNX's rule does not read output_shape."""
    if len(node.inputs) < 3 or node.inputs[2] not in params:
        return _infer_onnx(node, types, params)
    return (TensorType.plain(tuple(int(n) for n in params[node.inputs[2]]), types[node.inputs[0]].dtype),)


def _infer_einsum(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    """ONNX's rule wants an ellipsis to stand for as many dimensions in each operand. NumPy, whose einsum it is, does not."""
    equation, shapes = str(node.attrs.get("equation", "")), [types[i].shape for i in node.inputs]
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != len(shapes):
        return _infer_onnx(node, types, params)
    covered = {len(s) - len(t) + 3 for t, s in zip(terms, shapes) if "..." in t}
    if len(covered) < 2 or min(covered) < 0 or any(len(t) != len(s) for t, s in zip(terms, shapes) if "..." not in t):
        return _infer_onnx(node, types, params)
    named, result = letters(equation, shapes)
    extents: dict[str, int] = {}
    for t, s in zip(named, shapes, strict=True):
        for c, n in zip(t, s, strict=True):
            if 1 not in (n, extents.setdefault(c, n)) and extents[c] != n:
                raise MisfitError(f"does not fit its inputs: {extents[c]} and {n} in {equation!r}", where=where(node))
            extents[c] = n if extents[c] == 1 else extents[c]
    if not {*result} <= extents.keys():
        return _infer_onnx(node, types, params)
    return (TensorType.plain(tuple(extents[c] for c in result), types[node.inputs[0]].dtype),)


def _infer_stft(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    """ONNX's rule takes one-sided spectra for whole ones; its reference does not."""
    given = [*node.inputs, "", ""][:4]
    if given[1] not in params or (given[3] and given[3] not in params):
        return _infer_onnx(node, types, params)
    x = types[given[0]]
    length = int(params[given[3]].reshape(())) if given[3] else types[given[2]].shape[0] if given[2] else x.shape[1]
    frames = 1 + (x.shape[1] - length) // int(params[given[1]].reshape(()))
    if frames < 1:
        raise MisfitError(f"a frame of {length} is longer than the signal of {x.shape[1]}", where=where(node))
    bins = length // 2 + 1 if node.attrs.get("onesided", 1) else length
    return (TensorType.plain((x.shape[0], frames, bins, 2), x.dtype),)


def _infer_flat_non_zero(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    return (TensorType.plain(types[node.inputs[0]].shape, "int64"), TensorType.plain((), "int64"))


def _infer_unique_rows(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    per_row = TensorType.plain(types[node.inputs[0]].shape[:1], "int64")
    return (per_row, per_row, per_row, TensorType.plain((), "int64"))


def _infer_non_max_suppression(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    batches, classes, _ = types[node.inputs[1]].shape
    return (TensorType.plain((batches * classes * node.attrs["bound"], 3), "int64"), TensorType.plain((), "int64"))


def _infer_deform_sample(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    x, offset, groups = types[node.inputs[0]], types[node.inputs[1]], node.attrs["group"]
    kh, kw = node.attrs["kernel_shape"]
    return (TensorType.plain((x.shape[0], groups, *offset.shape[2:], kh * kw, x.shape[3] // groups), x.dtype),)


def _infer_roi_sample(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    x, cells = types[node.inputs[0]], (node.attrs.get("output_height", 1), node.attrs.get("output_width", 1))
    return (TensorType.plain((types[node.inputs[1]].shape[0], *cells, x.shape[3]), x.dtype),)


def _infer_grid_sample_last(
    node: Node, types: Mapping[str, TensorType], params: Mapping[str, np.ndarray],
) -> tuple[TensorType, ...]:
    x, grid = (types[v] for v in node.inputs)
    return (TensorType.plain((*grid.shape[:-1], x.shape[-1]), x.dtype),)


Rule = Callable[[Node, Mapping[str, TensorType], Mapping[str, np.ndarray]], tuple[TensorType, ...]]

RULES: dict[str, Rule] = {
    "BoundedNonMaxSuppression": _infer_non_max_suppression,
    "DeformSample": _infer_deform_sample,
    "Einsum": _infer_einsum,
    "GridSampleLast": _infer_grid_sample_last,
    "FlatNonZero": _infer_flat_non_zero,
    "IntegerConv": _infer_integer_conv,
    "IntegerMatMul": _infer_integer_matmul,
    "Layout": _infer_same,
    "GroupNormalization": _infer_same,          # of these two ONNX has no rule
    "MeanVarianceNormalization": _infer_same,
    "PRelu": _infer_prelu,
    "Fused": _infer_fused,
    "WinogradConv": _infer_winograd,
    "WinogradConvTranspose": _infer_winograd_transpose,
    "Fail": _infer_fail,
    "If": _infer_if,
    "Loop": _infer_loop,
    "MaxUnpool": _infer_max_unpool,
    "Range": _infer_range,
    "RoiSample": _infer_roi_sample,
    "STFT": _infer_stft,
    "Scan": _infer_scan,
    "UniqueRows": _infer_unique_rows,
}
