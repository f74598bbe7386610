"""`tc tune --compare` but for its screen: which kernels, the comparison, what is drawn and written of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from toolchain.build.records import Records
from toolchain.core.digest import digest_json
from toolchain.core.errors import UsageError
from toolchain.core.unit import MICROSECONDS, Unit
from toolchain.report.plot import Curve, Panel, svg
from toolchain.tasks.code import code_digest
from toolchain.tasks.plan import machine_name
from toolchain.tasks.tuning import boosted
from toolchain.tasks.tuning.earlier import CODE, versions
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.tune import RecordLog, of_unit
from toolchain.te.tune.compare import Run, Shared, compare, quality, trials_to
from toolchain.te.tune.measure import Measurer
from toolchain.te.tune.model import Analytic
from toolchain.te.tune.session import TuneTask

KERNELS = 6                     # those with most uses times work, where nobody names some
CHECKPOINTS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
PARTS = (0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it. measured: distinct schedules that were measured; failed: those of them without a cost. machine: that
    they were measured on; unit: of their costs."""

    runs: tuple[Run, ...]
    searchers: tuple[str, ...]
    trials: int
    measured: int = 0
    failed: int = 0
    seconds_per_trial: float = 0.0
    machine: str = ""
    unit: Unit = MICROSECONDS

    @property
    def by(self) -> str:
        """How speed is meant, where that is not by time."""
        return "" if self.unit.is_time else f", by {self.unit}: no times"


def chosen(kernels: Sequence[TunedKernel], pattern: str) -> list[TunedKernel]:
    """Kernels with a choice whose name matches; without a pattern the KERNELS with most work. Raises UsageError: none."""
    open_ = [k for k in kernels if k.space is not None and (not pattern or fnmatchcase(k.name, pattern))]
    if not open_:
        raise UsageError(f"no kernel to compare on: none that leaves a choice is called {pattern!r}" if pattern else
                         "no kernel to compare on: none leaves a choice",
                         fix=f"one of {', '.join(sorted({k.name for k in kernels if k.space is not None})[:5])}")
    heavy = sorted(open_, key=lambda k: -k.uses * k.job.flops)
    return heavy if pattern else heavy[:KERNELS]


def run_comparison(
    kernels: Sequence[TunedKernel], measurer: Measurer, records: Records, searchers: Sequence[str], seeds: int, trials: int,
    on_run: Callable[[Run], None] = lambda run: None, devices: Sequence[str] = (), unit: Unit = MICROSECONDS,
) -> Comparison:
    """Each schedule is measured once and kept: the same comparison goes on where it was stopped, and a wider one (other
    methods, more seeds or trials) measures only what is new. devices: names of those that measure; unit: of what they
    measure."""
    machine = machine_name(devices)
    session = digest_json(["compare", machine, code_digest(*CODE), versions(), [k.key for k in kernels],
                           *of_unit(unit).values()])[:32]
    records.begin(session, {"machine": machine, "versions": versions(), "searcher": "compare", "begun_s": time.time(),
                            **of_unit(unit),
                            "kernels": {k.key: k.name for k in kernels}})
    log = RecordLog(records, session, unit)
    tasks = [TuneTask(k.key, name, k.space) for k, name in zip(kernels, _names(kernels), strict=True) if k.space is not None]
    shared = Shared(measurer, log, {t.key: t.space for t in tasks})
    model = boosted.Boosted if boosted.is_installed() else Analytic
    runs = compare(tasks, shared, searchers, seeds, trials, model, on_run)
    done = shared.trials
    return Comparison(tuple(runs), tuple(searchers), trials, len(done), sum(bool(t.error) for t in done),
                      sum(t.cost_s for t in done) / max(1, len(done)), machine, unit)


def _names(kernels: Sequence[TunedKernel]) -> list[str]:
    """Different ones: kernels of one name get the beginning of their key."""
    names = [k.name for k in kernels]
    return [k.name if names.count(k.name) == 1 else f"{k.name} {k.workload[:6]}" for k in kernels]


def checkpoints(c: Comparison) -> list[int]:
    return [n for n in CHECKPOINTS if n <= c.trials]


def table(c: Comparison) -> list[tuple[str, ...]]:
    """Head, then a row per method, the best after the last trial first: parts of the best known speed at the checkpoints
    (median of the seeds), trials to PARTS of it, failed trials in 100."""
    rows = []
    for name in c.searchers:
        runs = [r for r in c.runs if r.searcher == name]
        to = [trials_to(c.runs, name, part, c.trials) for part in PARTS]
        failed = 100 * sum(r.failed for r in runs) / sum(len(r.best_costs) for r in runs)
        rows.append((name, *(f"{quality(c.runs, name, n)[1]:.3f}" for n in checkpoints(c)),
                     *(f"{n}" if n is not None else f"> {c.trials}" for n in to), f"{failed:.1f}"))
    rows.sort(key=lambda row: row[1:1 + len(checkpoints(c))][::-1], reverse=True)
    return [("method", *(f"at {n}" for n in checkpoints(c)), *(f"to {part:.0%}" for part in PARTS), "failed %"), *rows]


def drawing(c: Comparison) -> str:
    """SVG: all kernels together, then each; medians over the seeds, bands from quartile to quartile."""
    tasks = list(dict.fromkeys(r.task for r in c.runs))
    every: list[str | None] = [None, *tasks] if len(tasks) > 1 else [*tasks]
    panels = []
    for task in every:
        curves = {name: _curve(c, name, task) for name in c.searchers}
        lowest = min(min(curve.low) for curve in curves.values())
        panels.append(Panel(f"all {len(tasks)} kernels, geometric mean" if task is None else task, curves,
                            max(0.0, min(0.95, math.floor(lowest * 20) / 20))))
    return svg(f"Search methods on the same spaces{c.by}", panels, "trials", "part of the best known speed")


def _curve(c: Comparison, searcher: str, task: str | None) -> Curve:
    low, middle, high = zip(*(quality(c.runs, searcher, n, task) for n in range(1, c.trials + 1)), strict=True)
    return Curve(low, middle, high)


def facts(c: Comparison) -> dict[str, Any]:
    """As JSON: raw curves, so that nobody has to trust the drawing."""
    return {"v": 1, "kind": "comparison of search methods", "machine": c.machine, "unit": c.unit, "versions": versions(),
            "trials": c.trials, "schedules_measured": c.measured, "schedules_failed": c.failed,
            "seconds_per_schedule": c.seconds_per_trial, "runs": [asdict(r) for r in c.runs]}
