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
        raise ScheduleError(f"set_scope: {tensor} is a parameter of {func.name} and stays in global memory", fix="cache it first")
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
