"""tensorize: replace a loop nest by an instruction that means the same; decompose_reduction, which prepares it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout
from toolchain.core.rewrite import children
from toolchain.te.create import fresh
from toolchain.te.expr import Call, Const, Expr, Index, IndexLike, Load, Reduce, Var, index, variables
from toolchain.te.intrin import Intrin
from toolchain.te.loop_ir import (
    Evaluate,
    For,
    If,
    PrimFunc,
    Stmt,
    Store,
    Together,
    Update,
    block,
    is_reduction_loop,
    loops,
    stores,
)
from toolchain.te.primitives.loops import loop_at, names, path_to, path_to_loop, perfect_chain, put, replace_at, stage_named
from toolchain.te.substitute import substitute, substitute_index
from toolchain.te.tensor import Tensor


def tensorize(func: PrimFunc, loop: str, intrin: Intrin) -> tuple[PrimFunc, tuple[()]]:
    """Replace the nest at `loop` by one instruction.

        for i: for j: for k:
          C[8*i_0 + i, 8*j_0 + j] += A[.., ..]*B[.., ..]    ->   gemm8x8(C[8*i_0, 8*j_0], A[8*i_0, 8*k_0], B[..])

    Loops pair with the meaning's axes by extent and use; then the two values must be one tree, every index must move with
    the paired axes alike, every fragment must be dense in storage and in its scope. A pending initialisation is split off
    first (decompose_reduction). Called: tensorize in TVM, replace in Exo.
    Raises ScheduleError: no such loop, or the first thing that does not match.
    """
    path = path_to_loop(func, loop, "tensorize")
    top = loop_at(path)
    chain, guards, leaf = perfect_chain(top, {found.var.name for found in loops(top)})
    refusal = f"tensorize: the nest at '{loop}' is not {intrin.name}"
    if isinstance(leaf, Together) or (isinstance(leaf, Update) and not isinstance(leaf.combiner, str)):
        raise ScheduleError(f"{refusal}: it has several results or a combiner of its own, which no instruction has")
    if guards or not isinstance(leaf, Update | Store):
        raise ScheduleError(f"{refusal}: it is no perfect nest without guards", fix="partition it first")
    matched = _match(chain, leaf, intrin, refusal)
    if isinstance(leaf, Update) and leaf.init is not None:
        func, _ = decompose_reduction(func, leaf.tensor.name, loop)
        path = path_to_loop(func, loop, "tensorize")
    zero: dict[Var, IndexLike] = {s.var: 0 for s in chain}
    for operand in intrin.operands:
        _check_storage(func, operand, matched[operand], {s.var for s in chain}, intrin, refusal)
    args = tuple(substitute(matched[operand].access, zero) for operand in intrin.operands)
    call = Evaluate(Call(intrin.name, args, intrin.output.dtype))
    known: Mapping[str, Intrin] = func.attrs.get("intrinsics", {})
    func = replace(func, attrs={**func.attrs, "intrinsics": {**known, intrin.name: intrin}})
    return replace_at(func, path, call), ()


@dataclass(frozen=True, slots=True)
class Part:
    """What plays the part of an operand: the access, and the offset inside a dense fragment in terms of the paired loops."""

    access: Load
    offset: Index


def _match(chain: Sequence[For], leaf: Update | Store, intrin: Intrin, refusal: str) -> dict[Tensor, Part]:
    """For each operand of the instruction, the access that plays its part."""
    body = intrin.definition.body
    reduces = isinstance(body, Reduce)
    if reduces != isinstance(leaf, Update) or (isinstance(leaf, Update) and leaf.combiner != getattr(body, "combiner", "")):
        raise ScheduleError(f"{refusal}: one reduces and the other does not, or otherwise")
    value = body.value if isinstance(body, Reduce) else body
    first = ""
    for pairing in _pairings(chain, leaf, intrin):
        found: dict[Tensor, Part] = {}
        mapping = {axis: index(var) for axis, var in pairing.items()}
        moving = set(pairing.values())
        own = Load(intrin.output, tuple(index(v) for v in intrin.definition.axis))
        problem = _unify(own, Load(leaf.tensor, leaf.index), mapping, moving, found)
        problem = problem or _unify(value, leaf.value, mapping, moving, found)
        if not problem:
            return found
        first = first or problem
    raise ScheduleError(f"{refusal}: {first or 'no pairing of the loops has the same extents'}")


def _pairings(chain: Sequence[For], leaf: Update | Store, intrin: Intrin) -> Iterator[dict[Var, Var]]:
    used = {v for i in leaf.index for v in variables(i)}
    loops_of = {
        True: [s.var for s in chain if s.var in used and s.extent > 1],
        False: [s.var for s in chain if s.var not in used and s.extent > 1],
    }
    spatial = [v for v in intrin.definition.axis if v.extent > 1]
    reduction = [v for v in intrin.definition.reduce_axis if v.extent > 1]
    if (len(spatial), len(reduction)) != (len(loops_of[True]), len(loops_of[False])):
        return
    for outer in permutations(loops_of[True]):
        for inner in permutations(loops_of[False]):
            pairs = {**dict(zip(spatial, outer)), **dict(zip(reduction, inner))}
            if all(axis.extent == var.extent for axis, var in pairs.items()):
                yield pairs


def _unify(meant: Expr, actual: Expr, mapping: Mapping[Var, Index], moving: set[Var], found: dict[Tensor, Part]) -> str:
    """Whether two values are one tree; "" or what differs. Fills `found`."""
    if isinstance(meant, Load) and isinstance(actual, Load):
        if meant.tensor in found and (other := found[meant.tensor].access.tensor) is not actual.tensor:
            return f"{meant.tensor.name} would be both {other.name} and {actual.tensor.name}"
        if not _moves_alike(meant, actual, mapping, moving):
            return f"{actual.tensor.name} is not accessed as {meant.tensor.name}"
        at = Layout.row_major(len(meant.index)).offset(meant.tensor.shape, meant.index)
        found[meant.tensor] = Part(actual, substitute_index(index(at), mapping))
        return ""
    if type(meant) is not type(actual) or meant.dtype != actual.dtype:
        return f"{type(actual).__name__} of {actual.dtype} where {type(meant).__name__} of {meant.dtype} is meant"
    if isinstance(meant, Const) and isinstance(actual, Const):
        return "" if meant.value == actual.value else f"a constant is {actual.value}, not {meant.value}"
    for name in ("op", "name"):
        if getattr(meant, name, None) != getattr(actual, name, None):
            return f"it computes {getattr(actual, name)} where {getattr(meant, name)} is meant"
    parts = list(zip(children(meant), children(actual), strict=True))
    return next((p for a, b in parts if (p := _unify(a, b, mapping, moving, found))), "")  # type: ignore[arg-type]


def _moves_alike(meant: Load, actual: Load, mapping: Mapping[Var, Index], moving: set[Var]) -> bool:
    """Whether the dimensions of `actual` that the paired loops move are, in order, the moving dimensions of `meant`."""
    wanted = [m for i in meant.index if (m := substitute_index(index(i), mapping)).terms]
    seen = [p for i in actual.index if (p := _moving_part(index(i), moving)).terms]
    return len(wanted) == len(seen) and all(Index(w.terms) == s for w, s in zip(wanted, seen))


def _moving_part(at: Index, moving: set[Var]) -> Index:
    return Index(tuple((atom, c) for atom, c in at.terms if variables(Index(((atom, 1),))) & moving))


def _check_storage(func: PrimFunc, operand: Tensor, part: Part, moving: set[Var], intrin: Intrin, refusal: str) -> None:
    access = part.access
    buffer = func.buffers[access.tensor]
    wanted = intrin.scopes.get(operand, buffer.scope)
    if buffer.scope != wanted:
        raise ScheduleError(
            f"{refusal}: {access.tensor.name} is in {buffer.scope}, {operand.name} must be in {wanted}",
            fix=f"set_scope or cache it in {wanted}",
        )
    offset = _moving_part(index(buffer.type.layout.offset(buffer.type.shape, access.index)), moving)
    if offset != Index(part.offset.terms):
        raise ScheduleError(
            f"{refusal}: the fragment of {access.tensor.name} is not dense in {buffer.type}",
            fix="set_layout with the fragment's dimensions innermost",
        )


def decompose_reduction(func: PrimFunc, stage: str, loop: str = "") -> tuple[PrimFunc, tuple[Var, ...]]:
    """Split the pending initialisation of a reduction off into a nest of its own, before its outermost reduction loop
    (and before `loop`, when one is given that stands around that).

        for i: for k: C[i] += f  init 0     ->     for i: (for i_init: C[i] = 0); for k: C[i] += f

    Returns the loops of the new nest. Called: decompose_reduction in TVM's TensorIR; Halide's pure definition.
    Raises ScheduleError: the stage has no pending initialisation, or several.
    """
    tensor = stage_named(func, stage, "decompose_reduction")
    path = path_to(func.body, lambda s: isinstance(s, Update) and tensor in s.tensors and s.init is not None)
    if path is None:
        raise ScheduleError(f"decompose_reduction: {stage} has no pending initialisation")
    update = path[-1]
    assert isinstance(update, Update) and update.init is not None
    started = put(path, replace(update, init=None))
    outermost = next((n for n, s in enumerate(path) if _starts(s, update, loop)), len(path) - 1)
    used = {v for i in update.index for v in variables(i)}
    taken = names(func)
    renamed: dict[Var, Var] = {}
    stmt: Stmt = stores(update.tensors, update.index, update.init)
    for s in reversed(path[outermost:-1]):
        if isinstance(s, For) and s.var in used:
            renamed[s.var] = Var(fresh(f"{s.var.name}_init", taken), s.extent)
            stmt = For(renamed[s.var], stmt, s.kind, s.thread, s.pragmas)
        elif isinstance(s, If) and not variables(s.condition) - used - _around(path[:outermost]):
            stmt = If(s.condition, stmt)
    stmt = substitute(stmt, renamed)
    anchor = path_to(started, lambda s: s is path[outermost] or _same_loop(s, path[outermost]))
    assert anchor is not None
    return replace(func, body=put(anchor, block(stmt, anchor[-1]))), tuple(reversed(renamed.values()))


def _starts(stmt: Stmt, update: Update, loop: str) -> bool:
    return isinstance(stmt, For) and (stmt.var.name == loop or is_reduction_loop(stmt, update))


def _around(path: Sequence[Stmt]) -> set[Var]:
    return {s.var for s in path if isinstance(s, For)}


def _same_loop(a: Stmt, b: Stmt) -> bool:
    if isinstance(b, Update):
        return isinstance(a, Update) and a.tensor is b.tensor and a.value is b.value
    return isinstance(a, For) and isinstance(b, For) and a.var is b.var
