"""The process that builds and runs candidates: every one in a child of its own, which may crash, hang or write anywhere.

Run as `python -P -m toolchain.tasks.tuning.worker`; speaks JSON lines with `local.py`, big things lie in files. The modules
are loaded and a task's arrays are made once, here; a child is a fork, and what it does to its copy of them dies with it.

                                                                                    -> {"ready": true}
    {"prepare": {"key", "body", "target", "weights", "rotate_bytes"}}                -> {"prepared": copies} or {"error"}
    {"build": {"key", "answers": [...], "files": [...], "jobs", "timeout_s"}}        -> {"errors": ["" | "build: ...", ...]}
    {"cost": {"key", "answers": [...], "jobs", "timeout_s"}}         -> {"costs": [{"cycles"} | {"error"}, ...]}
    {"run": {"key", "file", "best_us", "timing": {...}}}                             -> {"times_us", "stopped", "error"}
    {"compare": {"key", "files": [...], "rounds", "timing": {...}}}                  -> {"samples": [[...], ...], "error"}
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.graph.serialize import from_json
from toolchain.report.burst import die_with_parent
from toolchain.targets.llvm.repeat import Lanes
from toolchain.tasks.tuning.candidates import compile_candidate
from toolchain.tasks.tuning.static_cost import candidate_cost
from toolchain.tasks.tuning.trial_run import (
    Timing,
    Workload,
    WrongError,
    caller,
    check,
    interleave,
    prepare,
    spare_memory,
    time_candidate,
    warm_up,
)


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is the parent's: it ends this process
    requests, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _send(answers, {"ready": True})
    server = Server()
    for line in requests:
        ((kind, argument),) = json.loads(line).items()
        _send(answers, getattr(server, kind)(argument))


def _send(answers: Any, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


class _Task(NamedTuple):
    body: Graph
    target: Target
    workload: Workload


class Server:
    """One task at a time: its arrays may be large."""

    def __init__(self) -> None:
        self.key, self.task = "", None
        Lanes(1)                                            # compiles what runs kernels: children find it made

    task: _Task | None

    def prepare(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        self.task = None                                    # its arrays go before the next ones come
        body, target = from_json(argument["body"]), Target.from_json(argument["target"])
        try:
            workload = prepare(body, argument["weights"], argument["rotate_bytes"])
        except Exception as error:                          # one kernel that cannot be measured must not end the others
            return {"error": f"no inputs, or no reference: {type(error).__name__}: {error}"[:500]}
        self.task, self.key = _Task(body, target, workload), argument["key"]
        return {"prepared": len(self.task.workload.copies)}

    def build(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        """As many side by side as `jobs`."""
        task = self._task(argument)

        def one(answers: Mapping[str, str], file: str) -> Callable[[], dict[str, Any]]:
            def build() -> dict[str, Any]:
                try:
                    kernel = compile_candidate(task.body, task.target, answers)
                except (ScheduleError, CodegenError) as error:
                    return {"error": f"build: {error.what}"}
                Path(file).write_bytes(pickle.dumps(kernel))
                return {"error": ""}
            return build
        work = [one(a, f) for a, f in zip(argument["answers"], argument["files"], strict=True)]
        return {"errors": [a["error"] for a in in_children(work, argument["jobs"], argument["timeout_s"], "building")]}

    def cost(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        """Static cycles, of as many side by side as `jobs`."""
        task = self._task(argument)

        def one(answers: Mapping[str, str]) -> Callable[[], dict[str, Any]]:
            def cost() -> dict[str, Any]:
                try:
                    return {"cycles": candidate_cost(task.body, task.target, answers).cycles}
                except (ScheduleError, CodegenError) as error:
                    return {"error": f"build: {error.what}"}
            return cost
        work = [one(answers) for answers in argument["answers"]]
        return {"costs": in_children(work, argument["jobs"], argument["timeout_s"], "counting")}

    def run(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        task, timing = self._task(argument), Timing(**argument["timing"])

        def run() -> dict[str, Any]:
            kernel = _kernel(argument["file"])
            loaded, spare = check(kernel, task.workload), spare_memory([kernel], timing.threads)
            with Lanes(timing.threads) as lanes:
                call = caller(loaded, task.workload, spare, lanes)
                warm_up(call, len(task.workload.copies))
                times_us, stopped = time_candidate(call, timing, argument["best_us"])
            return {"error": "", "times_us": times_us, "stopped": stopped}
        (answer,) = in_children([_catching(run)], 1, timing.timeout_s, "running")
        return {"times_us": [], "stopped": False, **answer}

    def compare(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        task, timing = self._task(argument), Timing(**argument["timing"])

        def compare() -> dict[str, Any]:
            made = [_kernel(file) for file in argument["files"]]
            spare, loaded = spare_memory(made, timing.threads), [check(kernel, task.workload) for kernel in made]
            with Lanes(timing.threads) as lanes:
                calls = [caller(one, task.workload, spare, lanes) for one in loaded]
                for call in calls:
                    warm_up(call, len(task.workload.copies))
                return {"error": "", "samples": interleave(calls, timing, argument["rounds"])}
        (answer,) = in_children([_catching(compare)], 1, timing.timeout_s * len(argument["files"]), "running")
        return {"samples": [], **answer}

    def _task(self, argument: Mapping[str, Any]) -> _Task:
        assert self.task is not None and self.key == argument["key"], "prepare first"
        return self.task


def _kernel(file: str) -> Any:
    """A kernel that a child of this process wrote."""
    return pickle.loads(Path(file).read_bytes())


def _catching(work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        try:
            return work()
        except WrongError as error:
            return {"error": str(error)}
    return run


# -- children ---------------------------------------------------------------------------------------------------------


class _Child(NamedTuple):
    number: int
    pid: int
    pipe: int
    deadline: float


def in_children(
    work: Sequence[Callable[[], dict[str, Any]]], jobs: int, timeout_s: float, doing: str,
) -> list[dict[str, Any]]:
    """Each piece of work in a fork of this process; what it returned, or {"error"} when it died or took too long."""
    waiting, running = list(reversed(list(enumerate(work)))), list[_Child]()
    answers: list[dict[str, Any]] = [{}] * len(work)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, one = waiting.pop()
                pid, pipe = _fork(one)
                running.append(_Child(number, pid, pipe, time.monotonic() + timeout_s))
            for child, answer in _finished(running, timeout_s, doing):
                running.remove(child)
                answers[child.number] = answer
    finally:
        for child in running:
            _end(child)
    return answers


def _finished(running: Sequence[_Child], timeout_s: float, doing: str) -> Iterator[tuple[_Child, dict[str, Any]]]:
    """Wait for one child at least."""
    left = max(0.0, min(c.deadline for c in running) - time.monotonic())
    ready, _, _ = select.select([c.pipe for c in running], [], [], left)
    for child in list(running):
        if child.pipe in ready:
            yield child, _answer(child, doing)
        elif time.monotonic() >= child.deadline:
            _end(child)
            yield child, {"error": f"timeout: {doing} took more than {timeout_s:g} s"}


def _fork(work: Callable[[], dict[str, Any]]) -> tuple[int, int]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    code = 1
    try:
        die_with_parent()
        os.close(reading)
        faulthandler.disable()                              # a candidate's crash is a line in the records, no traceback
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(writing, json.dumps(work()).encode())      # far below a pipe's 64 KiB: never waits for the reader
        code = 0
    except BaseException as error:
        os.write(writing, json.dumps({"error": f"crash: {type(error).__name__}: {error}"[:2000]}).encode())
    finally:
        os._exit(code)


def _answer(child: _Child, doing: str) -> dict[str, Any]:
    data = b""
    while part := os.read(child.pipe, 1 << 16):
        data += part
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    if data:
        answer: dict[str, Any] = json.loads(data)
        return answer
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    how = f"killed by {signal.Signals(signal_number).name}" if signal_number else f"exit code {os.WEXITSTATUS(status)}"
    return {"error": f"crash: {how} while {doing}"}


def _end(child: _Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    os.close(child.pipe)


if __name__ == "__main__":
    main()
