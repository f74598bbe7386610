"""Rules of `simplify` on arithmetic. See simplify.py.

Exact unless a rule says otherwise; merging the constants of a chain rounds once where the chain rounded twice. Two
differences in the sign of zero are accepted: x + 0 -> x keeps -0.0, and Pow(-0.0, 0.5) -> Sqrt(-0.0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting, Rule


def other_operand(node: Node, state: Rewriting) -> tuple[str, str] | None:
    """(value, constant) of a commutative node with exactly one constant operand."""
    a, b = node.inputs
    if b in state.params and a not in state.params:
        return a, b
    if a in state.params and b not in state.params:
        return b, a
    return None


def _floats(node: Node, state: Rewriting) -> bool:
    return dtypes.is_float(state.types[node.output].dtype)


def _neutral(number: float, both: bool) -> Rule:
    """x op number -> x, when that constant does not broadcast x to a larger shape; with `both`, number op x too."""

    def rule(node: Node, state: Rewriting) -> str | None:
        for value, constant in ((0, 1), (1, 0))[:2 if both else 1]:
            x = node.inputs[value]
            if state.uniform(node.inputs[constant]) == number and state.types[x] == state.types[node.output]:
                return x
        return None

    return rule


def divide_exactly(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """x / c -> x * (1/c) when every element of the constant is a power of two, so that nothing rounds."""
    x, c = node.inputs
    array = state.constant(c)
    if array is None or not _floats(node, state) or x in state.params or array.dtype.kind != "f":
        return None
    mantissa, exponent = np.frexp(array)
    limit = np.finfo(array.dtype).maxexp - 2
    if not (np.all(np.abs(mantissa) == 0.5) and np.all(np.abs(exponent) < limit)):
        return None
    inverse = state.param(f"{c}.reciprocal", np.reciprocal(array), key=(c, "reciprocal"))
    return [replace(node, op="Mul", inputs=(x, inverse))]


def subtract_constant(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """x - c -> x + (-c): one kind of node for what follows."""
    x, c = node.inputs
    array = state.constant(c)
    if array is None or not _floats(node, state) or x in state.params:
        return None
    return [replace(node, op="Add", inputs=(x, state.param(f"{c}.negative", -array, key=(c, "negative"))))]


def merge_constants(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """(x + c) + d -> x + (c+d), (x * c) * d -> x * (c*d), when the inner node has no other reader (floats: rounds once).

    Left alone when the merged constant would be larger than both.
    """
    outer = other_operand(node, state)
    inner = state.made_by(outer[0], node.op) if outer and state.read_once(outer[0]) else None
    operands = other_operand(inner, state) if inner else None
    if outer is None or inner is None or operands is None:
        return None
    c, d = state.params[operands[1]], state.params[outer[1]]
    merged = np.asarray(c * d if node.op == "Mul" else c + d, c.dtype)
    if merged.size > max(c.size, d.size):
        return None
    sources = tuple(dict.fromkeys((*inner.sources, *node.sources)))
    return [replace(node, inputs=(operands[0], state.param(f"{outer[1]}.merged", merged)), sources=sources)]


def power(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Pow by a constant 1, 2, 3, 0.5 or -1 -> x, x*x, x*x*x, Sqrt, Reciprocal (where the shape stays that of x)."""
    x, exponent = node.inputs
    number = state.uniform(exponent)
    if not _floats(node, state) or state.types[x] != state.types[node.output]:
        return None
    match number:
        case 1.0:
            return x
        case 2.0:
            return [replace(node, op="Mul", inputs=(x, x))]
        case 3.0:
            square = state.value(f"{node.output}.square", state.types[x])
            return [replace(node, op="Mul", inputs=(x, x), outputs=(square,)), replace(node, op="Mul", inputs=(square, x))]
        case 0.5:
            return [replace(node, op="Sqrt", inputs=(x,))]
        case -1.0:
            return [replace(node, op="Reciprocal", inputs=(x,))]
    return None


def sum_to_adds(node: Node, state: Rewriting) -> Sequence[Node] | str:
    """Sum(a, b, c) -> Add(Add(a, b), c), in the order in which ONNX's reference adds."""
    total, *rest = node.inputs
    if not rest:
        return total
    nodes = []
    for n, operand in enumerate(rest):
        last = n == len(rest) - 1
        shape = np.broadcast_shapes(state.shape(total), state.shape(operand))
        kind = TensorType.plain(shape, state.types[node.output].dtype)
        out = node.output if last else state.value(f"{node.output}.{n}", kind)
        nodes.append(replace(node, op="Add", inputs=(total, operand), outputs=(out,)))
        total = out
    return nodes


