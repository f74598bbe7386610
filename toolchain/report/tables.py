"""Facts -> verdicts and tables as plain text: what a report says, before any renderer decides how it looks.

    Report -> Section(title, verdicts, tables, notes) ...    in the order a reader needs them: verdict, speed, accuracy,
                                                             artifacts, layers of each build, provenance

Names from models are made printable here (no control characters reach a terminal or a file); each renderer escapes its own
markup. A cell is text; columns with `badge` hold words that a renderer may colour by `level`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from toolchain.build.caret import printable
from toolchain.report.facts import (
    MISSING,
    BuildFacts,
    BuildReport,
    Comparison,
    ContenderFacts,
    CountedKernel,
    LayerFacts,
    MachineSpeed,
    MeasureFacts,
    OutputError,
    Report,
    System,
)
from toolchain.report.gate import GateResult
from toolchain.report.roofline import Roof, roofs
from toolchain.report.statistics import geometric_mean

Level = Literal["pass", "fail", "warn", "note"]
NAME_WIDTH = 48
REFERENCE_WIDTH = 120
SHOWN_LAYERS = 20
EXPLAINED_LAYERS = 10
ABOVE_ROOF = 1.1            # of the measured ceilings: what lies above was measured on another, calmer machine
BUSY_STEAL_PERCENT = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line that says how something stands."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Column:
    """right: aligned there; badge: its words may be coloured; whole: never folded on a narrow screen."""

    title: str
    right: bool = False
    badge: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def sections(report: Report, gates: Sequence[GateResult] = (), *, layers: int = SHOWN_LAYERS) -> tuple[Section, ...]:
    """The whole report. `layers`: how many of a network's layers are shown, the most expensive ones."""
    found = [
        Section("Verdict", tuple(_verdicts(report, gates))),
        speed(report),
        accuracy(report),
        _artifacts(report),
        *(layer_section(b, layers) for b in report.builds if b.layers),
        *(_counted(b.build.name, b.measure) for b in report.builds if b.measure),
        _provenance(report),
    ]
    return tuple(s for s in found if s.verdicts or s.notes or any(t.rows for t in s.tables))


def level(badge: str) -> Level:
    """How good the words of a badge cell are."""
    if "unstable" in badge:
        return "warn"
    first = badge.partition(" ")[0].rstrip(",")
    return {"faster": "pass", "pass": "pass", "slower": "fail", "FAIL": "fail", "failed:": "fail"}.get(first, "note")  # type: ignore[return-value]


# --- text of single values -------------------------------------------------------------------------------------------------

def show_name(text: str, width: int = NAME_WIDTH) -> str:
    """A name somebody else chose: printable, and not longer than `width`."""
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def show_time(time_us: float) -> str:
    """Three significant digits in the unit that suits: 87.3 us, 12.3 ms, 1.04 s."""
    for limit, unit, scale in ((1e3, "us", 1.0), (1e6, "ms", 1e3)):
        if time_us < limit * 0.9995:
            return f"{_digits(time_us / scale)} {unit}"
    return f"{_digits(time_us / 1e6)} s"


def show_count(n: float) -> str:
    """Three significant digits: 123, 45.6 thousand, 1.23 million."""
    for limit, word, scale in ((1e3, "", 1.0), (1e6, " thousand", 1e3), (1e9, " million", 1e6)):
        if n < limit * 0.9995:
            return f"{n:.0f}" if scale == 1.0 else f"{_digits(n / scale)}{word}"
    return f"{_digits(n / 1e9)} billion"


def show_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{_digits(size)} {unit}"
        size /= 1000
    return f"{_digits(size)} GB"


