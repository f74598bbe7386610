"""What may take the place of a default schedule: what has beaten it side by side, alone and inside the network.

    alone       default and the best few take turns; a winner is faster in the whole 95 % interval of paired ratios
    network     the artifact with all winners beside the one without: when it is slower, none of them is kept; and the one
                with other algorithms and layouts beside the better of these two: only when it is faster, they are kept
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Protocol

import numpy as np

from toolchain.build.store import Store
from toolchain.build.task import Input
from toolchain.core.artifact import Artifact
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import TuneError
from toolchain.remote.board import Board
from toolchain.remote.model import Sampling
from toolchain.report.facts import Comparison, ContenderFacts
from toolchain.report.measure import measure
from toolchain.report.statistics import bootstrap_interval, compare, output_error, summarize
from toolchain.targets.llvm.artifact_files import read_artifact
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Value
from toolchain.targets.llvm.runner_program import machine_of
from toolchain.tasks.boards import BoardModule, open_session
from toolchain.tasks.contender import artifact_entry
from toolchain.tasks.steps import assembled_folder
from toolchain.te.tune.space import Point

CANDIDATES = 2          # of the best that are compared with the default, beside the one chosen before
ROUNDS = 12
GAIN = 1.01             # what is less than this faster is not worth another kernel
NETWORK_ROUNDS = 8
MOST_NETWORK_ROUNDS = 60
BURST_S = 0.2
BURST_SAMPLES = 4       # of a burst on a board


class Comparing(Protocol):
    """Times several points of a task in turns."""

    def compare(self, task: str, points: Sequence[Point], rounds: int) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Medians of the interleaved samples. winner: None, the default stays. error: why nothing could be compared."""

    winner: Point | None
    default_cost: float = 0.0
    tuned_cost: float = 0.0
    samples: Mapping[str, tuple[float, ...]] | None = None
    error: str = ""


def confirm(task: str, default: Point, candidates: Sequence[Point], measurer: Comparing, rounds: int = ROUNDS) -> Confirmed:
    """The fastest of the candidates that beat the default for sure."""
    points = [default, *candidates]
    try:
        samples = measurer.compare(task, points, rounds)
    except TuneError as error:
        return Confirmed(None, error=error.what)
    medians = [float(np.median(s)) for s in samples]
    kept = {str(p): tuple(s) for p, s in zip(points, samples, strict=True)}
    for n in sorted(range(1, len(points)), key=medians.__getitem__):
        low, _ = bootstrap_interval([d / t for d, t in zip(samples[0], samples[n], strict=True)])
        if low > GAIN:
            return Confirmed(points[n], medians[0], medians[n], kept)
    return Confirmed(None, medians[0], medians[0], kept)


@dataclass(frozen=True, slots=True)
class NetworkVerdict:
    """What running two artifacts in turns showed; medians in microseconds."""

    comparison: Comparison
    default_cost: float
    tuned_cost: float

    def __str__(self) -> str:
        c = self.comparison
        return f"{c.speedup:.2f}x ({c.low:.2f} .. {c.high:.2f}), {c.verdict}"


def compare_networks(
    default: Artifact, tuned: Artifact, store: Store, threads: int, more: Callable[[int], bool],
) -> NetworkVerdict | None:
    """The artifact with tuned kernels beside the one with default ones, on random inputs, while `more(rounds done)` says so.
    None: one of them did not run, or their outputs differ by more than rounding."""
    with tempfile.TemporaryDirectory(prefix="tc-tune-") as temporary:
        folders = [assembled_folder(Input(a.kind, a.meta, store.blobs.paths(a.files)), Path(temporary) / name)
                   for name, a in (("default", default), ("tuned", tuned))]
        with Module.load(folders[0], 1) as module:
            inputs = _random_inputs(module.inputs)
        entries = [artifact_entry(folders[1], name="tuned"), replace(artifact_entry(folders[0], name="default"), ours=False)]
        facts = measure(entries, inputs, threads=threads, burst_s=BURST_S, more=more)
    if facts.ours is None or facts.ours.error or not all(o.passed for o in facts.ours.outputs) or not facts.comparisons:
        return None
    before = next(c for c in facts.contenders if not c.ours)
    return NetworkVerdict(facts.comparisons[0], before.median_us, facts.ours.median_us)


def _random_inputs(values: Sequence[Value]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {v.name: (random.uniform(-1, 1, v.shape) if to_numpy(v.dtype).kind == "f"
                     else random.integers(0, 2, v.shape)).astype(to_numpy(v.dtype)) for v in values}


def compare_networks_on(
    board: Board, default: Artifact, tuned: Artifact, store: Store, threads: int, more: Callable[[int], bool],
) -> NetworkVerdict | None:
    """As `compare_networks`, on a board: both loaded in one session, their bursts taken in turns."""
    with _both_on(board, default, tuned, store, threads) as modules:
        if not _same_results(modules):
            return None
        once_us = [module.once_us() for module in modules]
        bursts: list[list[tuple[float, ...]]] = [[], []]
        for r in takewhile(more, count()):
            for n in (r % 2, 1 - r % 2):
                number = max(1, round(BURST_S * 1e6 / BURST_SAMPLES / once_us[n]))
                bursts[n].append(tuple(modules[n].benchmark(Sampling(number, BURST_SAMPLES, 0, 1), once_us[n])))
    ours, theirs = (summarize(ContenderFacts(name, bursts_us=tuple(b))) for name, b in zip(("tuned", "default"), bursts))
    comparison = compare(ours, theirs)
    return NetworkVerdict(comparison, theirs.median_us, ours.median_us) if comparison is not None else None


def same_results_on(board: Board, default: Artifact, tuned: Artifact, store: Store, threads: int) -> bool:
    """Whether two artifacts run there, and compute the same but for rounding."""
    with _both_on(board, default, tuned, store, threads) as modules:
        return _same_results(modules)


@contextmanager
def _both_on(
    board: Board, default: Artifact, tuned: Artifact, store: Store, threads: int,
) -> Iterator[tuple[BoardModule, BoardModule]]:
    """(tuned, default), loaded in one session."""
    with tempfile.TemporaryDirectory(prefix="tc-tune-") as temporary:
        folders = [assembled_folder(Input(a.kind, a.meta, store.blobs.paths(a.files)), Path(temporary) / name)
                   for name, a in (("tuned", tuned), ("default", default))]
        files = [read_artifact(folder) for folder in folders]
        with open_session(board, machine_of(files[0].target)) as session:
            first, second = (BoardModule(session, f, threads, slot) for slot, f in enumerate(files))
            yield first, second


def _same_results(modules: tuple[BoardModule, BoardModule]) -> bool:
    inputs = _random_inputs(modules[0].artifact.plans[0].inputs)
    ours, theirs = (module.run(inputs) for module in modules)
    return all(output_error(n, a, theirs[n], rtol=1e-3, atol=1e-4 * float(np.abs(a).max(initial=1e-3))).passed
               for n, a in ours.items())
