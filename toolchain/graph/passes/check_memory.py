"""Prove a memory plan right by running it: who wrote each byte last, and is it who the reader expects?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolchain.core.errors import InternalError
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.memory_plan import ALIGN_BYTES, MemoryPlan, halo_geometry, overwritable, size_bytes
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.passes.views import view_nodes


def check_memory(graph: Graph, plan: MemoryPlan, workspace: Callable[[Node], Sequence[int]] = lambda node: ()) -> None:
    """Raise InternalError unless every node finds its operands as they were written, whatever ran in between.

    Walks the nodes once with a map of the arena and of the outputs: who wrote each range last. Also checked: offsets are
    aligned and inside the arena; a node's results and workspace overlap its operands only where it may overwrite them; only
    tensors whose halo lies at the same bytes are written where a halo must stay zero; weights do not overlap.
    """
    _Walk(graph, plan, workspace).run()
    _check_weights(plan)


class _Walk:
    def __init__(self, graph: Graph, plan: MemoryPlan, workspace: Callable[[Node], Sequence[int]]) -> None:
        self.graph, self.plan, self.workspace = graph, plan, workspace
        self.views = view_nodes(graph)
        self.writer: list[tuple[int, int, str]] = []        # (begin, end, value) of arena bytes, disjoint
        self.outputs: dict[int, str] = {}                   # output number -> the value written there last
        self.content: dict[str, str] = {}                   # a value -> the one its bytes belong to now

    def run(self) -> None:
        for node in self.graph.nodes:
            for name in dict.fromkeys(i for i in node.inputs if i):
                self._check_intact(name, node)
            if node in self.views:
                self._check_view(node)
            else:
                self._write(node)
        for n, name in enumerate(self.graph.outputs):
            produced = self.graph.producer(name) is not None
            if produced and (self.plan.slots[name].segment, self.plan.slots[name].offset) != ("output", n):
                self._fail(f"graph output {name!r} lies in {self.plan.slots[name]}", None)
            if produced and self.outputs.get(n) != self._owner(name):
                self._fail(f"graph output {name!r} is overwritten by {self.outputs.get(n)!r}", None)

    def _fail(self, what: str, node: Node | None) -> None:
        where = f" at node {node.name or node.output!r} ({node.op})" if node else ""
        raise InternalError(f"memory plan of {self.graph.name!r}{where}: {what}")

    def _range(self, name: str) -> tuple[int, int]:
        begin = self.plan.slots[name].offset
        return begin, begin + size_bytes(self.graph.types[name])

    def _owner(self, name: str) -> str:
        while name in self.content:
            name = self.content[name]
        return name

    def _check_intact(self, name: str, node: Node) -> None:
        slot = self.plan.slots.get(name)
        if slot is None:
            self._fail(f"{name!r} has no place", node)
            return
        expected = self._owner(name)
        if slot.segment == "output" and self.outputs.get(slot.offset) != expected:
            self._fail(f"{name!r} was overwritten by {self.outputs.get(slot.offset)!r}", node)
        if slot.segment != "arena":
            return
        begin, end = self._range(name)
        for other in self._overlapping(begin, end):
            if other[2] != expected:
                self._fail(f"{name!r} was overwritten by {other[2]!r}", node)
        if sum(min(e, end) - max(b, begin) for b, e, _ in self._overlapping(begin, end)) < end - begin:
            self._fail(f"{name!r} is read before it is written", node)

    def _overlapping(self, begin: int, end: int) -> list[tuple[int, int, str]]:
        return [w for w in self.writer if w[0] < end and begin < w[1]]

    def _check_view(self, node: Node) -> None:
        source, out = node.inputs[0], node.output
        if node.op == "Concat":
            end = self._range(out)[0]
            for name in node.inputs:
                begin, end = end, end + size_bytes(self.graph.types[name])
                if self._range(name) != (begin, end) or self.plan.slots[name].segment != "arena":
                    self._fail(f"{name!r} does not lie in its part of {out!r}", node)
                self.content[self._owner(name)] = out
            self._overwrite(*self._range(out), out)
            return
        if self.plan.slots[out] != self.plan.slots[source]:
            self._fail(f"the view {out!r} lies elsewhere than {source!r}", node)
        self.content[out] = source

    def _write(self, node: Node) -> None:
        ranges: list[tuple[int, int, str]] = []
        for out in (o for o in node.outputs if o):
            slot = self.plan.slots[out]
            if slot.segment == "output":
                self.outputs[slot.offset] = out
            else:
                ranges.append((*self._range(out), out))
                self._check_halo(out, node)
        offsets = self.plan.workspace.get(node.output, ())
        sizes = tuple(self.workspace(node))
        if len(sizes) != len(offsets):
            self._fail(f"has {len(offsets)} workspace buffers, needs {len(sizes)}", node)
        scratch = [(at, at + size, f"workspace {n}") for n, (at, size) in enumerate(zip(offsets, sizes))]
        for (name, key), body in self.plan.bodies.items():
            if name == node.output:
                scratch.append((body.arena_base, body.arena_base + body.arena_bytes, f"body {key}"))
                _Walk(bodies(node)[key], body, self.workspace).run()
        written = [*ranges, *scratch]
        allowed = set(overwritable(node, self.graph))
        for n, (begin, end, what) in enumerate(written):
            if begin % ALIGN_BYTES or end > self.plan.arena_base + self.plan.arena_bytes:
                self._fail(f"{what!r} at {begin}..{end} is not aligned, or not inside the arena", node)
            for b, e, other in written[:n]:
                if b < end and begin < e:
                    self._fail(f"{what!r} and {other!r} overlap", node)
            for name in (i for i in node.inputs if i and self.plan.slots[i].segment == "arena"):
                b, e = self._range(name)
                in_place = name in allowed and (begin, end, what) in ranges and (b, e) == (begin, end)
                if b < end and begin < e and not in_place:
                    self._fail(f"{what!r} overlaps the operand {name!r}", node)
        for begin, end, what in written:
            self._overwrite(begin, end, what)

    def _check_halo(self, out: str, node: Node) -> None:
        begin, end = self._range(out)
        touched = [z for z in self.plan.zero if z[0] < end and begin < z[0] + z[1]]
        kind = self.graph.types[out]
        if not kind.layout.has_halo and touched:
            self._fail(f"{out!r} is written where a halo must stay zero", node)
        if kind.layout.has_halo:
            if not any(z[0] <= begin and end <= z[0] + z[1] for z in touched):
                self._fail(f"the halo of {out!r} is never cleared", node)
            for other, slot in self.plan.slots.items():
                if slot.segment == "arena" and other in self.graph.types:
                    b, e = self._range(other)
                    equal = b == begin and halo_geometry(self.graph.types[other]) == halo_geometry(kind)
                    if b < end and begin < e and not equal:
                        self._fail(f"{out!r} ({kind}) shares storage with {other!r} ({self.graph.types[other]})", node)

    def _overwrite(self, begin: int, end: int, value: str) -> None:
        left = []
        for b, e, known in self.writer:
            if b < begin:
                left.append((b, min(e, begin), known))
            if e > end:
                left.append((max(b, end), e, known))
        self.writer = [w for w in left if w[0] < w[1]] + [(begin, end, value)]


def _check_weights(plan: MemoryPlan) -> None:
    end = 0
    for weight in plan.weights:
        if weight.offset % ALIGN_BYTES or weight.offset < end:
            raise InternalError(f"memory plan: weight {weight.name!r} at {weight.offset}: overlap, or not aligned")
        end = weight.offset + weight.size_bytes
    if end > plan.weights_bytes:
        raise InternalError(f"memory plan: weights end at {end}, beyond the {plan.weights_bytes} bytes of their segment")
