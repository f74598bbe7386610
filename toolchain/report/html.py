"""The report as one HTML file: it makes no request, runs no script, prints, and follows the reader's light or dark mode.

The same sections as everywhere (tables.py) with charts (charts.py) between them: the speed-ups before the speed table, a
build's times after it, its layers and roofline before their table. Everything that comes from a model is escaped, and the
page's Content-Security-Policy forbids what escaping might have missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from toolchain.report import charts
from toolchain.report.facts import BuildReport, Report
from toolchain.report.gate import GateResult
from toolchain.report.tables import Level, Section, Table, layer_section, level, sections, show_name

LAYERS_IN_ALL = 400         # rows of layer tables that a page holds without growing beyond half a megabyte
MARKS: dict[Level, str] = {"pass": "✔", "fail": "✘", "warn": "!", "note": "·"}
STYLE = """
:root{color-scheme:light dark;--good:#17803d;--bad:#c0261c;--warn:#9a6700;--line:#8884}
@media(prefers-color-scheme:dark){:root{--good:#5fd38a;--bad:#ff8078;--warn:#e3b341}}
body{font:14px/1.45 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 1rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;margin:.7rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .7rem .15rem 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;border-bottom:1px solid var(--line)}.r{text-align:right;white-space:nowrap}.w{white-space:nowrap}
ul{list-style:none;padding:0;margin:.4rem 0}li::before{content:attr(data-mark);display:inline-block;width:1.3em}
.pass{color:var(--good)}.fail{color:var(--bad);font-weight:600}.warn{color:var(--warn)}
.notes{opacity:.75;font-size:.92em}figure{margin:.8rem 0}summary{cursor:pointer}
@media print{body{max-width:none;margin:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""
HOW_TO_READ = (
    "Ours is [95 %]: the rival's median time divided by ours, above 1 ours is faster; the interval comes from resampling "
    "the rounds in which both took part. Where it contains 1 nobody is faster.",
    "Unstable: the medians of the bursts differ by more than the limit said below the table. Such numbers are shown, "
    "and never gate.",
    "In network, hot: a layer's time inside the whole network, and alone with everything it reads in the nearest cache. "
    "The difference is what cold data cost.",
    "Of roof: the least time that this machine's measured ceilings allow a layer, divided by the time it took.",
    "An output agrees when |ours - reference| <= atol + rtol * |reference| for each of its elements.",
)


def render(report: Report, gates: Sequence[GateResult] = ()) -> str:
    """The whole page; ends with a newline."""
    layers = max(20, LAYERS_IN_ALL // max(1, len(report.builds)))
    by_title = {layer_section(b).title: b for b in report.builds if b.layers}
    parts: list[str] = []
    for section in sections(report, gates, layers=layers):
        drawn = _layer_charts(by_title[section.title]) if section.title in by_title else ()
        if section.title == "Speed":
            drawn = _speed_charts(report)
        parts += _section(section, drawn)
    parts += ["<h2>How to read this</h2>", *_notes(HOW_TO_READ)]
    title = ", ".join(dict.fromkeys(show_name(b.build.model) for b in report.builds)) or "nothing was built"
    return "\n".join([*_head(title), f"<h1>{escape(title)}</h1>", *parts, "</body></html>", ""])


def _head(title: str) -> Sequence[str]:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return ('<!DOCTYPE html>', '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: report</title>", f"<style>{STYLE}{charts.STYLE}</style></head><body>")


def _speed_charts(report: Report) -> Iterator[str]:
    yield charts.speedups(report.builds)
    for b in report.builds:
        if b.measure is not None:
            yield charts.latencies(b.build.name, b.measure)


def _layer_charts(b: BuildReport) -> Iterator[str]:
    layers, machine = charts.layers_of(b)
    yield charts.layer_times(layers)
    if machine is not None:
        yield charts.roofline(layers, machine)


def _section(section: Section, drawn: Iterator[str] | Sequence[str]) -> Iterator[str]:
    yield f"<h2>{escape(section.title)}</h2>"
    if section.verdicts:
        yield "<ul>"
        yield from (f'<li class="{v.level}" data-mark="{MARKS[v.level]}">{escape(v.text)}</li>' for v in section.verdicts)
        yield "</ul>"
    yield from (f"<figure>{chart}</figure>" for chart in drawn if chart)
    for table in section.tables:
        if table.rows:
            yield from _table(table)
    if section.notes:
        yield from _notes(section.notes)


def _notes(notes: Sequence[str]) -> Iterator[str]:
    yield '<ul class="notes">'
    yield from (f"<li>{escape(note)}</li>" for note in notes)
    yield "</ul>"


def _table(table: Table) -> Iterator[str]:
    classes = ["r" if c.right else "w" if c.whole else "" for c in table.columns]
    heads = (f"<th{_class(k)}>{escape(c.title)}</th>" for c, k in zip(table.columns, classes, strict=True))
    yield f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>"
    for row in table.rows:
        cells = zip(row, table.columns, classes, strict=True)
        shown = (f"<td{_class(level(text) if c.badge else k)}>{escape(text)}</td>" for text, c, k in cells)
        yield f"<tr>{''.join(shown)}</tr>"
    yield "</tbody></table>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


__all__ = ["render"]
