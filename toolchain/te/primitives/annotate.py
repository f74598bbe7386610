"""Primitives that say how a loop runs: vectorize, unroll, parallel, bind, pragma. They change no statement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolchain.core.errors import ScheduleError
from toolchain.te.expr import variables
from toolchain.te.loop_ir import Evaluate, For, ForKind, PrimFunc, leaves
from toolchain.te.primitives.loops import loop_at, path_to_loop, reductions_over, replace_at

THREADS = tuple(f"{kind}.{axis}" for kind in ("blockIdx", "threadIdx") for axis in "xyz")


def _mark(func: PrimFunc, loop: str, kind: ForKind, by: str, thread: str = "") -> tuple[PrimFunc, tuple[()]]:
    path = path_to_loop(func, loop, by)
    old = loop_at(path)
    if old.kind is not ForKind.SERIAL and old.kind is not kind:
        raise ScheduleError(f"{by}: loop '{loop}' is already {old.kind}")
    reduced = [t.name for u in reductions_over(old) for t in u.tensors]
    if reduced and kind not in (ForKind.UNROLLED, ForKind.VECTORIZED):
        raise ScheduleError(
            f"{by}: loop '{loop}' reduces into {reduced[0]}, its iterations are not independent",
            fix="choose a loop over the result, or rfactor first",
        )
    if kind is ForKind.VECTORIZED and (private := _private(old, reduced)):
        raise ScheduleError(
            f"vectorize: {private} is computed inside '{loop}', once for all lanes",
            fix=f"compute {private} outside of '{loop}' and vectorize its own loop",
        )
    return replace_at(func, path, replace(old, kind=kind, thread=thread)), ()


def _private(loop: For, reduced: list[str]) -> str:
    """The first tensor stored inside the loop at places that do not depend on it, and that is no reduction over it."""
    if loop.extent == 1:
        return ""
    for leaf in leaves(loop.body):
        if isinstance(leaf, Evaluate) or leaf.tensor.name in reduced:
            continue
        if not any(loop.var in variables(i) for i in leaf.index):
            return leaf.tensor.name
    return ""


def vectorize(func: PrimFunc, loop: str) -> tuple[PrimFunc, tuple[()]]:
    """`for i in range(n)` -> `for i in vectorized(n)`: its iterations become the lanes of vectors.

    A reduction loop gives one horizontal sum per vector (rfactor first keeps the sums in lanes).
    Called: vectorize in TVM and Halide.
    Raises ScheduleError: no such loop, another kind already, a stage computed inside that has no lanes of its own.
    """
    return _mark(func, loop, ForKind.VECTORIZED, "vectorize")


def unroll(func: PrimFunc, loop: str) -> tuple[PrimFunc, tuple[()]]:
    """`for i in range(n)` -> `for i in unrolled(n)`: the emitter repeats the body; the IR stays rolled.

    Called: unroll in TVM and Halide. Raises ScheduleError: no such loop, another kind already.
    """
    return _mark(func, loop, ForKind.UNROLLED, "unroll")


def parallel(func: PrimFunc, loop: str) -> tuple[PrimFunc, tuple[()]]:
    """`for i in range(n)` -> `for i in parallel(n)`: its iterations are split among the lanes of the thread pool.

    Called: parallel in TVM and Halide. Raises ScheduleError: no such loop, another kind already, a reduction loop.
    """
    return _mark(func, loop, ForKind.PARALLEL, "parallel")


def bind(func: PrimFunc, loop: str, thread: str) -> tuple[PrimFunc, tuple[()]]:
    """`for i in range(n)` -> `for i in blockIdx.x(n)`: iteration i is what the hardware thread i does ("vthread": a virtual
    thread, whose iterations the lowering interleaves).

    Called: bind in TVM, gpu_blocks / gpu_threads in Halide.
    Raises ScheduleError: no such loop, another kind already, a reduction loop, no such thread axis.
    """
    if thread == "vthread":
        return _mark(func, loop, ForKind.VTHREAD, "bind")
    if thread not in THREADS:
        raise ScheduleError(f"bind: no thread axis '{thread}'", fix=f"pick one of: {', '.join(THREADS)}, vthread")
    return _mark(func, loop, ForKind.THREAD_BINDING, "bind", thread)


def pragma(func: PrimFunc, loop: str, key: str, value: Any = True) -> tuple[PrimFunc, tuple[()]]:
    """Attach `key = value` to a loop for a pass or backend that knows it. Called: pragma in TVM."""
    path = path_to_loop(func, loop, "pragma")
    old = loop_at(path)
    kept = tuple((k, v) for k, v in old.pragmas if k != key)
    return replace_at(func, path, replace(old, pragmas=(*kept, (key, value)))), ()
