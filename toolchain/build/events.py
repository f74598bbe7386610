"""The one stream a build emits; the screen, `--json`, the run record and reports are renderers of it.

Each event is a frozen dataclass and, as JSON, one line: {"v": 1, "event": "task_started", "at_s": 0.012, ...}. `at_s`
Each event is a frozen dataclass and, as JSON, one line: {"v":1,"event":"task_started","at_s":0.012,...}. `at_s`

    run_started  planned*  (task_started task_log? (task_finished | task_failed) | task_finished | task_waiting |
    task_skipped | progress | warning)*  run_finished

`planned` comes again whenever dynamic needs made the plan grow. A task found in the store has only its `task_finished`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

VERSION = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str] = ""
    at_s: float

    def to_json(self) -> dict[str, Any]:
        return {"v": VERSION, "event": self.kind, **{name: getattr(self, name) for name in _FIELDS[type(self)]}}

    def line(self) -> str:
        """The event as one line of JSON, without the line break."""
        return json.dumps(self.to_json(), separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """`wall` is the time of day (ISO 8601, UTC), `jobs` how many tasks may run side by side."""

    run_id: str
    wall: str
    project: str
    store: str
    goals: tuple[str, ...]
    jobs: int


@dataclass(frozen=True, slots=True)
class Planned(Event):
    """How many tasks are known so far."""

    tasks: int


@dataclass(frozen=True, slots=True)
class TaskStarted(Event):
    """A task runs, and why; `estimated_s` from history, None when it was never seen; `attempt` counts from 1."""

    task: str
    reason: str
    estimated_s: float | None
    attempt: int


@dataclass(frozen=True, slots=True)
class TaskWaiting(Event):
    """A task is held up by another process, which builds the same thing or uses the same resource."""

    task: str
    what: str


@dataclass(frozen=True, slots=True)
class TaskFinished(Event):
    """`cached`: found in the store, and `duration_s` is what it took when it ran. `digest` is the artifact's."""

    task: str
    cached: bool
    duration_s: float
    digest: str
    size_bytes: int | None = None       # None when cached


@dataclass(frozen=True, slots=True)
class TaskLog(Event):
    """The end of what a finished or failed task printed, and where the whole of it is."""

    task: str
    lines: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class TaskFailed(Event):
    """`error` is the class of the error; `repro`, when not empty, the folder that holds run.sh and the inputs."""

    task: str
    error: str
    what: str
    where: str
    fix: str
    duration_s: float
    log: str
    repro: str


@dataclass(frozen=True, slots=True)
class TaskSkipped(Event):
    """A task that could not run because `because` failed."""

    task: str
    because: str


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """How far a running task says it is; `total` 0: unknown."""

    task: str
    done: float
    total: float
    text: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the user should know, though the build goes on. `task` may be empty."""

    task: str
    text: str


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """The last event. `saved_s`: what the cached tasks took when they ran. `critical_path`: the chain of tasks that ran
    which no number of jobs would have shortened, each with its seconds. `status`: done, failed, or interrupted."""

    status: str
    ran: int
    cached: int
    failed: int
    skipped: int
    wall_s: float
    saved_s: float
    critical_s: float
    critical_path: tuple[tuple[str, float], ...]
    log: str = ""


EVENTS: tuple[type[Event], ...] = (RunStarted, Planned, TaskStarted, TaskWaiting, TaskFinished, TaskLog, TaskFailed,
                                   TaskSkipped, Progress, Warned, RunFinished)
for _event in EVENTS:
    _event.kind = re.sub(r"(?<!^)([A-Z])", r"_\1", _event.__name__).lower()

_FIELDS: Mapping[type[Event], tuple[str, ...]] = {e: tuple(f.name for f in fields(e)) for e in EVENTS}
_BY_NAME: Mapping[str, type[Event]] = {e.kind: e for e in EVENTS}


def read_event(data: Mapping[str, Any]) -> Event | None:
    """The event of one decoded line; None for an event of a later version. Fields it does not know are left out."""
    if (kind := _BY_NAME.get(data["event"])) is None or data["v"] != VERSION:
        return None
    return kind(**{name: _frozen(data[name]) for name in _FIELDS[kind] if name in data})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
