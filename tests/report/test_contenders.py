"""The rivals run a small real model in their own processes, with the shapes bound that the model leaves open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import toolchain
from toolchain.core.errors import MissingToolError, UsageError
from toolchain.report.contenders import (
    BASELINES,
    Entry,
    baseline_entries,
    is_installed,
    missing_baselines,
    resolve,
    with_static_shapes,
)
from toolchain.report.measure import measure
from toolchain.tasks.contender import artifact_entry


def save_model(path: Path, shape: list[object]) -> Path:
    """y = relu(x) @ w + 1, z = -x."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Add", ["m", "one"], ["y"]), helper.make_node("Neg", ["x"], ["z"]),
    ]
    params = [
        helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1, 2, 3, 4, 5, 6]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", None]) for n in "yz"]
    graph = helper.make_graph(nodes, "small", [x], outputs, params)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_rival_measures_and_computes(name: str, tmp_path: Path) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    model = save_model(tmp_path / "small.onnx", ["rows", "?"])
    x = np.array([[1, -1, 2], [0, 3, -5]], np.float32)
    expected = {"y": np.maximum(x, 0) @ np.array([[1, 2], [3, 4], [5, 6]], np.float32) + 1, "z": -x}
    facts = measure(baseline_entries([name], model), {"x": x}, threads=1, rounds=2, burst_s=0.02, reference=expected)
    (rival,) = facts.contenders
    assert rival.error == ""
    assert {o.output: o.passed for o in rival.outputs} == {"y": True, "z": True}
    assert rival.version.startswith(tuple("0123456789")) and rival.config["threads"] == "1"
    assert len(rival.bursts_us) == 2 and rival.load_ms > 0


def test_a_broken_model_is_the_rivals_error(tmp_path: Path) -> None:
    if not is_installed("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    model = save_model(tmp_path / "small.onnx", [2, 3])
    broken = onnx.load(model)
    broken.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(broken, model)
    facts = measure(baseline_entries(["onnxruntime"], model), {"x": np.zeros((2, 3), np.float32)}, threads=1, rounds=1)
    assert "NoSuchOperator" in facts.contenders[0].error


def test_open_shapes_are_written_into_a_copy(tmp_path: Path) -> None:
    model = save_model(tmp_path / "small.onnx", ["rows", "?"])
    copy = with_static_shapes(model, {"x": (2, 3)}, tmp_path / "copy.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(copy), strict_mode=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}
    assert shapes == {"x": [2, 3], "y": [2, 2], "z": [2, 3]}
    assert with_static_shapes(copy, {"x": (2, 3)}, tmp_path / "again.onnx") == copy
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize(("refused", "taken"), [("", "0.onnx"), ("0.onnx", "small.onnx")])
def test_who_refuses_the_copy_gets_the_model_itself(refused, taken, tmp_path, monkeypatch):
    """Some models cannot have shapes written into them: a branch of an If that is never taken would not fit."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    entry = Entry("rival", "fakes:Fake", save_model(tmp_path / "small.onnx", ["rows", "?"]), {"refuses": refused})
    facts = measure([entry], {"x": np.zeros((2, 3), np.float32)}, threads=1, rounds=1, burst_s=0.02)
    (rival,) = facts.contenders
    assert rival.error == "" and rival.config["model"] == taken


def test_what_is_missing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_baselines(["openvino-bf16", "torch"]) == {
        "openvino-bf16": "not installed: pip install openvino", "torch": "not installed: pip install torch onnx2torch",
    }
    assert baseline_entries(list(BASELINES), Path("m.onnx")) == []


def test_an_unknown_baseline_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no baseline 'onxruntime'"):
        missing_baselines(["onxruntime"])


def test_import_paths_that_lead_nowhere() -> None:
    for path in ("no_such_module:X", "toolchain.report.contenders:NoSuchClass", "toolchain.report.contenders"):
        with pytest.raises(MissingToolError, match="no contender"):
            resolve(path)


def test_inputs_without_dimensions_stay_so(tmp_path: Path) -> None:
    """A sample rate, a position: NumPy's ascontiguousarray would make one dimension of none."""
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", [2, 3]), ("s", []))]
    graph = helper.make_graph(nodes, "scaled", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])])
    path = tmp_path / "scaled.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    given = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array(3, np.float32)}
    with toolchain.compile(path, threads=1) as module:
        module.save(tmp_path / "artifact")
    entries = [*baseline_entries(["onnxruntime"], path), artifact_entry(tmp_path / "artifact")]
    facts = measure(entries, given, threads=1, rounds=2, burst_s=0.02, reference={"y": 3 * given["x"]})
    assert [c.error for c in facts.contenders] == ["", ""]
    assert all(o.passed for c in facts.contenders for o in c.outputs)
