"""LSTM, GRU and RNN as matrix products and a Scan: rules of `decompose`.

The input's share of all time steps is one MatMul; only the recurrent share stays in the loop:

    Y, Yh, Yc = LSTM(X, W, R, B, _, H0, C0)   ->   P = MatMul(X, W') + b
                                                   Yh, Yc, Y = Scan(H0, C0, P) {body: gates = p + MatMul(h, R'), ...}

Per direction, put together by Reshape and Concat. Gates are Slices, so that they fuse with what reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.passes.rewriting import Rewriting

DIRECTIONS: Mapping[str, tuple[int, ...]] = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
"""Per direction computed: whether time runs backwards."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent operator: its gates, states and default activations, and the body of its loop."""

    gates: int
    states: int
    activations: tuple[str, ...]
    step: Callable[[_Body, Sequence[str], np.ndarray, np.ndarray, Sequence[str], Node], tuple[str, ...]]


@dataclass
class _Body:
    """The body of a Scan, being built."""

    batch: int
    hidden: int
    dtype: str
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, out: str = "", width: int = 0) -> str:
        """One node with a result of (batch, width or hidden)."""
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), name=name))
        self.types[name] = TensorType.plain((self.batch, width or self.hidden), self.dtype)
        return name

    def param(self, name: str, array: np.ndarray) -> str:
        self.params[name] = array
        self.types[name] = array_type(array)
        return name

    def slice(self, value: str, gate: int) -> str:
        """Columns of one gate."""
        numbers = (gate * self.hidden, (gate + 1) * self.hidden, 1)         # starts, ends, axes
        bounds = [self.param(f"int64.{n}", np.array([n], np.int64)) for n in numbers]
        return self.add("Slice", value, *bounds)


def _lstm(
    body: _Body, state: Sequence[str], r: np.ndarray, rb: np.ndarray, activations: Sequence[str], node: Node
) -> tuple[str, ...]:
    h, c = state
    f, g, last = activations
    gates = body.add("Add", "p", body.add("MatMul", h, body.param("r", r), width=4 * body.hidden), width=4 * body.hidden)
    i = body.add(f, body.slice(gates, 0))
    o = body.add(f, body.slice(gates, 1))
    forget = body.add(f, body.slice(gates, 2))
    new = body.add(g, body.slice(gates, 3))
    cell = body.add("Add", body.add("Mul", forget, c), body.add("Mul", i, new), out="c.next")
    return body.add("Mul", o, body.add(last, cell), out="h.next"), cell


def _gru(
    body: _Body, state: Sequence[str], r: np.ndarray, rb: np.ndarray, activations: Sequence[str], node: Node
) -> tuple[str, ...]:
    (h,), n = state, body.hidden
    f, g = activations
    before = bool(node.attrs.get("linear_before_reset", 0))
    one = body.param("one", np.ones(1, r.dtype))
    if before:
        recurrent = body.add("MatMul", h, body.param("r", r), width=3 * n)
        third = body.add("Add", body.slice(recurrent, 2), body.param("rb", np.ascontiguousarray(rb[2 * n:])))
    else:
        recurrent = body.add("MatMul", h, body.param("r", np.ascontiguousarray(r[:, :2 * n])), width=2 * n)
        third = ""
    z = body.add(f, body.add("Add", body.slice("p", 0), body.slice(recurrent, 0)))
    reset = body.add(f, body.add("Add", body.slice("p", 1), body.slice(recurrent, 1)))
    if before:
        share = body.add("Mul", reset, third)
    else:
        share = body.add("MatMul", body.add("Mul", reset, h), body.param("rh", np.ascontiguousarray(r[:, 2 * n:])))
    new = body.add(g, body.add("Add", body.slice("p", 2), share))
    kept = body.add("Mul", z, h)                            # so that `new` is read once, in its product's own kernel
    return (body.add("Add", body.add("Mul", body.add("Sub", one, z), new), kept, out="h.next"),)


def _rnn(
    body: _Body, state: Sequence[str], r: np.ndarray, rb: np.ndarray, activations: Sequence[str], node: Node
) -> tuple[str, ...]:
    total = body.add("Add", "p", body.add("MatMul", state[0], body.param("r", r)))
    return (body.add(activations[0], total, out="h.next"),)


CELLS: Mapping[str, Cell] = {
    "LSTM": Cell(4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm),
    "GRU": Cell(3, 1, ("Sigmoid", "Tanh"), _gru),
    "RNN": Cell(1, 1, ("Tanh",), _rnn),
}
PLAIN_ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")      # those without parameters


