"""PyTorch as a contender, over stand-ins for torch and onnx2torch on its process's path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from toolchain.report.contenders import BASELINES, Entry, baseline_entries, missing_baselines
from toolchain.report.converted import constants_to_initializers
from toolchain.report.measure import measure
from toolchain.tasks import plan

X = np.array([[1, -1, 2], [0, 3, -5]], np.float32)
EXPECTED = {"y": np.maximum(X, 0) * 2, "z": -X}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here / "fake_torch"), str(here), *sys.path]))


def saved(path: Path, name: str = "right") -> Path:
    """y = 2 relu(x), z = -x; the weight 2 is declared as an input, too, as old exporters do."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Mul", ["r", "two"], ["y"]),
             helper.make_node("Neg", ["x"], ["z"])]
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xyz"}
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    info = helper.make_tensor_value_info("two", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, name, [info, values["x"]], [values["y"], values["z"]], [two])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def torch_entry(model: Path) -> Entry:
    return Entry("torch", BASELINES["torch"].make, model, converted=BASELINES["torch"].converted)


def facts_of(model: Path, **more: object):
    measured = measure([torch_entry(model)], {"x": X}, threads=3, rounds=2, burst_s=0.02, **more)
    (facts,) = measured.contenders
    return facts


def test_it_computes_and_shows_how_it_ran(tmp_path):
    facts = facts_of(saved(tmp_path / "net.onnx"), reference=EXPECTED)
    assert (facts.error, facts.version) == ("", "9.9+fake")
    assert facts.config == {"threads": "3", "converted by": "onnx2torch 9.9.9", "mode": "eager, inference_mode",
                            "torch.compile": "no", "io": "bound"}
    assert {o.output: o.passed for o in facts.outputs} == {"y": True, "z": True}
    assert len(facts.bursts_us) == 2 and facts.median_us > 0
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"], "nothing is written beside the model"


@pytest.mark.parametrize(("name", "error"), [
    ("unknown", "ImportModelError: onnx2torch cannot convert it: NotImplementedError: Converter is not implemented (Relu)"),
    ("lost", "ImportModelError: onnx2torch made a network of 1 outputs, the model has 2"),
    ("wrong", "not timed: the converted network's results are not the model's ('y')"),
])
def test_what_it_cannot_run_or_runs_wrongly_is_said(name, error, tmp_path):
    facts = facts_of(saved(tmp_path / "net.onnx", name), reference=EXPECTED)
    assert facts.error == error
    assert facts.median_us == 0


def test_a_converted_network_is_judged_and_judges_nobody(tmp_path):
    """Beside a rival that reads the model itself, that one is the reference; alone with ours, ours."""
    model = saved(tmp_path / "net.onnx", "wrong")
    entries = [torch_entry(model), Entry("direct", "fakes:Doubled", model), Entry("ours", "fakes:Doubled", model, ours=True)]
    inputs = {"x": X}
    for chosen, judge in ((entries, "direct"), ((entries[0], entries[2]), "ours")):
        facts = measure(chosen, inputs, threads=1, rounds=2, burst_s=0.02)
        assert facts.reference == judge
        found = {c.name: c for c in facts.contenders}
        assert found["torch"].error.startswith("not timed: ") and found["torch"].outputs
        assert not found["ours"].error and found["ours"].median_us > 0
        assert "torch" not in [c.baseline for c in facts.comparisons]


def test_constants_become_initializers():
    """Those that are no output of the model; the others, and all other nodes, stay as they are."""
    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=helper.make_tensor("", TensorProto.FLOAT, [1], [2.0]))

    whole = helper.make_node("Constant", [], ["n"], value_int=3)
    nodes = [constant("w"), helper.make_node("Mul", ["x", "w"], ["y"]), constant("z"), whole]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xyz"]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:]), ir_version=8)
    before = ReferenceEvaluator(model).run(None, {"x": np.ones(1, np.float32)})
    constants_to_initializers(model)
    assert [n.output[0] for n in model.graph.node] == ["y", "z", "n"] and [i.name for i in model.graph.initializer] == ["w"]
    assert ReferenceEvaluator(model).run(None, {"x": np.ones(1, np.float32)}) == before


def test_what_is_absent_is_named(monkeypatch):
    for present, words in ((set(), "torch onnx2torch"), ({"torch"}, "onnx2torch"), ({"onnx2torch"}, "torch")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, there=present: object() if name in there else None)
        assert missing_baselines(["torch"]) == {"torch": f"not installed: pip install {words}"}
        assert baseline_entries(["torch"], Path("net.onnx")) == []


def test_a_measurement_depends_on_the_versions_of_all_a_rival_is_made_of():
    for name, baseline in BASELINES.items():
        if "-" not in name:                     # variants of a rival are no names of the deployfile
            assert plan.RIVALS.get(name, (name,)) == baseline.packages
