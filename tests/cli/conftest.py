"""A project whose tasks are those of fake_steps.py, planned as the real ones are: one chain per build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fake_steps
import pytest

from toolchain.build.deployfile import Build, Deployfile
from toolchain.build.task import Task
from toolchain.cli import build as build_commands
from toolchain.cli import project as project_module
from toolchain.tasks.plan import BucketTasks, BuildTasks


def fake_plan(
    deployfile: Deployfile, builds: Sequence[Build], project: Path, *, tuned: object = None,
) -> tuple[BuildTasks, ...]:
    def tasks(build: Build) -> BuildTasks:
        model = deployfile.models[build.model]
        graph = Task(f"import:{build.model}", "fake_steps:read", 1, {"llvm": "22.1.0", "target": dict(fake_steps.HOST)},
                     files={"model": project / str(model.path)})
        module = Task(f"link:{build.name}", "fake_steps:link", 1, {"target": build.target}, {"graph": graph})
        verify = Task(f"verify:{build.name}", "fake_steps:verify", 1, {}, {"module": module})
        bucket = BucketTasks(name=build.name, graph=graph, optimized=graph, verify=verify, measure=verify)
        return BuildTasks(build=build, source=None, target=graph, module=module, machine=verify, buckets=(bucket,))

    return tuple(tasks(b) for b in builds)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with deployfile.yaml for two models and two targets, the current one; and a store of its own."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "deployfile.yaml").write_text(
        "version: 1\nmodels:\n  one: {path: one.onnx}\n  two: {path: two.onnx}\n"
        "targets:\n  x86: {kind: x86}\n  old: {kind: x86, cpu: x86-64-v3}\n")
    (folder / "one.onnx").write_text("first")
    (folder / "two.onnx").write_text("second")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "TC_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(project_module, "plan", fake_plan)
    monkeypatch.setattr(build_commands, "PRELOAD", ())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return folder
