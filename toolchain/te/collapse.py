"""collapse: dimensions that every definition treats as one become one, and dimensions of extent one go.

Row-major storage does not change by it: what was float32[1, 64, 112, 112] is float32[802816], byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from toolchain.core.rewrite import children
from toolchain.te.create import bind_definition, siblings, stages_of
from toolchain.te.expr import Dynamic, Expr, FloorDiv, FloorMod, Index, IndexLike, Load, Reduce, Var, index
from toolchain.te.substitute import rewrite_loads, substitute
from toolchain.te.tensor import Compute, Placeholder, Tensor


def collapse(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], fixed: Collection[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Definitions over as few dimensions as their meaning needs: (outputs, inputs), the same objects where nothing changes.

        X, Y: [1, 64, 56, 56], B: [1, 64, 1, 1]                      X, Y: [64, 3136], B: [64]
        Y[n, c, y, x] = X[n, c, y, x] + B[0, c, 0, 0]        ->      Y[c, y] = X[c, y] + B[c]

    Two neighbouring dimensions of a tensor join when all who read it do so with two neighbouring axes that join, too (or at
    two constants), and axes join when nothing looks at one of them alone. Sums keep their order, and values their bits.
    Tensors in `fixed` keep their dimensions (they have another layout than row-major, or a schedule wants them).
    Called: collapse in OpenMP, simplify_axes and normalization of layouts in other compilers.
    """
    _, stages = stages_of(outputs, inputs)
    joined = _Joined((*inputs, *stages), frozenset(fixed))
    while any(joined.drop_contradicted(stage) for stage in stages):
        pass
    new: dict[Tensor, Tensor] = {}
    for tensor in (*inputs, *stages):
        if tensor not in new:
            new.update(_rebuilt(tensor, joined, new))
    return [new[t] for t in outputs], [new[t] for t in inputs]


class _Axes:
    """Axes (or dimensions) of more than one element, in order, and which of them join with the next: `pairs`."""

    def __init__(self, extents: Sequence[int], kept: bool) -> None:
        self.places = [d for d, n in enumerate(extents) if n > 1 or kept] or list(range(len(extents)))[-1:]
        self.pairs = set() if kept else set(range(len(self.places) - 1))

    def groups(self) -> list[list[int]]:
        """Places that become one; a scalar becomes a dimension of one element."""
        made: list[list[int]] = [] if self.places else [[]]
        for k, place in enumerate(self.places):
            if k and k - 1 in self.pairs:
                made[-1].append(place)
            else:
                made.append([place])
        return made


class _Joined:
    """What joins: begins with everything, and gives up what a reader contradicts."""

    def __init__(self, tensors: Iterable[Tensor], fixed: frozenset[Tensor]) -> None:
        self.dims: dict[Tensor, _Axes] = {}
        self.reduced: dict[Tensor, _Axes] = {}
        for group in dict.fromkeys(siblings(t) for t in tensors):           # what one definition makes joins alike
            kept = any(t in fixed for t in group)
            self.dims.update(dict.fromkeys(group, _Axes(group[0].shape, kept)))
            if isinstance(group[0].op, Compute):
                self.reduced.update(dict.fromkeys(group, _Axes([v.extent for v in group[0].op.reduce_axis], kept)))

    def drop_contradicted(self, stage: Tensor) -> bool:
        """Give up the pairs that the definition of `stage` contradicts; whether there were any."""
        definition = stage.op
        assert isinstance(definition, Compute)
        before = self._count()
        places: dict[Var, tuple[_Axes, int]] = {}
        for axes, variables in ((self.dims[stage], definition.axis), (self.reduced[stage], definition.reduce_axis)):
            places |= {variables[d]: (axes, k) for k, d in enumerate(axes.places)}
        loads, alone = _uses(definition.body)
        for v in alone & places.keys():
            axes, k = places[v]
            axes.pairs -= {k - 1, k}
        for load in loads:
            self._check(load, places)
        return self._count() != before

    def _count(self) -> int:
        return sum(len(axes.pairs) for axes in (*self.dims.values(), *self.reduced.values()))

    def _check(self, load: Load, places: dict[Var, tuple[_Axes, int]]) -> None:
        tensor, dims = load.tensor, self.dims[load.tensor]
        at = [index(load.index[d]) for d in dims.places]
        single = [_single(i) for i in at]

        def together(k: int) -> bool:
            """Whether places k and k + 1 of the load are a pair on both sides."""
            if k not in dims.pairs:
                return False
            a, b = single[k], single[k + 1]
            if a is None or b is None or a not in places or b not in places:
                return at[k].is_constant and at[k + 1].is_constant
            (axes, first), (others, second) = places[a], places[b]
            whole = b.extent == tensor.shape[dims.places[k + 1]]
            return axes is others and second == first + 1 and first in axes.pairs and whole

        for k, v in enumerate(single):
            if v in places:
                axes, n = places[v]
                if k + 1 == len(at) or not together(k):
                    axes.pairs.discard(n)
                if k == 0 or not together(k - 1):
                    axes.pairs.discard(n - 1)
        dims.pairs -= {k for k in dims.pairs if not together(k)}


