"""Find the first op of an artifact that does something wrong: every kernel is judged on the values it really read.

The artifact runs once with a hook after each op. What an op left is compared with what the graph interpreter makes of the
same inputs, so an error belongs to the kernel that made it and not to those that pass it on. With `poison` (TC_CHECK=1)
memory that no later op may read is filled with NaN before each op, and after it halos must be zero, tails finite, and all
other values as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.graph.infer import where
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.memory_plan import MemoryPlan, size_bytes
from toolchain.graph.passes.views import view_nodes
from toolchain.graph.serialize import save
from toolchain.graph.text import to_text
from toolchain.report.statistics import output_error
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Op
from toolchain.tasks.assemble import Origin, extent_offsets

Values = Mapping[str, np.ndarray]
RTOL, ATOL = 1e-3, 1e-4         # of one kernel, absolute part relative to its largest value: rounding alone stays far below
HALF = {"float16": (4 * 2.0**-10, 2.0**-10), "bfloat16": (4 * 2.0**-7, 2.0**-7)}    # a few steps of what it is rounded to

ROUNDS = frozenset(("QuantizeLinear", "DynamicQuantizeLinear"))


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """The first wrong op: the node it came from, what is wrong, and the values it read, made, and should have made."""

    node: Node
    what: str
    inputs: Mapping[str, np.ndarray]
    got: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        """The model's nodes behind it, as a report names them."""
        return ", ".join(self.node.sources[:4]) or self.node.name or self.node.output


