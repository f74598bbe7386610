"""What happens to one candidate's code: compared with the reference, then timed. Runs in a process that may die of it.

    arrays     random inputs, the reference's outputs (graph interpreter), storage with red zones around every buffer
    check      all of the work at once; then in pieces, last piece first, on poisoned outputs: both right, equal bit for bit
    time       calls in turns on several copies of the weights, which so come from where a network finds them: not from L1

Pieces in reverse order tell kernels whose pieces depend on each other (a racy reduction) from those any core may run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from toolchain.core.dtype import is_float, to_numpy
from toolchain.core.layout import TensorType
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.report.statistics import output_error
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.load import LoadedKernel, aligned, load
from toolchain.targets.llvm.repeat import Lanes, Repeated

RED_ZONE_BYTES = 256
RED = 0xA5
PIECES = 64                     # at most, in the second run of the check
RTOL, ATOL = 1e-3, 1e-4         # absolute part relative to the largest value: rounding alone stays far below
MOST_COPIES = 32                # of the weights: more say nothing new about small ones
MOST_SAMPLES = 12
WARM_S, RISEN_S = 0.04, 0.01
STEADY = 0.02                   # two best samples this close: the time is known
NEAR = 1.15                     # candidates within this of the best are measured until steady
HOPELESS = 1.5                  # slower than this times the best twice: given up


class WrongError(Exception):
    """A candidate computes something else, or writes where it may not. The text begins with its cause: "wrong: ..."."""


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """What all candidates of a task run on: parameters (inputs, then outputs) as types and storage.

    weights: positions of the inputs that are constants of the network. copies: for each copy of the weights, all parameters.
    """

    types: tuple[TensorType, ...]
    n_inputs: int
    copies: tuple[tuple[np.ndarray, ...], ...]
    expected: tuple[np.ndarray, ...]


def red_zoned(size: int, dtype: np.dtype[Any] | str = "uint8") -> np.ndarray:
    """Zeroed aligned storage with RED bytes before and behind it."""
    zone = RED_ZONE_BYTES // np.dtype(dtype).itemsize
    whole = aligned(size + 2 * zone, dtype)
    whole.view(np.uint8)[:RED_ZONE_BYTES] = RED
    whole.view(np.uint8)[whole.nbytes - RED_ZONE_BYTES:] = RED
    return whole[zone:zone + size]


def zones_intact(array: np.ndarray) -> bool:
    """Whether nobody wrote around an array made by `red_zoned`."""
    whole = array.base
    while whole is not None and whole.base is not None:
        whole = whole.base
    assert whole is not None
    start = array.ctypes.data - whole.ctypes.data
    around = whole.view(np.uint8)
    before, behind = around[start - RED_ZONE_BYTES:start], around[start + array.nbytes:start + array.nbytes + RED_ZONE_BYTES]
    return bool((before == RED).all() and (behind == RED).all())


def prepare(body: Graph, weights: Collection[int], rotate_bytes: int, seed: int = 0) -> Workload:
    """Inputs, what the reference makes of them, and enough copies of the weights to fill `rotate_bytes`."""
    inputs, expected = _inputs_and_results(body, seed)
    names = (*body.inputs, *body.outputs)
    types = tuple(body.types[name] for name in names)
    packed = [types[n].layout.pack(inputs[name]).reshape(-1) for n, name in enumerate(body.inputs)]
    weight_bytes = sum(packed[n].nbytes for n in weights)
    n_copies = max(1, min(MOST_COPIES, -(-rotate_bytes // weight_bytes))) if weight_bytes else 1
    shared = [red_zoned(t.layout.size(t.shape), to_numpy(t.dtype)) for t in types]
    copies = []
    for c in range(n_copies):
        buffers = [red_zoned(a.size, a.dtype) if c and n in weights else a for n, a in enumerate(shared)]
        for n, array in enumerate(packed):
            buffers[n][:] = array
        copies.append(tuple(buffers))
    return Workload(types, len(body.inputs), tuple(copies), expected)


def _inputs_and_results(body: Graph, seed: int) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """Random inputs; positive ones where a body (a logarithm, a root) makes nothing of others."""
    for low in (-1.0, 0.1):
        random = np.random.default_rng(seed)
        inputs = {
            name: (random.uniform(low, 1, t.shape) if is_float(t.dtype) else random.integers(0, 2, t.shape))
            .astype(to_numpy(t.dtype)) for name in body.inputs for t in [body.types[name]]
        }
        with np.errstate(all="ignore"):
            results = interpret(body, inputs)
        expected = tuple(results[o] for o in body.outputs)
        if all(np.isfinite(e.astype(np.float64)).all() for e in expected):
            break
    return inputs, expected


# -- is it right? -----------------------------------------------------------------------------------------------------


def check(kernel: Kernel, workload: Workload) -> LoadedKernel:
    """Load a kernel and compare what it computes with the reference. Raises WrongError."""
    loaded, buffers = load(kernel), workload.copies[0]
    spare = spare_memory([kernel])
    table = loaded.table(buffers, spare[:-1])
    results = []
    for pieces in (_whole, _reversed_pieces):
        insides = [_poison(workload, n) for n in range(workload.n_inputs, len(buffers))]
        for task, extent in loaded.phases:
            for low, high in pieces(extent):
                task(table, low, high, spare[-1].ctypes.data)
        if not all(map(zones_intact, (*buffers, *spare))):
            raise WrongError("bounds: it writes beyond its buffers")
        for n, (inside, expected) in enumerate(zip(insides, workload.expected, strict=True)):
            _compare(workload, n, inside, expected)
        results.append([b.tobytes() for b in buffers[workload.n_inputs:]])
    if results[0] != results[1]:
        raise WrongError("wrong: its result depends on the order in which its pieces run")
    return loaded


def _whole(extent: int) -> Sequence[tuple[int, int]]:
    return ((0, extent),)


def _reversed_pieces(extent: int) -> Sequence[tuple[int, int]]:
    step = -(-extent // PIECES)
    return [(low, min(low + step, extent)) for low in reversed(range(0, extent, step))] if extent else ()


def _poison(workload: Workload, n: int) -> np.ndarray:
    """Fill an output with NaN, its halo with the zeros that a plan leaves there; returns which elements are not halo."""
    t, storage = workload.types[n], workload.copies[0][n]
    inside: np.ndarray = t.layout.pack(np.ones(t.layout.padded(t.shape), np.uint8)).reshape(-1) != 0
    storage.view(np.uint8)[:] = 0xFF
    storage[~inside] = 0
    return inside


def compare_output(workload: Workload, n: int, data: bytes) -> None:
    """Output `n` as it came from elsewhere, in its layout. Raises WrongError."""
    t = workload.types[workload.n_inputs + n]
    storage = np.frombuffer(data, to_numpy(t.dtype))
    inside = t.layout.pack(np.ones(t.layout.padded(t.shape), np.uint8)).reshape(-1) != 0
    _compare_storage(t, n, storage[:inside.size], inside, workload.expected[n])


def _compare(workload: Workload, n: int, inside: np.ndarray, expected: np.ndarray) -> None:
    at = workload.n_inputs + n
    _compare_storage(workload.types[at], n, workload.copies[0][at], inside, expected)


def _compare_storage(t: TensorType, n: int, storage: np.ndarray, inside: np.ndarray, expected: np.ndarray) -> None:
    if storage[~inside].any():
        raise WrongError(f"wrong: it spoils the zero halo of output {n}")
    finite = np.abs(expected[np.isfinite(expected)]) if expected.dtype.kind == "f" else np.zeros(0)
    scale = float(finite.max(initial=0.0))
    error = output_error(f"{n}", t.layout.unpack(storage, t.shape), expected, rtol=RTOL, atol=ATOL * scale)
    if not error.passed:
        raise WrongError(f"wrong: output {n} differs by {error.max_abs_error:.3g} (largest value {scale:.3g})")


# -- how fast is it? --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """How to time. Known by these names elsewhere: a sample is the mean of `number` calls, at least min_repeat_ms long
    (number 0: as many as that takes); `repeat` samples at least. Everything ends after timeout_s. threads: that run a
    kernel together, each its part of a phase."""

    number: int = 0
    repeat: int = 3
    min_repeat_ms: float = 4.0
    timeout_s: float = 10.0
    threads: int = 1


Clock = Callable[[], float]


def spare_memory(kernels: Sequence[Kernel], lanes: int = 1) -> list[np.ndarray]:
    """Workspaces and, last, each lane's scratch for whichever of the kernels runs: where memory happens to lie then favours
    none."""
    workspaces = [max(sizes) for sizes in zip_longest(*(k.workspace for k in kernels), fillvalue=0)]
    return [red_zoned(size) for size in (*workspaces, *[max(k.scratch_bytes for k in kernels)] * lanes)]


def caller(
    loaded: LoadedKernel, workload: Workload, spare: Sequence[np.ndarray], lanes: Lanes,
) -> Callable[[int], None]:
    """call(n): n runs of the whole kernel on all lanes, each on the next copy of the weights. spare: of `spare_memory`."""
    repeated = Repeated(loaded, workload.copies, spare[:len(loaded.kernel.workspace)], spare[-lanes.lanes:])
    position = 0

    def call(n: int) -> None:
        nonlocal position
        lanes.run(repeated, n, position)
        position = (position + n) % len(workload.copies)
    return call


def warm_up(call: Callable[[int], None], copies: int, clock: Clock = time.perf_counter) -> None:
    """Runs before any is timed: once on each copy of the weights, which lie in memory where they were just made, and after
    that in a cache or not, as their rotation leaves them; and until the core's clock has risen. WARM_S at most."""
    begun, n = clock(), 0
    while (passed := clock() - begun) < WARM_S and (n < copies or passed < RISEN_S):
        call(1)
        n += 1


