"""Which layouts a node's kernel can work in, and what each would cost: the options graph layout planning chooses from.

On a CPU, activations of spatial operators live in NCHW<lanes>c with a zero halo as wide as the reader's padding; weights in
the order their kernel reads them. Costs are rough microseconds (the planner compares sums), from Target facts alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout, default_axes
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.layout_options import LayoutOption
from toolchain.kernels.compute.nn import window
from toolchain.kernels.flops import flops
from toolchain.kernels.tiling import conv_tiles, matmul_tiles

PLAIN_EFFICIENCY = 0.35      # of a convolution in row-major layout, for rows of whole vectors
PLAIN_TRANSPOSED = 0.02      # a transposed convolution has no vector schedule there
CLOCK_GHZ = 3.0              # only scales costs in cycles to something comparable with bytes moved

Halo = Sequence[tuple[int, int]]


def blocked(rank: int, lanes: int, halo: Halo | None = None) -> Layout:
    """NCHW<lanes>c for a tensor of that rank, with a halo around the spatial dimensions."""
    dims = (*((d, 0) for d in range(rank)), (1, lanes))
    return Layout(default_axes(rank), dims, ((0, 0), (0, 0), *(halo or [(0, 0)] * (rank - 2))))


def weights(axes: str, order: Sequence[tuple[int, int]]) -> Layout:
    return Layout(axes, tuple(order), ((0, 0),) * len(axes))


def weight_axes(rank: int) -> str:
    return "OI" + default_axes(rank)[2:]


def layout_options(target: Target) -> Callable[[Node, Graph], Sequence[LayoutOption]]:
    """The `options` callback of `plan_layouts` for a target with vector registers."""
    def options(node: Node, graph: Graph) -> Sequence[LayoutOption]:
        rule = RULES.get(node.op)
        if rule is None or any(graph.types[v].dtype not in ("float32", "float16", "bfloat16") for v in node.outputs if v):
            return ()
        return rule(node, graph, target)
    return options


def _cost(node: Node, graph: Graph, target: Target, efficiency: float = 1.0) -> float:
    """Microseconds at the target's FMA peak, or at memory speed for what does not multiply."""
    lanes = target.lanes(dtypes.bits(graph.types[node.output].dtype))
    peak = 2 * lanes * target.fma_per_cycle * CLOCK_GHZ * 1e3            # FLOP per microsecond and core
    moved = sum(graph.types[v].elements for v in (*node.inputs, *node.outputs) if v) * 4 / 1e4
    return max(flops(node, graph.types) / peak, moved) / efficiency


def _lanes(node: Node, graph: Graph, target: Target) -> int:
    return target.lanes(dtypes.bits(graph.types[node.output].dtype))


def _bias(node: Node) -> tuple[Layout | None, ...]:
    return (None,) * (len(node.inputs) - 2)


