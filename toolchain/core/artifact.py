"""What a task leaves behind: a few named files, whose bytes live in the content-addressed store, and small facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolchain.core.digest import digest_json


@dataclass(frozen=True, slots=True)
class File:
    """One file of an artifact: the SHA-256 of its bytes, its size, and whether it is a program."""

    digest: str
    size_bytes: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """The content of a finished task. `kind` names what it is ("graph", "object", "module", "facts").

    `meta` is small plain data (JSON); units stand in its key names. `digest` covers kind, files and meta, so two tasks that
    made the same thing have artifacts of the same digest, and what depends on them need not run again (early cutoff).
    """

    kind: str
    files: Mapping[str, File] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "files": {
                name: [f.digest, f.size_bytes, *([True] if f.executable else [])] for name, f in self.files.items()
            },
            "meta": dict(self.meta),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        return cls(data["kind"], {name: File(*f) for name, f in data["files"].items()}, data["meta"])
