"""Runs steps: in this process (`perform`), or in worker processes that a small fork server makes (`serve_forks`).

The fork server imports the heavy modules once; every worker is a fork of it, so a worker that died (LLVM abort, kill, out of
memory) is replaced in milliseconds. Workers get their tasks over a socket, write what steps print to the task's log, move
the output into the store, and answer. They never touch the database. The kernel ends them with the process they work for.

`python -m toolchain.build.worker FOLDER` runs the step of a failed task's folder again, in the foreground (run.sh).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from toolchain.build.blobs import Blobs, DamagedBlob, Signature
from toolchain.build.folders import remove_tree
from toolchain.build.task import Input, Result
from toolchain.core.artifact import Artifact
from toolchain.core.digest import canonical_json
from toolchain.core.errors import BugError, TaskError, ToolchainError, refused_by_system

Report = Callable[[float, float, str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One execution of a step, as a worker gets it. `files` are source files outside the store."""

    task: str
    run: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    files: Mapping[str, Path]
    out: Path
    log: Path
    store: Path


@dataclass(frozen=True, slots=True)
class Made:
    """The step succeeded; its files are in the store."""

    artifact: Artifact
    signatures: Mapping[str, Signature]
    duration_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    error: ToolchainError
    duration_s: float


@dataclass(frozen=True, slots=True)
class Damaged:
    """These inputs (by name) have damaged files; the step was not run."""

    inputs: tuple[str, ...]
    what: str


Outcome = Made | Failed | Damaged

_report: Report | None = None


def progress(done: float, total: float = 0, text: str = "") -> None:
    """For steps: say how far the running task is. Costs nothing where nobody listens."""
    if _report is not None:
        _report(done, total, text)


# -- one step ---------------------------------------------------------------------------------------------------------


def perform(work: Work, blobs: Blobs, report: Report | None = None) -> Outcome:
    """Check the inputs' bytes, run the step, move its output into the store. Never raises for what a step does."""
    global _report
    begun = time.monotonic()
    if damage := _damaged_inputs(work, blobs):
        return damage
    _report = report
    try:
        work.out.mkdir(parents=True)
        result = _resolve(work)(work.params, _inputs(work, blobs), work.out)
        return _made(work, blobs, result, time.monotonic() - begun)
    except Exception as e:
        return Failed(_typed(e, work), time.monotonic() - begun)
    except SystemExit as e:
        return Failed(TaskError(f"the step ended its process (exit {e.code})", where=_where(work)), time.monotonic() - begun)
    finally:
        _report = None
        remove_tree(work.out)


def _damaged_inputs(work: Work, blobs: Blobs) -> Damaged | None:
    damaged: dict[str, str] = {}
    for name, artifact in work.inputs.items():
        try:
            for file_name, file in artifact.files.items():
                blobs.check(file.digest, f"{name}/{file_name}")
        except DamagedBlob as e:
            damaged[name] = e.what
    return Damaged(tuple(damaged), "; ".join(damaged.values())) if damaged else None


def _resolve(work: Work) -> Callable[[Mapping[str, Any], Mapping[str, Input], Path], Result]:
    module, _, name = work.run.partition(":")
    try:
        step = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        traceback.print_exc()
        raise TaskError(f"cannot load the step {work.run!r}: {e}", where=_where(work)) from e
    return step                                             # type: ignore[no-any-return]


def _inputs(work: Work, blobs: Blobs) -> dict[str, Input]:
    made = {name: Input(a.kind, a.meta, blobs.paths(a.files)) for name, a in work.inputs.items()}
    return {**made, **{name: Input("file", {}, {path.name: path}) for name, path in work.files.items()}}


def _made(work: Work, blobs: Blobs, result: object, duration_s: float) -> Made:
    if not isinstance(result, Result):
        raise TaskError(f"the step returned {type(result).__name__}, not a Result", where=_where(work))
    try:
        meta = json.loads(canonical_json(dict(result.meta)))
    except (TypeError, ValueError) as e:
        raise TaskError(f"the step's meta is not plain data: {e}", where=_where(work)) from None
    files = blobs.ingest_folder(work.out)
    artifact = Artifact(result.kind, {name: file for name, (file, _) in files.items()}, meta)
    return Made(artifact, {file.digest: signature for file, signature in files.values()}, duration_s)


