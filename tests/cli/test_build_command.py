"""`tc build` and the commands beside it, over the real engine with small text steps."""

from __future__ import annotations

import json
import re
import signal

import numpy as np
import pytest

from toolchain.build.pool import Pool
from toolchain.cli import main
from toolchain.cli.coverage import coverage
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.serialize import save


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = main(list(args))
    out, err = capsys.readouterr()
    return code, out, err


def steady(text: str) -> str:
    """Times, run ids and process ids replaced, so that a screen can be compared."""
    text = re.sub(r"\d+(\.\d+)? (ms|s)\b", "N s", text)
    return re.sub(r"\d{8}-\d{6}(-\d+)+", "RUN", text)


def test_everything_is_built_then_nothing_is(project, capsys):
    code, out, err = run(capsys, "build")
    assert (code, steady(out).split(";")[0]) == (0, "built 4 of 4 builds: 10 tasks ran, 0 cached, N s")
    assert "link:one@x86" in err
    assert (project / "build/one@old/module.txt").read_text() == "old: first"
    code, out, err = run(capsys, "build")
    assert (code, err) == (0, "")
    assert re.match(r"built 4 of 4 builds: 0 tasks ran, 10 cached, \d", out)


def test_only_what_changed_runs(project, capsys):
    run(capsys, "build")
    (project / "one.onnx").write_text("changed")
    code, out, err = run(capsys, "build", "-j", "1")
    assert code == 0
    assert "built 4 of 4 builds: 5 tasks ran, 5 cached" in out
    assert "two" not in err


def test_workers_are_made_ready_early_where_the_deployfile_is_new(project, capsys, monkeypatch):
    prepared = []
    monkeypatch.setattr(Pool, "prepare", lambda pool: prepared.append(pool))
    run(capsys, "build", "one@x86")
    assert len(prepared) == 1
    (project / "one.onnx").write_text("changed")
    assert "3 tasks ran" in run(capsys, "build", "one@x86")[1]
    assert len(prepared) == 1                                # read before as it is: perhaps there is nothing to do


def test_workers_made_ready_for_nothing_end(project, capsys, monkeypatch):
    servers = []
    prepare = Pool.prepare
    monkeypatch.setattr(Pool, "prepare", lambda pool: (prepare(pool), servers.append(pool._server)))
    (project / "deployfile.yaml").write_text("version: 1\nmodels: 3\n")
    assert run(capsys, "build")[0] == 2
    (server,) = servers
    assert server.poll() is not None


def test_a_comment_in_the_deployfile_rebuilds_nothing(project, capsys):
    run(capsys, "build")
    with (project / "deployfile.yaml").open("a") as file:
        file.write("# nothing\n")
    assert "0 tasks ran, 10 cached" in run(capsys, "build")[1]


@pytest.mark.parametrize(("names", "builds"), [
    (["one"], {"one@x86", "one@old"}), (["old"], {"one@old", "two@old"}), (["two@x86"], {"two@x86"}),
    (["*@old", "one@x86"], {"one@old", "two@old", "one@x86"})])
def test_names_are_builds_models_targets_or_patterns(project, capsys, names, builds):
    assert run(capsys, "build", *names)[0] == 0
    assert {p.name for p in (project / "build").iterdir()} == builds


def test_an_unknown_name(project, capsys):
    assert run(capsys, "build", "one@x68") == (
        2, "", "error: deployfile.yaml: no build, model or target 'one@x68'\nfix: did you mean 'one@x86'?\n")


def test_a_failure_is_shown_again_at_the_end(project, capsys, golden):
    (project / "one.onnx").write_text("uncompilable")
    code, out, err = run(capsys, "build", "--keep-going", "-j", "1", "one@x86", "two@x86")
    assert code == 1
    out = re.sub(r"; critical path: .*", "", out)           # which of two chains took longer is chance
    golden(f"{steady(err)}--- standard output\n{steady(out)}")


def test_a_bug_in_a_step_says_so(project, capsys):
    (project / "one.onnx").write_text("crash")
    code, _, err = run(capsys, "build", "one@x86")
    assert code == 1
    assert "\nthis is a bug in the toolchain: link:one@x86\n  task 'link:one@x86': ZeroDivisionError: " in err
    assert "division by zero\n  log: .tc/runs/" in err and "Traceback" not in err


