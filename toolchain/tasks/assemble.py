"""A placed graph as a plan: one Call per kernel, copies where results must lie elsewhere, loops for control flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.memory_plan import MemoryPlan, size_bytes
from toolchain.graph.passes.memory_plan import Slot as Place
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.passes.views import view_nodes
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.plan import Call, Copy, Op, Plan, Repeat, Slot, Value, slots_of, walk

Kernels = Mapping[str, Kernel]


@dataclass(frozen=True, slots=True)
class Origin:
    """What an op of a plan came from: a node of `graph` (the network, or a body), run `times` times in a run of the plan."""

    node: Node
    graph: Graph
    times: int


def assemble(name: str, graph: Graph, memory: MemoryPlan, kernels: Kernels) -> Plan:
    """The plan of a graph whose Fused nodes name their kernels (`attrs["kernel"]`).

    Raises CodegenError naming an operator of control flow that has no form in plans.
    """
    return assemble_with_origins(name, graph, memory, kernels)[0]


def assemble_with_origins(
    name: str, graph: Graph, memory: MemoryPlan, kernels: Kernels,
) -> tuple[Plan, list[Origin | None]]:
    """`assemble`, and per op in pre-order (`plan.walk`) where it came from; None: a copy that stands for no node."""
    def slot(place: Place) -> Slot:
        return Slot(place.segment, place.offset)

    made: list[tuple[Op, Origin]] = []
    scope = _Scope(graph, {v: slot(p) for v, p in memory.slots.items()}, memory, kernels, made)
    plan = Plan(
        name, tuple(_value(graph, v) for v in graph.inputs), tuple(_value(graph, v) for v in graph.outputs),
        tuple(scope.ops()), weights_bytes=memory.weights_bytes, arena_bytes=memory.arena_bytes,
        scratch_bytes=max((k.scratch_bytes for k in kernels.values()), default=0), zero=memory.zero,
    )
    by_id = {id(op): origin for op, origin in made}
    return plan, [by_id.get(id(op)) for op in walk(plan.ops)]


def _value(graph: Graph, name: str) -> Value:
    t = graph.types[name]
    return Value(name, t.dtype, t.shape)


class _Scope:
    """One graph and where its values lie: the network, or the body of a Scan with its inputs and outputs bound."""

    def __init__(self, graph: Graph, slots: dict[str, Slot], memory: MemoryPlan, kernels: Kernels,
                 made: list[tuple[Op, Origin]], times: int = 1) -> None:
        self.graph, self.slots, self.memory, self.kernels, self.made, self.times = graph, slots, memory, kernels, made, times

    def ops(self) -> Iterator[Op]:
        views = view_nodes(self.graph)
        for node in self.graph.nodes:
            if node in views:
                continue
            for op in self._node(node):
                self.made.append((op, Origin(node, self.graph, self.times)))
                yield op
        yield from self._outputs()

    def _node(self, node: Node) -> Iterator[Op]:
        match node.op:
            case "Fused":
                yield self._call(node)
            case "Scan":
                yield from self._scan(node)
            case "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
                yield self._copy(self.slots[node.inputs[0]], node.output, self.graph, node)
            case _:
                raise CodegenError(f"no code for operator {node.op} yet", where=", ".join(node.sources) or node.name)

    def _outputs(self) -> Iterator[Op]:
        for output in dict.fromkeys(self.graph.outputs):
            source = self.slots[output]
            if output in self.graph.inputs or output in self.graph.params:
                position = self.graph.outputs.index(output)
                yield Copy(source, Slot("output", position), size_bytes(self.graph.types[output]))

    def _call(self, node: Node) -> Call:
        kernel = self.kernels[node.attrs["kernel"]]
        workspace = self.memory.workspace.get(node.output, ())
        buffers = [self.slots[v] for v in (*node.inputs, *node.outputs) if v]
        return Call(
            kernel.symbol, kernel.phases,
            (*buffers, *(Slot("arena", offset) for offset in workspace)), node.name or node.output, node.sources,
        )

    def _copy(self, src: Slot, output: str, graph: Graph, node: Node) -> Copy:
        return Copy(src, self.slots[output], size_bytes(graph.types[output]), "copy", node.sources)

    def _scan(self, node: Node) -> Iterator[Op]:
        """Scan as a Repeat: states live in fixed slots of the body, sliced inputs and outputs move by one slice a round.

            state = initial                                   copies
            repeat n:  body(state, x[t]) -> (state', y[t])    slots of x and y advance
                       state = state'                         copies inside
            final = state
        """
        body: Graph = node.attrs["body"]
        memory = self._body_memory(node)
        n_state = len(node.inputs) - int(node.attrs["num_scan_inputs"])
        length = self.graph.types[node.inputs[n_state]].shape[0]
        workspace = [Slot("arena", offset) for offset in self.memory.workspace.get(node.output, ())]
        states, following = workspace[:n_state], workspace[n_state:]
        bound: dict[tuple[str, int], tuple[Slot, int]] = {("input", k): (slot, 0) for k, slot in enumerate(states)}
        bound |= {("output", k): (slot, 0) for k, slot in enumerate(following)}
        for k in range(n_state, len(body.inputs)):
            element = body.types[body.inputs[k]]
            bound["input", k] = self._sliced(node, node.inputs[k], element, "scan_input", k - n_state, length)
        for k in range(n_state, len(body.outputs)):
            if k < len(node.outputs) and node.outputs[k]:
                bound["output", k] = self._sliced(
                    node, node.outputs[k], body.types[body.outputs[k]], "scan_output", k - n_state, length)
        slots, moving = {}, {}
        for value, place in memory.slots.items():
            slots[value], step = bound.get((place.segment, place.offset), (Slot(place.segment, place.offset), 0))
            if step:
                moving[slots[value]] = step
        for outer, inner, state in zip(node.inputs[:n_state], body.inputs[:n_state], states, strict=True):
            yield Copy(self.slots[outer], state, size_bytes(body.types[inner]), "state", node.sources)
        ops = list(_Scope(body, slots, memory, self.kernels, self.made, self.times * length).ops())
        for inner, state in zip(body.outputs[:n_state], states, strict=True):
            ops.append(Copy(slots[inner], state, size_bytes(body.types[inner]), "state", node.sources))
        strides = tuple(moving.get(slot, 0) for slot in slots_of(tuple(ops)))
        yield Repeat(length, tuple(ops), strides, node.name, node.sources)
        for outer, state, inner in zip(node.outputs[:n_state], states, body.inputs[:n_state], strict=True):
            if outer:
                yield Copy(state, self.slots[outer], size_bytes(body.types[inner]), "state", node.sources)

    def _body_memory(self, node: Node) -> MemoryPlan:
        return self.memory.bodies[node.output, "body"]

    def _sliced(self, node: Node, outer: str, inner: TensorType, what: str, k: int, length: int) -> tuple[Slot, int]:
        """The slot of the first slice, and how far it moves each round (backwards for a reversed direction)."""
        axes = node.attrs.get(f"{what}_axes") or ()
        directions = node.attrs.get(f"{what}_directions") or ()
        if k < len(axes) and axes[k] != 0:
            raise CodegenError(f"Scan along axis {axes[k]} is not supported", where=", ".join(node.sources),
                               fix="scan along axis 0")
        step = size_bytes(inner)
        base = self.slots[outer]
        if k < len(directions) and directions[k]:
            return replace(base, offset_bytes=base.offset_bytes + step * (length - 1)), -step
        return base, step


def workspaces(kernels: Kernels) -> Callable[[Node], Sequence[int]]:
    """What `plan_memory` reserves per node: a kernel's workspace; for a Scan its states, and those of the next round."""
    def workspace(node: Node) -> Sequence[int]:
        if node.op == "Fused":
            return kernels[node.attrs["kernel"]].workspace
        if node.op == "Scan":
            body: Graph = node.attrs["body"]
            n_state = len(node.inputs) - int(node.attrs["num_scan_inputs"])
            states = [size_bytes(body.types[v]) for v in body.inputs[:n_state]]
            return states + states
        return ()
    return workspace


def weights_segment(graph: Graph, memory: MemoryPlan) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, physical bytes) of every parameter, in order: each packed into the layout its type asks for."""
    owners = dict(_graphs(graph))
    for weight in memory.weights:
        owner = owners[weight.body]
        t = owner.types[weight.name]
        array = np.asarray(owner.params[weight.name], dtype=dtypes.to_numpy(t.dtype))
        yield weight.offset, np.ascontiguousarray(t.layout.pack(array))


def _graphs(graph: Graph, path: str = "") -> Iterator[tuple[str, Graph]]:
    """The graph and the bodies of its control flow, by the path that `Weight.body` has."""
    yield path, graph
    for node in graph.nodes:
        if node.op != "Fused":
            for key, body in bodies(node).items():
                yield from _graphs(body, f"{path}{node.output}.{key}/")
