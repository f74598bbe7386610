"""Each form an operator had since opset 7, against ONNX Runtime, which reads the old form itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import assert_like_onnxruntime, imported, make_model, random_inputs

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.upgrade import UPGRADES
from toolchain.graph.interpret import interpret
from toolchain.graph.protos import OPSET, schema

NEWEST_ORT = 22         # the opset up to which ONNX Runtime implements everything used here
OPSETS = (7, 9, 11, 13, 18, NEWEST_ORT)
i64 = np.int64


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, i64)


def _single(
    op: str, shape: tuple[int, ...], opset: int, since: int, name: str, array: np.ndarray, at: int = 1, **attrs: Any,
) -> onnx.ModelProto:
    """One node whose argument `name` is an attribute before opset `since` and input number `at` from there on."""
    if opset < since:
        plain = array.tolist() if array.ndim else array.item()
        node = helper.make_node(op, ["x"], ["y"], **{name: plain}, **attrs)
        return make_model([node], {"x": shape}, ["y"], opset=opset)
    node = helper.make_node(op, ["x", *[""] * (at - 1), "c"], ["y"], **attrs)
    return make_model([node], {"x": shape}, ["y"], {"c": array}, opset=opset)


def _reduce(op: str, opset: int) -> onnx.ModelProto:
    return _single(op, (2, 3, 4), opset, 13 if op == "ReduceSum" else 18, "axes", ints(1), keepdims=0)


def _slice(opset: int) -> onnx.ModelProto:
    if opset < 10:
        node = helper.make_node("Slice", ["x"], ["y"], starts=[1, -3], ends=[100, -1], axes=[0, 2])
        return make_model([node], {"x": (3, 2, 5)}, ["y"], opset=opset)
    node = helper.make_node("Slice", ["x", "s", "e", "a"], ["y"])
    return make_model([node], {"x": (3, 2, 5)}, ["y"], {"s": ints(1, -3), "e": ints(100, -1), "a": ints(0, 2)}, opset=opset)


def _clip(opset: int) -> onnx.ModelProto:
    if opset < 11:
        return make_model([helper.make_node("Clip", ["x"], ["y"], min=-0.5, max=0.25)], {"x": (40,)}, ["y"], opset=opset)
    bounds = {"lo": np.float32(-0.5), "hi": np.float32(0.25)}
    return make_model([helper.make_node("Clip", ["x", "lo", "hi"], ["y"])], {"x": (40,)}, ["y"], bounds, opset=opset)


def _pad(opset: int) -> onnx.ModelProto:
    if opset < 11:
        node = helper.make_node("Pad", ["x"], ["y"], pads=[0, 1, 2, 0], value=3.0)
        return make_model([node], {"x": (2, 3)}, ["y"], opset=opset)
    node = helper.make_node("Pad", ["x", "p", "v"], ["y"])
    return make_model([node], {"x": (2, 3)}, ["y"], {"p": ints(0, 1, 2, 0), "v": np.float32(3)}, opset=opset)


def _split(opset: int, parts: list[int] | None) -> onnx.ModelProto:
    attrs: dict[str, Any] = {"axis": 1}
    inputs, params = ["x"], {}
    if parts and opset < 13:
        attrs["split"] = parts
    elif parts:
        inputs, params = ["x", "s"], {"s": ints(*parts)}
    elif opset >= 18:
        attrs["num_outputs"] = 2
    node = helper.make_node("Split", inputs, ["y", "z"], **attrs)
    return make_model([node], {"x": (2, 6)}, ["y", "z"], params, opset=opset)


def _topk(opset: int) -> onnx.ModelProto:
    model = _single("TopK", (3, 8), opset, 10, "k", np.asarray(2, i64) if opset < 10 else ints(2))
    model.graph.node[0].output.append("i")
    model.graph.output.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, None))
    return model


def _dropout(opset: int) -> onnx.ModelProto:
    if opset < 12:
        nodes = [helper.make_node("Dropout", ["x"], ["d"], ratio=0.3)]
    else:
        nodes = [helper.make_node("Dropout", ["x", "r"], ["d"])]
    nodes.append(helper.make_node("Relu", ["d"], ["y"]))
    return make_model(nodes, {"x": (3, 4)}, ["y"], {"r": np.float32(0.3)} if opset >= 12 else {}, opset=opset)


def _batch_norm(opset: int) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    params = {n: rng.uniform(0.5, 1.5, 3).astype("float32") for n in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=1e-3)
    return make_model([node], {"x": (2, 3, 4, 4)}, ["y"], params, opset=opset)


def _upsample(opset: int, mode: str) -> onnx.ModelProto:
    scales = np.asarray([1, 1, 2, 3], "float32")
    if opset < 10:
        return _single("Upsample", (1, 2, 3, 3), opset, 9, "scales", scales, mode=mode)
    at = 1 if opset == 10 else 2
    attrs = {} if opset == 10 else {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    node = helper.make_node("Resize", ["x", *[""] * (at - 1), "s"], ["y"], mode=mode, **attrs)
    params = {"s": scales}
    if 11 <= opset < 13:
        node.input[1], params["roi"] = "roi", np.zeros(0, "float32")
    return make_model([node], {"x": (1, 2, 3, 3)}, ["y"], params, opset=opset)


def _softmax(op: str, opset: int, shape: tuple[int, ...], **attrs: int) -> onnx.ModelProto:
    return make_model([helper.make_node(op, ["x"], ["y"], **attrs)], {"x": shape}, ["y"], opset=opset)


CASES = {
    "squeeze": lambda o: _single("Squeeze", (1, 3, 1, 2), o, 13, "axes", ints(0, 2)),
    "unsqueeze": lambda o: _single("Unsqueeze", (3, 2), o, 13, "axes", ints(0, 3)),
    **{f"reduce_{op}": lambda o, op=op: _reduce(op, o) for op in (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSumExp")},
    "slice": _slice,
    "clip": _clip,
    "pad": _pad,
    "split_parts": lambda o: _split(o, [2, 4]),
    "split_equal": lambda o: _split(o, None),
    "topk": _topk,
    "dropout": _dropout,
    "batch_norm": _batch_norm,
    "upsample_nearest": lambda o: _upsample(o, "nearest"),
    "upsample_linear": lambda o: _upsample(o, "linear"),
    "softmax_default": lambda o: _softmax("Softmax", o, (2, 3, 4)),
    "softmax_axis1": lambda o: _softmax("Softmax", o, (2, 3, 4, 5), axis=1),
    "softmax_last": lambda o: _softmax("Softmax", o, (2, 3, 4), axis=2),
    "softmax_flat_ones": lambda o: _softmax("Softmax", o, (2, 5, 1, 1), axis=1),
    "log_softmax_axis0": lambda o: _softmax("LogSoftmax", o, (2, 3), axis=0),
    "hardmax": lambda o: _softmax("Hardmax", o, (2, 3, 4), axis=1),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES)
def test_old_form_means_the_same(case: str, opset: int):
    model = CASES[case](opset)
    assert_like_onnxruntime(model, imported(model))


@pytest.mark.parametrize("case", CASES)
def test_newest_opset_is_read_as_it_is(case: str):
    model = CASES[case](OPSET)
    graph = imported(model)
    oldest_same = CASES[case](NEWEST_ORT)
    x = random_inputs(graph)
    ours, older = interpret(graph, x), interpret(imported(oldest_same), x)
    for name in older:
        np.testing.assert_array_equal(ours[name], older[name])


@pytest.mark.parametrize("op", sorted(UPGRADES))
def test_rules_stand_at_real_changes(op: str):
    """Each rule's opset is one at which ONNX revised the operator, or removed it, and the rules are in order."""
    opsets = [since for since, _ in UPGRADES[op]]
    assert opsets == sorted(set(opsets))
    for since in opsets:
        now, before = schema(op, since), schema(op, since - 1)
        assert before is not None and now is not None
        assert now.since_version == since > before.since_version


