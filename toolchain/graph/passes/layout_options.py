"""What kernels tell the layout planner about a node: in which layouts it can read and write, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from toolchain.core.layout import Layout
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import FusionClass, info


@dataclass(frozen=True, slots=True)
class LayoutOption:
    """One way to run a node: a layout per input and per output (None: plain row-major), and its cost in microseconds.

    An input's layout may have a halo: a wish, fulfilled with the maximum over all readers. Halos of outputs are ignored:
    they come from what readers wish. bare: none of its inputs and outputs may have one, its code knows only elements.
    """

    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout | None, ...]
    cost: float
    bare: bool = False


ANY: tuple[LayoutOption, ...] = (LayoutOption((), (), 0.0),)
"""The answer for a node that runs in whatever layout its data has (pools, Concat): see `pass_through`."""

Options: TypeAlias = Callable[[Node, Graph], Sequence[LayoutOption]]

BASE: TypeAlias = tuple[tuple[int, int], ...] | None
"""A layout without its halo, for comparing: its physical dimensions, None for plain."""


@lru_cache(4096)
def base(layout: Layout | None) -> BASE:
    """Layouts with the same base differ at most in halo and in the letters of their axes."""
    if layout is None or layout.dims == tuple((d, 0) for d in range(len(layout.axes))):
        return None
    return layout.dims


def without_halo(layout: Layout | None) -> Layout | None:
    """The layout without halo; None when that is plain."""
    return None if base(layout) is None or layout is None else layout.with_halo(((0, 0),) * len(layout.axes))


def is_elementwise(node: Node) -> bool:
    """Whether output element i reads element i of every operand (some of its dimensions dropped by broadcasting)."""
    return info(node.op).fusion <= FusionClass.BROADCAST and info(node.op).category != "move"


def pass_through(node: Node, graph: Graph, layouts: Iterable[Layout | None]) -> tuple[LayoutOption, ...]:
    """An option at no cost for each of `layouts` that is legal for `node`, and the plain one.

    The first output and every operand of its shape get the layout. Of other operands, elementwise operators read those of
    full rank in what `broadcast_layout` leaves of it, the rest plain; other operators (pools, Concat, Resize) read operands
    of the output's rank and dtype in the layout itself. Concat and Slice need whole blocks in every operand.
    """
    result = graph.types[node.output]
    made = []
    for layout in (None, *layouts):
        if layout is not None and len(layout.axes) != len(result.shape):
            continue
        inputs = tuple(_operand(node, graph, name, layout) if layout and name else None for name in node.inputs)
        if layout is not None and not is_elementwise(node):
            whole = [graph.types[n].shape for n, got in zip(node.inputs, inputs) if got] + [result.shape]
            if node.op in ("Concat", "Slice") and any(layout.has_tail(shape) for shape in whole):
                continue
        made.append(LayoutOption(inputs, (layout,) + (None,) * (len(node.outputs) - 1), 0.0))
    return tuple({(tuple(map(base, o.inputs)), base(o.outputs[0])): o for o in made}.values())


def _operand(node: Node, graph: Graph, name: str, layout: Layout) -> Layout | None:
    operand, result = graph.types[name], graph.types[node.output]
    if operand.shape == result.shape:
        return layout
    if len(operand.shape) != len(result.shape):
        return None
    if is_elementwise(node):
        return broadcast_layout(layout, operand.shape, result.shape)
    return layout if operand.dtype == result.dtype else None


def broadcast_layout(layout: Layout, shape: Sequence[int], full: Sequence[int]) -> Layout | None:
    """`layout` of a tensor of shape `full`, for an operand of shape `shape` that is broadcast to it.

    Blocks stay on the dimensions the operand has in full: [1, C, 1, 1] keeps 16c, [1, 1, H, W] does not. None (plain) when
    the places in memory are those of the plain layout anyway.
    """
    kept = tuple((d, block) for d, block in layout.dims if block == 0 or shape[d] == full[d])
    left = Layout(layout.axes, kept, ((0, 0),) * len(shape))
    extents = [(d, n) for (d, _), n in zip(left.dims, left.physical_shape(shape), strict=True) if n != 1]
    in_order = [d for d, _ in extents] == sorted(d for d, _ in extents)
    return None if in_order and not left.has_tail(shape) else left
