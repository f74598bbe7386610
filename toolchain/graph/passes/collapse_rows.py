"""collapse_rows: one long row in place of many, in kernels that never look across rows.

Vectors run along rows: 14 elements leave two of 16 lanes empty in each, 196 fill twelve vectors and a quarter of one.
"""

from __future__ import annotations

import math
from dataclasses import replace

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.layout_options import is_elementwise


def collapse_rows(body: Graph) -> Graph:
    """The body of a fused group with its spatial dimensions joined; the same object where some operator needs them apart.

        Conv 1x1 (%0: float32[1, 272, 14, 14], %1: float32[272, 68, 1, 1])  ->  Conv 1 (%0: float32[1, 272, 196], ...)

    Needs a pointwise convolution, followed by elementwise operators, over row-major values without a halo: what lies in
    memory stays what it was, so callers of the kernel see no difference.
    """
    convolutions = [n for n in body.nodes if n.op == "Conv"]
    if len(convolutions) != 1 or not _is_pointwise(conv := convolutions[0], body):
        return body
    if not all(n is conv or (is_elementwise(n) and "axis" not in n.attrs) for n in body.nodes):
        return body
    spatial = body.types[conv.output].shape[2:]
    bias = {name for name in conv.inputs[2:] if body.readers(name) == (conv,)}
    types = {name: t if name in bias else _collapsed(t, spatial) for name, t in body.types.items()}
    if len(spatial) < 2 or any(t is None or (name in body.params and t != body.types[name]) for name, t in types.items()):
        return body
    flat = replace(conv, attrs={**conv.attrs, "kernel_shape": [1], "strides": [1], "pads": [0, 0], "dilations": [1]})
    return replace(body, nodes=tuple(flat if n is conv else n for n in body.nodes),
                   types={name: t for name, t in types.items() if t is not None})


def _is_pointwise(conv: Node, body: Graph) -> bool:
    kernel = body.types[conv.inputs[1]].shape[2:]
    return math.prod((*kernel, *conv.attrs.get("strides", ()))) == 1 and not any(conv.attrs.get("pads", ()))


def _collapsed(type_: TensorType, spatial: tuple[int, ...]) -> TensorType | None:
    """The type with its last dimensions joined, all of `spatial` or all 1 (which broadcast); None where they are neither."""
    if not type_.layout.is_row_major:
        return None
    if type_.elements == 1 and len(type_.shape) < len(spatial):
        return type_
    kept, last = type_.shape[:-len(spatial)], type_.shape[-len(spatial):]
    if last != spatial and last != (1,) * len(spatial):
        return None
    return TensorType.plain((*kept, math.prod(last)), type_.dtype)


__all__ = ["collapse_rows"]
