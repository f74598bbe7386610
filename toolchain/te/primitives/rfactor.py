"""rfactor: make a reduction loop independent by reducing into one partial result per iteration."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.combiner import identity, reduce
from toolchain.te.create import fresh, nest
from toolchain.te.expr import Expr, Var, all_of, join, parts, select
from toolchain.te.loop_ir import Buffer, For, PrimFunc, Update, block, loops, statements
from toolchain.te.primitives.loops import names, path_to_loop, perfect_chain, put, restage, stage_named, writes
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Compute, Tensor


def rfactor(func: PrimFunc, stage: str, loop: str, position: int = 0) -> tuple[PrimFunc, tuple[Tensor, ...]]:
    """Reduce all loops but `loop` into a new tensor with one more dimension, then reduce that dimension.

        for i:                                     for k_1_f: for i_f: for k_0:
          for k_0: for k_1:               ->         C_rf[k_1_f, i_f] += f(i_f, 4*k_0 + k_1_f)  init 0
            C[i] += f(i, 4*k_0 + k_1)              for i: for k_1: C[i] += C_rf[i, k_1]

    The new dimension stands at `position` (0: first; -1: last). Its loop is no reduction loop any more: vectorize it, or
    run it in parallel. Partial results are joined by the reduction's own combiner. Returns the new tensor (with those
    computed together with it). Changes the order of summation. Called: rfactor in TVM and Halide.
    Raises ScheduleError: no such loop, the stage reduces nothing over it, or its result's loops were already split.
    """
    tensor = stage_named(func, stage, "rfactor")
    path_to_loop(func, loop, "rfactor")
    definition = func.stages[tensor]
    root = next((s for s in statements(func.body) if writes(s, tensor)), None)
    if not isinstance(root, For):
        raise ScheduleError(f"rfactor: {stage} has no root nest")
    chain, guards, leaf = perfect_chain(root, {found.var.name for found in loops(root)})
    spatial, kept, factored = _sort_loops(chain, definition, loop)
    if not isinstance(leaf, Update) or leaf.init is None or factored is None or len(spatial) != len(definition.axis):
        raise ScheduleError(
            f"rfactor: '{loop}' is no reduction loop of {stage}'s own nest, or loops over the result were split already",
            fix="split the reduction only, rfactor, then the rest",
        )
    taken = names(func)
    lane = Var(fresh(f"{loop}_f", taken), factored.extent)
    inner = {v: Var(fresh(f"{v.name}_f", taken), v.extent) for v in definition.axis}
    mapping = {**inner, factored: lane}
    group = func.computed_with(tensor)
    start = identity(leaf.combiner, tensor.dtype)
    value = leaf.value
    if guards:
        value = join([select(all_of(*guards), v, none) for v, none in zip(parts(value), parts(start), strict=True)])
    at = position % (len(tensor.shape) + 1)
    axis = (*tuple(inner.values())[:at], lane, *tuple(inner.values())[at:])
    body: Expr = substitute(value, mapping)
    partial = Compute(axis, reduce(leaf.combiner, body, kept, start) if kept else body, definition.tag, definition.attrs)
    taken_tensors = {t.name for t in func.buffers}
    shape = tuple(v.extent for v in axis)
    made = tuple(Tensor(fresh(f"{t.name}_rf", taken_tensors), shape, t.dtype, partial) for t in group)
    points = (*definition.axis[:at], factored, *definition.axis[at:])
    assert leaf.init is not None
    final = replace(definition, body=reduce(leaf.combiner, join([m[points] for m in made]), (factored,), leaf.init))
    new = block(nest(made, partial.body, axis, axis), nest(group, final.body, final.axis, final.axis))
    buffers = {**func.buffers, **{m: Buffer(TensorType.plain(shape, m.dtype)) for m in made}}
    stages = restage(func, group, made, partial, final)
    whole = new if func.body is root else put((func.body, root), new)
    return replace(func, body=whole, stages=stages, buffers=buffers), made


def _sort_loops(chain: list[For], definition: Compute, loop: str) -> tuple[list[Var], tuple[Var, ...], Var | None]:
    """(loops over the result, reduction loops that stay, the one to factor out)."""
    spatial = [s.var for s in chain if s.var in definition.axis]
    reductions = [s.var for s in chain if s.var not in definition.axis]
    kept = tuple(v for v in reductions if v.name != loop)
    return spatial, kept, next((v for v in reductions if v.name == loop), None)
