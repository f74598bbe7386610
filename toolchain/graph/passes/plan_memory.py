"""Static memory planning: one arena for everything that lives between nodes, offsets known at build time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.memory_plan import MemoryPlan, Slot, Weight, aligned, halo_geometry, overwritable, size_bytes
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.passes.views import Place, storage_places

Workspace: TypeAlias = Callable[[Node], Sequence[int]]


@dataclass(slots=True)
class _Buffer:
    """Storage that lives from node `first` to node `last` (positions, both included)."""

    name: str
    size: int
    first: int
    last: int
    offset: int = -1


def plan_memory(graph: Graph, workspace: Workspace = lambda node: ()) -> MemoryPlan:
    """Place every value: what is never alive together shares memory.

        a = Conv(x); b = Relu(a); c = Conv(b); y = Relu(c)   ->   a, b: arena 0; c: arena 200704; y: output 0

    - Views share their source's place (views.py), the operands of a Concat lie in its output where they can; an elementwise
      node writes over a dying operand of the same type.
    - Buffers are placed best-fit, largest first and in order of first use; the smaller arena wins.
    - Storage with a halo is shared only among tensors whose halo lies at the same bytes, never with anything else, and is
      cleared once when loading: producers write the interior only.
    - `workspace(node)` gives the bytes of the buffers a kernel needs while it runs.
    - Bodies of control flow have their own region, alive as long as their node runs, and kept from run to run of the body.
    - Parameters lie in the weights segment in order of first use. All offsets are multiples of 64 bytes.

    Needs: kernels formed (fuse_operators). Sources: Pisarchyk and Lee, arXiv:2001.03288 (greedy by size).
    """
    inner = {(n.output, key): plan_memory(body, workspace) for n in graph.nodes for key, body in _control_bodies(n)}
    places = storage_places(graph)
    storage = _storage(graph, places)
    buffers, halos = _buffers(graph, storage)
    region = {key: _Buffer(f"{key[0]}.{key[1]}", plan.arena_bytes, at, at)
              for at, n in enumerate(graph.nodes) for key, plan in inner.items() if key[0] == n.output}
    scratch = {n.output: [_Buffer(f"{n.output}.workspace.{i}", aligned(size), at, at) for i, size in enumerate(workspace(n))]
               for at, n in enumerate(graph.nodes)}
    everything = [*buffers.values(), *region.values(), *(b for found in scratch.values() for b in found)]
    pools, halo_bytes = _place_halos(halos)
    for key, plan in inner.items():
        if plan.zero:                                       # nobody else may write there, or halos would not stay zero
            region[key].first, region[key].last = 0, len(graph.nodes)
    arena_bytes = halo_bytes + _place(everything)
    for buffer in everything:
        buffer.offset += halo_bytes
    slots = _slots(graph, storage, {**buffers, **pools}, places)
    moved = {key: _moved(plan, region[key].offset) for key, plan in inner.items()}
    weights, weights_bytes = _weights(graph)
    packed = {w.name: Slot("weights", w.offset) for w in weights if not w.body}
    packed |= {view: packed[root] for view, root in storage.items() if root in packed}         # a constant seen otherwise
    cleared: dict[int, int] = {}
    for buffer in pools.values():
        cleared[buffer.offset] = max(buffer.size, cleared.get(buffer.offset, 0))
    zero = tuple(sorted(cleared.items()))
    return MemoryPlan(
        slots=slots | packed,
        arena_bytes=arena_bytes,
        weights=weights,
        weights_bytes=weights_bytes,
        zero=zero + tuple(z for plan in moved.values() for z in plan.zero),
        workspace={name: tuple(b.offset for b in found) for name, found in scratch.items() if found},
        bodies={key: _with_weights(plan, key, weights) for key, plan in moved.items()},
    )


def _control_bodies(node: Node) -> list[tuple[str, Graph]]:
    return [] if node.op == "Fused" else list(bodies(node).items())


def _storage(graph: Graph, places: dict[str, Place]) -> dict[str, str]:
    """Each value to the one whose storage it lies in: through views, and over dying operands of elementwise nodes."""
    storage = {value: place.root for value, place in places.items()}
    last = _last_reads(graph, storage)
    external = {*graph.inputs, *graph.params, *(storage[o] for o in graph.outputs)}
    for at, node in enumerate(graph.nodes):
        if len(node.outputs) != 1 or storage[node.output] != node.output or node.output in external:
            continue
        for name in overwritable(node, graph):
            root = storage[name]
            sharing = [i for i in node.inputs if i and i != name and storage[i] == root]
            whole = size_bytes(graph.types[root]) == size_bytes(graph.types[name])         # not a part of a Concat
            if last[root] == at and root not in external and not sharing and whole:
                merged = node.output
                for value, known in storage.items():
                    if known == merged:
                        storage[value] = root
                last[root] = last[merged]
                break
    return storage


def _last_reads(graph: Graph, storage: dict[str, str]) -> dict[str, int]:
    """Per storage, the position of the last node that reads or writes it; past the end for graph outputs."""
    last: dict[str, int] = {}
    for at, node in enumerate(graph.nodes):
        for name in (*node.inputs, *node.outputs):
            if name:
                last[storage[name]] = at
    for name in graph.outputs:
        last[storage[name]] = len(graph.nodes)
    return last


def _buffers(graph: Graph, storage: dict[str, str]) -> tuple[dict[str, _Buffer], dict[str, tuple[_Buffer, TensorType]]]:
    """The arena's buffers by storage; those with a halo apart, with their type."""
    last = _last_reads(graph, storage)
    external = {*graph.inputs, *graph.params, *(storage[o] for o in graph.outputs)}
    plain: dict[str, _Buffer] = {}
    halos: dict[str, tuple[_Buffer, TensorType]] = {}
    for at, node in enumerate(graph.nodes):
        for out in node.outputs:
            root = storage.get(out, "")
            if not out or root in external or root in plain or root in halos:
                continue
            kind = graph.types[root]
            buffer = _Buffer(root, aligned(size_bytes(kind)), at, last[root])
            if kind.layout.has_halo:
                halos[root] = buffer, kind
            else:
                plain[root] = buffer
    return plain, halos


