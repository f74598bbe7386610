"""Measure contenders side by side: each in its own process, stopped while another runs, bursts taking turns.

In one process the idle thread pools of rivals spin and steal cores: ResNet-18 in ONNX Runtime then reads twice its time. So
every contender gets a process that sleeps (SIGSTOP) except during its own bursts of about a quarter of a second; the first
calls of a burst are dropped; the order rotates from round to round. What slows the machine for a while slows all of them,
and comparing the bursts of one round cancels it.

A contender that fails, dies or hangs loses its own place only: its facts carry the error, the others go on.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.report.contenders import Entry, with_static_shapes
from toolchain.report.facts import ContenderFacts, MeasureFacts, OutputError
from toolchain.report.statistics import VARIATION_LIMIT, compare, output_error, summarize
from toolchain.report.system import watch_system

KEEP_PER_BURST = 100            # samples kept of one burst; more say nothing new and make the facts large
START_TIMEOUT_S = 120.0         # for Python and NumPy to start
WRONG = 1e-2                    # an error, as part of the largest value, that no order of summation in fp32 explains
BURST_TIMEOUT_S = 30.0          # for a burst of a quarter of a second; a call may take up to about ten seconds


class ContenderError(Exception):
    """A contender failed; the text says how. Stays in this module: it becomes `ContenderFacts.error`."""


def measure(
    entries: Sequence[Entry], inputs: Mapping[str, np.ndarray], *, threads: int, rounds: int = 12, burst_s: float = 0.25,
    reference: Mapping[str, np.ndarray] | None = None, rtol: float = 1e-3, atol: float = 1e-4,
    prepare_timeout_s: float = 300.0, variation_limit: float = VARIATION_LIMIT, processes: Processes | None = None,
    more: Callable[[int], bool] | None = None,
) -> MeasureFacts:
    """Run all contenders in turns, `rounds` bursts each (or while `more(rounds done)` says so), and compare ours (if it is
    among them) with every other.

    reference: expected outputs by name; left out, those of the first contender that is neither ours nor converted, or else
    ours. A converted one whose outputs are others than the reference's loses its times and says so. Rivals get a copy of an
    ONNX model with the inputs' shapes written into it where the model leaves them open. The wall time is about
    len(entries) x rounds x burst_s and the loading. processes: where contenders live that outlast this measurement.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tc-measure-")))
        np.savez(folder / "inputs.npz", *(np.asarray(a, order="C") for a in inputs.values()))
        system = stack.enter_context(watch_system())
        shapes = {name: a.shape for name, a in inputs.items()}
        bound = [_bound(e, shapes, folder / f"{i}.onnx") for i, e in enumerate(entries)]
        runners = (processes or stack.enter_context(Processes())).runners(bound)
        for runner in runners:
            runner.prepare(folder / "inputs.npz", tuple(inputs), threads, prepare_timeout_s)
        turn = 0
        while more(turn) if more is not None else turn < rounds:
            for i in range(len(runners)):
                runners[(turn + i) % len(runners)].burst(burst_s)
            turn += 1
        for runner in runners:
            runner.fetch_outputs()
    if reference is None:
        judge = _judge(runners)
        reference = judge.outputs if judge else {}
    else:
        judge = None
    compared = (replace(r.facts, outputs=() if r is judge else _errors(r.outputs, reference, rtol, atol)) for r in runners)
    facts = tuple(
        summarize(refuse_wrong(f, reference) if r.entry.converted else f, variation_limit)
        for r, f in zip(runners, compared, strict=True)
    )
    ours = next((f for f in facts if f.ours), None)
    comparisons = [compare(ours, f) for f in facts if ours and not f.ours]
    return MeasureFacts(
        threads=threads, rounds=turn, burst_s=burst_s, contenders=facts, system=system(),
        comparisons=tuple(c for c in comparisons if c), variation_limit=variation_limit,
        reference=judge.entry.name if judge else "",
    )


def rounds_for(seconds: float, burst_s: float = 0.25) -> int:
    """How many bursts fill that much time per contender (at least 6: fewer say nothing about variation)."""
    return max(6, round(seconds / burst_s))


def _bound(entry: Entry, shapes: Mapping[str, tuple[int, ...]], copy: Path) -> Entry:
    if entry.model.suffix != ".onnx":
        return entry
    static = with_static_shapes(entry.model, shapes, copy)
    return replace(entry, model=static, original=entry.model if static != entry.model else None)


def _judge(runners: Sequence[_Runner]) -> _Runner | None:
    """Whose outputs the others are compared with: a rival's that reads the model itself; ours for a converted one alone."""
    able = [r for r in runners if r.outputs]
    for r in able:
        if not r.entry.ours and not r.entry.converted:
            return r
    return next((r for r in able if r.entry.ours), None) if any(r.entry.converted for r in able) else None


