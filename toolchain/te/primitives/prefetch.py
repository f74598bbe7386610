"""prefetch: ask for the cache lines that a later iteration will read."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.te.create import fresh
from toolchain.te.expr import Call, Index, IndexLike, Var, const, index
from toolchain.te.loop_ir import Evaluate, For, PrimFunc, Stmt, block
from toolchain.te.primitives.compute_at import boxes_read
from toolchain.te.primitives.loops import loop_at, names, path_to_loop, put, tensor_named
from toolchain.te.substitute import substitute_index


def prefetch(
    func: PrimFunc, tensor: str, loop: str, distance: int, level: int = 1, line_bytes: int = 64
) -> tuple[PrimFunc, tuple[Var, ...]]:
    """At the head of each iteration of `loop`, prefetch what iteration + `distance` reads of `tensor`, line by line.

        for y: f(X[y + kh, x])     ->     for y:
                                            for ax0: for ax1: prefetch(X[y + 1 + ax0, 16*ax1])
                                            f(X[y + kh, x])

    The dimensions that lie together in storage advance by whole lines. `level`: the cache that gets them, 1 or 2. Addresses
    past the end are harmless: the instruction never faults. Returns the new loops. Called: prefetch in TVM and Halide.
    Raises ScheduleError: the loop does not read the tensor, or reads no box of constant size.
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
    axes: list[Var] = []
    at: list[Index] = []
    for d, part in enumerate(box):
        stride = steps.get(d, 1)
        var = Var(fresh(f"ax{d}", taken), -(-(part.width + 1) // stride))
        axes.append(var)
        at.append(index(substitute_index(part.low, ahead) + var * stride))
    stmt: Stmt = Evaluate(Call("prefetch", (source[tuple(at)], *locality), source.dtype))
    for var in reversed(axes):
        stmt = For(var, stmt) if var.extent > 1 else stmt
    made = tuple(v for v in axes if v.extent > 1)
    return replace(func, body=put(path, replace(host, body=block(stmt, host.body)))), made


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
