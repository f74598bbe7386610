"""What the lock file pins: all that enters the keys of a build from outside, under names a person knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from toolchain.build.deployfile import Bucket, Data, Deployfile, InputData, Model, Random, TargetSpec, Wheel
from toolchain.build.keys import ingredients, key_of
from toolchain.build.task import Task
from toolchain.core.artifact import Artifact, File
from toolchain.core.digest import digest_bytes
from toolchain.targets.presets import PRESETS
from toolchain.tasks import lock as locking
from toolchain.tasks import plan as plans

TARGET = Artifact("target", {}, {"target": PRESETS["x86-64-v3"].to_json(), "llvm": "22.1.0"})
MODEL = Artifact("model", {"model.onnx": File("ab" * 32, 5), "test_data_set_0/input_0.pb": File("cd" * 32, 5)})
MODULE = Artifact("module", {"libnet.so": File("ef" * 32, 5), "net.h": File("01" * 32, 5)})
WHEEL = Wheel(package="p", version="1.0", sha256="ab" * 32, file="a/net.onnx")


def planned(folder: Path, model: Model, spec: TargetSpec | None = None) -> tuple[Deployfile, plans.BuildTasks]:
    deployfile = Deployfile(version=1, models={"net": model}, targets={"x86": spec or TargetSpec(kind="x86")})
    return deployfile, plans.plan(deployfile, deployfile.all_builds(), folder)[0]


def pinned(folder: Path, model: Model, spec: TargetSpec | None = None) -> locking.Sections:
    """The sections of one build whose files are as they are now."""
    deployfile, b = planned(folder, model, spec)
    digests = {path: digest_bytes(path.read_bytes()) for path in locking.source_files(b).values()}
    made = {task.name: MODEL if task is b.source else TARGET for task in locking.makers(b)}
    return locking.pinned([b], deployfile, made, digests)


def everything(task: Task) -> Iterator[Task]:
    yield task
    for below in task.inputs.values():
        yield from everything(below)


def keys(folder: Path, model: Model, spec: TargetSpec | None = None) -> set[str]:
    """Of all tasks that make the artifact, kernels included."""
    _, b = planned(folder, model, spec)
    graph = Artifact("graph", {}, {"kernels": {"ab" * 16: {"name": "conv", "graph": {"nodes": []}, "nodes": ["conv1"]}}})
    kernels = b.module.needs({"graph 0": graph, "target": TARGET}).values()
    found = set()
    for task in (*everything(b.module), *kernels):
        files = {name: digest_bytes(path.read_bytes()) for name, path in task.files.items()}
        made = {name: digest_bytes(child.name.encode()) for name, child in task.inputs.items()}
        found.add(key_of(ingredients(task, made, files)))
    return found


@pytest.fixture
def folder(tmp_path):
    for name in ("net.onnx", "other.onnx", "models.py", "x.npy", "y.npy"):
        (tmp_path / name).write_text(name)
    return tmp_path


BUCKETS = Bucket(dims={"n": 1}), Bucket(shapes={"x": (2, 3)})
CHANGES = [
    (Model(path="net.onnx"), Model(path="other.onnx")),
    (Model(path="net.onnx"), Model(path="net.onnx", dims={"n": 1})),
    (Model(path="net.onnx"), Model(path="net.onnx", shapes={"x": (1, 3)})),
    (Model(path="net.onnx", dims={"n": 1}), Model(path="net.onnx", dims={"n": 2})),
    (Model(path="net.onnx", buckets=(Bucket(dims={"n": 1}),)), Model(path="net.onnx", buckets=(Bucket(dims={"n": 2}),))),
    (Model(path="net.onnx", buckets=BUCKETS), Model(path="net.onnx", buckets=BUCKETS[::-1])),
    (Model(recipe="models.py:a"), Model(recipe="models.py:b")),
    (Model(wheel=WHEEL), Model(wheel=Wheel(**{**vars(WHEEL), "version": "1.1"}))),
    (Model(wheel=WHEEL), Model(wheel=Wheel(**{**vars(WHEEL), "sha256": "cd" * 32}))),
    (Model(wheel=WHEEL), Model(wheel=Wheel(**{**vars(WHEEL), "file": "b.onnx"}))),
]


@pytest.mark.parametrize(("one", "other"), CHANGES)
def test_what_the_deployfile_says_of_a_model_is_pinned(one, other, folder):
    assert keys(folder, one) != keys(folder, other), "the case means nothing"
    assert pinned(folder, one) != pinned(folder, other)


@pytest.mark.parametrize("spec", [
    TargetSpec(kind="x86", cpu="x86-64-v2"), TargetSpec(kind="x86", threads=3), TargetSpec(kind="x86", features=("-avx2",))])
def test_what_the_deployfile_says_of_a_target_is_pinned(spec, folder):
    model = Model(path="net.onnx")
    assert keys(folder, model) != keys(folder, model, spec)
    assert pinned(folder, model) != pinned(folder, model, spec)


@pytest.mark.parametrize("data", [
    Data(inputs={"x": InputData(file="x.npy")}), Data(expected={"y": "y.npy"}),
    Data(inputs={"x": InputData(random=Random(seed=3))})])
def test_verification_data_are_pinned(data, folder):
    assert pinned(folder, Model(path="net.onnx")) != pinned(folder, Model(path="net.onnx", data=data))


def test_the_bytes_of_every_file_are_pinned(folder):
    model = Model(recipe="models.py:a", data=Data(inputs={"x": InputData(file="x.npy")}, expected={"y": "y.npy"}))
    before = pinned(folder, model)
    section = before["models", "net"]
    assert {k for k in section if k.startswith("files.")} == {"files.recipe", 'files."input x"', 'files."expected y"'}
    assert section['made."model.onnx"'] == "ab" * 32 and section['made."test_data_set_0/input_0.pb"'] == "cd" * 32
    for name in ("models.py", "x.npy", "y.npy"):
        (folder / name).write_text("changed")
        now = pinned(folder, model)
        assert now["models", "net"] != before["models", "net"] and now["targets", "x86"] == before["targets", "x86"]
        before = now


def test_data_that_buckets_have_of_their_own_are_pinned(folder):
    def data(file: str) -> Data:
        return Data(inputs={"x": InputData(file=file)})

    buckets = Bucket(dims={"n": 1}, data=data("x.npy")), Bucket(dims={"n": 2}, data=data("y.npy"))
    before = pinned(folder, Model(path="net.onnx", buckets=buckets))["models", "net"]
    assert {k for k in before if k.startswith("files.")} == {"files.model", 'files."input x"', 'files."input x of net[n=2]"'}
    (folder / "y.npy").write_text("changed")
    after = pinned(folder, Model(path="net.onnx", buckets=buckets))["models", "net"]
    assert {k for k in before if before[k] != after[k]} == {'files."input x of net[n=2]"'}


@pytest.mark.parametrize("tool", locking.TOOLS)
def test_every_pinned_tool_is_in_the_keys(tool, folder, monkeypatch):
    """Else a build with nothing to do would lock a version that its artifact was not made with."""
    model = Model(path="net.onnx")
    before, locked = keys(folder, model), pinned(folder, model)
    for module in (plans, locking):
        version = module.installed_version
        monkeypatch.setattr(module, "installed_version", lambda name, v=version: "99" if name == tool else v(name))
    assert keys(folder, model) != before
    assert pinned(folder, model)["tools", ""] == {**locked["tools", ""], tool: "99"}


def test_every_version_in_the_keys_is_pinned(folder):
    _, b = planned(folder, Model(path="net.onnx"))
    versions = {name for task in everything(b.module) for name in task.params.get("versions", {})}
    assert versions <= set(locking.TOOLS)


def test_all_code_in_the_keys_is_pinned(folder, monkeypatch):
    seen: set[str] = set()
    monkeypatch.setattr(plans, "code_digest", lambda *parts: seen.update(parts) or "")
    keys(folder, Model(path="net.onnx"))
    covered = {part for part in seen if part in locking.CODE or part.split("/")[0] in locking.CODE}
    assert covered == seen


def test_what_only_a_task_can_tell_is_left_out_until_it_has_run(folder):
    deployfile, b = planned(folder, Model(recipe="models.py:a"))
    digests = dict.fromkeys(locking.source_files(b).values(), "0" * 64)
    found = locking.pinned([b], deployfile, {}, digests)
    assert set(found["models", "net"]) == {"deployfile.recipe", "files.recipe"}
    assert {k.split(".")[0] for k in found["targets", "x86"]} == {"deployfile"}


def test_a_build_is_tied_to_what_it_was_made_from(folder):
    deployfile, b = planned(folder, Model(path="net.onnx"))
    inputs = pinned(folder, Model(path="net.onnx"))
    (section,) = locking.results([b], inputs, {b.module.name: MODULE}).values()
    assert section == {"model": "net", "target": "x86", "artifact": MODULE.digest, 'files."libnet.so"': "ef" * 32,
                       'files."net.h"': "01" * 32, "inputs": locking.inputs_digest(inputs, "net", "x86")}
    for name in inputs:
        assert locking.inputs_digest({**inputs, name: {}}, "net", "x86") != section["inputs"]
    assert locking.declared(deployfile) == {*inputs, ("builds", "net@x86")}


def test_the_level_of_cpu_that_two_machines_have():
    levels = {name: preset.features for name, preset in PRESETS.items() if preset.kind == "x86"}
    machines = {name: {"features": [*features, "+extra"]} for name, features in levels.items()}
    for a, one in enumerate(machines.values()):
        for b, other in enumerate(machines.values()):
            assert locking.common_cpu(one, other, levels) == list(levels)[min(a, b)]
    assert locking.common_cpu({"features": ["+neon"]}, machines["x86-64-v4"], levels) is None
