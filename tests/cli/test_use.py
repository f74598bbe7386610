"""`tc run`, `tc bench`, `tc verify`, `tc report`: their arguments, files and exit codes. The network is a fake of Module."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from toolchain.cli import main
from toolchain.cli.use import describe
from toolchain.core.errors import UsageError
from toolchain.report.facts import BuildFacts, BuildReport, ContenderFacts, MeasureFacts, OutputError, Report, VerifyFacts
from toolchain.targets.llvm.module import Module, OpTime, Stats
from toolchain.targets.llvm.plan import Plan, Value
from toolchain.tasks.data import read_array

X, N = Value("x", "float32", (1, 4)), Value("n", "int64", (2,))


@dataclass
class FakeModule:
    """y = 2 x, with Module's face."""

    threads: int = 2
    name: str = "one"
    buckets: tuple[Plan, ...] = (Plan("one", (X, N), (), ()),)
    labels: tuple[str, ...] = ("1x4,2",)

    def bucket_of(self, inputs):
        raise UsageError(f"input 'x' has shape {inputs['x'].shape}")

    def run(self, inputs):
        return {"y/0": inputs["x"] * 2, "n": inputs["n"]}

    def benchmark(self, inputs, min_time_s):
        assert inputs["x"].shape in [plan.inputs[0].shape for plan in self.buckets] and inputs["n"].dtype == np.int64
        return Stats(12.5, 11.0, 20.0, int(min_time_s * 100))

    def profile(self, inputs):
        return (OpTime(0, "conv1", "call", ("conv1",), 1000), OpTime(1, "fc", "call", ("fc",), 3000))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def built(project, monkeypatch):
    """The project with one build that looks built, and a Module that needs no library."""
    loaded = []

    def load(folder, threads=None):
        loaded.append((folder.name, threads))
        return FakeModule(threads or 2)

    monkeypatch.setattr(Module, "load", load)
    for name in ("one@x86", "two@x86", "two@old"):
        (project / "build" / name).mkdir(parents=True)
        (project / "build" / name / "manifest.json").write_text("{}")
    np.save(project / "x.npy", np.arange(4, dtype=np.float32).reshape(1, 4))
    np.savez(project / "all.npz", n=np.array([3, 4]), other=np.zeros(1))
    return loaded


def test_run_prints_its_outputs(built, capsys):
    assert main(["run", "one@x86", "-i", "x=x.npy", "-i", "n=all.npz", "--threads", "1"]) == 0
    assert built == [("one@x86", 1)]
    assert capsys.readouterr().out == ("y/0: float32[1, 4], min 0, max 6, mean 3, largest at [0, 3]\n"
                                       "n: int64[2], min 3, max 4, mean 3.5, largest at [1]\n")


def test_run_writes_its_outputs_and_names_never_become_paths(built, project, capsys):
    assert main(["run", "build/one@x86", "-i", "x=x.npy", "-i", "n=all.npz", "-o", "out"]) == 0
    paths = capsys.readouterr().out.split()
    assert all(path.startswith("out/") and path.count("/") == 1 for path in paths)
    assert {tuple(np.load(project / path).ravel()) for path in paths} == {(0, 2, 4, 6), (3, 4)}


@pytest.mark.parametrize(("args", "screen"), [
    (["two"], "error: 'two' means several builds\nfix: choose one of: two@x86, two@old\n"),
    (["one"], "error: 'one' means several builds\nfix: choose one of: one@x86, one@old\n"),
    (["one@old"], "error: 'one@old' has not been built\nfix: tc build one@old\n"),
    (["one@x68"], "error: no build and no artifact 'one@x68'\nfix: did you mean 'one@x86'?\n"),
    (["one@x86", "-i", "x"], "error: 'x' is not NAME=FILE\nfix: write --input NAME=FILE.npy\n"),
    (["one@x86", "-i", "x=x.npy", "-i", "x=x.npy"], "error: input 'x' is given twice\n"),
    (["one@x86", "-i", "x=no.npy"], "error: no.npy: no such file\n"),
    (["one@x86", "-i", "x=all.npz"], "error: all.npz: no array 'x' in it\nfix: choose one of: n, other\n"),
    (["one@x86", "-i", "x=one.onnx"], "error: one.onnx: not a .npy, .npz or .pb file: "),
])
def test_what_cannot_be_run(built, capsys, args, screen):
    assert main(["run", *args]) == 2
    assert capsys.readouterr().err.startswith(screen)


def test_pickles_are_never_read(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match=r"not a \.npy, \.npz or \.pb file"):
        read_array(tmp_path / "evil.npy", "x")


def test_outputs_that_are_not_finite_are_counted():
    assert describe("y", np.array([1.0, np.nan, np.inf], np.float32)).startswith("y: float32[3], 2 not finite, min nan")
    assert describe("y", np.zeros((0, 3))) == "y: float64[0, 3]"
    assert describe("y", np.array([True])) == "y: bool[1]"


def test_bench_prints_what_it_measured(built, capsys):
    assert main(["bench", "one@x86", "--time", "2s", "--layers"]) == 0
    assert capsys.readouterr().out == ("one: median 12.5 us, p10 11.0 us, p90 20.0 us, 200 runs, 2 threads\n"
                                       "       3.0 us  75.0 %  fc\n       1.0 us  25.0 %  conv1\n")


