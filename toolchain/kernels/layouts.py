"""Which layouts a node's kernel can work in, and what each would cost: the options graph layout planning chooses from.

On a CPU, activations of spatial operators live in NCHW<lanes>c with a zero halo as wide as the reader's padding; weights in
the order their kernel reads them, one register tile's columns innermost. Costs are rough microseconds (the planner compares
sums), from Target facts and the efficiencies below, which say what share of the FMA peak each kind of kernel reaches.
Windows are explicit here: the importer leaves no auto_pad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from toolchain.core import dtype as dtypes
from toolchain.core.layout import Layout, TensorType, default_axes
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.layout_options import LayoutOption
from toolchain.graph.passes.separate_pools import gains
from toolchain.graph.winograd import tiles
from toolchain.kernels.algorithms import Geometry, winograd_parts
from toolchain.kernels.flops import flops
from toolchain.kernels.instructions import bytes_and_words, dot_of
from toolchain.kernels.loops import LOOPS
from toolchain.kernels.tiling import conv_tiles, matmul_tiles

CLOCK_GHZ = 3.0                 # only scales cycles to something comparable with bytes moved
BYTES_PER_US = 10_000.0         # of operands read and written once

BLOCKED = 0.8                   # direct convolution over channel blocks
FIRST_LAYER = 0.7               # few input channels, read from plain planes
TRANSPOSED = 0.7
WINOGRAD = {2: 1.3, 3: 1.5, 4: 1.8}     # of the direct convolution's operations
DEPTHWISE = 0.4                 # one multiply-add per load
POOL = 0.5
PLAIN = 0.6                     # a convolution in row-major layout, for rows of whole vectors
PLAIN_GUARDED = 0.35            # the same, asking at each element whether it lies in the padding
PLAIN_DEPTHWISE = 0.2           # as PLAIN, one multiply-add per load
PLAIN_DEPTHWISE_GUARDED = 0.1
PLAIN_POOL = 0.2
PLAIN_TRANSPOSED = 0.35
PLAIN_TRANSPOSED_GUARDED = 0.1
DILATED_TRANSPOSED = 0.02       # no vector schedule there

BYTES = {"int8", "uint8"}
OF_BYTES = {"Concat", "MaxPool"}   # beside the integer products: what stands between them in networks

Halo = Sequence[tuple[int, int]]
Rule = Callable[[Node, Graph, Target], Sequence[LayoutOption]]


def layout_options(target: Target) -> Callable[[Node, Graph], Sequence[LayoutOption]]:
    """The `options` callback of `plan_layouts` for a target with vector registers."""
    def options(node: Node, graph: Graph) -> Sequence[LayoutOption]:
        if node.op in LOOPS and not (node.op == "Pad" and node.attrs.get("mode", "constant") == "constant"):
            return (LayoutOption((None,) * len(node.inputs), (None,) * len(node.outputs), 0.0, bare=True),)
        if (integers := INTEGER_RULES.get(node.op)) is not None:
            return integers(node, graph, target)
        rule = RULES.get(node.op)
        kinds = {graph.types[v].dtype for v in node.outputs if v}
        if rule is None or not (all(map(dtypes.is_float, kinds)) or (kinds <= BYTES and node.op in OF_BYTES)):
            return ()
        return rule(node, graph, target)
    return options


def blocked(rank: int, lanes: int, halo: Halo | None = None) -> Layout:
    """NCHW<lanes>c for a tensor of that rank, with a halo around the spatial dimensions."""
    dims = (*((d, 0) for d in range(rank)), (1, lanes))
    return Layout(default_axes(rank), dims, ((0, 0), (0, 0), *(halo or [(0, 0)] * (rank - 2))))


def weights(axes: str, order: Sequence[tuple[int, int]]) -> Layout:
    return Layout(axes, tuple(order), ((0, 0),) * len(axes))


def _option(
    node: Node, graph: Graph, target: Target, efficiency: float, inputs: Sequence[Layout | None] = (),
    output: Layout | None = None,
) -> LayoutOption:
    """An option whose cost is the node's arithmetic at `efficiency` of the peak, or its traffic when that takes longer.
    Inputs beyond those named, and outputs beyond the first, are plain."""
    lanes = _lanes(node, graph, target)
    flops_per_us = 2 * lanes * target.fma_per_cycle * CLOCK_GHZ * 1e3
    moved = sum(_bytes(graph.types[v]) for v in (*node.inputs, *node.outputs) if v)
    cost = max(flops(node, graph.types) / flops_per_us / efficiency, moved / BYTES_PER_US)
    rest = (None,) * (len(node.inputs) - len(inputs))
    return LayoutOption((*inputs, *rest), (output, *(None,) * (len(node.outputs) - 1)), cost)


def _bytes(kind: TensorType) -> int:
    return kind.elements * dtypes.itemsize(kind.dtype)


def _lanes(node: Node, graph: Graph, target: Target) -> int:
    """Elements of a block: of bytes as many as of the int32 sums they come from."""
    kind = graph.types[node.output].dtype
    return target.lanes(32 if kind in BYTES else dtypes.bits(kind))


def _used(n: int, block: int) -> float:
    """What share of whole blocks n elements fill."""
    return n / (-(-n // block) * block)


def _halo(node: Node, graph: Graph, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """How far a window reaches outside its input, before and after, per spatial dimension."""
    x, y = graph.types[node.inputs[0]], graph.types[node.output]
    spatial = len(kernel)
    return [
        (before, max(0, (o - 1) * stride - before + (k - 1) * dilation - (n - 1)))
        for before, o, stride, k, dilation, n in zip(
            node.attrs["pads"][:spatial], y.shape[2:], node.attrs["strides"], kernel, node.attrs["dilations"], x.shape[2:],
            strict=True)
    ]


def _conv(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Depthwise, a first layer of few channels, or channel blocks; plain for what has no whole blocks per group."""
    x, w, y = graph.types[node.inputs[0]], graph.types[node.inputs[1]], graph.types[node.output]
    lanes, group, rank = _lanes(node, graph, target), node.attrs.get("group", 1), len(x.shape)
    out_channels, ic, *kernel = w.shape
    halo = _halo(node, graph, kernel)
    pointwise = math.prod(kernel) == math.prod(node.attrs["strides"]) == 1
    used = _used(math.prod(y.shape[2:]) if pointwise and not any(map(any, halo)) else y.shape[-1], lanes)
    depthwise = ic == 1 and group == out_channels
    options = _planes(node, graph, target, halo, (PLAIN_DEPTHWISE * used, PLAIN_DEPTHWISE_GUARDED * used) if depthwise else
                      (PLAIN * used, PLAIN_GUARDED * used))
    if out_channels == 1:                                   # one channel cannot be padded to a vector of channels
        return options
    axes, spatial = "OI" + default_axes(rank)[2:], [(d, 0) for d in range(2, rank)]
    out, bias = blocked(rank, lanes), _bias(node, graph, lanes)
    if depthwise:
        packed = weights(axes, [(0, 0), (1, 0), *spatial, (0, lanes)])
        options.append(_option(node, graph, target, DEPTHWISE * _used(out_channels, lanes),
                               (blocked(rank, lanes, halo), packed, *bias), out))
        return options
    per_group = out_channels // group
    if group > 1 and (per_group % lanes or ic % lanes):
        return options
    blocks = -(-per_group // lanes)
    tiles = conv_tiles(math.prod(y.shape[2:-1]), y.shape[-1], blocks, target, ic * math.prod(kernel), y.shape[0])
    columns = lanes * next(t.vectors for t in tiles if group == 1 or blocks % t.vectors == 0)
    if ic < lanes and group == 1:
        packed = weights(axes, [(0, 0), (1, 0), *spatial, (0, columns)])
        planes = Layout.row_major(rank).with_halo(((0, 0), (0, 0), *halo))
        options.append(_option(node, graph, target, FIRST_LAYER * _used(per_group, lanes), (planes, packed, *bias), out))
    else:
        packed = weights(axes, [(0, 0), (1, 0), *spatial, (1, lanes), (0, columns)])
        options.append(_option(node, graph, target, BLOCKED * _used(per_group, lanes) * _used(ic, lanes),
                               (blocked(rank, lanes, halo), packed, *bias), out))
    return options


def _planes(
    node: Node, graph: Graph, target: Target, halo: Halo, efficiencies: tuple[float, float],
) -> list[LayoutOption]:
    """Row-major in and out, where the window reaches outside: asking at each element, or with a halo around the input.
    `efficiencies`: with the halo (or without need of one), and asking."""
    free, guarded = efficiencies
    if not any(map(any, halo)):
        return [_option(node, graph, target, free)]
    planes = Layout.row_major(len(halo) + 2).with_halo(((0, 0), (0, 0), *halo))
    return [_option(node, graph, target, guarded), _option(node, graph, target, free, (planes,))]


def _winograd(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Channel blocks, weights in panels per phase and position; the halo is what the tiles reach outside the input."""
    x, u, y = (graph.types[v] for v in (*node.inputs[:2], node.output))
    m, taps, pads, lanes = node.attrs["m"], node.attrs.get("taps", 3), node.attrs["pads"], _lanes(node, graph, target)
    stride = u.shape[0] if node.op == "WinogradConvTranspose" else 1
    height, width = (tiles(n, stride) for n in y.shape[2:])
    step = node.attrs.get("stride", 1)
    if stride > 1:
        before = [taps - 1 - p // stride for p in pads]
        more = [(stride - 1 + p) // stride - p // stride for p in pads]          # the last phase starts later
    else:
        before, more = pads[:2], [0, 0]
    halo = [(max(b, 0), max(0, (tiles(o, m) * m + taps - 1 + later) * step - b - n))
            for b, later, o, n in zip(before, more, (height, width), x.shape[2:], strict=True)]
    shape = Geometry(x.shape[0], u.shape[-1], y.shape[1], height, width, taps, stride)
    columns = winograd_parts(shape, m, target).tile.vectors * lanes
    if stride > 1:
        packed = weights("PQJKOI", [(4, 0), (0, 0), (1, 0), (2, 0), (3, 0), (5, 0), (4, columns)])
    else:
        packed = weights("JKOI", [(2, 0), (0, 0), (1, 0), (3, 0), (2, columns)])
    return [_option(node, graph, target, WINOGRAD[m], (blocked(4, lanes, halo), packed, *_bias(node, graph, lanes)),
                    blocked(4, lanes))]


def _bias(node: Node, graph: Graph, lanes: int) -> tuple[Layout | None, ...]:
    """A constant bias is padded to whole vectors, so that the channels of a tail need no mask."""
    padded = weights("A", [(0, 0), (0, lanes)])
    return tuple(padded if name and graph.is_constant(name) else None for name in node.inputs[2:])


def _conv_transpose(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Channel blocks; the halo is what the taps of the first and last phase reach outside the input."""
    x, w, y = graph.types[node.inputs[0]], graph.types[node.inputs[1]], graph.types[node.output]
    lanes, rank = _lanes(node, graph, target), len(x.shape)
    _, out_channels, *kernel = w.shape
    if any(d != 1 for d in node.attrs["dilations"]):
        return [_option(node, graph, target, DILATED_TRANSPOSED)]
    strides = node.attrs["strides"]
    halo = [
        (max(0, -(-k // s) - 1 - p // s), max(0, (-(-o // s) * s - 1 + p) // s - (n - 1)))
        for k, s, p, o, n in zip(kernel, strides, node.attrs["pads"][:rank - 2], y.shape[2:], x.shape[2:], strict=True)
    ]
    used = _used(-(-y.shape[-1] // strides[-1]), lanes)
    options = _planes(node, graph, target, halo, (PLAIN_TRANSPOSED * used, PLAIN_TRANSPOSED_GUARDED * used))
    if node.attrs.get("group", 1) != 1 or out_channels == 1:
        return options
    rows, columns = (-(-n // s) for n, s in zip((1, *y.shape[2:])[-2:], (1, *strides)[-2:], strict=True))
    steps = x.shape[1] * math.prod(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    tile = conv_tiles(rows if rank == 4 else 1, columns, -(-out_channels // lanes), target, steps)[0]
    packed = weights("IO" + default_axes(rank)[2:],
                     [(1, 0), *((d, 0) for d in range(2, rank)), (0, 0), (1, tile.vectors * lanes)])
    options.append(_option(node, graph, target, TRANSPOSED * _used(out_channels, lanes),
                           (blocked(rank, lanes, halo), packed, *_bias(node, graph, lanes)), blocked(rank, lanes)))
    return options


def _pool(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """A halo of zeros pads an average; the padding of a maximum is -inf and stays a select."""
    rank, lanes = len(graph.types[node.inputs[0]].shape), _lanes(node, graph, target)
    kernel = node.attrs["kernel_shape"]
    halo = _halo(node, graph, kernel)
    average = node.op == "AveragePool"
    one_by_one = max(1.0, math.prod(kernel) / sum(kernel))          # dimensions one after the other: fewer operations
    options = _planes(node, graph, target, halo, (PLAIN_POOL, PLAIN_POOL * one_by_one))[:None if average else 1]
    if graph.types[node.output].shape[1] > 1:
        fewer = one_by_one if node.op == "MaxPool" and gains(kernel) else 1.0
        halo = halo if average else None
        options.append(_option(node, graph, target, POOL * fewer, (blocked(rank, lanes, halo),), blocked(rank, lanes)))
    return options


def _channelwise(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Blocked in, blocked out, or plain: per-channel operators on spatial tensors."""
    rank, lanes = len(graph.types[node.inputs[0]].shape), _lanes(node, graph, target)
    options = [_option(node, graph, target, 0.5 * POOL)]
    if rank >= 3 and graph.types[node.output].shape[1] > 1:
        options.append(_option(node, graph, target, POOL, (blocked(rank, lanes),), blocked(rank, lanes)))
    return options


def _concat(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Blocked where every piece but the last is whole blocks."""
    types = [graph.types[v] for v in node.inputs]
    rank, lanes = len(types[0].shape), _lanes(node, graph, target)
    options = [_option(node, graph, target, 1.0)]
    axis = node.attrs["axis"] % rank
    if rank >= 3 and types[0].shape[1] > 1 and not (axis == 1 and any(t.shape[1] % lanes for t in types[:-1])):
        options.append(_option(node, graph, target, 1.0, (blocked(rank, lanes),) * len(types), blocked(rank, lanes)))
    return options


def _matmul(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """A constant second operand is packed into panels as wide as the register tile."""
    a, b = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    if not graph.is_constant(node.inputs[1]) or len(b.shape) != 2 or len(a.shape) < 2:
        return ()
    lanes = _lanes(node, graph, target)
    tile = matmul_tiles(math.prod(a.shape[:-1]), -(-b.shape[1] // lanes), target, streamed=True,
                        row_bytes=a.shape[-1] * dtypes.itemsize(a.dtype))[0]
    return [_option(node, graph, target, BLOCKED, (None, weights("KN", [(1, 0), (0, 0), (1, tile.vectors * lanes)])))]


def _integer_matmul(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """The second operand in panels of groups: packed when the model is built or, where it is computed, by a conversion."""
    w, panel = graph.types[node.inputs[1]], node.attrs["panel"]
    group, rank = _group(node, graph, target), len(w.shape)
    order = [*((d, 0) for d in range(rank)), (rank - 2, panel), (rank - 1, group)]
    return [_option(node, graph, target, BLOCKED * group, (None, weights(default_axes(rank), order)))]


def _integer_conv(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Channels in blocks of as many as a vector has sums, read a group at a time. Where a group is longer, blocks are as
    long as that, and what reads the result decides which of the two it has."""
    x = graph.types[node.inputs[0]]
    lanes, rank, axes = target.lanes(32), len(x.shape), "OI" + default_axes(len(x.shape))[2:]
    spatial = [(d, 0) for d in range(2, rank)]
    if node.attrs.get("group", 1) > 1:
        packed = weights(axes, [(0, 0), (1, 0), *spatial, (0, lanes)])
        bias = _bias(node, graph, lanes)
        return [_option(node, graph, target, DEPTHWISE, (blocked(rank, n), packed, *bias), blocked(rank, n))
                for n in _blocks(target)]
    group, panel = _group(node, graph, target), node.attrs["panel"]
    block = max(group, min(lanes, x.shape[1]))
    inner = [(1, block // group)] if block > group else []
    packed = weights(axes, [(0, 0), (1, 0), *spatial, *inner, (0, panel), (1, group)])
    return [_option(node, graph, target, BLOCKED * group, (blocked(rank, block), packed), blocked(rank, n))
            for n in dict.fromkeys((lanes, max(lanes, group)))]


def _blocks(target: Target) -> tuple[int, ...]:
    """Channels that lie together in activations of bytes: as many as a vector has sums, or as one instruction multiplies."""
    lanes, kind = target.lanes(32), bytes_and_words(target, pairs=True)[0]
    return (lanes, kind.group) if kind is not None and kind.pairs else (lanes,)


def _group(node: Node, graph: Graph, target: Target) -> int:
    """How many factors one lane of the target's dot product takes."""
    x, w = (graph.types[v].dtype for v in node.inputs[:2])
    kind = dot_of(x, w, target, node.attrs.get("pairs", False))
    assert kind is not None, "a target without such products does not have the node"
    return kind.group


def _pad(node: Node, graph: Graph, target: Target) -> Sequence[LayoutOption]:
    """Of spatial dimensions: blocked as its data is."""
    types = [graph.types[v] for v in (node.inputs[0], node.output)]
    rank = len(types[0].shape)
    blocks = _blocks(target) if types[0].dtype in BYTES else (target.lanes(32),)
    plain = [_option(node, graph, target, 1.0)]
    if rank < 3 or types[0].shape[:2] != types[1].shape[:2]:
        return plain
    return [*plain, *(_option(node, graph, target, 1.0, (blocked(rank, n),), blocked(rank, n))
                      for n in blocks if types[0].shape[1] % n == 0)]


INTEGER_RULES: dict[str, Rule] = {
    "IntegerConv": _integer_conv,
    "IntegerMatMul": _integer_matmul,
    "Pad": _pad,
}

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
    "WinogradConv": _winograd,
    "WinogradConvTranspose": _winograd,
}
