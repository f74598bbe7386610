"""Primitives that say where and how a tensor is stored. All but reuse_buffer change no statement."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout
from toolchain.core.rewrite import rewrite
from toolchain.te.expr import Expr, Index, Load, Var, distinct, index, variables
from toolchain.te.loop_ir import Buffer, For, If, PrimFunc, Stmt, Store, Update, leaves, reads, walk_statements
from toolchain.te.primitives.loops import path_to, stage_named, tensor_named
from toolchain.te.spans import Span, span
from toolchain.te.substitute import rewrite_loads
from toolchain.te.tensor import Tensor


def set_scope(func: PrimFunc, tensor: str, scope: str) -> tuple[PrimFunc, tuple[()]]:
    """Store a stage in another memory: "local" (registers), "lane" (scratch of one lane), "shared", or one of the Target's.

    Called: set_scope in TVM, store_in in Halide. Raises ScheduleError: a parameter, which the caller owns.
    """
    t = tensor_named(func, tensor, "set_scope")
    if t in func.params:
        raise ScheduleError(f"set_scope: {tensor} is a parameter of {func.name}, its caller owns it", fix="cache it first")
    return replace(func, buffers={**func.buffers, t: Buffer(func.buffers[t].type, scope)}), ()


def set_layout(func: PrimFunc, tensor: str, layout: Layout) -> tuple[PrimFunc, tuple[()]]:
    """Store a tensor in another layout: blocks, another order, a halo. Statements keep their logical indices.

    Called: layout transform in TVM's TensorIR, storage_layout (reorder_storage) in Halide.
    Raises ScheduleError: a layout of another rank.
    """
    t = tensor_named(func, tensor, "set_layout")
    buffer = func.buffers[t]
    if len(layout.axes) != len(buffer.type.shape):
        raise ScheduleError(f"set_layout: {layout} has {len(layout.axes)} dimensions, {tensor} has {len(buffer.type.shape)}")
    return replace(func, buffers={**func.buffers, t: buffer.with_type(buffer.type.with_layout(layout))}), ()


def reuse_buffer(func: PrimFunc, tensor: str, output: str) -> tuple[PrimFunc, tuple[()]]:
    """Keep a stage in the storage of an output: whoever reads an element of it last stores there.

        for i: E[i] = exp(A[i])                    for i: C[i] = exp(A[i])
        for i: S += E[i]                 ->        for i: S += C[i]
        for i: C[i] = E[i] * S                     for i: C[i] = C[i] * S

    Call it when both stages are where they stay, before their loops are split by `partition`.
    Called: reuse_buffer in Exo; what TVM's storage_rewrite does in place.
    An output may hold several stages after each other, the last reader's first. Raises ScheduleError: a reduction, not an
    output of that type, somebody else uses the stage last, or what uses it last reads it elsewhere than it stores.
    """
    t, out = stage_named(func, tensor, "reuse_buffer"), stage_named(func, output, "reuse_buffer")
    shift = _place_within(func, t, out)

    def place(at: tuple[Expr, ...]) -> tuple[Expr, ...]:
        return tuple(index(i + by) for i, by in zip(at, shift, strict=True))

    def loaded(load: Load) -> Expr | None:
        return Load(out, place(load.index)) if load.tensor is t else None

    def stored(n: object) -> object:
        return replace(n, tensor=out, index=place(n.index)) if isinstance(n, Store) and n.tensor is t else None

    body = rewrite(rewrite_loads(func.body, loaded), stored)
    return replace(
        func, body=body, stages={k: d for k, d in func.stages.items() if k is not t},
        buffers={k: b for k, b in func.buffers.items() if k is not t},
    ), ()


def _place_within(func: PrimFunc, t: Tensor, out: Tensor) -> list[Index]:
    """How far the places of a stage's elements are from those of the output that is made of them, by dimension."""
    def refusal(why: str) -> ScheduleError:
        return ScheduleError(f"reuse_buffer: {t.name} cannot lie in {out.name}: {why}")

    made = [leaf for leaf in leaves(func.body) if isinstance(leaf, Store | Update)]
    reduced = any(t in leaf.tensors for leaf in made if isinstance(leaf, Update)) or len(func.computed_with(t)) > 1
    if t in func.params or out not in func.params or t.dtype != out.dtype or reduced:
        raise refusal("it takes a stage that is no reduction, and an output of its type")
    users = [leaf for leaf in made if t in leaf.tensors or reads(leaf, t)]
    store, others = users[-1], [leaf for leaf in made if out in leaf.tensors or reads(leaf, out)]
    conditions = any(isinstance(s, If) and reads(s.condition, t, out) for s in walk_statements(func.body))
    if not isinstance(store, Store) or store.tensor is not out or others[0] is not store or conditions:
        raise refusal("the output is not first stored by the last that uses it")
    places = {n.index for n in distinct(store) if isinstance(n, Load) and n.tensor is t}
    if len(places) > 1 or len(t.shape) != len(out.shape):
        raise refusal("the output reads it elsewhere than it stores, or several elements of it")
    shift = [index(to - at) for to, at in zip(store.index, *places, strict=True)]
    around = [_loops_around(func.body, leaf) for leaf in users]
    shared = set.intersection(*around)
    if any((_loops_around(func.body, leaf) & around[-1]) - shared for leaf in others[1:] if out in leaf.tensors):
        raise refusal("the output is stored again before all of it is read")
    if any((loops & around[-1]) - shared for loops in around[:-1]):
        raise refusal("somebody uses it again in the loops that store the output")
    own = [span(index(i), around[-1] - shared) for i in store.index]
    box = [Span(by, 0, extent - 1, 1, True) for by, extent in zip(shift, func.buffers[t].type.shape, strict=True)]
    if any(variables(by) - shared for by in shift) or any(a.relation(b) != "inside" for a, b in zip(box, own, strict=True)):
        raise refusal("the output reads it elsewhere than it stores, or not all of it")
    return shift


