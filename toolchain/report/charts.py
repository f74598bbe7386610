"""Charts of a report as SVG: where ours stands beside the rivals, how the times spread, where a network's time goes, and its
layers under the roofline. Plain text, no library, equal bytes for equal facts; colours come from the page's style sheet
(`STYLE`), so that one chart reads well on white, on black and on paper.

Names in the facts are strangers' text: every one goes through `_text` or `_title`, which escape it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from toolchain.report.facts import BuildReport, ContenderFacts, LayerFacts, MachineSpeed, MeasureFacts
from toolchain.report.plot import ticks
from toolchain.report.roofline import roofs
from toolchain.report.statistics import percentile
from toolchain.report.tables import show_name, show_ratio, show_time

# Okabe and Ito's colours, which people who see few colours can tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#999999")
STYLE = "\n".join([
    "svg{font:11px system-ui,sans-serif;fill:currentColor;max-width:100%;height:auto}",
    ".grid{stroke:currentColor;stroke-opacity:.15;fill:none}.axis{stroke:currentColor;stroke-opacity:.6;fill:none}",
    ".quiet{fill-opacity:.7}.hollow{fill:none!important;stroke-width:1.5}",
    *(f".c{n}{{fill:{colour};stroke:{colour}}}" for n, colour in enumerate(COLOURS)),
])
WIDTH = 900
ROW = 22                    # height of a line of names
LABELS = 270                # width of the names on the left
BINS = 60                   # of a histogram
RATIOS = (0.1, 0.2, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)          # marked on an axis of speed-ups
DASHES = ("1 3", "4 3", "8 3", "")                          # of the levels of memory, nearest first, memory itself last
LETTER = 6.3                # width of an average letter
Scale = Callable[[float], float]


def speedups(builds: Sequence[BuildReport]) -> str:
    """How many times the rivals' speed ours is: a dot and its 95 % interval per build and rival, hollow where unstable."""
    rows = [(b.build.name, c) for b in builds if b.measure for c in b.measure.comparisons]
    if not rows:
        return ""
    rivals = list(dict.fromkeys(c.baseline for _, c in rows))
    low, high = min(0.8, *(c.low for _, c in rows)), max(1.25, *(c.high for _, c in rows))
    x = _log_scale(low, high, LABELS, WIDTH - 20)
    bottom = 24 + ROW * len(rows)
    parts = list(_grid(x, [v for v in RATIOS if low <= v <= high], 18, bottom, "{:g}x"))
    parts.append(f'<path class="axis" d="M{x(1):.1f} 18V{bottom}"/>')
    for n, (name, c) in enumerate(rows):
        y, colour = 18 + ROW * (n + 0.5), _colour(rivals.index(c.baseline))
        shown = f"{show_name(name, 26)} / {show_name(c.baseline, 14)}"
        parts.append(_text(LABELS - 10, y + 4, shown, "end"))
        unstable = " hollow" if c.unstable else ""
        parts.append(f'<g><path class="{colour}" fill="none" stroke-width="2" d="M{x(c.low):.1f} {y}H{x(c.high):.1f}"/>'
                     f'<circle class="{colour}{unstable}" cx="{x(c.speedup):.1f}" cy="{y}" r="4.5"/>'
                     f"{_title(f'{shown}: {show_ratio(c)}, {c.verdict}' + (', unstable' if c.unstable else ''))}</g>")
    return _svg(WIDTH, bottom + 20, "Ours beside the rivals: above 1 ours is faster", parts)


def latencies(name: str, measure: MeasureFacts) -> str:
    """Histograms of all single calls, one row per contender on one axis of time, the median as a line."""
    rows = [(c, sorted(t for burst in c.bursts_us for t in burst)) for c in measure.contenders if c.bursts_us]
    if not rows:
        return ""
    low = min(percentile(samples, 1) for _, samples in rows)
    high = max(percentile(samples, 98) for _, samples in rows)
    high = max(high, low * 1.05)
    x = _linear_scale(low, high, LABELS, WIDTH - 20)
    height = 2 * ROW
    bottom = 14 + height * len(rows)
    parts = list(_grid(x, ticks(low, high, most=7), 8, bottom, show_time))
    for n, (c, samples) in enumerate(rows):
        parts += _histogram(c, samples, x, low, high, floor=12 + height * (n + 1), colour=_colour(n))
    return _svg(WIDTH, bottom + 20, f"Times of single calls of {show_name(name)}", parts)


