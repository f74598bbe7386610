"""Whole deployments through the command line: built, verified, run, measured, reported; and what an edit makes run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import NETWORKS, SHAPES, conv_net, write_project

from toolchain.cli import main
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.interpret import interpret

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("numpy", "onnx", "pydantic", "pydantic_core", "yaml", "llvmlite", "rich", "onnxruntime", "ml_dtypes")


def finished(captured) -> list[dict]:
    """The events of the tasks that the last command with --json ran or found done."""
    lines = [line for line in captured.readouterr().out.splitlines() if line.startswith('{"v":')]
    return [e for e in map(json.loads, lines) if e["event"] == "task_finished"]


def ran(captured) -> list[str]:
    """Names of the tasks that the last `tc build --json` ran."""
    return [e["task"] for e in finished(captured) if not e["cached"]]


@pytest.mark.parametrize("name", NETWORKS)
def test_builds_what_computes_the_same(name, workplace, capfd):
    write_project(workplace, name)
    assert main(["build"]) == 0
    artifact = workplace / "build" / f"{name}@x86"
    files = {"manifest.json", "plan.json", "weights.bin", f"{name}.h", f"lib{name}.so"}
    assert {p.name for p in artifact.iterdir()} == files
    graph = import_onnx(workplace / f"{name}.onnx", SHAPES.get(name))
    random = np.random.default_rng(7)
    inputs = {i: random.standard_normal(graph.types[i].shape).astype(np.float32) for i in graph.inputs}
    for i, array in inputs.items():
        np.save(workplace / f"{i}.npy", array)
    assert main(["run", f"{name}@x86", *(f"--input={i}={i}.npy" for i in inputs), "-o", "out", "--threads", "2"]) == 0
    for output, expected in interpret(graph, inputs).items():
        # rtol: two orders of summation in fp32 over at most a few hundred terms
        np.testing.assert_allclose(np.load(workplace / "out" / f"{output}.npy"), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_done_twice(own_store, capsys):
    write_project(own_store, "mlp")
    assert main(["build", "--json"]) == 0
    first = ran(capsys)
    assert first[0] in ("import:mlp", "target:x86") and first[-1] == "verify:mlp@x86"
    assert main(["build", "--json"]) == 0
    assert ran(capsys) == []


def test_equal_inputs_give_equal_bytes(workplace, tmp_path, monkeypatch):
    for n in range(2):
        monkeypatch.setenv("TC_STORE", str(tmp_path / f"store{n}"))
        folder = write_project(tmp_path / f"place{n}", "conv_net")
        assert main(["build", "-C", str(folder)]) == 0
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / f"place{n}/build/conv_net@x86").iterdir()} for n in range(2))
    assert one == other


def test_an_edit_makes_run_what_depends_on_it(own_store, capsys):
    write_project(own_store, "conv_net", "mlp")
    assert main(["build", "--json"]) == 0
    capsys.readouterr()
    onnx.save(conv_net(seed=1), own_store / "conv_net.onnx")                # other weights, the same network
    assert main(["build", "--json"]) == 0
    steps = ("optimize", "weights", "link", "compare", "verify")            # and no kernel
    assert set(ran(capsys)) == {"import:conv_net", "reference:conv_net", *(f"{step}:conv_net@x86" for step in steps)}
    with (own_store / "deployfile.yaml").open("a") as file:
        file.write("verify: {tolerance: {fp32: {rtol: 0.01, atol: 0.001}}}\n")
    assert main(["build", "--json"]) == 0
    assert set(ran(capsys)) == {"compare:conv_net@x86", "compare:mlp@x86", "verify:conv_net@x86", "verify:mlp@x86"}


def test_builds_at_the_same_time_lock_all_they_make_and_it_can_be_made_again(own_store, capsys, monkeypatch, tmp_path):
    targets = "a: {kind: x86, cpu: x86-64-v2, threads: 1}, b: {kind: x86, cpu: x86-64-v2, threads: 2}"
    write_project(own_store, "mlp", more=f"targets: {{{targets}}}\nverify: {{against: interpreter}}\n")
    command = [sys.executable, "-m", "toolchain", "build"]
    builds = [subprocess.Popen([*command, name], stderr=subprocess.DEVNULL) for name in "ab"]
    assert [build.wait() for build in builds] == [0, 0]
    assert main(["build", "--locked"]) == 0
    monkeypatch.setenv("TC_STORE", str(tmp_path / "another-store"))
    assert main(["build", "--locked", "b"]) == 0                            # every byte as it was, from nothing
    (own_store / "mlp.onnx").write_bytes((own_store / "mlp.onnx").read_bytes() + b"\0" * 2)
    capsys.readouterr()
    assert main(["build", "--locked", "a"]) == 2
    assert "models.mlp.files.model (mlp.onnx): locked " in capsys.readouterr().err


def test_a_build_with_nothing_to_do_imports_nothing_heavy(workplace):
    write_project(workplace, "mlp")
    assert main(["build"]) == 0
    code = ("import sys; from toolchain.cli import main; code = main(['build']); "
            f"print(code, [m for m in {HEAVY!r} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=True)
    *_, last = done.stdout.splitlines()
    assert last == "0 []"
    assert "0 tasks ran" in done.stdout


def test_targets_of_one_model_share_its_import(own_store, capsys):
    write_project(own_store, "mlp", more="targets: {x86: {kind: x86}, old: {kind: x86, cpu: x86-64-v2}}\n")
    assert main(["build", "--json"]) == 0
    tasks = ran(capsys)
    assert tasks.count("import:mlp") == 1
    assert {t.rpartition("@")[2] for t in tasks if t.startswith("kernel:")} == {"x86", "old"}
    plans = [json.loads((own_store / f"build/mlp@{t}/manifest.json").read_text())["target"] for t in ("x86", "old")]
    assert plans[1]["vector_bits"] == 128


def test_report_measures_and_writes_its_forms(workplace, capfd):
    write_project(workplace, "conv_net", more="report: {against: [onnxruntime, torch], time: 500ms, threads: 1}\n")
    assert main(["report", "--json", "r.json", "--md", "r.md", "--junit", "r.xml"]) == 0
    screen = capfd.readouterr().out
    assert "conv_net@x86: agrees with" in screen and "Layers of conv_net@x86" in screen
    (build,) = json.loads((workplace / "r.json").read_text())["report"]["builds"]
    assert build["build"]["kernels"] > 0 and build["build"]["compile_s"] > 0
    assert all(o["passed"] for o in build["verify"]["outputs"])
    assert build["measure"]["threads"] == 1
    assert "ours" in [c["name"] for c in build["measure"]["contenders"] if c["bursts_us"]]
    assert [c["name"] for c in build["measure"]["contenders"] if c["error"].startswith("missing: ")] == ["torch"]
    sources = {s for layer in build["layers"] for s in layer["sources"]}
    assert {"stem", "stem_relu", "block_a", "block_b", "classifier"} <= sources
    assert sum(layer["flops"] for layer in build["layers"]) > 2 * 24 * 24 * 16 * 27
    assert "conv\\_net@x86" in (workplace / "r.md").read_text()
    assert main(["report"]) == 0
    assert "0 tasks ran" in capfd.readouterr().err                          # measured facts are kept like all others


def test_bench_and_show(workplace, capfd):
    write_project(workplace, "mlp")
    assert main(["build"]) == 0
    capfd.readouterr()
    assert main(["bench", "mlp", "--time", "50ms", "--layers", "--json"]) == 0
    stats = json.loads(capfd.readouterr().out)
    assert stats["repeats"] >= 5 and stats["p10_us"] <= stats["median_us"] <= stats["p90_us"] and stats["layers"]
    assert main(["show", "optimize:mlp@x86"]) == 0
    assert "Fused" in capfd.readouterr().out
    assert main(["show", "optimize:mlp@x86", "--after", "list"]) == 0
    assert "fuse_operators" in capfd.readouterr().out.split()
    assert main(["verify"]) == 0
    assert main(["explain", "link:mlp@x86"]) == 0
    assert main(["plan"]) == 0
    assert "nothing to do" in capfd.readouterr().out


def test_checked_run_finds_nothing(workplace, monkeypatch, capfd):
    """TC_CHECK=1 fills dead memory with NaN and looks at halos and tails after every op."""
    write_project(workplace, "conv_net", "lstm", "attention")
    monkeypatch.setenv("TC_CHECK", "1")
    assert main(["verify"]) == 0


def test_the_example_is_built(workplace, capfd):
    (workplace / "deployfile.yaml").write_bytes((REPOSITORY / "deployfile.yaml.example").read_bytes())
    recipe = workplace / "recipes" / "paper" / "models.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_bytes((REPOSITORY / "recipes/paper/models.py").read_bytes())
    assert main(["build"]) == 0
    assert (workplace / "build" / "dqn@x86" / "manifest.json").is_file()


def test_metadata_of_the_model_is_in_the_manifest(workplace):
    write_project(workplace, "mlp")
    model = onnx.load(workplace / "mlp.onnx")
    onnx.helper.set_model_props(model, {"classes": "cat\ndog\nönd"})
    onnx.save(model, workplace / "mlp.onnx")
    assert main(["build"]) == 0
    manifest = json.loads((workplace / "build/mlp@x86/manifest.json").read_text())
    assert manifest["metadata"] == {"classes": "cat\ndog\nönd"}


# --- what must not be built ------------------------------------------------------------------------------------------------

def test_data_outside_the_folder_is_refused(workplace, tmp_path, capfd):
    write_project(workplace, "mlp")
    (tmp_path / "secret").write_bytes(os.urandom(4 * 20 * 33))
    model = onnx.load(workplace / "mlp.onnx")
    weight = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weight, "../secret")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    (workplace / "mlp.onnx").write_bytes(model.SerializeToString())
    assert main(["build"]) == 2
    assert "../secret" in capfd.readouterr().err
    assert not (workplace / "build").exists()


def test_a_damaged_model_is_refused(workplace, capfd):
    write_project(workplace, "mlp")
    data = (workplace / "mlp.onnx").read_bytes()
    (workplace / "mlp.onnx").write_bytes(data[:len(data) // 2])
    assert main(["build"]) == 2
    assert "is not an ONNX model" in capfd.readouterr().err


def test_operators_without_kernels_are_listed_together(workplace, capfd):
    node = onnx.helper.make_node
    nodes = [node("RandomUniformLike", ["x"], ["a"], "first"), node("RandomUniformLike", ["x"], ["b"], "second"),
             node("RandomNormalLike", ["a"], ["c"], "third")]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "odd", [value("x", 1, [2, 2])], [value("b", 1, [2, 2]), value("c", 1, [2, 2])])
    onnx.save(onnx.helper.make_model(graph), workplace / "odd.onnx")
    (workplace / "deployfile.yaml").write_text("version: 1\nmodels: {odd: {path: odd.onnx}}\n")
    assert main(["build"]) == 2
    screen = capfd.readouterr().err
    assert "RandomUniformLike" in screen and "RandomNormalLike" in screen and "first" in screen and "second" in screen


# --- what is wrong with what was built -------------------------------------------------------------------------------------

def test_a_wrong_artifact_exits_3_and_the_report_shows_it(own_store, capfd):
    """The recorded output is not what the model computes: every run says so, and the comparison is made once."""
    write_project(own_store, "conv_net", more="report: {against: [], time: 100ms}\n")
    np.save(own_store / "y.npy", np.full((1, 10), 0.1, np.float32))
    text = (own_store / "deployfile.yaml").read_text()
    (own_store / "deployfile.yaml").write_text(
        text.replace("path: conv_net.onnx", "path: conv_net.onnx, data: {expected: {probabilities: y.npy}}"))
    assert main(["build"]) == 3
    screen = capfd.readouterr().err
    assert "failed: verify:conv_net@x86" in screen
    assert "output 'probabilities' differs from declared outputs and onnxruntime" in screen
    assert main(["verify", "--json"]) == 3
    assert [e["cached"] for e in finished(capfd) if e["task"] == "compare:conv_net@x86"] == [True]
    assert main(["report", "--junit", "r.xml"]) == 3
    assert "FAIL  conv_net@x86: disagrees with declared outputs" in capfd.readouterr().out
    assert "<failure" in (own_store / "r.xml").read_text()