def _place_halos(halos: dict[str, tuple[_Buffer, TensorType]]) -> tuple[dict[str, _Buffer], int]:
    """Slots at the start of the arena, one set per geometry, largest tensors first. Sets offsets; gives bytes used."""
    offset = 0
    slots: dict[object, list[tuple[int, list[_Buffer]]]] = {}               # (offset, who lies there at some time)
    for buffer, kind in sorted(halos.values(), key=lambda found: (-found[0].size, found[0].first)):
        same = slots.setdefault(halo_geometry(kind), [])
        for at, there in same:
            if all(other.last < buffer.first or buffer.last < other.first for other in there):
                buffer.offset = at
                there.append(buffer)
                break
        else:
            buffer.offset = offset
            same.append((offset, [buffer]))
            offset += buffer.size
    return {name: buffer for name, (buffer, _) in halos.items()}, offset


def _place(buffers: list[_Buffer]) -> int:
    """Set every offset; the arena's size. Two orders are tried."""
    orders = (
        sorted(buffers, key=lambda b: (-b.size, b.first, b.name)),
        sorted(buffers, key=lambda b: (b.first, -b.size, b.name)),
    )
    plans = [_best_fit(order) for order in orders]
    offsets, size = min(plans, key=lambda plan: plan[1])
    for buffer in buffers:
        buffer.offset = offsets[buffer.name]
    return size


