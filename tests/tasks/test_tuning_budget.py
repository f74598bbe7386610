"""What `tc tune` does with its time, on a simulated machine and clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from toolchain.build.records import Records
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.targets.presets import PRESETS
from toolchain.tasks.tuning import boosted
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.local import Job
from toolchain.tasks.tuning.tune import NETWORK_S, Options, Tuning
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.space import Made, Point, Space

TARGET: Target = PRESETS["x86-64-v3"]
T = TensorType.plain((8, 8), "float32")
BODY = Graph("body", (Node("MatMul", ("x", "w"), ("y",), {}, "m"),), ("x", "w"), ("y",), {"x": T, "w": T, "y": T}, {})


class Machine:
    """Trials and comparisons take simulated time, some more, some less. gain: of every schedule but the default."""

    def __init__(self, gain: float, trial_s: float = 0.25, compare_s: float = 0.7, lives: int = 10**9) -> None:
        self.now, self.gain, self.trial_s, self.compare_s, self.lives = 100.0, gain, trial_s, compare_s, lives
        self.rng, self.trials = random.Random(0), 0

    def clock(self) -> float:
        return self.now

    def us(self, point: Point) -> float:
        return 100.0 if point.answers == {"a": "0", "b": "0"} else (100 + int(point.answers["a"])) / self.gain

    def measure(self, task: str, points: Sequence[Point], best_us: float) -> Iterator[Trial]:
        for point in points:
            if not self.lives:
                raise KeyboardInterrupt
            self.lives, self.trials = self.lives - 1, self.trials + 1
            cost_s = self.trial_s * self.rng.uniform(0.5, 1.5)
            self.now += cost_s
            yield Trial(point.answers, (self.us(point),), cost_s=cost_s)

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]:
        self.now += self.compare_s * self.rng.uniform(0.5, 1.5)
        return [[self.us(p) * self.rng.uniform(0.999, 1.001) for _ in range(rounds)] for p in points]


def kernels(n: int) -> list[TunedKernel]:
    def choices(c: Choices) -> Made:
        return Made(f"{c.one_of('a', range(40), 0)} {c.one_of('b', range(40), 0)}")
    names = [f"k{i}" for i in range(n)]
    return [TunedKernel(k, k, "t", Job(k, BODY, TARGET), Space(choices), 1, frozenset(("b",)), f"kernel {k}") for k in names]


@pytest.fixture(autouse=True)
def no_learning(monkeypatch):
    """Real training takes real time, which the simulated clock does not see."""
    monkeypatch.setattr(boosted, "is_installed", lambda: False)


def tuned(records: Records, machine: Machine, budget_s: float, n: int = 12, networks: int = 1) -> tuple[Tuning, list]:
    tuning = Tuning(kernels(n), networks, records, Options(budget_s=budget_s), clock=machine.clock)
    tuning.search(machine)
    return tuning, tuning.confirm_and_go_on(machine)


@pytest.mark.parametrize("budget_s", [80.0, 600.0])
@pytest.mark.parametrize("n", [3, 30])
@pytest.mark.parametrize("compare_s", [0.2, 0.8])
def test_the_budget_is_spent_and_a_part_kept_for_networks(tmp_path, budget_s, n, compare_s):
    """What is left in the end is what comparing the networks takes: within 2 % of the whole."""
    machine = Machine(gain=1.5, compare_s=compare_s)
    with Records(tmp_path) as records:
        _, found = tuned(records, machine, budget_s, n)
    assert all(f.gain > 1 for f in found)
    assert machine.now - 100 + NETWORK_S == pytest.approx(budget_s, abs=0.02 * budget_s)


@pytest.mark.parametrize("budget_s", [80.0, 600.0])
def test_where_nothing_wins_all_of_it_goes_into_trials(tmp_path, budget_s):
    machine = Machine(gain=0.9)
    with Records(tmp_path) as records:
        _, found = tuned(records, machine, budget_s)
    assert all(f.gain == 1 for f in found)
    assert machine.now - 100 == pytest.approx(budget_s, abs=0.02 * budget_s)


def test_a_small_budget_is_kept_too(tmp_path):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuned(records, machine, 10.0, n=4)
    assert machine.now - 100 <= 10.0 + 0.2


def test_a_run_that_goes_on_has_what_is_left_and_a_new_one_a_new_budget(tmp_path):
    with Records(tmp_path) as records:
        machine = Machine(gain=1.5, lives=100)
        with pytest.raises(KeyboardInterrupt):
            tuned(records, machine, 80.0)
        spent_s = machine.now - 100
        again = Machine(gain=1.5)
        tuned(records, again, 80.0)
        assert spent_s + again.now - 100 + NETWORK_S == pytest.approx(80, abs=1.6)
        third = Machine(gain=1.5)
        tuning, _ = tuned(records, third, 80.0)
        assert third.now - 100 + NETWORK_S == pytest.approx(80, abs=1.6)
        assert tuning.session is not None and tuning.session.replayed == 100 + again.trials


def test_without_a_budget_it_ends_with_the_trials(tmp_path):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuning = Tuning(kernels(3), 1, records, Options(budget_s=None, trials=9), clock=machine.clock)
        tuning.search(machine)
        found = tuning.confirm_and_go_on(machine)
    assert machine.trials == 27 and all(f.gain > 1 for f in found)
