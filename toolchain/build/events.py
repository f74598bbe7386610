"""The one stream a build emits; the screen, `--json`, the run record and reports are renderers of it.

Each event is a frozen record (a NamedTuple: an eighth of a dataclass's start-up time) and, as JSON, one line:
{"v":1,"event":"task_started","at_s":0.012,...}. `at_s` counts
from the start of the run. VERSION is raised when a field changes its meaning or goes.

    run_started  planned*  (task_started task_log? (task_finished | task_failed) | task_finished | task_waiting |
    task_skipped | progress | warning)*  run_finished

New fields and events may be added at any time. `planned` comes again whenever dynamic needs made the plan grow. A task found
in the store has only its `task_finished`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

VERSION = 1
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class RunStarted(NamedTuple):
    """`wall` is the time of day (ISO 8601, UTC), `jobs` how many tasks may run side by side."""

    at_s: float
    run_id: str
    wall: str
    project: str
    store: str
    goals: tuple[str, ...]
    jobs: int


class Planned(NamedTuple):
    """How many tasks are known so far."""

    at_s: float
    tasks: int


class TaskStarted(NamedTuple):
    """A task runs, and why; `estimated_s` from history, None when it was never seen; `attempt` counts from 1."""

    at_s: float
    task: str
    reason: str
    estimated_s: float | None
    attempt: int


class TaskWaiting(NamedTuple):
    """A task is held up by another process, which builds the same thing or uses the same resource."""

    at_s: float
    task: str
    what: str


class TaskFinished(NamedTuple):
    """`cached`: found in the store, and `duration_s` is what it took when it ran. `digest` is the artifact's."""

    at_s: float
    task: str
    cached: bool
    duration_s: float
    digest: str
    size_bytes: int | None = None       # None when cached


class TaskLog(NamedTuple):
    """The end of what a finished or failed task printed, and where the whole of it is."""

    at_s: float
    task: str
    lines: tuple[str, ...]
    path: str


class TaskFailed(NamedTuple):
    """`error` is the class of the error; `repro`, when not empty, the folder that holds run.sh and the inputs; `about` what
    of the user's the task worked for."""

    at_s: float
    task: str
    error: str
    what: str
    where: str
    fix: str
    duration_s: float
    log: str
    repro: str
    about: str = ""


class TaskSkipped(NamedTuple):
    """A task that could not run because `because` failed."""

    at_s: float
    task: str
    because: str


class Progress(NamedTuple):
    """How far a running task says it is; `total` 0: unknown."""

    at_s: float
    task: str
    done: float
    total: float
    text: str


class Warned(NamedTuple):
    """Something the user should know, though the build goes on. `task` may be empty."""

    at_s: float
    task: str
    text: str


class RunFinished(NamedTuple):
    """The last event. `saved_s`: what the cached tasks took when they ran. `critical_path`: the chain of tasks that ran
    which no number of jobs would have shortened, each with its seconds. `status`: done, failed, or interrupted."""

    at_s: float
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


Event = (RunStarted | Planned | TaskStarted | TaskWaiting | TaskFinished | TaskLog | TaskFailed | TaskSkipped | Progress
         | Warned | RunFinished)

_BY_NAME = {re.sub(r"(?<!^)([A-Z])", r"_\1", kind.__name__).lower(): kind for kind in get_args(Event)}
_NAMES = {kind: name for name, kind in _BY_NAME.items()}


def to_json(event: Event) -> dict[str, Any]:
    return {"v": VERSION, "event": _NAMES[type(event)], **event._asdict()}


def line(event: Event) -> str:
    """The event as one line of JSON, without the line break."""
    return _ENCODER.encode(to_json(event))


def read_event(data: Mapping[str, Any]) -> Event | None:
    """The event of one decoded line; None for an event of a later version. Fields it does not know are left out."""
    if (kind := _BY_NAME.get(data["event"])) is None or data["v"] != VERSION:
        return None
    event: Event = kind(**{name: _frozen(data[name]) for name in kind._fields if name in data})
    return event


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
