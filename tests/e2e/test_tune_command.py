"""`tc tune` from the command line: what it leaves, how it goes on, and what the next build makes of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from small_networks import write_project
from test_deploy import ran

from toolchain.build.records import Choice, Records, records_path
from toolchain.cli import main
from toolchain.core.settings import settings
from toolchain.tasks.tuning import local
from toolchain.tasks.tuning.trial_run import Timing


@pytest.fixture
def two_layers(own_store, monkeypatch):
    """A project with two products and what goes with them; samples are as short as they may be."""
    monkeypatch.setattr(local.LocalMeasurer.__init__, "__defaults__", (Timing(repeat=1, min_repeat_ms=0.1), 0, None))
    write_project(own_store, "mlp", more="verify: {against: interpreter}\n")
    return own_store


def lines() -> list[dict]:
    with Records(settings().store) as records:
        return [json.loads(line) for line in records.export()]


def trials() -> list[dict]:
    return [line for line in lines() if line["kind"] == "trial"]


def choose(**answers: dict[str, str]) -> None:
    """Put other answers into the records, as tuning does; by name of kernel."""
    with Records(settings().store) as records:
        known = {c.name: c for c in records.choices().values()}
        records.choose(replace(known[name], answers=a, created_s=time.time()) for name, a in answers.items())


def test_tuning_from_first_trial_to_tuned_build(two_layers, capsys):
    assert main(["tune", "--trials", "6", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "tuned " in out and "of 2 kernels: 12 trials" in out
    measured = trials()
    assert len(measured) == 12 and all(t["samples"] or t["error"] for t in measured)
    choices = [line for line in lines() if line["kind"] == "choice"]
    assert {c["name"] for c in choices} == {"matmul", "matmul_add_tanh"}
    assert all(0 < c["tuned_cost"] <= c["default_cost"] for c in choices if c["answers"])

    assert main(["tune", "--trials", "6", "--seed", "3"]) == 0       # the same again: all of it is known
    assert trials() == measured
    assert main(["tune", "--trials", "8", "--seed", "3"]) == 0       # more of the same: it goes on
    assert trials()[:12] == measured and len(trials()) == 16

    choose(matmul={}, matmul_add_tanh={})
    assert main(["build"]) == 0
    capsys.readouterr()
    choose(matmul_add_tanh={"unroll": "1"})                          # only what changed is made again
    assert main(["build", "--json"]) == 0
    made = ran(capsys)
    (kernel,) = (name for name in made if name.startswith("kernel:"))
    assert kernel.startswith("kernel:matmul_add_tanh-") and made[1:3] == ["link:mlp@x86", "compare:mlp@x86"]
    assert main(["explain", kernel]) == 0
    assert 'answers.unroll added: "1"' in capsys.readouterr().out
    assert main(["build", "--json"]) == 0
    assert ran(capsys) == []
    manifest = json.loads((two_layers / "build" / "mlp@x86" / "manifest.json").read_text())
    assert sorted(k["tuned"] for k in manifest["kernels"].values()) == [False, True]
    assert {layer["kernel"]: layer["schedule"] for layer in manifest["layers"][0]} == {
        "matmul_add_tanh": "tuned", "matmul": "default"}
    choose(matmul_add_tanh={"unroll": "2"})                          # a locked build takes what was locked
    assert main(["build", "--locked"]) == 0
    made = json.loads((two_layers / "build" / "mlp@x86" / "manifest.json").read_text())
    assert made == manifest
    choose(matmul_add_tanh={"unroll": "no option any more"})         # of another version: the default takes its place
    assert main(["build"]) == 0


def test_require_tuned_names_what_is_not(two_layers, capsys):
    with (two_layers / "deployfile.yaml").open("a") as deployfile:
        deployfile.write("tune: {policy: require_tuned, trials: 2}\n")
    assert main(["build"]) == 1
    err = capsys.readouterr().err
    assert "2 of 2 kernels are not tuned: matmul" in err and "fix: run `tc tune mlp@x86`" in err
    assert main(["tune"]) == 0
    assert main(["build"]) == 0


def test_damage_that_only_reading_shows_is_no_empty_export(two_layers, capsys, tmp_path):
    """The first page is whole: the file opens, and says what is wrong only when its tables are read."""
    path = records_path(settings().store)
    with Records(settings().store) as records:
        for n in range(200):
            records.choose([Choice(f"w{n}", "t", {"a": "b" * 200}, "k", 2.0, 1.0, 1.0, {})])
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    kept = tmp_path / "records.jsonl"
    kept.write_text("what was exported before\n")
    assert main(["tune", "--export", str(kept)]) == 1
    said = capsys.readouterr().err
    assert "the tuning records are damaged: nothing was exported" in said and "damaged-" in said
    assert kept.read_text() == "what was exported before\n"


def test_damaged_records_are_an_error_once(two_layers, capsys):
    path = records_path(settings().store)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not a database" * 1000)
    assert main(["build"]) == 1
    assert "the tuning records were damaged" in capsys.readouterr().err
    assert main(["build"]) == 0
    assert [p for p in path.parent.iterdir() if "damaged" in p.name]


def test_records_travel(two_layers, capsys, tmp_path, monkeypatch):
    assert main(["tune", "--trials", "2"]) == 0
    assert main(["tune", "--export", "records.jsonl"]) == 0
    monkeypatch.setenv("TC_STORE", str(tmp_path / "another"))
    assert main(["tune", "--import", "records.jsonl"]) == 0
    assert "took in the schedules of 2 kernels" in capsys.readouterr().out
    assert len(trials()) == 4
    (two_layers / "broken.jsonl").write_text("{}\n")
    assert main(["tune", "--import", "broken.jsonl"]) == 1
    assert "broken.jsonl: line 1: 'kind'" in capsys.readouterr().err


def test_a_budget_for_nothing_says_so(two_layers, capsys):
    assert main(["tune", "--budget", "1ms"]) == 2
    assert "a budget of 0.001 s is too small for one candidate" in capsys.readouterr().err


def test_a_target_that_cannot_run_here(two_layers, capsys):
    with (two_layers / "deployfile.yaml").open("a") as deployfile:
        deployfile.write("targets: {other: {kind: x86, cpu: x86-64-v2, features: ['+amx-complex']}}\n")
    assert main(["tune"]) == 2
    assert "target 'other' cannot be tuned here: this processor has no amx-complex" in capsys.readouterr().err


def test_interrupted_it_keeps_what_it_found_and_goes_on(two_layers, capsys, monkeypatch):
    measure, left = local.LocalMeasurer.measure, [5]

    def interrupted(self, task, points, best_cost):
        for trial in measure(self, task, points, best_cost):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield trial
    monkeypatch.setattr(local.LocalMeasurer, "measure", interrupted)
    assert main(["tune", "--trials", "6"]) == 130
    assert "interrupted: confirming what was found so far" in capsys.readouterr().err
    first = trials()
    assert len(first) == 5
    left[0] = 100
    assert main(["tune", "--trials", "6"]) == 0
    assert trials()[:5] == first and len(trials()) == 12 and left == [93]


def test_a_miscompiled_candidate_never_wins_and_is_kept(two_layers, capsys, monkeypatch):
    """Every candidate but the default claims to be fast, and is wrong."""
    measure, defaults = local.LocalMeasurer.measure, set()

    def lying(self, task, points, best_cost):
        for trial in measure(self, task, points, best_cost):
            first = task not in defaults
            defaults.add(task)
            yield trial if first else replace(trial, samples=(1e-3,), error="wrong: output 0 differs by 1")
    monkeypatch.setattr(local.LocalMeasurer, "measure", lying)
    assert main(["tune", "--trials", "5"]) == 0
    out, err = capsys.readouterr()
    assert "tuned 0 of 2 kernels: 10 trials, 8 failed (8 wrong)" in out and "kept in .tc/failed/tune/matmul" in err
    kept = sorted((two_layers / ".tc" / "failed" / "tune").iterdir())
    assert len(kept) == 8 and json.loads((kept[0] / "answers.json").read_text())
    with Records(settings().store) as records:
        assert all(not c.answers for c in records.choices().values())


def test_a_log_of_another_compiler_is_taken_as_hints(two_layers, capsys):
    row = {"input": ["llvm -mcpu=skylake-avx512", "dense_pack.x86", [["TENSOR", [1, 8], "float32"],
                                                                      ["TENSOR", [4, 8], "float32"]], {}],
           "config": {"entity": [["tile_y", "sp", [-1, 1]]]}, "result": [[1e-6], 0, 1, 1], "version": 0.2}
    rows = [row, {**row, "result": [[1e-15], 0, 1, 1]}, {**row, "result": [[1e10], 4, 1, 1]}]
    (two_layers / "tophub.log").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["tune", "--import", "tophub.log"]) == 0
    screen = capsys.readouterr()
    assert "1 row taken as hints, 1 refused, 1 left out (failed when it was measured)" in screen.out
    assert "tophub.log:2: refused: " in screen.err
    assert [line["operator"] for line in lines() if line["kind"] == "prior"] == ["matmul 1 1x8x4 float32"]


def test_trials_of_one_run_teach_the_next(two_layers, capsys):
    assert main(["tune", "--trials", "6", "--seed", "1"]) == 0
    assert "so far from 0 earlier trials" in capsys.readouterr().err
    assert main(["tune", "--trials", "3", "--seed", "2"]) == 0
    assert "so far from 12 earlier trials" in capsys.readouterr().err
    (session,) = (line for line in lines() if line["kind"] == "session" and line["provenance"]["seed"] == 2)
    assert sum(session["provenance"]["learned_from"].values()) == 12


def test_without_xgboost_it_says_so_and_works(two_layers, capsys, monkeypatch):
    monkeypatch.setattr("toolchain.tasks.tuning.boosted.is_installed", lambda: False)
    assert main(["tune", "--trials", "3"]) == 0
    assert "ranked by the analytic model alone: xgboost is not installed (fix: pip install" in capsys.readouterr().err
    assert len(trials()) == 6


def test_methods_are_compared_and_drawn(two_layers, capsys):
    command = ["tune", "--compare", "curves", "--searcher", "auto", "--searcher", "random", "--trials", "5", "--seeds", "2"]
    assert main(command) == 0
    screen = capsys.readouterr()
    assert screen.out.startswith("method") and "auto" in screen.out and "2 kernels, 2 seeds, " in screen.out
    assert "[8/8] " in screen.err
    facts = json.loads((two_layers / "curves" / "curves.json").read_text())
    assert len(facts["runs"]) == 8 and all(len(r["best_costs"]) == 5 for r in facts["runs"])
    assert (two_layers / "curves" / "curves.svg").read_text().count("<polyline") == 3 * 2
    measured = trials()
    assert main(command) == 0                                       # all of it is known
    assert trials() == measured and json.loads((two_layers / "curves" / "curves.json").read_text()) == facts
    assert not [line for line in lines() if line["kind"] == "choice"]
    capsys.readouterr()
    assert main(["tune", "--compare", "curves", "--kernels", "conv*"]) == 2
    assert "none that leaves a choice is called 'conv*'" in capsys.readouterr().err
    assert main(["tune", "--seeds", "2"]) == 2
    assert "fix: add --compare FOLDER" in capsys.readouterr().err


def test_a_report_tells_tuned_here_from_tuned_elsewhere(two_layers, capsys):
    with (two_layers / "deployfile.yaml").open("a") as deployfile:
        deployfile.write("report: {against: [], time: 200ms}\n")
    assert main(["tune", "--trials", "2"]) == 0
    choose(matmul={"unroll": "1"}, matmul_add_tanh={"unroll": "1"})
    with Records(settings().store) as records:
        there = next(c for c in records.choices().values() if c.name == "matmul")
        records.choose([replace(there, created_s=time.time(), provenance={**there.provenance, "machine": "another"})])
    assert main(["report", "--json", "r.json"]) == 0
    assert "2 of 2 tuned, 1 of them elsewhere" in " ".join(capsys.readouterr().out.split())
    (build,) = json.loads((two_layers / "r.json").read_text())["report"]["builds"]
    assert (build["build"]["tuned_kernels"], build["build"]["transferred_kernels"]) == (2, 1)
    assert {x["kernel"]: x["schedule"] for x in build["layers"]} == {"matmul": "transferred", "matmul_add_tanh": "tuned"}