class _FoundError(Exception):
    """Carries a Finding out of the hook."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


def first_wrong_op(
    module: Module, graph: Graph, memory: MemoryPlan, origins: Sequence[Origin | None], inputs: Mapping[str, np.ndarray], *,
    poison: bool = False,
) -> Finding | None:
    """Run the artifact once, op by op. graph: the optimized one it was made of; memory, origins: as when it was linked.

    None: every kernel is right on what it reads.
    """
    walk = _Walk(module, graph, memory, origins, inputs, poison)
    try:
        walk.before(0)
        module.trace(inputs, walk.after_op, walk.outputs)
    except _FoundError as found:
        return found.finding
    return None


class _Walk:
    """Our values so far, by name, as logical arrays, and the ops still to come."""

    def __init__(self, module: Module, graph: Graph, memory: MemoryPlan, origins: Sequence[Origin | None],
                 inputs: Mapping[str, np.ndarray], poison: bool) -> None:
        self.module, self.graph, self.memory, self.poison = module, graph, memory, poison
        self.counts = extent_offsets(graph, memory)
        plan = module.buckets[module.bucket_of(inputs)]
        self.outputs = {v.name: np.empty(v.shape, to_numpy(v.dtype)) for v in plan.outputs}
        self.values: dict[str, np.ndarray] = {**graph.params, **inputs}
        views = view_nodes(graph)
        self.nodes = [n for n in graph.nodes if n not in views]
        self.views: dict[str, list[Node]] = {}
        for n in graph.nodes:
            for name in dict.fromkeys(n.inputs) if n in views else ():
                self.views.setdefault(name, []).append(n)
        ends = {o.node: index for index, o in enumerate(origins) if o is not None and o.graph is graph}
        self.position = {ends[n]: at for at, n in enumerate(self.nodes)}
        self.last_read = self._last_reads()
        for name in tuple(self.values):
            self._see_through_views(name)

    def _last_reads(self) -> dict[str, int]:
        """Position of the last op that reads a value, or a view of it."""
        last = {name: len(self.nodes) for name in self.graph.outputs}
        at = {n: i for i, n in enumerate(self.nodes)}
        for node in reversed(self.graph.nodes):
            for name in node.inputs:
                read = at[node] if node in at else last.get(node.output, -1)
                last[name] = max(last.get(name, -1), read)
        return last

    def after_op(self, index: int, op: Op) -> None:
        if (at := self.position.get(index)) is not None:
            self._judge(at)
            if at + 1 < len(self.nodes):
                self.before(at + 1)

    def before(self, at: int) -> None:
        """Check what the op is about to read, and poison what nobody may read."""
        if not self.nodes:
            return
        node = self.nodes[at]
        for name in self._stored(node.inputs):
            if not _same(self._read(name), self.values[name]):
                self._found(node, f"its input {name!r} was overwritten after it had been computed", {name: self._read(name)},
                            {name: self.values[name]})
        if self.poison:
            self._poison(at)

    def _judge(self, at: int) -> None:
        node = self.nodes[at]
        made = evaluate(node, [self.values[i] if i else None for i in node.inputs])
        expected = {name: array for name, array in zip(node.outputs, made, strict=True) if name}
        got = {name: self._read(name) for name in expected}
        for name, array in expected.items():
            if what := differs(node, name, got[name], array):
                self._found(node, what, got, expected)
            self._check_storage(node, name, got, expected)
        for name, array in got.items():
            self.values[name] = array
            self._see_through_views(name)
        if self.poison:
            for name in self._alive(at):
                if name not in got and not _same(self._read(name), self.values[name]):
                    self._found(node, f"it overwrites {name!r}", {name: self._read(name)}, {name: self.values[name]})
        for name in [n for n in self.values if self.last_read.get(n, -1) <= at and n not in self.graph.params]:
            del self.values[name]

    def _check_storage(self, node: Node, name: str, got: Values, expected: Values) -> None:
        """Halos hold zeros, tails nothing that could spoil a sum."""
        t = self.graph.types[name]
        if t.layout.is_row_major or not (t.layout.has_halo or t.layout.has_tail(t.shape)):
            return
        storage = self._storage(name)
        inside = t.layout.pack(np.ones(t.layout.padded(t.shape), np.uint8)).reshape(-1) != 0
        if np.any(storage[~inside] != 0):
            self._found(node, f"it spoils the zero halo of {name!r}", got, expected)
        if storage.dtype.kind == "f" and not np.isfinite(storage[inside & (storage == storage)]).all():
            return                                          # an infinity inside is the network's own
        tail = inside & (t.layout.pack(np.ones(t.shape, np.uint8)).reshape(-1) == 0)
        if storage.dtype.kind == "f" and not np.isfinite(storage[tail]).all():
            self._found(node, f"it leaves values that are not finite in the tail of {name!r}", got, expected)

    def _found(self, node: Node, what: str, got: Values, expected: Values) -> None:
        inputs = {i: self.values[i] for i in node.inputs if i}
        raise _FoundError(Finding(node, f"{where(node)}: {what}", inputs, dict(got), dict(expected)))

    def _see_through_views(self, name: str) -> None:
        for node in self.views.get(name, ()):
            if all(i in self.values for i in node.inputs if i):         # a Concat: when its last operand is there
                self.values[node.output] = evaluate(node, [self.values[i] if i else None for i in node.inputs])[0]
                self._see_through_views(node.output)

    # -- memory -------------------------------------------------------------------------------------------------------

    def _stored(self, names: Sequence[str]) -> Iterator[str]:
        """Those of the values that lie where ops can write."""
        for name in dict.fromkeys(names):
            if name and name in self.values and self.memory.slots[name].segment in ("arena", "output"):
                yield name

    def _alive(self, at: int) -> list[str]:
        return [name for name in self._stored(tuple(self.values)) if self.last_read.get(name, -1) > at]

    def _storage(self, name: str) -> np.ndarray:
        """The physical elements of a value, in place."""
        t = self.graph.types[name]
        if (at := self._arena_offset(name)) is None:
            return self.outputs[self.graph.outputs[self.memory.slots[name].offset]].reshape(-1)
        return self.module.arena()[at:at + size_bytes(t)].view(to_numpy(t.dtype))

    def _arena_offset(self, name: str) -> int | None:
        """Where a stored value lies in the arena; None: in an output of the network."""
        slot = self.memory.slots[name]
        return slot.offset if slot.segment == "arena" else self.counts.get(self.graph.outputs[slot.offset])

    def _read(self, name: str) -> np.ndarray:
        """A value as it is now, as a logical array of its own."""
        t = self.graph.types[name]
        return np.array(t.layout.unpack(self._storage(name), t.shape))

    def _poison(self, at: int) -> None:
        arena = self.module.arena()
        dead = np.ones(arena.size, bool)
        for name in self._stored(tuple(self.values)):
            if (offset := self._arena_offset(name)) is not None and self.last_read.get(name, -1) >= at:
                dead[offset:offset + size_bytes(self.graph.types[name])] = False
        free = dead.copy()
        for offset, size in self.memory.zero:
            free[offset:offset + size] = False
        arena[free] = 0xFF                                  # NaN in every float type
        for name, slot in self.memory.slots.items():
            t = self.graph.types.get(name)
            if slot.segment == "arena" and t is not None and t.layout.has_halo and to_numpy(t.dtype).kind == "f":
                end = slot.offset + size_bytes(t)
                if dead[slot.offset:end].all():             # a halo's storage: the interior only
                    packed = t.layout.pack(np.full(t.shape, np.nan, to_numpy(t.dtype))).reshape(-1)
                    arena[slot.offset:end] = packed.view(np.uint8)
                    dead[slot.offset:end] = False


def differs(node: Node, name: str, got: np.ndarray, expected: np.ndarray) -> str:
    """How a kernel's output is wrong; "": it is not."""
    whole = expected.dtype.kind in "iub"
    scale = 0.0 if whole else float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    rtol, atol = HALF.get(expected.dtype.name, (RTOL, ATOL))
    error = output_error(name, got, expected, rtol=rtol, atol=_step(node, expected) or atol * scale)
    return "" if error.passed else f"its result differs by {error.max_abs_error:.2g} (largest value {scale:.2g})"


