"""compute_at: compute a stage inside a loop of its consumer, just the part that is needed there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.create import bind_definition, fresh, nest
from toolchain.te.expr import (
    Dynamic,
    Expr,
    FloorDiv,
    FloorMod,
    Index,
    Load,
    Var,
    all_of,
    compare,
    distinct,
    index,
    variables,
)
from toolchain.te.loop_ir import (
    Block,
    For,
    ForKind,
    If,
    PrimFunc,
    Stmt,
    Together,
    Update,
    block,
    is_reduction_loop,
    leaves,
    loops,
    walk_statements,
)
from toolchain.te.primitives.loops import Path, loop_at, names, path_to_loop, put, refuse_lanes, root_nest, stage_named
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Interval:
    """The values low, low+1, ..., low+width of an index inside a loop; `low` mentions only variables outside."""

    low: Index
    width: int


def compute_at(func: PrimFunc, stage: str, loop: str) -> tuple[PrimFunc, tuple[Var, ...]]:
    """Compute, in each iteration of `loop`, the box of `stage` that this iteration reads.

        for i: P[i] = f(i)                          for i_0 in range(4):
        for i_0 in range(4):                          for i in range(6):
          for i_1 in range(4):                ->        if 4*i_0 + i < n: P[i] = f(4*i_0 + i)
            C[4*i_0 + i_1] = P[4*i_0 + i_1]           for i_1 in range(4):
                           + P[4*i_0 + i_1 + 2]         C[4*i_0 + i_1] = P[i_1] + P[i_1 + 2]

    The nest is regenerated from the te definition over the box; nothing is moved. Per dimension the box starts at the
    part of the read index that is fixed inside the loop and is as long as what varies; storage shrinks to it. A box that
    may leave the domain gets a guard. Which loops count as fixed also depends on the scope of `stage`: loops bound to
    threads vary for `shared`, those bound to blocks too for `global`.

    Tensors that are computed together move together, with one box. Returns the new axes, spatial then reduction. Consumers
    move before producers; move first, tile after.
    Called: compute_at in TVM and Halide.
    Raises ScheduleError: an output, a stage with steps, a reader outside `loop`, a box without constant size,
    a vectorized loop.
    """
    tensor = stage_named(func, stage, "compute_at")
    group = func.computed_with(tensor)
    if outputs := [t.name for t in group if t in func.params]:
        raise ScheduleError(f"compute_at: {outputs[0]} is an output of {func.name}", fix="cache_write it and move that")
    old = root_nest(func, tensor, "compute_at")
    body = put((func.body, old), None) if func.body is not old else block()
    func = replace(func, body=body)
    path = path_to_loop(func, loop, "compute_at")
    refuse_lanes(path, stage, "compute_at")
    host = loop_at(path)
    _refuse_late_start(path, group)
    box = boxes_read(func, path, group, "compute_at", everywhere=True)
    definition, taken = func.stages[tensor], names(func)
    axis = tuple(Var(fresh(v.name, taken), part.width + 1) for v, part in zip(definition.axis, box))
    reduce_axis = {v: Var(fresh(v.name, taken), v.extent) for v in definition.reduce_axis}
    at = [index(part.low + v) for part, v in zip(box, axis)]
    guard = all_of(*(c for i, n in zip(at, tensor.shape) for c in (compare(">=", i, 0), compare("<", i, n))))
    value = bind_definition(definition, dict(zip(definition.axis, at)), reduce_axis)
    made = nest(group, value, axis, axis, guard)
    readers = _rebase(host.body, group, [part.low for part in box])
    extents = tuple(v.extent for v in axis)
    buffers = dict(func.buffers)
    for t in group:
        old_type = buffers[t].type
        buffers[t] = buffers[t].with_type(TensorType(extents, old_type.dtype, old_type.layout))
    func = replace(func, body=put(path, replace(host, body=block(made, readers))), buffers=buffers)
    return func, (*axis, *reduce_axis.values())


def _refuse_late_start(path: Path, group: Sequence[Tensor]) -> None:
    """Raises ScheduleError when a reduction over a loop of `path` starts from the stage: it does so before that loop."""
    tensor = group[0]
    for update in leaves(loop_at(path).body):
        if not isinstance(update, Update) or update.init is None or not _reads_of(update.init, group):
            continue
        for loop in path:
            if isinstance(loop, For) and is_reduction_loop(loop, update):
                raise ScheduleError(
                    f"compute_at: {update.tensor.name} starts from {tensor.name}, before its reduction loop "
                    f"'{loop.var.name}'",
                    fix=f"choose a loop outside of '{loop.var.name}'",
                )


def boxes_read(
    func: PrimFunc, path: Path, tensors: Sequence[Tensor], by: str, everywhere: bool = False
) -> list[Interval]:
    """Per dimension, what is read of `tensors` (of one shape) in one iteration of the loop at the end of `path`.

    `everywhere`: refuse when somebody outside the loop reads it too.
    """
    host = loop_at(path)
    tensor = tensors[0]
    reads = _reads_of(host.body, tensors)
    fix = "choose a loop around all its readers"
    if not reads:
        raise ScheduleError(f"{by}: loop '{host.var.name}' does not read {tensor.name}", fix=fix)
    if everywhere and len(reads) != len(_reads_of(func.body, tensors)):
        raise ScheduleError(f"{by}: {tensor.name} is also read outside loop '{host.var.name}'", fix=fix)
    scopes = {func.buffers[t].scope for t in tensors}
    if len(scopes) > 1:
        raise ScheduleError(f"{by}: {tensor.name} and what is computed with it are in {' and '.join(sorted(scopes))}",
                            fix="set_scope after compute_at")
    (scope,) = scopes
    varies = {s.var for s in path if isinstance(s, For) and _is_range(s, scope)} | {s.var for s in loops(host.body)}
    what = f"{by}: the readers of {tensor.name} in loop '{host.var.name}'"
    return box_of([load.index for load in reads], tensor.shape, varies, what)


def box_of(points: Sequence[Sequence[Expr]], shape: Sequence[int], varies: set[Var], what: str) -> list[Interval]:
    """Per dimension, the interval around all `points` while the variables in `varies` run. `what` starts the refusal."""
    box = []
    for d, extent in enumerate(shape):
        union = _union([interval(index(at[d]), varies) for at in points])
        if union is None:
            raise ScheduleError(
                f"{what} need parts of dimension {d} without a constant distance", fix="choose an outer loop"
            )
        box.append(_clip(union, extent))
    return box


def _is_range(loop: For, scope: str) -> bool:
    """Whether one copy of a buffer in `scope` serves all iterations of this loop around it."""
    if loop.kind is ForKind.VTHREAD:
        return scope in ("shared", "global")
    if loop.kind is not ForKind.THREAD_BINDING:
        return False
    return scope == "global" or (scope == "shared" and loop.thread.startswith("threadIdx"))


def _reads_of(node: Stmt | Expr, tensors: Sequence[Tensor]) -> list[Load]:
    """Its loads, statement by statement: of a part that one statement holds several times, once."""
    found: list[Load] = []
    for s in (node,) if isinstance(node, Expr) else walk_statements(node):
        if not isinstance(s, For | Block | Together):
            own = distinct(s.condition if isinstance(s, If) else s)
            found += [n for n in own if isinstance(n, Load) and n.tensor in tensors]
    return found


def interval(at: Index, varies: set[Var]) -> Interval:
    """What an index covers while the variables in `varies` run and all others stand still."""
    low, width = Index((), at.constant), 0
    for atom, c in at.terms:
        part = _atom_interval(Index(((atom, 1),)), varies)
        start = part.low if c > 0 else part.low + part.width
        low, width = low + start * c, width + abs(c) * part.width  # type: ignore[assignment]
    return Interval(low, width)


def _atom_interval(at: Index, varies: set[Var]) -> Interval:
    used = variables(at)
    if not used & varies:
        return Interval(at, 0)
    ((atom, _),) = at.terms
    low, high = at.range()
    everything = Interval(Index((), low), high - low)
    if used <= varies or isinstance(atom, Var | Dynamic):
        return everything
    inner = interval(atom.index, varies)
    step = math.gcd(atom.divisor, *(c for _, c in inner.low.terms))
    last = atom.divisor - step + inner.low.constant % step + inner.width    # the furthest offset into a block of k
    if isinstance(atom, FloorDiv):
        return Interval(index(inner.low // atom.divisor), last // atom.divisor)
    if isinstance(atom, FloorMod) and last < atom.divisor:
        return Interval(index(inner.low % atom.divisor), inner.width)
    return everything


def _union(parts: Sequence[Interval]) -> Interval | None:
    """The smallest interval around all; None when their starts differ by more than a constant."""
    first = parts[0]
    starts: list[int] = []
    for part in parts:
        difference = index(part.low - first.low)
        if not difference.is_constant:
            return None
        starts.append(difference.constant)
    low = min(starts)
    high = max(start + part.width for start, part in zip(starts, parts))
    return Interval(index(first.low + low), high - low)


def _clip(part: Interval, extent: int) -> Interval:
    """Drop what is surely outside [0, extent); a box as long as the dimension becomes the whole dimension."""
    if part.width + 1 >= extent:
        return Interval(Index(), extent - 1)
    if part.low.is_constant:
        low = min(max(part.low.constant, 0), extent - 1)
        high = max(min(part.low.constant + part.width, extent - 1), low)
        return Interval(Index((), low), high - low)
    return part


def _rebase(stmt: Stmt, tensors: Sequence[Tensor], low: Iterable[Index]) -> Stmt:
    """Make the reads of `tensors` relative to the start of their box."""
    starts = tuple(low)
    if all(start == Index() for start in starts):
        return stmt

    def rule(load: Load) -> Expr | None:
        if load.tensor not in tensors:
            return None
        return replace(load, index=tuple(index(i - start) for i, start in zip(load.index, starts)))

    return rewrite_loads(stmt, rule)  # type: ignore[no-any-return]


__all__ = ["Interval", "compute_at", "interval"]
