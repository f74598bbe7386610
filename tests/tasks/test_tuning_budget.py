"""What `tc tune` does with its time, on a simulated machine and clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from toolchain.build.records import Records, TrialRow
from toolchain.core.layout import TensorType
from toolchain.core.target import Target
from toolchain.core.unit import MICROSECONDS
from toolchain.graph.ir import Graph, Node
from toolchain.targets.presets import PRESETS
from toolchain.tasks.tuning import boosted
from toolchain.tasks.tuning.confirm import MOST_NETWORK_ROUNDS, NETWORK_ROUNDS
from toolchain.tasks.tuning.deadline import END_S, Deadline, Estimate
from toolchain.tasks.tuning.earlier import BY_CHANCE, trial_of
from toolchain.tasks.tuning.kernels import TunedKernel
from toolchain.tasks.tuning.local import Job
from toolchain.tasks.tuning.tune import Options, Tuning, affordable
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.measure import CAUSES, Trial
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

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]:
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


def tuned(
    records: Records, machine: Machine, budget_s: float, n: int = 12, networks: int = 1, others: int = 0,
    build_s: float = 0.1, start_s: float = 1.0, round_s: float = 0.43,
) -> tuple[Tuning, list]:
    """A whole run: kernels, then each network built (build_s per winner) and compared, as `tc tune` does."""
    deadline = Deadline(budget_s, machine.clock)
    tuning = Tuning(kernels(n), networks, records, Options(budget_s=budget_s), deadline=deadline, others=others)
    tuning.search(machine)
    found = tuning.confirm_and_go_on(machine)
    winners = sum(f.gain > 1 for f in found)
    comparisons = (networks if winners else 0) + others
    for left in range(comparisons, 0, -1):
        machine.now += build_s * winners + start_s
        more, rounds = deadline.rounds(NETWORK_ROUNDS, MOST_NETWORK_ROUNDS, (left - 1) / left * deadline.left_s()), 0
        while more(rounds):
            machine.now, rounds = machine.now + round_s * machine.rng.uniform(0.9, 1.1), rounds + 1
        assert rounds >= NETWORK_ROUNDS
    machine.now += END_S if comparisons else 0.0
    return tuning, found


@pytest.mark.parametrize("budget_s", [80.0, 150.0, 600.0])
@pytest.mark.parametrize("n", [3, 30])
@pytest.mark.parametrize("compare_s", [0.2, 0.8])
@pytest.mark.parametrize("networks", [1, 3])
def test_the_budget_is_spent_whatever_networks_take(tmp_path, budget_s, n, compare_s, networks):
    """Within 2 %, builds and the start of processes included."""
    machine = Machine(gain=1.5, compare_s=compare_s)
    with Records(tmp_path) as records:
        _, found = tuned(records, machine, budget_s, n, networks)
    assert sum(f.gain > 1 for f in found) >= (n if budget_s >= 600 else 0.8 * n if networks == 1 else 3)
    assert machine.now - 100 == pytest.approx(budget_s, abs=0.02 * budget_s)


@pytest.mark.parametrize("slow", [{"build_s": 0.3}, {"start_s": 3.0}, {"round_s": 0.6}])
def test_what_takes_longer_than_usual_costs_rounds_of_the_comparison(tmp_path, slow):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuned(records, machine, 150.0, **slow)
    assert machine.now - 100 == pytest.approx(150, abs=3.0)


@pytest.mark.parametrize("budget_s", [80.0, 600.0])
@pytest.mark.parametrize("others", [0, 1])
def test_where_nothing_wins_all_of_it_goes_into_trials(tmp_path, budget_s, others):
    """But for graphs with other algorithms: they are compared whatever wins."""
    machine = Machine(gain=0.9)
    with Records(tmp_path) as records:
        tuning, found = tuned(records, machine, budget_s, others=others)
    assert all(f.gain == 1 for f in found) and not tuning.ended_early
    assert machine.now - 100 == pytest.approx(budget_s, abs=0.02 * budget_s)


def test_time_before_the_search_is_of_the_budget(tmp_path):
    """Builds, other graphs: whoever has the clock pays."""
    machine = Machine(gain=0.9)
    with Records(tmp_path) as records:
        deadline = Deadline(80.0, machine.clock)
        machine.now += 20.0
        deadline.charge(10.0)
        tuning = Tuning(kernels(12), 1, records, Options(budget_s=80.0), deadline=deadline)
        tuning.search(machine)
        tuning.confirm_and_go_on(machine)
    assert machine.now - 100 == pytest.approx(70, abs=1.6)


def test_a_run_with_nothing_left_to_try_ends_early_and_says_so(tmp_path):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuning = Tuning(kernels(1), 1, records, Options(budget_s=900.0, trials=20), deadline=Deadline(900.0, machine.clock))
        tuning.search(machine)
        tuning.confirm_and_go_on(machine)
    assert tuning.ended_early and machine.trials == 20


def test_a_small_budget_is_kept_too(tmp_path):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuning = Tuning(kernels(4), 1, records, Options(budget_s=10.0), deadline=Deadline(10.0, machine.clock))
        tuning.search(machine)
        tuning.confirm_and_go_on(machine)
    assert machine.now - 100 <= 10.0 + 0.2


def test_a_budget_too_small_for_all_kernels_goes_to_those_with_most_work(tmp_path):
    """It confirms what it finds of them, where a trial of each of the others would have left nothing."""
    machine = Machine(gain=1.5)
    many = [replace(k, job=replace(k.job, flops=n)) for n, k in enumerate(kernels(60))]
    with Records(tmp_path) as records:
        tuning = Tuning(many, 1, records, Options(budget_s=20.0), deadline=Deadline(20.0, machine.clock),
                        most=affordable(20.0, 1))
        tuning.search(machine)
        found = tuning.confirm_and_go_on(machine)
    assert [k.name for k in tuning.open] == [f"kernel k{n}" for n in range(53, 60)] and tuning.left_out == 53
    assert sum(f.gain > 1 for f in found) >= 3 and machine.now - 100 <= 20.2
    assert {f.kernel.name for f in found if f.is_known} <= {k.name for k in tuning.open}


def test_how_many_kernels_a_budget_holds():
    assert (affordable(None, 1), affordable(1.0, 1), affordable(20.0, 1), affordable(600.0, 1)) == (None, 1, 7, 329)


def test_a_run_that_goes_on_has_what_is_left_and_a_new_one_a_new_budget(tmp_path):
    with Records(tmp_path) as records:
        machine = Machine(gain=1.5, lives=100)
        with pytest.raises(KeyboardInterrupt):
            tuned(records, machine, 80.0)
        spent_s = machine.now - 100
        again = Machine(gain=1.5)
        tuned(records, again, 80.0)
        assert spent_s + again.now - 100 == pytest.approx(80, abs=1.6)
        third = Machine(gain=1.5)
        tuning, _ = tuned(records, third, 80.0)
        assert third.now - 100 == pytest.approx(80, abs=1.6)
        assert tuning.session is not None and tuning.session.replayed == 100 + again.trials


def test_a_changed_layer_is_tuned_alone(tmp_path):
    """What earlier runs measured of the other kernels is known: in the same circumstances, and in no others."""
    def trials(names: range, seed: int = 0) -> tuple[int, int]:
        machine = Machine(gain=1.5)
        some = [kernels(max(names) + 1)[n] for n in names]
        options = Options(trials=9, seed=seed)
        tuning = Tuning(some, 1, records, options, deadline=Deadline(None, machine.clock))
        tuning.search(machine)
        assert all(f.gain > 1 for f in tuning.confirm_and_go_on(machine))
        return machine.trials, len(tuning.known)

    with Records(tmp_path) as records:
        assert trials(range(3)) == (27, 0)
        assert trials(range(1, 4)) == (9, 18)               # k1 and k2 are known, k3 is new
        measured, known = trials(range(2), seed=5)          # another search asks for other schedules, too
        assert measured < 18 and known == 18
        far = [replace(k, job=Job(k.key, BODY, TARGET, weights=(1,))) for k in kernels(2)]
        assert not Tuning(far, 1, records, Options(trials=9)).known


def test_what_failed_by_chance_is_measured_again():
    def row(error: str) -> TrialRow:
        return TrialRow("k0", {"a": "1"}, (), error, 0.1, False, "")
    assert set(CAUSES) > BY_CHANCE
    assert trial_of(row("wrong: by far"), MICROSECONDS).cause not in BY_CHANCE
    assert trial_of(row("timeout: 10 s"), MICROSECONDS).cause in BY_CHANCE


def test_without_a_budget_it_ends_with_the_trials(tmp_path):
    machine = Machine(gain=1.5)
    with Records(tmp_path) as records:
        tuning = Tuning(kernels(3), 1, records, Options(trials=9), deadline=Deadline(None, machine.clock))
        tuning.search(machine)
        found = tuning.confirm_and_go_on(machine)
    assert machine.trials == 27 and all(f.gain > 1 for f in found) and not tuning.ended_early


def test_rounds_end_with_the_time_or_when_there_are_enough():
    machine = Machine(gain=1.0)

    def rounds(budget_s: float | None, each_s: float, keep_s: float = 0.0) -> tuple[int, float]:
        machine.now, done = 100.0, 0
        more = Deadline(budget_s, machine.clock).rounds(3, 20, keep_s)
        while more(done):
            machine.now, done = machine.now + each_s, done + 1
        return done, machine.now - 100
    assert rounds(None, 1.0) == (3, 3.0)                            # nobody waits
    assert rounds(10.0 + END_S, 1.0) == (10, 10.0)
    assert rounds(10.0 + END_S, 1.0, 4.0) == (6, 6.0)
    assert rounds(1.0, 1.0) == (3, 3.0)                             # fewer say nothing
    assert rounds(100.0, 1.0) == (20, 20.0)


def test_an_estimate_is_a_guess_until_it_is_measured():
    estimate = Estimate(2.0)
    assert estimate.each_s == 2.0
    estimate.add(1.0)
    estimate.add(4.0, times=4)
    assert estimate.each_s == 1.0
