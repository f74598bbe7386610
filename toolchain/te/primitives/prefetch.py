"""prefetch: ask for the cache lines that a later iteration will read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.te.create import fresh
from toolchain.te.expr import Call, Index, IndexLike, Var, const, index
from toolchain.te.loop_ir import Evaluate, For, PrimFunc, Stmt, block
from toolchain.te.primitives.compute_at import boxes_read
from toolchain.te.primitives.loops import Path, loop_at, names, path_to_loop, put, tensor_named
from toolchain.te.substitute import substitute_index

LINE_BYTES = 64


def prefetch(
    func: PrimFunc, tensor: str, loop: str, distance: int, level: int = 1, line_bytes: int = LINE_BYTES, over: str = ""
) -> tuple[PrimFunc, tuple[Var, ...]]:
    """At the head of each iteration of `loop`, prefetch what iteration + `distance` reads of `tensor`, line by line.

        for y: f(X[y + kh, x])     ->     for y:
                                            for ax0: for ax1: prefetch(X[y + 1 + ax0, 16*ax1])
                                            f(X[y + kh, x])

    The dimensions that lie together in storage advance by whole lines. `level`: the cache that gets them, 1 or 2. Addresses
    past the end are harmless: the instruction never faults. Returns the new loops. Called: prefetch in TVM and Halide.

    over: a loop around, whose iterations do not move that place: they share its lines, a few for each, the first ones again
    where iterations are left.

        for t (8): for k: f(W[k])     ->     for t: for k: prefetch(W[k + 32, 16*t]); f(W[k])       W[k] has 8 lines

    Raises ScheduleError: the loop does not read the tensor, or reads no box of constant size; `over` is not around it.
    """
    source = tensor_named(func, tensor, "prefetch")
    path = path_to_loop(func, loop, "prefetch")
    host = loop_at(path)
    if distance < 1:
        raise ScheduleError(f"prefetch: distance {distance}", fix="prefetch at least one iteration ahead")
    box = boxes_read(func, path, (source,), "prefetch")
    ahead: dict[Var, IndexLike] = {host.var: index(host.var + distance)}
    steps = _line(func, source, line_bytes)
    locality = () if level == 1 else (const(4 - level, "int32"),)
    taken = names(func)
    counts = [-(-(part.width + 1) // steps.get(d, 1)) for d, part in enumerate(box)]
    if over:
        axes, places = _shared(_around(path, over), counts, taken)
    else:
        axes = [Var(fresh(f"ax{d}", taken), n) for d, n in enumerate(counts)]
        places = [index(var) for var in axes]
    at = [index(substitute_index(part.low, ahead) + place * steps.get(d, 1))
          for d, (part, place) in enumerate(zip(box, places, strict=True))]
    stmt: Stmt = Evaluate(Call("prefetch", (source[tuple(at)], *locality), source.dtype))
    for var in reversed(axes):
        stmt = For(var, stmt) if var.extent > 1 else stmt
    made = tuple(v for v in axes if v.extent > 1)
    return replace(func, body=put(path, replace(host, body=block(stmt, host.body)))), made


def _around(path: Path, name: str) -> Var:
    """The variable of the loop of that name on the path, its end left out."""
    around = [s.var for s in path[:-1] if isinstance(s, For)]
    if (found := next((v for v in around if v.name == name), None)) is None:
        raise ScheduleError(f"prefetch: '{name}' is no loop around '{loop_at(path).var.name}'",
                            fix=f"pick one of: {', '.join(v.name for v in around) or 'none'}")
    return found


def _shared(over: Var, counts: Sequence[int], taken: set[str]) -> tuple[list[Var], list[Index]]:
    """(the loop of one iteration's lines, their places): the lines of all dimensions as one row, cut into pieces."""
    lines = math.prod(counts)
    each = -(-lines // over.extent)
    var = Var(fresh("ax", taken), each)
    row = index(over * each + (var if each > 1 else 0)) % lines
    places: list[Index] = []
    for n in reversed(counts):
        places.insert(0, index(row % n))
        row = index(row // n)
    return [var], places


def _line(func: PrimFunc, tensor: object, line_bytes: int) -> dict[int, int]:
    """How many elements of each logical dimension share a line: of the innermost one, or of the blocks that fill a line."""
    type = func.buffers[tensor].type  # type: ignore[index]
    d, size = type.layout.dims[-1]
    left = max(1, line_bytes // dtypes.itemsize(type.dtype))
    if not size:
        return {d: left}
    steps: dict[int, int] = {}
    for d, size in reversed(type.layout.dims):
        if not size or left == 1:
            break
        steps[d] = steps.get(d, 1) * min(size, left)
        left = max(1, left // size)
    return steps