def show_error(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def show_ratio(comparison: Comparison) -> str:
    return f"{comparison.speedup:.2f}x [{comparison.low:.2f}, {comparison.high:.2f}]"


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _range(contender: ContenderFacts) -> str:
    """p10 - p90, the unit once where it is one: 11.1 - 11.3 ms."""
    low, high = show_time(contender.p10_us), show_time(contender.p90_us)
    return f"{low.partition(' ')[0] if low.partition(' ')[2] == high.partition(' ')[2] else low} - {high}"


def _badge(comparison: Comparison) -> str:
    return comparison.verdict + (", unstable" if comparison.unstable else "")


# --- verdict ---------------------------------------------------------------------------------------------------------------

def _verdicts(report: Report, gates: Sequence[GateResult]) -> Iterable[Verdict]:
    for b in report.builds:
        yield _accuracy_verdict(b)
        yield from _speed_verdicts(b)
    for gate in gates:
        yield _gate_verdict(gate)


def _accuracy_verdict(b: BuildReport) -> Verdict:
    name, verify = show_name(b.build.name), b.verify
    if verify is None:
        return Verdict("warn", f"{name}: not verified")
    if verify.passed:
        worst = max(o.max_abs_error for o in verify.outputs)
        on = f" on device {show_name(verify.device)}" if verify.device else ""
        on += f" in {show_name(verify.engine)}" if verify.engine else ""
        reference = show_name(verify.reference, REFERENCE_WIDTH)
        return Verdict("pass", f"{name}: agrees with {reference}{on} (largest error {show_error(worst)})")
    if verify.error:
        return Verdict("fail", f"{name}: cannot be verified: {show_name(verify.error, 200)}")
    bad = [show_name(o.output) for o in verify.outputs if not o.passed]
    text = f"{name}: disagrees with {show_name(verify.reference, REFERENCE_WIDTH)} in {', '.join(bad[:3]) or 'every output'}"
    if verify.first_bad_node:
        text += f"; the first wrong node is {show_name(verify.first_bad_node)}"
    return Verdict("fail", text + (f"; to reproduce: {printable(verify.repro)}" if verify.repro else ""))


def _speed_verdicts(b: BuildReport) -> Iterable[Verdict]:
    if b.measure is None:
        return
    name, ours = show_name(b.build.name), b.measure.ours
    if emulated := b.measure.system.emulated:
        on = show_name(b.measure.system.device)
        yield Verdict("note", f"{name}: no times: device {on} is emulated ({show_name(emulated)})")
    elif ours is not None and ours.error:
        yield Verdict("fail", f"{name}: our artifact {show_name(ours.error, 200)}")
    for c in b.measure.comparisons:
        words = {"faster": "faster than", "slower": "slower than"}.get(c.verdict, "within noise of")
        verdict: Level = "warn" if c.unstable else "pass" if c.verdict == "faster" else "note"
        unstable = " (unstable)" if c.unstable else ""
        yield Verdict(verdict, f"{name}: {words} {show_name(c.baseline)}, {show_ratio(c)} its speed{unstable}")


def _gate_verdict(gate: GateResult) -> Verdict:
    name = show_name(gate.build)
    if gate.status == "skipped":
        return Verdict("warn", f"{name}: regression not judged: {gate.reason}")
    text = f"{name}: {show_time(gate.before_us)} before, {show_time(gate.now_us)} now ({gate.change:+.1%})"
    if gate.status == "regressed":
        return Verdict("fail", f"{text}: slower than the limit allows")
    return Verdict("pass", text)


# --- speed -----------------------------------------------------------------------------------------------------------------

def speed(report: Report) -> Section:
    """Every contender's times, ours against each baseline, and the configurations they ran with."""
    measured = [(b.build.name, b.measure) for b in report.builds if b.measure]
    columns = (Column("build"), Column("contender", whole=True), Column("median", True), Column("p10 - p90", True),
               Column("ours is [95 %]", True), Column("", badge=True))
    rows = [row for name, m in measured for row in _speed_rows(name, m)]
    tables = (Table(columns, tuple(rows)), _loading(measured), _configurations([m for _, m in measured]))
    return Section("Speed", tables=tables, notes=tuple(_speed_notes(measured)))


def _speed_rows(name: str, m: MeasureFacts) -> Iterable[tuple[str, ...]]:
    by_baseline = {c.baseline: c for c in m.comparisons}
    for c in m.contenders:
        if m.system.emulated:
            yield show_name(name), show_name(c.name), "-", "-", "", "emulated"
            continue
        if not c.bursts_us:
            failed = "" if c.error.startswith(MISSING) else "failed: "
            yield show_name(name), show_name(c.name), "-", "-", "", f"{failed}{show_name(c.error, 120)}"
            continue
        comparison = by_baseline.get(c.name) if not c.ours else None
        badge = _badge(comparison) if comparison else "unstable" if c.unstable else ""
        if c.error:
            badge = f"{badge}, {show_name(c.error, 120)}".lstrip(", ")
        yield (show_name(name), show_name(c.name), show_time(c.median_us), _range(c),
               show_ratio(comparison) if comparison else "", badge)


def _loading(measured: Sequence[tuple[str, MeasureFacts]]) -> Table:
    rows = [(show_name(name), show_name(c.name), show_time(c.load_ms * 1e3), show_bytes(c.peak_bytes))
            for name, m in measured for c in m.contenders if c.bursts_us and c.load_ms]
    columns = (Column("build"), Column("contender", whole=True), Column("until loaded", True),
               Column("peak of its process", True))
    return Table(columns, tuple(rows))


def _configurations(measured: Sequence[MeasureFacts]) -> Table:
    """Every contender's version and settings, each distinct one once."""
    rows = dict.fromkeys(
        (show_name(c.name), show_name(c.version), ", ".join(f"{show_name(k)} {show_name(v)}" for k, v in c.config.items()))
        for m in measured for c in m.contenders if c.config
    )
    return Table((Column("contender", whole=True), Column("version"), Column("configuration")), tuple(rows))


def _speed_notes(measured: Sequence[tuple[str, MeasureFacts]]) -> Iterable[str]:
    baselines = dict.fromkeys(c.baseline for _, m in measured for c in m.comparisons)
    for baseline in baselines:
        found = [(c.speedup, name, c.unstable) for name, m in measured for c in m.comparisons if c.baseline == baseline]
        if len(found) > 1:
            lowest, name, _ = min(found)
            mean, unstable = geometric_mean([speedup for speedup, _, _ in found]), sum(u for _, _, u in found)
            yield (f"{show_name(baseline)}: geometric mean {mean:.2f}x over {len(found)} builds"
                   f"{f' ({unstable} unstable)' if unstable else ''}, lowest {lowest:.2f}x ({show_name(name)})")
    for name, m in measured:
        if m.ours is not None and (engine := m.ours.config.get("engine")):
            yield f"{show_name(name)}: times of {show_name(engine)} on this machine; another engine has others"
        if m.system.disturbances:
            yield f"{show_name(name)} on {show_name(m.system.device)}: {show_name('; '.join(m.system.disturbances), 300)}"
    if here := [m for _, m in measured if not m.system.device]:
        m = here[0]
        threads = f"{m.threads} thread" + ("" if m.threads == 1 else "s")
        yield (f"each contender ran in its own process, stopped while another ran: {m.rounds} rounds of bursts of "
               f"{m.burst_s * 1e3:.0f} ms with {threads}; ratios are paired by round")
    if any(c.unstable for _, m in measured for c in m.contenders):
        limit = measured[0][1].variation_limit
        yield f"unstable: the medians of the bursts vary by more than {limit:.0%}; such numbers never gate"


# --- accuracy, artifacts, layers, provenance -------------------------------------------------------------------------------

def accuracy(report: Report) -> Section:
    """Every output's error: ours as verified (as measured, where it was not verified), and the rivals' among themselves."""
    rows: list[tuple[str, ...]] = []
    for b in report.builds:
        name = show_name(b.build.name)
        if v := b.verify:
            against = f"{show_name(v.reference, REFERENCE_WIDTH)}, rtol {v.rtol:g}, atol {v.atol:g}"
            rows += [(name, "ours", *_errors(o), "pass" if o.passed else "FAIL", against) for o in v.outputs]
        if b.measure and b.measure.reference:
            judge = show_name(b.measure.reference)
            rows += [(name, show_name(c.name), *_errors(o), "", judge)
                     for c in b.measure.contenders if not (c.ours and v) for o in c.outputs]
    columns = (Column("build"), Column("contender", whole=True), Column("output"), Column("max abs error", True),
               Column("max rel error", True), Column("", badge=True), Column("against"))
    return Section("Accuracy", tables=(Table(columns, tuple(rows)),))


def _errors(o: OutputError) -> tuple[str, str, str]:
    return show_name(o.output), show_error(o.max_abs_error), show_error(o.max_rel_error)


def _artifacts(report: Report) -> Section:
    """One row per artifact, however many shape buckets it has."""
    columns = (Column("build"), Column("precision"), Column("size", True), Column("weights", True), Column("arena", True),
               Column("compile time", True), Column("kernels", True), Column("schedules"))
    rows = [(show_name(b.artifact or b.name), b.precision, *map(show_bytes, (b.size_bytes, b.weights_bytes, b.arena_bytes)),
             f"{b.compile_s:.2f} s", str(b.kernels),
             _schedules(b))
            for b in {x.build.artifact or x.build.name: x.build for x in report.builds}.values()]
    return Section("Artifacts", tables=(Table(columns, tuple(rows)),))


def _schedules(b: BuildFacts) -> str:
    """"default", "3 of 20 tuned", "3 of 20 tuned, 2 of them elsewhere; graph tuned"."""
    elsewhere = f", {b.transferred_kernels} of them elsewhere" if b.transferred_kernels else ""
    static = f", {b.static_kernels} of them by static cycles (llvm-mca, cache model)" if b.static_kernels else ""
    kernels = f"{b.tuned_kernels} of {b.kernels} tuned{elsewhere}{static}" if b.tuned_kernels else "default"
    return f"{kernels}; graph tuned" if b.tuned_graph else kernels


def _counted(name: str, m: MeasureFacts) -> Section:
    """What kernels execute where nothing can be timed; those of one name together, most instructions first."""
    title = f"Counted: {show_name(name)}"
    if m.not_counted:
        return Section(title, notes=(f"instructions cannot be counted: {show_name(m.not_counted, 200)}",))
    cycles_too = any(k.static_cycles is not None for k in m.counted)
    columns = (Column("kernel"), Column("calls", True), Column("instructions", True), Column("share", True),
               *((Column("static cycles", True),) if cycles_too else ()))
    total, by_name = sum(k.instructions for k in m.counted), dict[str, list[CountedKernel]]()
    for k in m.counted:
        by_name.setdefault(k.kernel, []).append(k)
    rows = [(show_name(kernel), str(sum(k.calls for k in some)), show_count(each := sum(k.instructions for k in some)),
             f"{each / max(1, total):.1%}", *((show_count(cycles_of(some)),) if cycles_too else ()))
            for kernel, some in sorted(by_name.items(), key=lambda item: -sum(k.instructions for k in item[1]))]
    if not rows:
        return Section(title)
    also = f", {show_count(cycles_of(m.counted))} static cycles (llvm-mca, cache model)" if cycles_too else ""
    missing = "" if cycles_too else "; static cycles need llvm-mca (Debian: the package llvm) and its model of the CPU"
    return Section(title, tables=(Table(columns, tuple(rows)),), notes=(
        f"{show_count(total)} instructions{also} in a run, on one thread: counted in the kernels' machine code, no times"
        f"{missing}",))


def cycles_of(kernels: Iterable[CountedKernel]) -> float:
    return math.fsum(k.static_cycles or 0.0 for k in kernels)


def layer_section(b: BuildReport, limit: int = SHOWN_LAYERS) -> Section:
    """The layers of a build in its order, the `limit` slowest where there are more: times in the network and alone, share,
    GFLOP/s and, where the machine's ceilings were measured, the part of its roof that each reaches.
    """
    total_us = sum(x.network_us for x in b.layers) or 1.0
    machine = b.machine.at(b.measure.threads) if b.machine and b.measure else None
    under = roofs(b.layers, machine) if machine else (None,) * len(b.layers)
    shown = list(zip(range(1, len(b.layers) + 1), b.layers, under, strict=True))
    slowest = sorted(shown, key=lambda item: -item[1].network_us)
    if len(shown) > limit:
        shown = slowest[:limit]
    columns = (Column("#", True), Column("kernel"), Column("nodes of the model"), Column("in network", True),
               Column("hot", True), Column("share", True), Column("GFLOP/s", True),
               *((Column("GB/s", True), Column("flop/B", True), Column("of roof", True)) if machine else ()),
               Column("schedule"))
    rows = tuple(_layer_row(i, x, roof, total_us) for i, x, roof in shown)
    share = sum(x.network_us for _, x, _ in shown) / total_us
    flops = sum(x.flops for x in b.layers)
    count = f"{len(b.layers)} layer{'s' if len(b.layers) > 1 else ''}"
    speed = f"{_digits(flops / total_us / 1e3)} GFLOP/s"
    notes = [f"{count}, {show_time(total_us)} in all, {_digits(flops / 1e9)} GFLOP, {speed}"]
    if len(shown) < len(b.layers):
        notes.append(f"the {len(shown)} most expensive of {len(b.layers)} layers are shown: {share:.0%} of the time")
    if machine:
        least_us = sum(roof.bound_us for roof in under if roof)
        notes.append(f"of roof: the least time the machine allows / the time taken; all layers: {least_us / total_us:.0%} "
                     f"({show_time(least_us)})")
        notes.append(_ceilings(machine))
        if above := sum(roof.share > ABOVE_ROOF for roof in under if roof):
            notes.append(f"{above} of the layers took less time than that allows: the machine was busy when its ceilings "
                         "were measured (tc report --again measures all anew)")
    tables = (Table(columns, rows), _limits(slowest[:EXPLAINED_LAYERS]))
    return Section(f"Layers of {show_name(b.build.name)}", tables=tables, notes=tuple(notes))


def _limits(slowest: Sequence[tuple[int, LayerFacts, Roof | None]]) -> Table:
    """What the slowest layers run into, in words."""
    rows = tuple((str(i), show_name(x.kernel, 32), show_time(x.network_us), roof.limit) for i, x, roof in slowest if roof)
    columns = (Column("#", True), Column("the slowest", whole=True), Column("in network", True), Column("is limited by"))
    return Table(columns, rows)


def _ceilings(machine: MachineSpeed) -> str:
    levels = "; ".join(f"{level.name} {level.read_gb_s:.0f} read, {level.copy_gb_s:.0f} copied" for level in machine.levels)
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    return f"measured ceilings of {threads}: {machine.peak_gflops:.0f} GFLOP/s; GB/s: {levels}"


def _layer_row(index: int, x: LayerFacts, roof: Roof | None, total_us: float) -> tuple[str, ...]:
    more = f" +{len(x.sources) - 2}" if len(x.sources) > 2 else ""
    sources = show_name(", ".join(x.sources[:2]), NAME_WIDTH - len(more)) + more
    speed = f"{x.flops / x.network_us / 1e3:.1f}" if x.flops and x.network_us else ""
    hot = show_time(x.hot_us) if x.hot_us is not None else ""
    under = (f"{roof.gb_s:.1f}", f"{roof.intensity:.1f}" if x.flops else "", f"{roof.share:.0%}") if roof else ()
    return (str(index), show_name(x.kernel, 32), sources, show_time(x.network_us), hot, f"{x.network_us / total_us:.1%}",
            speed, *under, show_name(x.schedule, 24))


def _provenance(report: Report) -> Section:
    notes = []
    systems = dict.fromkeys(b.measure.system for b in report.builds if b.measure)
    for system in systems:
        notes.append(_describe(system))
        if system.steal_percent > BUSY_STEAL_PERCENT:
            notes.append(f"the hypervisor took {system.steal_percent:g} % of the time: numbers may be off")
        if system.load_average > system.cores:
            notes.append(f"the machine was busy before it began (load {system.load_average:g}): numbers may be off")
    if report.versions:
        notes.append("versions: " + ", ".join(f"{show_name(k)} {show_name(v)}" for k, v in sorted(report.versions.items())))
    for b in report.builds:
        digests = ", ".join(f"{show_name(k)} {v[:12]}" for k, v in sorted(b.build.digests.items()))
        if digests:
            notes.append(f"{show_name(b.build.name)}: {digests}")
    made = f"made by: {printable(report.command)}" + (f" on {report.date}" if report.date else "")
    return Section("Provenance", notes=(*notes, made))


def _describe(system: System) -> str:
    low, high = system.mhz
    clock = f"{low:.0f} MHz" if low == high else f"{low:.0f} - {high:.0f} MHz"
    parts = [show_name(system.cpu), f"{system.cores} cores", clock if high else "", f"kernel {show_name(system.kernel)}",
             f"governor {show_name(system.governor)}" if system.governor else "", f"load {system.load_average:g}"]
    if system.device:
        before, after = system.temperature_c
        parts[0] = f"device {show_name(system.device)}: {parts[0]}"
        parts += [f"{before:.0f} to {after:.0f} C" if before else ""]
        parts += [f"emulated ({show_name(system.emulated)})" if system.emulated else
                  f"a loop of integers {system.calibration_change:+.1%} between before and after"]
    return "measured on: " + ", ".join(p for p in parts if p)
