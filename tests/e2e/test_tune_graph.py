"""`tc tune` and the graph: measured costs decide algorithms and layouts, where a whole network is faster by it."""

from __future__ import annotations

import json

import pytest
from small_networks import write_project
from test_deploy import ran

from toolchain.build.records import GraphChoice, Records
from toolchain.cli import main, networks
from toolchain.core.settings import settings
from toolchain.report.facts import Comparison
from toolchain.tasks.tuning import local
from toolchain.tasks.tuning.confirm import NetworkVerdict
from toolchain.tasks.tuning.trial_run import Timing

FASTER = NetworkVerdict(Comparison("default", 1.5, 1.4, 1.6, "faster", False), 150.0, 100.0)
SLOWER = NetworkVerdict(Comparison("default", 0.8, 0.7, 0.9, "slower", False), 100.0, 125.0)


@pytest.fixture
def conv_net(own_store, monkeypatch):
    """A project with a small residual network; samples are as short as they may be."""
    monkeypatch.setattr(local.LocalMeasurer.__init__, "__defaults__", (Timing(repeat=1, min_repeat_ms=0.1), 0, None))
    write_project(own_store, "conv_net", more="verify: {against: interpreter}\n")
    return own_store


def has_winograd(folder) -> bool:
    manifest = json.loads((folder / "build" / "conv_net@x86" / "manifest.json").read_text())
    return any("winograd" in k["name"] for k in manifest["kernels"].values())


def plant(monkeypatch, winograd: bool, lives: int = 10**9) -> list[str]:
    """Convolutions by one algorithm (Winograd's, or directly) cost next to nothing, all others much; nothing else can be
    found. Killed after some trials. Returns the kernels measured."""
    measure, measured = local.LocalMeasurer.measure, list[str]()

    def planted(self, task, points, best_cost):
        ops = {n.op for n in self.jobs[task].body.nodes}
        us = 1.0 if "WinogradConv" in ops and winograd else 1.0 if "Conv" in ops and not winograd else 1e4
        for trial in measure(self, task, points, best_cost):
            if len(measured) >= lives:
                raise KeyboardInterrupt
            measured.append(task)
            yield trial if trial.error else type(trial)(trial.answers, (us,), "", trial.cost_s)
    monkeypatch.setattr(local.LocalMeasurer, "measure", planted)
    return measured


def compared(monkeypatch, verdict: NetworkVerdict | None) -> None:
    monkeypatch.setattr(networks, "compare_networks", lambda *arguments: verdict)


def graph_choices() -> list[GraphChoice]:
    with Records(settings().store) as records:
        return records.graph_choices()


@pytest.fixture
def default_winograd(conv_net, capsys) -> bool:
    """Whether the network uses Winograd's algorithm as it is."""
    assert main(["build"]) == 0
    capsys.readouterr()
    return has_winograd(conv_net)


def test_a_planted_cost_changes_the_graph_of_the_next_build(conv_net, default_winograd, capsys, monkeypatch, tmp_path):
    plant(monkeypatch, not default_winograd)
    compared(monkeypatch, FASTER)
    assert main(["tune", "--trials", "2"]) == 0
    out, err = capsys.readouterr()
    assert "conv_net@x86 with other algorithms and layouts: 1.50x (1.40 .. 1.60), faster" in out
    assert "`tc build` uses what was found" in out and "other algorithms or layouts are worth a try" in err
    (choice,) = graph_choices()
    assert choice.costs and (choice.default_cost, choice.tuned_cost) == (150.0, 100.0)

    assert main(["plan"]) == 0
    assert "input optimized changed" in capsys.readouterr().out
    assert main(["build", "--json"]) == 0                           # made by `tc tune`, but for the verdict
    assert not [name for name in ran(capsys) if name.startswith("optimize:")]
    assert has_winograd(conv_net) != default_winograd
    assert main(["build", "--json"]) == 0
    assert ran(capsys) == []
    assert main(["explain", "optimize:conv_net@x86"]) == 0
    assert "input costs added" in (found := capsys.readouterr().out), found
    assert main(["show", "costs:conv_net@x86"]) == 0
    assert "winograd" in capsys.readouterr().out

    locked = (conv_net / "deployfile.lock").read_text()
    (key, us), *_ = choice.costs.items()
    assert f"costs.{choice.graph}.{key} = " in locked and f"{next(iter(us))}=" in locked
    manifest = (conv_net / "build" / "conv_net@x86" / "manifest.json").read_bytes()
    assert main(["tune", "--export", "records.jsonl"]) == 0
    monkeypatch.setenv("TC_STORE", str(tmp_path / "another"))       # a locked build needs no records
    assert main(["build", "--locked"]) == 0
    assert (conv_net / "build" / "conv_net@x86" / "manifest.json").read_bytes() == manifest and not graph_choices()
    assert main(["tune", "--import", "records.jsonl"]) == 0
    assert graph_choices() == [choice]
    assert main(["build"]) == 0
    assert (conv_net / "deployfile.lock").read_text() == locked