def _single(i: Index) -> Var | None:
    """The variable that an index is, if it is one."""
    match i:
        case Index(((Var() as v, 1),), 0):
            return v
    return None


def _uses(body: Expr) -> tuple[list[Load], set[Var]]:
    """The loads in a body, and the variables that occur otherwise than as one place of a load."""
    loads: list[Load] = []
    alone: set[Var] = set()
    seen: set[int] = set()

    def visit(node: object) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        match node:
            case Load(_, at):
                loads.append(node)
                for i in map(index, at):
                    if _single(i) is None:
                        visit(i)
            case Var():
                alone.add(node)
            case Index(terms):
                for atom, _ in terms:
                    visit(atom)
            case FloorDiv(inner) | FloorMod(inner):
                visit(inner)
            case Dynamic(value):
                visit(value)
            case Reduce(value=value, init=init):
                visit(value)
                visit(init)
            case Expr():
                for child in children(node):
                    visit(child)

    visit(body)
    return loads, alone


def _rebuilt(tensor: Tensor, joined: _Joined, new: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """The tensor, and those computed with it, with their dimensions joined: defined in terms of the new axes and the tensors
    in `new`."""
    groups = joined.dims[tensor].groups()
    shape = tuple(math.prod(tensor.shape[d] for d in group) for group in groups)
    if isinstance(tensor.op, Placeholder):
        return {tensor: tensor if shape == tensor.shape else Tensor(tensor.name, shape, tensor.dtype, tensor.op)}
    definition = tensor.op
    reduced = joined.reduced[tensor].groups() if definition.reduce_axis else []
    if shape == tensor.shape and len(reduced) == len(definition.reduce_axis) and all(
            new[t] is t for t in definition.input_tensors):
        return {t: t for t in siblings(tensor)}
    mapping: dict[Var, IndexLike] = dict.fromkeys((*definition.axis, *definition.reduce_axis), 0)
    axis = _join(definition.axis, groups, mapping)
    reduce_axis = _join(definition.reduce_axis, reduced, mapping) if definition.reduce_axis else ()

    def rule(load: Load) -> Expr | None:
        target = new[load.tensor]
        at = [_position(load, group) for group in joined.dims[load.tensor].groups()]
        return Load(target, tuple(at))

    body = definition.body
    if isinstance(body, Reduce):
        body = replace(body, value=substitute(body.value, mapping), axes=reduce_axis, init=substitute(body.init, mapping))
    else:
        body = bind_definition(definition, mapping)
    body = rewrite_loads(body, rule)
    kept = shape == tensor.shape or not definition.attrs        # attributes, and who schedules by them, number dimensions
    op = Compute(axis, body, definition.tag if kept else "", definition.attrs if kept else {})
    made = {t: Tensor(t.name, shape, t.dtype, op) for t in siblings(tensor)}
    object.__setattr__(op, "outputs", tuple(made.values()))
    return made


def _join(old: Sequence[Var], groups: Sequence[Sequence[int]], mapping: dict[Var, IndexLike]) -> tuple[Var, ...]:
    """One new axis per group; `mapping` says what the old ones are in terms of them."""
    made = []
    for group in groups:
        if not group:
            made.append(Var("i", 1))
            continue
        var = Var(old[group[0]].name, math.prod(old[d].extent for d in group))
        rest: Index = index(var)
        for d in reversed(group[1:]):
            mapping[old[d]] = index(rest % old[d].extent)
            rest = index(rest // old[d].extent)
        mapping[old[group[0]]] = rest
        made.append(var)
    return tuple(made)


def _position(load: Load, group: Sequence[int]) -> Index:
    """The place in a dimension that was several."""
    total = index(load.index[group[0]]) if group else Index()
    for d in group[1:]:
        total = index(index(total * load.tensor.shape[d]) + load.index[d])
    return total


__all__ = ["collapse"]
