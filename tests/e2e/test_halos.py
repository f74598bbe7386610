"""Operators whose code knows no halos, before and behind convolutions that wish for one around plain images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import toolchain

node = helper.make_node
BARE = {
    "pad": node("Pad", ["x", "ends"], ["a"], "pad", mode="reflect"),
    "cumsum": node("CumSum", ["x", "axis"], ["a"], "cumsum"),
    "scatter": node("ScatterND", ["x", "places", "updates"], ["a"], "scatter", reduction="mul"),
    "topk": node("TopK", ["x", "k"], ["a", "unused"], "topk", axis=-1),
}


def network(bare: onnx.NodeProto, *, before: bool) -> onnx.ModelProto:
    """bare(x) -> two padded convolutions; or Relu(x) -> the same, and bare of it."""
    rng = np.random.default_rng(0)
    constants = {
        "ends": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "axis": np.array(3), "k": np.array([12]),
        "places": np.array([[0, 1], [0, 0]]), "updates": rng.standard_normal((2, 12, 12)).astype(np.float32),
        "w": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), "v": rng.standard_normal((4, 2, 3, 3)).astype(np.float32),
    }
    used = {*bare.input, "w", "v"}
    first = [bare] if before else [node("Relu", ["input"], ["x"]), bare]
    source = "a" if before else "x"
    nodes = [*first, node("Conv", [source, "w"], ["y"], pads=[1, 1, 1, 1]),
             node("Conv", [source, "v"], ["z"], pads=[1, 1, 1, 1], strides=[2, 2])]
    outputs = ["y", "z"] if before else ["y", "z", "a"]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x" if before else "input", TensorProto.FLOAT, [1, 2, 12, 12])],
        [value(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items() if n in used])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", BARE)
def test_no_halo_where_code_knows_none(name: str, before: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = network(BARE[name], before=before)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {i.name: np.random.default_rng(1).standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    with toolchain.compile(model, threads=1) as module:
        ours = module.run(inputs)
    for output, theirs in zip(names, session.run(names, inputs), strict=True):
        np.testing.assert_allclose(ours[output], theirs, rtol=1e-4, atol=1e-4, err_msg=output)
