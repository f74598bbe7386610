"""Statistics against values worked out by hand, or known of the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolchain.report.facts import ContenderFacts
from toolchain.report.statistics import (
    bootstrap_interval,
    coefficient_of_variation,
    compare,
    geometric_mean,
    output_error,
    percentile,
    summarize,
    unpaired_ratio_interval,
)


def contender(name: str, medians: list[float]) -> ContenderFacts:
    return summarize(ContenderFacts(name, bursts_us=tuple((m * 0.9, m, m * 1.3) for m in medians)))


def test_percentiles_interpolate() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([1, 2, 3, 4, 5], 10) == pytest.approx(1.4)
    assert percentile([], 50) == 0.0


def test_variation_is_of_the_sample() -> None:
    assert coefficient_of_variation([9.0, 11.0]) == pytest.approx(math.sqrt(2) / 10)
    assert coefficient_of_variation([5.0]) == 0.0


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 2.0, 4.0]) == pytest.approx(2.0)


def test_summary_uses_all_samples_but_varies_by_burst() -> None:
    facts = contender("a", [100.0] * 6)
    assert (facts.median_us, facts.p10_us, facts.p90_us) == (100.0, pytest.approx(90.0), pytest.approx(130.0))
    assert facts.variation == 0.0 and not facts.unstable
    assert contender("a", [100.0, 100, 100, 100, 100, 125]).unstable
    assert contender("a", [100.0] * 4).unstable             # too few bursts to know
    assert summarize(ContenderFacts("dead", error="x")).median_us == 0.0


def test_bootstrap_interval_is_reproducible_and_covers_the_median() -> None:
    values = list(np.random.default_rng(1).normal(10.0, 1.0, 25))
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < float(np.median(values)) < high
    assert bootstrap_interval([3.0] * 5) == (3.0, 3.0)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    covered = sum(low <= 0.0 <= high for low, high in
                  (bootstrap_interval(random.normal(0.0, 1.0, 31), seed=i) for i in range(200)))
    assert 0.88 <= covered / 200 <= 1.0                     # nominal 0.95; 200 trials have a deviation of 0.015


def test_speedup_is_paired_by_round() -> None:
    drift = [1.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.5]        # the machine slows both of them in some rounds
    ours, rival = contender("ours", [100 * d for d in drift]), contender("rival", [120 * d for d in drift])
    c = compare(ours, rival)
    assert c is not None
    assert (c.speedup, c.low, c.high) == (pytest.approx(1.2), pytest.approx(1.2), pytest.approx(1.2))
    assert c.verdict == "faster" and c.unstable             # certain of the ratio, not of the times


@pytest.mark.parametrize(("ratio", "verdict"), [
    (1.05, "faster"), (1.01, "within noise"), (1.0, "within noise"), (0.99, "within noise"), (0.9, "slower"),
])
def test_verdicts(ratio: float, verdict: str) -> None:
    c = compare(contender("ours", [100.0] * 8), contender("rival", [100.0 * ratio] * 8))
    assert c is not None and c.verdict == verdict and not c.unstable


def test_a_wide_interval_is_noise() -> None:
    c = compare(contender("ours", [100.0] * 8), contender("rival", [80.0, 140, 90, 130, 85, 150, 95, 120]))
    assert c is not None and c.verdict == "within noise" and c.low < 1 < c.high


def test_nothing_to_compare_with_a_contender_without_samples() -> None:
    assert compare(contender("ours", [1.0] * 6), ContenderFacts("dead", error="x")) is None


def test_unpaired_ratio() -> None:
    low, high = unpaired_ratio_interval([110.0, 111, 109, 110], [100.0, 101, 99, 100])
    assert 1.07 < low < 1.1 < high < 1.13


def test_output_error_means_what_it_says() -> None:
    expected = np.array([1.0, -10.0, 0.0], np.float32)
    e = output_error("y", np.array([1.0, -10.5, 0.001], np.float32), expected, rtol=0.1, atol=0.01)
    assert (e.max_abs_error, e.max_rel_error) == (0.5, 0.05)
    assert e.tolerance_used == pytest.approx(0.5 / 1.01) and e.passed
    assert output_error("y", expected, expected, rtol=0, atol=0).passed


@pytest.mark.parametrize(("actual", "passes"), [
    ([math.nan, math.inf, 1.0], True), ([0.0, math.inf, 1.0], False), ([math.nan, -math.inf, 1.0], False),
    ([math.nan, math.inf, math.nan], False), ([math.nan, 5.0, 1.0], False),
])
def test_nan_and_infinity_must_be_where_the_reference_has_them(actual: list[float], passes: bool) -> None:
    expected = np.array([math.nan, math.inf, 1.0])
    e = output_error("y", np.array(actual), expected, rtol=1e-3, atol=1e-3)
    assert e.passed is passes and math.isinf(e.max_abs_error) is not passes


def test_another_shape_never_passes() -> None:
    assert not output_error("y", np.zeros((1, 3)), np.zeros(3), rtol=1, atol=1).passed


def test_no_tolerance_at_all_refuses_any_difference() -> None:
    assert not output_error("y", np.array([1e-30]), np.array([0.0]), rtol=0, atol=0).passed