def number_for(call: Callable[[int], None], timing: Timing, clock: Clock = time.perf_counter) -> int:
    """How many calls a sample takes."""
    if timing.number:
        return timing.number
    call(1)
    begun = clock()
    call(1)
    once_s = max(clock() - begun, 1e-7)
    return max(1, math.ceil(timing.min_repeat_ms / 1e3 / once_s))


def sample_us(call: Callable[[int], None], number: int, clock: Clock = time.perf_counter) -> float:
    begun = clock()
    call(number)
    return (clock() - begun) / number * 1e6


def time_candidate(
    call: Callable[[int], None], timing: Timing, best_us: float, clock: Clock = time.perf_counter,
) -> tuple[list[float], bool]:
    """(samples, whether it was given up). A hopeless one gets two samples (the first may have met a core that was still
    speeding up); one near the best as many as make it steady, and no longer falling."""
    number = number_for(call, timing, clock)
    samples = [sample_us(call, number, clock)]
    if samples[0] > HOPELESS * best_us:
        samples.append(sample_us(call, number, clock))
        if samples[1] > HOPELESS * best_us:
            return samples, True
    while len(samples) < MOST_SAMPLES:
        first, *more = sorted(samples)
        steady = bool(more) and more[0] <= first * (1 + STEADY) and samples.index(first) < len(samples) - 1
        if len(samples) >= timing.repeat and (steady or first > NEAR * best_us):
            break
        samples.append(sample_us(call, number, clock))
    return samples, False


def interleave(
    calls: Sequence[Callable[[int], None]], timing: Timing, rounds: int, clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Samples of several kernels taken in turns, the first one changing from round to round: what slows the machine for a
    while slows all of them. A round before the first is dropped: it meets cold caches and a slow clock."""
    numbers = [number_for(call, timing, clock) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    for r in range(rounds + 1):
        for k in range(len(calls)):
            n = (r + k) % len(calls)
            samples[n].append(sample_us(calls[n], numbers[n], clock))
    return [taken[1:] for taken in samples]
