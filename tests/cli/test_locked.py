"""`tc build --locked`, `tc plan --locked`, and what `tc build` locks: over the real engine with small steps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import fake_steps
import pytest
from test_build_command import run

from toolchain.build.lockfile import parse, render
from toolchain.tasks import lock as locking


def steady(text: str) -> str:
    """Digests that change with our code replaced."""
    return re.sub(r"(tools\.code|\.inputs): locked \w+, present \w+", r"\1: locked DIGEST, present DIGEST", text)


@pytest.fixture
def locked(project, capsys, monkeypatch):
    """A project that was built and locked with made-up versions; its lock file."""
    versions = dict.fromkeys(locking.TOOLS, "1.0")
    monkeypatch.setattr(locking, "installed_version", versions.__getitem__)
    monkeypatch.setattr(locking, "code_digest", lambda *_: "c0de" * 16)
    assert run(capsys, "build")[0] == 0
    return project / "deployfile.lock"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_build_locks_what_it_made(project, capsys):
    err = run(capsys, "build", "one")[2]
    assert err.endswith("deployfile.lock: locked one@x86, one@old\n")
    lock = parse((project / "deployfile.lock").read_text(), project / "deployfile.lock")
    assert set(lock.sections) == {("tools", ""), ("models", "one"), ("targets", "x86"), ("targets", "old"),
                                  ("builds", "one@x86"), ("builds", "one@old")}
    assert lock.sections["models", "one"] == {
        "deployfile.path": "one.onnx", "files.model": "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"}
    assert lock.sections["targets", "x86"]["features"] == fake_steps.HOST["features"]
    assert run(capsys, "build", "two@x86")[2].endswith("deployfile.lock: locked two@x86\n")
    now = parse((project / "deployfile.lock").read_text(), project / "deployfile.lock")
    assert {n: s for n, s in now.sections.items() if n in lock.sections} == lock.sections


def test_the_locked_digest_is_that_of_the_exported_file(project, capsys):
    run(capsys, "build", "one@x86")
    done = subprocess.run(["sha256sum", "build/one@x86/module.txt"], capture_output=True, text=True, check=True)
    assert f'files."module.txt" = "{done.stdout.split()[0]}"' in (project / "deployfile.lock").read_text()


def test_nothing_changed_writes_nothing(locked, capsys):
    before = locked.stat()
    assert run(capsys, "build")[2] == ""
    assert run(capsys, "build", "--locked")[::2] == (0, "")
    assert (locked.stat().st_mtime_ns, locked.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_what_failed_is_not_locked(project, capsys):
    (project / "one.onnx").write_text("wrong")
    assert run(capsys, "build", "--keep-going")[0] == 3
    text = (project / "deployfile.lock").read_text()
    assert "two@x86" in text and "one@x86" not in text
    (project / "two.onnx").write_text("uncompilable")
    assert run(capsys, "build", "two")[0] == 1
    assert (project / "deployfile.lock").read_text() == text, "what was locked before stays"


def test_what_is_no_longer_declared_is_forgotten(locked, capsys):
    edit(locked.parent / "deployfile.yaml", "  two: {path: two.onnx}\n", "")
    assert run(capsys, "build")[0] == 0
    assert "two" not in locked.read_text()


def test_a_dry_run_and_a_locked_build_write_no_lock(project, capsys):
    assert run(capsys, "build", "--dry-run")[0] == 0
    assert run(capsys, "build", "--locked") == (
        2, "", "there is no deployfile.lock\nfix: `tc build` without --locked writes it; commit it\n")
    assert not (project / "deployfile.lock").exists() and not (project / "build").exists()


def test_another_deployfile_has_another_lock(locked, capsys):
    shutil.copyfile(locked.parent / "deployfile.yaml", locked.parent / "small.yaml")
    before = locked.read_text()
    assert run(capsys, "build", "-f", "small.yaml", "one@x86")[0] == 0
    assert locked.read_text() == before and "one@x86" in (locked.parent / "small.lock").read_text()


# --- what differs before a build ---------------------------------------------------------------------------------------

def change_model(project, monkeypatch):
    (project / "one.onnx").write_text("changed")


def change_deployfile(project, monkeypatch):
    edit(project / "deployfile.yaml", "one.onnx}", "one.onnx, dims: {batch: 4}}")
    edit(project / "deployfile.yaml", "cpu: x86-64-v3", "cpu: x86-64-v2")


def change_toolchain(project, monkeypatch):
    versions = dict.fromkeys(locking.TOOLS, "1.0") | {"toolchain": "1.1", "llvmlite": "0.9", "onnx": "1.1"}
    monkeypatch.setattr(locking, "installed_version", versions.__getitem__)
    monkeypatch.setattr(locking, "code_digest", lambda *_: "d0de" * 16)


def change_code(project, monkeypatch):
    monkeypatch.setattr(locking, "code_digest", lambda *_: "d0de" * 16)


def change_machine(project, monkeypatch):
    features = [*(f for f in fake_steps.HOST["features"] if f not in ("+avx512f", "+movbe")), *(f"+f{n}" for n in range(12))]
    monkeypatch.setattr(fake_steps, "HOST", {**fake_steps.HOST, "cores": 8, "features": features})


def add_a_model(project, monkeypatch):
    edit(project / "deployfile.yaml", "  two:", "  three: {path: one.onnx}\n  two:")


def rebuild_one_elsewhere(project, monkeypatch):
    """Two branches, merged: one locked a build anew, the other brought newer tools."""
    edit(project / "deployfile.lock", 'numpy = "1.0"', 'numpy = "1.1"')
    versions = dict.fromkeys(locking.TOOLS, "1.0") | {"numpy": "1.1"}
    monkeypatch.setattr(locking, "installed_version", versions.__getitem__)


@pytest.mark.parametrize("change", [change_model, change_deployfile, change_toolchain, change_code, change_machine,
                                    add_a_model, rebuild_one_elsewhere])
def test_what_differs_is_shown_before_anything_is_built(change, locked, capsys, monkeypatch, golden):
    project = locked.parent
    change(project, monkeypatch)
    text = locked.read_text()
    code, out, err = run(capsys, "build", "--locked")
    if change is change_machine:                # only looking at the processor tells: that runs first, and shows itself
        progress, summary, err = re.fullmatch(r"((?:\[.+\n)+)(built .+\n)([\s\S]*)", err).groups()
        assert "import:" in progress and "link:" not in progress and summary.startswith("built 2 of 2 inputs")
    assert (code, out) == (2, "")
    golden(steady(err))
    assert run(capsys, "plan", "--locked")[0] == run(capsys, "build", "--dry-run", "--locked")[0] == 2
    assert locked.read_text() == text
    assert run(capsys, "build")[0] == 0, "without --locked it is built, and locked"
    assert locked.read_text() != text
    assert run(capsys, "build", "--locked")[0] == 0


def test_only_the_builds_asked_for_are_compared(locked, capsys):
    (locked.parent / "one.onnx").write_text("changed")
    assert run(capsys, "build", "--locked", "two")[0] == 0
    assert run(capsys, "build", "--locked", "two", "one@x86")[0] == 2


def test_a_partial_build_leaves_others_to_be_built_again(locked, capsys):
    (locked.parent / "one.onnx").write_text("changed")
    assert run(capsys, "build", "one@x86")[0] == 0
    assert run(capsys, "build", "--locked", "one@x86", "two")[0] == 0
    code, _, err = run(capsys, "build", "--locked")
    assert code == 2
    assert re.sub(r":\d+: ", ":N: ", re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", err)) == (
        'deployfile.lock:N: builds."one@old".inputs: locked DIGEST, present DIGEST\n'
        "fix: `tc build one@old`: since they were locked, a build of others has locked other tools, models or targets\n\n"
        "1 difference from deployfile.lock: nothing was built\n"
        "fix: `tc build` without --locked builds and locks what is here\n")


def test_many_differences_stay_one_screen(project, capsys):
    names = [f"m{n}" for n in range(60)]
    (project / "deployfile.yaml").write_text("version: 1\nmodels:\n  one: {path: one.onnx}\n")
    run(capsys, "build")
    models = "".join(f"  {name}: {{path: one.onnx}}\n" for name in names)
    (project / "deployfile.yaml").write_text(f"version: 1\nmodels:\n{models}")
    err = run(capsys, "build", "--locked")[2]
    assert err.count(" is not locked\n") == 40
    assert err.endswith("60 differences from deployfile.lock, the first 40 shown: nothing was built\n"
                        "fix: `tc build` without --locked builds and locks what is here\n")


def test_a_plan_says_what_it_could_not_compare(locked, capsys, monkeypatch, tmp_path):
    assert run(capsys, "plan", "--locked", "one@x86")[1] == "nothing to do: 3 tasks up to date\n"
    monkeypatch.setenv("TC_STORE", str(tmp_path / "empty"))
    out = run(capsys, "plan", "--locked", "one@x86")[1]
    assert out.splitlines()[-1] == "compared with the lock file once they have run: import:one"
    assert [json.loads(line)["name"] for line in run(capsys, "plan", "--locked", "--json", "one@x86")[1].splitlines()] == [
        "import:one", "link:one@x86", "verify:one@x86"]


def test_a_failure_of_what_must_run_first_ends_the_build(locked, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TC_STORE", str(tmp_path / "empty"))
    (locked.parent / "offline").touch()
    code, out, err = run(capsys, "build", "--locked", "one@x86")
    assert (code, out) == (5, "") and "failed: import:one\n  the package index cannot be reached" in err
    assert "link:" not in err


@pytest.mark.parametrize("command", [["build"], ["build", "--locked"], ["plan", "--locked"], ["build", "one@x86"]])
def test_a_damaged_lock_file_stops_before_work(command, locked, capsys):
    edit(locked, "[tools]\n", "[tools]\n<<<<<<< HEAD\n")
    (locked.parent / "one.onnx").write_text("changed")
    assert run(capsys, *command) == (2, "", (
        "deployfile.lock:6: a merge was not resolved here\n"
        "fix: take one side (git checkout --theirs deployfile.lock), then `tc build` brings it up to date\n"))


# --- what differs after a build ----------------------------------------------------------------------------------------

def test_an_artifact_that_comes_out_differently(locked, capsys, golden):
    project = locked.parent
    lock = parse(locked.read_text(), locked)
    sections = {name: dict(section) for name, section in lock.sections.items()}
    sections["builds", "one@x86"] |= {"artifact": "0" * 64, 'files."module.txt"': "0" * 64}
    sections["builds", "two@old"]["artifact"] = "0" * 64
    locked.write_text(text := render(sections))
    code, out, err = run(capsys, "build", "--locked")
    assert code == 3 and out.startswith("built 4 of 4 builds")
    golden(err)
    assert {p.name for p in (project / "build").iterdir()} == {"one@old", "two@x86"}, "what differs is not left there"
    assert locked.read_text() == text
    assert run(capsys, "build", "--locked", "two@x86", "one@old")[0] == 0
    assert run(capsys, "build")[0] == 0 and run(capsys, "build", "--locked")[0] == 0


def test_locked_from_an_empty_store(locked, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TC_STORE", str(tmp_path / "empty"))
    shutil.rmtree(locked.parent / "build")
    code, out, err = run(capsys, "build", "--locked", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [e["event"] for e in events if e["event"].startswith("run_")] == ["run_started", "run_finished"] * 2
    assert (locked.parent / "build/two@old/module.txt").exists()
