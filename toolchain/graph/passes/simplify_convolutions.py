"""Rules of `simplify` on convolutions. See simplify.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting, Rule


def transposed_without_stride(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """A transposed convolution with stride 1 is a convolution with its taps turned round, inputs and outputs exchanged.

        y = ConvTranspose(x, w, b) {pads: p}   ->   y = Conv(x, w', b) {pads: dilation * (k - 1) - p}

    Left alone: computed weights, output_padding, and pads that cut off more than the taps reach.
    """
    attrs, w = node.attrs, state.constant(node.inputs[1])
    rank = len(state.shape(node.inputs[0])) - 2
    unstated = "pads" not in attrs or any(attrs.get("output_padding") or ())
    if w is None or unstated or any(s != 1 for s in attrs.get("strides") or ()):
        return None
    dilations, kernel, group = tuple(attrs.get("dilations") or (1,) * rank), w.shape[2:], int(attrs.get("group", 1))
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    pads = tuple(r - p for r, p in zip((*reach, *reach), attrs["pads"], strict=True))
    if min(pads, default=0) < 0:
        return None
    turned = state.param(f"{node.inputs[1]}.turned", turned_round(w, group), key=("turned", node.inputs[1], group))
    new = {"dilations": dilations, "group": group, "kernel_shape": kernel, "pads": pads, "strides": (1,) * rank}
    return [Node("Conv", (node.inputs[0], turned, *node.inputs[2:]), node.outputs, new, node.name, node.sources)]


def turned_round(weights: np.ndarray, group: int) -> np.ndarray:
    """(C, M/group, k...) of a ConvTranspose as (M, C/group, k...) of a Conv, each spatial axis reversed."""
    channels, outputs, *kernel = weights.shape
    apart = weights.reshape(group, channels // group, outputs, *kernel).swapaxes(1, 2)
    return np.ascontiguousarray(np.flip(apart, tuple(range(3, apart.ndim)))).reshape(
        group * outputs, channels // group, *kernel)


CONVOLUTION_RULES: Mapping[str, Sequence[Rule]] = {"ConvTranspose": (transposed_without_stride,)}