def test_failed_verification_exits_3(project, capsys):
    (project / "two.onnx").write_text("wrong")
    code, out, err = run(capsys, "build", "two@x86")
    assert code == 3
    assert "built 0 of 1 builds" in out
    assert "output 'y' differs" in err


def test_an_interrupted_build_ends_at_once_and_goes_on_later(project, capsys):
    (project / "two.onnx").write_text("slow")

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        code, out, err = run(capsys, "build", "-j", "2", "--keep-going")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert code == 130
    assert out.startswith("interrupted; built 2 of 4 builds: 5 tasks ran") and err.endswith("error: interrupted\n")
    (project / "two.onnx").write_text("quick")
    assert "built 4 of 4 builds: 5 tasks ran, 5 cached" in run(capsys, "build")[1]


def test_json_is_one_event_per_line_and_nothing_else(project, capsys):
    code, out, err = run(capsys, "build", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [events[0]["event"], events[-1]["event"]] == ["run_started", "run_finished"]
    assert {e["v"] for e in events} == {1}
    assert sum(e["event"] == "task_finished" for e in events) == 10


def test_annotations_on_github(project, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (project / "one.onnx").write_text("uncompilable")
    assert "::error title=link%3Aone@x86::no schedule fits\n" in run(capsys, "build", "one@x86")[2]


def test_a_project_elsewhere(project, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "build", "-C", "project", "one@x86")[0] == 0
    assert (project / "build/one@x86/module.txt").exists()
    (project / "deployfile.yaml").rename(project / "other.yaml")
    assert run(capsys, "build", "-f", "project/other.yaml", "two@x86")[0] == 0
    assert (project / "build/two@x86/module.txt").exists()


def test_the_deployfile_of_a_folder_above_is_found(project, capsys, monkeypatch):
    (project / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep/er")
    assert run(capsys, "build", "one@x86")[0] == 0
    assert (project / "build/one@x86/module.txt").exists()


def test_no_deployfile(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fix = "fix: `tc init` writes a first one\n"
    assert run(capsys, "build") == (2, "", f"no deployfile.yaml in this folder or any above\n{fix}")
    assert run(capsys, "build", "-f", "x.yaml")[2] == f"x.yaml: there is no such file\n{fix}"
    assert run(capsys, "build", "-C", "x") == (2, "", "error: no such folder: x\n")


# --- looking -----------------------------------------------------------------------------------------------------------

def test_plan_before_and_after(project, capsys):
    assert run(capsys, "plan", "one@x86") == (0, (
        "+ import:one      not built before\n+ link:one@x86    not built before\n+ verify:one@x86  not built before\n"
        "3 tasks would run, 0 up to date\n"), "")
    assert run(capsys, "build", "--dry-run", "one@x86") == run(capsys, "plan", "one@x86")
    assert not (project / "build").exists()
    run(capsys, "build")
    assert run(capsys, "plan") == (0, "nothing to do: 10 tasks up to date\n", "")


def test_plan_says_what_is_certain(project, capsys):
    run(capsys, "build")
    (project / "one.onnx").write_text("changed")
    out = run(capsys, "plan", "one@x86")[1]
    assert re.search(r"^\+ import:one +file model changed: \w{12} -> \w{12} \(\d", out, re.M)
    assert re.search(r"^\? link:one@x86 +if import:one changes", out, re.M)
    assert "up to date" in run(capsys, "plan", "--all")[1]


def test_plan_as_json(project, capsys):
    tasks = [json.loads(line) for line in run(capsys, "plan", "--json", "one@x86")[1].splitlines()]
    assert [t["name"] for t in tasks] == ["import:one", "link:one@x86", "verify:one@x86"]
    assert all(t["would_run"] for t in tasks)


def test_explain(project, capsys):
    run(capsys, "build")
    (project / "one.onnx").write_text("changed")
    code, out, _ = run(capsys, "explain", "import:one")
    assert code == 0
    assert "import:one would run\n  file model changed" in out
    assert run(capsys, "explain", "one@x86")[1].startswith("link:one@x86 would run")
    assert run(capsys, "explain", "import:on")[0] == 2
    assert "did you mean 'import:one'" in run(capsys, "explain", "import:on")[2]


def test_graph_as_dot_and_mermaid(project, capsys, golden):
    golden(run(capsys, "graph", "one@x86")[1], "dot")
    golden(run(capsys, "graph", "one@x86", "--format", "mermaid")[1], "mermaid")


def test_show(project, capsys):
    assert run(capsys, "show", "import:one")[2] == "error: 'import:one' has not been built here\nfix: `tc build` first\n"
    run(capsys, "build")
    code, out, _ = run(capsys, "show", "import:one")
    assert code == 0
    assert out.startswith("import:one: text, 5 B\n{\n  \"characters\": 5,\n")
    assert run(capsys, "show", "one@x86", "module.txt")[1] == "x86: first\n"
    assert "its files are: module.txt" in run(capsys, "show", "one@x86", "xyz")[2]
    assert "this task runs no passes" in run(capsys, "show", "import:one", "--after", "fold")[2]


def test_check_imports_every_model_and_shows_its_operators(project, capsys, monkeypatch):
    conv = {"operator": "Conv", "nodes": 2, "flops": 3_000_000_000}
    relu = {"operator": "Relu", "nodes": 1, "flops": 1_000_000_000}
    monkeypatch.setattr("toolchain.cli.coverage.coverage", lambda name, files: {
        "model": name, "covered": True, "flops": 4_000_000_000, "operators": [conv, relu]})
    code, out, err = run(capsys, "check", "one")
    assert (code, out) == (0, "one: 3 nodes, all covered, 4 GFLOP\n"
                              "  Conv                         2   75.0 %\n  Relu                         1   25.0 %\n")
    assert "built 1 of 1 models" in err
    lines = run(capsys, "check", "--json")[1].splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["one", "two"]


def test_check_counts_every_node_once(tmp_path):
    plain, types = TensorType.plain, {}
    for name, shape in (("x", (1, 3, 8, 8)), ("w", (4, 3, 3, 3)), ("y", (1, 4, 6, 6)), ("z", (1, 4, 6, 6))):
        types[name] = plain(shape)
    graph = Graph("net", (Node("Conv", ("x", "w"), ("y",)), Node("Relu", ("y",), ("z",))), ("x",), ("z",), types,
                  {"w": np.zeros((4, 3, 3, 3), np.float32)})
    save(graph, tmp_path)
    found = coverage("net", {p.name: p for p in tmp_path.iterdir()})
    assert found["operators"] == [{"operator": "Conv", "nodes": 1, "flops": 2 * 144 * 27},
                                  {"operator": "Relu", "nodes": 1, "flops": 144}]
    assert found["flops"] == 2 * 144 * 27 + 144


# --- space --------------------------------------------------------------------------------------------------------------

def test_clean_removes_what_was_built_and_nothing_else(project, capsys):
    run(capsys, "build")
    (project / "build/mine.txt").write_text("mine")
    code, out, _ = run(capsys, "clean")
    assert (code, out.split(",")[0]) == (0, "removed the artifacts of 4 builds")
    left = sorted(p.name for p in project.rglob("*") if p.is_file())
    assert left == ["deployfile.lock", "deployfile.yaml", "mine.txt", "one.onnx", "two.onnx"]
    assert "0 tasks ran, 10 cached" in run(capsys, "build")[1]
    assert (project / "build/one@x86/module.txt").exists()
    (project / "build/mine.txt").unlink()
    run(capsys, "clean")
    assert not (project / "build").exists()


def test_an_emptied_store_builds_again(project, capsys):
    run(capsys, "build")
    assert "emptied the store" in run(capsys, "clean", "--store")[1]
    assert "10 tasks ran, 0 cached" in run(capsys, "build")[1]


def test_gc(project, capsys):
    run(capsys, "build")
    assert run(capsys, "gc", "--max-size", "1GB", "--verify")[1].startswith("all artifacts are as they were made\nforgot 0")
    assert re.match(r"forgot \d+ artifacts, freed \d+ B; the store holds 0 B\n", run(capsys, "gc", "--max-size", "0B")[1])
    code, _, err = run(capsys, "gc", "--max-size", "five")
    assert code == 2
    assert err.startswith("error: Invalid value for '--max-size': 'five' is not a size with its unit, such as 64MB\n")
