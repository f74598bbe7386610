"""What a task's key is made of, and how two sets of ingredients differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from toolchain.build.task import Task
from toolchain.core.digest import canonical_json, digest_bytes, digest_json
from toolchain.core.errors import TaskError

STORE_FORMAT = 1            # raise it when keys, artifacts or the way steps are called change their meaning
_LONGEST = 200              # longer parameter values enter as their beginning and their digest
_PLAIN_KEY = re.compile(r"[^.\"{}\s]+")


class Change(NamedTuple):
    """One ingredient that differs; None: there was, or is, no such ingredient."""

    ingredient: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        kind, _, name = self.ingredient.partition(" ")
        if kind in ("input", "file") and self.old and self.new:
            return f"{kind} {name} changed: {self.old[:12]} -> {self.new[:12]}"
        if self.old is None:
            return f"{self.ingredient} added: {_short(kind, self.new)}"
        if self.new is None:
            return f"{self.ingredient} removed: {_short(kind, self.old)}"
        return f"{self.ingredient} changed: {self.old} -> {self.new}"


def ingredients(task: Task, inputs: Mapping[str, str], files: Mapping[str, str]) -> dict[str, str]:
    """All that the artifact of `task` depends on, one line per fact; the key is their digest.

    inputs: digest of each input artifact's content. files: digest of each source file.

        {"format": "1", "run": "pkg.steps:optimize", "version": "3", "param level": "2", "param shapes.x": "[1,3]",
         "file model": "ab12...", "input graph": "cd34..."}

    Raises TaskError: the parameters are not plain JSON data, or a name is both an input's and a file's.
    """
    if both := set(inputs) & set(files):
        raise TaskError(f"{min(both)!r} is both an input and a file", where=f"task {task.name!r}")
    facts = {"format": str(STORE_FORMAT), "run": task.run, "version": str(task.version)}
    try:
        facts.update(_leaves("param ", task.params))
    except (TypeError, ValueError) as e:
        raise TaskError(f"parameters are not plain data: {e}", where=f"task {task.name!r}") from None
    for name, digest in files.items():
        facts[f"file {name}"] = digest
    for name, digest in inputs.items():
        facts[f"input {name}"] = digest
    return facts


def key_of(facts: Mapping[str, str]) -> str:
    return digest_json(facts)


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Change, ...]:
    """The ingredients that differ, in the order: format, run, version, parameters, files, inputs; by name within each."""
    rank = ("format", "run", "version", "param", "file", "input")
    names = sorted(old.keys() | new.keys(), key=lambda n: (rank.index(n.split(" ", 1)[0]), n))
    return tuple(Change(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n))


def describe(changed: Sequence[Change]) -> str:
    """Up to three changes in one line."""
    more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(str(change) for change in changed[:3]) + more


def _leaves(path: str, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One (dotted path, JSON) per leaf; lists are leaves. Different parameters never give the same lines: keys that
    could be read as a path are quoted."""
    for key, value in params.items():
        if not isinstance(key, str):
            raise TypeError(f"key {key!r} is not a string")
        here = path + (key if _PLAIN_KEY.fullmatch(key) else json.dumps(key))
        if isinstance(value, Mapping) and value:
            yield from _leaves(f"{here}.", value)
        else:
            text = canonical_json(dict(value) if isinstance(value, Mapping) else value)
            if len(text) > _LONGEST:
                text = f"{text[:60]}... (sha256 {digest_bytes(text.encode())})"
            yield here, text


def _short(kind: str, value: str | None) -> str:
    text = value or ""
    return text[:12] if kind in ("input", "file") else text
