"""Networks with If, Loop and Scan as artifacts: built, saved, loaded from the folder and run by the C runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import toolchain

node = helper.make_node
Value = tuple[str, int, Sequence[int]]
FLOAT, INT64, BOOL = 1, 7, 9


def graph(name: str, nodes: Sequence[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value],
          params: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    made = [[helper.make_tensor_value_info(n, t, s) for n, t, s in values] for values in (inputs, outputs)]
    return helper.make_graph(list(nodes), name, *made, [numpy_helper.from_array(a, n) for n, a in (params or {}).items()])


def model(main: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def branches() -> onnx.ModelProto:
    """y = Relu(x @ w) where the mean of x is positive, else x @ w + 1; the branches read x @ w from outside."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"]), node("ReduceMean", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "nil"], ["c"]),
        node("If", ["c"], ["y"], then_branch=graph("yes", [node("Relu", ["p"], ["t"])], [], [("t", FLOAT, [4, 6])]),
             else_branch=graph("no", [node("Add", ["p", "one"], ["e"])], [], [("e", FLOAT, [4, 6])]))]
    params = {"w": np.linspace(-1, 1, 30, dtype="float32").reshape(5, 6), "nil": np.float32(0), "one": np.float32(1)}
    return model(graph("branches", nodes, [("x", FLOAT, [4, 5])], [("y", FLOAT, [4, 6])], params))


def newton() -> onnx.ModelProto:
    """A square root by Newton's steps until it is near enough, at most `n` of them: carried states, a condition, a count."""
    body = graph("step", [
        node("Div", ["x", "r"], ["q"]), node("Add", ["r", "q"], ["s"]), node("Mul", ["s", "half"], ["r2"]),
        node("Sub", ["r2", "r"], ["d"]), node("Abs", ["d"], ["a"]), node("ReduceMax", ["a"], ["worst"], keepdims=0),
        node("Greater", ["worst", "near"], ["more"]), node("Add", ["k", "one"], ["k2"])],
        [("i", INT64, []), ("go", BOOL, []), ("r", FLOAT, [7]), ("k", INT64, [])],
        [("more", BOOL, []), ("r2", FLOAT, [7]), ("k2", INT64, [])])
    params = {"half": np.float32(0.5), "near": np.float32(1e-3), "one": np.int64(1), "yes": np.bool_(True),
              "k0": np.int64(0)}
    nodes = [node("Loop", ["n", "yes", "x", "k0"], ["root", "steps"], body=body)]
    outputs = [("root", FLOAT, [7]), ("steps", INT64, [])]
    return model(graph("newton", nodes, [("x", FLOAT, [7]), ("n", INT64, [])], outputs, params))


def decay() -> onnx.ModelProto:
    """A recurrence over rows, once forward and once from the end: h' = tanh(h @ u + x[t])."""
    body = graph("cell", [node("MatMul", ["h", "u"], ["p"]), node("Add", ["p", "x_t"], ["s"]), node("Tanh", ["s"], ["h2"]),
                          node("Mul", ["h2", "two"], ["y_t"])],
                 [("h", FLOAT, [1, 5]), ("x_t", FLOAT, [1, 5])], [("h2", FLOAT, [1, 5]), ("y_t", FLOAT, [1, 5])])
    nodes = [node("Scan", ["h0", "x"], ["last", "all"], body=body, num_scan_inputs=1),
             node("Scan", ["last", "x"], ["first", "back"], body=body, num_scan_inputs=1, scan_input_directions=[1],
                  scan_output_directions=[1])]
    params = {"u": np.linspace(-0.4, 0.5, 25, dtype="float32").reshape(5, 5), "two": np.float32(2),
              "h0": np.zeros((1, 5), "float32")}
    outputs = [("last", FLOAT, [1, 5]), ("all", FLOAT, [9, 1, 5]), ("first", FLOAT, [1, 5]), ("back", FLOAT, [9, 1, 5])]
    return model(graph("decay", nodes, [("x", FLOAT, [9, 1, 5])], outputs, params))


