"""LSTM, GRU and RNN in full: weights computed at run time, sequence lengths, peepholes, clipping, coupled gates.

What decompose_recurrent.py (constant weights, whole sequences) leaves out, in the same form: one MatMul for the input's
share of all time steps, and a Scan that captures the recurrent weights:

    P = MatMul(X, W') + b;  Yh, Yc, Y = Scan(H0, C0, P, [0, 1, ...], R', lengths, ...) {...}

A sequence that has ended keeps its state, and its outputs are zero. Backwards, sequences are reversed before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.passes.rewriting import Rewriting

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}      # whether time runs backwards
PLAIN = {name.lower(): name for name in ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")}


@dataclass
class _Steps:
    """Nodes in the making, outside the loop or in its body."""

    prefix: str
    dtype: str
    state: Rewriting | None = None
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    params: dict[str, np.ndarray] = field(default_factory=dict)

    def add(
        self, op: str, inputs: Sequence[str], shape: Sequence[int], dtype: str = "", out: str = "", **attrs: object,
    ) -> str:
        kind = TensorType.plain(tuple(shape), dtype or self.dtype)
        label = name = f"{self.prefix}.{len(self.nodes)}.{op.lower()}"
        if self.state is not None:
            name = out or self.state.value(name, kind)
        self.types[name] = kind
        self.nodes.append(Node(op, tuple(inputs), (name,), attrs, label))
        return name

    def constant(self, array: np.ndarray) -> str:
        if self.state is not None:
            return self.state.param(f"{self.prefix}.constant", array)
        name = f"{self.prefix}.c{len(self.params)}"
        self.params[name], self.types[name] = array, array_type(array)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, to_numpy(self.dtype)))

    def part(self, value: str, axis: int, start: int, end: int, shape: Sequence[int]) -> str:
        return self.add("Slice", (value, self.ints(start), self.ints(end), self.ints(axis)), shape)

    def reshape(self, value: str, shape: Sequence[int], out: str = "") -> str:
        return self.add("Reshape", (value, self.ints(*shape)), shape, out=out)


def decompose_recurrent_general(node: Node, state: Rewriting) -> Sequence[Node]:
    """See the module. Raises ImportModelError: activations with parameters of their own."""
    x, w, r, b, lengths, h0, c0, peepholes = [*node.inputs, "", "", "", "", ""][:8]
    made = _Steps(node.name or node.output, state.types[x].dtype, state)
    batch_first = bool(node.attrs.get("layout", 0))
    if batch_first:
        x, h0, c0 = (_swapped(made, state, v) if v else "" for v in (x, h0, c0))
    steps, batch, _ = state.shape(x)
    directions = DIRECTIONS[node.attrs.get("direction", "forward")]
    activations = _activations(node, len(directions))
    results = [
        _direction(node, made, d, backwards, activations[d], x, w, r, b, lengths, (h0, c0)[:STATES[node.op]], peepholes)
        for d, backwards in enumerate(directions)
    ]
    hidden = state.shape(r)[2]
    count = len(directions)
    outputs = (*node.outputs, "", "", "")[:1 + STATES[node.op]]
    for k, out in enumerate(outputs):
        if not out:
            continue
        shape = (steps, 1, batch, hidden) if k == 0 else (1, batch, hidden)
        parts = [made.reshape(found[k], shape) for found in results]
        axis = 1 if k == 0 else 0
        whole = (*shape[:axis], count, *shape[axis + 1:])
        value = made.add("Concat", parts, whole, axis=axis) if count > 1 else parts[0]
        perm = ((2, 0, 1, 3) if k == 0 else (1, 0, 2)) if batch_first else tuple(range(len(shape)))
        made.add("Transpose", (value,), [whole[p] for p in perm], out=out, perm=perm)
    return made.nodes


def _swapped(made: _Steps, state: Rewriting, value: str) -> str:
    a, b, c = state.shape(value)
    return made.add("Transpose", (value,), (b, a, c), perm=(1, 0, 2))


def _activations(node: Node, directions: int) -> list[tuple[str, ...]]:
    names = tuple(node.attrs.get("activations") or DEFAULTS[node.op] * directions)
    n = len(DEFAULTS[node.op])
    if len(names) != n * directions or any(name.lower() not in PLAIN for name in names):
        raise ImportModelError(f"activations {list(names)} are not supported", where=f"node {node.name!r} ({node.op})",
                               fix=f"use {n} per direction of: {', '.join(PLAIN.values())}")
    return [tuple(PLAIN[name.lower()] for name in names[d * n:(d + 1) * n]) for d in range(directions)]


def _direction(
    node: Node, made: _Steps, d: int, backwards: bool, activations: Sequence[str], x: str, w: str, r: str, b: str,
    lengths: str, initial: Sequence[str], peepholes: str,
) -> list[str]:
    """One direction: [all hidden states, final states...]."""
    state = made.state
    assert state is not None
    steps, batch, size = state.shape(x)
    gates, hidden = GATES[node.op], state.shape(r)[2]
    lens = lengths or made.constant(np.full(batch, steps, np.int32))
    if backwards:
        x = made.add("ReverseSequence", (x, _as_int64(made, lens, batch)), (steps, batch, size), batch_axis=1, time_axis=0)

    def transposed(value: str, width: int) -> str:
        own = made.reshape(made.part(value, 0, d, d + 1, (1, gates * hidden, width)), (gates * hidden, width))
        return made.add("Transpose", (own,), (width, gates * hidden), perm=(1, 0))
    p = made.add("MatMul", (x, transposed(w, size)), (steps, batch, gates * hidden))
    recurrent, after = transposed(r, hidden), ""
    if b:
        both = made.reshape(made.part(b, 0, d, d + 1, (1, 2 * gates * hidden)), (2 * gates * hidden,))
        wb = made.part(both, 0, 0, gates * hidden, (gates * hidden,))
        after = made.part(both, 0, gates * hidden, 2 * gates * hidden, (gates * hidden,))
        p = made.add("Add", (p, wb), (steps, batch, gates * hidden))
    else:
        after = made.constant(np.zeros(gates * hidden, to_numpy(made.dtype)))
    first = [_initial(made, name, d, batch, hidden) for name in initial]
    first += [made.constant(np.zeros((batch, hidden), to_numpy(made.dtype)))] * (STATES[node.op] - len(first))
    column = made.add("Reshape", (lens, made.ints(batch, 1)), (batch, 1), state.types[lens].dtype)
    captured = [recurrent, after, made.add("Cast", (column,), (batch, 1), "int64", to=7)]
    if peepholes:
        captured.append(made.reshape(made.part(peepholes, 0, d, d + 1, (1, 3 * hidden)), (3 * hidden,)))
    body = _body(node, made.dtype, batch, hidden, activations, [state.types[c] for c in captured])
    times = made.constant(np.arange(steps, dtype=np.int64))
    kind = TensorType.plain((batch, hidden), made.dtype)
    final = [state.value(f"{made.prefix}.final", kind) for _ in first]
    sequence = state.value(f"{made.prefix}.sequence", TensorType.plain((steps, batch, hidden), made.dtype))
    made.nodes.append(Node("Scan", (*first, p, times, *captured), (*final, sequence),
                           {"body": body, "captures": len(captured), "num_scan_inputs": 2}, f"{made.prefix}.scan"))
    if backwards:
        sequence = made.add("ReverseSequence", (sequence, _as_int64(made, lens, batch)), (steps, batch, hidden),
                            batch_axis=1, time_axis=0)
    return [sequence, *final]


def _as_int64(made: _Steps, lens: str, batch: int) -> str:
    return made.add("Cast", (lens,), (batch,), "int64", to=7)


def _initial(made: _Steps, name: str, d: int, batch: int, hidden: int) -> str:
    if not name:
        return made.constant(np.zeros((batch, hidden), to_numpy(made.dtype)))
    return made.reshape(made.part(name, 0, d, d + 1, (1, batch, hidden)), (batch, hidden))


def _body(
    node: Node, dtype: str, batch: int, hidden: int, activations: Sequence[str], captured: Sequence[TensorType],
) -> Graph:
    """(h[, c], p, t, R', Rb, lengths[, P]) -> (h[, c], y)."""
    body = _Steps("s", dtype)
    names = (*("h", "c")[:STATES[node.op]], "p", "t", *("r", "rb", "lengths", "peepholes")[:len(captured)])
    kind = TensorType.plain((batch, hidden), dtype)
    kinds = [kind] * STATES[node.op] + [
        TensorType.plain((batch, GATES[node.op] * hidden), dtype), TensorType.plain((), "int64"), *captured]
    body.types.update(zip(names, kinds, strict=True))
    cell = _Cell(node, body, batch, hidden)
    new = {"LSTM": cell.lstm, "GRU": cell.gru, "RNN": cell.rnn}[node.op](activations)
    alive = body.add("Less", ("t", "lengths"), (batch, 1), "bool")
    kept = [body.add("Where", (alive, value, old), (batch, hidden)) for value, old in zip(new, names)]
    y = body.add("Where", (alive, new[0], body.number(0)), (batch, hidden))
    return Graph(f"{node.name or node.op}.step", tuple(body.nodes), names, (*kept, y), body.types, body.params)


class _Cell:
    """One step of a recurrent operator. Source: ONNX LSTM, GRU, RNN."""

    def __init__(self, node: Node, body: _Steps, batch: int, hidden: int) -> None:
        self.node, self.body, self.batch, self.hidden = node, body, batch, hidden
        self.clip = float(node.attrs.get("clip", 0.0))

    def add(self, op: str, *inputs: str) -> str:
        return self.body.add(op, inputs, (self.batch, self.hidden))

    def gate(self, value: str, k: int) -> str:
        return self.body.part(value, 1, k * self.hidden, (k + 1) * self.hidden, (self.batch, self.hidden))

    def wide(self, op: str, *inputs: str) -> str:
        return self.body.add(op, inputs, (self.batch, GATES[self.node.op] * self.hidden))

    def activate(self, name: str, value: str) -> str:
        if self.clip:
            value = self.add("Clip", value, self.body.number(-self.clip), self.body.number(self.clip))
        return self.add(name, value)

    def peep(self, value: str, cell: str, k: int) -> str:
        """value + P[k] * cell, where there are peepholes."""
        if "peepholes" not in self.body.types:
            return value
        own = self.body.part("peepholes", 0, k * self.hidden, (k + 1) * self.hidden, (self.hidden,))
        return self.add("Add", value, self.add("Mul", own, cell))

    def lstm(self, activations: Sequence[str]) -> list[str]:
        f, g, last = activations
        total = self.wide("Add", "p", self.wide("Add", self.wide("MatMul", "h", "r"), "rb"))
        i = self.activate(f, self.peep(self.gate(total, 0), "c", 0))
        if self.node.attrs.get("input_forget", 0):
            forget = self.add("Sub", self.body.number(1), i)
        else:
            forget = self.activate(f, self.peep(self.gate(total, 2), "c", 2))
        new = self.activate(g, self.gate(total, 3))
        cell = self.add("Add", self.add("Mul", forget, "c"), self.add("Mul", i, new))
        o = self.activate(f, self.peep(self.gate(total, 1), cell, 1))
        return [self.add("Mul", o, self.add(last, cell)), cell]      # clip leaves the cell alone, as in ONNX Runtime

    def gru(self, activations: Sequence[str]) -> list[str]:
        f, g = activations
        recurrent = self.wide("Add", self.wide("MatMul", "h", "r"), "rb")
        z = self.activate(f, self.add("Add", self.gate("p", 0), self.gate(recurrent, 0)))
        reset = self.activate(f, self.add("Add", self.gate("p", 1), self.gate(recurrent, 1)))
        if self.node.attrs.get("linear_before_reset", 0):
            share = self.add("Mul", reset, self.gate(recurrent, 2))
        else:
            n = self.hidden
            own = self.body.part("r", 1, 2 * n, 3 * n, (n, n))
            bias = self.body.part("rb", 0, 2 * n, 3 * n, (n,))
            share = self.add("Add", self.add("MatMul", self.add("Mul", reset, "h"), own), bias)
        new = self.activate(g, self.add("Add", self.gate("p", 2), share))
        return [self.add("Add", self.add("Mul", self.add("Sub", self.body.number(1), z), new), self.add("Mul", z, "h"))]

    def rnn(self, activations: Sequence[str]) -> list[str]:
        total = self.wide("Add", "p", self.wide("Add", self.wide("MatMul", "h", "r"), "rb"))
        return [self.activate(activations[0], total)]
