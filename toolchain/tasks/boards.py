"""Artifacts on the devices of a deployfile: opening a session, refusing what a board cannot run, running and timing there.

    Device (deployfile) -> Board -> Session -> BoardModule, which looks like `Module` to who runs, compares and measures
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from toolchain.build.deployfile import Device
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import DeviceError, UsageError
from toolchain.core.target import Target
from toolchain.remote.board import LOCAL, Board, OtherCpuError
from toolchain.remote.facts import (
    BoardFacts,
    Conditions,
    board_facts,
    check_cpu_set,
    conditions,
    disturbances,
    machine,
    missing_features,
)
from toolchain.remote.model import RemoteModel, Sampling, upload_artifact
from toolchain.remote.quarantine import refuse
from toolchain.remote.session import Limits, Session
from toolchain.remote.transport import LocalTransport, Transport
from toolchain.targets.llvm.artifact_files import ArtifactFiles, read_artifact
from toolchain.targets.llvm.buckets import bucket_taking, shape_text
from toolchain.targets.llvm.cpu_check import required_features
from toolchain.targets.llvm.format import WEIGHTS_FILE
from toolchain.targets.llvm.plan import Call, Value, children, walk
from toolchain.targets.llvm.runner_program import MACHINES, machine_of, runner_program

LIMITS = Limits()
RUN_LIMIT_S = 120.0                 # of one run: an emulator is a hundred times slower than a board
COOL_LIMIT_S = 600.0                # waited for a board to cool down, at most
Told = Callable[[str], None]


def board_of(name: str, device: Device | Mapping[str, Any]) -> Board:
    """As the deployfile has it, or the plain data of it in a task's parameters."""
    d = device if isinstance(device, Device) else Device(**device)
    key = str(Path(d.key_file).expanduser()) if d.key_file else ""
    return Board(name, d.host, d.user or "", d.port, key, d.jump or "", d.fingerprint or "", tuple(d.cpus), d.folder,
                 d.exec_prefix, d.cool_below_c or 0.0)


def connect(board: Board) -> Transport:
    """Raises DeviceError."""
    refuse(board)
    if board.host == LOCAL:
        return LocalTransport()
    from toolchain.remote.ssh import connect as connect_ssh  # paramiko: 0.2 s, for who has boards

    return connect_ssh(board)


def open_session(board: Board, machine: str, told: Told = lambda text: None, limits: Limits = LIMITS) -> Session:
    """machine: which program runs there, "aarch64"."""
    session = Session(board, connect(board), runner_program(machine), limits, told)
    try:
        check_cpu_set(session)
    except BaseException:
        session.close()
        raise
    return session


def probe(board: Board, told: Told = lambda text: None) -> Session:
    """A session with a board of whose CPU nothing is known: the program of each instruction set is tried."""
    for program in MACHINES:
        try:
            return open_session(board, program, told)
        except OtherCpuError:
            if program == MACHINES[-1]:
                raise
    raise AssertionError("unreachable")


def check_cpu(session: Session, target: Target) -> None:
    """Before anything of the artifact is sent. Raises DeviceError naming what the board's CPU lacks."""
    asked = [(f.name, f.leaf, f.subleaf, f.reg, f.mask) for f in required_features(target)]
    if missing := missing_features(session, asked):
        switches = ", ".join(f"'-{name}'" for name in missing if "(" not in name)
        off = f", or switch off: features: [{switches}]" if switches else ""
        lacks = f"its CPU lacks {', '.join(missing)}, which target {target.name!r} uses"
        raise DeviceError(lacks, where=session.board.where,
                          fix=f"name the board's own CPU as `cpu` of the target{off}")


