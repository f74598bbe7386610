"""How commands and files reach a machine: `Transport`, and the one that needs no network.

Everything takes a limit in seconds of its own clock (monotonic: the wall clock may jump), and ends in a LostError when that
has passed. Nothing here knows frames or models.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from toolchain.core.errors import DeviceError
from toolchain.remote.board import LostError

PIECE_BYTES = 1 << 16
KEPT_ERROR_BYTES = 4096         # of what a command prints as errors: the last of it


class Stream(Protocol):
    """A running command: its standard input and output. What it prints as errors is drained and the last of it kept."""

    def send(self, data: bytes, limit_s: float) -> None:
        """Raises LostError: it does not read, or is gone."""

    def receive(self, limit_s: float) -> bytes:
        """What there is, at least a byte; b"" at its end. Raises TimeoutError: nothing came in time; LostError: its end is
        that of the connection."""

    def errors(self) -> str: ...

    def close_input(self) -> None:
        """Its standard input ends."""

    def exit_code(self, limit_s: float) -> int | None:
        """Of a command whose output has ended; negative: the signal it died of; None: it does not end, or nobody knows."""

    def close(self) -> None:
        """Close its input and output. Closing twice is fine."""


class Transport(Protocol):
    def start(self, command: str, limit_s: float) -> Stream:
        """A command of the machine's `sh`."""

    def put(self, path: str, data: bytes, limit_s: float) -> None:
        """An executable file, which is under that name only once all of it is there and was read back."""

    def make_folder(self, path: str, limit_s: float) -> None: ...

    def close(self) -> None:
        """At once, whatever is going on."""


def run(transport: Transport, command: str, limit_s: float, most_bytes: int = 1 << 20) -> tuple[int | None, str]:
    """(exit code, output) of a short command. Raises LostError: no end in time, or more output than anybody asked for."""
    end, out = time.monotonic() + limit_s, b""
    stream = transport.start(command, limit_s)
    try:
        while data := stream.receive(max(0.0, end - time.monotonic())):
            out += data
            if len(out) > most_bytes:
                raise LostError(f"'{command[:60]}' prints without end")
        return stream.exit_code(max(0.1, end - time.monotonic())), out.decode(errors="replace")
    except TimeoutError:
        raise LostError(f"'{command[:60]}' did not end within {limit_s:g} s") from None
    finally:
        stream.close()


class LocalTransport:
    """This machine as if it were a board: commands are its processes."""

    def __init__(self) -> None:
        self._streams: list[LocalStream] = []

    def start(self, command: str, limit_s: float) -> LocalStream:
        stream = LocalStream(command)
        self._streams.append(stream)
        return stream

    def put(self, path: str, data: bytes, limit_s: float) -> None:
        part = Path(f"{path}.part")
        try:
            part.write_bytes(data)
            part.chmod(0o700)
            if part.read_bytes() != data:
                raise DeviceError("what was written is not what is read back", where=path)
            part.replace(path)
        except OSError as error:
            raise cannot_write(path, error.strerror or str(error)) from None

    def make_folder(self, path: str, limit_s: float) -> None:
        try:
            Path(path).mkdir(mode=0o700)
        except OSError as error:
            raise cannot_write(path, error.strerror or str(error)) from None

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def cannot_write(path: str, why: str) -> DeviceError:
    full = "no space" in why.lower() or "disk full" in why
    return DeviceError(f"{os.path.dirname(path)} cannot be written to: {why}", fix=(
        "make room on the board, or name another `folder` in the deployfile" if full
        else "name a `folder` in the deployfile that this user may write to"))


class LocalStream:
    """A child process. Its errors go into a pipe that is emptied whenever somebody waits for its output."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        for pipe in (self._in, self._err):
            os.set_blocking(pipe.fileno(), False)
        self._errors = b""

    def send(self, data: bytes, limit_s: float) -> None:
        end, rest = time.monotonic() + limit_s, memoryview(data)
        while rest:
            self._drain_errors()
            if not select.select([], [self._in], [], min(0.1, max(0.0, end - time.monotonic())))[1]:
                if time.monotonic() >= end:
                    raise LostError("it reads nothing any more")
                continue
            try:
                rest = rest[os.write(self._in.fileno(), rest[:PIECE_BYTES]):]
            except BlockingIOError:
                continue
            except OSError as error:
                raise LostError(f"it is gone ({error.strerror})") from None

    def receive(self, limit_s: float) -> bytes:
        end = time.monotonic() + limit_s
        watched = [self._out, self._err]
        while True:
            ready, _, _ = select.select(watched, [], [], max(0.0, end - time.monotonic()))
            if self._err in ready and not self._drain_errors():
                watched.remove(self._err)
            if self._out in ready:
                return os.read(self._out.fileno(), PIECE_BYTES)
            if time.monotonic() >= end:
                raise TimeoutError

    def _drain_errors(self) -> bool:
        """Returns whether more may come."""
        while True:
            try:
                data = os.read(self._err.fileno(), PIECE_BYTES)
            except (BlockingIOError, ValueError):
                return True
            self._errors = (self._errors + data)[-KEPT_ERROR_BYTES:]
            if not data:
                return False

    def errors(self) -> str:
        if not self._err.closed:
            self._drain_errors()
        return self._errors.decode(errors="replace")

    def close_input(self) -> None:
        with suppress(OSError):
            self._in.close()

    def exit_code(self, limit_s: float) -> int | None:
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """What still runs then has a second to end by itself: the runner does, when its input is closed."""
        if self._out.closed:
            return
        self.close_input()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self.errors()
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()
        self._err.close()
