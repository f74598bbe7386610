"""The process of one contender: prepares it, then runs a burst of calls each time it is told to.

Run as `python -P -m toolchain.report.burst`; speaks JSON lines with `measure.py`. Requests come on standard input, answers
go to what was standard output, which contenders cannot reach: whatever they print goes to standard error.

                                                                                     -> {"ready": true}
    {"prepare": {"make", "models", "inputs": npz, "names", "threads", "options"}}   -> {"version", "config", "load_ms"}
    {"burst": {"seconds", "keep"}}                                                   -> {"times_us": [...]}
    {"outputs": npz}                                                                 -> {"names": [...], "peak_bytes": n}

An exception ends the process with {"error": text} as the last line.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from toolchain.report.contenders import Contender, resolve

PR_SET_PDEATHSIG = 1        # linux/prctl.h
WARM_UP_CALLS = 3           # dropped at the start of every burst: caches and clocks come back after the stop
MIN_CALLS = 2


def main() -> None:
    """A contender's process: requests as JSON lines on standard input, an answer to each on standard output."""
    die_with_parent()
    requests, answers = sys.stdin, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _send(answers, {"ready": True})
    try:
        for answer in answer_all(json.loads(line) for line in requests):
            _send(answers, answer)
    except Exception as error:
        _send(answers, {"error": f"{type(error).__name__}: {error}".strip()[:2000]})
        sys.exit(1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends: a stopped one would otherwise stay for ever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def answer_all(requests: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One answer per request; the first request prepares the contender."""
    contender: Contender | None = None
    for request in requests:
        ((kind, argument),) = request.items()
        if kind == "prepare":
            contender, answer = prepare(argument)
        elif contender is None:
            raise RuntimeError(f"{kind} before prepare")
        elif kind == "burst":
            answer = {"times_us": thin(time_calls(contender.call, argument["seconds"]), argument["keep"])}
        else:
            answer = save_outputs(contender, Path(argument))
        yield answer


def prepare(argument: Mapping[str, Any]) -> tuple[Contender, dict[str, Any]]:
    """Make the contender and load the first of its models that it can run; the time includes its imports, not reading the
    inputs."""
    with np.load(argument["inputs"], allow_pickle=False) as arrays:
        inputs = {name: arrays[f"arr_{i}"] for i, name in enumerate(argument["names"])}
    *copies, last = (Path(model) for model in argument["models"])
    for model in copies:
        try:
            return _load(argument, model, inputs)
        except Exception as error:                          # of a rival: whatever it raises
            print(f"{model.name}: {error}", file=sys.stderr)
    return _load(argument, last, inputs)


def _load(
    argument: Mapping[str, Any], model: Path, inputs: Mapping[str, np.ndarray]
) -> tuple[Contender, dict[str, Any]]:
    start = time.perf_counter()
    contender = resolve(argument["make"])()
    said = contender.prepare(model, inputs, argument["threads"], argument["options"])
    load_ms = (time.perf_counter() - start) * 1e3
    contender.call()
    return contender, {"version": said.version, "config": dict(said.config), "load_ms": round(load_ms, 1)}


def time_calls(call: Callable[[], object], seconds: float, clock: Callable[[], int] = time.perf_counter_ns) -> list[float]:
    """Times of single calls in microseconds, for about that long. The first WARM_UP_CALLS are dropped, but at most a quarter
    of the burst is spent on them (at least one call): a slow network needs fewer."""
    start = clock()
    for _ in range(WARM_UP_CALLS):
        call()
        if clock() - start > seconds * 0.25e9:
            break
    times: list[float] = []
    while len(times) < MIN_CALLS or clock() - start < seconds * 1e9:
        before = clock()
        call()
        times.append((clock() - before) / 1e3)
    return times


def thin(times_us: list[float], keep: int) -> list[float]:
    """At most `keep` samples, evenly spaced over the burst."""
    if len(times_us) <= keep:
        return times_us
    return [times_us[i * len(times_us) // keep] for i in range(keep)]


def save_outputs(contender: Contender, file: Path) -> dict[str, Any]:
    outputs = contender.outputs()
    np.savez(file, *outputs.values())
    return {"names": list(outputs), "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory this program held. Not ru_maxrss, which begins with what the process that started it held, proc(5)."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _send(answers: IO[str], answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