def is_simple(node: Node, state: Rewriting) -> bool:
    """Whether a recurrent node is what this file rewrites: constant weights, whole sequences, plain gates."""
    lengths, peepholes = ([*node.inputs, "", "", "", "", ""][k] for k in (4, 7))
    steps = state.shape(node.inputs[0])[1 if node.attrs.get("layout", 0) else 0]
    return not (
        (lengths and state.uniform(lengths) != steps) or node.attrs.get("clip") or (node.op == "LSTM" and peepholes)
        or node.attrs.get("input_forget", 0) or any(name and name not in state.params for name in node.inputs[1:4]))


def decompose_recurrent(node: Node, state: Rewriting) -> Sequence[Node]:
    """LSTM, GRU, RNN -> see the module. Raises ImportModelError: what `_check` refuses."""
    cell = CELLS[node.op]
    given = [*node.inputs, "", "", "", "", ""][:8]
    x, w, r, b, lengths = given[:5]
    initial = given[5:7]
    backwards = DIRECTIONS[node.attrs.get("direction", "forward")]
    activations = _check(node, cell, state, lengths, len(backwards), peepholes=given[7])
    nodes: list[Node] = []
    build = _Builder(node, state, nodes)
    if node.attrs.get("layout", 0):
        x = build.transpose(x)
        initial = [build.transpose(i) if i else "" for i in initial]
    steps, batch, _ = build.shape(x)
    hidden = state.shape(r)[2]
    bias = state.params[b] if b else np.zeros((len(backwards), 2 * cell.gates * hidden), state.params[w].dtype)
    states, sequences = [], []
    for d, reverse in enumerate(backwards):
        wb, rb = np.split(bias[d], 2)
        outside = wb + rb                                   # both are added before the activation, but for one gate of GRU
        if node.op == "GRU" and node.attrs.get("linear_before_reset", 0):
            outside = wb + np.concatenate([rb[:2 * hidden], np.zeros(hidden, rb.dtype)])
        product = build.add("MatMul", (x, build.param("w", state.params[w][d].T)), (steps, batch, cell.gates * hidden))
        p = build.add("Add", (product, build.param("b", outside)), (steps, batch, cell.gates * hidden))
        first = [build.initial(name, d, (batch, hidden)) for name in initial[:cell.states]]
        recurrent = np.ascontiguousarray(state.params[r][d].T)
        body = _body(node, cell, (batch, hidden), recurrent, rb, activations[d], build.dtype)
        *final, sequence = build.scan(body, first, p, reverse, (batch, hidden), steps)
        states.append(final)
        sequences.append(sequence)
    build.finish(sequences, states, (steps, batch, hidden))
    return nodes


def _body(
    node: Node, cell: Cell, size: tuple[int, int], r: np.ndarray, rb: np.ndarray, activations: Sequence[str], dtype: str
) -> Graph:
    """The loop's body: (states, p) -> (states, h)."""
    body = _Body(*size, dtype)
    given = ("h", "c")[:cell.states]
    for name in given:
        body.types[name] = TensorType.plain(size, dtype)
    body.types["p"] = TensorType.plain((size[0], cell.gates * size[1]), dtype)
    made = cell.step(body, given, r, rb, activations, node)
    out = body.add("Identity", made[0], out="y")
    return Graph(f"{node.name or node.op}.step", tuple(body.nodes), (*given, "p"), (*made, out), body.types, body.params)


def _check(
    node: Node, cell: Cell, state: Rewriting, lengths: str, directions: int, peepholes: str
) -> list[tuple[str, ...]]:
    """The activations per direction. Raises ImportModelError naming the node and what is not supported."""
    where = f"node {node.name!r} ({node.op})"
    steps = state.shape(node.inputs[0])[1 if node.attrs.get("layout", 0) else 0]
    if lengths and state.uniform(lengths) != steps:
        raise ImportModelError("sequence_lens other than the full length is not supported", where=where,
                               fix="pad the sequences and leave sequence_lens out")
    if node.attrs.get("clip"):
        raise ImportModelError(f"clip={node.attrs['clip']} is not supported", where=where)
    if node.op == "LSTM" and peepholes:
        raise ImportModelError("peephole weights (input P) are not supported", where=where)
    if node.attrs.get("input_forget", 0):
        raise ImportModelError("input_forget=1 is not supported", where=where)
    if any(name and name not in state.params for name in node.inputs[1:4]):
        raise ImportModelError("weights that are computed at run time are not supported", where=where)
    names = tuple(node.attrs.get("activations") or cell.activations * directions)
    known = {name.lower(): name for name in PLAIN_ACTIVATIONS}
    wrong = [name for name in names if name.lower() not in known]
    if wrong or len(names) != len(cell.activations) * directions:
        raise ImportModelError(f"activations {list(names)} are not supported", where=where,
                               fix=f"use {len(cell.activations)} per direction of: {', '.join(PLAIN_ACTIVATIONS)}")
    n = len(cell.activations)
    return [tuple(known[name.lower()] for name in names[d * n:(d + 1) * n]) for d in range(directions)]


