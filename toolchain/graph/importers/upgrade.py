"""Operators of old opsets in the form of the newest one, so that everything after the importer knows one form only.

`UPGRADES` lists per operator the opsets at which its form changed, each with the rule that turns the form before into the
form from there on; the rules run in order. `NORMALIZE` holds rules for every opset: spellings of one thing become one.
An operator whose newer opsets only added types, attributes with the old meaning as default, or optional inputs needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from onnx import TensorProto

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.compose import batch_norm_of_batch, tf_idf_vectorizer
from toolchain.graph.importers.windows import explicit_window
from toolchain.graph.infer import where
from toolchain.graph.ir import Node
from toolchain.graph.protos import ELEM_TYPE_OF


class Context(Protocol):
    """What a rule may ask of the import in progress. All types are static already; constants are known."""

    @property
    def types(self) -> Mapping[str, TensorType]: ...
    @property
    def params(self) -> Mapping[str, np.ndarray]: ...
    def constant(self, hint: str, array: np.ndarray) -> str:
        """A new constant value; gives its name."""
        ...
    def fresh(self, hint: str) -> str:
        """A value name not in use."""
        ...


Rule = Callable[[Node, Context], tuple[Node, ...]]


def upgrade(node: Node, opset: int, context: Context) -> tuple[Node, ...]:
    """`node`, written for `opset`, as nodes of the newest opset that define the same outputs.

    Raises ImportModelError for a form that has no equivalent (training).
    """
    nodes: tuple[Node, ...] = (node,)
    for since, rule in UPGRADES.get(node.op, ()):
        if opset < since:
            nodes = tuple(new for old in nodes for new in (rule(old, context) if old.op == node.op else (old,)))
    return tuple(new for old in nodes for new in (NORMALIZE[old.op](old, context) if old.op in NORMALIZE else (old,)))


def _without(attrs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in attrs.items() if k not in names}


def _pad_inputs(node: Node, count: int) -> tuple[str, ...]:
    return (*node.inputs, *("",) * (count - len(node.inputs)))


def attribute_to_input(attribute: str, at: int, dtype: str, scalar: bool = False) -> Rule:
    """Op(x) {axes=[1]}   ->   Op(x, %axes) with the constant axes = [1]

    `dtype` "" takes the dtype of the first input.
    """
    def rule(node: Node, context: Context) -> tuple[Node, ...]:
        if attribute not in node.attrs:
            return (node,)
        kind = dtype or context.types[node.inputs[0]].dtype
        value = np.asarray(node.attrs[attribute], to_numpy(kind))
        name = context.constant(f"{node.name}.{attribute}", value.reshape(()) if scalar else value.reshape(-1))
        inputs = list(_pad_inputs(node, at + 1))
        inputs[at] = name
        return (replace(node, inputs=tuple(inputs), attrs=_without(node.attrs, attribute)),)
    return rule


def _then(*rules: Rule) -> Rule:
    def rule(node: Node, context: Context) -> tuple[Node, ...]:
        nodes: tuple[Node, ...] = (node,)
        for r in rules:
            nodes = tuple(new for old in nodes for new in r(old, context))
        return nodes
    return rule


def _flatten_from_axis(node: Node, context: Context) -> tuple[Node, ...]:
    """Softmax, LogSoftmax, Hardmax before opset 13 see a matrix: all dimensions from `axis` (default 1) on are one.

        Softmax(x) {axis=1} on (N, C, H, W)   ->   Reshape to (N, C*H*W), Softmax over the last, Reshape back

    With at most one dimension from there on larger than 1 no reshape is needed.
    """
    shape = context.types[node.inputs[0]].shape
    axis = node.attrs.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    wide = [d for d in range(axis, len(shape)) if shape[d] != 1]
    if len(wide) <= 1 and axis < len(shape):
        return (replace(node, attrs={**node.attrs, "axis": wide[0] if wide else axis}),)
    rows, row = math.prod(shape[:axis]), math.prod(shape[axis:])
    flat = context.constant(f"{node.name}.flat", np.asarray([rows, row], "int64"))
    back = context.constant(f"{node.name}.shape", np.asarray(shape, "int64"))
    before, after = context.fresh(f"{node.output}.flat"), context.fresh(f"{node.output}.rows")
    return (
        Node("Reshape", (node.inputs[0], flat), (before,), {}, f"{node.name}.flatten", node.sources),
        replace(node, inputs=(before,), outputs=(after,), attrs={**node.attrs, "axis": 1}),
        Node("Reshape", (after, back), node.outputs, {}, f"{node.name}.unflatten", node.sources),
    )


def _split_18(node: Node, context: Context) -> tuple[Node, ...]:
    """Split(x)   ->   Split(x) {num_outputs=k}: the equal parts that were implied"""
    if len(node.inputs) > 1 and node.inputs[1]:
        return (node,)
    axis = node.attrs.get("axis", 0)
    if context.types[node.inputs[0]].shape[axis] % len(node.outputs):
        raise ImportModelError(f"cannot split {context.types[node.inputs[0]]} in {len(node.outputs)} equal parts",
                               where=where(node))
    return (replace(node, attrs={**node.attrs, "num_outputs": len(node.outputs)}),)


def _resize_11(node: Node, context: Context) -> tuple[Node, ...]:
    """Resize(x, scales)   ->   Resize(x, _, scales) {asymmetric, floor}: what opset 10 meant"""
    inputs = (node.inputs[0], "", *node.inputs[1:])
    return (replace(node, inputs=inputs, attrs={
        **node.attrs, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),)


def _upsample(node: Node, context: Context) -> tuple[Node, ...]:
    """Upsample(x, scales)   ->   Resize(x, _, scales) {asymmetric, floor}"""
    return _resize_11(replace(node, op="Resize"), context)


def _batch_norm_9(node: Node, context: Context) -> tuple[Node, ...]:
    if not node.attrs.get("spatial", 1):
        raise ImportModelError("spatial=0 (one factor per activation) is not supported", where=where(node))
    return (replace(node, attrs=_without(node.attrs, "spatial")),)


def _batch_norm_14(node: Node, context: Context) -> tuple[Node, ...]:
    if any(node.outputs[1:]):
        raise ImportModelError("computes batch statistics, which only training needs", where=where(node),
                               fix="export the model for inference")
    return (replace(node, outputs=node.outputs[:1]),)


def _group_norm_21(node: Node, context: Context) -> tuple[Node, ...]:
    """scale and bias of (groups,) -> of (C,): each repeated for the channels of its group"""
    channels, groups = context.types[node.inputs[0]].shape[1], node.attrs["num_groups"]
    made: list[Node] = []
    names = [node.inputs[0]]
    for value in node.inputs[1:]:
        steps = (("Unsqueeze", np.asarray([1], "int64")), ("Expand", np.asarray([groups, channels // groups], "int64")),
                 ("Reshape", np.asarray([channels], "int64")))
        for op, argument in steps:
            out = context.fresh(f"{value}.{op}")
            constant = context.constant(f"{out}.argument", argument)
            made.append(Node(op, (value, constant), (out,), {}, f"{node.name}.{out}", node.sources))
            value = out
        names.append(value)
    return (*made, replace(node, inputs=tuple(names)))


def _grid_sample_20(node: Node, context: Context) -> tuple[Node, ...]:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(node.attrs.get("mode", "bilinear"), node.attrs.get("mode"))
    return (replace(node, attrs={**node.attrs, "mode": mode}),)


def _roi_align_16(node: Node, context: Context) -> tuple[Node, ...]:
    return (replace(node, attrs={**node.attrs, "coordinate_transformation_mode": "output_half_pixel"}),)


def _dft_20(node: Node, context: Context) -> tuple[Node, ...]:
    axis = replace(node, attrs={**node.attrs, "axis": node.attrs.get("axis", 1)})
    return attribute_to_input("axis", 2, "int64", scalar=True)(axis, context)


def _pad_11(node: Node, context: Context) -> tuple[Node, ...]:
    """Pad(x) {pads, value}   ->   Pad(x, %pads, %value)"""
    valued = replace(node, attrs={"value": 0.0, **node.attrs})
    return _then(attribute_to_input("pads", 1, "int64"), attribute_to_input("value", 2, "", scalar=True))(valued, context)


def _broadcast_7(node: Node, context: Context) -> tuple[Node, ...]:
    """Add(a, b) {broadcast=1, axis=1} on (2, 3, 4), (3)   ->   Add(a, Reshape(b, (3, 1))): b stood at dimension `axis`

    Without `broadcast` the shapes were equal, and without `axis` b stood at the end, as in NumPy.
    """
    attrs = _without(node.attrs, "broadcast", "axis", "consumed_inputs")
    if not node.attrs.get("broadcast", 0) or "axis" not in node.attrs:
        return (replace(node, attrs=attrs),)
    rank, shape = len(context.types[node.inputs[0]].shape), context.types[node.inputs[1]].shape
    axis = node.attrs["axis"] % max(rank, 1)
    ones = (1,) * (rank - axis - len(shape))
    if not ones:
        return (replace(node, attrs=attrs),)
    aligned = context.constant(f"{node.name}.shape", np.asarray([*shape, *ones], "int64"))
    placed = context.fresh(f"{node.inputs[1]}.placed")
    return (
        Node("Reshape", (node.inputs[1], aligned), (placed,), {}, f"{node.name}.place", node.sources),
        replace(node, inputs=(node.inputs[0], placed), attrs=attrs),
    )


def _prelu_7(node: Node, context: Context) -> tuple[Node, ...]:
    """PRelu(x, slope) with one slope per channel   ->   the slope as (C, 1, ..., 1), as NumPy broadcasts"""
    shape, slope = context.types[node.inputs[0]].shape, context.types[node.inputs[1]].shape
    plain_attrs = replace(node, attrs=_without(node.attrs, "consumed_inputs"))
    if len(slope) != 1 or slope[0] == 1 or len(shape) < 3:
        return (plain_attrs,)
    return _broadcast_7(replace(node, attrs={"broadcast": 1, "axis": 1}), context)


def _dropping(*names: str) -> Rule:
    """Attributes that said something about memory or training only."""
    return lambda node, context: (replace(node, attrs=_without(node.attrs, *names)),)


def _concat_4(node: Node, context: Context) -> tuple[Node, ...]:
    return (replace(node, attrs={"axis": 1, **node.attrs}),)


def _pad_2(node: Node, context: Context) -> tuple[Node, ...]:
    return (replace(node, attrs={**_without(node.attrs, "paddings"), "pads": node.attrs["paddings"]}),)


def _cast_6(node: Node, context: Context) -> tuple[Node, ...]:
    """Cast {to="FLOAT"}   ->   Cast {to=1}"""
    code = TensorProto.DataType.Value(node.attrs["to"]) if node.attrs["to"] in TensorProto.DataType.keys() else 0  # noqa: SIM118
    return (replace(node, attrs={**node.attrs, "to": code}),)


def _tile_6(node: Node, context: Context) -> tuple[Node, ...]:
    """Tile(x, tiles, axis)   ->   Tile(x, repeats)"""
    tiles, axis = (context.params.get(i) for i in node.inputs[1:3])
    if tiles is None or axis is None:
        raise ImportModelError("tiles and axis must be constant", where=where(node))
    repeats = np.ones(len(context.types[node.inputs[0]].shape), "int64")
    repeats[int(axis.reshape(-1)[0])] = int(tiles.reshape(-1)[0])
    return (replace(node, inputs=(node.inputs[0], context.constant(f"{node.name}.repeats", repeats))),)


def _reshape_5(node: Node, context: Context) -> tuple[Node, ...]:
    return attribute_to_input("shape", 1, "int64")(_dropping("consumed_inputs")(node, context)[0], context)


def _batch_norm_7(node: Node, context: Context) -> tuple[Node, ...]:
    if not node.attrs.get("is_test", 0) and any(node.outputs[1:]):
        raise ImportModelError("computes batch statistics, which only training needs", where=where(node),
                               fix="export the model for inference")
    return (replace(node, attrs=_without(node.attrs, "is_test", "consumed_inputs"), outputs=node.outputs[:1]),)


def _rename(op: str) -> Rule:
    return lambda node, context: (replace(node, op=op),)


_AXES = attribute_to_input("axes", 1, "int64")

_CONSUMED = _dropping("consumed_inputs")

UPGRADES: dict[str, tuple[tuple[int, Rule], ...]] = {
    **dict.fromkeys((
        "Abs", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "InstanceNormalization", "LeakyRelu", "Log", "Max", "Mean",
        "Min", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sum", "Tanh"), ((6, _CONSUMED),)),
    **dict.fromkeys((
        "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"), ((7, _broadcast_7),)),
    "Cast": ((6, _cast_6),),
    "Concat": ((4, _concat_4),),
    "Gemm": ((7, _dropping("broadcast")),),
    "PRelu": ((7, _prelu_7),),
    "Reshape": ((5, _reshape_5),),
    "Tile": ((6, _tile_6),),
    "BatchNormalization": ((7, _batch_norm_7), (9, _batch_norm_9), (14, _batch_norm_14)),
    "Clip": ((6, _CONSUMED), (11, _then(
        attribute_to_input("min", 1, "", scalar=True), attribute_to_input("max", 2, "", scalar=True)))),
    "DFT": ((20, _dft_20),),
    "Dropout": ((7, _dropping("is_test", "consumed_inputs")), (12, _dropping("ratio"))),
    "GridSample": ((20, _grid_sample_20),),
    "GroupNormalization": ((21, _group_norm_21),),
    "Hardmax": ((13, _flatten_from_axis),),
    "LogSoftmax": ((13, _flatten_from_axis),),
    "Pad": ((2, _pad_2), (11, _pad_11),),
    "ReduceL1": ((18, _AXES),),
    "ReduceL2": ((18, _AXES),),
    "ReduceLogSum": ((18, _AXES),),
    "ReduceLogSumExp": ((18, _AXES),),
    "ReduceMax": ((18, _AXES),),
    "ReduceMean": ((18, _AXES),),
    "ReduceMin": ((18, _AXES),),
    "ReduceProd": ((18, _AXES),),
    "ReduceSum": ((13, _AXES),),
    "ReduceSumSquare": ((18, _AXES),),
    "Resize": ((11, _resize_11),),
    "RoiAlign": ((16, _roi_align_16),),
    "Slice": ((10, _then(attribute_to_input("starts", 1, "int64"), attribute_to_input("ends", 2, "int64"),
                         attribute_to_input("axes", 3, "int64"))),),
    "Softmax": ((13, _flatten_from_axis),),
    "Split": ((13, attribute_to_input("split", 1, "int64")), (18, _split_18)),
    "Squeeze": ((13, _AXES),),
    "TopK": ((10, attribute_to_input("k", 1, "int64")),),
    "Unsqueeze": ((13, _AXES),),
    "Upsample": ((9, attribute_to_input("scales", 1, "float32")),),
}


def _dropout(node: Node, context: Context) -> tuple[Node, ...]:
    """Dropout(x, ratio, training_mode=false) -> x, mask   becomes   x, and a mask of true"""
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    ratio = node.inputs[1] if len(node.inputs) > 1 else ""
    inactive = any(name in context.params and not context.params[name].any() for name in (training, ratio) if name)
    if training and not inactive:
        raise ImportModelError("drops values at random, which only training needs", where=where(node),
                               fix="export the model for inference")
    nodes = [Node("Identity", node.inputs[:1], node.outputs[:1], {}, node.name, node.sources)]
    if len(node.outputs) > 1 and node.outputs[1]:
        shape = context.constant(f"{node.name}.shape", np.asarray(context.types[node.inputs[0]].shape, "int64"))
        nodes.append(Node("ConstantOfShape", (shape,), (node.outputs[1],), {"value": np.ones(1, "bool")},
                          f"{node.name}.mask", node.sources))
    return tuple(nodes)


def _drop_empty_inputs(node: Node, context: Context) -> tuple[Node, ...]:
    """Resize(x, roi=[], scales=[], sizes)   ->   Resize(x, _, _, sizes): opset 11 had to give every input"""
    def given(name: str) -> str:
        return "" if name in context.params and not context.params[name].size else name
    inputs = (node.inputs[0], *map(given, node.inputs[1:]))
    if node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize" and len(inputs) > 1:
        inputs = (inputs[0], "", *inputs[2:])           # only cropping reads roi
    while not inputs[-1]:
        inputs = inputs[:-1]
    return (replace(node, inputs=inputs),)


def _cast_like(node: Node, context: Context) -> tuple[Node, ...]:
    """CastLike(x, y)   ->   Cast(x) {to=the type of y}"""
    to = ELEM_TYPE_OF[context.types[node.inputs[1]].dtype]
    return (replace(node, op="Cast", inputs=node.inputs[:1], attrs={**node.attrs, "to": to}),)


NORMALIZE: dict[str, Rule] = {
    "AveragePool": explicit_window,
    "BatchNormalization": batch_norm_of_batch,
    "CastLike": _cast_like,
    "Conv": explicit_window,
    "ConvInteger": explicit_window,
    "ConvTranspose": explicit_window,
    "Dropout": _dropout,
    "LpPool": explicit_window,
    "MaxPool": explicit_window,
    "QLinearConv": explicit_window,
    "Resize": _drop_empty_inputs,
    "Scatter": _rename("ScatterElements"),
    "TfIdfVectorizer": tf_idf_vectorizer,
    "Upsample": _upsample,
}

BECOMES: dict[str, str] = {"CastLike": "Cast", "Upsample": "Resize", "Scatter": "ScatterElements"}
"""Operators that stand under another name afterwards."""

VANISHES = frozenset({"Constant", "Dropout", "Identity", "Shape", "Size", "TfIdfVectorizer"})
"""Operators the importer resolves itself: no kernel is ever asked for them."""
