"""Which sketch schedules a group: by the tag of its one heavy stage and the layout of its output."""

from __future__ import annotations

from toolchain import te
from toolchain.core.target import Target
from toolchain.kernels.sketches.contraction import contract, contractions
from toolchain.kernels.sketches.conv import conv, conv_transpose, depthwise, plain_conv, plain_transpose
from toolchain.kernels.sketches.integer import integer_conv, integer_matmul
from toolchain.kernels.sketches.matmul import matmul
from toolchain.kernels.sketches.pointwise import pointwise
from toolchain.kernels.sketches.rows import rows
from toolchain.kernels.sketches.stages import SCAN, channel_lanes, inline_behind, inline_injective, readers, reductions
from toolchain.kernels.sketches.winograd import winograd
from toolchain.te.tune.choices import Choices

BLOCKED = {"conv": conv, "conv_transpose": conv_transpose, "depthwise": depthwise, "pool": depthwise}

PLAIN = {"conv": plain_conv, "conv_transpose": plain_transpose, "depthwise": plain_conv, "pool": plain_conv}

DOTS = {"dot": integer_matmul, "dot_conv": integer_conv}
HEAVY = frozenset((*BLOCKED, *PLAIN, "matmul")) - {"pool"}


def sketch(s: te.Schedule, target: Target, choices: Choices) -> None:
    """Inline what is cheap, then hand the schedule to the sketch of its anchor."""
    tagged = [t for t, d in s.func.stages.items() if d.tag == "winograd"]
    if len(tagged) == len(reductions(s)) == 1 and channel_lanes(s, s.func.outputs[0]) > 1:
        winograd(s, tagged[0], target, choices)
        return
    inline_injective(s)
    anchors = reductions(s)
    if any(d.tag == SCAN for d in s.func.stages.values()):
        rows(s, target, choices)
        return
    if not anchors:
        pointwise(s, target, choices)
        return
    (first, *more) = anchors
    if not more and s.func.stages[first].tag in HEAVY:
        inline_behind(s, first)
    alone = not more and len(s.func.outputs) == 1 and len(readers(s, first)) <= 1 and len(s.func.stages) <= 2
    tag = s.func.stages[first].tag
    if alone and tag in DOTS:
        DOTS[tag](s, first, target, choices)
    elif alone and tag in BLOCKED and channel_lanes(s, s.func.outputs[0]) > 1:
        BLOCKED[tag](s, first, target, choices)
    elif alone and tag in PLAIN and first.shape[-1] > 1:
        PLAIN[tag](s, first, target, choices)
    elif alone and tag == "matmul" and first.shape and first.shape[-1] > 1 and s.func.outputs[0].shape:
        matmul(s, first, target, choices)
    elif found := contractions(s, anchors, target):
        contract(s, found, target, choices)
    else:
        rows(s, target, choices)


def plain(s: te.Schedule, target: Target, choices: Choices) -> None:
    """Each stage its own nest, innermost dimension in vectors: for groups the better sketches refuse."""
    inline_injective(s)
    pointwise(s, target, choices)


def unscheduled(s: te.Schedule, target: Target, choices: Choices) -> None:
    """The definition's own loops, one after the other: always legal, never fast."""


SKETCHES = (sketch, plain, unscheduled)        # tried in this order
