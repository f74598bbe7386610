"""The static runner by hand and behind a session, on this CPU and, emulated, on a Cortex-A53 and a SiFive U54 (RV64GC)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import board_models
import numpy as np
import pytest
from loopback import program

from toolchain.core.errors import DeviceError
from toolchain.remote.board import Board, CrashError, TooLongError
from toolchain.remote.facts import board_facts, conditions, missing_features, read_files
from toolchain.remote.frames import Kind
from toolchain.remote.model import RemoteModel, Sampling, upload_artifact
from toolchain.remote.session import FOLDER_PREFIX, LEASE_FILE, Limits, Session
from toolchain.remote.transport import LocalTransport
from toolchain.targets.llvm.runner_program import MACHINES, runner_program

X = board_models.X
PREFIX = {"x86_64": "", "aarch64": "qemu-aarch64-static -cpu cortex-a53",
          "riscv64": "qemu-riscv64-static -cpu sifive-u54"}


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if PREFIX[name]:
        program(PREFIX[name].split()[0])
    return name


def run(machine: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "run"
    path.write_bytes(runner_program(machine))
    path.chmod(0o755)
    return subprocess.run([*PREFIX[machine].split(), str(path), *arguments], capture_output=True, text=True, timeout=60,
                          cwd=folder)


def session(machine: str, folder: Path) -> Session:
    board = Board("desk", "local", folder=str(folder), exec_prefix=PREFIX[machine])
    return Session(board, LocalTransport(), runner_program(machine), Limits(silence_s=5, grace_s=5))


def load(s: Session, folder: Path, slot: int = 0) -> RemoteModel:
    return RemoteModel(s, slot, *upload_artifact(s, *board_models.files(folder), slot), threads=2)


def test_the_program_is_small_and_the_same_each_time(machine):
    data = runner_program(machine)
    assert len(data) <= 50_000
    assert data == runner_program(machine)


class TestByHand:
    def test_it_runs_an_artifact(self, machine, tmp_path):
        board_models.artifact(tmp_path, "calm", machine)
        np.save(tmp_path / "x.npy", X)
        done = run(machine, tmp_path, "libboard_model.so", "weights.bin", "--input", "x=x.npy", "--output", "y=y.npy",
                   "--threads", "2")
        assert (done.returncode, done.stdout, done.stderr) == (0, "y: float32 (256,)\n", "")
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), board_models.expected(X))

    def test_raw_bytes_are_an_input_too_and_times_are_printed(self, machine, tmp_path):
        board_models.artifact(tmp_path, "calm", machine)
        (tmp_path / "x.bin").write_bytes(X.tobytes())
        done = run(machine, tmp_path, "libboard_model.so", "weights.bin", "--input", "x=x.bin", "--time", "3", "--layers")
        lines = done.stdout.splitlines()
        assert len(lines) == 4 and all(line.endswith(" us") for line in lines[:3]) and lines[3].endswith(" us  calm")

    @pytest.mark.parametrize(("arguments", "message"), [
        ((), "run lib<model>.so weights.bin [options]"),
        (("nothing.so", "weights.bin"), "error: the library cannot be read"),
        (("weights.bin", "weights.bin"), "error: it is no 64-bit ELF file"),
        (("libboard_model.so", "plan.json"), "error: the weights file is not one: wrong size or wrong magic number"),
        (("libboard_model.so", "weights.bin", "--input", "z=x.bin"), "error: no such input: z=x.bin"),
        (("libboard_model.so", "weights.bin", "--input", "x=plan.json"),
         "error: it has another size than the input: plan.json"),
        (("libboard_model.so", "weights.bin", "--fast"), "error: an option without its value, or an unknown one: --fast"),
        (("libboard_model.so", "weights.bin", "--time", "x"), "error: no number: x"),
    ])
    def test_mistakes_are_named(self, tmp_path, arguments, message):
        board_models.artifact(tmp_path)
        done = run("x86_64", tmp_path, *arguments)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith(message)

    def test_a_library_for_another_machine_is_refused(self, tmp_path):
        board_models.artifact(tmp_path, "calm", "aarch64")
        assert "error: it is made for another machine" in run("x86_64", tmp_path, "libboard_model.so", "weights.bin").stderr

    def test_a_library_that_was_cut_off_is_refused(self, tmp_path):
        board_models.artifact(tmp_path)
        library, _ = board_models.files(tmp_path)
        whole = library.read_bytes()
        for size in (0, 10, 100, 1000, len(whole) // 2):
            library.write_bytes(whole[:size])
            done = run("x86_64", tmp_path, "libboard_model.so", "weights.bin")
            assert done.returncode == 1 and done.stderr.startswith("error: "), (size, done)

    def test_a_cpu_that_lacks_a_feature_is_told_so(self, tmp_path):
        for machine, has, lacks in (("aarch64", "neon", "dotprod"), ("riscv64", "d", "v"), ("riscv64", "d", "zfhmin")):
            program(PREFIX[machine].split()[0])
            board_models.artifact(tmp_path, "calm", machine, (f"+{has}", f"+{lacks}"))
            done = run(machine, tmp_path, "libboard_model.so", "weights.bin")
            assert f"lacks an instruction set extension that the code was compiled for: {lacks}" in done.stderr


class TestSession:
    def test_a_model_runs_and_is_timed(self, machine, tmp_path):
        board_models.artifact(tmp_path / "artifact", "calm", machine)
        with session(machine, tmp_path) as s, load(s, tmp_path / "artifact") as model:
            assert (model.n_inputs, model.n_outputs, model.n_buckets, model.n_ops, model.threads) == (1, 1, 1, 1, 2)
            model.set_inputs([X.tobytes()])
            model.run()
            shape, data = model.output(0)
            assert shape == (board_models.N,)
            np.testing.assert_array_equal(np.frombuffer(data, np.float32), board_models.expected(X))
            samples = model.benchmark(Sampling(number=1, repeat=4, min_repeat_ms=2))
            assert len(samples) == 4 and all(0 < us < 2000 for us in samples)
            rows = model.profile(3)
            assert len(rows) == 3 and all(len(row) == 1 and row[0] > 0 for row in rows)

    @pytest.mark.parametrize(("kernel", "signal"), [("crash", 11), ("beyond", 11), ("illegal", 4)])
    def test_code_that_dies_is_named_and_the_session_goes_on(self, machine, tmp_path, kernel, signal):
        bad = board_models.artifact(tmp_path / "bad", kernel, machine)
        good = board_models.artifact(tmp_path / "good", "calm", machine)
        with session(machine, tmp_path) as s, load(s, good, 1) as other:
            with pytest.raises(CrashError, match=f"killed by signal {signal}") as caught:
                load(s, bad).run()
            assert caught.value.signal == signal
            other.set_inputs([X.tobytes()])
            other.run()
            np.testing.assert_array_equal(np.frombuffer(other.output(0)[1], np.float32), board_models.expected(X))

    def test_code_that_never_ends_is_ended(self, machine, tmp_path):
        hang = board_models.artifact(tmp_path / "hang", "hang", machine)
        with session(machine, tmp_path) as s:
            model = load(s, hang)
            with pytest.raises(TooLongError, match="longer than it may"):
                model.run(limit_s=0.3)
            with pytest.raises(DeviceError, match="no model is loaded"):
                model.run()

    def test_facts(self, machine, tmp_path):
        with session(machine, tmp_path) as s:
            facts = board_facts(s)
            assert facts.machine == machine and facts.cpus >= 1 and facts.disk_free_bytes > 0 and facts.memory_bytes > 0
            assert bool(facts.emulated) == bool(PREFIX[machine])
            assert conditions(s).calibration_ns > 0
            assert read_files(s, ("/proc/self/stat*", "/proc/load*g", "/no/such/*")).keys() == {
                "/proc/self/stat", "/proc/self/statm", "/proc/self/status", "/proc/loadavg"}
            if machine == "aarch64":
                assert missing_features(s, [("neon", 16, 0, 0, 1 << 1), ("dotprod", 16, 0, 0, 1 << 20)]) == ["dotprod"]
            elif machine == "riscv64":
                assert missing_features(s, [("d", 16, 0, 0, 1 << 3), ("v", 16, 0, 0, 1 << 21)]) == ["v"]
            else:
                assert missing_features(s, [("sse3", 1, 0, 2, 1), ("impossible", 7, 0, 3, 1 << 31 | 1)]) == ["impossible"]

    def test_uploads_are_whole_or_not_there(self, tmp_path):
        with session("x86_64", tmp_path) as s:
            s.upload("a", b"whole")
            assert (Path(s.folder) / "a").read_bytes() == b"whole"
            with pytest.raises(DeviceError, match="did not arrive as it was sent; nothing was kept of it"):
                s.upload("b", b"other", digest="0" * 64)
            with pytest.raises(DeviceError, match="a broken request"):
                s.upload("../c", b"outside")
            assert {p.name for p in Path(s.folder).iterdir()} == {"run", "a"}
            s.remove("a")
            assert {p.name for p in Path(s.folder).iterdir()} == {"run"}

    def test_links_of_others_are_not_followed(self, tmp_path):
        """In a folder that everybody may write to, somebody may have put links in the way."""
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "file").write_text("mine")
        os.utime(precious, (0, 0))
        shared = tmp_path / "shared"
        shared.mkdir()
        (shared / f"{FOLDER_PREFIX}evil").symlink_to(precious)
        with session("x86_64", shared):
            pass
        (shared / LEASE_FILE).symlink_to(precious / "file")
        with pytest.raises(DeviceError, match=r"its lease file .* cannot be opened"):
            session("x86_64", shared)
        (shared / LEASE_FILE).unlink()
        (shared / LEASE_FILE).write_text("x" * 1000)        # no file of ours: locked, but not written to
        with session("x86_64", shared):
            assert (shared / LEASE_FILE).read_text() == "x" * 1000
        assert (precious / "file").read_text() == "mine"

    def test_several_requests_go_in_one_round_trip(self, tmp_path):
        artifact = board_models.artifact(tmp_path / "artifact")
        with session("x86_64", tmp_path) as s:
            for slot in range(4):
                load(s, artifact, slot)
            answers = s.requests([(Kind.RUN, b"", slot) for slot in (*range(4), 9)])
            assert [a.word for a in answers] == [0, 0, 0, 0, 1]

    def test_nothing_is_left(self, machine, tmp_path):
        with session(machine, tmp_path) as s:
            s.upload("a", b"whole")
        assert list(tmp_path.iterdir()) == []
