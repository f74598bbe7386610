"""A session with a board: one connection, one runner that lives as long as it does, thousands of requests.

    open     a folder of the session's own, the runner's program into it, the runner started; it waits for the board's lease
    request  a frame there, a frame back; each has a limit that the runner keeps, and one of our own that is a little longer
    close    the runner's input is closed: it ends its models, removes the folder, and with it ends the lease

Nothing is left on the board but the lease's empty file where the runner was killed, and a folder that the next session
removes. What the runner does by itself when nobody closes anything: targets/llvm/runner/server.h.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import secrets
import shlex
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from toolchain.core.errors import DeviceError, ToolchainError
from toolchain.remote.board import Board, CrashError, LostError, OtherCpuError, TooLongError
from toolchain.remote.frames import HEADER_BYTES, PROTOCOL, DamagedFrame, Decoder, Frame, Kind, Status
from toolchain.remote.transport import Stream, Transport, run

E = TypeVar("E", bound=DeviceError)
FOLDER_PREFIX = "tc-session-"
LEASE_FILE = "tc-board.lease"
AHEAD_BYTES = 24 << 10               # of requests whose answers have not come: half of what a pipe holds
STOPPED_S = 1.0                     # a wait that ends this much too late: this process was stopped meanwhile
PIECE_BYTES = 1 << 18               # of an upload: a frame
SIGNALS = {4: "SIGILL (an instruction that this CPU does not have)", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
           9: "SIGKILL (out of memory?)", 11: "SIGSEGV (it reads or writes where nothing is)", 31: "SIGSYS"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. silence: without a word from the other side, it is gone (each side holds the other to it). start: of a runner
    until its first word. request: of a request that says nothing else. grace: what an answer may take to get here. lease:
    how long to wait for a board that others use."""

    start_s: float = 20.0
    request_s: float = 30.0
    silence_s: float = 20.0
    grace_s: float = 10.0
    lease_s: float = 3600.0
    transfer_bytes_per_s: float = 100e3         # what a link is thought to do at least