def given(name: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    match name:
        case "branches":
            return {"x": (rng.standard_normal((4, 5)) + (0.5 if seed % 2 else -0.5)).astype("float32")}
        case "newton":
            return {"x": rng.uniform(0.5, 9, 7).astype("float32"), "n": np.array([0, 3, 50][seed % 3], "int64")}
    return {"x": rng.standard_normal((9, 1, 5)).astype("float32")}


@pytest.mark.parametrize("made", [branches(), newton(), decay()], ids=lambda m: m.graph.name)
def test_artifact(made: onnx.ModelProto, tmp_path: Path):
    onnx.checker.check_model(made)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    with toolchain.compile(made, threads=1) as module:
        module.save(tmp_path / "copy")
        kinds = {type(op).__name__ for op in module.buckets[0].ops}
    assert kinds & {"If", "Loop", "Repeat"}
    for threads in (1, 2):
        with toolchain.load(tmp_path / "copy", threads=threads) as module:
            for seed in range(6):
                inputs = given(made.graph.name, seed)
                outputs = module.run(inputs)
                for output, want in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                    got = outputs[output.name]
                    assert (got.shape, got.dtype) == (want.shape, want.dtype)
                    # sums of five float32 and a tanh, carried nine rounds
                    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=f"{output.name}, seed {seed}")
            assert {t.kind for t in module.profile(given(made.graph.name, 1), 2)} >= {"call"}


def test_kernels_of_a_detector_end_in_boxes(tmp_path: Path):
    """Boxes and scores of a small convolution, NonMaxSuppression, and rows (box, score) of what is left: sizes as in ORT."""
    nodes = [
        node("Conv", ["x", "w"], ["f"], pads=[1, 1, 1, 1]), node("Reshape", ["f", "cells"], ["g"]),
        node("Transpose", ["g"], ["t"], perm=[0, 2, 1]), node("Slice", ["t", "nil", "four", "axis"], ["raw"]),
        node("Abs", ["raw"], ["boxes"]), node("Slice", ["g", "four", "six", "row"], ["s"]),
        node("Sigmoid", ["s"], ["scores"]),
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["sel"]),
        node("Slice", ["sel", "two", "three", "row"], ["which"]), node("Squeeze", ["which", "row"], ["cell"]),
        node("Squeeze", ["boxes", "nil"], ["all"]), node("Gather", ["all", "cell"], ["box"]),
        node("GatherND", ["scores", "sel"], ["score"]), node("Unsqueeze", ["score", "row"], ["column"]),
        node("Concat", ["box", "column"], ["found"], axis=1)]
    rng = np.random.default_rng(1)
    params = {"w": rng.standard_normal((6, 3, 3, 3)).astype("float32"), "cells": np.array([1, 6, 64]), "nil": np.array([0]),
              "four": np.array([4]), "axis": np.array([2]), "row": np.array([1]), "six": np.array([6]), "two": np.array([2]),
              "three": np.array([3]), "most": np.array([20]), "iou": np.array([0.3], "float32"),
              "least": np.array([0.6], "float32")}
    outputs = [("found", FLOAT, ["n", 5]), ("sel", INT64, ["n", 3])]
    made = model(graph("detector", nodes, [("x", FLOAT, [1, 3, 8, 8])], outputs, params))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    with toolchain.compile(made, threads=2) as module:
        assert module.outputs[0].shape == (40, 5)
        for seed, size in ((0, 1), (1, 1), (2, 0)):
            x = (size * np.random.default_rng(seed).standard_normal((1, 3, 8, 8))).astype("float32")
            outputs = module.run({"x": x})
            for output, want in zip(session.get_outputs(), session.run(None, {"x": x}), strict=True):
                # a convolution over 27 float32; which boxes are kept is the same
                np.testing.assert_allclose(outputs[output.name], want, rtol=1e-4, atol=1e-5)
