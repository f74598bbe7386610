"""Measured figures: one line each on the screen, everything in a JSON file that later runs continue."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Spread
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result. reach: what was promised; how: the command or the means; data: the numbers, for the JSON."""

    name: str
    value: str
    reach: str
    spread: str
    how: str
    data: Mapping[str, Any] = field(default_factory=dict)


def in_ms(values: Spread) -> tuple[str, str]:
    """(median, spread) of milliseconds as text."""
    return f"{values.median:.1f} ms", f"{values.p10:.1f} .. {values.p90:.1f} ms (p10 .. p90 of {values.count})"


def in_s(values: Spread) -> tuple[str, str]:
    """(median, spread) of seconds as text."""
    return f"{values.median:.2f} s", f"{values.low:.2f} .. {values.high:.2f} s (all {values.count})"


def failed(name: str, reach: str, why: str, how: str) -> Figure:
    """The line of a figure that could not be measured."""
    return Figure(name, f"failed: {why}", reach, "", how, {"error": why})


def show(section: str, figures: list[Figure], screen: Console) -> None:
    """A section as a table; `how` stands below a figure where it is not that of the one before."""
    table = Table(title=section, title_justify="left", show_lines=False, box=None, pad_edge=False)
    for heading in ("figure", "measured", "to reach", "spread"):
        table.add_column(heading, overflow="fold")
    said = ""
    for figure in figures:
        how = f"\n  [dim]{escape(figure.how)}[/dim]" if figure.how != said else ""
        said = figure.how
        table.add_row(escape(figure.name) + how, escape(figure.value), figure.reach, escape(figure.spread))
    screen.print(table)
    screen.print()


class Results:
    """The JSON file, written at every change: {"sections": {name: [figure]}, "speed": {measurement: facts}, "system"}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"sections": {}, "speed": {}}
        if path.is_file():
            self.data |= json.loads(path.read_text(encoding="utf-8"))

    def put(self, section: str, key: str, value: Any) -> None:
        self.data.setdefault(section, {})[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)
