"""Several shape buckets of one network: plans for different input shapes that share kernels, weights and the arena.

The library picks the plan at run time from the shapes of the inputs (runtime/buckets.h), so all plans agree in everything
else a caller sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from toolchain.core.errors import CodegenError, UsageError
from toolchain.targets.llvm.plan import Plan, Value, verify_plan


def verify_buckets(plans: Sequence[Plan]) -> None:
    """Refuse plans that cannot run (`verify_plan`), or not side by side.

    Raises CodegenError; UsageError when two have the same input shapes, which a user declared.
    """
    for plan in plans:
        verify_plan(plan)
    first, *others = plans
    for plan in others:
        where = f"shape bucket {shape_text(plan.inputs)} of {plan.name!r}"
        if _interface(plan.inputs) != _interface(first.inputs) or _interface(plan.outputs) != _interface(first.outputs):
            what = f"its inputs or outputs differ from those of {shape_text(first.inputs)} in more than their extents"
            raise CodegenError(what, where=where)
        if plan.weights_bytes != first.weights_bytes or plan.scheduler != first.scheduler:
            raise CodegenError(f"it has other weights, or another scheduler, than {shape_text(first.inputs)}", where=where)
    count = Counter(shape_text(plan.inputs) for plan in plans)
    if twice := [shape for shape, n in count.items() if n > 1]:
        raise UsageError(f"two shape buckets have the same input shapes: {twice[0]}", where=first.name,
                         fix="remove one of them")


def shapes_of(values: Sequence[Value]) -> tuple[tuple[int, ...], ...]:
    return tuple(v.shape for v in values)


def bucket_taking(plans: Sequence[Plan], inputs: Mapping[str, np.ndarray], where: str) -> int:
    """The number of the bucket that takes arrays of these names and shapes. Raises UsageError: none does."""
    for n, plan in enumerate(plans):
        if all(v.name in inputs and np.shape(inputs[v.name]) == v.shape for v in plan.inputs):
            return n
    wanted = "; ".join(", ".join(f"{v.name} {v.dtype}{list(v.shape)}" for v in plan.inputs) for plan in plans)
    raise UsageError("the inputs have other names or shapes than the artifact's", where=where, fix=f"give it: {wanted}")


def shape_text(values: Sequence[Value]) -> str:
    """Input shapes in one word: "1x3x48x320", and "1x128,1x128" for two inputs."""
    return ",".join("x".join(map(str, v.shape)) for v in values)


def signature(name: str, plans: Sequence[Plan]) -> str:
    """'net': x float32[1, 3] -> y float32[1, 10], in 2 shape buckets"""
    first, *more = plans
    inputs, outputs = (", ".join(f"{v.name} {v.dtype}{list(v.shape)}" for v in values)
                       for values in (first.inputs, first.outputs))
    return f"{name!r}: {inputs} -> {outputs}{f', in {1 + len(more)} shape buckets' if more else ''}"


def _interface(values: Sequence[Value]) -> list[tuple[str, str, int]]:
    return [(v.name, v.dtype, len(v.shape)) for v in values]