def refuse_wrong(facts: ContenderFacts, reference: Mapping[str, np.ndarray]) -> ContenderFacts:
    """Facts without times, saying so, where a converted network did not compute what the model computes; else themselves."""
    if facts.error or not reference:
        return facts
    wrong = [o.output for o in facts.outputs if o.max_rel_error > WRONG]
    wrong += sorted(reference.keys() - {o.output for o in facts.outputs})
    if not wrong:
        return facts
    names = ", ".join(repr(name) for name in wrong[:3])
    return replace(facts, bursts_us=(), error=f"not timed: the converted network's results are not the model's ({names})")


def _errors(
    outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], rtol: float, atol: float
) -> tuple[OutputError, ...]:
    return tuple(output_error(n, a, expected[n], rtol=rtol, atol=atol) for n, a in outputs.items() if n in expected)


class _Runner:
    """The parent's side of one contender's process. Runs only inside `_awake`; once it has failed it is not asked again."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        self.take(entry)
        folder.mkdir()
        self._folder = folder
        with (folder / "stderr").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "toolchain.report.burst"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, start_new_session=True,
            )
        self._buffer = b""
        self._ask({}, START_TIMEOUT_S)

    def take(self, entry: Entry) -> None:
        """Serve this entry from now on, whatever was served before."""
        self.entry = entry
        self.facts = ContenderFacts(entry.name, ours=entry.ours)
        self.outputs: dict[str, np.ndarray] = {}

    def prepare(self, inputs: Path, names: Sequence[str], threads: int, timeout_s: float) -> None:
        models = [str(m) for m in (self.entry.model, self.entry.original) if m]
        answer = self._ask({"prepare": {
            "make": self.entry.make, "models": models, "inputs": str(inputs), "names": list(names),
            "threads": threads, "options": dict(self.entry.options),
        }}, timeout_s)
        if answer:
            self.facts = replace(self.facts, version=answer["version"], config=answer["config"], load_ms=answer["load_ms"])

    def burst(self, seconds: float) -> None:
        answer = self._ask({"burst": {"seconds": seconds, "keep": KEEP_PER_BURST}}, BURST_TIMEOUT_S + seconds)
        if answer:
            times = tuple(round(t, 2) for t in answer["times_us"])
            self.facts = replace(self.facts, bursts_us=(*self.facts.bursts_us, times))

    def fetch_outputs(self) -> None:
        file = self._folder / "outputs.npz"
        answer = self._ask({"outputs": str(file)}, BURST_TIMEOUT_S)
        if answer:
            with np.load(file, allow_pickle=False) as arrays:
                self.outputs = {name: arrays[f"arr_{i}"] for i, name in enumerate(answer["names"])}
            self.facts = replace(self.facts, peak_bytes=answer["peak_bytes"])

    def close(self) -> None:
        """Kill the process and whatever it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Wake the process, send a request (if any), wait for the answer, stop it again. None once it has failed."""
        if self.facts.error:
            return None
        try:
            with self._awake():
                line = json.dumps(request).encode() + b"\n" if request else b""
                answer = self._exchange(line, time.monotonic() + timeout_s)
            if "error" in answer:
                raise ContenderError(answer["error"])
            return answer
        except ContenderError as error:
            self._signal(signal.SIGKILL)
            self.facts = replace(self.facts, error=str(error))
            return None

    @contextmanager
    def _awake(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _exchange(self, line: bytes, deadline: float) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderError(self._last_words()) from None
        answers = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ContenderError("gave no answer in time and was ended")
            if not (data := os.read(answers, 1 << 16)):
                raise ContenderError(self._last_words())
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(head)
        return answer

    def _last_words(self) -> str:
        """How the process ended, with the last line it printed."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its answers without ending"
        ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = (self._folder / "stderr").read_text(errors="replace", encoding="utf-8").strip().splitlines()
        return f"{ending}: {lines[-1][:300]}" if lines else ending

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):               # it ended just now; reading its answer will notice
                os.killpg(self._process.pid, number)


class Processes:
    """The processes of contenders, kept from one measurement to the next until `close` (or the end of `with`): many short
    measurements need not start Python, NumPy and the rivals each time. A contender that failed gets a new one. The peak of
    memory is that of all measurements so far.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tc-measure-")
        self._runners: dict[tuple[int, str], _Runner] = {}
        self._started = 0

    def runners(self, entries: Sequence[Entry]) -> list[_Runner]:
        """One for each entry."""
        places = [(n, entry.name) for n, entry in enumerate(entries)]
        for place, entry in zip(places, entries, strict=True):
            runner = self._runners.get(place)
            if runner is not None and not runner.facts.error:
                runner.take(entry)
                continue
            if runner is not None:
                runner.close()
            self._started += 1
            self._runners[place] = _Runner(entry, Path(self._folder.name) / f"{self._started}")
        return [self._runners[place] for place in places]

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._folder.cleanup()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
