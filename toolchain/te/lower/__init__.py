"""Lowering: scheduled loop IR -> loop IR that a code generator only needs to spell. Target-neutral passes, one file each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from toolchain.core.settings import settings
from toolchain.core.target import Target
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.lower.check import Checker
from toolchain.te.lower.contract_fma import contract_fma
from toolchain.te.lower.divide_levels import divide_levels
from toolchain.te.lower.elide_guards import elide_guards
from toolchain.te.lower.factor_lanes import factor_lanes
from toolchain.te.lower.fill_tails import fill_tails
from toolchain.te.lower.flatten_buffers import flatten_buffers
from toolchain.te.lower.lower_intrinsics import lower_intrinsics
from toolchain.te.lower.place_init import place_init
from toolchain.te.lower.vectorize_loops import vectorize_loops
from toolchain.te.lower.verify import verify
from toolchain.te.lower.widen_half import widen_half
from toolchain.te.text import to_text

LoopPass: TypeAlias = Callable[[PrimFunc, Target], PrimFunc]

COMMON: tuple[LoopPass, ...] = (
    factor_lanes,          # first: it tells reductions by their Update
    place_init,            # everything after it sees stores only
    elide_guards,          # before flatten_buffers: it needs the index of each dimension and the layouts
    fill_tails,            # after elide_guards: which tails are stored is known
    flatten_buffers,       # before vectorize_loops: the stride of a lane is known once the layout is
    widen_half,            # before lower_intrinsics: functions exist for float32 and float64 only
    divide_levels,         # before vectorize_loops: constants are written without lanes
    lower_intrinsics,      # before vectorize_loops: expansions are written without lanes
    vectorize_loops,
    contract_fma,          # last: the other passes make products and sums of their own
)

# A fused chain of functions nests some hundred expressions, and every walk takes three Python frames each
sys.setrecursionlimit(max(sys.getrecursionlimit(), 20_000))


def lower(func: PrimFunc, target: Target, extra: tuple[LoopPass, ...] = (), dump: Path | None = None) -> PrimFunc:
    """Run COMMON, then the backend's `extra` passes, verifying after each that changed something, and at the end.

    dump: a folder that gets NN.pass.txt, the text after each pass. TC_DEBUG=2 prints each pass and its time, TC_CHECK=1
    interprets after each pass and compares.
    Raises CodegenError: broken invariants, named with the pass, or what a pass refuses.
    """
    verify(func)
    checker = Checker(func) if settings().check and settings().selects(func.name) else None
    chatty = settings().debug >= 2 and settings().selects(func.name)
    if dump is not None:
        write_dump(dump, 0, "scheduled.txt", to_text(func))
    done: list[str] = []
    steps = (*COMMON, *extra)
    for n, step in enumerate(steps, 1):
        start = time.perf_counter()
        new = step(func, target)
        if chatty:
            changed = "" if new is not func else "  unchanged"
            print(f"{func.name}: {step.__name__} {(time.perf_counter() - start) * 1e6:.0f} us{changed}", file=sys.stderr)
        done.append(step.__name__)
        if new is not func or n == len(steps):
            verify(new, done)
        func = new
        if checker is not None:
            checker.compare(func, step.__name__)
        if dump is not None:
            write_dump(dump, n, f"{step.__name__}.txt", to_text(func))
    return func


def write_dump(folder: Path | None, number: int, name: str, content: str | bytes) -> None:
    """Write `NN.name` below `folder`, when there is one."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:02}.{name}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")


__all__ = ["COMMON", "LoopPass", "lower", "verify", "write_dump"]
