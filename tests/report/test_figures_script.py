"""benchmarks/figures.py and what it is made of, on programs and recipes that take milliseconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Scripts import their neighbours: their folder is the first of the path, as when they are run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    import figures

    monkeypatch.setattr(sys, "argv", ["figures.py", *map(str, arguments)])
    return figures.main()


def test_the_help_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    facts = tmp_path / "out" / "figures.json"
    assert run(monkeypatch, "--only", "help", "--runs", 1, "--json", facts) == 0
    screen = capsys.readouterr().out
    assert "tc --help" in screen and "<= 100 ms" in screen
    (figure, empty) = json.loads(facts.read_text())["sections"]["help"]
    assert figure["data"]["wall_ms"]["count"] == 1
    assert figure["data"]["wall_ms"]["median"] > 0 < empty["data"]["cpu_ms"]["median"]


def test_an_unknown_section_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--only", "help,colt")
    assert "no section 'colt': there are help, noop, cold" in capsys.readouterr().err


def test_a_command_that_fails_has_no_time() -> None:
    from figures import process_time

    figure = process_time("broken", [sys.executable, "-I", "-c", "raise SystemExit(3)"], "<= 1 ms", 1)
    assert figure.value == "failed: exit 3"


def test_memory_counts_children_and_remembers_peaks() -> None:
    """The parent holds little; its child touches 96 MiB and frees them long before it ends."""
    from processes import watch_memory

    child = "import time; x = b'x' * (96 << 20); del x; time.sleep(0.4)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {child!r}], check=True)"
    peak = watch_memory([sys.executable, "-I", "-c", parent], every_s=0.05)
    assert peak.exit_code == 0 and peak.samples > 1
    assert 96 << 20 < peak.process_bytes < 160 << 20
    assert "import time" in peak.process
    assert peak.tree_bytes > 4 << 20


def test_a_spread_names_the_middle_and_the_ends() -> None:
    from processes import spread

    values = spread([float(n) for n in range(11, 0, -1)])
    assert (values.count, values.median, values.p10, values.p90, values.low, values.high) == (11, 6, 2, 10, 1, 11)


RECIPE = '''
import onnx
from onnx import TensorProto, helper

def {name}(path):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 5]) for n in "xy")
    graph = helper.make_graph([helper.make_node("{op}", ["x"], ["y"])], "small", [x], [y])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one recipe `tiny` of two models, and a store of its own."""
    folder = tmp_path / "recipes" / "tiny"
    folder.mkdir(parents=True)
    (folder / "models.py").write_text(RECIPE.format(name="relu", op="Relu") + RECIPE.format(name="neg", op="Neg"))
    (folder / "deployfile.yaml").write_text(
        'version: 1\nmodels:\n  relu: {recipe: "models.py:relu"}\n  neg: {recipe: "models.py:neg"}\n')
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    return folder.parent


def test_distinct_kernels_of_a_recipe_are_timed_part_by_part(recipe: Path) -> None:
    from figures import distinct_kernels, kernel_figures
    from kernel_times import PARTS, time_kernel
    from recipe_builds import recipe_builds, user_store

    from toolchain.graph.serialize import from_json

    errors: list[str] = []
    with user_store() as store:
        found = distinct_kernels(store, recipe_builds(["tiny"], ["r*", "neg"], recipe), errors)
    assert not errors
    assert sorted(users for _, _, users in found) == [("tiny/neg",), ("tiny/relu",)]
    times = [time_kernel(from_json(body), target, users) for body, target, users in found]
    assert {k.name for k in times} == {"relu", "neg"}
    assert all(set(k.wall_ms) == set(PARTS) and k.python_ms > 0 for k in times)
    assert "2 distinct kernels" in next(kernel_figures(times)).how


def test_speed_is_measured_once_per_artifact(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself is tests/report/test_measure.py's; here it hands back what it was given."""
    import speed
    from recipe_builds import recipe_builds, user_store

    from toolchain.report.facts import Comparison, ContenderFacts, MeasureFacts

    calls = []

    def fake(entries, inputs, *, threads, rounds, reference):
        calls.append({name: a.shape for name, a in inputs.items()})
        (folder,) = (e.model for e in entries if e.ours)
        assert (folder / "manifest.json").is_file()
        ours = ContenderFacts("ours", ours=True, median_us=2.0)
        return MeasureFacts(threads, rounds, 0.25, (ours,), (Comparison("rival", 1.5, 1.4, 1.6, "faster", False),))

    monkeypatch.setattr(speed, "measure", fake)
    options = {"against": (), "threads": 1, "seconds": 1.0}
    with user_store() as store:
        (build,) = recipe_builds(["tiny"], ["relu"], recipe)
        facts = speed.speed_of(store, build, {}, **options)
        assert facts["speedup"] == {"rival": [1.5, 1.4, 1.6]} and facts["medians_us"] == {"ours": 2.0}
        known = {speed.key_of(build, 1): facts}
        assert speed.speed_of(store, build, known, **options) is facts
        speed.speed_of(store, build, known, **{**options, "seconds": 2.0})
    assert calls == [{"x": (4, 5)}, {"x": (4, 5)}]


def test_a_project_of_one_model_has_its_file_and_recorded_data(recipe: Path, tmp_path: Path) -> None:
    from recipe_builds import recipe_builds, single_model_project, user_store

    from toolchain.build.load import load_deployfile

    with user_store() as store:
        (build,) = recipe_builds(["tiny"], ["neg"], recipe)
        model = single_model_project(store, build, tmp_path / "one")
    deployfile = load_deployfile(tmp_path / "one" / "deployfile.yaml")
    assert model == tmp_path / "one" / "neg.onnx" and model.stat().st_size > 0
    assert list(deployfile.models) == ["neg"] and deployfile.models["neg"].path == "neg.onnx"


def test_geometric_means_are_of_all_and_of_each_recipe() -> None:
    from figures import geometric_means

    lines = list(geometric_means("rival", {"a/x": 0.5, "a/y": 2.0, "b/z": 8.0}, "so"))
    assert [line.value for line in lines] == ["2.00x", "1.00x", "8.00x"]
    assert "least 0.50x (a/x), 3 models" in lines[0].spread
    assert np.isclose(lines[0].data["ratios"]["b/z"], 8)
