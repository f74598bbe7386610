"""Nodes that the importer writes in place of one of the model's: a loop written out round by round, and a pen for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import GraphProto, NodeProto

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.importers.names import Names
from toolchain.graph.infer import where
from toolchain.graph.ir import Node

if TYPE_CHECKING:
    from toolchain.graph.importers.sweep import Sweep

MOST_ROUNDS = 64                    # of a loop that is written out


def unroll_loop(scope: Sweep, node: Node, proto: NodeProto, names: Names, here: str) -> bool:
    """A Loop of few rounds as the nodes of its rounds; False: how many there are is not known, or too many.

        Loop(3, true, s) {s' = body(i, s)}   ->   s1 = body(0, s); s2 = body(1, s1); s3 = body(2, s2)

    For bodies that are not static otherwise: the number of the round is a constant in each, and a state may change its
    shape. Raises ImportModelError: the body does not fit.
    """
    trip, go, *states = (*node.inputs, "", "")[:max(len(node.inputs), 2)]
    count = int(scope.params[trip].reshape(())) if trip in scope.params else MOST_ROUNDS + 1
    if count > MOST_ROUNDS or (go and go not in scope.params):
        return False
    body: GraphProto = node.attrs["body"]
    scans: list[list[str]] = [[] for _ in body.output[1 + len(states):]]
    going = not go or bool(scope.params[go].all())
    for step in range(count if going else 0):
        given = (scope.constant(f"{node.name}/round", np.asarray(step, "int64")),
                 scope.constant(f"{node.name}/going", np.asarray(True)), *states)
        more, *made = scope.inline_graph(body, given, f"{node.name}/{step}/", names, here)
        states = made[:len(states)]
        for kept, value in zip(scans, made[len(states):], strict=True):
            kept.append(value)
        if more not in scope.params:
            return False
        if not scope.params[more].all():
            break
    if scans and not scans[0]:
        return False
    writer = Writer(scope, node, names)
    axes = scope.constant(f"{node.name}/axes", np.zeros(1, "int64"))
    stacked = [writer.op("Concat", [writer.op("Unsqueeze", (v, axes), {}) for v in kept], {"axis": 0}) for kept in scans]
    for out, value in zip(proto.output, (*states, *stacked)):
        if out:
            scope.bind(out, value, names, here)
    return True


def peel_loop(scope: Sweep, node: Node, proto: NodeProto, names: Names, here: str) -> bool:
    """A Loop whose states have another shape after the first round, written out for that round; False: it may make none.

        Loop(9, true, s: float32[]) {s' = body(i, s)}
            ->   s1: float32[3] = body(0, s);   Loop(8, c, s1) {s' = body(i + 1, s)}

    Raises ImportModelError: the body does not fit.
    """
    trip, go, *states = (*node.inputs, "", "")[:max(len(node.inputs), 2)]
    body: GraphProto = node.attrs["body"]
    limit, going = (scope.params.get(i) if i else np.ones((), bool) for i in (trip, go))
    if limit is None or going is None or int(limit.reshape(())) < 1 or not going.all() or (
            len(body.output) != 1 + len(states) or "first" in node.attrs):
        return False
    given = (scope.constant(f"{node.name}/round", np.asarray(0, "int64")),
             scope.constant(f"{node.name}/going", np.asarray(True)), *states)
    before = dict(names.values)
    more, *made = scope.inline_graph(body, given, f"{node.name}/first/", names, here)
    left = scope.constant(f"{node.name}/left", limit - 1) if trip else ""
    try:
        scope.control(replace(node, inputs=(left, more, *made), attrs={**node.attrs, "first": 1}), proto.output, names, here)
    except ImportModelError:
        names.values = before
        return False
    return True


def scan_batch(scope: Sweep, node: Node, proto: NodeProto, names: Names, here: str) -> None:
    """A Scan of opset 8, which has a batch dimension, as one of today's per sequence of the batch.

        y = Scan("", s: [B, ...], x: [B, T, ...])   ->   y = Concat of Unsqueeze(Scan(s[b], x[b])) for each b

    Raises ImportModelError: sequences of different lengths.
    """
    lengths, *given = node.inputs
    if lengths:
        raise ImportModelError("Scan over sequences of different lengths is not supported", where=here,
                               fix="convert the model to opset 9 or newer")
    writer, parts = Writer(scope, node, names), []
    attrs = {k: v for k, v in node.attrs.items() if k != "directions"}
    if "directions" in node.attrs:
        attrs["scan_input_directions"] = node.attrs["directions"]
    for b in range(scope.types[given[0]].shape[0]):
        at = scope.constant(f"{node.name}/batch", np.asarray(b, "int64"))
        one = Node("Scan", tuple(writer.op("Gather", (x, at), {"axis": 0}) for x in given), (), attrs,
                   scope.node_name(f"{node.name}/{b}"), node.sources)
        inner = Names(names.opset, names.depth, {}, names.attrs, f"{one.name}/", outer=names, source=names.source)
        scope.control(one, proto.output, inner, here)
        parts.append([inner.values[o] if o else "" for o in proto.output])
    axes = scope.constant(f"{node.name}/axes", np.zeros(1, "int64"))
    for out, *pieces in zip(proto.output, *parts, strict=True):
        if out:
            rows = [writer.op("Unsqueeze", (p, axes), {}) for p in pieces]
            scope.bind(out, writer.op("Concat", rows, {"axis": 0}), names, here)


class Writer:
    """Writes nodes that stand for one of the model's."""

    def __init__(self, scope: Sweep, node: Node, names: Names) -> None:
        self.scope, self.node, self.names = scope, node, names

    @property
    def types(self) -> Mapping[str, TensorType]:
        return self.scope.types

    def constant(self, hint: str, array: np.ndarray) -> str:
        return self.scope.constant(hint, array)

    def op(self, op: str, inputs: Sequence[str], attrs: Mapping[str, Any]) -> str:
        name = self.scope.node_name(f"{self.node.name}/{op}")
        out = self.scope.fresh(name)
        self.scope.emit(Node(op, tuple(inputs), (out,), dict(attrs), name, self.node.sources), self.names)
        return out

    def graph(self, proto: GraphProto, given: Sequence[str], what: str) -> list[str]:
        self.scope.model.check_depth(self.names.depth + 1, where(self.node))
        return self.scope.inline_graph(proto, given, f"{self.node.name}/{what}/", self.names, where(self.node))


__all__ = ["Writer", "peel_loop", "scan_batch", "unroll_loop"]
