"""Contractions that nobody has written a template for: the generic sketch beside the row sketch they had before.

    python benchmarks/contractions.py                        every case, default schedules
    python benchmarks/contractions.py --trials 40            and the best of so many other schedules
    python benchmarks/contractions.py --only corr,bilinear

Times are of one thread, kernels taken in turns, the shortest of several calls; each kernel's result is compared with the
loops of its definition (in NumPy) first. Ratios count, not times.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from toolchain import te
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.kernels.sketches.rows import rows
from toolchain.kernels.sketches.select import sketch
from toolchain.kernels.sketches.stages import inline_injective
from toolchain.report.statistics import geometric_mean
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import LoadedKernel, aligned_copy, load
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.space import Made, Point, Space

TARGET = host_target(cores=1)
ROUNDS, SLICE_S = 7, 4e-3


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """inputs and result of a definition; equation: the same in NumPy."""

    inputs: Sequence[te.Tensor]
    output: te.Tensor
    reference: Callable[..., np.ndarray]


def einsum(equation: str, **extents: int) -> Case:
    """As ONNX's Einsum is defined: letters of the result are axes, the others are summed over."""
    terms, result = equation.split("->")
    given = [te.placeholder([extents[c] for c in t], name=f"x{n}") for n, t in enumerate(terms.split(","))]
    summed = {c: te.reduce_axis(n, c) for c, n in extents.items() if c not in result}

    def value(*i: te.Var) -> te.Expr:
        at = {**summed, **dict(zip(result, i, strict=True))}
        product, *others = [x[tuple(at[c] for c in t)] for x, t in zip(given, terms.split(","), strict=True)]
        for f in others:
            product = product * f
        return te.sum(product, axis=list(summed.values()))
    out = te.compute([extents[c] for c in result], value, name="y")
    return Case(given, out, lambda *x: np.einsum(equation, *x, optimize=True))


def correlation(c: int, h: int, w: int, reach: int) -> Case:
    """A correlation layer (FlowNet): every place with every shift of the other image."""
    n, k = 2 * reach + 1, te.reduce_axis(c, "c")
    a, b = te.placeholder((c, h, w), name="a"), te.placeholder((c, h + 2 * reach, w + 2 * reach), name="b")
    out = te.compute((n, n, h, w), lambda p, q, y, x: te.sum(a[k, y, x] * b[k, y + p, x + q], axis=k), name="y")

    def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(b, (h, w), (1, 2))
        return np.einsum("cyx,cpqyx->pqyx", a, windows)
    return Case((a, b), out, reference)


def conv1d(n: int, channels: int, outputs: int, width: int, taps: int, dilation: int = 1) -> Case:
    """A dilated one-dimensional convolution with ReLU behind it, as people write it in te."""
    reach = dilation * (taps - 1)
    x = te.placeholder((n, channels, width + reach), name="x")
    w = te.placeholder((outputs, channels, taps), name="w")
    c, k = te.reduce_axis(channels, "c"), te.reduce_axis(taps, "k")
    total = te.compute((n, outputs, width), lambda b, o, i: te.sum(x[b, c, i + dilation * k] * w[o, c, k], axis=[c, k]),
                       name="total")
    out = te.compute((n, outputs, width), lambda b, o, i: te.select(total[b, o, i] > 0.0, total[b, o, i], 0.0), name="y")

    def reference(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, reach + 1, 2)[..., ::dilation]
        return np.maximum(np.einsum("bcik,ock->boi", windows, w, optimize=True), 0)
    return Case((x, w), out, reference)


def distances(m: int, n: int, d: int) -> Case:
    """Squared distances of all pairs of points."""
    a, b, k = te.placeholder((m, d), name="a"), te.placeholder((n, d), name="b"), te.reduce_axis(d, "k")
    out = te.compute((m, n), lambda i, j: te.sum((a[i, k] - b[j, k]) * (a[i, k] - b[j, k]), axis=k), name="y")
    return Case((a, b), out, lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1))


def max_plus(m: int, n: int, d: int) -> Case:
    """A product of the tropical semiring: longest paths, Viterbi."""
    a, b, k = te.placeholder((m, d), name="a"), te.placeholder((d, n), name="b"), te.reduce_axis(d, "k")
    out = te.compute((m, n), lambda i, j: te.max(a[i, k] + b[k, j], axis=k), name="y")
    return Case((a, b), out, lambda a, b: (a[:, :, None] + b[None]).max(1))


