"""cache_write and cache_read: a stage's result, or what it reads, goes through a tensor in another scope."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.create import bind_definition, fresh, nest
from toolchain.te.expr import Expr, Load, Var, join
from toolchain.te.loop_ir import Block, Buffer, For, If, PrimFunc, Stmt, Store, Together, Update, block, statements
from toolchain.te.primitives.loops import names, put, restage, root_nest, stage_named, tensor_named, writes
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Compute, Tensor


def cache_write(func: PrimFunc, stage: str, scope: str) -> tuple[PrimFunc, tuple[Tensor, ...]]:
    """Compute a stage into a new tensor in `scope`; the stage itself becomes the copy from it.

        for i: for k: C[i] += f(i, k)     ->     for i_c: for k: C_local[i_c] += f(i_c, k)
                                                 for i: C[i] = C_local[i]

    The new tensor's axes are named i_c and it keeps the reduction axes. Returns it (with those computed together with it);
    move it with compute_at.
    Called: cache_write in TVM, stage_mem in Exo. Raises ScheduleError: an input, or a stage that already has steps.
    """
    tensor = stage_named(func, stage, "cache_write")
    old = root_nest(func, tensor, "cache_write")
    definition, taken = func.stages[tensor], names(func)
    group = func.computed_with(tensor)
    axis = tuple(Var(fresh(f"{v.name}_c", taken), v.extent) for v in definition.axis)
    moved = replace(definition, axis=axis, body=bind_definition(definition, dict(zip(definition.axis, axis))))
    cached = tuple(_new_tensor(func, t, scope, moved) for t in group)
    body = join([c[definition.axis] for c in cached])
    copy = Compute(definition.axis, body, definition.tag, definition.attrs)
    nests = block(nest(cached, moved.body, axis, axis), nest(group, copy.body, copy.axis, copy.axis))
    buffers = {**func.buffers, **{c: Buffer(TensorType.plain(c.shape, c.dtype), scope) for c in cached}}
    stages = restage(func, group, cached, moved, copy)
    return replace(func, body=_swap(func.body, old, nests), stages=stages, buffers=buffers), cached


def cache_read(func: PrimFunc, tensor: str, scope: str, *readers: str) -> tuple[PrimFunc, tuple[Tensor]]:
    """Let `readers` read a tensor through a copy in `scope`.

        for i: C[i] = f(A[i])      ->      for ax0: A_shared[ax0] = A[ax0]
                                           for i: C[i] = f(A_shared[i])

    Returns the copy; move it with compute_at. Called: cache_read in TVM, stage_mem in Exo.
    Raises ScheduleError: no such tensor, a reader that does not read it, a tensor that was moved already.
    """
    source = tensor_named(func, tensor, "cache_read")
    readers_now = [t for t, d in func.stages.items() if source in d.input_tensors]
    chosen = [t for r in readers for t in func.computed_with(stage_named(func, r, "cache_read"))] or readers_now
    if unread := [r.name for r in chosen if r not in readers_now]:
        raise ScheduleError(f"cache_read: {unread[0]} does not read {tensor}")
    if not chosen:
        raise ScheduleError(f"cache_read: nobody reads {tensor}")
    roots = statements(func.body)
    first = next(n for n, s in enumerate(roots) if any(writes(s, r) for r in chosen))
    moved = source in func.stages and not any(writes(s, source) for s in roots[:first])
    if moved or func.buffers[source].type.shape != source.shape:
        raise ScheduleError(f"cache_read: {tensor} was moved already", fix="call cache_read before compute_at")
    taken = names(func)
    axis = tuple(Var(fresh(f"ax{d}", taken), n) for d, n in enumerate(source.shape))
    definition = Compute(axis, source[axis])
    copy = _new_tensor(func, source, scope, definition)

    def rule(load: Load) -> Expr | None:
        return replace(load, tensor=copy) if load.tensor is source else None

    def visit(stmt: Stmt) -> Stmt:
        match stmt:
            case For(body=body) if (new := visit(body)) is not body:
                return replace(stmt, body=new)
            case If(body=body) if (new := visit(body)) is not body:
                return replace(stmt, body=new)
            case Block(stmts):
                return block(*(visit(s) for s in stmts))
            case Store() | Together() | Update() if any(writes(stmt, t) for t in chosen):
                return rewrite_loads(stmt, rule)  # type: ignore[no-any-return]
        return stmt

    changed = statements(visit(func.body))
    body = block(*changed[:first], nest((copy,), definition.body, axis, axis), *changed[first:])
    new = {d: replace(d, body=rewrite_loads(d.body, rule)) for d in dict.fromkeys(func.stages[t] for t in chosen)}
    stages: dict[Tensor, Compute] = {}
    for t, d in func.stages.items():
        if d in new:
            stages.setdefault(copy, definition)
        stages[t] = new.get(d, d)
    buffers = {**func.buffers, copy: Buffer(TensorType.plain(source.shape, source.dtype), scope)}
    return replace(func, body=body, stages=stages, buffers=buffers), (copy,)


def _new_tensor(func: PrimFunc, like: Tensor, suffix: str, definition: Compute) -> Tensor:
    name = fresh(f"{like.name}_{suffix.replace('.', '_')}", {t.name for t in func.buffers})
    return Tensor(name, like.shape, like.dtype, definition)


def _swap(body: Stmt, old: Stmt, new: Stmt) -> Stmt:
    return new if body is old else put((body, old), new)
