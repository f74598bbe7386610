"""What gates, and what never does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_report import SYSTEM, contender, measured

from toolchain.core.errors import RegressionError
from toolchain.report.facts import BuildFacts, BuildReport, MeasureFacts, Report
from toolchain.report.gate import find_regressions, raise_on_regression
from toolchain.report.statistics import summarize


def of(measure: MeasureFacts | None, name: str = "net@x86") -> Report:
    return Report((BuildReport(BuildFacts(name, "net", "x86", "fp32", 1), measure=measure),))


def unstable(base_us: float) -> MeasureFacts:
    facts = measured(base_us)
    ours = summarize(replace(facts.contenders[0], bursts_us=tuple((base_us * f,) for f in (1, 2, 1, 2, 1, 2))))
    return replace(facts, contenders=(ours,))


def judge(now: MeasureFacts | None, before: MeasureFacts | None) -> tuple[str, str]:
    (result,) = find_regressions(of(now), of(before), 0.05)
    return result.status, result.reason


def test_slower_by_more_than_the_limit_regresses() -> None:
    assert judge(measured(110.0), measured(100.0))[0] == "regressed"
    assert judge(measured(104.0), measured(100.0))[0] == "ok"
    assert judge(measured(50.0), measured(100.0))[0] == "ok"


@pytest.mark.parametrize(("now", "before", "reason"), [
    (unstable(200.0), measured(100.0), "unstable now"),
    (measured(200.0), unstable(100.0), "unstable before"),
    (None, measured(100.0), "not measured now"),
    (measured(200.0), None, "not measured before"),
    (measured(200.0, threads=1), measured(100.0), "1 threads now, 2 before"),
    (measured(200.0), measured(100.0, system=replace(SYSTEM, cpu="Other")), "another machine before (Other, 2 cores)"),
])
def test_what_is_not_comparable_never_gates(now: MeasureFacts | None, before: MeasureFacts | None, reason: str) -> None:
    status, why = judge(now, before)
    assert status == "skipped" and reason in why


def test_a_median_within_its_own_scatter_does_not_regress() -> None:
    facts = measured(100.0)
    noisy = summarize(replace(facts.contenders[0], bursts_us=tuple((t,) for t in (96.0, 97, 98, 108, 109, 110))), limit=1.0)
    other = summarize(replace(facts.contenders[0], bursts_us=tuple((t,) for t in (90.0, 92, 97, 97.5, 108, 110))), limit=1.0)
    assert noisy.median_us / other.median_us > 1.05
    assert judge(replace(facts, contenders=(noisy,)), replace(facts, contenders=(other,)))[0] == "ok"


def test_new_and_vanished_builds_are_named() -> None:
    results = find_regressions(of(measured(1.0), "new@x86"), of(measured(1.0), "old@x86"), 0.05)
    assert [(r.build, r.status) for r in results] == [("new@x86", "skipped"), ("old@x86", "skipped")]
    assert "new" in results[0].reason and "not in this report" in results[1].reason


def test_the_gate_raises_for_regressions_only() -> None:
    raise_on_regression(find_regressions(of(measured(104.0)), of(measured(100.0)), 0.05), 0.05)
    with pytest.raises(RegressionError, match=r"more than 5.0%: net@x86 \+20.0%") as raised:
        raise_on_regression(find_regressions(of(measured(120.0)), of(measured(100.0)), 0.05), 0.05)
    assert raised.value.exit_code == 4


def test_a_rival_may_be_unstable() -> None:
    now = measured(120.0, contender("rival", 100.0, wobble=0.5))
    assert judge(now, measured(100.0))[0] == "regressed"
