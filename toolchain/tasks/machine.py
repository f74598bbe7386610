"""Step `machine`: how fast this machine multiplies and moves data at best, which a report holds layers against (Williams,
Waterman and Patterson, "Roofline", CACM 2009). Measured with generated kernels, so the ceilings are those of our own code.

    peak     acc[i, j] += a[i, k] * b[k, j]     a register tile as wide as fits, operands in L1, accumulators never stored
    read     acc[j] += x[i, j]                  half of a cache, again and again; main memory: four times the last cache
    copy     y[i] = x[i]                        bytes read + bytes written

Each is the best of ROUNDS, on one thread and on all cores, every core with its own data: other programs
only ever make it slower.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolchain import te
from toolchain.build.task import Input, Result
from toolchain.core.target import Target
from toolchain.kernels.tiling import Tile, fits
from toolchain.report.facts import MachineFacts, MachineSpeed, MemoryLevel, to_json
from toolchain.targets import presets
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.load import LoadedKernel, aligned, load
from toolchain.te.loop_ir import PrimFunc

FACTS_FILE = "machine.json"
ROUNDS = 25                             # milliseconds each: short enough that some are left alone on a busy machine
FLOPS_PER_ROUND = 300_000_000
BYTES_PER_ROUND = 64_000_000
DEPTH = 128                             # of the product: both operands stay in L1
ACCUMULATORS = 8                        # vectors that hide the latency of additions
MEMORY_BYTES = (64 << 20, 1 << 30)      # what stands for main memory: at least, at most


def measure_machine(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """params: threads (0: every CPU this process may run on), host (what tells machines apart, for the key)."""
    facts = machine_facts(presets.target("host"), params["threads"] or len(os.sched_getaffinity(0)))
    (out / FACTS_FILE).write_text(json.dumps(to_json(facts), allow_nan=False), encoding="utf-8")
    return Result("machine", {"peak_gflops": facts.speeds[-1].peak_gflops})


def machine_facts(target: Target, threads: int) -> MachineFacts:
    """Of one thread, and of `threads`."""
    return MachineFacts(tuple(_speed(target, n) for n in sorted({1, threads})))


def _speed(target: Target, threads: int) -> MachineSpeed:
    levels = tuple(
        MemoryLevel(place.name, place.holds_bytes, _read_gb_s(target, place, threads), _copy_gb_s(target, place, threads))
        for place in places(target, threads)
    )
    return MachineSpeed(threads, peak_gflops(target, threads), levels)


# --- where data lies ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Place:
    """A level of memory: how much all threads together can keep there, and what one thread uses to measure it."""

    name: str
    holds_bytes: int
    used_bytes: int


def places(target: Target, threads: int) -> Iterator[Place]:
    """Nearest first: L2 (each core's own), L3 where it is larger than all of those, main memory."""
    inner = target.l2_bytes * threads
    yield Place("L2", inner, target.l2_bytes // 2)
    if target.l3_bytes >= 2 * inner:
        yield Place("L3", target.l3_bytes, max(target.l3_bytes // 2, inner) // threads)
    least, most = MEMORY_BYTES
    yield Place("memory", 0, min(most, max(least, 4 * target.l3_bytes)) // threads)


# --- kernels -----------------------------------------------------------------------------------------------------------

def peak_tile(target: Target) -> Tile:
    """The register tile with the fewest loads per multiply-add."""
    tiles = [t for v in range(1, 7) for m in range(1, target.vector_registers) if fits(t := Tile(1, m, v), target)]
    return min(tiles, key=lambda t: ((t.columns + t.vectors) / t.accumulators, -t.accumulators), default=Tile(1, 1, 1))


def peak_kernel(target: Target, repeats: int) -> PrimFunc:
    """repeats x (rows x DEPTH) @ (DEPTH x columns), summed up in registers."""
    tile, lanes = peak_tile(target), target.lanes()
    a = te.placeholder((DEPTH, tile.columns), name="A")
    b = te.placeholder((DEPTH, tile.vectors * lanes), name="B")
    t, k = te.reduce_axis(repeats, name="t"), te.reduce_axis(DEPTH, name="k")
    c = te.compute((tile.columns, tile.vectors * lanes), lambda i, j: te.sum(a[k, i] * b[k, j], axis=(t, k)), name="C")
    s = te.create_schedule(c)
    acc = s.cache_write(c, "local")
    s[acc].compute_root()
    i, j = s[acc].op.axis
    jv, jl = s[acc].split(j, factor=lanes)
    t, k = s[acc].op.reduce_axis
    ko, ki = s[acc].split(k, factor=4)
    s[acc].reorder(t, ko, ki, i, jv, jl)
    _in_registers(s, c, acc, (ki, i, jv), jl, lanes)
    return s.func


def read_kernel(target: Target, rows: int, repeats: int) -> PrimFunc:
    """Reads (rows, ACCUMULATORS * lanes) float32 `repeats` times into register sums: what reading from that level costs."""
    lanes = target.lanes()
    x = te.placeholder((rows, ACCUMULATORS * lanes), name="X")
    t, i = te.reduce_axis(repeats, name="t"), te.reduce_axis(rows, name="i")
    y = te.compute((ACCUMULATORS * lanes,), lambda j: te.sum(x[i, j], axis=(t, i)), name="Y")
    s = te.create_schedule(y)
    acc = s.cache_write(y, "local")
    s[acc].compute_root()
    (j,) = s[acc].op.axis
    jv, jl = s[acc].split(j, factor=lanes)
    t, i = s[acc].op.reduce_axis
    s[acc].reorder(t, i, jv, jl)
    _in_registers(s, y, acc, (jv,), jl, lanes)
    return s.func


def copy_kernel(target: Target, rows: int) -> PrimFunc:
    """Copies (rows, ACCUMULATORS * lanes) float32: reads and writes of as many bytes."""
    lanes = target.lanes()
    x = te.placeholder((rows, ACCUMULATORS * lanes), name="X")
    y = te.compute(x.shape, lambda i, j: x[i, j], name="Y")
    s = te.create_schedule(y)
    jv, jl = s[y].split(s[y].op.axis[1], factor=lanes)
    s[y].unroll(jv)
    s[y].vectorize(jl)
    return s.func


def _in_registers(
    s: te.Schedule, out: te.Tensor, acc: te.Tensor, unrolled: Sequence[te.Var], lane: te.Var, lanes: int,
) -> None:
    """Unroll and vectorize the sum, and the store of its result."""
    for axis in unrolled:
        s[acc].unroll(axis)
    s[acc].vectorize(lane)
    *rows, j = s[out].op.axis
    jv, jl = s[out].split(j, factor=lanes)
    for axis in (*rows, jv):
        s[out].unroll(axis)
    s[out].vectorize(jl)


# --- timing ------------------------------------------------------------------------------------------------------------

def peak_gflops(target: Target, threads: int) -> float:
    """How many 1e9 fp32 operations a second that many threads do together at best."""
    tile = peak_tile(target)
    flops = 2 * DEPTH * tile.accumulators * target.lanes()
    repeats = max(1, FLOPS_PER_ROUND // flops)
    kernel = compile_kernel(peak_kernel(target, repeats), target)
    calls = []
    for _ in range(threads):
        a, b = aligned(DEPTH * tile.columns, "float32"), aligned(DEPTH * tile.vectors * target.lanes(), "float32")
        a[:], b[:] = 0.5, 0.25                       # zeros would save power, and a clock that depends on it shows more
        calls.append(partial(load(kernel), a, b, aligned(tile.accumulators * target.lanes(), "float32")))
    return round(flops * repeats * threads / best_s(calls) / 1e9, 1)


def _read_gb_s(target: Target, place: Place, threads: int) -> float:
    row = ACCUMULATORS * target.lanes()
    rows = max(1, place.used_bytes // (4 * row))
    repeats = max(1, BYTES_PER_ROUND // (4 * row * rows))
    kernel = compile_kernel(read_kernel(target, rows, repeats), target)
    calls = [partial(load(kernel), _touched(rows * row), aligned(row, "float32")) for _ in range(threads)]
    return round(4 * row * rows * repeats * threads / best_s(calls) / 1e9, 1)


def _copy_gb_s(target: Target, place: Place, threads: int) -> float:
    row = ACCUMULATORS * target.lanes()
    rows = max(1, place.used_bytes // (8 * row))
    repeats = max(1, BYTES_PER_ROUND // (8 * row * rows))
    kernel = compile_kernel(copy_kernel(target, rows), target)
    calls = [partial(_again, load(kernel), _touched(rows * row), _touched(rows * row), repeats) for _ in range(threads)]
    return round(8 * row * rows * repeats * threads / best_s(calls) / 1e9, 1)


def _touched(elements: int) -> Any:
    """Memory that has pages of its own (fresh zeros may all be one page)."""
    array = aligned(elements, "float32")
    array[:] = 1
    return array


def _again(kernel: LoadedKernel, x: Any, y: Any, repeats: int) -> None:
    (task, extent), = kernel.phases
    table = kernel.table((x, y))
    for _ in range(repeats):
        task(table, 0, extent, None)


def best_s(
    calls: Sequence[Callable[[], None]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The shortest time from the first start to the last end of all calls at once, one thread each."""
    begun, ended = [[0.0] * len(calls) for _ in range(rounds)], [[0.0] * len(calls) for _ in range(rounds)]
    together = threading.Barrier(len(calls))

    def run(n: int) -> None:
        for k in range(rounds):
            together.wait()
            begun[k][n] = clock()
            calls[n]()
            ended[k][n] = clock()

    others = [threading.Thread(target=run, args=(n,)) for n in range(1, len(calls))]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    return min(max(e) - min(b) for b, e in zip(begun, ended, strict=True))
