"""Values of keys that are named like a secret (`password: ...`) stand in no message, whatever is wrong with their line.

    kitchen: {user: pi, password: hunter2, port: x}    ->    kitchen: {user: pi, password: ***, port: x}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MASK = "***"
_NAMED = r"(?:(?:passw(?:or)?d|passphrase|secret|api[_-]?key|credential)[\w.-]{0,40}|token)"    # not token_type_ids
_KEY = re.compile(rf"(?<![\w.-])[\w.-]{{0,40}}{_NAMED}[\"']?\s*:(?=[\s\"']|$)\s*", re.IGNORECASE)
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*(?:\"|$)|'(?:[^']|'')*(?:'|$)")
_IN_FLOW = re.compile(r"[^,}\]]*")


class Shown(NamedTuple):
    """A line without its secrets. hidden: (column, length) of each in the line as it was."""

    text: str
    hidden: tuple[tuple[int, int], ...]

    def place(self, column: int, length: int) -> tuple[int, int]:
        """Where a piece of the line stands in the text."""
        moved = column
        for at, size in self.hidden:
            if at <= column < at + size:
                return moved - (column - at), len(MASK)
            if at < column:
                moved += len(MASK) - size
        return moved, length


def shown(lines: Sequence[str], number: int) -> Shown:
    """A line of a YAML text, `number` from 0."""
    line = lines[number] if number < len(lines) else ""
    if line.strip() and _continues_a_secret(lines, number):
        start = len(line) - len(line.lstrip())
        return Shown(line[:start] + MASK, ((start, len(line.strip())),))
    text, last = "", 0
    hidden = tuple(_values(line))
    for start, size in hidden:
        text += line[last:start] + MASK
        last = start + size
    return Shown(text + line[last:], hidden)


def _values(line: str) -> Iterator[tuple[int, int]]:
    """(column, length) of the values of keys named like a secret."""
    at = 0
    while m := _KEY.search(line, at):
        size = _value_length(line, m.end())
        if size:
            yield m.end(), size
        at = m.end() + size


def _value_length(line: str, at: int) -> int:
    if m := _QUOTED.match(line, at):
        return len(m[0])
    if "{" in line[:at] or "[" in line[:at]:
        m = _IN_FLOW.match(line, at)
        return len(m[0].rstrip()) if m is not None else 0
    return len(line[at:].rstrip())


def _continues_a_secret(lines: Sequence[str], number: int) -> bool:
    """Whether a line belongs to a value that a line further left began, behind a key named like a secret."""
    left = len(lines[number]) - len(lines[number].lstrip())
    for above in reversed(lines[:number]):
        indent = len(above) - len(above.lstrip())
        if above.strip() and indent < left:
            left = indent
            if any(m.end() + _value_length(above, m.end()) >= len(above.rstrip()) for m in _KEY.finditer(above)):
                return True
    return False


__all__ = ["MASK", "Shown", "shown"]