def _step(node: Node, array: np.ndarray) -> float:
    """How far two right kernels that round to integers may differ: by one, on a tie. 0: it does not round."""
    body = node.attrs.get("body")
    rounds = array.dtype.kind in "iu" and isinstance(body, Graph) and any(n.op in ROUNDS for n in body.nodes)
    return 1.0 if rounds else 0.0


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == np.ascontiguousarray(b).tobytes()


def save_finding(finding: Finding, folder: Path) -> None:
    """What is needed to look at it alone: model.onnx where ONNX can say it, the graph, and the arrays.

        graph.txt, graph.json, params.bin   input_N.npy   expected_N.npy   got_N.npy   what.txt
    """
    folder.mkdir(parents=True)
    body: Graph | None = finding.node.attrs.get("body") if finding.node.op == "Fused" else None
    names = list(dict.fromkeys(i for i in finding.node.inputs if i))
    if body is not None:
        save(body, folder)
        (folder / "graph.txt").write_text(to_text(body), encoding="utf-8")
        if (model := onnx_model(body)) is not None:
            (folder / "model.onnx").write_bytes(model.SerializeToString())
        names = [i for i in finding.node.inputs if i]       # in the body's order
    for n, name in enumerate(names):
        np.save(folder / f"input_{n}.npy", finding.inputs[name])
    for stem, arrays in (("expected", finding.expected), ("got", finding.got)):
        for n, array in enumerate(arrays.values()):
            np.save(folder / f"{stem}_{n}.npy", array)
    (folder / "what.txt").write_text(finding.what + "\n", encoding="utf-8")


def onnx_model(body: Graph) -> Any:
    """A body as an ONNX model (layouts left out: they do not change values); None when it has an operator ONNX lacks."""
    import onnx

    from toolchain.graph.protos import OPSET, node_proto, schema, tensor_proto, type_proto

    nodes = []
    for node in body.nodes:
        op = "Identity" if node.op == "Layout" else node.op
        if schema(op) is None or any(isinstance(v, Graph) for v in node.attrs.values()):
            return None
        proto = onnx.NodeProto(op_type=op) if node.op == "Layout" else node_proto(node)
        del proto.input[:], proto.output[:]
        proto.input.extend(f"v{i}" if i else "" for i in node.inputs)
        proto.output.extend(f"v{o}" if o else "" for o in node.outputs)
        nodes.append(proto)

    def value(name: str) -> Any:
        return onnx.ValueInfoProto(name=f"v{name}", type=type_proto(body.types[name]))

    params = []
    for name, array in body.params.items():
        tensor = tensor_proto(np.asarray(array, order="C"))
        tensor.name = f"v{name}"
        params.append(tensor)
    graph = onnx.helper.make_graph(nodes, "repro", [value(i) for i in body.inputs], [value(o) for o in body.outputs], params)
    opset = onnx.helper.make_opsetid("", OPSET)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=onnx.helper.find_min_ir_version_for([opset]))
