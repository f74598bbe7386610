"""What `tc show` prints: a task's artifact as text, or the forms its passes went through."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.cli.project import Project
from toolchain.cli.screen import size
from toolchain.core.artifact import Artifact
from toolchain.core.errors import UsageError
from toolchain.core.suggest import did_you_mean

MAX_TEXT_BYTES = 4_000_000


def show(project: Project, store: Store, task: Task, *, after: str | None, member: str | None) -> Iterator[str]:
    """The text of what the task made last. `member`: one file of it; `after`: its form after that pass, made anew.

    Raises UsageError: the task was not built here, or has no such file or pass.
    """
    if after is not None:
        yield after_pass(project, store, task, after)
        return
    artifact = last_artifact(project, store, task.name)
    if member is not None:
        yield file_text(store, artifact, member)
        return
    if artifact.kind in RENDERERS:
        yield RENDERERS[artifact.kind](store.blobs.paths(artifact.files))
        return
    yield f"{task.name}: {artifact.kind}, {size(artifact.size_bytes)}"
    if artifact.meta:
        yield json.dumps(dict(artifact.meta), indent=2)
    for name, f in artifact.files.items():
        yield f"{size(f.size_bytes):>8}  {name}"


def last_artifact(project: Project, store: Store, name: str) -> Artifact:
    """What the task of that name made in this project's last build of it. Raises UsageError: nothing."""
    past = store.past(str(project.folder), name)
    trace = store.find(past.key) if past is not None else None
    if trace is None:
        raise UsageError(f"'{name}' has not been built here", fix="`tc build` first")
    return trace.artifact


def file_text(store: Store, artifact: Artifact, member: str) -> str:
    if member not in artifact.files:
        raise UsageError(f"no file '{member}' in it", fix=did_you_mean(member, artifact.files, noun="its files are"))
    path = store.blobs.path(artifact.files[member].digest)
    data = path.read_bytes()[:MAX_TEXT_BYTES]
    if b"\0" in data:
        raise UsageError(f"'{member}' is not text", fix=f"it lies at {path}")
    return data.decode("utf-8", "replace").rstrip("\n")


def _graph(files: Mapping[str, Path]) -> str:
    from toolchain.graph.serialize import load_files
    from toolchain.graph.text import to_text

    return to_text(load_files(files)).rstrip("\n")


RENDERERS: dict[str, Callable[[Mapping[str, Path]], str]] = {"graph": _graph}


def after_pass(project: Project, store: Store, task: Task, name: str) -> str:
    """Run the task's step again with every intermediate form written down, and return the one after that pass.

    Every pass that changed something has a form; "list" gives their names in order.
    """
    from toolchain.build.worker import Failed, Work, perform

    inputs = {key: last_artifact(project, store, child.name) for key, child in task.inputs.items()}
    if task.needs is not None:
        inputs |= {key: last_artifact(project, store, child.name) for key, child in task.needs(inputs).items()}
    with tempfile.TemporaryDirectory(prefix="tc-show-") as temporary:
        dump = Path(temporary) / "dump"
        dump.mkdir()
        work = Work(task.name, task.run, task.params, inputs, task.files, Path(temporary) / "out", Path(temporary) / "log",
                    store.root)
        before = os.environ.get("TC_DUMP")
        os.environ["TC_DUMP"] = str(dump)
        try:
            outcome = perform(work, store.blobs)
        finally:
            os.environ.pop("TC_DUMP")
            if before is not None:
                os.environ["TC_DUMP"] = before
        if isinstance(outcome, Failed) and name != "list":
            raise outcome.error
        forms = {_pass_name(path): path for path in sorted(dump.rglob("*")) if path.is_file()}
        if name == "list":
            return "\n".join(forms)
        if name not in forms:
            raise UsageError(f"'{task.name}' has no form after a pass '{name}'",
                             fix=did_you_mean(name, forms, noun="there are", limit=40) or "this task runs no passes")
        return forms[name].read_text(errors="replace", encoding="utf-8").rstrip("\n")


def _pass_name(path: Path) -> str:
    """07.fold_batch_norm.txt -> fold_batch_norm; 12.ll -> ll"""
    parts = path.name.split(".")
    return parts[1] if len(parts) > 1 else path.name
