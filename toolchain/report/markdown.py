"""The report as Markdown, ready to paste into a pull request or a step summary of CI."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolchain.report.facts import Report
from toolchain.report.gate import GateResult
from toolchain.report.tables import SHOWN_LAYERS, Section, Table, sections

MARKS = {"pass": "✅", "fail": "❌", "warn": "⚠️", "note": "➖"}


def render(report: Report, gates: Sequence[GateResult] = (), *, layers: int = SHOWN_LAYERS) -> str:
    """The whole report; ends with a newline."""
    return "\n".join(_section(s) for s in sections(report, gates, layers=layers))


def escape(text: str) -> str:
    """Text that Markdown (GitHub's included) shows as it is: no markup, no HTML, no link, no mention, one table cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)#(?=\d)", "&#35;", text)         # a reference to an issue
    text = re.sub(r"(?<!\w)@", "&#64;", text)              # a mention needs a boundary before it: resnet18@x86 is none
    return text.replace("://", ":&#47;/").replace("www.", "www&#46;")


def _section(section: Section) -> str:
    lines = [f"## {escape(section.title)}", ""]
    lines += [f"- {MARKS[v.level]} {escape(v.text)}" for v in section.verdicts]
    lines += [""] if section.verdicts else []
    for table in section.tables:
        if table.rows:
            lines += [*_table(table), ""]
    lines += [f"- {escape(note)}" for note in section.notes]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    """Cells padded to one width per column, so that the source can be read as well."""
    rows = [[escape(c.title) for c in table.columns], *([escape(cell) for cell in row] for row in table.rows)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.columns))]
    rule = ["-" * (w - 1) + ":" if c.right else "-" * w for c, w in zip(table.columns, widths, strict=True)]
    rows.insert(1, rule)
    return ["| " + " | ".join(_pad(cell, w, c.right) for cell, w, c in zip(row, widths, table.columns, strict=True)) + " |"
            for row in rows]


def _pad(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
