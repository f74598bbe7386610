"""The lock file: what builds were made from and what came out, as a text to commit. Its form only, not what it means.

    version = 1

    [tools]
    llvmlite = "0.47.0"

    [models.resnet18]
    deployfile.path = "resnet18.onnx"
    files.model = "3fa9c1d2..."

    [builds."resnet18@x86"]
    artifact = "77ab01c3..."

It is TOML in one spelling: sections and keys in order, one fact a line, long lists one item a line; so a change shows as the
lines it concerns, and git merges builds apart. `parse` reads that spelling only, which takes a tenth of the time that
importing tomllib would, knows every line's number, and finds what a merge or a hand left wrong.

Written whole or not at all, never when nothing changed, and by one process after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolchain.build.caret import printable
from toolchain.build.folders import write_atomically
from toolchain.build.locks import hold
from toolchain.build.runs import state_folder
from toolchain.core.errors import LockfileError

VERSION = 1
KINDS = ("tools", "models", "targets", "builds")        # of sections, in the order of the file
WIDTH = 100                                             # longer lists are written one item a line
HEAD = """\
# What `tc build` made, and from what. It writes this file: commit it, do not edit it.
# `tc build --locked` builds exactly this, or says what differs.
"""
# What every section of a kind has. (The other keys are a matter of toolchain/tasks/lock.py.)
NEEDED: Mapping[str, tuple[str, ...]] = {"builds": ("artifact", "inputs", "model", "target")}

Value = str | int | float | list[Any]
Section = Mapping[str, Value]               # dotted key ('files."a b.onnx"') -> value
Name = tuple[str, str]                      # ("models", "resnet18"); ("tools", "")

_PART = r'(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*")'
_KEY = rf"{_PART}(?:\.{_PART})*"
_LINE = re.compile(rf"({_KEY}) = (.+)")
_HEADER = re.compile(rf"\[({_PART})(?:\.({_PART}))?\]")
_CONFLICT = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")


class Lock(NamedTuple):
    """A lock file's content. lines: the number of each section's first line (under the key "") and of each key's.

    path: of the file, as messages name it; text: as it was read, empty where there is none.
    """

    path: Path
    text: str
    sections: Mapping[Name, Section]
    lines: Mapping[Name, Mapping[str, int]]

    def where(self, name: Name, key: str = "") -> str:
        """deployfile.lock:12, as far as the place is known."""
        line = self.line(name, key)
        return f"{self.path.name}:{line}" if line else self.path.name

    def line(self, name: Name, key: str = "") -> int:
        """The number of a key's line, or else of its section's; 0: it is not there."""
        known = self.lines.get(name, {})
        return known.get(key, known.get("", 0))


class Difference(NamedTuple):
    """One fact that is not as locked; None: there was, or is, none. key "": the whole section is not locked."""

    name: Name
    key: str
    locked: Value | None
    present: Value | None


def lock_path(deployfile: Path) -> Path:
    """deployfile.yaml -> deployfile.lock, beside it: two deployfiles in one folder have two."""
    plain = deployfile.suffix in (".yaml", ".yml")
    return deployfile.with_suffix(".lock") if plain else deployfile.with_name(f"{deployfile.name}.lock")


def flatten(value: Any, prefix: str = "") -> dict[str, Value]:
    """{"dims": {"a b": 1}, "path": "x"} -> {'dims."a b"': 1, "path": "x"}. None and empty collections are left out."""
    if isinstance(value, Mapping):
        found: dict[str, Value] = {}
        for key, below in value.items():
            found |= flatten(below, f"{prefix}.{spell(key)}" if prefix else spell(key))
        return found
    if value is None or value == () or value == []:
        return {}
    return {prefix: list(value) if isinstance(value, tuple) else value}


def spell(part: str) -> str:
    """One part of a key or of a section's name, quoted where it is not a plain word."""
    plain = part.replace("-", "a").replace("_", "a")
    return part if plain.isascii() and plain.isalnum() else _text(part)


def section_name(name: Name) -> str:
    """("builds", "resnet18@x86") -> builds."resnet18@x86" """
    return f"{name[0]}.{spell(name[1])}" if name[1] else name[0]


def compare(name: Name, locked: Section | None, present: Section, *, whole: bool = True) -> Iterator[Difference]:
    """Where a section is not as locked, in the order of its keys. whole: False when `present` has only what is known yet."""
    if locked is None:
        yield Difference(name, "", None, None)
        return
    for key in sorted(locked.keys() | present.keys()) if whole else sorted(present):
        if locked.get(key) != present.get(key):
            yield Difference(name, key, locked.get(key), present.get(key))


# -- writing --------------------------------------------------------------------------------------------------------------


def render(sections: Mapping[Name, Section]) -> str:
    """The text of a lock file. Equal content gives equal text."""
    parts = [f"{HEAD}version = {VERSION}\n"]
    for name in sorted(sections, key=lambda n: (KINDS.index(n[0]), n[1])):
        lines = [f"{key} = {_value(value)}\n" for key, value in sorted(sections[name].items())]
        parts.append(f"[{section_name(name)}]\n{''.join(lines)}")
    return "\n".join(parts)


