"""Measures candidates on this machine: `LocalMeasurer`, the client of the worker process."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolchain.core.errors import TuneError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.graph.serialize import to_json
from toolchain.tasks.tuning.trial_run import Timing
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.space import Point

START_TIMEOUT_S = 120.0
BUILD_TIMEOUT_S = 20.0          # of one candidate; a sketch's code is made in a tenth of a second
PREPARE_TIMEOUT_S = 300.0       # the reference is a NumPy interpreter
MOST_ROTATED_BYTES = 256 << 20  # copies of weights together
SLOWER = 1.25                   # a canary that takes longer by this: the machine is not what it was
AGAIN = 2                       # how often a batch is then measured anew
FASTER_THAN_PEAK = 1.1          # how far a time may be beyond the measured peak: the peak has noise, too
TIMING = Timing()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A task as this machine measures it. weights: inputs that are constants of the network. flops: what a call computes at
    least (0: not known), which nothing does faster than the machine's peak."""

    key: str
    body: Graph
    target: Target
    weights: tuple[int, ...] = ()
    flops: int = 0


def cores_for(target: Target) -> int:
    """How many threads a network for a target has here: as many as it is made for, as far as there are cores for them."""
    return min(target.cores, len(os.sched_getaffinity(0)))


class LocalMeasurer:
    """Implements `te.tune.measure.Measurer`. Use as a context manager: the worker ends with it.

    The first point a task measures (the default) becomes its canary: it is timed again after every batch, and when it has
    become slower, so has the machine, and the batch's samples are taken anew.
    """

    def __init__(
        self, jobs: Sequence[Job], timing: Timing = TIMING, builders: int = 0, peak: Callable[[], float] | None = None, *,
        all_cores: bool = False,
    ) -> None:
        """builders: candidates built side by side (0: one per core). peak: measures the machine's, in GFLOP/s of all threads
        that time a kernel; asked when a time looks too good. all_cores: each kernel is timed on as many threads as a network
        for its target has here (`cores_for`), else on those that `timing` says."""
        self.jobs, self.timing, self.peak, self._peak_gflops = {job.key: job for job in jobs}, timing, peak, 0.0
        self.all_cores = all_cores
        self.builders = builders or len(os.sched_getaffinity(0))
        self._folder = tempfile.TemporaryDirectory(prefix="tc-tune-")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._prepared = ""
        self._files: dict[tuple[str, str], Path] = {}
        self._canary: dict[str, tuple[Path, float]] = {}
        self._of_default: set[str] = set()                  # tasks whose canary is it: not where a session goes on

    def __enter__(self) -> LocalMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    # -- the protocol -------------------------------------------------------------------------------------------------

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]:
        """See `Measurer`. A batch is built side by side, then timed one by one on a machine left alone."""
        begun, best_us = time.monotonic(), best_cost
        errors = self.build(task, points)
        times: list[dict[str, Any]] = []
        if task not in self._canary and not errors[0]:
            self._run(task, points[0], 0)                    # dropped: the arrays were made a moment ago
        for point, error in zip(points, errors, strict=True):
            times.append({"error": error, "times_us": [], "stopped": False} if error else self._run(task, point, best_us))
            best_us = min([best_us, *times[-1]["times_us"]])
        for _ in range(AGAIN):
            if not self._has_drifted(task, points, times):
                break
            for point, found in zip(points, times, strict=True):
                if not found["error"]:
                    again = self._run(task, point, best_us)
                    found["times_us"] += again["times_us"]
                    found["stopped"] &= again["stopped"]
        cost_s = (time.monotonic() - begun) / len(points)
        for point, found in zip(points, times, strict=True):
            trial = self._trial(task, point, found, cost_s)
            yield replace(trial, default_cost=self._canary[task][1]) if task in self._of_default else trial

    def _trial(self, task: str, point: Point, found: Mapping[str, Any], cost_s: float) -> Trial:
        trial = Trial(point.answers, tuple(found["times_us"]), found["error"], cost_s, found["stopped"])
        if trial.samples and self.is_too_fast(self.jobs[task].flops, trial.best_cost):
            error = f"implausible: {trial.best_cost:.2f} us is beyond the machine's peak of {self._peak_gflops:.0f} GFLOP/s"
            return Trial(trial.answers, trial.samples, error, cost_s)
        return trial

    def is_too_fast(self, flops: int, us: float) -> bool:
        """Whether a time is beyond the measured peak. That is measured again before anything is called so: other programs
        may have slowed it down."""
        if self.peak is None:
            return False
        for _ in range(2):
            if flops / us / 1e3 <= FASTER_THAN_PEAK * self._peak_gflops:
                return False
            self._peak_gflops = max(self._peak_gflops, self.peak())
        return flops / us / 1e3 > FASTER_THAN_PEAK * self._peak_gflops

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]:
        """Samples of several points taken in turns. Raises TuneError: one of them fails now."""
        if error := next(filter(None, self.build(task, points)), ""):
            raise TuneError(error)
        answer = self._ask("compare", {"key": task, "files": [str(self.file(task, p)) for p in points], "rounds": rounds,
                                       "timing": self._timing(task)}, self.timing.timeout_s * (len(points) + 1))
        if answer["error"]:
            raise TuneError(answer["error"])
        samples: list[list[float]] = answer["samples"]
        return samples

    # -- requests -----------------------------------------------------------------------------------------------------

    def build(self, task: str, points: Sequence[Point]) -> list[str]:
        """Errors of building, "" where there is none. What was built before is not built again. `file` has a kernel then."""
        if error := self._prepare(task):
            return [error] * len(points)
        missing = [p for p in points if (task, p.signature) not in self._files]
        files = [str(self.file(task, p)) for p in missing]
        request = {"key": task, "answers": [p.answers for p in missing], "files": files, "jobs": self.builders,
                   "timeout_s": BUILD_TIMEOUT_S}
        answer = self._ask("build", request, BUILD_TIMEOUT_S * (len(missing) + 1)) if missing else {"errors": []}
        errors = dict(zip(missing, answer.get("errors") or [answer.get("error", "")] * len(missing), strict=True))
        self._files.update({(task, p.signature): self.file(task, p) for p in missing if not errors[p]})
        return [errors.get(p, "") for p in points]

    def static_cycles(self, task: str, points: Sequence[Point]) -> list[float | str]:
        """Of each point (`static_cost`), or why it has none."""
        if error := self._prepare(task):
            return [error] * len(points)
        answer = self._ask("cost", {"key": task, "answers": [p.answers for p in points], "jobs": self.builders,
                                    "timeout_s": BUILD_TIMEOUT_S}, BUILD_TIMEOUT_S * (len(points) + 1))
        costs = answer.get("costs") or [{"error": answer.get("error", "")}] * len(points)
        return [cost["error"] if "error" in cost else float(cost["cycles"]) for cost in costs]

    def _run(self, task: str, point: Point, best_us: float) -> dict[str, Any]:
        return self._run_file(task, self.file(task, point), best_us)

    def _run_file(self, task: str, file: Path, best_us: float) -> dict[str, Any]:
        if error := self._prepare(task):
            return {"times_us": [], "stopped": False, "error": error}
        request = {"key": task, "file": str(file), "best_us": best_us if math.isfinite(best_us) else 1e18,
                   "timing": self._timing(task)}
        return {"times_us": [], "stopped": False, **self._ask("run", request, 2 * self.timing.timeout_s + 10)}

    def _timing(self, task: str) -> dict[str, Any]:
        threads = cores_for(self.jobs[task].target) if self.all_cores else self.timing.threads
        return asdict(replace(self.timing, threads=threads))

    def _has_drifted(self, task: str, points: Sequence[Point], times: Sequence[dict[str, Any]]) -> bool:
        """Time the canary: has it become slower? One that has become faster was measured badly before. A new one is timed
        twice at first, a process each: what all others are compared with should not hang on one."""
        if task not in self._canary:
            if not times[0]["error"]:
                times[0]["times_us"] += self._run(task, points[0], 0)["times_us"]
                self._canary[task] = (self.file(task, points[0]), min(times[0]["times_us"]))
                if points[0].is_default:
                    self._of_default.add(task)
            return False
        file, before_us = self._canary[task]
        found = self._run_file(task, file, 0)                # two samples: nothing beats zero
        now_us = min(found["times_us"], default=before_us)
        self._canary[task] = (file, min(now_us, before_us))
        return now_us > SLOWER * before_us

    def _prepare(self, task: str) -> str:
        """Make the arrays of a task, unless they are there. Returns why that cannot be done, or ""."""
        if self._prepared == task and self._process is not None:
            return ""
        job = self.jobs[task]
        rotate_bytes = min(5 * job.target.l3_bytes // 4, MOST_ROTATED_BYTES)
        answer = self._ask("prepare", {"key": task, "body": to_json(job.body), "target": job.target.to_json(),
                                       "weights": list(job.weights), "rotate_bytes": rotate_bytes}, PREPARE_TIMEOUT_S)
        if "prepared" not in answer:
            self._prepared = ""
            return f"refused: {answer['error']}"
        self._prepared = task
        return ""

    def file(self, task: str, point: Point) -> Path:
        return Path(self._folder.name) / f"{task[:12]}-{point.signature[:24]}"

    # -- the process --------------------------------------------------------------------------------------------------

    def _ask(self, kind: str, argument: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """One answer. A worker that dies or hangs (its children may not, so this is rare) is replaced, and an error."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({kind: argument}).encode() + b"\n")
            process.stdin.flush()
            return self._read(timeout_s)
        except (OSError, EOFError) as error:
            self._stop()
            return {"error": f"crash: the measuring process ended ({type(error).__name__})"}
        except BaseException:
            self._stop()                                    # interrupted half way: the next answer would not be ours
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._buffer, self._prepared = b"", ""
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "toolchain.tasks.tuning.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                start_new_session=True)
            self._read(START_TIMEOUT_S)
        return self._process

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        out, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise EOFError("no answer in time")
            if not (data := os.read(out, 1 << 16)):
                raise EOFError("closed")
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(head)
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):             # a request that nobody reads any more
                        pipe.close()