def _best_fit(order: list[_Buffer]) -> tuple[dict[str, int], int]:
    """Put each buffer in the smallest gap that holds it among those placed already that are alive with it."""
    placed: list[tuple[int, int, int, int]] = []            # (offset, end, first, last), by offset
    offsets: dict[str, int] = {}
    total = 0
    for buffer in order:
        best, best_gap, at = -1, -1, 0
        for offset, end, first, last in placed:
            if last < buffer.first or first > buffer.last:
                continue
            gap = offset - at
            if gap >= buffer.size and (best < 0 or gap < best_gap):
                best, best_gap = at, gap
            at = max(at, end)
        offset = at if best < 0 else best
        offsets[buffer.name] = offset
        insort(placed, (offset, offset + buffer.size, buffer.first, buffer.last))
        total = max(total, offset + buffer.size)
    return offsets, total


def _slots(
    graph: Graph, storage: dict[str, str], buffers: dict[str, _Buffer], inside: dict[str, Place]
) -> dict[str, Slot]:
    places = {name: Slot("arena", b.offset) for name, b in buffers.items()}
    places |= {storage[name]: Slot("output", n) for n, name in reversed(list(enumerate(graph.outputs)))}
    places |= {name: Slot("input", n) for n, name in enumerate(graph.inputs)}
    values = (*graph.inputs, *(o for n in graph.nodes for o in n.outputs if o))
    found = {value: places[storage[value]] for value in values if storage[value] in places}
    return {value: Slot(slot.segment, slot.offset + inside[value].offset_bytes) for value, slot in found.items()}


def _weights(graph: Graph, start: int = 0, body: str = "") -> tuple[tuple[Weight, ...], int]:
    """All parameters in order of first use, those of control-flow bodies behind their node's own; and the bytes used."""
    made: list[Weight] = []
    seen: set[str] = set()
    offset = start

    def add(name: str) -> None:
        nonlocal offset
        if name in graph.params and name not in seen:
            seen.add(name)
            size = size_bytes(graph.types[name])
            made.append(Weight(name, offset, size, body))
            offset += aligned(size)

    for node in graph.nodes:
        for name in node.inputs:
            add(name)
        for key, inner in _control_bodies(node):
            found, offset = _weights(inner, offset, f"{body}{node.output}.{key}/")
            made.extend(found)
    for name in graph.outputs:
        add(name)
    return tuple(made), offset


def _moved(plan: MemoryPlan, offset: int) -> MemoryPlan:
    """`plan` with its arena beginning at `offset`."""
    return replace(
        plan,
        slots={k: Slot(s.segment, s.offset + offset) if s.segment == "arena" else s for k, s in plan.slots.items()},
        zero=tuple((at + offset, size) for at, size in plan.zero),
        workspace={k: tuple(at + offset for at in found) for k, found in plan.workspace.items()},
        bodies={k: _moved(inner, offset) for k, inner in plan.bodies.items()},
        arena_base=plan.arena_base + offset,
    )


def with_weights_at(plan: MemoryPlan, places: Mapping[int, int], weights_bytes: int) -> MemoryPlan:
    """`plan` with its weights elsewhere: several graphs share one segment, in which equal weights lie once.

        slots %w: weights 0, %v: weights 64   ->   %w: weights 64, %v: weights 0          with places {0: 64, 64: 0}

    places: from each weight's offset to the one in the segment of `weights_bytes`.
    """
    return replace(
        plan,
        slots={k: Slot("weights", places[s.offset]) if s.segment == "weights" else s for k, s in plan.slots.items()},
        weights=tuple(replace(w, offset=places[w.offset]) for w in plan.weights),
        weights_bytes=weights_bytes,
        bodies={k: with_weights_at(inner, places, weights_bytes) for k, inner in plan.bodies.items()},
    )


def _with_weights(plan: MemoryPlan, key: tuple[str, str], weights: tuple[Weight, ...], outer: str = "") -> MemoryPlan:
    """The plan of a body with its parameters' places in the one weights segment."""
    path = f"{outer}{key[0]}.{key[1]}/"
    own = {w.name: Slot("weights", w.offset) for w in weights if w.body == path}
    inner = {k: _with_weights(p, k, weights, path) for k, p in plan.bodies.items()}
    return replace(plan, slots={**plan.slots, **own}, bodies=inner, weights=(), weights_bytes=0)
