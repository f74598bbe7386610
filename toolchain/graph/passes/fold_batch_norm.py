"""Fold per-channel scales and shifts into the weights of the operator before them.

Source: Jacob et al., arXiv:1712.05877, section 3.2 (batch normalization); Mul and Add pairs are the same with other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import Rewriting, Rule, rewrite_graph
from toolchain.graph.passes.simplify_arithmetic import merge_constants, other_operand

SCALABLE = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold inference BatchNormalization, and Mul and Add by one constant per channel, into the weighted operator before it.

        BatchNormalization(x, gamma, beta, mean, var)   ->   x*s + (beta - mean*s)   with s = gamma/sqrt(var + epsilon)
        Conv(x, W, b) * s   ->   Conv(x, W*s, b*s)      s has one factor per output channel: (M, 1, 1)
        Conv(x, W, b) + t   ->   Conv(x, W, b + t)
        MatMul(x, W) * s    ->   MatMul(x, W*s)         s has one factor per column: (N,)
        (MatMul(x, W) + b) * s   ->   MatMul(x, W*s) + b*s
        (x*s + t)*u + v     ->   x*(s*u) + (t*u + v)

    ConvTranspose and Gemm fold like Conv. A BatchNormalization behind anything else stays behind as Mul and Add. Left alone:
    results with another reader or that are graph outputs, weights that are not constant, training mode.
    """
    return rewrite_graph(graph, RULES)