def drop_single(node: Node, state: Rewriting) -> str | None:
    """Max, Min, Mean of one value -> the value."""
    return node.inputs[0] if len(node.inputs) == 1 else None


def simplify_relu(node: Node, state: Rewriting) -> str | None:
    """Relu(Relu(x)) -> Relu(x)."""
    return node.inputs[0] if state.made_by(node.inputs[0], "Relu", "Sigmoid", "Softmax") else None


def clip_to_relu(node: Node, state: Rewriting) -> Sequence[Node] | str | None:
    """Clip(x, 0), Clip(x, 0, inf) -> Relu(x); Clip without bounds -> x."""
    low, high = (node.inputs[n] if len(node.inputs) > n else "" for n in (1, 2))
    if not low and not high:
        return node.inputs[0]
    if (not high or state.uniform(high) == math.inf) and low and state.uniform(low) == 0 and _floats(node, state):
        return [replace(node, op="Relu", inputs=node.inputs[:1], attrs={})]
    return None


def cancel_pair(node: Node, state: Rewriting) -> str | None:
    """Neg(Neg(x)) -> x, Not(Not(x)) -> x."""
    inner = state.made_by(node.inputs[0], node.op)
    return inner.inputs[0] if inner else None


def gemm_to_matmul(node: Node, state: Rewriting) -> Sequence[Node]:
    """Gemm -> MatMul, then Add: one family of matrix products remains. Factors and transpositions of constants are folded.

    alpha*A*B' + beta*C   ->   MatMul(A, alpha*B') + beta*C
    """
    a, b, c = (*node.inputs, "")[:3]
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    nodes: list[Node] = []
    a = _transposed(a, node, nodes, state) if node.attrs.get("transA") else a
    b = _transposed(b, node, nodes, state) if node.attrs.get("transB") else b
    if alpha != 1.0 and b in state.params:
        b = _scaled(b, alpha, node, nodes, state)
    elif alpha != 1.0:
        a = _scaled(a, alpha, node, nodes, state)
    if not c or beta == 0.0:
        return [*nodes, Node("MatMul", (a, b), node.outputs, name=node.name)]
    product = state.value(f"{node.output}.product", state.types[node.output])
    nodes.append(Node("MatMul", (a, b), (product,), name=node.name))
    c = _scaled(c, beta, node, nodes, state)
    return [*nodes, Node("Add", (product, c), node.outputs, name=f"{node.name}.bias" if node.name else "")]


def _transposed(value: str, node: Node, nodes: list[Node], state: Rewriting) -> str:
    """`value` transposed: a parameter (a NumPy view, nothing is copied) or a node appended to `nodes`."""
    if value in state.params:
        return state.param(f"{value}.transposed", state.params[value].T, key=(value, "transposed"))
    kind = state.types[value]
    out = state.value(f"{value}.transposed", replace(kind, shape=kind.shape[::-1]))
    nodes.append(Node("Transpose", (value,), (out,), {"perm": (1, 0)}, name=node.name))
    return out


def _scaled(value: str, factor: float, node: Node, nodes: list[Node], state: Rewriting) -> str:
    """`value` times a number: a parameter or a node appended to `nodes`."""
    if factor == 1.0:
        return value
    kind = state.types[value]
    number = np.array(factor, dtypes.to_numpy(kind.dtype))
    if value in state.params:
        return state.param(f"{value}.scaled", state.params[value] * number, key=(value, "scaled", factor))
    scalar = state.param(f"{node.output}.factor", number)
    out = state.value(f"{value}.scaled", kind)
    nodes.append(Node("Mul", (value, scalar), (out,), name=node.name))
    return out


ARITHMETIC_RULES: Mapping[str, Sequence[Rule]] = {
    "Mul": (_neutral(1.0, both=True), merge_constants),
    "Add": (_neutral(0.0, both=True), merge_constants),
    "Sub": (_neutral(0.0, both=False), subtract_constant),
    "Div": (_neutral(1.0, both=False), divide_exactly),
    "Pow": (power,),
    "Sum": (sum_to_adds,),
    "Max": (drop_single,),
    "Min": (drop_single,),
    "Mean": (drop_single,),
    "Relu": (simplify_relu,),
    "Clip": (clip_to_relu,),
    "Neg": (cancel_pair,),
    "Not": (cancel_pair,),
    "Gemm": (gemm_to_matmul,),
}