def _typed(error: Exception, work: Work) -> ToolchainError:
    """What the user is told: our errors as they are; what the system refuses as such; else a bug of the step."""
    if isinstance(error, ToolchainError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:                                   # a class of its own, with another constructor
            ours = ToolchainError.__module__
            known: type[ToolchainError] = next(kind for kind in type(error).__mro__ if kind.__module__ == ours)
            return known(error.what, where=error.where, fix=error.fix)
        return error
    if (refused := refused_by_system(error, _where(work))) is not None:
        return refused
    traceback.print_exception(error)
    return BugError(f"{type(error).__name__}: {error}", where=_where(work), fix=f"see {work.log}")


def _where(work: Work) -> str:
    return f"task {work.task!r}"


# -- printing goes to the log -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def logged_descriptors(log: Path) -> Iterator[None]:
    """Send descriptors 1 and 2 to a file: also what native code and child processes print."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    kept = os.dup(1), os.dup(2)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        for old, here in zip(kept, (1, 2), strict=True):
            os.dup2(old, here)
            os.close(old)


@contextlib.contextmanager
def logged_streams(log: Path) -> Iterator[None]:
    """Send Python's own printing to a file; for steps in this process, whose descriptors belong to the caller."""
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


# -- messages ---------------------------------------------------------------------------------------------------------


def send(channel: socket.socket, message: object) -> None:
    data = pickle.dumps(message)
    channel.sendall(struct.pack("!Q", len(data)) + data)


def receive(channel: socket.socket) -> Any:
    """The next message. Raises EOFError: the other side is gone."""
    (size,) = struct.unpack("!Q", _exactly(channel, 8))
    return pickle.loads(_exactly(channel, size))


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            part = channel.recv(min(size - len(data), 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError
        data += part
    return bytes(data)


# -- the fork server and its workers ----------------------------------------------------------------------------------


def serve_forks(fd: int, owner: int, preload: Sequence[str]) -> None:
    """Fork a worker for each descriptor that arrives on `fd`; tell how each one ends. Ends with its owner.

    Answers ("forked", pid) at once and ("ended", pid, wait status) later.
    """
    _end_with(owner)
    control = socket.socket(fileno=fd)
    for name in preload:
        with contextlib.suppress(ImportError):              # the step that needs it will say what is missing
            importlib.import_module(name)
    keep_imports()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready == woken.fileno():
                woken.recv(4096)
            else:
                try:
                    message, fds, _, _ = socket.recv_fds(control, 1, 1)
                except ConnectionError:
                    return
                if not message:
                    return
                send(control, ("forked", _fork_worker(fds[0], (control, woken, wake))))
                os.close(fds[0])
        with contextlib.suppress(BrokenPipeError):          # nobody is there any more; the kernel is about to end us
            for pid, status in _ended():
                send(control, ("ended", pid, status))


def keep_imports() -> None:
    """Tell the garbage collector that what the imports made stays: looking through it again costs a compile 5 %.

    It collects after a few kernels. After ten times as many objects it takes as long in all, but at once: one kernel in
    eighty seemed to take 0.2 s.
    """
    gc.freeze()
    gc.set_threshold(20_000, 50, 1000)


def _ended() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _fork_worker(fd: int, inherited: Sequence[socket.socket]) -> int:
    server = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # Python 3.12: forking while a math library has idle threads
        pid = os.fork()
    if not pid:
        _work_until_eof(fd, server, inherited)
    return pid


def _work_until_eof(fd: int, server: int, inherited: Sequence[socket.socket]) -> NoReturn:
    """The life of a worker."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _end_with(server)
        os.setpgid(0, 0)                                    # so that programs it starts can be ended with it
        for channel in inherited:
            channel.close()
        channel = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        checked: dict[Path, Blobs] = {}
        while True:
            try:
                work: Work = receive(channel)
            except EOFError:
                code = 0
                break
            blobs = checked.setdefault(work.store, Blobs(work.store))
            send(channel, ("outcome", _perform_logged(work, blobs, channel)))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _perform_logged(work: Work, blobs: Blobs, channel: socket.socket) -> Outcome:
    def report(done: float, total: float, text: str) -> None:
        send(channel, ("progress", done, total, text))

    begun = time.monotonic()
    try:
        with logged_descriptors(work.log):
            return perform(work, blobs, report)
    except OSError as e:                                    # the log itself cannot be written
        return Failed(_typed(e, work), time.monotonic() - begun)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends. (Elsewhere than on Linux a worker notices
    only between two tasks.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)      # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


# -- a failed task again ----------------------------------------------------------------------------------------------


def rerun(folder: Path) -> int:
    """Run the step of a failed task's folder in this process, its output in `out`; the exit code."""
    call = json.loads((folder / "call.json").read_text(encoding="utf-8"))
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    inputs = {name: Input(i["kind"], i["meta"], {f: folder / "inputs" / name / f for f in i["files"]})
              for name, i in call["inputs"].items()}
    out = folder / "out"
    remove_tree(out)
    out.mkdir()
    work = Work(call["task"], call["run"], params, {}, {}, out, folder / "log", folder)
    try:
        result = _resolve(work)(params, inputs, out)
    except ToolchainError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    print(f"{call['task']}: {result.kind} {canonical_json(dict(result.meta))}, files in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(rerun(Path(sys.argv[1])))