def expand_batch_norm(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """BatchNormalization -> Mul and Add by constants of shape (C, 1, 1)."""
    if node.attrs.get("training_mode", 0) or any(state.uses[o] for o in node.outputs[1:]):
        return None
    x, *constants = node.inputs
    if any(c not in state.params for c in constants):
        return None
    gamma, beta, mean, variance = (state.params[c].astype(np.float64) for c in constants)
    scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    kind = state.types[x]
    shape = (-1,) + (1,) * (len(kind.shape) - 2)
    dtype = state.params[constants[0]].dtype
    scaled = state.value(f"{node.output}.scaled", kind)
    factor = state.param(f"{node.output}.scale", scale.reshape(shape).astype(dtype))
    shift = state.param(f"{node.output}.shift", (beta - mean * scale).reshape(shape).astype(dtype))
    return [Node("Mul", (x, factor), (scaled,), name=node.name, sources=node.sources),
            Node("Add", (scaled, shift), node.outputs[:1], name=node.name, sources=node.sources)]


def fold_scale(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Mul by one constant per channel behind a weighted operator -> scaled weights."""
    found = _producer_and_constant(node, state)
    if found is None:
        return None
    producer, factors = found
    x, weight, *bias = producer.inputs
    scaled = state.param(f"{weight}.scaled", _scale_weight(producer, state.params[weight], factors))
    inputs: tuple[str, ...] = (x, scaled)
    if bias and bias[0]:
        inputs = (*inputs, state.param(f"{bias[0]}.scaled", _as(state.params[bias[0]], state.params[bias[0]] * factors)))
    return [replace(producer, inputs=inputs, outputs=node.outputs)]


def fold_shift(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Add of one constant per channel behind an operator with a bias -> a changed bias."""
    found = _producer_and_constant(node, state)
    if found is None or found[0].op == "MatMul":
        return None
    producer, shifts = found
    x, weight, *bias = producer.inputs
    if bias and bias[0]:
        shifts = state.params[bias[0]] + shifts
    channels = _channels(producer, state)
    full = np.broadcast_to(_as(state.params[weight], np.asarray(shifts)), (channels,))
    return [replace(producer, inputs=(x, weight, state.param(f"{node.output}.bias", full)), outputs=node.outputs)]


def exchange_shift_and_scale(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """(y + b) * s -> y*s + b*s where y is a product with a constant, which can then take the factor.

    Left alone when the shape grows, b*s would be larger than b and s, or y or the sum has another reader.
    """
    pair = other_operand(node, state)
    sum_ = state.made_by(pair[0], "Add") if pair else None
    inner = other_operand(sum_, state) if sum_ else None
    if pair is None or sum_ is None or inner is None or not state.read_once(pair[0]) or not state.read_once(inner[0]):
        return None
    product = state.made_by(inner[0], "MatMul", "Mul")
    if product is None or not any(i in state.params for i in product.inputs):
        return None
    if product.op == "MatMul" and _per_channel(state.params[pair[1]], product, state) is None:
        return None
    factor, shift = state.params[pair[1]], state.params[inner[1]]
    moved = _as(shift, np.asarray(shift * factor))
    if state.types[inner[0]] != state.types[node.output] or moved.size > max(shift.size, factor.size):
        return None
    scaled = state.value(f"{inner[0]}.scaled", state.types[inner[0]])
    sources = tuple(dict.fromkeys((*sum_.sources, *node.sources)))
    return [replace(node, inputs=(inner[0], pair[1]), outputs=(scaled,)),
            replace(sum_, inputs=(scaled, state.param(f"{inner[1]}.scaled", moved)), outputs=node.outputs, sources=sources)]


def _producer_and_constant(node: Node, state: Rewriting) -> tuple[Node, np.ndarray] | None:
    """The weighted operator that only `node` reads, and the constant as one number per output channel (or one for all)."""
    pair = other_operand(node, state)
    producer = state.made_by(pair[0], *SCALABLE) if pair else None
    if pair is None or producer is None or not state.read_once(pair[0]):
        return None
    if any(i and i not in state.params for i in producer.inputs[1:]):
        return None
    if state.types[node.output] != state.types[pair[0]] or len(state.shape(producer.inputs[1])) < 2:
        return None
    if producer.op == "Gemm" and _is_scaled_gemm(producer, state):
        return None
    constant = _per_channel(state.params[pair[1]], producer, state)
    return None if constant is None else (producer, constant)


def _is_scaled_gemm(node: Node, state: Rewriting) -> bool:
    """Whether a Gemm has factors of its own, or a bias that is not one number per column (see `simplify`)."""
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    other_bias = bool(bias) and state.shape(bias) != (_channels(node, state),)
    return node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0 or other_bias


def _channel_axis(producer: Node, rank: int) -> int:
    return 1 if producer.op in ("Conv", "ConvTranspose") else rank - 1


def _channels(producer: Node, state: Rewriting) -> int:
    shape = state.shape(producer.output)
    return shape[_channel_axis(producer, len(shape))]


def _per_channel(constant: np.ndarray, producer: Node, state: Rewriting) -> np.ndarray | None:
    """A constant operand as (channels,) or (1,); None when it differs along another dimension."""
    rank = len(state.shape(producer.output))
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    axis = _channel_axis(producer, rank)
    if any(n != 1 for d, n in enumerate(shape) if d != axis) or axis < 0:
        return None
    return constant.reshape(-1)


def _scale_weight(producer: Node, weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The weight with its output channels multiplied by (channels,) or (1,) factors."""
    match producer.op:
        case "Conv":                                # (M, C/group, kH, kW)
            scaled = weight * factors.reshape(-1, *(1,) * (weight.ndim - 1))
        case "ConvTranspose":                       # (C, M/group, kH, kW): group g of C makes group g of M
            groups = producer.attrs.get("group", 1)
            per_group = np.broadcast_to(factors, (groups * weight.shape[1],)).reshape(groups, 1, weight.shape[1])
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            scaled = (split * per_group[..., None]).reshape(weight.shape)
        case "Gemm" if producer.attrs.get("transB"):
            scaled = weight * factors[:, None]
        case _:                                     # (..., K, N)
            scaled = weight * factors
    return _as(weight, scaled)


def _as(like: np.ndarray, array: np.ndarray) -> np.ndarray:
    return array.astype(like.dtype, copy=False)


RULES: Mapping[str, Sequence[Rule]] = {
    "BatchNormalization": (expand_batch_norm,),
    "Mul": (fold_scale, exchange_shift_and_scale, merge_constants),
    "Add": (fold_shift, merge_constants),
}
