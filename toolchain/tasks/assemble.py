"""A placed graph as a plan: one Call per kernel, copies where results must lie elsewhere, loops for control flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.memory_plan import ALIGN_BYTES, MemoryPlan, size_bytes
from toolchain.graph.passes.memory_plan import Slot as Place
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.passes.views import view_nodes
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.plan import Call, Copy, Fail, If, Loop, Op, Plan, Repeat, Slot, Value, slots_of, walk

Kernels = Mapping[str, Kernel]
Bound = dict[tuple[str, int], tuple[Slot, int]]         # a body's input or output k -> the slot, and its step per round
UNBOUNDED = 2**62                                       # rounds of a loop that ends by its condition


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
    counts = extent_offsets(graph, memory)

    def slot(place: Place) -> Slot:
        if place.segment == "output" and (name := graph.outputs[place.offset]) in counts:
            return Slot("arena", counts[name])
        return Slot(place.segment, place.offset)

    made: list[tuple[Op, Origin]] = []
    scope = _Scope(graph, {v: slot(p) for v, p in memory.slots.items()}, memory, kernels, made, counts=counts)
    plan = Plan(
        name, tuple(_value(graph, v, counts) for v in graph.inputs),
        tuple(_value(graph, v, counts) for v in graph.own_outputs),
        tuple(scope.ops()), weights_bytes=memory.weights_bytes,
        arena_bytes=max((at + ALIGN_BYTES for at in counts.values()), default=memory.arena_bytes),
        scratch_bytes=max((k.scratch_bytes for k in kernels.values()), default=0), zero=memory.zero,
    )
    by_id = {id(op): origin for op, origin in made}
    return plan, [by_id.get(id(op)) for op in walk(plan.ops)]


def extent_offsets(graph: Graph, memory: MemoryPlan) -> dict[str, int]:
    """Where the extents of outputs lie, which are outputs of the graph and none of the network: at the end of the arena."""
    counts = dict.fromkeys(e for extents in graph.extents.values() for e in extents if e)
    start = -(-memory.arena_bytes // ALIGN_BYTES) * ALIGN_BYTES
    return {name: start + n * ALIGN_BYTES for n, name in enumerate(counts)}


def _value(graph: Graph, name: str, counts: Mapping[str, int]) -> Value:
    t, extents = graph.types[name], graph.extents.get(name, ())
    return Value(name, t.dtype, t.shape, tuple(counts[e] if e else -1 for e in extents))


class _Scope:
    """One graph and where its values lie: the network, or the body of a Scan with its inputs and outputs bound."""

    def __init__(self, graph: Graph, slots: dict[str, Slot], memory: MemoryPlan, kernels: Kernels,
                 made: list[tuple[Op, Origin]], times: int = 1, counts: Mapping[str, int] | None = None) -> None:
        self.counts = counts or {}
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
            case "Loop":
                yield from self._loop(node)
            case "If":
                yield from self._if(node)
            case "Fail":
                yield Fail(node.attrs["reason"], node.sources)
            case "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
                yield self._copy(self.slots[node.inputs[0]], node.output, self.graph, node)
            case _:
                raise CodegenError(f"no code for operator {node.op} yet", where=", ".join(node.sources) or node.name)

    def _outputs(self) -> Iterator[Op]:
        for output in dict.fromkeys(self.graph.outputs):
            source = self.slots[output]
            if output in self.graph.inputs or output in self.graph.params:
                at = self.counts.get(output)
                goal = Slot("output", self.graph.outputs.index(output)) if at is None else Slot("arena", at)
                yield Copy(source, goal, size_bytes(self.graph.types[output]))

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
        n_scan, captures = int(node.attrs["num_scan_inputs"]), int(node.attrs.get("captures", 0))
        n_state = len(node.inputs) - n_scan - captures
        length = scan_length(node, self.graph)
        states, following = self._states(node, n_state)
        bound: Bound = {("input", k): (slot, 0) for k, slot in enumerate(states)}
        bound |= {("output", k): (slot, 0) for k, slot in enumerate(following)}
        for k in range(n_state, n_state + n_scan):
            inner = body.types[body.inputs[k]]
            bound["input", k] = self._sliced(node, node.inputs[k], inner, "scan_input", k - n_state, length)
        for k in range(n_state + n_scan, len(body.inputs)):
            bound["input", k] = self.slots[node.inputs[k]], 0
        unread = self._unread(node)
        for k in range(n_state, len(body.outputs)):
            if k < len(node.outputs) and node.outputs[k]:
                bound["output", k] = self._sliced(
                    node, node.outputs[k], body.types[body.outputs[k]], "scan_output", k - n_state, length)
            else:
                bound["output", k] = next(unread), 0
        scope, moving = self._inside(node, "body", bound, self.times * length)
        yield from self._state_copies(node, node.inputs[:n_state], states, body.inputs)
        ops = [*scope.ops(), *_copies(scope.slots, body, body.outputs[:n_state], states, node)]
        strides = tuple(moving.get(slot, 0) for slot in slots_of(tuple(ops)))
        yield Repeat(length, tuple(ops), strides, node.name, node.sources)
        yield from self._results(node, states, body.inputs)

    def _loop(self, node: Node) -> Iterator[Op]:
        """A Loop on its condition alone (see decompose_loops): states as those of a Scan, the condition a byte of its own.

            state = initial; going = condition
            loop while going:  body(state) -> (going, state');  state = state'
            final = state
        """
        body: Graph = node.attrs["body"]
        captures = int(node.attrs.get("captures", 0))
        n_state = len(node.inputs) - 2 - captures
        if node.inputs[0]:
            raise CodegenError("Loop with a limit has to be rewritten first", where=", ".join(node.sources) or node.name)
        states, following = self._states(node, n_state)
        going = Slot("arena", self.memory.workspace[node.output][-1])
        bound: Bound = {("input", 2 + k): (slot, 0) for k, slot in enumerate(states)}
        bound |= {("input", k): (self.slots[node.inputs[k]], 0) for k in range(2 + n_state, len(body.inputs))}
        bound |= {("output", 1 + k): (slot, 0) for k, slot in enumerate(following)}
        bound["output", 0] = going, 0
        scope, _ = self._inside(node, "body", bound, self.times)
        yield from self._state_copies(node, node.inputs[2:2 + n_state], states, body.inputs[2:])
        yield Copy(self.slots[node.inputs[1]], going, 1, "condition", node.sources)
        ops = [*scope.ops(), *_copies(scope.slots, body, body.outputs[1:1 + n_state], states, node)]
        yield Loop(going, UNBOUNDED, tuple(ops), (), node.name, node.sources)
        yield from self._results(node, states, body.inputs[2:])

    def _if(self, node: Node) -> Iterator[Op]:
        """Both branches write the node's outputs; values captured are their inputs."""
        branches = []
        for key in ("then_branch", "else_branch"):
            unread = self._unread(node)
            bound: Bound = {("input", k): (self.slots[name], 0) for k, name in enumerate(node.inputs[1:])}
            bound |= {("output", k): (self.slots[name] if name else next(unread), 0) for k, name in enumerate(
                (*node.outputs, *("",) * (len(node.attrs[key].outputs) - len(node.outputs))))}
            scope, _ = self._inside(node, key, bound, self.times)
            branches.append(tuple(scope.ops()))
        yield If(self.slots[node.inputs[0]], *branches, node.name, node.sources)

    def _states(self, node: Node, count: int) -> tuple[list[Slot], list[Slot]]:
        """The states of this round, and of the next."""
        workspace = [Slot("arena", offset) for offset in self.memory.workspace.get(node.output, ())]
        return workspace[:count], workspace[count:2 * count]

    def _unread(self, node: Node) -> Iterator[Slot]:
        """Where the body's outputs go that the node does not name: the last of its workspaces."""
        missing = unread_outputs(node)
        offsets = self.memory.workspace.get(node.output, ())
        return (Slot("arena", offset) for offset in offsets[len(offsets) - len(missing):])

    def _inside(self, node: Node, key: str, bound: Bound, times: int) -> tuple[_Scope, dict[Slot, int]]:
        """The body's scope, its inputs and outputs bound to slots of ours; and the slots that move, with their step."""
        memory = self.memory.bodies[node.output, key]
        slots, moving = {}, {}
        for value, place in memory.slots.items():
            slots[value], step = bound.get((place.segment, place.offset), (Slot(place.segment, place.offset), 0))
            if step:
                moving[slots[value]] = step
        return _Scope(node.attrs[key], slots, memory, self.kernels, self.made, times), moving

    def _state_copies(
        self, node: Node, given: Sequence[str], states: Sequence[Slot], inner: Sequence[str],
    ) -> Iterator[Copy]:
        body: Graph = node.attrs["body"]
        for outer, name, state in zip(given, inner, states):
            yield Copy(self.slots[outer], state, size_bytes(body.types[name]), "state", node.sources)

    def _results(self, node: Node, states: Sequence[Slot], inner: Sequence[str]) -> Iterator[Copy]:
        body: Graph = node.attrs["body"]
        for out, name, state in zip(node.outputs, inner, states):
            if out:
                yield Copy(state, self.slots[out], size_bytes(body.types[name]), "state", node.sources)

    def _sliced(self, node: Node, outer: str, inner: TensorType, what: str, k: int, length: int) -> tuple[Slot, int]:
        """The slot of the first slice, and how far it moves each round (backwards for a reversed direction)."""
        directions = node.attrs.get(f"{what}_directions") or ()
        step = size_bytes(inner)
        base = self.slots[outer]
        if k < len(directions) and directions[k]:
            return replace(base, offset_bytes=base.offset_bytes + step * (length - 1)), -step
        return base, step


def scan_length(node: Node, graph: Graph) -> int:
    """How many rounds a Scan has: the extent of its scan inputs, which decompose_scan left along axis 0."""
    first = len(node.inputs) - int(node.attrs["num_scan_inputs"]) - int(node.attrs.get("captures", 0))
    return graph.types[node.inputs[first]].shape[0]


def unread_outputs(node: Node) -> list[int]:
    """Bytes of each result of an If or Scan that nobody named; of an If the branch that needs most."""
    sizes: list[int] = []
    for body in bodies(node).values():
        first = 0 if node.op == "If" else len(node.inputs) - int(node.attrs["num_scan_inputs"]) - int(
            node.attrs.get("captures", 0))
        own = [size_bytes(body.types[o]) for k, o in enumerate(body.outputs)
               if k >= first and (k >= len(node.outputs) or not node.outputs[k])]
        sizes = [max(pair) for pair in zip(own, sizes)] if sizes else own
    return sizes


def _copies(
    slots: Mapping[str, Slot], body: Graph, results: Sequence[str], states: Sequence[Slot], node: Node,
) -> Iterator[Copy]:
    """The states of the next round become those of this one."""
    for name, state in zip(results, states, strict=True):
        yield Copy(slots[name], state, size_bytes(body.types[name]), "state", node.sources)


def workspaces(kernels: Kernels) -> Callable[[Node], Sequence[int]]:
    """What `plan_memory` reserves per node: a kernel's workspace; for a Scan its states, and those of the next round."""
    def workspace(node: Node) -> Sequence[int]:
        if node.op == "Fused":
            return kernels[node.attrs["kernel"]].workspace
        body: Graph | None = node.attrs.get("body")
        if node.op in ("Scan", "Loop") and body is not None:
            first = 2 if node.op == "Loop" else 0
            others = int(node.attrs.get("num_scan_inputs", 0)) + int(node.attrs.get("captures", 0))
            n_state = len(node.inputs) - first - others
            states = [size_bytes(body.types[v]) for v in body.inputs[first:first + n_state]]
            return [*states, *states, *(unread_outputs(node) if node.op == "Scan" else [1])]
        if node.op == "If":
            return unread_outputs(node)
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