def _pad_halo(node: Node, graph: Graph, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """How far the windows reach outside the input, per spatial dimension."""
    from toolchain.kernels.op import Op
    x, y = graph.types[node.inputs[0]], graph.types[node.output]
    op = Op(node, (), (), (y,), (x,), set())
    strides, dilations, before = window(op, kernel, x.shape[2:])
    return [
        (p, max(0, (o - 1) * s - p + (k - 1) * d - (n - 1)))
        for p, o, s, k, d, n in zip(before, y.shape[2:], strides, kernel, dilations, x.shape[2:], strict=True)
    ]


def _conv(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    x, w, y = graph.types[node.inputs[0]], graph.types[node.inputs[1]], graph.types[node.output]
    lanes, group, rank = _lanes(node, graph, target), node.attrs.get("group", 1), len(x.shape)
    out_channels, ic, *kernel = w.shape
    halo = _pad_halo(node, graph, kernel)
    rows = y.shape[-1] / (-(-y.shape[-1] // lanes) * lanes)
    plain = LayoutOption((None, None, *_bias(node)), (None,), _cost(node, graph, target, PLAIN_EFFICIENCY * rows))
    axes = weight_axes(rank)
    spatial = [(d, 0) for d in range(2, rank)]
    if out_channels == 1:                                # one channel cannot be padded to a vector of channels
        return [plain]
    if ic == 1 and group > 1 and out_channels == group:
        wl = weights(axes, [(0, 0), (1, 0), *spatial, (0, lanes)])
        use = out_channels / (-(-out_channels // lanes) * lanes)
        return [plain, LayoutOption((blocked(rank, lanes, halo), wl, *_bias(node)), (blocked(rank, lanes),),
                                    _cost(node, graph, target, 0.4 * use))]
    per_group = out_channels // group
    if group > 1 and (per_group % lanes or ic % lanes):
        return [plain]
    blocks = -(-per_group // lanes)
    tile = conv_tiles(math.prod(y.shape[2:-1]), y.shape[-1], blocks, target)[0]
    nr = tile.vectors * lanes
    use = per_group / (blocks * lanes)
    if ic < lanes and group == 1:                        # a first layer: few channels, read as scalars from plain planes
        wl = weights(axes, [(0, 0), (1, 0), *spatial, (0, nr)])
        xl = Layout.row_major(rank).with_halo(((0, 0), (0, 0), *halo))
        return [plain, LayoutOption((xl, wl, *_bias(node)), (blocked(rank, lanes),), _cost(node, graph, target, 0.7 * use))]
    use *= ic / (-(-ic // lanes) * lanes)
    wl = weights(axes, [(0, 0), (1, 0), *spatial, (1, lanes), (0, nr)])
    return [plain, LayoutOption((blocked(rank, lanes, halo), wl, *_bias(node)), (blocked(rank, lanes),),
                                _cost(node, graph, target, 0.8 * use))]


def _conv_transpose(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    x, w, y = graph.types[node.inputs[0]], graph.types[node.inputs[1]], graph.types[node.output]
    lanes, rank = _lanes(node, graph, target), len(x.shape)
    plain = LayoutOption((None, None, *_bias(node)), (None,), _cost(node, graph, target, PLAIN_TRANSPOSED))
    if node.attrs.get("group", 1) != 1 or w.shape[1] == 1 or any(d != 1 for d in node.attrs.get("dilations") or [1]):
        return [plain]
    _, out_channels, *kernel = w.shape
    from toolchain.kernels.compute.nn import _transpose_pads
    from toolchain.kernels.op import Op
    strides = [int(s) for s in node.attrs.get("strides") or [1] * (rank - 2)]
    before = _transpose_pads(Op(node, (), (), (y,), (x, w), set()), kernel, strides)
    halo = [
        (max(0, -(-k // s) - 1 - p // s), max(0, (-(-o // s) * s - 1 + p) // s - (n - 1)))
        for k, s, p, o, n in zip(kernel, strides, before, y.shape[2:], x.shape[2:], strict=True)
    ]
    blocks = -(-out_channels // lanes)
    width = -(-y.shape[-1] // strides[-1])
    tile = conv_tiles(1, width, blocks, target)[0]
    wl = weights("IO" + default_axes(rank)[2:], [(1, 0), *((d, 0) for d in range(2, rank)), (0, 0), (1, tile.vectors * lanes)])
    use = out_channels / (blocks * lanes)
    return [plain, LayoutOption((blocked(rank, lanes, halo), wl, *_bias(node)), (blocked(rank, lanes),),
                                _cost(node, graph, target, 0.7 * use))]


def _pool(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    rank, lanes = len(graph.types[node.inputs[0]].shape), _lanes(node, graph, target)
    plain = LayoutOption((None,), (None,), _cost(node, graph, target, PLAIN_EFFICIENCY))
    if graph.types[node.output].shape[1] == 1:
        return [plain]
    average = node.op == "AveragePool"
    halo = _pad_halo(node, graph, node.attrs["kernel_shape"]) if average else None
    return [plain, LayoutOption((blocked(rank, lanes, halo),), (blocked(rank, lanes),), _cost(node, graph, target, 0.5))]


def _channelwise(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Blocked in, blocked out, or plain: per-channel operators on spatial tensors."""
    rank, lanes = len(graph.types[node.inputs[0]].shape), _lanes(node, graph, target)
    plain = LayoutOption((None,) * len(node.inputs), (None,) * len(node.outputs), _cost(node, graph, target, 0.25))
    if rank < 3 or graph.types[node.output].shape[1] == 1:
        return [plain]
    extra = (None,) * (len(node.inputs) - 1)
    return [plain, LayoutOption((blocked(rank, lanes), *extra), (blocked(rank, lanes),), _cost(node, graph, target, 0.5))]


def _concat(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    types = [graph.types[v] for v in node.inputs]
    rank, lanes = len(types[0].shape), _lanes(node, graph, target)
    plain = LayoutOption((None,) * len(types), (None,), _cost(node, graph, target, 0.8))
    axis = node.attrs["axis"] % rank
    if rank < 3 or (axis == 1 and any(t.shape[1] % lanes for t in types[:-1])):
        return [plain]
    layout = blocked(rank, lanes)
    return [plain, LayoutOption((layout,) * len(types), (layout,), _cost(node, graph, target))]


def _matmul(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    a, b, y = graph.types[node.inputs[0]], graph.types[node.inputs[1]], graph.types[node.output]
    if not graph.is_constant(node.inputs[1]) or len(b.shape) != 2 or len(a.shape) < 2:
        return ()
    lanes = _lanes(node, graph, target)
    tile = matmul_tiles(math.prod(a.shape[:-1]), -(-b.shape[1] // lanes), target)[0]
    packed = weights("KN", [(1, 0), (0, 0), (1, tile.vectors * lanes)])
    _ = y
    return [LayoutOption((None, packed), (None,), _cost(node, graph, target))]


Rule = Callable[[Node, Graph, Target], Sequence[LayoutOption]]

RULES: dict[str, Rule] = {
    "AveragePool": _pool,
    "BatchNormalization": _channelwise,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _channelwise,
    "GlobalMaxPool": _channelwise,
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Resize": _channelwise,
}
