"""A task on its way through the executor, from the decision that it must run to the commit of what it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.build.folders import safe_name
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

    def lock(self, folder: Path) -> str:
        """Take the locks of the key and of the resource: "". While another process has one, what it does with it; then
        nothing is held."""
        wanted = {folder / f"key-{self.key}": "another process is building it"}
        if resource := self.node.task.resource:
            wanted[folder / f"resource-{safe_name(resource)}"] = f"another process is using {resource}"
        for path, busy in wanted.items():
            if (lock := Lock.acquire(path)) is None:
                self.release()
                return busy
            self.locks.append(lock)
        return ""

    def release(self) -> None:
        """Let others have its locks."""
        for lock in self.locks:
            lock.release()
        self.locks.clear()
