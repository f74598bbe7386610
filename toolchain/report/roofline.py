"""What limits a layer: its times held against the machine's measured ceilings (Williams, Waterman and Patterson, "Roofline",
CACM 2009), from facts alone.

A layer takes at least its arithmetic at the machine's peak, and at least its bytes at the bandwidth of where they lie:

    weights       are read once per run of the network, after everything else was: they come from the nearest level of memory
                  that holds all weights of the network and its largest layer
    activations   were just written: they come from the nearest level that holds what this layer reads and writes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolchain.report.facts import LayerFacts, MachineSpeed, MemoryLevel

CHUNKS_PER_THREAD = 4       # as targets/llvm/runtime/interpret.h cuts a layer
TINY_US = 5.0               # a layer of that little work is mostly its own start and end
COLD = 1.25                 # in the network / hot: what is above is time spent waiting for data that was not near
UNEXPLAINED = 3.0           # times what cold data may cost: fetching all of it anew, badly, takes no longer
NEAR_PEAK = 0.7             # of a ceiling: the rest is what real loops lose at their ends
NEAR_BANDWIDTH = 0.6
UNEVEN = 1.2                # busiest thread / average
MOVES = ("layout", "copy", "state", "zero", "identity", "transpose", "concat", "slice", "gather", "split", "pad")


@dataclass(frozen=True, slots=True)
class Roof:
    """One layer under the roofline. bound_us: the least time it could take; compute_us, memory_us: the two sides of it.

    intensity: flops per byte moved. gflops (as computed, not as credited), gb_s: as reached inside the network.
    share: bound_us / time in the network. limit: in words what it runs into.
    """

    bound_us: float
    compute_us: float
    memory_us: float
    intensity: float
    gflops: float
    gb_s: float
    share: float
    limit: str


def roofs(layers: Sequence[LayerFacts], machine: MachineSpeed) -> tuple[Roof, ...]:
    """Each layer of one network under the ceilings of as many threads as it was measured with."""
    resident = sum(x.weights_bytes for x in layers) + max((x.moved_bytes - x.weights_bytes for x in layers), default=0)
    weights_level = level_for(machine, resident)
    return tuple(_roof(x, machine, weights_level) for x in layers)


def level_for(machine: MachineSpeed, size_bytes: int) -> MemoryLevel:
    """The nearest level that holds so many bytes."""
    return next((level for level in machine.levels if level.holds_bytes >= size_bytes), machine.levels[-1])


def _roof(x: LayerFacts, machine: MachineSpeed, weights_level: MemoryLevel) -> Roof:
    activations = max(0, x.moved_bytes - x.weights_bytes)
    level = level_for(machine, activations)
    flops = x.computed_flops or x.flops
    compute_us = flops / machine.peak_gflops / 1e3
    weights_us, activations_us = x.weights_bytes / weights_level.read_gb_s / 1e3, activations / level.copy_gb_s / 1e3
    memory_us = weights_us + activations_us
    bound_us, time_us = max(compute_us, memory_us), x.network_us or math.inf
    return Roof(
        bound_us, compute_us, memory_us, flops / x.moved_bytes if x.moved_bytes else 0.0, flops / time_us / 1e3,
        x.moved_bytes / time_us / 1e3, bound_us / time_us,
        _limit(x, machine, (weights_level, weights_us), (level, activations_us), compute_us),
    )


def _limit(
    x: LayerFacts, machine: MachineSpeed, weights: tuple[MemoryLevel, float], activations: tuple[MemoryLevel, float],
    compute_us: float,
) -> str:
    """The first of these that holds: too little work; too few chunks; threads that waited; data that is not near; a ceiling;
    the code itself."""
    memory_us = weights[1] + activations[1]
    bound_us = max(compute_us, memory_us)
    if x.network_us < 2 * TINY_US and bound_us < TINY_US:
        return f"overhead: the work itself would take {bound_us:.1f} us"
    if text := _parallelism(x.chunks, machine.threads):
        return text
    kind = "conversion, " if x.kernel.partition("_")[0] in MOVES and not x.flops else ""
    side, level = ("weights", weights[0]) if weights[1] > activations[1] else ("activations", activations[0])
    hot_us = x.hot_us if x.hot_us else x.network_us
    cold = x.network_us > COLD * hot_us
    if cold and x.network_us - hot_us > UNEXPLAINED * memory_us + TINY_US:
        return (f"threads held up: {x.network_us / hot_us:.1f} times its hot time, of which cold data explain "
                f"{memory_us:.0f} us (something else ran on these cores, or a thread had to be woken)")
    if cold:
        megabytes = (x.weights_bytes if side == "weights" else x.moved_bytes - x.weights_bytes) / 1e6
        return (f"{kind}{side} cold: {x.network_us / hot_us:.1f} times its hot time; {megabytes:.1f} MB from {level.name} "
                f"take {max(weights[1], activations[1]):.0f} us")
    if compute_us >= memory_us and compute_us >= NEAR_PEAK * x.network_us:
        return f"compute: {_percent(compute_us / x.network_us)} of the peak"
    if memory_us > compute_us and memory_us >= NEAR_BANDWIDTH * x.network_us:
        return f"{kind}{level.name} bandwidth: {_percent(memory_us / x.network_us)} of it, mostly {side}"
    nearest = "compute" if compute_us >= memory_us else f"{level.name} bandwidth"
    return f"{kind}the code: {_percent(bound_us / hot_us)} of what {nearest} allows, even hot"


def _parallelism(chunks: int, threads: int) -> str:
    """Why threads must wait for each other; "" when the work can be shared well. 0 chunks: not known."""
    if chunks == 0 or threads == 1:
        return ""
    if chunks < threads:
        return f"parallelism: {chunks} chunk{'s' * (chunks > 1)} for {threads} threads"
    pieces = min(chunks, CHUNKS_PER_THREAD * threads)
    if math.ceil(pieces / threads) * threads > UNEVEN * pieces:
        return f"parallelism: {pieces} chunks on {threads} threads do not come out even"
    return ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
