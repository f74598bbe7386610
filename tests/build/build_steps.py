"""Steps and a small plan language for the tests of the task engine; `command` builds one in another process.

A plan is a list of {"name", "value", "reads": [names], ...}, inputs before readers. Its steps add numbers: the value of a
task is (its own + those it reads) // cut, so that `cut` makes some edits have no effect further on (early cutoff).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import toolchain
from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.build.task import Input, Result, Task
from toolchain.build.worker import progress
from toolchain.core.artifact import Artifact
from toolchain.core.errors import DeviceError, ScheduleError, TaskError

EXECUTED: list[str] = []            # names of the tasks that ran in this process


def add(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """value = (own + read) // cut; written to value.txt `size` times, and said in meta."""
    EXECUTED.append(params["name"])
    note(params, "start")
    time.sleep(params.get("sleep_s", 0))
    read = sum(i.meta["value"] if i.kind == "number" else int(i.path.read_text()) for i in inputs.values())
    value = (params["value"] + read) // params.get("cut", 1)
    (out / "value.txt").write_text(f"{value}\n" * params.get("size", 1))
    (out / "more").mkdir()
    (out / "more" / "name.txt").write_text(params["name"])
    note(params, "end")
    return Result("number", {"value": value})


def note(params: Mapping[str, Any], what: str) -> None:
    """One line in the file all processes append to."""
    if "notes" in params:
        with open(params["notes"], "a") as file:
            file.write(f"{what} {params['name']} {os.getpid()}\n")


def abort(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """Dies as a native library would: always, or (with `once`) the first time."""
    if not (marker := Path(params.get("once", "/nonexistent"))).exists():
        if "once" in params:
            marker.touch()
        os.abort()
    return Result("number", {"value": 1})


def refuse(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    raise ScheduleError("factor 3 does not fit", where="kernel 'conv1'", fix="choose 4")


class HomeMadeError(DeviceError):
    def __init__(self, what: str, board: str) -> None:
        super().__init__(what, where=board)


def refuse_strangely(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    raise HomeMadeError("the board is gone", "pi4")


def crash(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    print("about to divide")
    return Result("number", {"value": 1 // 0})


def leave_link(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    (out / "passwd").symlink_to("/etc/passwd")
    return Result("link")


def not_plain(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    return Result("number", {"value": {1, 2}})


def talk(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    print("from python")
    os.write(2, b"from native code\n")
    progress(1, 2, "half")
    (out / "run.sh").write_text("#!/bin/sh\necho hello\n")
    (out / "run.sh").chmod(0o700)
    return Result("program")


def edit_source(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """Reads its source, which somebody edits at the same time (once)."""
    text = inputs["source"].path.read_text()
    if text == "before":
        inputs["source"].path.write_text("after!")
    (out / "copy.txt").write_text(text)
    return Result("text", {"text": text})


def choose(choice: Sequence[Task], artifacts: Mapping[str, Artifact]) -> dict[str, Task]:
    return {"chosen": choice[sum(a.meta["value"] for a in artifacts.values()) % 2]}


def tasks_of(plan: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
    """The tasks of a plan, by name. Keys besides `add`'s parameters: reads, version, source (a path), run, resource, and
    either: [a, b], a dynamic input that is task a if the sum of the static inputs' values is even, else b."""
    tasks: dict[str, Task] = {}
    for entry in plan:
        params = {k: v for k, v in entry.items() if k not in ("reads", "version", "source", "run", "resource", "either")}
        needs = None
        if either := entry.get("either"):
            needs = partial(choose, [tasks[name] for name in either])
        tasks[entry["name"]] = Task(
            entry["name"], f"build_steps:{entry.get('run', 'add')}", entry.get("version", 1), params,
            {f"r{n}": tasks[name] for n, name in enumerate(entry.get("reads", ()))}, needs,
            {"source": Path(entry["source"])} if "source" in entry else {}, entry.get("resource", ""))
    return tasks


def command(store: Path, project: Path, plan: Path, jobs: int, *more: str) -> list[str]:
    """The command line that builds a plan in a process of its own."""
    paths = [str(Path(__file__).parent), str(Path(toolchain.__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {paths}; import build_steps; sys.exit(build_steps.main(*sys.argv[1:]))"
    return [sys.executable, "-S", "-c", code, str(store), str(project), str(plan), str(jobs), *more]


def main(store: str, project: str, plan: str, jobs: str, limit_bytes: str = "") -> int:
    """Build all tasks of the plan in that file, export the last one to `<project>/out`; the exit code."""
    if limit_bytes:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    tasks = tasks_of(json.loads(Path(plan).read_text()))
    *_, last = tasks.values()
    try:
        executor = Executor(Store(Path(store)), Path(project), jobs=int(jobs))
        build = executor.build(list(tasks.values()), {Path(project) / "out": last})
    except TaskError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    for error in build.failed.values():
        print(error, file=sys.stderr)
    return build.exit_code
