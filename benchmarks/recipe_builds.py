"""The recipes as things to measure: their builds with default schedules, made up to any task in the user's store; and
projects of one model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from toolchain.build.deployfile import Bucket, Model
from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.build.task import Input, Task
from toolchain.cli.build import PRELOAD
from toolchain.cli.project import Project, open_project
from toolchain.core.artifact import Artifact
from toolchain.core.settings import settings
from toolchain.tasks.data import RECORDED
from toolchain.tasks.plan import UNTUNED, BucketTasks, BuildTasks
from toolchain.tasks.steps import MODEL

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


@dataclass(frozen=True, slots=True)
class RecipeBuild:
    """One build of one recipe, or one shape bucket of it. label: which one, "" for a model without buckets."""

    project: Project
    tasks: BuildTasks
    bucket: BucketTasks
    label: str

    @property
    def recipe(self) -> str:
        return self.project.folder.name

    @property
    def name(self) -> str:
        return f"{self.recipe}/{self.tasks.build.model}" + (f"[{self.label}]" if self.label else "")

    @property
    def model(self) -> Model:
        return self.project.deployfile.models[self.tasks.build.model]

    @property
    def binding(self) -> Bucket:
        """Its shapes and data."""
        return self.model.bindings()[self.label]


def recipe_builds(recipes: Sequence[str], models: Sequence[str], root: Path = RECIPES) -> list[RecipeBuild]:
    """Those builds of the recipes that `models` mean (names or patterns; none: all), a bucket at a time. Schedules are the
    default ones, whatever `tc tune` found on this machine.

    Raises UsageError, DeployfileError.
    """
    found = []
    for recipe in recipes:
        project = open_project(None, root / recipe)
        known = [b for b in project.deployfile.all_builds() if not models or _means(b.model, models)]
        for t in project.tasks([b.name for b in known], UNTUNED) if known else ():
            labels = project.deployfile.models[t.build.model].bindings()
            found += [RecipeBuild(project, t, bucket, label) for bucket, label in zip(t.buckets, labels, strict=True)]
    return found


def _means(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def user_store() -> Iterator[Store]:
    store = Store(settings().store)
    try:
        yield store
    finally:
        store.close()


def make(store: Store, build: RecipeBuild, goals: Sequence[Task]) -> Mapping[str, Artifact]:
    """The goals' artifacts, by the names of their tasks, made where the store lacks them. Raises the first task's error."""
    executor = Executor(store, build.project.folder, preload=PRELOAD)
    return executor.build(goals).check().artifacts


def inputs_of(store: Store, build: RecipeBuild, task: Task) -> dict[str, Input]:
    """What the step of `task` would get, its input tasks made."""
    artifacts = make(store, build, list(task.inputs.values()))
    made = {name: artifacts[child.name] for name, child in task.inputs.items()}
    files = {name: path.absolute() for name, path in task.files.items()}
    return {**{name: Input(a.kind, a.meta, store.blobs.paths(a.files)) for name, a in made.items()},
            **{name: Input("file", {}, {path.name: path}) for name, path in files.items()}}


def single_model_project(store: Store, build: RecipeBuild, folder: Path) -> Path:
    """Write a project whose only model is that of `build`, its ONNX file (and recorded data) generated beforehand.

    Returns the ONNX file: folder/NAME.onnx, with folder/deployfile.yaml beside it. A recipe's time, or the network's, is
    then no part of what is measured.
    """
    folder.mkdir(parents=True)
    name, model, binding = build.tasks.build.model, build.model, build.binding
    path = folder / f"{name}.onnx"
    if build.tasks.source is None:
        assert model.path is not None
        place(build.project.folder / model.path, path)
    else:
        artifact = make(store, build, [build.tasks.source])[build.tasks.source.name]
        for file, blob in store.blobs.paths(artifact.files).items():
            place(blob, path if file == MODEL else folder / file)
    declared = {"path": path.name, "shapes": {k: list(v) for k, v in binding.shapes.items()}, "dims": dict(binding.dims),
                "data": {"folder": RECORDED} if (folder / RECORDED).is_dir() else {}}
    write_deployfile(folder, name, declared)
    return path


def write_deployfile(folder: Path, name: str, declared: Mapping[str, object]) -> None:
    """A deployfile of one model. JSON is YAML."""
    text = json.dumps({"version": 1, "models": {name: declared}})
    (folder / "deployfile.yaml").write_text(text + "\n", encoding="utf-8")


def place(source: Path, target: Path) -> None:
    """The same bytes at another path: a link where the file system can (models are large), else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


__all__ = ["RECIPES", "RecipeBuild", "inputs_of", "make", "recipe_builds", "single_model_project", "user_store"]
