"""widen_moves: whole words in place of bytes, in kernels that only move them."""

from __future__ import annotations

from dataclasses import replace

from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph

WORD_BYTES = 4
BYTES = frozenset({"int8", "uint8", "int16", "uint16"})


def widen_moves(body: Graph) -> Graph:
    """The body of a fused group that packs the factors of a product of small integers, with four bytes as one number; the
    same object where it does something else.

        Layout (%0: int8[12, 128, 64]) -> int8[12, 128, 64] NCW16c4w   ->   Layout (%0: int32[12, 128, 16]) -> NCW16c

    Needs a conversion from row-major to blocks whose last one is a word of the last dimension, all words whole: what lies in
    memory stays what it was, so callers of the kernel see no difference.
    """
    if len(body.nodes) != 1 or body.nodes[0].op != "Layout":
        return body
    source, target = (body.types[v] for v in (*body.inputs, *body.outputs))
    last, group = target.layout.dims[-1]
    if target.dtype not in BYTES or not source.layout.is_row_major or target.layout.has_halo:
        return body
    whole = group * dtypes.itemsize(target.dtype) == WORD_BYTES and target.shape[-1] % group == 0
    if last != len(target.shape) - 1 or not whole:
        return body
    shape = (*target.shape[:-1], target.shape[-1] // group)
    words = Layout(target.layout.axes, target.layout.dims[:-1], target.layout.halo)
    types = {body.inputs[0]: TensorType.plain(shape, "int32"), body.outputs[0]: TensorType(shape, "int32", words)}
    return replace(body, types=types)


__all__ = ["widen_moves"]