CASES: dict[str, Callable[[], Case]] = {
    "product": lambda: einsum("ik,kj->ij", i=384, j=384, k=384),
    "product of rows": lambda: einsum("ik,jk->ij", i=384, j=384, k=384),
    "first transposed": lambda: einsum("ki,kj->ij", i=384, j=384, k=384),
    "tensors": lambda: einsum("abcd,bde->ace", a=8, b=16, c=64, d=32, e=64),
    "tensors, far apart": lambda: einsum("abcd,ebd->ace", a=8, b=16, c=64, d=32, e=64),
    "attention scores": lambda: einsum("bqhd,bkhd->bhqk", b=1, h=8, q=128, k=128, d=64),
    "bilinear": lambda: einsum("ni,ij,nj->n", n=64, i=128, j=128),
    "bilinear, outputs": lambda: einsum("ni,oij,nj->no", n=32, i=64, j=64, o=32),
    "three operands": lambda: einsum("ia,ja,ka->ijk", i=48, j=48, k=48, a=32),
    "grouped": lambda: einsum("ngi,gio->ngo", n=128, g=8, i=48, o=48),
    "correlation": lambda: correlation(64, 32, 48, 4),
    "conv1d": lambda: conv1d(4, 64, 64, 400, 5),
    "conv1d, dilated": lambda: conv1d(2, 32, 48, 1000, 3, 4),
    "distances": lambda: distances(512, 256, 32),
    "max-plus": lambda: max_plus(256, 256, 256),
}


def scheduled(case: Case, how: Callable[[te.Schedule], None]) -> te.Schedule:
    (out,), given = te.collapse([case.output], list(case.inputs))
    s = te.create_schedule(out, inputs=given)
    how(s)
    return s


def before(s: te.Schedule) -> None:
    """The schedule of reductions that no other sketch knows."""
    inline_injective(s)
    rows(s, TARGET, Choices())


def built(
    case: Case, how: Callable[[te.Schedule], None], arrays: Sequence[np.ndarray], want: np.ndarray,
) -> Callable[[], None]:
    """A kernel to call, whose result has been compared."""
    kernel = load(compile_kernel(scheduled(case, how).func, TARGET))
    result = aligned_copy(np.zeros_like(want))
    _call(kernel, arrays, result)
    np.testing.assert_allclose(result, want, rtol=1e-3, atol=1e-3 * abs(want).max())
    return lambda: _call(kernel, arrays, result)


def _call(kernel: LoadedKernel, arrays: Sequence[np.ndarray], result: np.ndarray) -> None:
    kernel(*arrays, result)


def in_turns(calls: Sequence[Callable[[], None]], rounds: int = ROUNDS) -> list[float]:
    """Microseconds per call of each, the shortest slice of several."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for n, call in enumerate(calls):
            count, begun = 0, time.perf_counter()
            while (passed := time.perf_counter() - begun) < SLICE_S:
                call()
                count += 1
            best[n] = min(best[n], passed / count * 1e6)
    return best


def space(case: Case) -> Space:
    """All schedules that the sketch may give."""
    def program(choices: Choices) -> Made:
        return Made(str(scheduled(case, lambda s: sketch(s, TARGET, choices))))
    return Space(program)


def searched(case: Case, arrays: Sequence[np.ndarray], want: np.ndarray, trials: int) -> Point:
    """The fastest of some schedules by chance and of neighbours of the best so far, in turns."""
    s, rng = space(case), random.Random(0)
    times: dict[Point, float] = {}

    def best() -> Point:
        return min(times, key=times.__getitem__)
    ahead = [s.default]
    for n in range(trials):
        point = ahead.pop() if ahead else s.sample(rng)
        if not ahead and n % 2:
            ahead = [p for p in s.neighbours(best()) if p not in times and not p.refused][:4]
        if point in times or point.refused:
            continue
        try:
            call = built(case, lambda t, p=point: sketch(t, TARGET, Choices(p.answers)), arrays, want)  # type: ignore[misc]
            times[point] = in_turns([call], 2)[0]
        except (ScheduleError, CodegenError):
            times[point] = float("inf")
    return best()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names or how they begin, by commas")
    parser.add_argument("--trials", type=int, default=0)
    a = parser.parse_args()
    chosen = [name for name in CASES if name.startswith(tuple(a.only.split(",")))]
    table = Table("contraction", "row sketch", "default", "gain", *(["tuned", "over default"] if a.trials else []))
    gains, more = [], []
    for name in chosen:
        case = CASES[name]()
        rng = np.random.default_rng(0)
        arrays = [aligned_copy(rng.uniform(-1, 1, x.shape).astype(np.float32)) for x in case.inputs]
        want = np.ascontiguousarray(case.reference(*arrays), np.float32)
        ways = [before, lambda s: sketch(s, TARGET, Choices())]
        if a.trials:
            answers = searched(case, arrays, want, a.trials).answers
            ways.append(lambda s, given=answers: sketch(s, TARGET, Choices(given)))  # type: ignore[misc]
        calls = [built(case, way, arrays, want) for way in ways]
        times = in_turns(calls)
        gains.append(times[0] / times[1])
        row = [name, f"{times[0]:.1f} us", f"{times[1]:.1f} us", f"{gains[-1]:.2f}"]
        if a.trials:
            more.append(times[1] / times[2])
            row += [f"{times[2]:.1f} us", f"{more[-1]:.2f}"]
        table.add_row(*row)
    screen = Console(width=120)
    screen.print(table)
    screen.print(f"geometric mean: default {geometric_mean(gains):.2f}"
                 + (f", tuned over default {geometric_mean(more):.2f}" if more else ""), highlight=False)


if __name__ == "__main__":
    main()
