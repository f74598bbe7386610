"""Measures candidates on boards: `BoardMeasurer`. They are built and linked here, side by side, and timed there.

    candidate   a library of its own whose plan calls the kernel once on each copy of the weights, so that these come from
                where a network finds them; loaded in a slot (a process) of the board's runner
    batch       several candidates and the default, the canary, in one round trip: load, set, run, read, time
    several     boards take what is left from one queue; one that is lost is tried again, then set aside for this run, and
                what it was at goes to another one, once

Outputs are compared here with the reference, as they came from the board.
"""

from __future__ import annotations

import math
import pickle
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from toolchain.core.errors import CodegenError, DeviceError, ToolchainError, TuneError, UsageError
from toolchain.core.target import Target
from toolchain.remote.board import Board, LostError
from toolchain.remote.facts import BoardFacts, board_facts
from toolchain.remote.frames import Frame, Kind, Status
from toolchain.remote.model import Sampling
from toolchain.remote.session import SIGNALS, Session
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.format import weights_header
from toolchain.targets.llvm.link import cached_runtime_object, link_shared, table_object
from toolchain.targets.llvm.plan import Call, Plan, Slot, Value
from toolchain.targets.llvm.runner_program import machine_of
from toolchain.tasks.boards import check_cpu, cool_down, open_session
from toolchain.tasks.tuning.local import AGAIN, MOST_ROTATED_BYTES, SLOWER, Job, LocalMeasurer
from toolchain.tasks.tuning.trial_run import Timing, Workload, WrongError, compare_output, prepare
from toolchain.te.tune.measure import Trial
from toolchain.te.tune.space import Point

BATCH = 4                       # candidates in one round trip
MOST_TRIES = 2                  # of a candidate that was there when its board was lost
RECONNECT_S = (0.0, 5.0, 15.0)  # waits before a lost board is tried again: one that reboots is back by then, or set aside
NAME = "candidate"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"      # SHA-256 of nothing: there are no weights
TIMING = Timing(repeat=5)


@dataclass(eq=False)
class _Work:
    """One candidate on its way: what to run, how often it was begun, what came of it."""

    library: bytes
    tries: int = 0
    times_us: list[float] = field(default_factory=list)
    error: str = ""
    done: bool = False


