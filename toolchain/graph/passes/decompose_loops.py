"""ONNX's Loop and Scan in the forms that plans have: a Scan along axis 0 when the number of rounds is known, else a Loop on
a condition.

    Loop(10, true, s...) {body(i, c, s...) -> c, s'..., y}   ->   Scan(s..., [0, ..., 9]) {body(s..., i) -> s'..., y}
    Loop(M, c, s...) {body(i, c, s...) -> c', s'...}         ->   Loop(_, c and 0 < M, s..., 0, M)
                                                                      {body(_, _, s..., i, M) -> c' and i+1 < M, s'..., i+1}
    y = Scan(s..., x) along axis 1                           ->   y' = Scan(s..., Transpose(x)) along 0; y = Transpose(y')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node, array_type, rename_inputs
from toolchain.graph.passes.rewriting import Rewriting

INT = TensorType.plain((), "int64")


def decompose_scan(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """See the module: slices lie one behind the other, so that a round moves on by a fixed number of bytes.

    None: every axis is 0 already.
    """
    body: Graph = node.attrs["body"]
    width, captures = int(node.attrs["num_scan_inputs"]), int(node.attrs.get("captures", 0))
    count = len(node.inputs) - width - captures
    ins = node.attrs.get("scan_input_axes") or (0,) * width
    outs = node.attrs.get("scan_output_axes") or (0,) * (len(body.outputs) - count)
    if not any(ins) and not any(outs):
        return None
    label = node.name or node.output
    before: list[Node] = []
    after: list[Node] = []
    inputs, outputs = list(node.inputs), list(node.outputs)
    for k, axis in enumerate(ins, count):
        t = state.types[inputs[k]]
        if at := axis % len(t.shape):
            turned = state.value(f"{label}.{inputs[k]}", _in_front(t, at))
            perm = (at, *(n for n in range(len(t.shape)) if n != at))
            before.append(Node("Transpose", (inputs[k],), (turned,), {"perm": perm}, turned))
            inputs[k] = turned
    for k, axis in enumerate(outs, count):
        if k >= len(outputs) or not (out := outputs[k]):
            continue
        t = state.types[out]
        if at := axis % len(t.shape):
            outputs[k] = state.value(f"{label}.{out}", _in_front(t, at))
            perm = (*range(1, at + 1), 0, *range(at + 1, len(t.shape)))
            after.append(Node("Transpose", (outputs[k],), (out,), {"perm": perm}, out))
    attrs = {name: value for name, value in node.attrs.items() if name not in ("scan_input_axes", "scan_output_axes")}
    return [*before, replace(node, inputs=tuple(inputs), outputs=tuple(outputs), attrs=attrs), *after]


def _in_front(t: TensorType, at: int) -> TensorType:
    return TensorType.plain((t.shape[at], *t.shape[:at], *t.shape[at + 1:]), t.dtype)


def decompose_loop(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """See the module. None: a Loop that is in its last form already."""
    body: Graph = node.attrs["body"]
    captures = int(node.attrs.get("captures", 0))
    count = len(node.inputs) - 2 - captures
    trip, condition = node.inputs[:2]
    always = (not condition or _is_true(state.constant(condition))) and (
        body.outputs[0] == body.inputs[1] or _is_true(body.params.get(body.outputs[0])))
    if always and (limit := state.constant(trip) if trip else None) is not None:
        return _scan(node, body, count, max(int(limit.reshape(())), 0), state)
    if not trip and body.inputs[0] not in _read(body):
        return None
    return _while(node, body, count, state)


def _is_true(array: np.ndarray | None) -> bool:
    return array is not None and bool(array.all())


def _read(body: Graph) -> set[str]:
    return {*body.outputs, *(i for n in body.nodes for i in n.inputs)}


def _scan(node: Node, body: Graph, count: int, length: int, state: Rewriting) -> Sequence[Node]:
    label = node.name or node.output
    states, captured = node.inputs[2:2 + count], node.inputs[2 + count:]
    if length == 0:
        for out in node.outputs[count:]:
            if out:
                state.define(out, np.zeros(state.shape(out), to_numpy(state.types[out].dtype)))
        return [Node("Identity", (given,), (out,), name=f"{label}.{n}")
                for n, (given, out) in enumerate(zip(states, node.outputs)) if out]
    steps = state.param(f"{label}.iterations", np.arange(length, dtype=np.int64))
    going = body.inputs[1]
    params = {**body.params, going: np.ones(body.types[going].shape, bool)}
    inner = replace(
        body, inputs=(*body.inputs[2:2 + count], body.inputs[0], *body.inputs[2 + count:]), outputs=body.outputs[1:],
        params=params)
    attrs = {"body": inner, "captures": len(captured), "num_scan_inputs": 1}
    return [Node("Scan", (*states, steps, *captured), node.outputs, attrs, label)]


def _while(node: Node, body: Graph, count: int, state: Rewriting) -> Sequence[Node]:
    """The iteration number and the limit become part of the loop's own data."""
    label = node.name or node.output
    trip, condition = node.inputs[:2]
    states, captured = node.inputs[2:2 + count], node.inputs[2 + count:]
    nodes: list[Node] = []
    start = state.param(f"{label}.start", np.asarray(0, np.int64))
    first = condition or state.param(f"{label}.true", np.asarray(True))
    names = _Names(body)
    i, i_next, one = body.inputs[0], names.new("i.next", INT), names.param("one", np.asarray(1, np.int64))
    more = [Node("Add", (i, one), (i_next,), name=i_next)]
    inputs, outputs = (*body.inputs[:2], *body.inputs[2:2 + count]), body.outputs
    going = body.outputs[0]
    if trip:
        within = state.value(f"{label}.within", TensorType.plain(state.shape(trip), "bool"))
        both = TensorType.plain(_joined(state.shape(first), state.shape(trip)), "bool")
        enters = state.value(f"{label}.enters", both)
        nodes.append(Node("Less", (start, trip), (within,), name=within))
        nodes.append(Node("And", (first, within), (enters,), name=enters))
        first = enters
        limit = names.new("limit", state.types[trip])
        below = names.new("below", TensorType.plain(state.shape(trip), "bool"))
        on = names.new("goes.on", TensorType.plain(_joined(body.types[going].shape, state.shape(trip)), "bool"))
        more += [Node("Less", (i_next, limit), (below,), name=below), Node("And", (going, below), (on,), name=on)]
        going = on
    unused_i, unused_c = names.new("unused.i", INT), names.new("unused.c", body.types[body.inputs[1]])
    true = names.param("true", np.ones(body.types[body.inputs[1]].shape, bool))
    renamed = {body.inputs[1]: true}                        # inside the loop the condition holds
    kept = tuple(rename_inputs(n, renamed) for n in (*body.nodes, *more))
    going = renamed.get(going, going)
    inner = replace(
        body, nodes=kept,
        inputs=(unused_i, unused_c, *inputs[2:], i, *body.inputs[2 + count:], *((limit,) if trip else ())),
        outputs=(going, *(renamed.get(o, o) for o in outputs[1:]), i_next), types=names.types, params=names.params)
    last = state.value(f"{label}.count", INT)
    attrs = {**node.attrs, "body": inner, "captures": len(captured) + bool(trip)}
    looped = ("", first, *states, start, *captured, *((trip,) if trip else ()))
    nodes.append(Node("Loop", looped, (*_padded(node.outputs, count), last), attrs, label))
    return nodes


def _joined(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(a, b))


def _padded(outputs: tuple[str, ...], count: int) -> tuple[str, ...]:
    return (*outputs, *("",) * (count - len(outputs)))


class _Names:
    """New values of a body."""

    def __init__(self, body: Graph) -> None:
        self.types, self.params = dict(body.types), dict(body.params)

    def new(self, base: str, t: TensorType) -> str:
        name, n = base, 0
        while name in self.types:
            n += 1
            name = f"{base}.{n}"
        self.types[name] = t
        return name

    def param(self, base: str, array: np.ndarray) -> str:
        name = self.new(base, array_type(array))
        self.params[name] = array
        return name
