"""From te definitions to the first loop nests: one root nest per computed tensor, producers first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.expr import TRUE, Const, Expr, Index, IndexLike, Reduce, Var, index
from toolchain.te.loop_ir import Buffer, For, If, PrimFunc, Stmt, Update, block, stores
from toolchain.te.substitute import substitute
from toolchain.te.tensor import Compute, Tensor


def fresh(base: str, taken: set[str]) -> str:
    """`base`, or the first of base_1, base_2, ... that is not taken; taken from then on."""
    name, n = base, 0
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name


def bind_definition(
    definition: Compute, axis: Mapping[Var, IndexLike], reduce_axis: Mapping[Var, Var] | None = None
) -> Expr:
    """The body of a definition at other indices; a Reduce keeps its axes, renamed by `reduce_axis`."""
    renamed = reduce_axis or {}
    body = definition.body
    mapping: dict[Var, IndexLike] = {**axis, **renamed}
    if not mapping:
        return body
    if isinstance(body, Reduce):
        axes = tuple(renamed.get(v, v) for v in body.axes)
        return replace(body, value=substitute(body.value, mapping), axes=axes, init=substitute(body.init, mapping))
    result: Expr = substitute(body, mapping)
    return result


def nest(
    tensors: Sequence[Tensor], body: Expr, axis: Sequence[Var], dest: Sequence[IndexLike], guard: Expr = TRUE
) -> Stmt:
    """The loops that compute the tensors of one definition at `dest`, for every point of `axis` where `guard` holds.

        for axis: if guard: for reduce axes: tensor[dest] (+)= value  init        (a Store when the body is no reduction)
    """
    at: tuple[Index, ...] = tuple(index(i) for i in dest)
    stmt: Stmt
    if isinstance(body, Reduce):
        stmt = Update(tuple(tensors), at, body.combiner, body.value, body.init)
        for var in reversed(body.axes):
            stmt = For(var, stmt)
    else:
        stmt = stores(tensors, at, body)
    if not (isinstance(guard, Const) and guard.value):
        stmt = If(guard, stmt)
    for var in reversed(axis):
        stmt = For(var, stmt)
    return stmt


def siblings(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that te.compute made with it, itself among them."""
    return (tensor.op.outputs if isinstance(tensor.op, Compute) else ()) or (tensor,)


def stages_of(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(placeholders met, computed tensors), each producers first; a tensor among `inputs` is taken as given.

    A tensor brings along those that are computed with it."""
    given = dict.fromkeys(inputs)
    leaves: dict[Tensor, None] = dict(given)
    stages: dict[Tensor, None] = {}

    def visit(tensor: Tensor) -> None:
        if tensor in stages or tensor in leaves:
            return
        if not isinstance(tensor.op, Compute):
            leaves[tensor] = None
            return
        for read in tensor.op.input_tensors:
            visit(read)
        if among := [t.name for t in siblings(tensor) if t in given]:
            raise ScheduleError(f"create_schedule: {tensor.name} is computed with {among[0]}, which is among the inputs")
        stages.update(dict.fromkeys(siblings(tensor)))

    for tensor in outputs:
        visit(tensor)
    return list(leaves), list(stages)


def create_func(outputs: Tensor | Sequence[Tensor], name: str = "main", inputs: Sequence[Tensor] | None = None) -> PrimFunc:
    """One PrimFunc that computes `outputs`. Parameters: the inputs (as given, or as met), then the outputs.

    Each stage becomes `for axis: for reduce axis: Store or Update`. When two stages name an axis alike the later one is
    renamed (i, i_1, ...), in `stages` too. Raises ScheduleError: an output that is not computed, an input missing from the
    given list, two tensors of one name.
    """
    results = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    found, stages = stages_of(results, inputs or ())
    if wrong := [t.name for t in results if t not in stages]:
        raise ScheduleError(f"create_schedule: {', '.join(wrong)} is not computed", fix="pass tensors made by te.compute")
    if inputs is not None and (missing := [t.name for t in found if t not in inputs]):
        raise ScheduleError(f"create_schedule: {name} also reads {', '.join(missing)}", fix="add it to inputs")
    _check_names(name, [*found, *stages])
    taken: set[str] = set()
    definitions: dict[Tensor, Compute] = {}
    nests: list[Stmt] = []
    for tensor in stages:
        assert isinstance(tensor.op, Compute)
        if tensor in definitions:
            continue
        definition, group = rename_axes(tensor.op, taken), siblings(tensor)
        definitions.update(dict.fromkeys(group, definition))
        nests.append(nest(group, definition.body, definition.axis, definition.axis))
    params = (*(inputs if inputs is not None else found), *dict.fromkeys(results))
    buffers = {t: Buffer(TensorType.plain(t.shape, t.dtype)) for t in [*params, *stages]}
    return PrimFunc(name, params, block(*nests), buffers, definitions)


def rename_axes(definition: Compute, taken: set[str]) -> Compute:
    """The definition with axis names that are not taken yet (and are from now on); itself when none clashed."""
    def renamed(axes: Sequence[Var]) -> dict[Var, Var]:
        fresh_names = {v: fresh(v.name, taken) for v in axes}
        return {v: Var(n, v.extent) if n != v.name else v for v, n in fresh_names.items()}

    axis, reduce_axis = renamed(definition.axis), renamed(definition.reduce_axis)
    changed = {v: new for v, new in axis.items() if new is not v}
    changed_reduce = {v: new for v, new in reduce_axis.items() if new is not v}
    if not changed and not changed_reduce:
        return definition
    return replace(
        definition, axis=tuple(axis.values()), body=bind_definition(definition, changed, changed_reduce)
    )


def _check_names(func: str, tensors: Sequence[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise ScheduleError(f"create_schedule: two tensors of {func} are named {tensor.name!r}", fix="give each a name")
        seen.add(tensor.name)