def test_group_norm_of_opset_18_repeats_the_factor_of_a_group():
    rng = np.random.default_rng(2)
    params = {n: rng.standard_normal(2).astype("float32") for n in ("s", "b")}
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    graph = imported(make_model([node], {"x": (1, 4, 3, 3)}, ["y"], params, opset=18))
    x = random_inputs(graph)["x"]
    groups = x.reshape(1, 2, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    want = normal * params["s"].reshape(1, 2, 1) + params["b"].reshape(1, 2, 1)
    np.testing.assert_allclose(interpret(graph, {"x": x})["y"], want.reshape(x.shape), rtol=1e-5, atol=1e-6)
    assert graph.nodes[-1].op == "GroupNormalization" and graph.types[graph.nodes[-1].inputs[1]].shape == (4,)


def test_training_forms_are_refused():
    params = {n: np.ones(3, "float32") for n in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y", "m2", "v2"])
    with pytest.raises(ImportModelError, match="only training needs"):
        imported(make_model([node], {"x": (2, 3, 4, 4)}, ["y"], params, opset=9))
    drop = helper.make_node("Dropout", ["x", "r", "t"], ["y"])
    params = {"r": np.float32(0.5), "t": np.asarray(True)}
    with pytest.raises(ImportModelError, match="drops values at random"):
        imported(make_model([drop], {"x": (2, 3)}, ["y"], params, opset=13))


def test_dropout_mask_is_true():
    node = helper.make_node("Dropout", ["x"], ["y", "m"])
    graph = imported(make_model([node], {"x": (2, 3)}, ["y", "m"], dtypes={"m": "bool"}, opset=13))
    made = interpret(graph, random_inputs(graph))
    assert made["m"].dtype == bool and made["m"].all()


def _window(op: str, opset: int, mode: str, size: int, stride: int, **attrs: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    inputs, params = ["x"], {}
    if op.startswith("Conv"):
        inputs, params = ["x", "w"], {"w": rng.standard_normal((2, 2, 3, 2)).astype("float32")}
    else:
        attrs["kernel_shape"] = [3, 2]
    node = helper.make_node(op, inputs, ["y"], auto_pad=mode, strides=[stride, stride], **attrs)
    return make_model([node], {"x": (1, 2, size, size)}, ["y"], params, opset=opset)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op, size, stride", [
    *((op, size, stride) for op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool") for size, stride in ((7, 1), (7, 2))),
    *((op, 8, 3) for op in ("Conv", "MaxPool", "AveragePool"))])
def test_auto_pad_becomes_pads(op: str, mode: str, size: int, stride: int):
    model = _window(op, 11, mode, size, stride)
    graph = imported(model)
    assert "auto_pad" not in graph.nodes[0].attrs and len(graph.nodes[0].attrs["pads"]) == 4
    assert_like_onnxruntime(model, graph, rtol=1e-4, atol=1e-5)


def test_same_transposed_is_as_large_as_its_stride_says():
    """Where the windows do not reach: ONNX says input * stride, ONNX Runtime yields one column less."""
    graph = imported(_window("ConvTranspose", 11, "SAME_UPPER", 8, 3))
    assert graph.types["y"].shape == (1, 2, 24, 24)
    assert not interpret(graph, random_inputs(graph))["y"][..., 23].any()


def test_output_shape_becomes_pads():
    w = np.random.default_rng(4).standard_normal((2, 3, 3, 3)).astype("float32")
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[9, 10])
    model = make_model([node], {"x": (1, 2, 5, 5)}, ["y"], {"w": w})
    graph = imported(model)
    assert graph.types["y"].shape == (1, 3, 9, 10) and "output_shape" not in graph.nodes[0].attrs
    assert_like_onnxruntime(model, graph, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attrs", [
    {"ceil_mode": 1}, {"ceil_mode": 1, "pads": [1, 1, 1, 1]}, {"count_include_pad": 1, "pads": [1, 1, 0, 1]},
    {"count_include_pad": 1, "pads": [1, 1, 1, 1], "ceil_mode": 1}, {"dilations": [2, 1]}])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_attributes(op: str, attrs: dict[str, Any]):
    if op == "MaxPool" and "count_include_pad" in attrs:
        attrs = {k: v for k, v in attrs.items() if k != "count_include_pad"}
    node = helper.make_node(op, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], **attrs)
    model = make_model([node], {"x": (1, 3, 8, 9)}, ["y"], opset=19)
    assert_like_onnxruntime(model, imported(model))


@pytest.mark.parametrize("opset, fix", [(0, "export the model again"), (OPSET + 1, "install a newer onnx")])
def test_opsets_outside_are_refused(opset: int, fix: str):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": (2,)}, ["y"], opset=7)
    model.opset_import[0].version = opset
    with pytest.raises(ImportModelError, match=fix):
        imported(model)