class Session:
    """Use as a context manager. Any thread may make requests: they take turns.

    runner: the program, for the board's CPU. told: called with what the user may want to know while waiting.
    """

    def __init__(
        self, board: Board, transport: Transport, runner: bytes, limits: Limits = Limits(),
        told: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.board, self.transport, self.limits, self._told = board, transport, limits, told
        self.folder = f"{board.folder.rstrip('/')}/{FOLDER_PREFIX}{secrets.token_hex(8)}"
        self.uploaded: dict[str, str] = {}                  # name on the board -> digest
        self._turn, self._sending, self._last_sent, self._next_id = threading.Lock(), threading.Lock(), 0.0, 1
        self._decoder, self._frames, self._closed, self._broken = Decoder(), list[Frame](), threading.Event(), ""
        self._made_folder, self._process, self._stream = False, 0, None
        try:
            self._open(runner)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._keep_alive, name="tc-board-alive", daemon=True).start()

    _stream: Stream | None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- opening and closing ------------------------------------------------------------------------------------------

    def _open(self, runner: bytes) -> None:
        limit_s = self.limits.start_s + len(runner) / self.limits.transfer_bytes_per_s
        self.transport.make_folder(self.folder, limit_s)
        self._made_folder = True
        self.transport.put(f"{self.folder}/run", runner, limit_s)
        self._stream = self.transport.start(self._command(), limit_s)
        begun = heard = time.monotonic()
        waiting = False
        while True:
            limit = self.limits.silence_s if waiting else self.limits.start_s
            frame = self._receive(heard + limit)
            heard = time.monotonic()
            if frame.kind == Kind.HELLO:
                break
            if frame.kind == Kind.WAITING:
                waiting = True
                holder = frame.payload.decode(errors="replace").strip() or "another session"
                self._told(f"waits for {self.board.name}: {holder} has it")
                if heard - begun > self.limits.lease_s:
                    raise self._error(DeviceError, f"has been used by {holder} for {self.limits.lease_s:g} s",
                                      "try again when that has ended, or use another board")
        if frame.word != Status.DONE:
            raise self._error(DeviceError, f"its lease file {self.board.folder}/{LEASE_FILE} cannot be opened",
                              "remove that file, or name another `folder` that all users of the board may write to")
        spoken, self._process = struct.unpack("<2I", frame.payload[:8].ljust(8, b"\0"))
        if spoken != PROTOCOL:
            raise self._error(LostError, f"the runner speaks version {spoken}, not {PROTOCOL}", "try again")

    def _command(self) -> str:
        who = f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()})"
        folder = self.board.folder.rstrip("/")
        options = {"folder": self.folder, "lease": f"{folder}/{LEASE_FILE}", "stale": f"{folder}/{FOLDER_PREFIX}*",
                   "who": who, "silence_ms": str(int(self.limits.silence_s * 1000))}
        if self.board.cpus:
            options["cpus"] = ",".join(map(str, self.board.cpus))
        words = [*shlex.split(self.board.exec_prefix), "./run", "serve", *(f"{k}={v}" for k, v in options.items())]
        return f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"

    def close(self) -> None:
        """End the runner and the connection. What the runner could not remove is removed from here, if that still goes."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            ended = self._stream is not None and not self._broken and self._end_runner()
            if not ended and self._made_folder:
                self._remove_by_hand()
        finally:
            self.transport.close()

    def _end_runner(self) -> bool:
        """Whether it ended as it should: its output has ended, too."""
        assert self._stream is not None
        try:
            self._stream.close_input()
            end = time.monotonic() + min(5.0, self.limits.grace_s)
            while self._stream.receive(max(0.0, end - time.monotonic())):
                pass
            return self._stream.exit_code(1.0) == 0
        except (TimeoutError, ToolchainError, OSError):
            return False
        finally:
            self._stream.close()

    def _keep_alive(self) -> None:
        """The runner ends when it hears nothing: say something when nobody asks for anything."""
        while not self._closed.wait(self.limits.silence_s / 8):
            if time.monotonic() - self._last_sent > self.limits.silence_s / 4 and not self._broken:
                with suppress(ToolchainError, OSError):
                    self._send(Frame(Kind.PING), self.limits.silence_s)

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(self, kind: Kind, payload: bytes = b"", *, slot: int = 0, limit_s: float = 0.0) -> bytes:
        """The answer's payload. Raises CrashError, TooLongError: the model's code, the session goes on; LostError: it does
        not; DeviceError: what the runner says."""
        (answer,) = self.requests([(kind, payload, slot)], limit_s=limit_s)
        return self._payload(answer)

    def requests(self, asked: Sequence[tuple[Kind, bytes, int]], *, limit_s: float = 0.0) -> list[Frame]:
        """Several in one round trip, each with that limit; the answers as they are, in order.

        The runner answers one after the other. No more is sent ahead than lies in the system's buffers: two that both only
        write would wait for each other.
        """
        limit_s = limit_s or self.limits.request_s
        answers: list[Frame] = []
        with self._turn:
            self._check()
            waiting: list[Frame] = []
            ahead = 0
            for kind, payload, slot in asked:
                frame = Frame(kind, slot, self._next_id, max(1, int(limit_s * 1000)), payload)
                self._next_id = self._next_id % 0x7fffffff + 1
                while waiting and ahead + len(payload) > AHEAD_BYTES:
                    ahead -= len(waiting[0].payload) + HEADER_BYTES
                    answers.append(self._answer(waiting.pop(0), limit_s))
                self._send(frame, self._transfer_s(len(payload)))
                waiting.append(frame)
                ahead += len(payload) + HEADER_BYTES
            return answers + [self._answer(frame, limit_s) for frame in waiting]

    def payload_of(self, answer: Frame) -> bytes:
        return self._payload(answer)

    def upload(self, name: str, source: bytes | Path, digest: str = "") -> None:
        """A file of the session's folder: as NAME.part until the board has checked size and SHA-256. What is there already,
        by its digest, is not sent again."""
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        digest = digest or _digest(source)
        if self.uploaded.get(name) == digest:
            return
        begin = struct.pack("<Q32s", size, bytes.fromhex(digest)) + name.encode() + b"\0"
        self.request(Kind.PUT_BEGIN, begin)
        with self._turn:
            self._check()
            for piece in _pieces(source):
                self._send(Frame(Kind.PUT_DATA, 0, 0, 0, piece), self._transfer_s(len(piece)))
        try:
            self.request(Kind.PUT_END, limit_s=self.limits.request_s + self._transfer_s(size))
        except LostError:
            raise
        except DeviceError as error:
            raise self._upload_error(name, size, error) from None
        self.uploaded[name] = digest

    def _upload_error(self, name: str, size: int, error: DeviceError) -> DeviceError:
        if "disk full" in error.what:
            return self._error(DeviceError, f"the disk of {self.board.folder} is full: {name} needs {size / 1e6:.1f} MB",
                               "make room on the board, or name another `folder` in the deployfile")
        if "damaged" in error.what:
            return self._error(DeviceError, f"{name} did not arrive as it was sent; nothing was kept of it", "try again")
        return self._error(DeviceError, f"{name} cannot be written below {self.board.folder}", "name another `folder`")

    def remove(self, name: str) -> None:
        self.uploaded.pop(name, None)
        self.request(Kind.REMOVE, name.encode() + b"\0")

    def _transfer_s(self, size_bytes: int) -> float:
        return self.limits.silence_s + size_bytes / self.limits.transfer_bytes_per_s

    def _answer(self, asked: Frame, limit_s: float) -> Frame:
        """Waits until the answer is here. While the runner is at it, it gives a sign of life now and then."""
        end = time.monotonic() + limit_s + self.limits.grace_s
        heard = time.monotonic()
        while True:
            frame = self._receive(min(end, heard + self.limits.silence_s))
            heard = time.monotonic()
            if frame.id == asked.id and frame.id:
                return frame
            end = max(end, heard + 1.0) if frame.id else end        # an answer to an earlier request of this round trip

    def _payload(self, answer: Frame) -> bytes:
        if answer.word == Status.DONE:
            return answer.payload
        words = answer.payload.decode(errors="replace")
        if answer.word == Status.CRASHED:
            kind, _, number = words.partition(" ")
            how = f"was killed by signal {number} {SIGNALS.get(int(number), '')}" if kind == "signal" else f"ended: {words}"
            raise self._error(CrashError, f"the model's code {how.rstrip()}", "")
        if answer.word == Status.TOO_LONG:
            raise self._error(TooLongError, words, "")
        raise self._error(DeviceError, words, "")

    # -- frames -------------------------------------------------------------------------------------------------------

    def _send(self, frame: Frame | bytes, limit_s: float) -> None:
        assert self._stream is not None
        data = frame if isinstance(frame, bytes) else frame.encode()
        with self._sending:
            self._last_sent = time.monotonic()
            try:
                self._stream.send(data, limit_s)
            except LostError as error:
                raise self._lost(error.what) from None

    def _received(self, limit_s: float) -> bytes:
        """At least a byte. Raises LostError: the runner's output has ended; TimeoutError."""
        assert self._stream is not None
        try:
            data = self._stream.receive(limit_s)
        except LostError as error:
            raise self._lost(error.what) from None
        if not data:
            raise self._ended()
        return data

    def _receive(self, until: float) -> Frame:
        """The next frame; signs of life too. Raises LostError: none by then, the end, or what is no frame."""
        stopped = False
        while not self._frames:
            try:
                data = self._received(max(0.0, until - time.monotonic()))
                self._frames = self._decoder.feed(data)
            except TimeoutError:
                late_s = time.monotonic() - until
                if late_s < STOPPED_S or stopped:
                    raise self._lost("no sign of life") from None
                until, stopped = until + late_s + self.limits.silence_s, True       # it was this process that lay still
            except DamagedFrame as error:
                if self._decoder.started:
                    raise self._lost(f"what comes from it is damaged ({error})") from None
                said = self._decoder.preamble[:60].decode(errors="replace").strip().splitlines()
                raise self._lost(f"something else answers in the runner's place ({error}): {' '.join(said[:1])!r}", (
                    "files of a login shell may print nothing when it is not interactive; look at `exec_prefix`")) from None
        return self._frames.pop(0)

    def _check(self) -> None:
        if self._closed.is_set() or self._broken:
            raise self._error(LostError, self._broken or "the session is closed", "try again")

    def _lost(self, why: str, fix: str = "is the board still there? try again") -> LostError:
        self._broken = why
        error = self._error(LostError, why, fix)
        self._clean_up()
        return error

    def _clean_up(self) -> None:
        """The runner may still be there, hanging; closing its input and the connection ends it. Its files, where one can."""
        assert self._stream is not None
        self._stream.close()
        if self._made_folder:
            self._remove_by_hand()
        self.transport.close()

    def _remove_by_hand(self) -> None:
        """What a runner that was killed, or that hangs, leaves behind. Its process is ended only if it is still ours."""
        folder = shlex.quote(self.folder)
        end = f"grep -qs {folder} /proc/{self._process}/cmdline && kill -9 {self._process}; " if self._process else ""
        with suppress(ToolchainError, OSError, TimeoutError):
            run(self.transport, f"{end}rm -rf -- {folder}", min(3.0, self.limits.grace_s))
            self._made_folder = False

    def _ended(self) -> DeviceError:
        """The runner's output has ended: why?"""
        assert self._stream is not None
        code, errors = self._stream.exit_code(2.0), self._stream.errors().strip()
        last = errors.splitlines()[-1][:300] if errors else ""
        started = self._decoder.started
        self._broken = "the runner has ended"
        error = self._why_ended(code, last, started)
        self._clean_up()
        return error

    def _why_ended(self, code: int | None, last: str, started: bool) -> DeviceError:
        prefix = self.board.exec_prefix
        said = f": {last}" if last else ""
        if not started and code == 127:
            return self._error(DeviceError, f"exec_prefix {prefix!r} is no program there{said}" if prefix else
                               f"the runner cannot be started{said}",
                               "name a program that is on the board's PATH, by its whole path")
        if not started and code == 126 and "ermission" in last:
            return self._error(DeviceError, f"nothing may be executed below {self.board.folder}{said}",
                               "it is mounted noexec: name another `folder` in the deployfile")
        if not started and any(words in last for words in ("ormat error", "cannot execute", "Invalid ELF")):
            return self._error(OtherCpuError, f"its CPU does not run this target's programs{said}",
                               "build for the board's CPU (`uname -m` there), or give it an emulator as `exec_prefix`")
        if not started and code is not None:
            return self._error(LostError, f"the runner did not start (exit code {code}){said}",
                               "run `tc devices doctor` and look at `exec_prefix` and `folder`")
        how = "was killed, or the board is going down" if code is None else f"ended with exit code {code}"
        return self._error(LostError, f"the runner {how}{said}", "try again")

    def _error(self, kind: type[E], what: str, fix: str) -> E:
        return kind(what, where=self.board.where, fix=fix)


def _pieces(source: bytes | Path) -> Iterable[bytes]:
    if isinstance(source, bytes):
        yield from (source[at:at + PIECE_BYTES] for at in range(0, len(source), PIECE_BYTES))
        return
    with source.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _digest(source: bytes | Path) -> str:
    seen = hashlib.sha256()
    for piece in _pieces(source):
        seen.update(piece)
    return seen.hexdigest()
