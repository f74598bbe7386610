"""Has anything become slower? Compares a report with an earlier one; skips what cannot be compared fairly, and says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolchain.core.errors import RegressionError
from toolchain.report.facts import MeasureFacts, Report
from toolchain.report.statistics import burst_medians, unpaired_ratio_interval


@dataclass(frozen=True, slots=True)
class GateResult:
    """How a build's time changed. change: now / before - 1. status "skipped" has a reason and never fails anything."""

    build: str
    status: Literal["ok", "regressed", "skipped"]
    reason: str = ""
    before_us: float = 0.0
    now_us: float = 0.0
    change: float = 0.0


def find_regressions(now: Report, before: Report, limit: float) -> tuple[GateResult, ...]:
    """One result per build of `now` or `before`. A build regressed when its median time grew by more than `limit` (0.05:
    5 %) and the 95 % interval of the growth lies above zero. Unstable numbers, other machines and other thread counts are
    skipped: they never gate."""
    old = {b.build.name: b.measure for b in before.builds}
    results = [_judge(b.build.name, b.measure, old.get(b.build.name), b.build.name in old, limit) for b in now.builds]
    names = {b.build.name for b in now.builds}
    return (*results, *(GateResult(name, "skipped", "not in this report") for name in old if name not in names))


def raise_on_regression(results: Sequence[GateResult], limit: float) -> None:
    """Raise RegressionError (exit 4) naming every build that regressed, worst first."""
    worse = sorted((r for r in results if r.status == "regressed"), key=lambda r: -r.change)
    if worse:
        listed = ", ".join(f"{r.build} {r.change:+.1%}" for r in worse)
        raise RegressionError(f"slower than before by more than {limit:.1%}: {listed}", fix="`tc report` shows the layers")


def _judge(name: str, now: MeasureFacts | None, before: MeasureFacts | None, known: bool, limit: float) -> GateResult:
    if reason := _why_not(now, before, known):
        return GateResult(name, "skipped", reason)
    assert now is not None and before is not None and now.ours is not None and before.ours is not None
    change = now.ours.median_us / before.ours.median_us - 1
    low, _ = unpaired_ratio_interval(burst_medians(now.ours.bursts_us), burst_medians(before.ours.bursts_us))
    regressed = change > limit and low > 1
    return GateResult(name, "regressed" if regressed else "ok", "", before.ours.median_us, now.ours.median_us, change)


def _why_not(now: MeasureFacts | None, before: MeasureFacts | None, known: bool) -> str:
    """Why two measurements cannot be compared; "" when they can."""
    if not known:
        return "new: the earlier report does not have it"
    for when, facts in (("now", now), ("before", before)):
        if facts is None or facts.ours is None or not facts.ours.bursts_us:
            return f"not measured {when}"
        if facts.ours.unstable:
            return f"unstable {when} (variation {facts.ours.variation:.1%})"
    assert now is not None and before is not None
    if now.threads != before.threads:
        return f"{now.threads} threads now, {before.threads} before"
    if (now.system.cpu, now.system.cores) != (before.system.cpu, before.system.cores):
        return f"measured on another machine before ({before.system.cpu}, {before.system.cores} cores)"
    return ""
