"""A Transport on which things go wrong on purpose, for tests: another one behind a link that cuts, stalls or damages.

Faults are counted in bytes of the runner's stream, so a test can put one anywhere, again and again in the same place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from toolchain.core.errors import DeviceError
from toolchain.remote.board import LostError
from toolchain.remote.transport import Stream, Transport, cannot_write


@dataclass(frozen=True, slots=True)
class Faults:
    """After how many bytes of a direction it happens; -1: never. to: towards the board, of: from it.

    cut: both directions end. stall: nothing passes any more, and nobody is told. flip: one byte is another one.
    refuse_put, disk_full: the program cannot be sent.
    """

    cut_to: int = -1
    cut_of: int = -1
    stall_to: int = -1
    stall_of: int = -1
    flip_to: int = -1
    flip_of: int = -1
    refuse_put: bool = False
    disk_full: bool = False


@dataclass
class FaultyTransport:
    """`inner` does the work, until it may not. broken: why nothing goes any more."""

    inner: Transport
    faults: Faults
    broken: str = ""
    streams: list[FaultyStream] = field(default_factory=list)

    def start(self, command: str, limit_s: float) -> Stream:
        self.check()
        stream = FaultyStream(self, self.inner.start(command, limit_s))
        self.streams.append(stream)
        return stream

    def put(self, path: str, data: bytes, limit_s: float) -> None:
        self.check()
        if self.faults.disk_full:
            raise cannot_write(path, "no space left")
        if self.faults.refuse_put:
            raise DeviceError("refused", fix="do not refuse it")
        self.inner.put(path, data, limit_s)

    def make_folder(self, path: str, limit_s: float) -> None:
        self.check()
        self.inner.make_folder(path, limit_s)

    def close(self) -> None:
        self.inner.close()

    def check(self) -> None:
        if self.broken:
            raise LostError(self.broken)


class FaultyStream:
    """See `transport.Stream`. Only the first stream of a transport, the runner's, meets the faults."""

    def __init__(self, transport: FaultyTransport, inner: Stream) -> None:
        self._transport, self._inner = transport, inner
        self._first = not transport.streams
        self._sent = self._received = 0
        self._stalled = False

    def send(self, data: bytes, limit_s: float) -> None:
        self._transport.check()
        faults = self._transport.faults
        if self._first:
            data = _flipped(data, faults.flip_to - self._sent)
            if (cut := _within(faults.cut_to - self._sent, data)) is not None:
                self._inner.send(data[:cut], limit_s)
                self._break()
            if (stall := _within(faults.stall_to - self._sent, data)) is not None:
                self._inner.send(data[:stall], limit_s)
                self._stalled = True
        self._sent += len(data)
        if not self._stalled:
            self._inner.send(data, limit_s)

    def receive(self, limit_s: float) -> bytes:
        self._transport.check()
        if self._stalled:
            time.sleep(limit_s)
            raise TimeoutError
        data = self._inner.receive(limit_s)
        faults = self._transport.faults
        if self._first:
            data = _flipped(data, faults.flip_of - self._received)
            if _within(faults.cut_of - self._received, data) is not None:
                self._break()
            if (stall := _within(faults.stall_of - self._received, data)) is not None:
                self._stalled = True
                data = data[:stall]
                if not data:
                    return self.receive(limit_s)
        self._received += len(data)
        return data

    def _break(self) -> None:
        """As a connection ends: the runner's input is closed, and nothing goes through any more."""
        self._transport.broken = "the connection was cut"
        self._inner.close()
        self._transport.check()

    def close_input(self) -> None:
        self._inner.close_input()

    def errors(self) -> str:
        return self._inner.errors()

    def exit_code(self, limit_s: float) -> int | None:
        self._transport.check()
        return self._inner.exit_code(limit_s)

    def close(self) -> None:
        self._inner.close()


def _within(at: int, data: bytes) -> int | None:
    return at if 0 <= at < len(data) else None


def _flipped(data: bytes, at: int) -> bytes:
    return data if _within(at, data) is None else data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1:]
