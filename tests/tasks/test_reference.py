"""Who answers what a network should compute, and that the answers come back from files as they were."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from toolchain.build.deployfile import Data
from toolchain.build.task import Input
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import MissingToolError, VerificationError
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.serialize import save
from toolchain.tasks.data import Sample
from toolchain.tasks.reference import compute, computed, reference

X = np.arange(6, dtype=np.float32).reshape(2, 3)
RECORDED = {"y": -X}


def saved(folder: Path, nodes: list[onnx.NodeProto], outputs: dict[str, tuple[int, list[int]]]) -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [2, 3])],
                              [value(name, kind, shape) for name, (kind, shape) in outputs.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "net.onnx")
    return folder / "net.onnx"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [helper.make_node("Exp", ["x"], ["e"], "exp"), helper.make_node("Neg", ["e"], ["y"], "neg")]
    return saved(tmp_path, nodes, {"y": (TensorProto.FLOAT, [2, 3])})


def answer(model: Path, against: str, expected: dict[str, np.ndarray] | None = None) -> tuple[str, np.ndarray | None]:
    inputs = {"model": Input("file", {}, {model.name: model})}
    label, outputs = compute(import_onnx(model), Sample({"x": X}, expected or {}, "test"), against, inputs)
    return label, outputs.get("y")


@pytest.mark.parametrize(("against", "who"), [
    ("auto", "onnxruntime"), ("interpreter", "the"), ("onnxruntime", "onnxruntime")])
@pytest.mark.parametrize("expected", [None, RECORDED])
def test_who_answers(against, who, expected, model):
    pytest.importorskip("onnxruntime")
    label, y = answer(model, against, expected)
    assert label.split()[0] == who
    np.testing.assert_allclose(y, -np.exp(X), rtol=1e-6)


def test_without_onnxruntime_the_interpreter_answers_where_nothing_is_recorded(model, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert answer(model, "auto")[0] == "the interpreter"
    assert answer(model, "auto", RECORDED) == ("", None)
    with pytest.raises(MissingToolError, match="onnxruntime is not installed"):
        answer(model, "onnxruntime")


def test_where_onnxruntime_fails_the_interpreter_answers(model, monkeypatch, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert answer(model, "auto")[0] == "the interpreter"
    assert "no such operator" in capsys.readouterr().out
    with pytest.raises(VerificationError, match="onnxruntime cannot run the model"):
        answer(model, "onnxruntime")


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL])
def test_answers_are_kept_bit_by_bit(kind, tmp_path):
    """Types NumPy has not, scalars, and outputs without elements too; two samples differ."""
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=kind), helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
             helper.make_node("Slice", ["x", "zero", "zero"], ["none"])]
    nodes.insert(0, helper.make_node("Constant", [], ["zero"], value_ints=[0]))
    model = saved(tmp_path, nodes, {"c": (kind, [2, 3]), "s": (TensorProto.FLOAT, []), "none": (TensorProto.FLOAT, [0, 3])})
    graph, out = tmp_path / "graph", tmp_path / "out"
    for place in (graph, out):
        place.mkdir()
    save(import_onnx(model), graph)
    inputs = {"graph": Input("graph", {}, {p.name: p for p in graph.iterdir()}),
              "model": Input("file", {}, {model.name: model})}
    params = {"data": asdict(Data()), "buckets": False, "verify": {"against": "interpreter", "samples": 2, "seed": 0}}
    made = reference(params, inputs, out)
    files = Input("reference", json.loads(json.dumps(made.meta, sort_keys=True)), {p.name: p for p in out.iterdir()})
    (first, one), (_, other) = computed(files, 0), computed(files, 1)
    assert first == "the interpreter" and one["none"].shape == (0, 3) and one["s"].shape == ()
    assert one["c"].dtype == to_numpy(TensorProto.DataType.Name(kind).lower())
    assert float(one["s"]) != float(other["s"])
