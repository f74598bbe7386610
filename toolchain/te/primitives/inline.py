"""compute_inline: put a stage's expression in the place of its value."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.te.create import bind_definition
from toolchain.te.expr import Expr, Load, Reduce, parts
from toolchain.te.loop_ir import PrimFunc, block
from toolchain.te.primitives.loops import put, root_nest, stage_named
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Compute


def compute_inline(func: PrimFunc, stage: str) -> tuple[PrimFunc, tuple[()]]:
    """Replace every read of an injective stage by its definition, and drop the stage.

        for i: P[i] = A[i] + 1
        for i: C[i] = P[i] * 2      ->      for i: C[i] = (A[i] + 1) * 2

    Reads of one element become one shared expression: of a chain of n stages that each read the one before twice, n
    expressions, not 2**n copies.

    Called: compute_inline in TVM, inline (the default) in Halide.
    Raises ScheduleError: an output, a reduction, a stage that already has steps.
    """
    tensor = stage_named(func, stage, "compute_inline")
    definition = func.stages[tensor]
    group = func.computed_with(tensor)
    if outputs := [t.name for t in group if t in func.params]:
        raise ScheduleError(f"compute_inline: {outputs[0]} is an output of {func.name}")
    if isinstance(definition.body, Reduce):
        raise ScheduleError(f"compute_inline: {stage} is a reduction", fix="compute_at it at a loop of its reader")
    old = root_nest(func, tensor, "compute_inline")

    known: dict[tuple[Expr, ...], tuple[Expr, ...]] = {}        # by the element that is read

    def rule(load: Load) -> Expr | None:
        if load.tensor not in group:
            return None
        if load.index not in known:
            known[load.index] = parts(bind_definition(definition, dict(zip(definition.axis, load.index))))  # type: ignore[arg-type]
        return known[load.index][group.index(load.tensor)]

    def inlined(reader: Compute) -> Compute:
        body = rewrite_loads(reader.body, rule)
        return reader if body is reader.body else replace(reader, body=body)

    new = {d: inlined(d) for d in dict.fromkeys(func.stages.values())}
    body = put((func.body, old), None) if func.body is not old else block()
    return replace(
        func,
        body=rewrite_loads(body, rule),
        stages={t: new[d] for t, d in func.stages.items() if t not in group},
        buffers={t: b for t, b in func.buffers.items() if t not in group},
    ), ()
