"""The report on a terminal, or in a pipe (then without colour): rich tables. Text is never read as rich's markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from toolchain.report.facts import Report
from toolchain.report.gate import GateResult
from toolchain.report.tables import SHOWN_LAYERS, Level, Section, Table, Verdict, level, sections

STYLES: dict[Level, str] = {"pass": "green", "fail": "bold red", "warn": "yellow", "note": ""}
GAP = 2             # between columns
ROOM = 8            # columns that a folded name needs at least
MARKS: dict[Level, str] = {"pass": "ok  ", "fail": "FAIL", "warn": "note", "note": "    "}


def show(report: Report, console: Console, gates: Sequence[GateResult] = (), *, layers: int = SHOWN_LAYERS) -> None:
    """Print the whole report."""
    for section in sections(report, gates, layers=layers):
        show_section(section, console)


def show_section(section: Section, console: Console) -> None:
    """Print one section: verdicts, tables, notes."""
    console.print(Text(section.title, style="bold"))
    for verdict in section.verdicts:
        console.print(_line(verdict))
    for table in section.tables:
        if table.rows:
            console.print(_rich_table(table, console.width))
            console.print()
    for note in section.notes:
        console.print(Text(f"  {note}", style="dim"))
    if section.notes or section.verdicts:
        console.print()


def _line(verdict: Verdict) -> Text:
    style = STYLES[verdict.level]
    return Text.assemble("  ", (MARKS[verdict.level], style), "  ", verdict.text)


def _rich_table(table: Table, width: int) -> RichTable:
    keep = _fits(table, width)
    out = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for column in table.columns:
        side: JustifyMethod = "right" if column.right else "left"
        out.add_column(Text(column.title), justify=side, overflow="fold", no_wrap=keep and (column.right or column.whole))
    last = ""
    for row in table.rows:
        first = "" if row[0] == last and table.columns[0].title == "build" else row[0]      # name a build once
        last = row[0]
        cells = [Text(first), *(_cell(text, column.badge) for text, column in zip(row[1:], table.columns[1:], strict=True))]
        out.add_row(*cells)
    return out


def _fits(table: Table, width: int) -> bool:
    """Whether numbers and whole columns can stand unfolded, with some room left for the columns that fold."""
    needed = 0
    for i, column in enumerate(table.columns):
        widest = max(len(column.title), *(len(row[i]) for row in table.rows))
        needed += GAP + (widest if column.right or column.whole else min(widest, ROOM))
    return needed <= width


def _cell(text: str, badge: bool) -> Text:
    return Text(text, style=STYLES[level(text)] if badge else "")
