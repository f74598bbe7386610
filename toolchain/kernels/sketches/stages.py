"""What sketches ask about a schedule before they start: which stages there are, which one is the anchor, what to inline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolchain import te
from toolchain.core.layout import Layout, default_axes
from toolchain.core.rewrite import walk
from toolchain.kernels.op import STORED
from toolchain.te.expr import Bin, Call, Cast, Compare, Const, Load, Reduce, Select, distinct, variables
from toolchain.te.lower.intrinsics import CALLS
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Compute, Tensor

COSTLY = frozenset(("exp", "exp_nonpositive", "log", "tanh", "erf", "normal_cdf", "sigmoid", "pow", "sin", "cos"))

MAX_REPEATED = 2            # stages of costly functions that inline_behind repeats

SCAN = "scan"                # the tag of a step of a prefix sum, which reads the step before at several places


def is_reduction(definition: Compute) -> bool:
    return isinstance(definition.body, Reduce)


def is_costly(definition: Compute) -> bool:
    """Whether computing a point twice would cost more than storing it."""
    return any(isinstance(n, Call) and n.name in COSTLY for n in walk(definition.body))


def constants(definition: Compute) -> int:
    """How many different constants a point takes, those of functions included: in a loop, each has a register."""
    found: set[tuple[str, object]] = set()
    for n in distinct(definition.body):
        made = CALLS[n.name](*n.args) if isinstance(n, Call) and n.name in CALLS else n
        found |= {(c.dtype, c.value) for c in distinct(made) if isinstance(c, Const)}
    return len(found)


def _is_copy(definition: Compute) -> bool:
    """Whether a point is one of another tensor, perhaps in another type."""
    body = definition.body
    while isinstance(body, Cast):
        body = body.value
    return isinstance(body, Load)


def _of_reduction(s: te.Schedule, definition: Compute) -> bool:
    """Whether a definition reads a reduction, perhaps through others."""
    known = [s.func.stages[t] for t in definition.input_tensors if t in s.func.stages]
    return any(is_reduction(d) or _of_reduction(s, d) for d in known)


def _size(tensor: Tensor) -> int:
    return math.prod(tensor.shape)


def readers(s: te.Schedule, tensor: Tensor) -> list[Tensor]:
    """The stages that read a tensor, in order."""
    return [t for t, d in s.func.stages.items() if tensor in d.input_tensors]


def definitions(s: te.Schedule) -> list[Tensor]:
    """The stages in order; of tensors that are computed together, the first."""
    return [t for t in s.func.stages if s.func.computed_with(t)[0] is t]


def loads(definition: Compute, tensor: Tensor) -> int:
    """How often a body reads a tensor per point."""
    count = 0

    def rule(load: Load) -> None:
        nonlocal count
        count += load.tensor is tensor
    rewrite_loads(definition.body, rule)
    return count


def chooses(s: te.Schedule, stage: Tensor, axis: te.Var) -> bool:
    """Whether the place along an axis decides what is loaded: pieces of the loop then need no masks."""
    choices = (n for n in distinct(s.func.stages[stage].body) if isinstance(n, Select))
    return any(axis in variables(c.condition) and isinstance(c.condition, Compare | Bin)
               and any(isinstance(n, Load) for n in distinct(c)) for c in choices)


def inline_injective(s: te.Schedule, keep: Sequence[Tensor] = ()) -> None:
    """Inline every stage without a reduction into its readers, unless it is an output or costly work would be repeated.

    Where the result is in blocks of channels, whole vectors of them are mixed: a step that is stored so that vectors can run
    along a row (see compute/resize.py) would only be turned and turned back. Tables of one dimension stay.
    """
    blocked = any(channel_lanes(s, out) > 1 for out in s.func.outputs)
    for tensor in reversed(definitions(s)):
        definition = s.func.stages[tensor]
        stored = definition.tag == STORED and not (blocked and len(tensor.shape) > 1)
        kept = tensor in keep or is_reduction(definition) or definition.tag == SCAN or stored
        if kept or any(t in s.func.params for t in s.func.computed_with(tensor)):
            continue
        users = readers(s, tensor)
        reused = len(users) > 1 and any(is_reduction(s.func.stages[u]) for u in users)
        if not _is_copy(definition) and _of_reduction(s, definition) and any(_size(u) > _size(tensor) for u in users):
            continue                                            # once per row, not per element
        if reused or (is_costly(definition) and sum(loads(s.func.stages[u], tensor) for u in users) > 1):
            continue
        s[tensor].compute_inline()


def inline_behind(s: te.Schedule, anchor: Tensor) -> None:
    """Inline what inline_injective kept behind a product or convolution, too: twice the tanh of a point costs less than to
    lose the register tile, which has room for one stage behind it. Not where repeats would multiply."""
    kept = [t for t in definitions(s) if t not in s.func.params and not is_reduction(s.func.stages[t])
            and _of_reduction(s, s.func.stages[t]) and _size(t) == _size(anchor)]
    if len(kept) <= MAX_REPEATED:
        for tensor in reversed(kept):
            s[tensor].compute_inline()


def reductions(s: te.Schedule) -> list[Tensor]:
    """One tensor of each reduction."""
    return [t for t in definitions(s) if is_reduction(s.func.stages[t])]


def layout_of(s: te.Schedule, tensor: Tensor) -> Layout:
    return s.func.buffers[tensor].type.layout


def channel_lanes(s: te.Schedule, tensor: Tensor) -> int:
    """The block of the channel dimension when the tensor is stored NCHW<lanes>c, else 1."""
    layout = layout_of(s, tensor)
    return layout.block(1) if len(layout.axes) >= 3 else 1


def operands(s: te.Schedule, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolution or product multiplies: the first two tensors of at least two dimensions it reads (not its bias)."""
    read = [t for t in s.func.stages[anchor].input_tensors if len(t.shape) >= 2]
    return read[0], read[-1] if len(read) < 2 else read[1]


