"""The record of every run: `<project>/.tc/runs/<id>/` with events.jsonl and one log per task that ran. The last 20 stay."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from toolchain.build.events import Event, line, read_event
from toolchain.build.folders import remove_tree, safe_name

KEEP = 20


def state_folder(project: Path) -> Path:
    return project / ".tc"


def runs_folder(project: Path) -> Path:
    return state_folder(project) / "runs"


class Run(NamedTuple):
    """A run being recorded."""

    id: str
    folder: Path
    file: TextIO

    def write(self, event: Event, *, flush: bool) -> None:
        self.file.write(line(event) + "\n")
        if flush:
            self.file.flush()

    def log(self, task: str) -> Path:
        return self.folder / "logs" / f"{safe_name(task)}.txt"


def begin(folder: Path) -> Run:
    """Start a record below `folder` and remove old ones. Its name sorts by time: 20260131-235959-123-PID."""
    while True:
        now = time.time()
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now % 1 * 1000):03}-{os.getpid()}"
        try:
            (folder / name / "logs").mkdir(parents=True)
            break
        except FileExistsError:
            time.sleep(0.001)
    for old in [other for other in _names(folder) if other != name][:1 - KEEP]:
        remove_tree(folder / old)
    return Run(name, folder / name, (folder / name / "events.jsonl").open("w", encoding="utf-8"))


def recorded(project: Path) -> list[Path]:
    """The folders of the recorded runs, oldest first."""
    folder = runs_folder(project)
    return [folder / name for name in _names(folder)]


def events_of(run: Path) -> Iterator[Event]:
    """The events of a recorded run. A last line cut short by a kill is left out."""
    with (run / "events.jsonl").open(encoding="utf-8") as file:
        for text in file:
            try:
                event = read_event(json.loads(text))
            except (ValueError, KeyError, TypeError):
                continue
            if event is not None:
                yield event


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