def _histogram(
    c: ContenderFacts, samples: Sequence[float], x: Scale, low: float, high: float, *, floor: float, colour: str
) -> Iterator[str]:
    counts = [0] * BINS
    for t in samples:
        if low <= t <= high:
            counts[min(BINS - 1, int((t - low) / (high - low) * BINS))] += 1
    most, step = max(1, *counts), (x(high) - x(low)) / BINS
    outline = "".join(f"V{floor - 34 * count / most:.1f}h{step:.2f}" for count in counts)
    beyond = sum(t > high for t in samples)
    more = f", {beyond} of {len(samples)} beyond the right edge" if beyond else ""
    yield _text(LABELS - 10, floor - 8, f"{show_name(c.name, 20)}  {show_time(c.median_us)}", "end")
    yield (f'<g><path class="{colour}" fill-opacity=".35" d="M{x(low):.1f} {floor}{outline}V{floor}z"/>'
           f'<path class="axis" stroke-width="2" d="M{x(c.median_us):.1f} {floor}v-36"/>'
           f"{_title(f'{c.name}: median {show_time(c.median_us)}, {len(samples)} calls{more}')}</g>")


def layer_times(layers: Sequence[LayerFacts]) -> str:
    """A network's time from left to right, each layer as wide as its share; coloured by its first operator."""
    total_us = sum(x.network_us for x in layers)
    if not total_us:
        return ""
    kinds: dict[str, float] = {}
    for layer in layers:
        kinds[_kind(layer)] = kinds.get(_kind(layer), 0.0) + layer.network_us
    ranked = sorted(kinds, key=lambda k: -kinds[k])
    parts, at = [], 0.0
    for n, layer in enumerate(layers, 1):
        width = layer.network_us / total_us * WIDTH
        colour = _colour(min(ranked.index(_kind(layer)), len(COLOURS) - 1))
        words = f"{n} {layer.kernel}: {show_time(layer.network_us)}, {layer.network_us / total_us:.1%}"
        parts.append(f'<rect class="{colour}" stroke="none" fill-opacity="{0.95 if n % 2 else 0.7}" x="{at:.1f}" y="4" '
                     f'width="{max(0.3, width):.1f}" height="34">{_title(words)}</rect>')
        at += width
    shown, rest = ranked[: len(COLOURS) - 1], ranked[len(COLOURS) - 1:]
    legend = [(show_name(k, 18), kinds[k]) for k in shown]
    if rest:
        legend.append(("others" if len(rest) > 1 else show_name(rest[0], 18), sum(kinds[k] for k in rest)))
    x = 0.0
    for n, (kind, spent_us) in enumerate(legend):
        words = f"{kind} {spent_us / total_us:.0%}"
        parts.append(f'<rect class="{_colour(n)}" x="{x:.1f}" y="48" width="10" height="10"/>')
        parts.append(_text(x + 15, 57, words))
        x += 30 + LETTER * len(words)
    return _svg(WIDTH, 66, "Where the time goes, first layer to last", parts)


