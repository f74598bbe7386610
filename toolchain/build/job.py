"""A task on its way through the executor, from the decision that it must run to the commit of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from toolchain.build.frontier import Node
from toolchain.build.keys import Change
from toolchain.build.locks import Lock
from toolchain.core.artifact import Artifact


@dataclass(slots=True, eq=False)
class Job:
    """What was decided: under which key it runs, why, and on which inputs."""

    node: Node
    key: str
    facts: Mapping[str, str]
    reason: str
    changes: tuple[Change, ...]
    estimate_s: float | None
    inputs: Mapping[str, Artifact]
    attempt: int = 0
    locks: list[Lock] = field(default_factory=list)
    waiting: bool = False                   # announced as waiting for another process
    begun_s: float = 0.0

    def release(self) -> None:
        """Let others have its locks."""
        for lock in self.locks:
            lock.release()
        self.locks.clear()
