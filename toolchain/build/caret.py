"""Errors in a text file as a person sees them: file:line:column, the line, a caret under the place, and a fix.

    deployfile.yaml:4:5: models.resnet.pth: unknown key
    4 |     pth: resnet.onnx
      |     ^^^
    fix: did you mean 'path'?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from toolchain.build import secrets

MAX_SHOWN = 20
WIDTH = 100                     # characters of a source line shown at most


class Problem(NamedTuple):
    """One error: where (line and column from 0, `length` characters), at which key, what is wrong and how to fix it."""

    line: int
    column: int
    what: str
    length: int = 1
    keys: tuple[str | int, ...] = ()
    fix: str = ""


def render(problems: Sequence[Problem], text: str, name: str) -> str:
    """All problems in the order of the file, the first MAX_SHOWN in full."""
    lines = text.split("\n")
    ordered = sorted(problems, key=lambda p: (p.line, p.column))
    shown = [_screen(p, *_source(p, lines), name) for p in ordered[:MAX_SHOWN]]
    if len(ordered) > 1:
        more = f", the first {MAX_SHOWN} shown" if len(ordered) > MAX_SHOWN else ""
        shown.append(f"{len(ordered)} errors in {name}{more}")
    return "\n\n".join(shown)


def dotted(keys: Sequence[str | int]) -> str:
    """("builds", 0, "models") -> builds[0].models; names that are not plain words are quoted."""
    text = ""
    for key in (k if isinstance(k, int) or len(k) <= 60 else f"{k[:57]}..." for k in keys):
        name = key if isinstance(key, int) or key.replace("-", "_").isidentifier() else f"'{key}'"
        text += f"[{key}]" if isinstance(key, int) else f".{name}" if text else f"{name}"
    return text


def printable(text: str) -> str:
    """`text` without anything that could move a terminal's cursor or change its colour; tabs become one space."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in text)


def printable_lines(text: str) -> str:
    """Lines of our own that hold names of others: each printable, with its tabs; and none a command to a build server, which
    GitHub Actions takes from any line that begins with two colons."""
    lines = ("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
    return "\n".join(line.replace("::", ": :", 1) if line.lstrip().startswith("::") else line for line in lines)


def _source(problem: Problem, lines: Sequence[str]) -> tuple[str, int, int]:
    """(the line without secrets, the column and length of the problem in it)."""
    line = secrets.shown(lines, problem.line)
    return line.text, *line.place(problem.column, problem.length)


def _screen(problem: Problem, line: str, column: int, length: int, name: str) -> str:
    at = f"{printable(dotted(problem.keys))}: " if problem.keys else ""
    out = [f"{name}:{problem.line + 1}:{problem.column + 1}: {at}{problem.what}"]
    if line.strip():
        start = max(0, column - WIDTH // 2) if len(line) > WIDTH else 0
        shown = printable(line[start:start + WIDTH].rstrip("\r"))
        before = shown[: column - start]
        marked = shown[column - start: column - start + length]
        number = str(problem.line + 1)
        out.append(f"{number} | {'...' if start else ''}{shown}")
        out.append(f"{' ' * len(number)} | {' ' * (_cells(before) + (3 if start else 0))}{'^' * max(1, _cells(marked))}")
    if problem.fix:
        out.append(f"fix: {problem.fix}")
    return "\n".join(out)


def _cells(text: str) -> int:
    """Columns of a terminal that `text` takes: wide characters take two, combining ones none."""
    import unicodedata  # a screen of events imports this module for `printable` only

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
