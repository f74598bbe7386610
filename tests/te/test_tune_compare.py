"""Search methods beside each other on a simulated machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_tune import Machine, Memory, program, tasks, time_us

from toolchain.te.tune.compare import Run, Shared, compare, quality, trials_to
from toolchain.te.tune.space import Space

METHODS = ("auto", "random", "grid")


def shared(machine: Machine, log: Memory) -> Shared:
    return Shared(machine, log, {t.key: t.space for t in tasks()})


def test_each_schedule_is_measured_once_for_all():
    machine, log = Machine(), Memory()
    runs = compare(tasks(2), shared(machine, log), METHODS, seeds=3, trials=12)
    assert len(runs) == 2 * 3 * 3 and {len(r.best_costs) for r in runs} == {12}
    assert len(set(machine.measured)) == len(machine.measured) == len(log.kept) <= 2 * 24
    for r in runs:
        assert list(r.best_costs) == sorted(r.best_costs, reverse=True) and r.best_costs[0] == runs[0].best_costs[0] * (
            1 if r.task == runs[0].task else 1.5)


def test_a_comparison_that_was_killed_goes_on():
    whole, log = Machine(), Memory()
    runs = compare(tasks(2), shared(whole, log), METHODS, seeds=2, trials=10)
    killed = Memory()
    with pytest.raises(KeyboardInterrupt):
        compare(tasks(2), shared(Machine(lives=7), killed), METHODS, seeds=2, trials=10)
    rest = Machine()
    assert compare(tasks(2), shared(rest, killed), METHODS, seeds=2, trials=10) == runs
    assert len(killed.kept) == len(log.kept) and len(rest.measured) == len(log.kept) - 7


def test_failures_count_as_trials():
    machine = Machine(broken={"8": "crash: killed by SIGSEGV"})
    (run,) = compare(tasks(1), shared(machine, Memory()), ["grid"], seeds=1, trials=1000)
    assert run.failed == 4 and len(run.best_costs) == 21 and math.isfinite(run.best_costs[-1])
    good = [p for p in Space(program).all() if not p.refused and p.answers["tile"] != "8"]
    assert run.best_costs[-1] == 2 * min(map(time_us, good))


def test_quality_is_the_part_of_the_best_known_speed():
    runs = [Run("a", "x", 0, (10.0, 5.0, 4.0), 0), Run("a", "y", 0, (10.0, 2.0), 0), Run("b", "x", 0, (8.0, 8.0, 2.0), 0),
            Run("b", "y", 0, (8.0, 8.0), 0), Run("a", "x", 1, (10.0, 10.0, 2.0), 0), Run("b", "x", 1, (8.0, 4.0, 4.0), 0)]
    assert quality(runs, "x", 3, "a") == (pytest.approx(0.625), 0.75, pytest.approx(0.875))
    low, middle, high = quality(runs, "x", 2)
    seeds = [math.sqrt(2 / 5 * 2 / 8), math.sqrt(2 / 10 * 2 / 4)]
    assert (low, middle, high) == tuple(pytest.approx(float(q)) for q in np.quantile(seeds, (0.25, 0.5, 0.75)))
    assert quality(runs, "y", 99, "a")[1] == 1.0                                # it had tried everything
    assert trials_to(runs, "y", 0.49, 3) == 2 and trials_to(runs, "y", 0.9, 3) is None


def test_what_has_no_time_yet_is_nothing():
    runs = [Run("a", "x", 0, (math.inf, 5.0), 1), Run("a", "y", 0, (5.0,), 0)]
    assert quality(runs, "x", 1)[1] == 0.0 and quality(runs, "x", 2)[1] == 1.0
