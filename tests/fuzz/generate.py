"""Random networks: `generate(seed)` is the same case wherever it runs."""

from __future__ import annotations

import random
from collections.abc import Callable

from . import layers, operators, selections
from .builder import Builder, Case

Proposal = Callable[[Builder], None]

WEIGHTS: dict[Proposal, int] = {
    operators.unary: 12, operators.on_a_domain: 4, operators.jump: 3, operators.binary: 16, operators.comparison: 2,
    operators.logic: 1, operators.bits: 1, operators.where: 3, operators.cast: 3, operators.reshape: 7,
    operators.transpose: 7, operators.slices: 6, operators.split: 4, operators.concat: 6, operators.pad: 4,
    operators.expand: 2, operators.tile: 2, operators.gather: 4, operators.scatter: 2, operators.depth_space: 2,
    operators.moves: 4, operators.resize: 3,
    layers.conv: 14, layers.conv_transpose: 4, layers.pool: 8, layers.matmul: 8, layers.einsum: 2,
    layers.normalization: 8, layers.reduce: 6, layers.arg_reduce: 2, layers.recurrent: 3, layers.quantized: 3,
    selections.non_zero: 2, selections.compress: 2, selections.compress_rows_twice: 2, selections.unique: 2,
    selections.non_max_suppression: 2, selections.counted: 2, selections.selected_twice: 2,
}
FOCUS = 0.5                 # of the networks draw from a few proposals only: longer chains of the same kind
MOST_NODES = 14


def generate(seed: int) -> Case:
    """A network of one to MOST_NODES nodes, inputs for it, and the outputs ONNX Runtime computes."""
    rng = random.Random(seed)
    b = Builder(rng)
    proposals = list(WEIGHTS)
    if rng.random() < FOCUS:
        proposals = rng.choices(proposals, [WEIGHTS[p] for p in proposals], k=6)
    weights = [WEIGHTS[p] for p in proposals]
    wanted = rng.choice((1, 2, 3, 4, 5, 6, 8, 10, MOST_NODES))
    for _ in range(6 * wanted):
        (propose,) = rng.choices(proposals, weights)
        try:
            propose(b)
        except LookupError:
            continue
        if len(b.nodes) >= wanted:
            break
    if not b.nodes:
        b.op("Relu", b.input((3,)))
    return b.case()
