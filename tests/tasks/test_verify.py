"""Tolerances, comparing, the verdict; and the numbers per layer that a measurement starts from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import toolchain
from toolchain import te
from toolchain.build.deployfile import Data
from toolchain.build.task import Input
from toolchain.core.errors import VerificationError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph, Node
from toolchain.graph.serialize import save
from toolchain.kernels import table
from toolchain.kernels.compute.elementwise import pointwise
from toolchain.report.facts import OutputError, VerifyFacts, to_json
from toolchain.tasks import verify as verify_module
from toolchain.tasks.diagnose import differs
from toolchain.tasks.measure import hot_times_us, profile
from toolchain.tasks.reference import reference
from toolchain.tasks.verify import compare, half_inside, rounds_inside, tolerance, verify

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Exp", ["x"], ["e"], "exp"), helper.make_node("Neg", ["e"], ["y"], "neg")]
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [2, 3])], [value("y", TensorProto.FLOAT, [2, 3])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_built_in_tolerance_goes_with_the_size_of_the_output():
    built_in = {"tolerance": None, "precision": "fp32"}
    assert tolerance(built_in, np.array([0.0, 250.0, np.nan])) == (1e-3, 0.025)
    assert tolerance(built_in, np.zeros(3)) == (1e-3, 1e-7)
    declared = {"tolerance": {"rtol": 0.5, "atol": 0.25}, "precision": "fp32"}
    assert tolerance(declared, np.array([250.0])) == (0.5, 0.25)


def test_a_network_that_rounds_inside_may_differ_by_a_few_steps():
    def graph(*ops: str) -> Graph:
        return Graph("g", tuple(Node(op, ("x",), (f"y{n}",)) for n, op in enumerate(ops)), ("x",), ("y0",), {})
    assert rounds_inside(graph("Conv", "QuantizeLinear")) and not rounds_inside(graph("Conv", "DequantizeLinear"))
    outer = Graph("g", (Node("If", ("c",), ("y",), {"then_branch": graph("DynamicQuantizeLinear")}),), ("c",), ("y",), {})
    assert rounds_inside(outer)
    assert tolerance({"tolerance": None, "precision": "quantized"}, np.array([255])) == (1e-2, 4.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_network_in_halves_may_differ_by_many_of_their_steps(dtype):
    t = TensorType.plain((4,), dtype)
    given = {"x": TensorType.plain((4,), "float32"), "h": t, "y": t, "z": TensorType.plain((4,), "float32")}
    nodes = [Node("Cast", ("x",), ("h",)), Node("Relu", ("h",), ("y",)), Node("Cast", ("y",), ("z",))]
    inside = Graph("g", tuple(nodes), ("x",), ("z",), given)
    stored = Graph("g", (nodes[0], Node("Cast", ("h",), ("z",))), ("x",), ("z",), given)
    assert half_inside(inside) == (dtype if dtype != "float32" else "") and half_inside(stored) == ""
    rtol, atol = tolerance({"tolerance": None, "precision": half_inside(inside) or "fp32"}, np.array([2.0]))
    assert (rtol, atol) == {"float16": (1e-2, 0.016), "bfloat16": (5e-2, 0.12), "float32": (1e-3, 2e-4)}[dtype]


@pytest.mark.parametrize(("dtype", "off", "fine"), [
    ("float16", 1e-3, True), ("float16", 2e-2, False), ("float32", 5e-4, True), ("float32", 2e-3, False)])
def test_a_kernel_of_halves_may_be_a_few_steps_off(dtype, off, fine):
    right = np.linspace(-1, 1, 64).astype(dtype)
    assert (differs(Node("Fused", (), ("y",)), "y", (right * (1 + off)).astype(dtype), right) == "") == fine


def compared(model: Path, folder: Path, expected: np.ndarray, check: bool = False, onnxruntime: np.ndarray | None = None):
    """`compare` on a real artifact of the model, with an output somebody recorded. onnxruntime: its answer."""
    graph, out = folder / "graph", folder / "out"
    for place in (graph, out):
        place.mkdir(parents=True)
    save(import_onnx(model), graph)
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", expected)
    with toolchain.compile(model) as module:
        module.save(folder / "artifact")
    files = {p.name: p for p in (folder / "artifact").iterdir()}
    data = asdict(Data(inputs={}, expected={"y": "y.npy"}))
    data["inputs"] = {"x": {"file": "x.npy", "image": None, "random": None, "constant": None}}
    params = {"data": data, "verify": {"against": "interpreter", "samples": 1, "seed": 0}, "threads": 1, "tolerance": None,
              "precision": "fp32", "check": check}
    inputs = {
        "graph": Input("graph", {}, {p.name: p for p in graph.iterdir()}),
        "module": Input("module", {"workspaces": {}}, files),
        "model": Input("file", {}, {model.name: model}), "input x": Input("file", {}, {"x.npy": folder / "x.npy"}),
        "expected y": Input("file", {}, {"y.npy": folder / "y.npy"}),
    }
    answers = folder / "answers"
    answers.mkdir()
    made = reference({**params, "buckets": False}, inputs, answers)
    if onnxruntime is not None:
        made.meta["labels"] = ["onnxruntime 1.2"]
        (answers / "0.0").write_bytes(onnxruntime.tobytes())
    inputs["reference"] = Input("reference", made.meta, {p.name: p for p in answers.iterdir()})
    return compare(params, inputs, out)


def test_a_right_artifact_passes(model, tmp_path):
    result = compared(model, tmp_path / "work", -np.exp(X))
    facts = result.meta["facts"]
    assert facts["reference"] == "declared outputs and the interpreter" and facts["data"] == "declared"
    assert [o["passed"] for o in facts["outputs"]] == [True]
    assert verify({"name": "net@x86"}, {"facts": Input("facts", result.meta, {})}, tmp_path).kind == "verified"


def test_where_onnxruntime_is_off_double_precision_decides(model, tmp_path):
    right = -np.exp(X)
    facts = compared(model, tmp_path / "off", right, onnxruntime=right * np.float32(1.01)).meta["facts"]
    assert facts["reference"] == (
        "declared outputs and the interpreter in float64 (onnxruntime 1.2 is off by 9.1 times the tolerance)")
    assert [o["passed"] for o in facts["outputs"]] == [True] and facts["outputs"][0]["max_rel_error"] < 1e-6


def test_double_precision_excuses_no_wrong_artifact(model, tmp_path, monkeypatch):
    wrong = pointwise(lambda x: te.exp(x) * te.const(1.01, x.dtype))
    monkeypatch.setitem(table.COMPUTES, "Exp", wrong)
    monkeypatch.setattr(verify_module, "_find", lambda *_, **__: None)
    facts = compared(model, tmp_path / "wrong", -np.exp(X) * np.float32(1.01), onnxruntime=-np.exp(X)).meta["facts"]
    assert facts["reference"] == "declared outputs and onnxruntime 1.2"
    assert [o["passed"] for o in facts["outputs"]] == [False]


def test_the_verdict_says_what_differs(tmp_path):
    def verdict(**more: object) -> str:
        bad = OutputError("y", (2, 3), 0.5, 0.1, 37.0, False)
        facts = VerifyFacts("onnxruntime 1.2", "declared", 1e-3, 1e-4, (bad,), **more)
        meta = {"facts": to_json(facts), "what": "node 'conv1' (Fused): its result differs by 3"}
        with pytest.raises(VerificationError) as error:
            verify({"name": "net@x86"}, {"facts": Input("facts", meta, {})}, tmp_path)
        return str(error.value)

    assert verdict() == (
        "net@x86: output 'y' differs from onnxruntime 1.2 by up to 0.5 (37 times the tolerance)\n"
        "every kernel alone computes what its operators mean: errors accumulate, or the reference belongs to other inputs "
        "or another model\nfix: if this accuracy is enough, say so: verify.tolerance in the deployfile")
    assert verdict(first_bad_node="conv1, relu1") == (
        "net@x86: output 'y' differs from onnxruntime 1.2 by up to 0.5 (37 times the tolerance)\n"
        "the first wrong kernel: node 'conv1' (Fused): its result differs by 3\nit computes: conv1, relu1\n"
        "fix: its inputs and the smallest model that shows it are below inputs/facts/repro of the folder to reproduce it")


def test_layers_are_described_in_the_order_they_are_measured(tmp_path):
    """Also inside a loop, whose body's numbers are of all its rounds."""
    random = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(random.standard_normal(s).astype(np.float32), n)
               for n, s in (("w", (1, 32, 4)), ("r", (1, 32, 8)))]
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=8)]
    graph = helper.make_graph(nodes, "net", [value("x", TensorProto.FLOAT, [5, 1, 4])],
                              [value("y", TensorProto.FLOAT, [5, 1, 1, 8])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with toolchain.compile(model, threads=1) as module:
        manifest = json.loads((module.folder / "manifest.json").read_text())
        inputs = {"x": random.standard_normal((5, 1, 4)).astype(np.float32)}
        layers = profile(module, inputs, manifest["layers"][0])
        hot = hot_times_us(module, inputs)
    products = 2 * 5 * 32 * 4 + 2 * 5 * 32 * 8          # of the inputs, and of the states, of all five steps
    assert products <= sum(x.flops for x in layers) <= 2 * products
    assert all(x.network_us >= 0 and x.moved_bytes > 0 for x in layers)
    assert any("lstm" in x.sources for x in layers)
    assert hot and set(hot) <= set(range(len(list(layers)) + 5)) and all(t >= 0 for t in hot.values())
