"""Curves with bands as SVG: small panels side by side, one legend. Plain text, no library, equal bytes for equal data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#6b6b6b", "#a6761d", "#000000")
PANEL_WIDTH, PANEL_HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 34           # of a panel, around its axes
LEGEND_HEIGHT, COLUMNS = 30, 3


@dataclass(frozen=True, slots=True)
class Curve:
    """y over x = 1, 2, ...: the middle, and a band around it."""

    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves by name, on axes of their own: y from y_low to y_high, what is beyond is drawn at the edge. The name decides a
    curve's colour, through the legend's order; the first lies on top."""

    title: str
    curves: Mapping[str, Curve]
    y_low: float = 0.0
    y_high: float = 1.0


def svg(title: str, panels: Sequence[Panel], x_label: str, y_label: str) -> str:
    """A drawing of all panels."""
    names = list(dict.fromkeys(name for p in panels for name in p.curves))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
    columns = min(COLUMNS, len(panels))
    width, rows = columns * PANEL_WIDTH, -(-len(panels) // columns)
    height = rows * PANEL_HEIGHT + 2 * LEGEND_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{width / 2:g}" y="19" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for n, name in enumerate(names):
        x = 12 + n * (width - 24) / max(1, len(names))
        lines.append(f'<rect x="{x:.1f}" y="{LEGEND_HEIGHT + 6}" width="14" height="4" fill="{colours[name]}"/>')
        lines.append(f'<text x="{x + 18:.1f}" y="{LEGEND_HEIGHT + 12}">{escape(name)}</text>')
    for n, panel in enumerate(panels):
        x, y = n % columns * PANEL_WIDTH, 2 * LEGEND_HEIGHT + n // columns * PANEL_HEIGHT
        lines.append(f'<g transform="translate({x},{y})">')
        lines += _panel(panel, colours, x_label, y_label)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, colours: Mapping[str, str], x_label: str, y_label: str) -> Iterator[str]:
    right, bottom = PANEL_WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM
    last = max((len(c.middle) for c in panel.curves.values()), default=1)
    low, high = panel.y_low, panel.y_high
    curves = list(reversed(panel.curves.items()))

    def at(x: float, y: float) -> str:
        part = (max(low, min(high, y)) - low) / (high - low)
        return f"{LEFT + (right - LEFT) * (x - 1) / max(1, last - 1):.1f},{bottom - (bottom - TOP) * part:.1f}"
    yield f'<text x="{(LEFT + right) / 2:g}" y="{TOP - 8}" text-anchor="middle">{escape(panel.title)}</text>'
    for y in ticks(low, high):
        (_, height) = at(1, y).split(",")
        yield f'<path d="M{LEFT},{height}H{right}" stroke="#ddd" fill="none"/>'
        yield f'<text x="{LEFT - 5}" y="{float(height) + 4:.1f}" text-anchor="end">{y:g}</text>'
    for x in (1, *(n for n in (8, 16, 32, 64, 128, 256, 512, 1024) if n <= last)):
        (place, _) = at(x, low).split(",")
        yield f'<path d="M{place},{bottom}v4" stroke="#888" fill="none"/>'
        yield f'<text x="{place}" y="{bottom + 15}" text-anchor="middle">{x}</text>'
    yield f'<path d="M{LEFT},{TOP}V{bottom}H{right}" stroke="#888" fill="none"/>'
    yield f'<text x="{(LEFT + right) / 2:g}" y="{bottom + 28}" text-anchor="middle" fill="#555">{escape(x_label)}</text>'
    middle = (TOP + bottom) / 2
    yield (f'<text x="11" y="{middle:g}" text-anchor="middle" fill="#555" transform="rotate(-90 11 {middle:g})">'
           f"{escape(y_label)}</text>")
    for name, curve in curves:
        band = [at(x, y) for x, y in _bends(curve.high)] + [at(x, y) for x, y in _bends(curve.low)][::-1]
        yield f'<polygon points="{" ".join(band)}" fill="{colours[name]}" fill-opacity="0.12"/>'
    for name, curve in curves:
        points = " ".join(at(x, y) for x, y in _bends(curve.middle))
        yield (f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="1.6">'
               f"<title>{escape(name)}</title></polyline>")


def _bends(values: Sequence[float]) -> list[tuple[int, float]]:
    """(x, y) of a curve without the points inside its level stretches, which are most of a best-so-far."""
    last = len(values) - 1
    return [(n + 1, y) for n, y in enumerate(values) if n in (0, last) or not values[n - 1] == y == values[n + 1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a span, about `most`."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]
