"""The fault matrix: what goes wrong between us and a board, on purpose. `FAULTS` maps a name to a function that makes it
happen and returns the error that came of it; `check_after` says whether anything was left behind.

The tests run each once, benchmarks/devices.py many times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import board_models
import numpy as np
from loopback import Sshd, processes_of
from network import Cable
from proxy import Proxy

from toolchain.core.errors import DeviceError
from toolchain.remote import ssh
from toolchain.remote.board import Board, ChangedHostKey, LostError
from toolchain.remote.model import RemoteModel, Sampling, upload_artifact
from toolchain.remote.session import Limits, Session
from toolchain.targets.llvm.runner_program import runner_program

LIMITS = Limits(start_s=5, request_s=5, silence_s=1.5, grace_s=2, lease_s=20)
DEADLINE_S = 60.0               # whatever happens, the user has an answer by then; far more than it takes on a calm machine
X = board_models.X


@dataclass
class World:
    """One board behind sshd, an artifact for it, and chance."""

    sshd: Sshd
    artifact: Path
    chance: random.Random

    def session(self, board: Board | None = None, limits: Limits = LIMITS) -> Session:
        board = board or self.sshd.board()
        return Session(board, ssh.connect(board, 5.0), runner_program("x86_64"), limits)

    def cable(self) -> AbstractContextManager[Cable]:
        return self.sshd.network.cable(self.sshd.port)

    def through(self, way: Cable) -> Board:
        host, port = way.address
        return replace(self.sshd.board(), host=host, port=port)


def loaded(session: Session, artifact: Path, slot: int = 0) -> RemoteModel:
    return RemoteModel(session, slot, *upload_artifact(session, *board_models.files(artifact), slot), threads=1)


def run_once(session: Session, artifact: Path) -> np.ndarray:
    with loaded(session, artifact) as model:
        model.set_inputs([X.tobytes()])
        model.run()
        _, data = model.output(0)
    return np.frombuffer(data, np.float32)


def works(world: World) -> None:
    """The board is free and right: what the next user finds."""
    with world.session() as session:
        np.testing.assert_array_equal(run_once(session, world.artifact), board_models.expected(X))


@contextmanager
def fails() -> Iterator[list[DeviceError]]:
    """The error that is raised inside, within the deadline. Anything else is passed on."""
    found: list[DeviceError] = []
    begun = time.monotonic()
    try:
        yield found
    except DeviceError as error:
        found.append(error)
    took_s = time.monotonic() - begun
    assert found, "no error was raised"
    assert took_s < DEADLINE_S, f"the error came after {took_s:.1f} s"
    assert found[0].exit_code == 5 and found[0].fix, str(found[0])


@contextmanager
def running(world: World, way: Cable | None = None) -> Iterator[Session]:
    """A session with a model that takes a while, about to be disturbed."""
    session = world.session(world.through(way) if way else None)
    try:
        loaded(session, world.artifact)
        yield session
    finally:
        session.close()


def long_work(session: Session, limit_s: float = 4.0) -> None:
    """A second of work in requests of 50 ms, each allowed so long; disturbed within it."""
    sampling = Sampling(number=1, repeat=5, min_repeat_ms=10, warmup=0)
    for _ in range(40):
        RemoteModel.benchmark(_model(session), sampling, limit_s)


def _model(session: Session) -> RemoteModel:
    model = RemoteModel.__new__(RemoteModel)
    model.session, model.slot, model.n_ops = session, 0, 1
    return model


def during(session: Session, disturb: Callable[[], None], after_s: float = 0.15) -> DeviceError:
    """The error of work that is disturbed a moment after it began."""
    import threading

    timer = threading.Timer(after_s, disturb)
    timer.start()
    with fails() as found:
        long_work(session)
    timer.join()
    return found[0]


# --- the faults -----------------------------------------------------------------------------------------------------------


def refused(world: World) -> DeviceError:
    with fails() as found:
        world.session(replace(world.sshd.board(), port=1))
    assert "refuses connections" in found[0].what
    return found[0]


def wrong_key(world: World) -> DeviceError:
    with fails() as found:
        world.session(replace(world.sshd.board(), fingerprint="SHA256:" + "A" * 43))
    assert isinstance(found[0], ChangedHostKey) and world.sshd.fingerprint() in found[0].what
    return found[0]


def black_hole(world: World) -> DeviceError:
    with world.cable() as cable, running(world, cable) as session:
        error = during(session, cable.freeze)
    assert isinstance(error, LostError) and "no sign of life" in error.what, error
    return error


def reset_during_upload(world: World) -> DeviceError:
    """At a byte by chance, so by a proxy in any network."""
    proxy = Proxy(world.sshd.network.address, world.sshd.port, cut_after=world.chance.randrange(3_000, 45_000))
    try:
        with fails() as found, world.session(world.through(proxy)) as session:
            session.upload("big", os.urandom(1 << 20))
    finally:
        proxy.close()
    return found[0]


def sshd_killed(world: World) -> DeviceError:
    with running(world) as session:
        error = during(session, world.sshd.stop)
    world.sshd.start()
    assert isinstance(error, LostError), error
    return error


def _signal_runner(world: World, number: int) -> None:
    for pid in processes_of(world.sshd.board_folder):
        os.kill(pid, number)


def runner_killed(world: World) -> DeviceError:
    with running(world) as session:
        error = during(session, lambda: _signal_runner(world, signal.SIGKILL))
    assert isinstance(error, LostError) and "was killed" in error.what, error
    return error


def runner_hangs(world: World) -> DeviceError:
    with running(world) as session:
        error = during(session, lambda: _signal_runner(world, signal.SIGSTOP))
    assert isinstance(error, LostError) and "no sign of life" in error.what, error
    return error


def board_reboots(world: World) -> DeviceError:
    with running(world) as session:
        error = during(session, world.sshd.power_off)
    world.sshd.start()
    assert isinstance(error, LostError), error
    return error


def disk_full(world: World) -> DeviceError:
    """A small file system where one may be mounted; else no file may be larger than 64 kB, which is the same to a writer."""
    small = world.sshd.folder / "small"
    small.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", small], capture_output=True).returncode == 0
    board = world.sshd.board(folder=str(small)) if mounted else world.sshd.board(exec_prefix="prlimit --fsize=65536")
    try:
        with fails() as found, world.session(board) as session:
            session.upload("big", bytes(1 << 20))
    finally:
        if mounted:
            left = [p.name for p in small.iterdir()]
            subprocess.run(["umount", small], check=True)
            assert not left, left
    assert "is full" in found[0].what and "make room" in found[0].fix
    return found[0]


def output_flood(world: World) -> DeviceError:
    flood = world.sshd.folder / "flood.sh"
    flood.write_text("#!/bin/sh\nexec yes 'a login shell that greets without end'\n")
    flood.chmod(0o755)
    with fails() as found:
        world.session(world.sshd.board(exec_prefix=str(flood)))
    assert "something else answers in the runner's place" in found[0].what and "a login shell that greets" in found[0].what
    return found[0]


def clock_jump(world: World) -> DeviceError:
    """The wall clock jumps by a day, there and back, while a model hangs: its limit is one of another clock."""
    real, offsets = time.time, [0.0]
    time.time = lambda: real() + offsets[0]         # type: ignore[assignment]
    try:
        with world.session() as session:
            offsets[0] = -86400.0
            hang = board_models.artifact(world.sshd.folder / "hang", "hang")
            with loaded(session, hang) as model, fails() as found:
                offsets[0] = 86400.0
                try:
                    model.run(limit_s=0.5)
                except DeviceError as error:            # the session itself goes on
                    error.fix = "make the model faster, or allow it more time"
                    raise
            np.testing.assert_array_equal(run_once(session, world.artifact), board_models.expected(X))
    finally:
        time.time = real
    assert "longer than it may" in found[0].what
    return found[0]


def connection_cut(world: World) -> DeviceError:
    with world.cable() as cable, running(world, cable) as session:
        error = during(session, cable.cut)
    assert isinstance(error, LostError) and "the connection was cut" in error.what, error
    return error


FAULTS: dict[str, Callable[[World], DeviceError]] = {
    "refused": refused, "wrong key": wrong_key, "black hole": black_hole, "reset during an upload": reset_during_upload,
    "sshd killed": sshd_killed, "runner killed": runner_killed, "runner hangs": runner_hangs, "board reboots": board_reboots,
    "disk full": disk_full, "output flood": output_flood, "clock jump": clock_jump, "connection cut": connection_cut,
}


def check_after(world: World) -> list[str]:
    """What a fault left behind, given the time that the runner takes to notice: nothing, or lines that say what."""
    end = time.monotonic() + 2 * LIMITS.silence_s + 3
    while processes_of(world.sshd.board_folder) and time.monotonic() < end:
        time.sleep(0.02)
    left = [f"orphan process {pid}" for pid in processes_of(world.sshd.board_folder)]
    with ExitStack() as stack:
        begun = time.monotonic()
        try:
            session = stack.enter_context(world.session())
            if time.monotonic() - begun > 3:
                left.append("the lease was stuck")
            if not np.array_equal(run_once(session, world.artifact), board_models.expected(X)):
                left.append("a wrong result")
        except DeviceError as error:
            left.append(f"the next session fails: {error.what}")
    return left + _left_files(world)


def _left_files(world: World) -> list[str]:
    """Files on the board. A folder that was made just before the connection broke, its runner not yet started, may be there:
    the first session after ten minutes removes it."""
    for folder in world.sshd.board_folder.iterdir():
        if folder.is_dir() and {p.name for p in folder.iterdir()} <= {"run", "run.part"}:
            os.utime(folder, (0, time.time() - 3600))
    try:
        works(world)
    except DeviceError as error:
        return [f"the session after fails: {error.what}"]
    return [f"left behind: {p.relative_to(world.sshd.folder)}" for p in world.sshd.board_folder.rglob("*")]
