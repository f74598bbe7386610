"""Numbers about samples: percentiles, variation, speed-ups with their intervals, errors of outputs. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolchain.report.facts import Comparison, ContenderFacts, OutputError

# Above this coefficient of variation of the burst medians a result is "unstable": shown with a badge, never a gate.
# trtexec warns at 2.5 % on a GPU with locked clocks; shared CPUs need more room.
VARIATION_LIMIT = 0.05
MIN_ROUNDS = 5
NOISE = 0.02            # two runs of the same thing differ by this much without any cause; less is no verdict
RESAMPLES = 2000


def burst_medians(bursts_us: Sequence[Sequence[float]]) -> list[float]:
    """One robust number per burst (none is empty)."""
    return [float(np.median(burst)) for burst in bursts_us]


def percentile(samples: Sequence[float], percent: float) -> float:
    """With linear interpolation between the samples; 0 for none."""
    return float(np.percentile(samples, percent)) if len(samples) else 0.0


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Sample standard deviation / mean; 0 for fewer than two values."""
    return float(np.std(values, ddof=1) / np.mean(values)) if len(values) > 1 else 0.0


def geometric_mean(values: Sequence[float]) -> float:
    """Of at least one positive value."""
    return math.exp(sum(map(math.log, values)) / len(values))


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, percent: float = 95.0) -> tuple[float, float]:
    """The percentile bootstrap's interval of the median (Efron 1979): resample, take the middle of the medians.

    Needs at least one value.
    """
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.median(np.asarray(values, np.float64)[picks], axis=1)
    tail = (100 - percent) / 2
    return float(np.percentile(medians, tail)), float(np.percentile(medians, 100 - tail))


def summarize(facts: ContenderFacts, limit: float = VARIATION_LIMIT) -> ContenderFacts:
    """Fill in median, p10, p90 (over all samples), variation (of burst medians) and the unstable mark from `bursts_us`.

    With fewer than MIN_ROUNDS bursts the variation means little: unstable.
    """
    samples = [t for burst in facts.bursts_us for t in burst]
    variation = coefficient_of_variation(burst_medians(facts.bursts_us))
    return replace(
        facts, median_us=percentile(samples, 50), p10_us=percentile(samples, 10), p90_us=percentile(samples, 90),
        variation=variation, unstable=len(facts.bursts_us) < MIN_ROUNDS or variation > limit,
    )


def compare(ours: ContenderFacts, baseline: ContenderFacts) -> Comparison | None:
    """The speed-up of ours over a baseline: the median over rounds of (baseline's burst median / ours of the same round).

    Bursts of one round ran within a second of each other, so what slows the whole machine for a while cancels out. Faster
    or slower is said when the whole interval is beyond NOISE. None when one of the two has no samples.
    """
    rounds = min(len(ours.bursts_us), len(baseline.bursts_us))
    if not rounds:
        return None
    times = burst_medians(ours.bursts_us[:rounds]), burst_medians(baseline.bursts_us[:rounds])
    ratios = [theirs / mine for mine, theirs in zip(*times, strict=True)]
    low, high = bootstrap_interval(ratios)
    verdict = "faster" if low > 1 + NOISE else "slower" if high < 1 / (1 + NOISE) else "within noise"
    unstable = ours.unstable or baseline.unstable
    return Comparison(baseline.name, float(np.median(ratios)), low, high, verdict, unstable)


def output_error(name: str, actual: np.ndarray, expected: np.ndarray, *, rtol: float, atol: float) -> OutputError:
    """Compare one output with its reference.

    max_abs_error: max |a - e|. max_rel_error: that over max |e|, so that values near zero do not count as wrong.
    tolerance_used: max of |a - e| / (atol + rtol |e|); it passed when that is at most 1. A NaN or infinity where the
    reference has another value, or another shape, makes all three infinite.
    """
    shape = tuple(int(n) for n in actual.shape)
    if actual.shape != expected.shape:
        return OutputError(name, shape, math.inf, math.inf, math.inf, False)
    a, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    differs = ~((a == e) | (np.isnan(a) & np.isnan(e)))
    if not differs.any():
        return OutputError(name, shape, 0.0, 0.0, 0.0, True)
    if not np.isfinite(a[differs]).all() or not np.isfinite(e[differs]).all():
        return OutputError(name, shape, math.inf, math.inf, math.inf, False)
    largest = float(np.abs(e[np.isfinite(e)]).max())
    a, e = a[differs], e[differs]
    difference, allowed = np.abs(a - e), np.maximum(atol + rtol * np.abs(e), np.finfo(np.float64).tiny)
    worst, used = float(difference.max()), float((difference / allowed).max())
    return OutputError(name, shape, worst, worst / largest if largest else math.inf, used, used <= 1)


def unpaired_ratio_interval(
    now: Sequence[float], before: Sequence[float], *, seed: int = 0, percent: float = 95.0
) -> tuple[float, float]:
    """The bootstrap's interval of median(now) / median(before), for samples of different runs (both resampled by itself)."""
    random = np.random.default_rng(seed)
    medians = []
    for values in (np.asarray(now, np.float64), np.asarray(before, np.float64)):
        picks = random.integers(0, len(values), (RESAMPLES, len(values)))
        medians.append(np.median(values[picks], axis=1))
    tail = (100 - percent) / 2
    low, high = np.percentile(medians[0] / medians[1], [tail, 100 - tail])
    return float(low), float(high)