class BoardMeasurer:
    """Implements `te.tune.measure.Measurer` and `confirm.Comparing`. Use as a context manager: it has sessions and a worker.

    Raises UsageError when a board is emulated: what it runs has no times. told: lines for the user.
    """

    def __init__(
        self, jobs: Sequence[Job], boards: Sequence[Board], timing: Timing = TIMING,
        told: Callable[[str], None] = lambda text: None, waits_s: Sequence[float] = RECONNECT_S,
    ) -> None:
        self.jobs, self.timing, self._told, self._waits_s = {job.key: job for job in jobs}, timing, told, waits_s
        self._builder = LocalMeasurer(jobs)
        self._folder = tempfile.TemporaryDirectory(prefix="tc-tune-")
        self._workloads: dict[str, Workload] = {}
        self._libraries: dict[tuple[str, str], bytes] = {}
        self._canaries: dict[tuple[str, str], float] = {}               # by board and task: its best time
        self._firsts: dict[str, Point] = {}
        self._seats = [Seat(board, jobs[0].target if jobs else None, told) for board in boards]
        self.cpu = ""
        try:
            for seat in self._seats:
                facts = seat.check()
                if facts.emulated:
                    what = f"device {seat.board.name!r} is emulated ({facts.emulated}): what it runs has no times to tune by"
                    raise UsageError(what, fix="tune with emulated devices alone, by static cycles; or with boards alone")
                self.cpu = facts.cpu
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BoardMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for seat in self._seats:
            seat.close()
        self._builder.close()
        self._folder.cleanup()

    # -- the protocol ---------------------------------------------------------------------------------------------------

    def measure(self, task: str, points: Sequence[Point], best_cost: float) -> Iterator[Trial]:
        """See `Measurer`. Raises TuneError: no board is left."""
        begun = time.monotonic()
        errors, canary = self._link(task, points), self._library(task, self._default(task, points[0]))
        works = [_Work(self._libraries.get((task, p.signature), b""), error=e, done=bool(e)) for p, e in zip(points, errors)]
        for _ in range(AGAIN + 1):
            drifted = self._share(task, [w for w in works if not w.done], canary)
            if not drifted:
                break
            for work in drifted:
                work.done = False
        cost_s = (time.monotonic() - begun) / len(points)
        for point, work in zip(points, works, strict=True):
            yield Trial(point.answers, () if work.error else tuple(work.times_us), work.error, cost_s)

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]:
        """Samples of several points taken in turns, on one board. Raises TuneError: one of them fails now."""
        if error := next(filter(None, self._link(task, points)), ""):
            raise TuneError(error)
        libraries = [self._libraries[task, p.signature] for p in points]
        samples: list[list[float]] = [[] for _ in points]
        try:
            seat = next(seat for seat in self._seats if not seat.set_aside)
            for r in range(rounds + 1):
                order = [(r + k) % len(points) for k in range(len(points))]
                found = seat.run(self._workload(task), [libraries[n] for n in order], self.timing.timeout_s,
                                 Sampling(1, 1, self.timing.min_repeat_ms, 1))
                for n, (times_us, error) in zip(order, found, strict=True):
                    if error:
                        raise TuneError(error)
                    samples[n] += times_us
        except StopIteration:
            raise TuneError("no device is left to compare on") from None
        except DeviceError as error:
            raise TuneError(error.what) from None
        return [taken[1:] for taken in samples]

    # -- sharing out ------------------------------------------------------------------------------------------------------

    def _share(self, task: str, works: list[_Work], canary: bytes) -> list[_Work]:
        """All of them, by all boards. Returns those whose batch met a board that had become slower."""
        waiting, drifted, lock = list(works), list[_Work](), threading.Lock()
        workload = self._workload(task)

        def serve(seat: Seat) -> None:
            while not seat.set_aside:
                with lock:
                    batch = waiting[:BATCH]
                    del waiting[:BATCH]
                if not batch:
                    return
                try:
                    steady = self._batch(seat, task, workload, batch, canary)
                except LostError as error:
                    with lock:
                        waiting[:0] = self._lost(seat, batch, error)
                    continue
                except ToolchainError as error:
                    seat.give_up(error.what)
                    with lock:
                        waiting[:0] = batch
                    continue
                if not steady:
                    with lock:
                        drifted.extend(w for w in batch if not w.error)

        threads = [threading.Thread(target=serve, args=(seat,)) for seat in self._seats]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if waiting:
            why = "; ".join(f"{seat.board.name}: {seat.set_aside}" for seat in self._seats if seat.set_aside)
            raise TuneError(f"no device is left: {why}", fix=(
                "look at them with `tc devices doctor`; the same command goes on where this one ended"))
        return drifted

    def _batch(self, seat: Seat, task: str, workload: Workload, batch: list[_Work], canary: bytes) -> bool:
        """Run and time a batch beside the canary. Returns whether the board is as fast as it was."""
        sampling = Sampling(1, self.timing.repeat, self.timing.min_repeat_ms, 1)
        for work in batch:
            work.tries += 1
        found = seat.run(workload, [*(w.library for w in batch), canary], self.timing.timeout_s, sampling)
        *answers, (canary_us, _) = found
        for work, (times_us, error) in zip(batch, answers, strict=True):
            work.times_us += times_us
            work.error, work.done = error, True
        if not canary_us:
            return True
        now_us, key = min(canary_us), (seat.board.name, task)
        before_us = self._canaries.get(key, math.inf)
        self._canaries[key] = min(now_us, before_us)
        return now_us <= SLOWER * before_us

    def _lost(self, seat: Seat, batch: list[_Work], error: LostError) -> list[_Work]:
        """Try the board again; what is to be measured again, once more at most."""
        again = []
        for work in batch:
            if work.tries < MOST_TRIES:
                again.append(work)
            else:
                work.error, work.done = f"crash: the device was lost twice while it ran ({error.what})", True
        seat.reconnect(self._waits_s, error.what)
        return again

    # -- building ---------------------------------------------------------------------------------------------------------

    def _workload(self, task: str) -> Workload:
        if task not in self._workloads:
            job = self.jobs[task]
            rotate_bytes = min(5 * max(job.target.l3_bytes, job.target.l2_bytes) // 4, MOST_ROTATED_BYTES)
            self._workloads.clear()                         # one at a time: arrays may be large
            self._workloads[task] = prepare(job.body, job.weights, rotate_bytes)
        return self._workloads[task]

    def _default(self, task: str, first: Point) -> Point:
        """The canary: what a task measures first is its default."""
        return self._firsts.setdefault(task, first)

    def _library(self, task: str, point: Point) -> bytes:
        """b"": it cannot be built."""
        return b"" if self._link(task, [point])[0] else self._libraries[task, point.signature]

    def _link(self, task: str, points: Sequence[Point]) -> list[str]:
        """Errors of building; libraries of the others are kept."""
        errors, target = self._builder.build(task, points), self.jobs[task].target
        workload = self._workload(task)
        runtime = cached_runtime_object(target).read_bytes()

        def link(n: int) -> None:
            if errors[n] or (task, points[n].signature) in self._libraries:
                return
            kernel: Kernel = pickle.loads(self._builder.file(task, points[n]).read_bytes())    # written by our own worker
            try:
                self._libraries[task, points[n].signature] = candidate_library(kernel, workload, target, runtime)
            except CodegenError as error:
                errors[n] = f"build: {error.what}"

        with ThreadPoolExecutor(self._builder.builders) as pool:
            list(pool.map(link, range(len(points))))
        return errors


def candidate_library(kernel: Kernel, workload: Workload, target: Target, runtime: bytes) -> bytes:
    """A library whose one run calls the kernel on each copy of the weights in turn. Its inputs are the copies' inputs as raw
    bytes, those that all copies share once; its outputs the kernel's."""
    inputs, outputs, calls = plan_of(workload)
    at, spaces = 0, []
    for size in kernel.workspace:
        spaces.append(Slot("arena", at))
        at += -(-size // 64) * 64
    rest = (*(Slot("output", n) for n in range(len(outputs))), *spaces)
    ops = tuple(Call("k", kernel.phases, (*(Slot("input", n) for n in numbers), *rest), name=NAME) for numbers in calls)
    plan = Plan(NAME, inputs, outputs, ops, arena_bytes=at, scratch_bytes=kernel.scratch_bytes)
    return link_shared({"k": kernel.object}, table_object([plan], target, EMPTY), runtime, target, name=NAME)


def plan_of(workload: Workload) -> tuple[tuple[Value, ...], tuple[Value, ...], list[list[int]]]:
    """(inputs, outputs, per copy the numbers of its inputs)."""
    distinct: dict[int, int] = {}
    values: list[Value] = []
    calls = []
    for copy in workload.copies:
        for array in copy[:workload.n_inputs]:
            if id(array) not in distinct:
                distinct[id(array)] = len(values)
                values.append(Value(f"i{len(values)}", "uint8", (max(1, array.nbytes),)))
        calls.append([distinct[id(array)] for array in copy[:workload.n_inputs]])
    outputs = [Value(f"o{n}", "uint8", (max(1, a.nbytes),)) for n, a in enumerate(workload.copies[0][workload.n_inputs:])]
    return tuple(values), tuple(outputs), calls


def input_bytes(workload: Workload) -> list[bytes]:
    """In the order of `plan_of`."""
    found: dict[int, bytes] = {}
    for copy in workload.copies:
        for array in copy[:workload.n_inputs]:
            found.setdefault(id(array), array.tobytes() or b"\0")
    return list(found.values())


# --- one board ----------------------------------------------------------------------------------------------------------


class Seat:
    """A board's place in the run: its session, opened when needed. set_aside: why it is no longer used; "": it is."""

    def __init__(self, board: Board, target: Target | None, told: Callable[[str], None]) -> None:
        self.board, self.set_aside, self._target, self._told = board, "", target, told
        self._session: Session | None = None
        self._losses = 0

    def session(self) -> Session:
        if self._session is None:
            machine = machine_of(self._target) if self._target is not None else "x86_64"
            self._session = open_session(self.board, machine, self._told)
            self._session.upload("weights.bin", weights_header(EMPTY, 0))
        return self._session

    def check(self) -> BoardFacts:
        """What it says of itself. Raises DeviceError: it is away, or lacks what the code needs."""
        facts = board_facts(self.session())
        if self._target is not None:
            check_cpu(self.session(), self._target)
        return facts

    def run(
        self, workload: Workload, libraries: Sequence[bytes], limit_s: float,
        sampling: Sampling | None,
    ) -> list[tuple[list[float], str]]:
        """(microseconds per call of the kernel, error) of each; without sampling run and compared only. Raises LostError."""
        session = self.session()
        if self.board.cool_below_c:
            cool_down(session, self._told)
        for slot, library in enumerate(libraries):
            if library:
                session.upload(f"c{slot}.so", library)
        inputs, n_outputs = input_bytes(workload), len(workload.expected)
        asked = [request for slot, library in enumerate(libraries) if library
                 for request in self._requests(slot, inputs, n_outputs, sampling)]
        answers = iter(session.requests(asked, limit_s=limit_s))
        each = len(inputs) + n_outputs + (3 if sampling is None else 4)
        return [self._judge(list(islice(answers, each)), len(inputs), workload) if library
                else ([], "build: it could not be linked") for library in libraries]

    @staticmethod
    def _requests(
        slot: int, inputs: Sequence[bytes], n_outputs: int, sampling: Sampling | None,
    ) -> Iterator[tuple[Kind, bytes, int]]:
        """All that one candidate takes."""
        yield Kind.LOAD, f"c{slot}.so\0weights.bin\0".encode() + struct.pack("<i", 1), slot
        for n, data in enumerate(inputs):
            yield Kind.SET, struct.pack("<q", n) + data, slot
        yield Kind.RUN, b"", slot
        for n in range(n_outputs):
            yield Kind.GET, struct.pack("<q", n), slot
        if sampling is not None:
            yield Kind.BENCHMARK, sampling.encode(), slot
        yield Kind.UNLOAD, b"", slot

    @staticmethod
    def _judge(answers: Sequence[Frame], n_inputs: int, workload: Workload) -> tuple[list[float], str]:
        """Of one candidate, from the answers to `_requests`."""
        *answers, _ = answers
        if error := next((e for a in answers if (e := failure(a))), ""):
            return [], error
        results = answers[2 + n_inputs:2 + n_inputs + len(workload.expected)]
        for n, answer in enumerate(results):
            try:
                compare_output(workload, n, answer.payload[16:])
            except WrongError as wrong:
                return [], str(wrong)
        if answers[-1] is results[-1]:
            return [], ""
        numbers = struct.unpack(f"<{len(answers[-1].payload) // 8}q", answers[-1].payload)
        calls = len(workload.copies)
        return [ns / number / calls / 1e3 for number, ns in zip(numbers[::2], numbers[1::2], strict=True)], ""

    def reconnect(self, waits_s: Sequence[float], why: str) -> None:
        """After a loss. A board that does not come back, or is lost a third time, is set aside."""
        self._losses += 1
        self.close()
        if self._losses > len(waits_s):
            self.give_up(f"lost {self._losses} times, last: {why}")
            return
        self._told(f"{self.board.name} was lost ({why}); trying again")
        for wait_s in waits_s:
            time.sleep(wait_s)
            try:
                self.session()
                return
            except ToolchainError as error:
                why = error.what
        self.give_up(why)

    def give_up(self, why: str) -> None:
        self.set_aside = why
        self.close()
        self._told(f"{self.board.name} is set aside for this run: {why}")

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def failure(answer: Frame) -> str:
    """Why a request came to nothing, as a Trial has it; "": it did not."""
    words = answer.payload.decode(errors="replace") if answer.word else ""
    if answer.word == Status.CRASHED:
        kind, _, number = words.partition(" ")
        return f"crash: killed by {SIGNALS.get(int(number), f'signal {number}')}" if kind == "signal" else f"crash: {words}"
    if answer.word == Status.TOO_LONG:
        return f"timeout: {words}"
    return f"refused: {words}" if answer.word else ""


__all__ = ["BoardMeasurer", "candidate_library"]
