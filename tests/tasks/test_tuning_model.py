"""The learned cost model: what it learns, that it learns the same twice, and that it travels with the records."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from toolchain.build.records import KeptSample
from toolchain.tasks.tuning import boosted
from toolchain.tasks.tuning.boosted import FEWEST, Boosted, Training
from toolchain.tasks.tuning.samples import sample_of, sample_text, teach
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.features import COLUMNS
from toolchain.te.tune.model import Analytic, Sample
from toolchain.te.tune.space import Made, Point, Space

DECIDES, LIES = COLUMNS.index("innermost"), COLUMNS.index("vector")


def program(choices: Choices) -> Made:
    """A cost that one feature decides; the analytic model believes in another."""
    good = choices.one_of("good", range(10), 0)
    lie = choices.one_of("lie", range(10), 0, [1.0 + n / 10 for n in range(10)])
    row = np.zeros((2, len(COLUMNS)), np.float32)
    row[0, DECIDES], row[1, LIES] = good, lie
    return Made(f"{good} {lie}", row)


def time_us(point: Point) -> float:
    return 100.0 - 8 * int(point.answers["good"])


def measured(points: list[Point], scale: float = 1.0) -> list[Sample]:
    return [Sample(p.features, p.expected, time_us(p) * scale) for p in points]


def drawn(n: int, seed: int = 0) -> list[Point]:
    space, rng = Space(program), random.Random(seed)
    return [space.sample(rng) for _ in range(n)]


def order(scores: np.ndarray, points: list[Point]) -> float:
    """The part of the pairs that a model orders as their times are."""
    pairs = [(a, b) for a in range(len(points)) for b in range(a) if time_us(points[a]) != time_us(points[b])]
    return sum((scores[a] > scores[b]) == (time_us(points[a]) < time_us(points[b])) for a, b in pairs) / len(pairs)


def test_until_it_knows_something_it_is_the_analytic_model():
    model, points = Boosted(), drawn(20)
    model.learn("a", measured(points[:FEWEST - 1]))
    np.testing.assert_array_equal(model.scores(points), Analytic().scores(points))


def test_it_corrects_the_analytic_model():
    model, points = Boosted(), drawn(60, seed=1)
    model.learn("a", measured(drawn(80)))
    assert order(Analytic().scores(points), points) < 0.6 and order(model.scores(points), points) > 0.9


def test_it_learns_across_tasks_whose_times_have_nothing_in_common():
    model, points = Boosted(), drawn(60, seed=5)
    for n in range(4):
        model.learn(f"task {n}", measured(drawn(30, seed=n), scale=1000.0**n))
    assert order(model.scores(points), points) > 0.9


def test_the_same_samples_make_the_same_model():
    points = drawn(40, seed=3)
    models = Boosted(), Boosted()
    for model in models:
        for begin in range(0, 40, 4):
            model.learn("a", measured(points[begin:begin + 4]))
            model.scores(points[:3])                            # trains on the way, as a session does
    np.testing.assert_array_equal(*(m.scores(points) for m in models))


def test_what_failed_is_slower_than_what_did_not():
    points = drawn(40)
    samples = [Sample(p.features, p.expected, math.inf if p.answers["good"] == "9" else 100.0) for p in points]
    model = Boosted()
    model.learn("a", samples)
    scores = model.scores(points)
    failed = [s for s, p in zip(scores, points, strict=True) if p.answers["good"] == "9"]
    assert failed and max(failed) < min(s for s, p in zip(scores, points, strict=True) if p.answers["good"] != "9")


def test_equal_times_and_failures_alone_teach_nothing():
    model, points = Boosted(), drawn(20)
    model.learn("same", [Sample(p.features, p.expected, 5.0) for p in points])
    model.learn("failed", [Sample(p.features, p.expected, math.inf) for p in points])
    np.testing.assert_array_equal(model.scores(points), Analytic().scores(points))


def test_the_gradient_is_the_derivative_of_the_loss():
    """Every row by finite differences; the loss once more, as it is written in the module's docstring."""
    points = drawn(12)
    data = Training.of([measured(points[:6]), measured(points[6:], 7.0)])

    def loss(predicted: np.ndarray) -> float:
        score = data.start + np.bincount(data.owner, predicted, len(data.start))
        return float(np.sum(data.weight * np.log1p(np.exp(score[data.slower] - score[data.faster]))))
    at = np.random.default_rng(0).standard_normal(len(data.rows))
    gradient, curvature = data.gradient(at)
    for n in range(len(at)):
        step = np.eye(len(at))[n] * 1e-5
        assert gradient[n] == pytest.approx((loss(at + step) - loss(at - step)) / 2e-5, abs=1e-5)
    assert (curvature > 0).all()


def test_samples_survive_as_text():
    (point,) = drawn(1)
    sample = sample_of(sample_text(point), 12.5)
    assert sample is not None and (sample.expected, sample.cost) == (point.expected, 12.5)
    np.testing.assert_array_equal(sample.features, point.features)
    assert sample_text(Space(lambda choices: Made("x")).default) == ""


@pytest.mark.parametrize("text", ["", "0:1.0:1:AAAA", "1:", "1:1.0:2:AAAA", "1:x:1:", "1:1.0:-1:eJwDAAAAAAE=", "1:a:b:c:d"])
def test_a_text_that_is_no_sample_teaches_nothing(text):
    assert sample_of(text, 1.0) is None
    model = Boosted()
    assert teach(model, [KeptSample("s", "w", text, 1.0)]) == 0


def test_earlier_sessions_teach_session_by_session():
    """Each on a machine state of its own: times of two sessions are never compared."""
    model, points = Boosted(), drawn(60, seed=5)
    kept = [KeptSample(f"session {s}", "w", sample_text(p), time_us(p) * 10.0**s)
            for s in range(3) for p in drawn(30, seed=s)]
    assert teach(model, kept) == 90 and order(model.scores(points), points) > 0.9


def test_whether_it_is_installed_imports_nothing(monkeypatch):
    assert boosted.is_installed()
    monkeypatch.setattr(boosted.importlib.util, "find_spec", lambda name: None)
    assert not boosted.is_installed()
