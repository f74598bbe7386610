"""Sessions over a real sshd: the lease, mistakes of a deployfile, secrets, servers with less than usual."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from faults import LIMITS, World, loaded, run_once, works
from loopback import Sshd, make_key, processes_of, program

from toolchain.core.errors import DeviceError
from toolchain.remote import ssh
from toolchain.remote.model import Sampling
from toolchain.remote.session import LEASE_FILE, Session
from toolchain.targets.llvm.runner_program import runner_program


def test_two_sessions_take_turns(world: World):
    """Their times on the board do not overlap; the one that waits is told for whom."""
    spans: list[tuple[float, float]] = []
    told: list[str] = []

    def work() -> None:
        board = world.sshd.board()
        with Session(board, ssh.connect(board), runner_program("x86_64"), LIMITS, told.append) as session:
            begun = time.monotonic()
            with loaded(session, world.artifact) as model:
                model.benchmark(Sampling(repeat=10, min_repeat_ms=30))
            spans.append((begun, time.monotonic()))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spans) == 3
    spans.sort()
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    assert told and f"(process {os.getpid()}) has it" in told[0]
    assert not (world.sshd.board_folder / LEASE_FILE).exists()


def test_a_board_that_stays_busy_is_an_error(world: World):
    with world.session(), pytest.raises(DeviceError, match=r"has been used by .* for 0.3 s"):
        world.session(limits=replace(LIMITS, lease_s=0.3))
    works(world)


def test_the_runner_ends_when_the_client_is_killed(world: World):
    """Even when nobody says goodbye: what the kernel of a dead client's machine does."""
    session = world.session()
    loaded(session, world.artifact)
    session._closed.set()                           # no signs of life any more
    session.transport._cut()                        # type: ignore[attr-defined]
    end = time.monotonic() + 5
    while processes_of(world.sshd.board_folder) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(world.sshd.board_folder.iterdir()) == []


def test_a_runner_that_was_stopped_and_goes_on_is_no_loss(world: World):
    """For less than the client takes for silence; its own clock has run on."""
    with world.session(limits=replace(LIMITS, silence_s=3.0)) as session, loaded(session, world.artifact) as model:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in processes_of(world.sshd.board_folder):
                os.kill(pid, number)
            time.sleep(1.5)
        model.run()


def test_a_client_that_was_stopped_and_goes_on_is_no_loss(world: World):
    """The whole process for longer than it takes for silence, and the board with it."""
    code = (f"import sys; sys.path[:0] = {sys.path!r}\n"
            "from faults import *\nfrom pathlib import Path\n"
            f"from toolchain.remote.board import Board\nboard = {world.sshd.board()!r}\n"
            "session = Session(board, ssh.connect(board), runner_program('x86_64'), LIMITS)\n"
            f"model = loaded(session, Path({str(world.artifact)!r}))\nprint('ready', flush=True)\n"
            "long_work(session, limit_s=30)\nprint('done', flush=True)\nsession.close()\n")
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline() == "ready\n"
    both = [client.pid, *processes_of(world.sshd.board_folder)]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in both:
            os.kill(pid, number)
        time.sleep(3.0 if number == signal.SIGSTOP else 0)
    assert client.communicate(timeout=60)[0] == "done\n" and client.returncode == 0


def test_many_measurements_on_one_connection(world: World):
    with world.session() as session, loaded(session, world.artifact) as model:
        for _ in range(300):
            model.run()


def test_a_server_without_file_transfer_will_do(world: World, tmp_path):
    sshd = Sshd(tmp_path / "plain", sftp=False)
    try:
        works(World(sshd, world.artifact, world.chance))
    finally:
        sshd.close()


@pytest.mark.parametrize(("changes", "message", "fix"), [
    ({"exec_prefix": "qemu-nothing -cpu x"}, "exec_prefix 'qemu-nothing -cpu x' is no program there", "on the board's PATH"),
    ({"folder": "/proc/nowhere"}, "/proc/nowhere cannot be written to", "name a `folder`"),
    ({"key_file": "/no/key"}, "there is no private key /no/key", "name an existing `key_file`"),
    ({"host": "no-such-host.invalid"}, "no host is known by the name 'no-such-host.invalid'", "write its address"),
    ({"jump": "a:b"}, "no jump host: 'a:b'", "write [USER@]HOST[:PORT]"),
    ({"exec_prefix": "false"}, "the runner did not start (exit code 1)", "look at `exec_prefix`"),
])
def test_mistakes_of_a_deployfile(world: World, changes, message, fix):
    with pytest.raises(Exception) as caught:
        world.session(replace(world.sshd.board(), **changes))
    assert message in caught.value.what and fix in caught.value.fix     # type: ignore[attr-defined]
    works(world)


def test_a_key_that_is_not_accepted(world: World, tmp_path):
    other = make_key(tmp_path / "other")
    with pytest.raises(DeviceError, match=r"does not let user '.*' in with the key .*other") as caught:
        world.session(world.sshd.board(key_file=str(other)))
    assert "ssh-copy-id" in caught.value.fix


def test_a_key_with_a_passphrase(world: World, tmp_path):
    key = tmp_path / "locked"
    subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "open sesame", "-f", key], check=True)
    with pytest.raises(DeviceError, match="has a passphrase") as caught:
        world.session(world.sshd.board(key_file=str(key)))
    assert "open sesame" not in str(caught.value)


def test_programs_of_another_cpu(world: World):
    board = world.sshd.board()
    with pytest.raises(DeviceError, match=r"did not start|does not run this target's programs") as caught:
        Session(board, ssh.connect(board), b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x28\0" + bytes(200), LIMITS)
    assert caught.value.fix


def test_stderr_that_floods_does_not_block(world: World):
    noisy = world.sshd.folder / "noisy.sh"
    noisy.write_text("#!/bin/sh\nhead -c 8000000 /dev/zero | tr '\\0' 'x' >&2\nexec \"$@\"\n")
    noisy.chmod(0o755)
    with world.session(world.sshd.board(exec_prefix=str(noisy))) as session:
        assert np.isfinite(run_once(session, world.artifact)).all()


def test_a_greeting_of_the_login_shell_is_skipped(world: World):
    greeting = world.sshd.folder / "greeting.sh"
    greeting.write_text("#!/bin/sh\necho Welcome to the kitchen\nexec \"$@\"\n")
    greeting.chmod(0o755)
    with world.session(world.sshd.board(exec_prefix=str(greeting))) as session:
        assert session._decoder.preamble == b"Welcome to the kitchen\n"


def test_the_emulator_is_one_code_path_with_a_board(world: World, tmp_path):
    import board_models

    program("qemu-aarch64-static")
    artifact = board_models.artifact(tmp_path / "arm", "calm", "aarch64")
    board = world.sshd.board(exec_prefix="qemu-aarch64-static -cpu cortex-a53")
    with Session(board, ssh.connect(board), runner_program("aarch64"), LIMITS) as session:
        np.testing.assert_array_equal(run_once(session, artifact), board_models.expected(board_models.X))
