"""Random schedules: any primitives in any order are refused, or compute the same interpreted, lowered and compiled.

    python -m tests.fuzz.schedules --count 5000 --seed 1

The compiled kernel's phases run in pieces, in random order, with lane scratch that holds nothing from before.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import toolchain.te as te
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.core.target import Target
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.load import aligned, load
from toolchain.te.loop_ir import For, loops
from toolchain.te.lower import lower

from .stack import TARGETS

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """A definition and its meaning; numbers are small integers, so that every order of a sum is exact."""

    output: te.Tensor | tuple[te.Tensor, ...]
    arrays: Arrays
    want: np.ndarray | tuple[np.ndarray, ...]

    def check(self, got: Arrays, stage: str) -> None:
        outputs, wants = (x if isinstance(x, tuple) else (x,) for x in (self.output, self.want))
        for t, want in zip(outputs, wants, strict=True):
            np.testing.assert_array_equal(got[t.name], want, f"{stage}: {t.name}")


def _numbers(rng: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.getrandbits(32)).integers(-4, 5, shape).astype(np.float32)


def matmul(r: random.Random) -> Work:
    m, n, k = (r.randint(1, 9) for _ in range(3))
    a, b = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    kk = te.reduce_axis(k, "k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, kk] * b[kk, j], axis=kk), name="C")
    x, y = _numbers(r, m, k), _numbers(r, k, n)
    return Work(c, {"A": x, "B": y}, x @ y)


def conv(r: random.Random) -> Work:
    """With padding, a bias the sum starts from, and relu."""
    c, o, h, w, k, s, p = (r.randint(low, high) for low, high in ((1, 3), (1, 5), (3, 6), (3, 6), (1, 3), (1, 2), (0, 1)))
    x, f, b = (te.placeholder(shape, name=name) for name, shape in (("X", (c, h, w)), ("W", (o, c, k, k)), ("B", (o,))))
    oh, ow = (h + 2 * p - k) // s + 1, (w + 2 * p - k) // s + 1
    ic, kh, kw = te.reduce_axis(c, "ic"), te.reduce_axis(k, "kh"), te.reduce_axis(k, "kw")

    def value(n: te.Var, i: te.Var, j: te.Var) -> te.Expr:
        y, z = i * s + kh - p, j * s + kw - p
        padded = te.select(te.all(y >= 0, y < h, z >= 0, z < w), x[ic, y, z], 0.0)
        return te.sum(padded * f[n, ic, kh, kw], axis=(ic, kh, kw), init=b[n])

    y = te.compute((o, oh, ow), value, name="Y")
    out = te.compute((o, oh, ow), lambda n, i, j: te.maximum(y[n, i, j], 0.0), name="R")
    image, weight, bias = _numbers(r, c, h, w), _numbers(r, o, c, k, k), _numbers(r, o)
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(image, ((0, 0), (p, p), (p, p))), (k, k), (1, 2))[:, ::s, ::s]
    want = np.maximum(np.einsum("cyxhw,ochw->oyx", seen, weight) + bias[:, None, None], 0).astype(np.float32)
    return Work(out, {"X": image, "W": weight, "B": bias}, want)


def pool(r: random.Random) -> Work:
    h, k, s = r.randint(4, 8), r.randint(1, 3), r.randint(1, 2)
    x = te.placeholder((2, h), name="X")
    n, a = (h + 2 - k) // s + 1, te.reduce_axis(k, "a")

    def value(c: te.Var, i: te.Var) -> te.Expr:
        at = i * s + a - 1
        return te.max(te.select(te.all(at >= 0, at < h), x[c, at], -100.0), axis=a)

    y = te.compute((2, n), value, name="Y")
    image = _numbers(r, 2, h)
    seen = np.lib.stride_tricks.sliding_window_view(np.pad(image, ((0, 0), (1, 1)), constant_values=-100), k, 1)
    return Work(y, {"X": image}, seen[:, ::s].max(-1))


def rows(r: random.Random) -> Work:
    """The stages of a softmax, exact."""
    n, m = r.randint(1, 6), r.randint(1, 18)
    x, k, k2 = te.placeholder((n, m), name="X"), te.reduce_axis(m, "k"), te.reduce_axis(m, "k2")
    top = te.compute((n,), lambda i: te.max(x[i, k], axis=k), name="M")
    e = te.compute((n, m), lambda i, j: x[i, j] - top[i], name="E")
    total = te.compute((n,), lambda i: te.sum(e[i, k2], axis=k2), name="S")
    out = te.compute((n, m), lambda i, j: e[i, j] + total[i], name="D")
    values = _numbers(r, n, m)
    below = values - values.max(1, keepdims=True)
    return Work(out, {"X": values}, below + below.sum(1, keepdims=True))


def moves(r: random.Random) -> Work:
    """A transposition by division and remainder, and what is appended to it."""
    n, m, more = r.randint(1, 6), r.randint(1, 6), r.randint(1, 5)
    x = te.placeholder((n, m), name="X")
    p = te.compute((m * n,), lambda i: x[i % n, i // n] * 2.0, name="P")
    out = te.compute((m * n + more,), lambda i: te.select(te.index(i) < m * n, p[te.index(i) % (m * n)], 1.0), name="D")
    values = _numbers(r, n, m)
    return Work(out, {"X": values}, np.concatenate([values.T.reshape(-1) * 2, np.ones(more, np.float32)]))


def _first_largest(x: tuple, y: tuple) -> tuple:
    """Of (value, position), whichever order they come in."""
    better = te.any(x[0] > y[0], te.all(x[0].equal(y[0]), x[1] < y[1]))
    return te.select(better, x[0], y[0]), te.select(better, x[1], y[1])


ARGMAX = te.comm_reducer(_first_largest, lambda value, at: (te.min_value(value), te.max_value(at)), name="argmax")
RANGE = te.comm_reducer(lambda x, y: (te.minimum(x[0], y[0]), te.maximum(x[1], y[1]), x[2] + y[2]),
                        lambda low, high, total: (te.max_value(low), te.min_value(high), te.const(0, total)), name="range")


def best(r: random.Random) -> Work:
    """The largest element of each row and where it stands: both, or the position alone."""
    n, m = r.randint(1, 6), r.randint(1, 20)
    x, k = te.placeholder((n, m), name="X"), te.reduce_axis(m, "k")
    outputs = te.compute((n,), lambda i: ARGMAX((x[i, k], k), axis=k), name="B")
    values = _numbers(r, n, m)
    want = values.max(1), values.argmax(1)
    chosen = r.choice((outputs, outputs[1:]))
    return Work(chosen, {"X": values}, want[2 - len(chosen):])


def span(r: random.Random) -> Work:
    """Least, largest and sum over two axes at once, of columns, and what is made of them."""
    a, b, n = r.randint(1, 4), r.randint(1, 7), r.randint(1, 18)
    x, k, q = te.placeholder((a, n, b), name="X"), te.reduce_axis(a, "k"), te.reduce_axis(b, "q")

    def value(i: te.Var) -> te.Expr:
        here = x[k, i, q]
        return RANGE((here, here * 2.0, here.astype("int32")), axis=(k, q))

    low, high, total = te.compute((n,), value, name="R")
    out = te.compute((n,), lambda i: (high[i] - low[i]) * 100.0 + total[i].astype("float32"), name="D")
    values = _numbers(r, a, n, b)
    return Work(out, {"X": values}, (values.max((0, 2)) * 2 - values.min((0, 2))) * 100 + values.sum((0, 2)))


WORKS: tuple[Callable[[random.Random], Work], ...] = (matmul, conv, pool, rows, moves, best, span)
STEPS = ("split", "split", "split", "split", "fuse", "reorder", "reorder", "vectorize", "vectorize", "unroll", "parallel",
         "partition", "partition", "compute_at", "compute_at", "cache_write", "cache_read", "rfactor", "compute_inline",
         "prefetch", "decompose_reduction", "cache_window", "set_scope", "set_scope", "compute_with", "compute_with",
         "reuse_buffer")


def random_step(r: random.Random, func: te.PrimFunc) -> tuple:
    """A primitive with arguments that name things there are; many are refused."""
    nest = list(loops(func.body))
    loop, tensor, name = r.choice(nest), r.choice([t.name for t in func.buffers]), r.choice(STEPS)
    match name:
        case "split":
            return name, loop.var.name, r.choice((1, 2, 3, 4, 8, loop.extent, loop.extent + 1))
        case "fuse":
            return name, loop.var.name, loop.body.var.name if isinstance(loop.body, For) else "none"
        case "reorder":
            return name, *r.sample([s.var.name for s in nest], min(len(nest), r.randint(2, 4)))
        case "compute_at" | "rfactor":
            return name, tensor, loop.var.name
        case "cache_write" | "cache_read" | "set_scope":
            return name, tensor, r.choice(("local", "lane", "global"))
        case "compute_inline" | "decompose_reduction":
            return name, tensor
        case "cache_window":
            return name, tensor, loop.var.name, r.choice(("local", "lane"))
        case "prefetch":
            return name, tensor, loop.var.name, 1
        case "compute_with":
            return name, loop.var.name, r.choice(nest).var.name
        case "reuse_buffer":
            return name, tensor, r.choice([t.name for t in func.outputs])
    return name, loop.var.name


def random_schedule(seed: int) -> tuple[Work, te.Schedule, Target]:
    r = random.Random(seed)
    work = r.choice(WORKS)(r)
    s = te.create_schedule(work.output)
    for _ in range(r.randint(1, 12)):
        if any(True for _ in loops(s.func.body)):
            with suppress(ScheduleError):
                s.apply(*random_step(r, s.func))
    return work, s, r.choice(TARGETS)


def check(seed: int) -> str:
    """"passed", "refused: why", or an AssertionError."""
    work, s, target = random_schedule(seed)
    work.check(te.interpret(s.func, work.arrays), "scheduled")
    try:
        lowered = lower(s.func, target)
        work.check(te.interpret(lowered, work.arrays), "lowered")
        work.check(run_in_pieces(s.func, target, work.arrays, random.Random(seed)), "compiled")
    except CodegenError as error:
        return f"refused: {error.what}"
    return "passed"


def run_in_pieces(func: te.PrimFunc, target: Target, arrays: Arrays, r: random.Random) -> dict[str, np.ndarray]:
    kernel = load(compile_kernel(func, target))
    types = {t.name: func.buffers[t].type for t in func.params}
    storage = {n: aligned(t.layout.size(t.shape), to_numpy(t.dtype)) for n, t in types.items()}
    for name, buffer in storage.items():
        unwritten = np.nan if buffer.dtype.kind == "f" else 0x5A
        buffer[:] = types[name].layout.pack(arrays[name]).reshape(-1) if name in arrays else unwritten
    for workspace in kernel._workspace:
        workspace[:] = 0xFF
    table = kernel.table([storage[t.name] for t in func.params])
    for task, extent in kernel.phases:
        cuts = sorted({0, extent, *(r.randint(0, extent) for _ in range(3))})
        for low, high in r.sample(pieces := list(pairwise(cuts)), len(pieces)):
            kernel._scratch[:] = 0xFF
            task(table, low, high, kernel._scratch.ctypes.data)
    return {t.name: types[t.name].layout.unpack(storage[t.name], types[t.name].shape) for t in func.outputs}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.schedules", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    args = parser.parse_args()
    found, drawn = Counter[str](), Counter[str]()
    for seed in range(args.seed, args.seed + args.count):
        try:
            found[check(seed).split(":")[0]] += 1
        except Exception as error:          # a wrong result, or a crash
            found["failed"] += 1
            steps = ", ".join(map(str, random_schedule(seed)[1].steps))
            print(f"{seed}: {type(error).__name__}: {str(error)[:300]}\n  {steps}", flush=True)
        drawn.update(step.name for step in random_schedule(seed)[1].steps)
        if seed % 500 == 0:
            print(f"{seed}: {dict(found)}", file=sys.stderr, flush=True)
    print(dict(found))
    print("primitives: " + ", ".join(f"{name} {n}" for name, n in drawn.most_common()))
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
