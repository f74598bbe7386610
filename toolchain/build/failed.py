"""What a failed task leaves behind: `<project>/.tc/failed/<task>/` with all that is needed to run its step again by hand.

    run.sh        runs the step once more, in the foreground (under a debugger: see its last line)
    call.json     the step and what it gets    params.json   its parameters
    inputs/       <input>/<file>, links to the store and to source files
    log           what it printed              error.txt     the error
    dump/         once run.sh has run: each intermediate form of the kernels it compiled
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from toolchain.build.folders import fresh_name, remove_tree, safe_name
from toolchain.build.runs import state_folder
from toolchain.build.store import Store
from toolchain.build.worker import Work
from toolchain.core.errors import ToolchainError


def failed_folder(project: Path, task: str) -> Path:
    return state_folder(project) / "failed" / safe_name(task)


def keep(project: Path, store: Store, work: Work, error: ToolchainError) -> Path:
    """Write the folder of a failed task, in place of an older one. Returns it."""
    folder = failed_folder(project, work.task)
    new = folder.with_name(fresh_name(f".tmp-{folder.name}"))
    (new / "inputs").mkdir(parents=True)
    inputs: dict[str, object] = {}
    for name, artifact in work.inputs.items():
        _link(new / "inputs" / name, {file: store.blobs.path(f.digest) for file, f in artifact.files.items()}.items())
        inputs[name] = {"kind": artifact.kind, "meta": dict(artifact.meta), "files": list(artifact.files)}
    for name, path in work.files.items():
        _link(new / "inputs" / name, [(path.name, path.absolute())])
        inputs[name] = {"kind": "file", "meta": {}, "files": [path.name]}
    call = {"task": work.task, "run": work.run, "inputs": inputs}
    (new / "call.json").write_text(json.dumps(call, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    params = json.dumps(work.params, indent=1, sort_keys=True, default=dict)
    (new / "params.json").write_text(params + "\n", encoding="utf-8")
    (new / "error.txt").write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
    if work.log.exists():
        shutil.copyfile(work.log, new / "log")
    (new / "run.sh").write_text(_script(work.run), encoding="utf-8")
    (new / "run.sh").chmod(0o755)
    remove_tree(folder)
    new.rename(folder)
    return folder


def last_error(project: Path, task: str) -> str:
    """The first line of the error a task ended with last time; empty when it did not fail."""
    try:
        return (failed_folder(project, task) / "error.txt").read_text(encoding="utf-8").partition("\n")[0]
    except OSError:
        return ""


def forget(project: Path, tasks: Iterable[str]) -> None:
    """Remove the folders of tasks that have succeeded since."""
    there = set(os.listdir(below)) if (below := state_folder(project) / "failed").is_dir() else set()
    for task in tasks if there else ():
        if safe_name(task) in there:
            remove_tree(failed_folder(project, task))


def _link(folder: Path, files: Iterable[tuple[str, Path]]) -> None:
    folder.mkdir()
    for name, path in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)


def _script(step: str) -> str:
    extra = [p for p in sys.path if p and not p.startswith(sys.prefix) and not p.startswith(sys.base_prefix)]
    return (
        "#!/bin/sh\n"
        f"# Runs the step {step} again on the same inputs; its output goes to out/, kernels' forms to dump/.\n"
        'cd "$(dirname "$0")" || exit 1\n'
        'export TC_DUMP="${TC_DUMP:-$PWD/dump}"\n'
        f"export PYTHONPATH={shlex.quote(os.pathsep.join(extra))}\n"
        f'exec {shlex.quote(sys.executable)} "$@" -m toolchain.build.worker .      # "$@": options for Python, like -X dev\n'
    )
