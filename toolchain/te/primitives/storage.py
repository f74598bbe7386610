"""Primitives that say where and how a tensor is stored: set_scope, set_layout. They change no statement."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core.errors import ScheduleError
from toolchain.core.layout import Layout
from toolchain.te.loop_ir import Buffer, PrimFunc
from toolchain.te.primitives.loops import tensor_named


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