def _loops_around(body: Stmt, leaf: Stmt) -> set[Var]:
    return {s.var for s in path_to(body, lambda s: s is leaf) or () if isinstance(s, For)}


def double_buffer(func: PrimFunc, tensor: str) -> tuple[PrimFunc, tuple[()]]:
    """Give a stage two copies of its storage, used in turn, so that the next tile loads while this one is computed.

    Recorded in `attrs["double_buffer"]`; the lowering of targets with asynchronous copies widens the storage.
    Called: double_buffer in TVM, ring_buffer in Halide. Raises ScheduleError: a parameter.
    """
    t = tensor_named(func, tensor, "double_buffer")
    if t in func.params:
        raise ScheduleError(f"double_buffer: {tensor} is a parameter of {func.name}", fix="cache it first")
    marked: tuple[str, ...] = func.attrs.get("double_buffer", ())
    return replace(func, attrs={**func.attrs, "double_buffer": (*(n for n in marked if n != tensor), tensor)}), ()


def storage_align(func: PrimFunc, tensor: str, dim: int, factor: int, offset: int) -> tuple[PrimFunc, tuple[()]]:
    """Pad storage so that neighbours along `dim` are `offset` elements (modulo `factor`) apart: no bank conflicts.

        A_shared: float32[64, 8]     storage_align(A_shared, 0, 32, 1)  ->  rows of 33 elements

    The padding is halo of the layout, after the next dimension. Call it after compute_at, which sets the shape.
    Called: storage_align in TVM, align_storage in Halide. Raises ScheduleError: a parameter, a blocked layout, or no
    padding gives that stride.
    """
    t = tensor_named(func, tensor, "storage_align")
    buffer = func.buffers[t]
    type, rank = buffer.type, len(buffer.type.shape)
    if t in func.params or not 0 <= dim < rank - 1 or type.layout.dims != Layout.row_major(rank).dims:
        raise ScheduleError(f"storage_align: dimension {dim} of {tensor} ({type}) has no padding of its own")
    for pad in range(factor):
        halo = [(before, pad if d == dim + 1 else after) for d, (before, after) in enumerate(type.layout.halo)]
        layout = type.layout.with_halo(halo)
        if layout.strides(type.shape)[dim] % factor == offset % factor:
            return replace(func, buffers={**func.buffers, t: buffer.with_type(type.with_layout(layout))}), ()
    raise ScheduleError(f"storage_align: no padding makes the stride {offset} modulo {factor}")
