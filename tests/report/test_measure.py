"""Contenders take turns, one awake at a time; one that fails costs nobody else anything. No time is asserted."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from toolchain.report import measure as measure_module
from toolchain.report.burst import thin, time_calls
from toolchain.report.contenders import Entry
from toolchain.report.measure import Processes, _Runner, measure, rounds_for

INPUTS = {"x/0": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture(autouse=True)
def _fakes_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def fake(name: str, *, ours: bool = False, **options: str) -> Entry:
    return Entry(name, "fakes:Fake", Path("model.bin"), {"name": name, **options}, ours=ours)


def test_turns_rotate_and_never_mix(tmp_path: Path) -> None:
    log = tmp_path / "log"
    entries = [fake(name, ours=name == "a", log=str(log)) for name in "abc"]
    facts = measure(entries, INPUTS, threads=2, rounds=4, burst_s=0.02)
    turns = "".join(name for name, _ in itertools.groupby(log.read_text().split()))
    # first each prepares (one call), in order; then every round starts one further on. Neighbours that are equal merge.
    assert turns == "".join(n for n, _ in itertools.groupby("abc" + "abc" + "bca" + "cab" + "abc"))
    assert [len(c.bursts_us) for c in facts.contenders] == [4, 4, 4]
    assert all(times and min(times) > 0 for c in facts.contenders for times in c.bursts_us)
    assert [c.baseline for c in facts.comparisons] == ["b", "c"]
    assert facts.ours is not None and facts.ours.config == {"threads": "2", "model": "model.bin"}
    assert facts.system.cores == os.cpu_count()


@pytest.mark.parametrize(("how", "words"), [
    ("prepare", "ValueError: cannot read this model"),
    ("call", "ArithmeticError: diverged"),
    ("crash", "was killed by SIGSEGV: about to fall over"),
    ("hang", "gave no answer in time and was ended"),
])
def test_a_failing_contender_loses_its_own_place_only(how: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "hang":
        monkeypatch.setattr(measure_module, "BURST_TIMEOUT_S", 1.5)
    facts = measure([fake("good", ours=True), fake("bad", fail=how)], INPUTS, threads=1, rounds=3, burst_s=0.03)
    good, bad = facts.contenders
    assert bad.error == words
    assert not good.error and len(good.bursts_us) == 3
    assert good.peak_bytes > 0


def test_an_unknown_contender_is_an_error_of_that_contender() -> None:
    facts = measure([fake("good"), Entry("none", "fakes:Missing", Path("m"))], INPUTS, threads=1, rounds=1, burst_s=0.01)
    assert "no contender fakes:Missing" in facts.contenders[1].error
    assert facts.comparisons == ()                          # nobody is ours: nothing to compare


def test_what_a_contender_prints_does_not_disturb_the_answers() -> None:
    facts = measure([fake("loud", ours=True, fail="talk")], INPUTS, threads=1, rounds=2, burst_s=0.01)
    assert facts.contenders[0].error == "" and len(facts.contenders[0].bursts_us) == 2


def test_outputs_are_compared_with_the_first_rival_or_the_given_reference() -> None:
    entries = [fake("ours", ours=True, offset="0.5"), fake("rival"), fake("other", offset="0.00001")]
    facts = measure(entries, INPUTS, threads=1, rounds=1, burst_s=0.01)
    ours, rival, other = facts.contenders
    assert facts.reference == "rival" and rival.outputs == ()
    assert [(o.output, o.max_abs_error, o.passed) for o in ours.outputs] == [("x/0 doubled", 0.5, False)]
    assert other.outputs[0].passed
    given = {"x/0 doubled": 2 * INPUTS["x/0"] + np.float32(0.5)}
    facts = measure(entries[:2], INPUTS, threads=1, rounds=1, burst_s=0.01, reference=given)
    assert facts.reference == ""
    assert [c.outputs[0].passed for c in facts.contenders] == [True, False]


def test_a_waiting_contender_is_stopped_and_a_closed_one_is_gone(tmp_path: Path) -> None:
    runner = _Runner(fake("a"), tmp_path / "a")
    pid = runner._process.pid
    deadline = time.monotonic() + 10
    while _state(pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _state(pid) == "T"                               # stopped, see proc(5)
    runner.close()
    assert not Path(f"/proc/{pid}").exists()


def test_processes_serve_one_measurement_after_the_other() -> None:
    with Processes() as kept:
        first = measure([fake("a"), fake("b", fail="prepare")], INPUTS, threads=1, rounds=1, burst_s=0.01, processes=kept)
        pids = [r._process.pid for r in kept.runners([fake("a")])]
        again = measure([fake("a", offset="0.5"), fake("b")], INPUTS, threads=1, rounds=2, burst_s=0.01, processes=kept)
        assert [r._process.pid for r in kept.runners([fake("a")])] == pids
    assert "cannot read this model" in first.contenders[1].error
    assert [(c.error, len(c.bursts_us)) for c in again.contenders] == [("", 2), ("", 2)]
    assert again.contenders[1].outputs[0].max_abs_error == 0.5          # b, which had failed, is there; a is the reference
    assert not Path(f"/proc/{pids[0]}").exists()


PARENT = """
import sys, time
from pathlib import Path
from toolchain.report.contenders import Entry
from toolchain.report.measure import _Runner
runner = _Runner(Entry("a", "fakes:Fake", Path("m")), Path(sys.argv[1]))
print(runner._process.pid, flush=True)
time.sleep(600)
"""


def test_stopped_contenders_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return _state(pid) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_first_calls_of_a_burst_are_dropped() -> None:
    def calls_and_samples(cost_ns: int) -> tuple[int, int]:
        now, calls = 0, 0

        def clock() -> int:
            return now

        def call() -> None:
            nonlocal now, calls
            now, calls = now + cost_ns, calls + 1

        times = time_calls(call, 0.1, clock)
        assert set(times) == {cost_ns / 1e3}
        return calls, len(times)

    assert calls_and_samples(1_000_000) == (100, 97)        # three dropped
    assert calls_and_samples(40_000_000) == (3, 2)          # one is a quarter of the burst: no more are dropped
    assert calls_and_samples(500_000_000) == (3, 2)         # slower than the burst: still two samples


def test_thinning_keeps_the_spread() -> None:
    assert thin([1.0, 2.0], 3) == [1.0, 2.0]
    assert thin([float(i) for i in range(10)], 4) == [0.0, 2.0, 5.0, 7.0]


def test_rounds_fill_the_time() -> None:
    assert (rounds_for(3.0), rounds_for(0.1), rounds_for(10.0, 0.5)) == (12, 6, 20)
