"""cache_window: accumulate one chunk of a reduction in registers, between a load and a store of the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import is_

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.create import fresh, nest
from toolchain.te.expr import (
    Compare,
    Expr,
    Index,
    IndexLike,
    Load,
    Reduce,
    Var,
    all_of,
    compare,
    index,
    join,
    parts,
    select,
    variables,
)
from toolchain.te.loop_ir import (
    Block,
    Buffer,
    For,
    If,
    PrimFunc,
    Stmt,
    Update,
    block,
    is_reduction_loop,
    leaves,
    loops,
    reads,
)
from toolchain.te.primitives.compute_at import Interval, box_of
from toolchain.te.primitives.loops import (
    Path,
    loop_at,
    names,
    path_to,
    path_to_loop,
    put,
    refuse_lanes,
    stage_named,
    writes,
)
from toolchain.te.primitives.partition import conjuncts
from toolchain.te.spans import span
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Compute, Tensor


def cache_window(func: PrimFunc, stage: str, loop: str, scope: str) -> tuple[PrimFunc, tuple[Tensor | Var, ...]]:
    """In each iteration of `loop`, keep the part of a reduction's result that it updates in a new tensor in `scope`.

        for k_0: for i_0:                            for k_0: for i_0:
          for i_1: for k_1:                            for i_l: C_local[i_l] = select(k_0 == 0, 0, C[4*i_0 + i_l])
            C[4*i_0 + i_1] += f    init 0     ->       for i_1: for k_1: C_local[i_1] += f
                                                       for i_s: C[4*i_0 + i_s] = C_local[i_s]

    So a reduction runs in chunks while its accumulators stay in registers; `partition(k_0)` peels the first chunk, whose
    window needs no load. Unlike cache_write it comes after the tiling. Returns the tensor (several, if tuples are reduced),
    the load axes, the store axes.
    Called: cache_write in TVM's TensorIR, stage_mem(accum) in Exo.
    Raises ScheduleError: no such loop, the loop holds not exactly the updates of `stage`, or a window without constant size,
    one with gaps between the places that are updated, a vectorized loop around.
    """
    tensor = stage_named(func, stage, "cache_window")
    path = path_to_loop(func, loop, "cache_window")
    refuse_lanes(path, f"the window of {stage}", "cache_window")
    host, body = loop_at(path), func.stages[tensor].body
    group = func.computed_with(tensor)
    updates = [s for s in leaves(host.body) if isinstance(s, Update) and tensor in s.tensors]
    inside = [s for s in leaves(host.body) if writes(s, tensor)]
    whole = len(inside) == len(updates) and not writes(put(path, block()), tensor)
    if not updates or not whole or not isinstance(body, Reduce) or reads(host.body, *group):
        raise ScheduleError(f"cache_window: loop '{loop}' does not hold exactly the updates of {stage}")
    varies = {s.var for s in loops(host.body)}
    box = box_of([u.index for u in updates], tensor.shape, varies, f"cache_window: the updates of {stage} in loop '{loop}'")
    for path_inside in _paths(host.body, updates):
        _refuse_gaps(path_inside, tensor, varies, loop)
    taken = names(func)
    first = all_of(*(
        compare("==", s.var, 0) for s in path if isinstance(s, For) and any(is_reduction_loop(s, u) for u in updates)
    ))
    load, store = (_axes(tensor, func.stages[tensor], box, suffix, taken) for suffix in "ls")
    source, target = (_points(box, axis) for axis in (load, store))
    start: dict[Var, IndexLike] = dict(zip(func.stages[tensor].axis, source))
    extents = tuple(v.extent for v in load)
    starts = parts(substitute(body.init, start))
    definition = Compute(load, join([select(first, v, t[source]) for v, t in zip(starts, group, strict=True)]))
    known = {t.name for t in func.buffers}
    windows = tuple(
        Tensor(fresh(f"{t.name}_{scope.replace('.', '_')}", known), extents, t.dtype, definition) for t in group
    )
    held = join([Load(w, tuple(index(v) for v in store)) for w in windows])
    made = block(
        nest(windows, definition.body, load, load, _inside(source, tensor)),
        _redirect(host.body, tensor, windows, box),
        nest(group, held, store, target, _inside(target, tensor)),
    )
    buffers = {**func.buffers, **{w: Buffer(TensorType.plain(extents, w.dtype), scope) for w in windows}}
    return replace(func, body=put(path, replace(host, body=made)), buffers=buffers), (*windows, *load, *store)


def _paths(stmt: Stmt, updates: Sequence[Update]) -> list[Path]:
    """The way from `stmt` to each of the updates."""
    found = (path_to(stmt, partial(is_, u)) for u in updates)
    return [path for path in found if path is not None]


def _refuse_gaps(path: Path, tensor: Tensor, varies: set[Var], loop: str) -> None:
    """Raises ScheduleError when an update leaves places out between those it stores: the window would store them too."""
    update = path[-1]
    assert isinstance(update, Update)
    at = [index(i) for i in update.index]
    moving = varies & {v for i in at for v in variables(i)}
    gaps = any(not s.dense or s.step > 1 for s in (span(i, varies) for i in at))
    for guard in (c for s in path if isinstance(s, If) for c in conjuncts(s.condition)):
        gaps = gaps or (bool(variables(guard) & moving) and not _is_edge(guard, at, tensor))
    if gaps:
        raise ScheduleError(
            f"cache_window: in loop '{loop}' the updates of {tensor.name} store only some places of a window",
            fix="choose a loop whose inner loops cover a dense part",
        )


def _is_edge(guard: Expr, at: Sequence[Index], tensor: Tensor) -> bool:
    """Whether a guard only says that an index lies in the tensor: the window's own nests have the same one."""
    if not isinstance(guard, Compare):
        return False
    for i, n in zip(at, tensor.shape):
        shift = index(i - guard.index)
        if shift.is_constant and (guard.op, guard.bound + shift.constant) in (("<", n), (">=", 0)):
            return True
    return False


def _axes(tensor: Tensor, definition: Compute, box: Sequence[Interval], suffix: str, taken: set[str]) -> tuple[Var, ...]:
    return tuple(Var(fresh(f"{v.name}_{suffix}", taken), part.width + 1) for v, part in zip(definition.axis, box))


def _points(box: Sequence[Interval], axis: Sequence[Var]) -> tuple[Index, ...]:
    return tuple(index(part.low + v) for part, v in zip(box, axis))


def _inside(at: Sequence[Index], tensor: Tensor) -> Expr:
    return all_of(*(c for i, n in zip(at, tensor.shape) for c in (compare(">=", i, 0), compare("<", i, n))))


def _redirect(stmt: Stmt, tensor: Tensor, windows: tuple[Tensor, ...], box: Sequence[Interval]) -> Stmt:
    """The updates of `tensor` (and of what is reduced with it) go to the windows, relative to their start; those already
    hold the start value."""
    match stmt:
        case Update(tensors, at) if tensor in tensors:
            moved = tuple(index(i - part.low) for i, part in zip(at, box))
            return replace(stmt, tensors=windows, index=moved, init=None)
        case For(body=body) | If(body=body):
            return replace(stmt, body=_redirect(body, tensor, windows, box))
        case Block(stmts):
            return block(*(_redirect(s, tensor, windows, box) for s in stmts))
    return stmt