def update(seen: Lock, new: Mapping[Name, Section], keep: Collection[Name]) -> tuple[Name, ...]:
    """Put sections into the file in place of those of the same name; those neither new nor in `keep` go.

    Returns the names of sections that were added or changed; nothing is written when the text would be the same. The file is
    read again when it is no longer as `seen`, so of several builds that end at once each adds its own. Killed at any moment,
    the old text or the new one is there. Raises LockfileError: the file cannot be written, or has been damaged meanwhile.
    """
    wanted = _merged(seen, new, keep)
    if (render(wanted) if wanted or seen.text else "") == seen.text == _read_text(seen.path):
        return ()
    state = state_folder(seen.path.absolute().parent)
    try:
        state.mkdir(exist_ok=True)
        lock = hold(state / f"{seen.path.name}.held")
        try:
            for left_behind in seen.path.parent.glob(f".tmp-{seen.path.name}-*"):       # by a process that was killed
                left_behind.unlink(missing_ok=True)
            there = read(seen.path)
            merged = _merged(there, new, keep)
            if (text := render(merged)) != there.text:
                write_atomically(seen.path, text.encode())
        finally:
            lock.release()
    except OSError as error:
        raise LockfileError(f"{seen.path}: it cannot be written: {error.strerror}") from None
    return tuple(name for name in new if new[name] != there.sections.get(name))


def _merged(lock: Lock, new: Mapping[Name, Section], keep: Collection[Name]) -> dict[Name, Section]:
    return {**{name: section for name, section in lock.sections.items() if name in keep}, **new}


def _value(value: Value) -> str:
    """As JSON writes it, which for text, numbers and lists is TOML too."""
    text = _text(value)
    if isinstance(value, list) and len(text) > WIDTH:
        return "\n".join(["[", *(f"  {_text(item)}," for item in value), "]"])
    return text


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- reading --------------------------------------------------------------------------------------------------------------


def read(path: Path) -> Lock:
    """The lock file at `path`; one without sections where there is none.

    Raises LockfileError: it is damaged, holds an unresolved merge, or is of a newer version.
    """
    return parse(_read_text(path), path)


def parse(text: str, path: Path) -> Lock:
    """The content of a lock file. Raises LockfileError, with the number of the line."""
    sections: dict[Name, dict[str, Value]] = {}
    numbers: dict[Name, dict[str, int]] = {}
    if not text:
        return Lock(path, "", sections, numbers)
    here: Name | None = None
    version = None
    for number, line in (lines := _Lines(text)):
        if (header := _HEADER.fullmatch(line)) is not None:
            here = (_plain(header[1]), _plain(header[2] or '""'))
            if here[0] not in KINDS or bool(here[1]) == (here[0] == "tools") or here in sections:
                raise _damaged(path, text, number)
            sections[here], numbers[here] = {}, {"": number}
        elif (fact := _LINE.fullmatch(line)) is not None:
            value = _parsed(lines, fact[2])
            if here is None and fact[1] == "version" and version is None:
                version = _check_version(path, text, number, value)
            elif here is None or value is None or fact[1] in sections[here]:
                raise _damaged(path, text, number)
            else:
                sections[here][fact[1]], numbers[here][fact[1]] = value, number
        else:
            raise _damaged(path, text, number)
        if version is None:
            raise _damaged(path, text, number)
    for name, section in sections.items():
        if not all(isinstance(section.get(key), str) for key in NEEDED.get(name[0], ())):
            raise _damaged(path, text, numbers[name][""])
    return Lock(path, text, sections, numbers)


class _Lines:
    """Numbered lines that say something; `_parsed` takes those of a list out of their middle."""

    def __init__(self, text: str) -> None:
        self.rest = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return ((number, line) for number, line in self.rest if line and not line.startswith("#"))


def _parsed(lines: _Lines, text: str) -> Value | None:
    """The value that begins with `text`; None: it is none."""
    if text == "[":
        items: list[str] = []
        for _, line in lines.rest:
            if line == "]":
                text = f"[{' '.join(items).removesuffix(',')}]"
                break
            items.append(line)
    try:
        value: Value | None = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, (str, int, float, list)) else None


def _plain(part: str) -> str:
    return str(json.loads(part)) if part.startswith('"') else part


def _check_version(path: Path, text: str, number: int, value: Value | None) -> int:
    if isinstance(value, int) and value > VERSION:
        raise LockfileError(f"{path.name}:{number}: its format is version {value}, and this toolchain reads {VERSION}",
                            fix=f"use the toolchain that wrote it, or a newer one; or remove {path.name} and `tc build`")
    if value != VERSION:
        raise _damaged(path, text, number)
    return VERSION


def _damaged(path: Path, text: str, number: int) -> LockfileError:
    """The error about a line that is not what `render` writes: the first one a merge left behind, where there is one."""
    lines = text.split("\n")
    conflict = next((n for n, line in enumerate(lines, 1) if line.startswith(_CONFLICT)), None)
    if conflict is not None:
        return LockfileError(f"{path.name}:{conflict}: a merge was not resolved here",
                             fix=f"take one side (git checkout --theirs {path.name}), then `tc build` brings it up to date")
    line = lines[number - 1]
    return LockfileError(f"{path.name}:{number}: damaged: {printable(line if len(line) <= 60 else f'{line[:60]}...')}",
                         fix=f"take it from version control (git checkout {path.name}), or remove it and `tc build`")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise LockfileError(f"{path.name}: it cannot be read: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, data.decode(errors="replace"), data.count(b"\n", 0, error.start) + 1) from None
