"""Express operators without a kernel by simpler ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from toolchain.graph.importers.coverage import has_function
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.decompose_loops import decompose_loop, decompose_scan
from toolchain.graph.passes.decompose_recurrent import CELLS, decompose_recurrent, is_simple
from toolchain.graph.passes.decompose_recurrent_general import decompose_recurrent_general
from toolchain.graph.passes.decompose_sampling import SAMPLED, sample_rows
from toolchain.graph.passes.decompose_spectral import SPECTRAL, decompose_spectral
from toolchain.graph.passes.rewriting import Rewriting
from toolchain.graph.protos import OPSET, node_proto, tensor_proto, type_proto

DECOMPOSED = frozenset((*CELLS, *SAMPLED, *SPECTRAL))
"""Operators without a kernel, nor a function of ONNX's, that are rewritten here."""

SHOWN_ELEMENTS = 4096
"""Constants of up to so many elements are given to ONNX's function bodies by value: axes, shapes, scales; never weights."""


def decompose(graph: Graph, supported: Collection[str]) -> Graph:
    """Replace each operator not in `supported` by what it is made of.

        Y = LSTM(X, W, R, B)   ->   P = MatMul(X, W') + b; Yh, Yc, Y = Scan(H0, C0, P) {...}
        y = Mish(x)            ->   s = Softplus(x); t = Tanh(s); y = Mul(x, t)         (its ONNX function body)

    LSTM, GRU and RNN: see decompose_recurrent.py and decompose_recurrent_general.py; Loop and Scan: decompose_loops.py;
    DFT and STFT: decompose_spectral.py; DeformConv, RoiAlign and GridSample: decompose_sampling.py. Others: the function
    ONNX defines them by. Left alone: supported operators, and those ONNX has no function for. Raises ImportModelError naming
    the node: activations with parameters, a function of unsupported operators.
    """

    def rule(node: Node, state: Rewriting) -> Sequence[Node] | None:
        if node.op == "Loop":
            return decompose_loop(node, state)
        if node.op == "Scan":
            return decompose_scan(node, state)
        if node.op == "GridSample" and "GridSampleLast" in supported:
            return sample_rows(node, state)
        if node.op in supported:
            return None
        if node.op in CELLS:
            return decompose_recurrent(node, state) if is_simple(node, state) else decompose_recurrent_general(node, state)
        if node.op in SAMPLED:
            return SAMPLED[node.op](node, state)
        if node.op in SPECTRAL:
            return decompose_spectral(node, state)
        return expand_function(node, state, supported) if has_function(node.op) else None

    return Rewriting(graph).sweep(rule)


def decomposing(supported: Collection[str]) -> Callable[[Graph], Graph]:
    """`decompose` for a given set of operators, as a pass."""

    def decompose_for(graph: Graph) -> Graph:
        return decompose(graph, supported)

    decompose_for.__name__ = "decompose"
    decompose_for.__doc__ = decompose.__doc__
    return decompose_for


def expand_function(node: Node, state: Rewriting, supported: Collection[str]) -> Sequence[Node]:
    """The nodes of ONNX's function body of an operator, its values named after the node."""
    body = _function_graph(node, state, supported)
    names = {f"i{n}": name for n, name in enumerate(node.inputs)} | {f"o{n}": name for n, name in enumerate(node.outputs)}
    prefix = node.name or node.output
    for name, array in body.params.items():
        if name not in names:
            names[name] = state.param(f"{prefix}/{name}", array)
        elif name in body.outputs:                          # the function's result is a constant
            inner = state.param(f"{prefix}/{name}", array)
            body = replace(body, nodes=(*body.nodes, Node("Identity", (inner,), (name,))))
            names[inner] = inner
    for made in body.nodes:
        for out in made.outputs:
            if out and out not in names:
                names[out] = state.value(f"{prefix}/{out}", body.types[out])
    names[""] = ""
    return [
        replace(n, inputs=tuple(names[i] for i in n.inputs), outputs=tuple(names[o] for o in n.outputs),
                name=f"{prefix}/{n.name}", sources=())
        for n in body.nodes
    ]


def _function_graph(node: Node, state: Rewriting, supported: Collection[str]) -> Graph:
    """A graph of just this operator (inputs i0, i1, ..., outputs o0, ...), imported as if it were a model."""
    inputs: list[onnx.ValueInfoProto] = []
    constants: list[onnx.TensorProto] = []
    for n, name in enumerate(node.inputs):
        array: np.ndarray | None = state.constant(name)
        if array is not None and array.size <= SHOWN_ELEMENTS:
            constants.append(_named(tensor_proto(array), f"i{n}"))
        elif name:
            inputs.append(onnx.ValueInfoProto(name=f"i{n}", type=type_proto(state.types[name])))
    outputs = [onnx.ValueInfoProto(name=f"o{n}", type=type_proto(state.types[o])) for n, o in enumerate(node.outputs) if o]
    proto = node_proto(node)
    for n, out in enumerate(node.outputs):
        proto.output[n] = f"o{n}" if out else ""
    graph = helper.make_graph([proto], node.op, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return import_model(model, Path(), {}, {}, frozenset(supported), where=f"node {node.name!r} ({node.op})")


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    tensor.name = name
    return tensor