def test_bench_as_json(built, capsys):
    assert main(["bench", "one@x86", "--json", "--time", "1s"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "median_us": 12.5, "p10_us": 11.0, "p90_us": 20.0, "repeats": 100, "threads": 2, "layers": []}


@pytest.fixture
def two_buckets(built, monkeypatch):
    plans = tuple(Plan("one", (Value("x", "float32", (1, n)), N), (), ()) for n in (4, 8))
    monkeypatch.setattr(Module, "load", lambda folder, threads=None: FakeModule(2, "one", plans, ("1x4,2", "1x8,2")))


@pytest.mark.parametrize(("arguments", "measured"), [
    ([], ["1x4,2", "1x8,2"]), (["--bucket", "1x8,2"], ["1x8,2"]), (["-i", "x=x.npy"], ["1x4,2"])])
def test_bench_measures_the_buckets_one_means(two_buckets, capsys, arguments, measured):
    assert main(["bench", "one@x86", *arguments]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [f"one[{m}]" for m in measured]
    assert main(["bench", "one@x86", "--json", *arguments]) == 0
    assert [json.loads(line)["bucket"] for line in capsys.readouterr().out.splitlines()] == measured


def test_bench_of_a_bucket_there_is_not(two_buckets, project, capsys):
    assert main(["bench", "one@x86", "--bucket", "1x9,2"]) == 2
    assert "no shape bucket '1x9,2'" in (screen := capsys.readouterr().err) and "1x8,2" in screen
    np.save(project / "x.npy", np.zeros((1, 5), np.float32))
    assert main(["bench", "one@x86", "-i", "x=x.npy"]) == 2
    assert "input 'x' has shape (1, 5)" in capsys.readouterr().err


# --- reports ------------------------------------------------------------------------------------------------------------

def facts(median_us: float = 10.0, error: float = 0.0) -> Report:
    bursts = tuple((median_us * (1 + i / 1000),) * 5 for i in range(12))
    output = OutputError("y", (1, 4), error, error, error / 1e-3, error < 1e-3)
    ours = ContenderFacts("ours", ours=True, bursts_us=bursts, median_us=median_us, p10_us=median_us, p90_us=median_us)
    return Report(tuple(
        BuildReport(BuildFacts(name, name.split("@")[0], "x86", "fp32", 1000),
                    VerifyFacts("interpreter", "random", 1e-3, 1e-4, (output,)),
                    (), MeasureFacts(2, 12, 0.25, (ours,), ())) for name in ("one@x86", "two@x86")))


@pytest.fixture
def collected(project, monkeypatch):
    """What `tasks.commands.collect` gives, settable; and what it was asked for."""
    module = types.ModuleType("toolchain.tasks.commands")
    module.report, module.asked = facts(), []

    def collect(tasks, artifacts, project):
        module.asked.append(([b.name for b in tasks], sorted(artifacts)))
        return module.report

    module.collect = collect
    monkeypatch.setitem(sys.modules, "toolchain.tasks.commands", module)
    return module


def test_report_builds_then_shows(project, collected, capsys):
    assert main(["report", "one@x86"]) == 0
    assert collected.asked == [(["one@x86"], ["import:one", "link:one@x86", "verify:one@x86"])]
    assert "one@x86" in capsys.readouterr().out
    assert (project / "build/one@x86/module.txt").exists()


def test_report_writes_every_form(project, collected, capsys):
    assert main(["report", "--json", "r.json", "--md", "r.md", "--junit", "r.xml"]) == 0
    assert json.loads((project / "r.json").read_text())
    assert "one@x86" in (project / "r.md").read_text()
    assert (project / "r.xml").read_text().startswith("<?xml")


def test_a_regression_exits_4(project, collected, capsys):
    assert main(["report", "--fail-on-regression", "5%", "--json", "before.json"]) == 0     # nothing to compare with yet
    collected.report = facts(median_us=12.0)
    assert main(["report", "--fail-on-regression", "5%"]) == 4
    assert "one@x86 +20.0%" in capsys.readouterr().err
    assert main(["report", "--fail-on-regression", "5%"]) == 0                              # the last report is the new one
    assert main(["report", "--fail-on-regression", "5%", "--before", "before.json"]) == 4
    assert main(["report", "--fail-on-regression", "30%", "--before", "before.json"]) == 0


def test_the_deployfile_can_ask_for_the_gate(project, collected, capsys):
    with (project / "deployfile.yaml").open("a") as file:
        file.write("report: {fail_on_regression: 5%}\n")
    assert main(["report"]) == 0
    collected.report = facts(median_us=12.0)
    assert main(["report"]) == 4


def test_rivals_can_be_chosen(project, collected, capsys):
    assert main(["report", "--against", "onnxruntime, openvino"]) == 0
    assert main(["report", "--against", "onnxruntme"]) == 2
    assert capsys.readouterr().err.endswith("error: no rival 'onnxruntme'\nfix: did you mean 'onnxruntime'?\n")


def test_verify_shows_accuracy_and_exits_3_when_it_fails(project, collected, capsys):
    assert main(["verify", "one@x86"]) == 0
    assert "one@x86" in capsys.readouterr().out
    (project / "one.onnx").write_text("wrong")
    collected.report = facts(error=1.0)
    assert main(["verify", "one@x86"]) == 3
