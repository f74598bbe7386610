"""DeformConv, RoiAlign and GridSample by samples with channels innermost: rules of `decompose`.

    y = DeformConv(x, w, offset, b, mask)   ->   s = DeformSample(Transpose(x), offset, mask)     each sample taken once
                                                 y = Transpose(MatMul(s, w') + b)
    y = RoiAlign(x, regions, image)         ->   y = Transpose(RoiSample(Transpose(x), regions, image))
    y = GridSample(x, grid)                 ->   y = Transpose(GridSampleLast(Transpose(x), grid))     of enough channels

A sample is four rows of channels, mixed; of DeformConv then a row of the product's left side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.infer import where
from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting

ENOUGH_CHANNELS = 16        # to read rows of channels: a vector of them


def decompose_deform(node: Node, state: Rewriting) -> Sequence[Node]:
    """See the module. Raises ImportModelError: other than two spatial dimensions."""
    x, w, offset, b, mask = (*node.inputs, "", "")[:5]
    if len(state.shape(x)) != 4:
        raise ImportModelError("DeformConv of other than two spatial dimensions is not supported", where=where(node))
    (n, channels, height, width), (made, per_group, kh, kw) = state.shape(x), state.shape(w)
    rows, columns = state.shape(offset)[2:]
    groups, taps, label = int(node.attrs.get("group", 1)), kh * kw, node.name or node.op
    per_made, depth = made // groups, taps * per_group
    nodes: list[Node] = []

    def add(op: str, inputs: tuple[str, ...], shape: tuple[int, ...], out: str = "", **attrs: object) -> str:
        out = out or state.value(f"{label}.{op.lower()}", TensorType.plain(shape, state.types[x].dtype))
        nodes.append(Node(op, inputs, (out,), attrs, f"{label}.{op.lower()}"))
        return out

    def reshape(value: str, *shape: int, out: str = "") -> str:
        return add("Reshape", (value, state.int64(*shape)), shape, out)

    moved = add("Transpose", (x,), (n, height, width, channels), perm=(0, 2, 3, 1))
    steering = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1, "offset_group": 1}
    attrs: dict[str, object] = {name: node.attrs.get(name) or default for name, default in steering.items()}
    attrs["kernel_shape"] = (kh, kw)
    samples = add("DeformSample", (moved, offset, mask) if mask else (moved, offset),
                  (n, groups, rows, columns, taps, per_group), "", **attrs)
    weights = add("Transpose", (reshape(w, groups, per_made, per_group, taps),), (groups, taps, per_group, per_made),
                  perm=(0, 3, 2, 1))
    batch = (n,) if groups == 1 else (n, groups)
    left = reshape(samples, math.prod(batch) * rows * columns, depth) if groups == 1 else reshape(
        samples, *batch, rows * columns, depth)
    right = reshape(weights, depth, made) if groups == 1 else reshape(weights, groups, depth, per_made)
    product = add("MatMul", (left, right), (*state.shape(left)[:-1], per_made))
    if b:
        bias = b if groups == 1 else reshape(b, groups, 1, per_made)
        product = add("Add", (product, bias), state.shape(product))
    apart = reshape(product, n, groups, rows * columns, per_made)
    back = add("Transpose", (apart,), (n, groups, per_made, rows * columns), perm=(0, 1, 3, 2))
    reshape(back, n, made, rows, columns, out=node.output)
    return nodes


def decompose_roi(node: Node, state: Rewriting) -> Sequence[Node]:
    """See the module. Raises ImportModelError: as many samples as the data say."""
    if int(node.attrs.get("sampling_ratio", 0)) <= 0:
        raise ImportModelError(
            "RoiAlign with sampling_ratio 0 takes as many samples as its data say, which is not supported",
            where=where(node), fix="set sampling_ratio")
    x, label = node.inputs[0], node.name or node.op
    (n, channels, height, width), (regions, _, rows, columns) = state.shape(x), state.shape(node.output)
    kind = state.types[x].dtype
    moved = state.value(f"{label}.transpose", TensorType.plain((n, height, width, channels), kind))
    cells = state.value(f"{label}.cells", TensorType.plain((regions, rows, columns, channels), kind))
    return [
        Node("Transpose", (x,), (moved,), {"perm": (0, 2, 3, 1)}, f"{label}.transpose"),
        Node("RoiSample", (moved, *node.inputs[1:]), (cells,), node.attrs, f"{label}.samples"),
        Node("Transpose", (cells,), (node.output,), {"perm": (0, 3, 1, 2)}, f"{label}.back"),
    ]


def sample_rows(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """GridSample of many channels, see the module: each place is read in rows, not gathered channel by channel."""
    x, grid, label = *node.inputs, node.name or node.op
    shape, made, kind = state.shape(x), state.shape(node.output), state.types[x].dtype
    if shape[1] < ENOUGH_CHANNELS:
        return None
    rank = len(shape) - 2
    moved = state.value(f"{label}.transpose", TensorType.plain((shape[0], *shape[2:], shape[1]), kind))
    samples = state.value(f"{label}.samples", TensorType.plain((made[0], *made[2:], made[1]), kind))
    return [
        Node("Transpose", (x,), (moved,), {"perm": (0, *range(2, rank + 2), 1)}, f"{label}.transpose"),
        Node("GridSampleLast", (moved, grid), (samples,), node.attrs, f"{label}.samples"),
        Node("Transpose", (samples,), (node.output,), {"perm": (0, rank + 1, *range(1, rank + 1))}, f"{label}.back"),
    ]


SAMPLED: Mapping[str, Callable[[Node, Rewriting], Sequence[Node]]] = {
    "DeformConv": decompose_deform,
    "RoiAlign": decompose_roi,
}
