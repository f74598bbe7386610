"""`tc devices`, and builds, runs, benches and reports on the devices of a deployfile: whole commands, a real sshd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from faults import World
from loopback import make_key, program
from onnx import TensorProto, helper, numpy_helper

from toolchain.build.records import Records
from toolchain.cli import main
from toolchain.remote.facts import Conditions
from toolchain.remote.host_keys import host_name, pins_file
from toolchain.remote.quarantine import quarantine_file
from toolchain.targets.llvm.mca import mca_path
from toolchain.tasks.tuning import emulated

DEPLOYFILE = """\
version: 1
models: {{net: {{path: net.onnx, data: {{inputs: {{x: {{file: x.npy}}}}}}}}}}
targets:
  desk: {{kind: x86, cpu: x86-64-v2, device: near}}
  board: {{kind: aarch64, cpu: cortex-a53, device: kitchen}}
devices:
  near: {{host: {host}, port: {port}, key_file: {key}, folder: {folder}}}
  kitchen: {{host: {host}, port: {port}, key_file: {key}, folder: {folder},
            exec_prefix: qemu-aarch64-static -cpu cortex-a53}}
  away: {{host: {host}, port: 1, key_file: {key}, folder: {folder}}}
report: {{against: [], time: 1s}}
verify: {{against: interpreter}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def write_network(folder: Path, rows: int, inner: int, columns: int) -> None:
    w = np.random.default_rng(0).standard_normal((inner, columns)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "net.onnx")
    np.save(folder / "x.npy", np.random.default_rng(1).standard_normal((rows, inner)).astype(np.float32))


@pytest.fixture
def project(world: World, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program("qemu-aarch64-static")
    write_network(tmp_path, 4, 16, 8)
    sshd = world.sshd
    (tmp_path / "deployfile.yaml").write_text(
        DEPLOYFILE.format(host=sshd.network.address, port=sshd.port, key=sshd.key, folder=sshd.board_folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TC_STORE", str(store))
    monkeypatch.setenv("TC_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def accept(world: World) -> None:
    assert main(["devices", "add", "near", "--accept", world.sshd.fingerprint()]) == 0


def edit(project: Path, before: str, after: str) -> None:
    file = project / "deployfile.yaml"
    file.write_text(file.read_text().replace(before, after))


class TestKeys:
    def test_a_board_is_added_once_its_fingerprint_is_accepted(self, project, world, capsys):
        assert main(["devices", "doctor", "near"]) == 5
        assert "its host key is not known yet" in capsys.readouterr().out
        assert main(["devices", "add", "near"]) == 2
        assert f"fix: --accept {world.sshd.fingerprint()}" in capsys.readouterr().err
        assert main(["devices", "add", "near", "--accept", "SHA256:wrong"]) == 5
        assert not pins_file().exists()
        accept(world)
        assert "pinned in" in capsys.readouterr().out
        assert main(["devices", "add", "near"]) == 0
        assert "is known already" in capsys.readouterr().out

    def test_a_changed_key_wants_rekey(self, project, world, capsys):
        pins_file().parent.mkdir()
        other = Path(f"{make_key(project / 'other_key')}.pub").read_text().split()[1]
        line = f"{host_name(world.sshd.network.address, world.sshd.port)} ssh-ed25519 {other}\n"
        pins_file().write_text(line)
        assert main(["devices", "add", "near", "--accept", world.sshd.fingerprint()]) == 5
        assert "tc devices rekey near" in capsys.readouterr().err
        assert pins_file().read_text() == line
        assert main(["devices", "rekey", "near", "--accept", world.sshd.fingerprint()]) == 0
        assert main(["devices", "doctor", "near"]) == 0

    def test_a_board_in_quarantine_is_not_used(self, project, world, capsys):
        accept(world)
        assert main(["devices", "quarantine", "near", "--reason", "fan broken"]) == 0
        assert quarantine_file().exists()
        assert main(["devices", "doctor", "near"]) == 5
        assert "is in quarantine: fan broken" in capsys.readouterr().out
        assert main(["devices"]) == 0
        assert "in quarantine: fan broken" in capsys.readouterr().out
        assert main(["devices", "quarantine", "near", "--off"]) == 0
        assert main(["devices", "doctor", "near"]) == 0


class TestListing:
    def test_the_list_connects_to_nothing(self, project, capsys):
        assert main(["devices", "--json"]) == 0
        found = {d["name"]: d for d in json.loads(capsys.readouterr().out)}
        assert found.keys() == {"near", "kitchen", "away"}
        assert found["kitchen"]["targets"] == ["board"] and found["away"]["targets"] == []

    def test_the_doctor_says_what_runs_where(self, project, world, capsys):
        accept(world)
        assert main(["devices", "doctor"]) == 5
        out = capsys.readouterr().out
        assert "target desk: its CPU has all that the code needs" in out
        assert "target board: its CPU has all that the code needs" in out
        assert "emulated: runs in qemu-aarch64-static" in out
        assert "refuses connections to port 1" in out

    def test_a_target_that_is_newer_than_the_board_is_named(self, project, world, capsys):
        accept(world)
        edit(project, "cpu: cortex-a53,", "cpu: cortex-a53, features: ['+dotprod'],")
        assert main(["devices", "doctor", "kitchen"]) == 5
        assert "target board: its CPU lacks dotprod" in capsys.readouterr().out

    @pytest.mark.parametrize(("cpus", "message"), [
        ("[900]", "0 of its `cpus` 900 can be used"), ("[0, 0, 901, 902]", "1 of its `cpus` 0, 901, 902 can be used"),
        ("[0]", ""),
    ])
    def test_a_set_of_cpus_that_are_not_there(self, project, world, capsys, cpus, message):
        accept(world)
        edit(project, "  near: {", f"  near: {{cpus: {cpus}, ")
        assert main(["devices", "doctor", "near"]) == (5 if message else 0)
        assert message in (out := capsys.readouterr().out) and (message or "1 CPU, " in out)

    def test_a_board_without_sensors_cannot_be_waited_for(self, project, world, capsys, monkeypatch):
        accept(world)
        monkeypatch.setattr("toolchain.tasks.boards.conditions", lambda session: Conditions())
        edit(project, "  near: {", "  near: {cool_below_c: 60, ")
        assert main(["devices", "doctor", "near"]) == 0
        assert "no sensor tells a temperature" in capsys.readouterr().out

    @pytest.mark.parametrize(("arguments", "message"), [
        (["devices", "doctor", "kitchn"], "did you mean 'kitchen'?"), (["devices", "add"], "takes one device"),
        (["run", "net@desk", "--device", "attic"], "no device 'attic'"),
    ])
    def test_mistakes(self, project, capsys, arguments, message):
        if arguments[0] == "run":
            (project / "build" / "net@desk").mkdir(parents=True)
            (project / "build" / "net@desk" / "manifest.json").write_text("{}")
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_build_is_verified_and_measured_on_its_devices(project, world, capfd, monkeypatch):
    """x86 on a board over SSH, Cortex-A53 in an emulator there: outputs come from there, times only from what has them; of
    the other the report shows what is counted."""
    program("llvm-mca")
    mca_path.cache_clear()
    monkeypatch.setenv("COLUMNS", "240")
    accept(world)
    assert main(["build"]) == 0
    x = np.load(project / "x.npy")
    capfd.readouterr()
    for target, device in (("desk", "near"), ("board", "kitchen")):
        assert main(["run", f"net@{target}", "--device", device, "-i", "x=x.npy", "-o", f"out-{target}"]) == 0
    ours, theirs = np.load(project / "out-desk" / "y.npy"), np.load(project / "out-board" / "y.npy")
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.shape == (len(x), 8)
    assert main(["report", "--json", "report.json"]) == 0
    builds = {b["build"]["name"]: b for b in json.loads((project / "report.json").read_text())["report"]["builds"]}
    for name, device in (("net@desk", "near"), ("net@board", "kitchen")):
        assert builds[name]["verify"]["device"] == builds[name]["measure"]["system"]["device"] == device
        assert all(o["passed"] for o in builds[name]["verify"]["outputs"])
    shown = capfd.readouterr().out
    assert "Counted: net@board" in shown and "static cycles (llvm-mca, cache model) in a run" in shown
    assert "Counted: net@desk" not in shown
    (near,), (kitchen,) = (builds[n]["measure"]["contenders"] for n in ("net@desk", "net@board"))
    assert near["median_us"] > 0 and builds["net@desk"]["layers"] and builds["net@desk"]["machine"] is None
    assert kitchen["bursts_us"] == [] and kitchen["median_us"] == 0 and builds["net@board"]["layers"] == []
    assert builds["net@board"]["measure"]["system"]["emulated"] == "runs in qemu-aarch64-static"
    (kernel,) = builds["net@board"]["measure"]["counted"]               # 4x16 by 16x8: 128 multiply-adds of four
    assert kernel["calls"] == 1 and 128 < kernel["instructions"] < 1000 and kernel["static_cycles"] > 100
    assert builds["net@desk"]["measure"]["counted"] == []
    capfd.readouterr()
    assert main(["bench", "net@desk", "--device", "near", "--time", "100ms", "--layers", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["device"] == "near"
    assert main(["bench", "net@board", "--device", "kitchen"]) == 5
    assert "has no times: runs in qemu-aarch64-static" in capfd.readouterr().err
    command = "qemu-aarch64-static -cpu cortex-a53 ./run libnet.so weights.bin --input x=../../x.npy --output y=y.npy"
    by_hand = subprocess.run(command.split(), cwd=project / "build" / "net@board", capture_output=True)
    assert by_hand.returncode == 0, by_hand.stderr
    np.testing.assert_array_equal(np.load(project / "build" / "net@board" / "y.npy"), theirs)
    assert list(world.sshd.board_folder.iterdir()) == []
    check_no_secrets(world, project, Path(os.environ["TC_STORE"]))


def test_shape_buckets_and_shapes_that_depend_on_data(project, world, capfd):
    """Inputs choose the bucket there, too, and outputs come back in their true shapes."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["y"], ["n"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 8])],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [2, "count"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), project / "net.onnx")
    edit(project, "data: {inputs: {x: {file: x.npy}}}", "buckets: [{dims: {b: 2}}, {dims: {b: 5}}]")
    accept(world)
    assert main(["build", "net@board"]) == 0
    for rows in (2, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        np.save(project / "x.npy", x)
        assert main(["run", "net@board", "--device", "kitchen", "-i", "x=x.npy", "-o", "out"]) == 0
        np.testing.assert_array_equal(np.load(project / "out" / "n.npy"), np.nonzero(np.maximum(x, 0)))
    np.save(project / "x.npy", np.zeros((3, 8), np.float32))
    capfd.readouterr()
    assert main(["run", "net@board", "--device", "kitchen", "-i", "x=x.npy"]) == 2
    assert "fix: give it: x float32[2, 8]; x float32[5, 8]" in capfd.readouterr().err


def check_no_secrets(world: World, *folders: Path) -> None:
    """The private key is in no file that was made."""
    secret = world.sshd.key.read_text().splitlines()[1].encode()
    for folder in folders:
        assert not [p for p in folder.rglob("*") if p.is_file() and secret in p.read_bytes()]


def test_tuning_on_a_device(project, world, capfd, monkeypatch, tmp_path):
    """Measured and confirmed there; what was found is of that device."""
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))             # records are the store's: none of another test's
    accept(world)
    edit(project, "device: near", "device: near, more_devices: [near2]")
    edit(project, "  away:", f"  near2: {{host: {world.sshd.network.address}, port: {world.sshd.port}, "
                             f"key_file: {world.sshd.key}, folder: {tmp_path}}}\n  away:")
    assert main(["tune", "net@desk", "--trials", "6"]) == 0
    capfd.readouterr()
    assert main(["tune", "--export", "records.jsonl"]) == 0
    assert "devices near, near2" in (project / "records.jsonl").read_text()
    assert main(["build", "net@desk"]) == 0
    assert main(["tune", "--trials", "3"]) == 2
    assert "builds that are tuned in different places" in capfd.readouterr().err
    assert list(world.sshd.board_folder.iterdir()) == []


def test_an_emulated_device_is_tuned_by_static_cycles(project, world, capfd, monkeypatch, tmp_path):
    """A declared cost, called so wherever it stands; the kernels it chooses are run and compared all the same."""
    program("llvm-mca")
    mca_path.cache_clear()
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "240")                       # no cell of the report's tables is wrapped
    write_network(project, 30, 200, 100)
    accept(world)
    assert main(["tune", "net@board", "--trials", "12"]) == 0
    out, err = capfd.readouterr()
    assert "kitchen: emulated, so nothing is timed: static cycles (llvm-mca, cache model) are optimized" in err
    assert "tuned 1 of 1 kernel:" in out and " static cycles -> " in out and "faster by static cycles" in out
    assert not re.search(r"\d [mu]s\b", out)
    (choice,) = Records(tmp_path / "store").choices().values()
    assert choice.unit == "static cycles" and choice.answers and choice.tuned_cost < choice.default_cost
    assert main(["build", "net@board"]) == 0 and main(["report", "net@board"]) == 0         # verified on the emulated CPU
    assert "static cycles" in capfd.readouterr().out
    monkeypatch.setattr(emulated, "mca_path", lambda: None)
    assert main(["tune", "net@board", "--trials", "13"]) == 1
    err = capfd.readouterr().err
    assert "llvm-mca, which counts them, is not installed" in err and "apt-get install llvm" in err


def test_search_methods_are_compared_on_devices(project, world, capfd, monkeypatch, tmp_path):
    """On one that is emulated by static cycles, called so on the screen, in the drawing and in the curves; on another by
    time. Both go on from what they measured."""
    program("llvm-mca")
    mca_path.cache_clear()
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    write_network(project, 30, 200, 100)
    accept(world)
    command = ["tune", "--compare", "curves", "--searcher", "auto", "--searcher", "random", "--trials", "5", "--seeds", "2"]
    found = {}
    for build, unit, machine in (("net@board", "static cycles", "devices kitchen"), ("net@desk", "us", "devices near")):
        assert main([*command, build]) == 0
        out, err = capfd.readouterr()
        assert ("emulated, so nothing is timed: static cycles" in err) == ("by static cycles: no times" in out) == (
            unit == "static cycles")
        facts = found[build] = json.loads((project / "curves" / "curves.json").read_text())
        assert (facts["unit"], facts["machine"]) == (unit, machine) and len(facts["runs"]) == 4
        drawn = (project / "curves" / "curves.svg").read_text()
        assert drawn.count("<polyline") == 2 and ("static cycles" in drawn) == (unit == "static cycles")
        measured = facts["schedules_measured"]
        assert main([*command, build]) == 0
        facts = json.loads((project / "curves" / "curves.json").read_text())
        assert facts["schedules_measured"] == measured and facts["runs"] == found[build]["runs"]
        capfd.readouterr()
    assert Records(tmp_path / "store").choices() == {}
    assert list(world.sshd.board_folder.iterdir()) == []


def test_a_board_that_is_away_is_exit_code_5(project, world, capfd):
    edit(project, "device: near", "device: away")
    assert main(["build", "net@desk"]) == 5
    assert "refuses connections to port 1" in capfd.readouterr().err


def test_a_newer_target_is_refused_before_its_artifact_is_sent(project, world, capfd):
    accept(world)
    edit(project, "cpu: cortex-a53,", "cpu: cortex-a53, features: ['+dotprod'],")
    assert main(["build", "net@board"]) == 5
    err = capfd.readouterr().err
    assert "its CPU lacks dotprod, which target" in err and "features: ['-dotprod']" in err


def test_two_commands_on_one_board_take_turns(project, world):
    accept(world)
    assert main(["build", "net@desk"]) == 0
    command = [sys.executable, "-m", "toolchain", "bench", "net@desk", "--device", "near", "--time", "300ms", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert all(json.loads(out)["median_us"] > 0 for out, _ in said)


def test_a_command_waits_while_another_has_the_board(project, world):
    """It says for whom, measures nothing meanwhile, and goes on when the board is free."""
    accept(world)
    assert main(["build", "net@desk"]) == 0
    command = [sys.executable, "-m", "toolchain", "bench", "net@desk", "--device", "near", "--time", "100ms", "--json"]
    with world.session():
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        said = next((line for line in waiting.stderr if "waits for near" in line), "")
        assert f"(process {os.getpid()}) has it" in said and waiting.poll() is None
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and json.loads(out)["median_us"] > 0, err
