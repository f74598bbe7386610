"""The task graph of a deployfile: its shape, what is shared, and what enters the keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from toolchain.build.deployfile import Bucket, Data, Deployfile, InputData, Model, TargetSpec, Tolerance, Verify
from toolchain.build.task import MACHINE, Task
from toolchain.core.artifact import Artifact
from toolchain.core.errors import UsageError
from toolchain.targets.presets import PRESETS
from toolchain.tasks import plan as plans
from toolchain.tasks.code import code_digest


def planned(folder: Path, models: dict[str, Model], targets: dict[str, TargetSpec] | None = None, **more: object):
    deployfile = Deployfile(version=1, models=models, targets=targets or {"x86": TargetSpec(kind="x86")}, **more)
    return plans.plan(deployfile, deployfile.all_builds(), folder)


def everything(task: Task) -> Iterator[Task]:
    yield task
    for below in task.inputs.values():
        yield from everything(below)


def reference_of(b: plans.BuildTasks) -> Task:
    return b.buckets[0].verify.inputs["facts"].inputs["reference"]


def test_the_steps_of_one_build(tmp_path):
    (b,) = planned(tmp_path, {"net": Model(path="net.onnx")})
    (bucket,) = b.buckets
    names = {t.name for t in (*everything(bucket.verify), *everything(bucket.measure))}
    assert names == {"import:net", "reference:net", "target:x86", "runtime:x86", *(f"{step}:net@x86" for step in (
        "optimize", "link", "compare", "verify", "measure"))}
    assert bucket.measure.resource == MACHINE and not bucket.verify.resource
    assert bucket.graph.files == {"model": tmp_path / "net.onnx"}


def test_builds_share_imports_targets_and_kernels(tmp_path):
    targets = {"x86": TargetSpec(kind="x86"), "old": TargetSpec(kind="x86", cpu="x86-64-v3")}
    one, other, second, _ = planned(tmp_path, {"a": Model(path="a.onnx"), "b": Model(path="b.onnx")}, targets)
    assert one.buckets[0].graph is other.buckets[0].graph and one.target is second.target
    assert reference_of(one) is reference_of(other) is not reference_of(second)
    graph = Artifact("graph", {}, {"kernels": {"ab" * 16: {"name": "conv", "graph": {"nodes": []}, "nodes": ["conv1"]}}})
    target = Artifact("target", {}, {"target": PRESETS["x86-64-v3"].to_json()})
    kernels = [b.module.needs({"graph 0": graph, "target": target}) for b in (one, second, other)]
    weights = [k.pop("weights") for k in kernels]           # packed beside the kernels, for each target
    assert len(set(weights)) == 3 and weights[0].inputs == {"graph 0": one.buckets[0].optimized}
    (first,), (again,), (elsewhere,) = (k.values() for k in kernels)
    assert first is again and first.name == "kernel:conv-abababababab@x86" and elsewhere.name.endswith("@old")


def test_models_come_from_recipes_and_wheels(tmp_path):
    (b,) = planned(tmp_path, {"net": Model(recipe="models.py:make")})
    assert b.source is not None and b.source.files == {"recipe": tmp_path / "models.py"}
    assert b.buckets[0].graph.inputs == {"source": b.source} and b.source.params["function"] == "make"
    assert b.buckets[0].measure.inputs["source"] is b.source


def test_tolerance_of_the_model_wins(tmp_path):
    def demanded(model: Model, **verify: object) -> object:
        (b,) = planned(tmp_path, {"net": model}, verify=Verify(**verify))
        return b.buckets[0].verify.inputs["facts"].params["tolerance"]

    assert demanded(Model(path="n.onnx")) is None
    general = {"tolerance": {"fp32": Tolerance(rtol=0.1, atol=0.2)}}
    assert demanded(Model(path="n.onnx"), **general) == {"rtol": 0.1, "atol": 0.2}
    own = Model(path="n.onnx", tolerance={"fp32": Tolerance(rtol=0.3, atol=0.4)})
    assert demanded(own, **general) == {"rtol": 0.3, "atol": 0.4}


def test_recorded_data_beside_a_model_is_found(tmp_path):
    recorded = tmp_path / "models" / "test_data_set_0"
    recorded.mkdir(parents=True)
    for name in ("input_0.pb", "output_0.pb", "notes.txt"):
        (recorded / name).write_bytes(b"")
    (b,) = planned(tmp_path, {"net": Model(path="models/net.onnx")})
    files = b.buckets[0].verify.inputs["facts"].files
    assert {n for n in files if n.startswith("data ")} == {"data input_0.pb", "data output_0.pb"}
    (other,) = planned(tmp_path, {"net": Model(path="models/net.onnx", data=Data(folder="models/test_data_set_0"))})
    assert other.buckets[0].verify.inputs["facts"].files == files


def test_external_data_are_source_files(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], b"\0" * 16, raw=True)
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight]))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert plans.external_files(tmp_path / "net.onnx") == {"net.data": tmp_path / "net.data"}
    (b,) = planned(tmp_path, {"net": Model(path="net.onnx")})
    assert b.buckets[0].graph.files["external net.data"] == tmp_path / "net.data"


def test_external_data_elsewhere_is_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "models"
    folder.mkdir()
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for location in ("../secret", str(tmp_path / "secret")):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
        (folder / "net.onnx").write_bytes(model.SerializeToString())
        assert plans.external_files(folder / "net.onnx") == {}


def test_shape_buckets_meet_in_one_artifact(tmp_path):
    own = Data(inputs={"x": InputData(constant=1)})
    buckets = (Bucket(dims={"n": 1}), Bucket(dims={"n": 2}, data=own))
    (b,) = planned(tmp_path, {"net": Model(path="net.onnx", buckets=buckets)})
    one, two = b.buckets
    assert [b.name, one.name, two.name] == ["net@x86", "net[n=1]@x86", "net[n=2]@x86"]
    assert [x.graph.name for x in b.buckets] == ["import:net[n=1]", "import:net[n=2]"]
    assert [x.graph.params["dims"] for x in b.buckets] == [{"n": 1}, {"n": 2}]
    assert b.module.inputs["graph 0"] is one.optimized and b.module.inputs["graph 1"] is two.optimized
    assert all(x.verify.inputs["facts"].inputs["module"] is b.module for x in b.buckets)
    assert not one.measure.params["data"]["inputs"]
    assert two.measure.params["data"]["inputs"]["x"]["constant"] == 1
    target = Artifact("target", {}, {"target": PRESETS["x86-64-v3"].to_json()})
    first, second = ({c * 32: {"name": c, "graph": {}, "nodes": [c]} for c in keys} for keys in ("ab", "bc"))
    graphs = {f"graph {n}": Artifact("graph", {}, {"kernels": k}) for n, k in enumerate((first, second))}
    assert len(b.module.needs({**graphs, "target": target}).keys() - {"weights"}) == 3, "kernels are shared by their key"


def test_our_own_code_is_in_the_keys(tmp_path, monkeypatch):
    root = tmp_path / "toolchain"
    (root / "core").mkdir(parents=True)
    (root / "core" / "a.py").write_text("one")
    (root / "core" / "notes.txt").write_text("one")
    (root / "b.py").write_text("one")
    monkeypatch.setattr("toolchain.tasks.code.ROOT", root)

    def digest() -> str:
        for cached in ("_digest", "_file_digest"):
            getattr(__import__("toolchain.tasks.code", fromlist=["code"]), cached).cache_clear()
        return code_digest("core", "b.py")

    first = digest()
    (root / "core" / "notes.txt").write_text("two")
    assert digest() == first, "only code counts"
    for path in (root / "core" / "a.py", root / "b.py", root / "core" / "new.py"):
        path.write_text("two")
        now = digest()
        assert now != first
        first = now


def test_code_for_other_machines_is_made_and_not_verified(tmp_path):
    targets = {"x86": TargetSpec(kind="x86"), "board": TargetSpec(kind="aarch64", cpu="cortex-a53")}
    ours, boards = planned(tmp_path, {"net": Model(path="net.onnx")}, targets)
    assert ours.runs and ours.verifications and not boards.runs and boards.goals == (boards.module,)
    assert not boards.target.params["host"], "what is made for a named CPU depends on no machine"


@pytest.mark.parametrize(("spec", "what"), [
    (TargetSpec(kind="aarch64"), "cpu: host is this machine, which is x86 and not aarch64"),
    (TargetSpec(kind="aarch64", cpu="x86-64-v3"), "CPU 'x86-64-v3' is of kind x86, not aarch64"),
    (TargetSpec(kind="x86", cpu="x86-64-v9"), "no CPU 'x86-64-v9'"),
    (TargetSpec(kind="aarch64", cpu="cortex-a35"), "no CPU 'cortex-a35'"),
])
def test_cpus_that_are_not_there_are_refused_when_planning(tmp_path, spec, what):
    with pytest.raises(UsageError, match=what):
        planned(tmp_path, {"net": Model(path="net.onnx")}, {"t": spec})