class BoardModule:
    """An artifact loaded on a board. Use as a context manager: model and session end with it.

    buckets, labels, bucket_of and run are those of `Module`.
    """

    def __init__(self, session: Session, artifact: ArtifactFiles, threads: int = 0, slot: int = 0) -> None:
        self.session, self.artifact, self.buckets = session, artifact, artifact.plans
        self.name: str = artifact.manifest["name"]
        check_cpu(session, artifact.target)
        names = upload_artifact(session, artifact.library, artifact.folder / WEIGHTS_FILE, slot)
        self._model = RemoteModel(session, slot, *names, threads=threads)
        self.threads, self._bucket = self._model.threads, 0

    def __enter__(self) -> BoardModule:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.session.close()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(shape_text(plan.inputs) for plan in self.buckets)

    def bucket_of(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Raises UsageError: names, types or shapes that no bucket has."""
        return bucket_taking(self.buckets, inputs, self.name)

    def prepare(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Send the inputs; what follows runs on them. Returns the bucket. Raises UsageError."""
        bucket = self.bucket_of(inputs)
        plan = self.buckets[bucket]
        if unknown := sorted(set(inputs) - {v.name for v in plan.inputs}):
            raise UsageError(f"there is no input {unknown[0]!r}", where=self.name)
        if bucket != self._bucket:
            self._model.select(bucket)
            self._bucket = bucket
        self._model.set_inputs([_bytes(v, inputs[v.name]) for v in plan.inputs])
        return bucket

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run there, once; the outputs in their true shapes."""
        plan = self.buckets[self.prepare(inputs)]
        self._model.run(RUN_LIMIT_S)
        found = {}
        for n, value in enumerate(plan.outputs):
            shape, data = self._model.output(n)
            found[value.name] = np.frombuffer(data, to_numpy(value.dtype)).reshape(shape).copy()
        return found

    def once_us(self) -> float:
        """About how long a run takes."""
        return min(self._model.benchmark(Sampling(number=1, repeat=2, min_repeat_ms=0, warmup=1), RUN_LIMIT_S * 3))

    def benchmark(self, sampling: Sampling, once_us: float) -> list[float]:
        return self._model.benchmark(sampling, 10.0 + 3 * sampling.limit_s(once_us / 1e6))

    def profile(self, repeats: int, once_us: float) -> dict[int, float]:
        """Median microseconds of each op that computes or moves data, by its number in plan.json."""
        rows = np.array(self._model.profile(repeats, limit_s=10.0 + 5e-6 * (repeats + 1) * once_us))
        return {n: float(np.median(rows[:, n])) / 1e3 for n in self.leaves()}

    def hot_us(self, at: int, end: int, repeats: int, once_us: float) -> float:
        """Median time of the ops [at, end) of the outermost level, when they alone are repeated."""
        rows = np.array(self._model.profile(repeats, at, end, 10.0 + 5e-6 * (repeats + 1) * once_us))
        return float(np.median(rows[:, at:end].sum(axis=1))) / 1e3

    def leaves(self) -> list[int]:
        """Numbers, in pre-order, of the current bucket's ops without a body."""
        return [n for n, op in enumerate(walk(self.buckets[self._bucket].ops)) if not children(op)]

    def op_names(self, bucket: int) -> list[str]:
        return [op.name for op in walk(self.buckets[bucket].ops)]

    def outermost_calls(self) -> list[tuple[int, int]]:
        """[at, end) in pre-order of each call of the outermost level."""
        found, at = [], 0
        for op in self.buckets[self._bucket].ops:
            end = at + 1 + sum(1 for _ in walk(children(op)))
            if isinstance(op, Call):
                found.append((at, end))
            at = end
        return found


def _bytes(value: Value, array: np.ndarray) -> bytes:
    if np.asarray(array).dtype != to_numpy(value.dtype):
        raise UsageError(f"input {value.name!r} has dtype {np.asarray(array).dtype}, not {value.dtype}", fix=(
            "convert it with .astype()"))
    return np.ascontiguousarray(array).tobytes()


def load_on(board: Board, folder: Path, threads: int = 0, told: Told = lambda text: None) -> BoardModule:
    """The artifact of a folder, on a board. Raises DeviceError, UsageError."""
    artifact = read_artifact(folder)
    session = open_session(board, machine_of(artifact.target), told)
    try:
        return BoardModule(session, artifact, threads)
    except BaseException:
        session.close()
        raise


def cool_down(session: Session, told: Told = lambda text: None, sleep: Callable[[float], None] = time.sleep) -> Conditions:
    """Wait until the hottest sensor is below what the deployfile says. Returns the conditions then, cool or not."""
    limit, end = session.board.cool_below_c, time.monotonic() + COOL_LIMIT_S
    while True:
        now = conditions(session)
        if not limit or now.temperature_c < limit or time.monotonic() > end:
            return now
        told(f"waits for {session.board.name} to cool down: {now.temperature_c:.0f} C, below {limit:.0f} C is asked for")
        sleep(5.0)


__all__ = ["BoardFacts", "BoardModule", "board_facts", "board_of", "check_cpu", "conditions", "connect",
           "cool_down", "disturbances", "load_on", "machine", "open_session", "probe"]
