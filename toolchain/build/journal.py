"""What a run tells: events to the listener and into the run's record, the ends of logs, the critical path."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from toolchain.build import runs
from toolchain.build.events import Event, TaskLog, Warned
from toolchain.build.folders import safe_name
from toolchain.build.frontier import Node

Listener = Callable[[Event], None]
_LOG_LINES = 20


class Journal:
    """The events of one run. Without a project nothing is recorded, only told."""

    def __init__(self, project: Path | None, listener: Listener | None) -> None:
        self.begun, self.listener = time.monotonic(), listener
        self.record = runs.begin(runs.runs_folder(project)) if project else None
        self.run_id = self.record.id if self.record else ""
        self.folder = self.record.folder if self.record else None
        self._is_lost = False

    def now(self) -> float:
        return round(time.monotonic() - self.begun, 6)

    def emit(self, event: Event, *, flush: bool = True) -> None:
        if self.record and not self._is_lost:
            try:
                self.record.write(event, flush=flush)
            except OSError as e:                        # a full disk here must not stop a build whose store has room
                self._is_lost = True
                self.warn("", f"the run record cannot be written: {e.strerror}")
        if self.listener:
            self.listener(event)

    def warn(self, task: str, text: str) -> None:
        self.emit(Warned(self.now(), task, text))

    def log_path(self, task: str, otherwise: Path) -> Path:
        """Where a task's output goes: into the record, or below `otherwise` when there is none."""
        return self.record.log(task) if self.record else otherwise / f"{safe_name(task)}.txt"

    def emit_log(self, task: str, path: Path) -> None:
        """Tell the end of what a task printed, if it printed anything."""
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        if lines:
            self.emit(TaskLog(self.now(), task, tuple(lines[-_LOG_LINES:]), str(path)))

    def close(self) -> None:
        if self.record:
            with contextlib.suppress(OSError):
                self.record.file.close()


def critical_path(ran: Mapping[Node, float]) -> tuple[tuple[str, float], ...]:
    """The longest chain of tasks that ran. Needs: `ran` lists a task after its inputs, as they finished."""
    longest: dict[Node, tuple[float, Node | None]] = {}
    for node, seconds in ran.items():
        before = max(((longest[c][0], c) for c in node.inputs.values() if c in longest), default=(0.0, None),
                     key=lambda known: known[0])
        longest[node] = (before[0] + seconds, before[1])
    last: Node | None = max(longest, key=lambda n: longest[n][0], default=None)
    path: list[tuple[str, float]] = []
    while last is not None:
        path.append((last.name, ran[last]))
        last = longest[last][1]
    return tuple(reversed(path))
