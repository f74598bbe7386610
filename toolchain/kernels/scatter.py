"""Scattering as loops: the data is copied (or zeros are), then the updates are walked in order. Work: elements plus updates.

An update that goes outside the data is left out (ONNX calls it an error; nothing here may write elsewhere). Of several at
one place the last wins, or, with a reduction, all are combined in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from toolchain import te
from toolchain.kernels.compute.shape import unflatten_index
from toolchain.kernels.op import Op, row_major
from toolchain.te.expr import Expr
from toolchain.te.ir_builder import IRBuilder
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

VECTOR = 16                                 # elements that are copied together
PARALLEL_ELEMENTS = 16 * 1024               # below this, waking another core costs more than it brings

COMBINE: dict[str, Callable[[Expr, Expr], Expr]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": te.maximum,
    "min": te.minimum,
}

At = Sequence[te.Index]


def scatter_elements(op: Op, name: str) -> PrimFunc:
    """x with updates[..., r, ...] put (or combined) at indices[..., r, ...] along `axis`.

        for i: y[i] = x[i]
        for r: y[..., indices[r], ...] = combine(y[..., indices[r], ...], updates[r])
    """
    axis, y = op.axis("axis", 0), _result(op)
    b = IRBuilder()
    _each(b, op.shape, lambda at: b.store(y, at, op.element(0, at)))

    def update(at: At) -> None:
        place, inside = _place(op.element(1, at), op.shape[axis])
        with b.when(inside):
            there = (*at[:axis], place, *at[axis + 1:])
            b.store(y, there, _combine(op)(y[there], op.element(2, at)))
    _each(b, op.in_shape(1), update, alone=axis != 0, vectors=False)
    return b.function(name, _given(op), [y])


def scatter_nd(op: Op, name: str) -> PrimFunc:
    """x with slices updates[r...] put (or combined) at x[indices[r..., :]].

        for i: y[i] = x[i]
        for r: y[indices[r, :], ...] = combine(y[indices[r, :], ...], updates[r, ...])
    """
    *many, depth = op.in_shape(1)
    y, b = _result(op), IRBuilder()
    _each(b, op.shape, lambda at: b.store(y, at, op.element(0, at)))

    def update(at: At) -> None:
        found = [_place(op.element(1, (*at, te.index(d))), op.shape[d]) for d in range(depth)]

        def put(rest: At) -> None:
            there = (*(place for place, _ in found), *rest)
            b.store(y, there, _combine(op)(y[there], op.element(2, (*at, *rest))))
        with b.when(te.all(*(inside for _, inside in found))):
            _each(b, op.shape[depth:], put, alone=False)
    _each(b, many, update, alone=False, vectors=False)
    return b.function(name, _given(op), [y])


def max_unpool(op: Op, name: str) -> PrimFunc:
    """Each element back at the place MaxPool took it from, zeros elsewhere; of one plane after the other, in parallel.

        for plane: y[plane, :] = 0
                   for r: y[plane, indices[plane, r] - plane's first] = x[plane, r]

    The indices are MaxPool's: flat over the whole pooled tensor, always of the element's own plane (others are left out).
    With output_shape the result is larger than what they count in; it lies in the corner. Source: ONNX MaxUnpool.
    """
    source, rank = op.in_shape(), len(op.in_shape()) - 2
    kernel, strides = op.attr("kernel_shape"), op.attr("strides") or (1,) * rank
    pads = op.attr("pads") or (0,) * (2 * rank)
    counted = tuple((n - 1) * s - (pads[d] + pads[rank + d]) + k
                    for d, (n, s, k) in enumerate(zip(source[2:], strides, kernel, strict=True)))
    planes, elements, room, whole = (math.prod(shape) for shape in (source[:2], source[2:], counted, op.shape[2:]))
    x, indices = (None if t is None else te.placeholder((planes, elements), t.dtype, name=t.name) for t in op.inputs[:2])
    y, b = Tensor("y", (planes, whole), op.dtype, Placeholder()), IRBuilder()
    kind = ForKind.PARALLEL if planes * whole >= PARALLEL_ELEMENTS else ForKind.SERIAL

    def read(i: int, flat: Tensor | None, plane: te.Var, r: te.Var) -> Expr:
        return op.element(i, unflatten_index(plane * elements + r, source)) if flat is None else flat[plane, r]
    with b.loop("plane", planes, kind) as plane:
        _each(b, (whole,), lambda at: b.store(y, (plane, *at), te.const(0, op.dtype)), alone=False)
        with b.loop("r", elements) as r:
            within = read(1, indices, plane, r) - te.index(plane * room).astype("int64")
            inside = within.astype("uint64") < te.const(room, "uint64")             # a negative one is a large number
            place = te.index(within, 0, room - 1)                                   # read where it lies inside only
            at = unflatten_index(place, counted)
            there = row_major(at, op.shape[2:]) if counted != op.shape[2:] else place
            fits = (te.index(i) < n for i, n, m in zip(at, op.shape[2:], counted, strict=True) if n < m)
            with b.when(te.all(inside, *fits)):
                b.store(y, (plane, there), read(0, x, plane, r))
    return b.function(name, [t for t in (x, indices) if t is not None], [y])


def _result(op: Op) -> Tensor:
    return Tensor("y", op.shape, op.dtype, Placeholder())


def _given(op: Op) -> list[Tensor]:
    return [t for t in op.inputs if t is not None]


def _combine(op: Op) -> Callable[[Expr, Expr], Expr]:
    return COMBINE[str(op.attr("reduction", "none"))]


def _place(index: Expr, n: int) -> tuple[te.Index, Expr]:
    """Where an index leads (negative ones count from the end), kept in [0, n), and whether it lay there."""
    nil, end = te.const(0, "int64"), te.const(n, "int64")
    wide = index.astype("int64")
    at = te.select(wide < nil, wide + end, wide)
    kept = te.minimum(te.maximum(at, nil), te.const(n - 1, "int64"))
    return te.index(kept, 0, n - 1), te.all(at >= nil, at < end)


def _each(
    b: IRBuilder, shape: Sequence[int], body: Callable[[At], None], *, alone: bool = True, vectors: bool = True,
) -> None:
    """The body at every place of a shape. alone: no two places along the first dimension touch the same element, so cores
    may share it. vectors: the same along the last one."""
    kind = ForKind.PARALLEL if alone and math.prod(shape) >= PARALLEL_ELEMENTS else ForKind.SERIAL
    with ExitStack() as loops:
        at: list[te.Index] = []
        for d, n in enumerate(shape[:-1]):
            at.append(te.index(loops.enter_context(b.loop(f"i{d}", n, kind if d == 0 else ForKind.SERIAL))))
        if not shape:
            body(at)
            return
        n, kind = shape[-1], kind if len(shape) == 1 else ForKind.SERIAL
        whole = n // VECTOR * VECTOR if vectors else 0
        if whole:
            with b.loop("block", whole // VECTOR, kind) as block, b.loop("lane", VECTOR, ForKind.VECTORIZED) as lane:
                body([*at, te.index(block) * VECTOR + lane])
        if whole < n:
            with b.loop("rest", n - whole, ForKind.SERIAL if whole else kind) as rest:
                body([*at, te.index(rest) + whole])


SCATTER = {"MaxUnpool": max_unpool, "ScatterElements": scatter_elements, "ScatterND": scatter_nd}
