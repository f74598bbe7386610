"""A model loaded on a board: what `run`, `benchmark` and `profile` are there. Values are bytes; others know their types."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from toolchain.core.errors import DeviceError
from toolchain.remote.frames import Kind
from toolchain.remote.session import Session


@dataclass(frozen=True, slots=True)
class Sampling:
    """Known by these names elsewhere: a sample is the mean of `number` runs, one after the other, `repeat` of them; a sample
    that is shorter than min_repeat_ms is taken again with more runs, and the number stays. warmup: runs before, untimed;
    cooldown_ms: rest between samples."""

    number: int = 1
    repeat: int = 5
    min_repeat_ms: float = 20.0
    warmup: int = 2
    cooldown_ms: float = 0.0

    def encode(self) -> bytes:
        least_ns, pause_ns = int(self.min_repeat_ms * 1e6), int(self.cooldown_ms * 1e6)
        return struct.pack("<5q", self.number, self.repeat, least_ns, self.warmup, pause_ns)

    def limit_s(self, run_s: float) -> float:
        """What it may take when a run takes that long."""
        sample_s = max(self.number * run_s, self.min_repeat_ms / 1e3)
        return self.warmup * run_s + self.repeat * (4 * sample_s + 2 * run_s + self.cooldown_ms / 1e3)


class RemoteModel:
    """One slot of a session. Use as a context manager: the model's process ends with it.

    Raises DeviceError: the board's CPU lacks a feature, weights of another build, ...; CrashError: its code died.
    """

    def __init__(self, session: Session, slot: int, library: str, weights: str, threads: int = 0) -> None:
        """library, weights: names of uploaded files."""
        self.session, self.slot = session, slot
        payload = library.encode() + b"\0" + weights.encode() + b"\0" + struct.pack("<i", threads)
        answer = session.request(Kind.LOAD, payload, slot=slot)
        self.n_inputs, self.n_outputs, self.n_buckets, self.n_ops, self.threads = struct.unpack("<5q", answer[:40])
        self.version = answer[40:].decode()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def close(self) -> None:
        self.session.request(Kind.UNLOAD, slot=self.slot)

    def select(self, bucket: int) -> None:
        """The shape bucket of what follows; its inputs are zero then."""
        (self.n_ops,) = struct.unpack("<q", self.session.request(Kind.SELECT, struct.pack("<q", bucket), slot=self.slot))

    def set_inputs(self, values: Sequence[bytes]) -> None:
        """All of them, in order, in one round trip."""
        asked = [(Kind.SET, struct.pack("<q", i) + value, self.slot) for i, value in enumerate(values)]
        for answer in self.session.requests(asked):
            self.session.payload_of(answer)

    def run(self, limit_s: float = 0.0) -> None:
        self.session.request(Kind.RUN, slot=self.slot, limit_s=limit_s)

    def output(self, index: int) -> tuple[tuple[int, ...], bytes]:
        """(true shape, elements) that the last run gave."""
        answer = self.session.request(Kind.GET, struct.pack("<q", index), slot=self.slot)
        (rank,) = struct.unpack_from("<q", answer)
        if not 0 <= rank <= 64:
            raise DeviceError("an output without a shape", where=self.session.board.where)
        return struct.unpack_from(f"<{rank}q", answer, 8), answer[8 + 8 * rank:]

    def benchmark(self, sampling: Sampling, limit_s: float = 0.0) -> list[float]:
        """Raw samples, in microseconds per run, by the board's clock."""
        answer = self.session.request(Kind.BENCHMARK, sampling.encode(), slot=self.slot, limit_s=limit_s)
        numbers = struct.unpack(f"<{len(answer) // 8}q", answer)
        return [ns / number / 1e3 for number, ns in zip(numbers[::2], numbers[1::2], strict=True)]

    def profile(self, repeat: int, first: int = 0, end: int = -1, limit_s: float = 0.0) -> list[tuple[int, ...]]:
        """Rows, one a run: the nanoseconds of each op of the bucket, numbered as in plan.json. Of the ops [first, end) of
        the outermost level only, where given."""
        answer = self.session.request(Kind.PROFILE, struct.pack("<3q", first, end, repeat), slot=self.slot, limit_s=limit_s)
        row = struct.Struct(f"<{self.n_ops}q")
        return list(row.iter_unpack(answer)) if self.n_ops else []


def upload_artifact(session: Session, library: Path, weights: Path, slot: int = 0) -> tuple[str, str]:
    """The two files of an artifact that a board needs; their names there."""
    names = f"model{slot}.so", f"weights{slot}.bin"
    for name, path in zip(names, (library, weights), strict=True):
        session.upload(name, path)
    return names