def packed_columns(s: te.Schedule, anchor: Tensor) -> int:
    """How many output channels or columns lie together in the packed second operand; 0: it is plain."""
    dims = layout_of(s, operands(s, anchor)[1]).dims
    return dims[-1][1] if dims else 0


def accumulator(s: te.Schedule, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """(accumulator, output): the reduction that will live in registers, and the stage that stores its result.

    When the anchor is itself the output, its reduction moves to a new register stage and the output becomes the copy.
    """
    if anchor in s.func.params:
        return s.cache_write(anchor, "local"), anchor
    s[anchor].set_scope("local")
    users = readers(s, anchor)
    assert len(users) == 1, "an anchor has one reader"
    return anchor, users[0]


def split(s: te.Schedule, stage: Tensor, axis: te.Var, factor: int, ragged: list[te.Var]) -> tuple[te.Var, te.Var]:
    """Split an axis; when the factor does not divide it, remember the outer loop as one to peel."""
    factor = min(factor, axis.extent)
    outer, inner = s[stage].split(axis, factor=factor)
    if axis.extent % factor:
        ragged.append(outer)
    return outer, inner


def hold_tile(
    s: te.Schedule, acc: Tensor, sums: Sequence[te.Var], out: Tensor, stores: Sequence[te.Var],
) -> None:
    """A register tile: the loops of `acc` over its sums and those of `out` that store them disappear, the last of each into
    the lanes of a vector."""
    for axis in sums[:-1]:
        s[acc].unroll(axis)
    for axis in stores[:-1]:
        s[out].unroll(axis)
    s[acc].vectorize(sums[-1])
    s[out].vectorize(stores[-1])


def peel(s: te.Schedule, stage: Tensor, ragged: list[te.Var]) -> None:
    """Peel ragged last iterations, innermost first, so that register tiles are free of branches."""
    for axis in reversed(ragged):
        s[stage].partition(axis)


def share_first(shared: te.Var, ragged: list[te.Var], order: list[te.Var]) -> list[te.Var]:
    """The loop order; a shared loop that will be peeled goes outermost, so that its tail becomes a phase of its own."""
    if not any(shared is r for r in ragged):
        return order
    return [shared, *(a for a in order if a is not shared)]


def share_more(
    s: te.Schedule, stage: Tensor, shared: te.Var, ragged: list[te.Var], order: list[te.Var], cores: int,
) -> tuple[te.Var, list[te.Var]]:
    """(the loop cores share, the loop order), already reordered: while it has fewer iterations than there are cores, it is
    fused with a neighbour; a loop of one iteration with any, for the one behind that may have more.

        for g (8): for y in parallel(14): for x: ...    ->    for gy in parallel(112): for x: ...

    A loop that will be peeled is left alone: its tail has to stay one phase.
    """
    at = next(i for i, axis in enumerate(order) if axis is shared)
    pairs = [(at - 1, at)] if at else []
    pairs += [(at, at + 1)] if at + 1 < len(order) else []
    for outer, inner in pairs if shared.extent < cores else []:
        both = order[outer:inner + 1]
        more = shared.extent == 1 or min(axis.extent for axis in both) > 1
        if more and not any(axis is r for axis in both for r in ragged):
            fused = s[stage].fuse(*both)
            return share_more(s, stage, fused, ragged, [*order[:outer], fused, *order[inner + 1:]], cores)
    return shared, order


def fuse_all(s: te.Schedule, stage: Tensor, axes: Sequence[te.Var]) -> te.Var:
    """One loop of neighbouring loops."""
    fused = axes[0]
    for axis in axes[1:]:
        fused = s[stage].fuse(fused, axis)
    return fused


def row_registers(rank: int, lanes: int) -> Layout:
    """Accumulators row by row, the innermost dimension in whole vectors."""
    return Layout(default_axes(rank), (*((d, 0) for d in range(rank)), (rank - 1, lanes)), ((0, 0),) * rank)
