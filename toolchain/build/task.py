"""A task: one step of a build, as data. It runs if and only if its key is not in the store.

`run` names a function by import path ("toolchain.tasks.steps:optimize"), so that planning and a no-op build import nothing
heavy; worker processes resolve it. The function is pure: it reads its parameters and input files, and writes below `out`.

    def step(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result: ...

`inputs` holds the task's static inputs, its dynamic ones, and its source files (as inputs of kind "file"), each by its name.
What a step prints goes to the task's log; `worker.progress` tells the screen how far it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.core.artifact import Artifact

MACHINE = "machine"         # the resource of tasks that run quite alone


@dataclass(frozen=True, slots=True)
class Input:
    """An input artifact as a running task sees it: small facts, and read-only paths of its files in the store."""

    kind: str
    meta: Mapping[str, Any]
    files: Mapping[str, Path]

    @property
    def path(self) -> Path:
        """The path of the only file. Raises ValueError when there is not exactly one."""
        (path,) = self.files.values()
        return path


@dataclass(frozen=True, slots=True)
class Result:
    """What a step returns; every file it left below `out` becomes a file of the artifact."""

    kind: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One step of a build.

    name: unique within a plan and readable: "optimize:resnet18@x86"; two tasks of one name must ask for the same thing.
    version: raise it when `run` would give other bytes.
    params: plain JSON data. inputs: by the name the step knows them by. needs: once the static inputs are there, further
    inputs computed from them (the kernels a partitioned graph asks for); called in the parent, must be cheap and pure.
    files: source files outside the store it reads, by name (their content enters the key, their place does not); the step
    finds each as `inputs[name].path`. A name may be an input's or a file's, not both.
    about: what of the user's it works for ("conv1, relu1 of net"), for the screen when it fails; not part of its key.
    resource: tasks with the same non-empty resource never run side by side; "machine" runs quite alone (measurements).
    """

    name: str
    run: str
    version: int
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Task] = field(default_factory=dict)
    needs: Callable[[Mapping[str, Artifact]], Mapping[str, Task]] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    resource: str = ""
    about: str = ""