@pytest.mark.parametrize("verdict", [SLOWER, None])
def test_what_is_faster_alone_and_not_in_the_network_is_refused(conv_net, default_winograd, capsys, monkeypatch, verdict):
    plant(monkeypatch, not default_winograd)
    compared(monkeypatch, verdict)
    assert main(["tune", "--trials", "2"]) == 0
    out = capsys.readouterr().out
    assert "; those by default stay" in out and ("0.80x" in out or "does not compute the same" in out)
    (choice,) = graph_choices()
    assert choice.costs == {} and choice.provenance["rejected"]
    assert main(["build", "--json"]) == 0
    assert not [name for name in ran(capsys) if name.startswith(("optimize:", "kernel:", "costs:"))]
    assert has_winograd(conv_net) == default_winograd
    assert "costs." not in (conv_net / "deployfile.lock").read_text()


def test_costs_that_confirm_the_default_compare_nothing(conv_net, default_winograd, capsys, monkeypatch):
    plant(monkeypatch, default_winograd)
    monkeypatch.setattr(networks, "compare_networks", None)
    assert main(["tune", "--trials", "2"]) == 0
    out, err = capsys.readouterr()
    assert "other algorithms" not in out + err and "tuned 0 of" in out and graph_choices() == []


def test_killed_while_it_weighs_it_goes_on_and_measures_nothing_twice(conv_net, default_winograd, capsys, monkeypatch):
    compared(monkeypatch, FASTER)
    with pytest.MonkeyPatch.context() as patch:
        first = plant(patch, not default_winograd, lives=3)
        assert main(["tune", "--trials", "2"]) == 130
        assert "interrupted while algorithms and layouts were measured: nothing has changed" in capsys.readouterr().err
    assert len(first) == 3 and graph_choices() == []
    second = plant(monkeypatch, not default_winograd)
    assert main(["tune", "--trials", "2"]) == 0
    capsys.readouterr()
    with Records(settings().store) as records:
        trials = [json.loads(line) for line in records.export()]
    ways = [(t["session"], t["workload"], json.dumps(t["answers"])) for t in trials if t["kind"] == "trial"]
    assert len(ways) == len(set(ways)) == 3 + len(second)
    (choice,) = graph_choices()
    assert choice.costs
    third = plant(monkeypatch, not default_winograd)                # once more: all of it is known
    assert main(["tune", "--trials", "2"]) == 0
    assert third == [] and [c.costs for c in graph_choices()] == [choice.costs]


def test_a_report_says_that_the_graph_is_tuned(conv_net, default_winograd, capsys, monkeypatch):
    with (conv_net / "deployfile.yaml").open("a") as deployfile:
        deployfile.write("report: {against: [], time: 200ms}\n")
    plant(monkeypatch, not default_winograd)
    compared(monkeypatch, FASTER)
    assert main(["tune", "--trials", "2"]) == 0
    assert main(["report", "--json", "r.json"]) == 0
    assert "graph tuned" in " ".join(capsys.readouterr().out.split())
    (build,) = json.loads((conv_net / "r.json").read_text())["report"]["builds"]
    assert build["build"]["tuned_graph"] is True
