"""The parent's side of the worker processes: start, hand out work, hear outcomes, notice deaths. One thread, one poll."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from toolchain.build.worker import Made, Outcome, Work, receive, send
from toolchain.core.artifact import Artifact
from toolchain.core.errors import TaskError

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[3]); from toolchain.build.worker import serve_forks; " \
         "serve_forks(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[4]))"


@dataclass(frozen=True, slots=True)
class Died:
    """The worker ended while it had work. `signal` 0: it exited with `code` instead."""

    signal: int
    code: int

    def __str__(self) -> str:
        if not self.signal:
            return f"worker died (exit {self.code})"
        try:
            return f"worker died (signal {self.signal}, {signal.Signals(self.signal).name})"
        except ValueError:
            return f"worker died (signal {self.signal})"


@dataclass(frozen=True, slots=True)
class Said:
    """A step's report of its progress."""

    done: float
    total: float
    text: str


@dataclass(slots=True, eq=False)
class Worker:
    pid: int
    channel: socket.socket
    work: Work | None = None
    seen: dict[str, int] = field(default_factory=dict)      # the store's files that it made or checked -> bytes

    def note(self, artifacts: Iterable[Artifact]) -> None:
        self.seen.update((file.digest, file.size_bytes) for a in artifacts for file in a.files.values())

    def knows_bytes(self, work: Work) -> int:
        """How much of the work's inputs it need not read and check again."""
        return sum(self.seen.get(file.digest, 0) for a in work.inputs.values() for file in a.files.values())


class Pool:
    """Up to `jobs` workers, made when first needed."""

    def __init__(self, jobs: int, preload: Sequence[str] = ()) -> None:
        self.jobs, self.preload = jobs, preload
        self._workers: dict[int, Worker] = {}               # by the channel's descriptor
        self._ended: dict[int, int] = {}                    # pid -> wait status, reported before anyone asked
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def prepare(self) -> None:
        """Start the fork server ahead of the first work: it loads its modules while the caller does something else."""
        self._serve()

    @property
    def busy(self) -> int:
        return sum(w.work is not None for w in self._workers.values())

    def start(self, work: Work) -> None:
        """Give the work to the idle worker that knows most of its inputs. Needs: busy < jobs."""
        idle = [w for w in self._workers.values() if w.work is None]
        worker = max(idle, key=lambda w: w.knows_bytes(work)) if idle else self._fork()
        worker.work = work
        worker.note(work.inputs.values())
        with contextlib.suppress(OSError):                  # it died while idle: `events` finds its channel closed
            send(worker.channel, work)

    def events(self, timeout_s: float | None) -> Iterator[tuple[Work, Outcome | Died | Said]]:
        """What workers said within that time; waits only if nothing is there yet."""
        poll = select.poll()
        for fd in self._workers:
            poll.register(fd, select.POLLIN)
        if self._control is not None:
            poll.register(self._control, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]
        for fd in ready:                                    # first what workers said, then who ended
            if fd in self._workers:
                yield from self._hear(self._workers[fd])
        yield from self._hear_server()

    def _hear(self, worker: Worker) -> Iterator[tuple[Work, Outcome | Died | Said]]:
        try:
            kind, *content = receive(worker.channel)
        except EOFError:
            yield from self._bury(worker, self._status(worker.pid))
            return
        if (work := worker.work) is None:
            return
        if kind == "progress":
            yield work, Said(*content)
        else:
            worker.work = None
            if isinstance(content[0], Made):
                worker.note([content[0].artifact])
            yield work, content[0]

    def _hear_server(self) -> Iterator[tuple[Work, Outcome | Died | Said]]:
        """A worker ended. Its channel may still be open, in a process that its step left behind."""
        if self._control is None or not _readable(self._control):
            return                                          # `_status` may have read what woke us
        try:
            _, pid, status = receive(self._control)
        except EOFError:
            self._abandon_server()                          # all channels close now
            return
        worker = next((w for w in self._workers.values() if w.pid == pid), None)
        if worker is None:
            self._ended[pid] = status
        else:
            yield from self._bury(worker, status)

    def close(self) -> None:
        """End all workers at once, with the programs they started."""
        for worker in self._workers.values():
            _kill_group(worker.pid)
            worker.channel.close()
        self._workers.clear()
        self._abandon_server()

    def _serve(self) -> socket.socket:
        if self._control is None:
            ours, theirs = socket.socketpair()
            arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path), json.dumps(list(self.preload))]
            self._server = subprocess.Popen([sys.executable, "-c", _START, *arguments], pass_fds=(theirs.fileno(),),
                                            stdin=subprocess.DEVNULL, start_new_session=True)
            theirs.close()
            self._control = ours
        return self._control

    def _fork(self) -> Worker:
        for attempt in range(2):
            control = self._serve()
            ours, theirs = socket.socketpair()
            try:
                socket.send_fds(control, [b"f"], [theirs.fileno()])
                while (message := receive(control))[0] != "forked":
                    self._ended[message[1]] = message[2]
            except (EOFError, OSError):
                ours.close()
                self._abandon_server()
                if attempt:
                    raise TaskError("cannot start worker processes", fix="see the messages above") from None
                continue
            finally:
                theirs.close()
            worker = Worker(message[1], ours)
            self._workers[ours.fileno()] = worker
            return worker
        raise AssertionError("unreachable")

    def _abandon_server(self) -> None:
        """End the fork server. Its workers end with it: their channels will say so. A new one is made when needed."""
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._server = self._control = None

    def _status(self, pid: int) -> int | None:
        """How a worker ended whose channel is closed; None when the fork server went with it."""
        while pid not in self._ended and self._control is not None:
            try:
                _, ended, status = receive(self._control)
                self._ended[ended] = status
            except EOFError:
                self._abandon_server()
        return self._ended.pop(pid, None)

    def _bury(self, worker: Worker, status: int | None) -> Iterator[tuple[Work, Died]]:
        del self._workers[worker.channel.fileno()]
        worker.channel.close()
        _kill_group(worker.pid)
        if worker.work is None:
            return
        if status is None:
            yield worker.work, Died(signal.SIGKILL, 0)
        elif os.WIFSIGNALED(status):
            yield worker.work, Died(os.WTERMSIG(status), 0)
        else:
            yield worker.work, Died(0, os.waitstatus_to_exitcode(status))


def _readable(channel: socket.socket) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(0))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