@dataclass
class _Builder:
    """The nodes that stand in the place of one recurrent node."""

    node: Node
    state: Rewriting
    nodes: list[Node]

    @property
    def dtype(self) -> str:
        return self.state.types[self.node.inputs[0]].dtype

    def shape(self, value: str) -> tuple[int, ...]:
        return self.state.shape(value)

    def add(self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], out: str = "", **attrs: object) -> str:
        label = f"{self.node.name or self.node.op}.{op.lower()}"
        out = out or self.state.value(label, TensorType.plain(shape, self.dtype))
        self.nodes.append(Node(op, inputs, (out,), attrs, label))
        return out

    def param(self, what: str, array: np.ndarray) -> str:
        return self.state.param(f"{self.node.name or self.node.op}.{what}", array)

    def transpose(self, value: str) -> str:
        """(batch, time, size) to (time, batch, size), and back."""
        a, b, c = self.shape(value)
        return self.add("Transpose", (value,), (b, a, c), perm=(1, 0, 2))

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", (value, self.state.int64(*shape)), shape)

    def initial(self, name: str, d: int, size: tuple[int, int]) -> str:
        """One direction of an initial state (directions, batch, hidden); zeros when it is not given."""
        if not name:
            return self.param("zero", np.zeros(size, self.state.params[self.node.inputs[1]].dtype))
        if self.shape(name)[0] > 1:
            bounds = tuple(self.state.int64(n) for n in (d, d + 1, 0))
            name = self.add("Slice", (name, *bounds), (1, *size))
        return self.reshape(name, size)

    def scan(self, body: Graph, first: list[str], p: str, reverse: int, size: tuple[int, int], steps: int) -> list[str]:
        """The loop over time: final states, then all hidden states."""
        label = f"{self.node.name or self.node.op}.scan"
        kind = TensorType.plain(size, self.dtype)
        states = [self.state.value(f"{label}.{name}", kind) for name in body.inputs[:len(first)]]
        sequence = self.state.value(f"{label}.y", TensorType.plain((steps, *size), self.dtype))
        attrs = {"body": body, "captures": 0, "num_scan_inputs": 1,
                 "scan_input_directions": (reverse,), "scan_output_directions": (reverse,),
                 "scan_input_axes": (0,), "scan_output_axes": (0,)}
        self.nodes.append(Node("Scan", (*first, p), (*states, sequence), attrs, label))
        return [*states, sequence]

    def finish(self, sequences: list[str], states: list[list[str]], size: tuple[int, int, int]) -> None:
        """Y (time, directions, batch, hidden), Y_h and Y_c (directions, batch, hidden); other orders with layout=1."""
        steps, batch, hidden = size
        count = len(sequences)
        batch_first = bool(self.node.attrs.get("layout", 0))
        outputs = (*self.node.outputs, "", "")[:1 + len(states[0])]
        if outputs[0]:
            parts = [self.reshape(s, (steps, 1, batch, hidden)) for s in sequences]
            whole = self.add("Concat", tuple(parts), (steps, count, batch, hidden), axis=1) if count > 1 else parts[0]
            self._last("Transpose" if batch_first else "", whole, outputs[0], (2, 0, 1, 3))
        for n, out in enumerate(outputs[1:]):
            if out:
                parts = [self.reshape(s[n], (1, batch, hidden)) for s in states]
                whole = self.add("Concat", tuple(parts), (count, batch, hidden), axis=0) if count > 1 else parts[0]
                self._last("Transpose" if batch_first else "", whole, out, (1, 0, 2))

    def _last(self, op: str, value: str, out: str, perm: tuple[int, ...]) -> None:
        """Give `value` the name of the node's output."""
        if op:
            self.add(op, (value,), (), out=out, perm=perm)
            return
        made = self.nodes[-1]
        self.nodes[-1] = replace(made, outputs=(out,))