def roofline(layers: Sequence[LayerFacts], machine: MachineSpeed) -> str:
    """Layers with arithmetic as dots (area: share of the time) under the measured ceilings, both axes logarithmic."""
    total_us = sum(layer.network_us for layer in layers) or 1.0
    dots = [(layer, roof) for layer, roof in zip(layers, roofs(layers, machine), strict=True)
            if layer.flops and roof.intensity > 0 and roof.gflops > 0]
    if not dots:
        return ""
    peak = machine.peak_gflops
    left, right = _decades(r.intensity for _, r in dots)
    right = max(right, 10 * peak / min(level.read_gb_s for level in machine.levels))
    low, high = min(0.01 * peak, *(0.7 * r.gflops for _, r in dots)), 2.2 * peak
    x, y = _log_scale(left, right, 60, WIDTH - 20), _log_scale(low, high, 330, 12)
    parts = list(_grid(x, _log_ticks(left, right), 12, 330, "{:g}"))
    for tick in _log_ticks(low, high):
        parts.append(f'<path class="grid" d="M60 {y(tick):.1f}H{WIDTH - 20}"/>')
        parts.append(_text(54, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(_text(WIDTH / 2, 362, "flop per byte moved", "middle"))
    parts.append(_text(8, 10, "GFLOP/s"))
    parts += _ceilings(machine, x, y, left, right, low)
    for layer, roof in sorted(dots, key=lambda item: -item[0].network_us):
        radius = 2 + 22 * math.sqrt(layer.network_us / total_us)
        words = (f"{layer.kernel}: {roof.gflops:.1f} GFLOP/s, {layer.network_us / total_us:.1%} of the time, "
                 f"{roof.share:.0%} of its roof; {roof.limit}")
        parts.append(f'<circle class="c0" fill-opacity=".3" cx="{x(roof.intensity):.1f}" cy="{y(roof.gflops):.1f}" '
                     f'r="{radius:.1f}">{_title(words)}</circle>')
    title = f"Layers under the measured ceilings of {machine.threads} threads; a dot's area is its share of the time"
    return _svg(WIDTH, 368, title, parts)


def _ceilings(
    machine: MachineSpeed, x: Scale, y: Scale, left: float, right: float, low: float
) -> Iterator[str]:
    peak = machine.peak_gflops
    nearest = max(level.read_gb_s for level in machine.levels)
    yield f'<path class="axis" d="M{x(max(left, peak / nearest)):.1f} {y(peak):.1f}H{x(right):.1f}"/>'
    yield _text(x(right) - 4, y(peak) - 5, f"{peak:.0f} GFLOP/s", "end")
    for n, level in enumerate(machine.levels):
        dashes = f' stroke-dasharray="{DASHES[n - len(machine.levels)]}"'
        yield f'<path class="axis"{dashes} d="M70 {28 + 14 * n}h34"/>'
        yield _text(110, 32 + 14 * n, f"{level.name}, {level.read_gb_s:.0f} GB/s")
        start, end = max(left, low / level.read_gb_s), min(right, peak / level.read_gb_s)
        if start < end:
            rise = f"M{x(start):.1f} {y(start * level.read_gb_s):.1f}L{x(end):.1f} {y(end * level.read_gb_s):.1f}"
            yield f'<path class="axis"{dashes} d="{rise}"/>'


def _kind(layer: LayerFacts) -> str:
    return layer.kernel.partition("_")[0]


def _colour(n: int) -> str:
    return f"c{n % len(COLOURS)}"


# --- drawing ---------------------------------------------------------------------------------------------------------------

def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    """A drawing below its title. `parts` begin at y = 0; the title is added above them."""
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -18 {width:g} {height + 18:g}" width="{width:g}" '
                      f'role="img" aria-label="{escape(title)}">', f'<text class="quiet" y="-5">{escape(title)}</text>',
                      *parts, "</svg>"])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _title(text: str) -> str:
    """What a browser shows beside the pointer."""
    return f"<title>{escape(show_name(text, 300))}</title>"


def _grid(x: Scale, ticks: Sequence[float], top: float, bottom: float, form: str | Callable[[float], str]) -> Iterator[str]:
    for tick in ticks:
        yield f'<path class="grid" d="M{x(tick):.1f} {top}V{bottom}"/>'
        yield _text(x(tick), bottom + 14, form.format(tick) if isinstance(form, str) else form(tick), "middle")


def _linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda v: start + (v - low) / (high - low) * (end - start)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    linear = _linear_scale(math.log(low), math.log(high), start, end)
    return lambda v: linear(math.log(max(v, 1e-30)))


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a span; only the powers where it is wide."""
    factors = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for p in powers for f in factors if low <= (v := round(f * 10.0**p, 10)) <= high]


def _decades(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return 10.0 ** math.floor(math.log10(min(found))), 10.0 ** math.ceil(math.log10(max(found)) + 1e-9)


def layers_of(b: BuildReport) -> tuple[Sequence[LayerFacts], MachineSpeed | None]:
    """A build's layers, and the ceilings of as many threads as it was measured with (None: not known)."""
    return b.layers, b.machine.at(b.measure.threads) if b.machine and b.measure else None


__all__ = ["STYLE", "latencies", "layer_times", "layers_of", "roofline", "speedups"]
