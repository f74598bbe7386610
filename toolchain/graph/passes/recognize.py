"""Rules of `simplify` that find a named operator in the small ones exporters write for it. See simplify.py.

They grow step by step: a normalization is found with a scale of ones first, then takes up the Mul and Add behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting, Rule
from toolchain.graph.passes.simplify_arithmetic import other_operand

SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715


def recognize_layer_normalization(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """The last dimensions shifted to mean 0 and scaled to variance 1 -> LayerNormalization with a scale of ones.

    d = Sub(x, ReduceMean(x)); Div(d, Sqrt(Add(ReduceMean(Mul(d, d)), eps)))   ->   LayerNormalization(x, ones)

    Needs: both means over the same trailing axes, dimensions kept, float32, and no other reader of what lies between.
    """
    d, deviation = node.inputs
    root = state.made_by(deviation, "Sqrt")
    sum_ = state.made_by(root.inputs[0], "Add") if root else None
    pair = other_operand(sum_, state) if sum_ else None
    if sum_ is None or pair is None or state.types[d].dtype != "float32":
        return None
    epsilon = state.uniform(pair[1])
    variance = state.made_by(pair[0], "ReduceMean")
    square = state.made_by(variance.inputs[0], "Mul") if variance else None
    difference = state.made_by(d, "Sub")
    if variance is None or square is None or square.inputs != (d, d) or difference is None or epsilon is None:
        return None
    x, mean = difference.inputs
    average = state.made_by(mean, "ReduceMean")
    if average is None or average.inputs[0] != x or state.uses[d] != 3 or not state.read_once(mean):
        return None
    axis = _trailing_axis(average, state)
    if axis is None or axis != _trailing_axis(variance, state) or state.uses[square.output] != 1:
        return None
    shape = state.shape(x)[axis:]
    ones = state.param(f"{node.output}.scale", np.ones(shape, np.float32), key=("ones", shape))
    attrs = {"axis": axis - len(state.shape(x)), "epsilon": epsilon, "stash_type": 1}
    parts = (average, difference, square, variance, sum_, root)
    sources = tuple(dict.fromkeys(s for part in parts if part for s in part.sources))
    return [Node("LayerNormalization", (x, ones), node.outputs, attrs, node.name, sources)]


def _trailing_axis(node: Node, state: Rewriting) -> int | None:
    """The first of the reduced axes, when they are the last ones and are kept."""
    rank = len(state.shape(node.inputs[0]))
    axes = state.integers(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else tuple(range(rank))
    if not axes or node.attrs.get("keepdims", 1) != 1:
        return None
    found = sorted(a % rank for a in axes)
    return found[0] if found == list(range(found[0], rank)) else None


def scale_layer_normalization(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """LayerNormalization(x, scale) * c -> LayerNormalization(x, scale*c), while it has no bias."""
    found = _normalization_and_constant(node, state)
    if found is None or len(found[0].inputs) > 2:
        return None
    inner, constant = found
    scale = state.param(f"{node.output}.scale", state.params[inner.inputs[1]] * constant)
    return [replace(inner, inputs=(inner.inputs[0], scale), outputs=node.outputs)]


def shift_layer_normalization(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """LayerNormalization(x, scale, bias) + c -> LayerNormalization(x, scale, bias + c)."""
    found = _normalization_and_constant(node, state)
    if found is None:
        return None
    inner, constant = found
    bias = state.param(f"{node.output}.shift", constant + (state.params[inner.inputs[2]] if len(inner.inputs) > 2 else 0))
    return [replace(inner, inputs=(*inner.inputs[:2], bias), outputs=node.outputs)]


def _normalization_and_constant(node: Node, state: Rewriting) -> tuple[Node, np.ndarray] | None:
    """The LayerNormalization that only `node` reads, and the other operand brought to the shape of its scale."""
    pair = other_operand(node, state)
    inner = state.made_by(pair[0], "LayerNormalization") if pair else None
    if pair is None or inner is None or not state.read_once(pair[0]) or len(inner.outputs) > 1:
        return None
    if any(i not in state.params for i in inner.inputs[1:]):
        return None
    shape, constant = state.shape(inner.inputs[1]), state.params[pair[1]]
    if constant.ndim > len(shape):
        if any(n != 1 for n in constant.shape[:constant.ndim - len(shape)]):
            return None
        constant = constant.reshape(constant.shape[constant.ndim - len(shape):])
    if state.types[node.output] != state.types[pair[0]]:
        return None
    return inner, np.broadcast_to(constant, shape)


def recognize_gelu(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """0.5 * x * (1 + erf(x / sqrt(2))), its factors in any order and nesting -> Gelu(x); likewise the tanh form.

    0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715*x*x*x)))   ->   Gelu(x, approximate="tanh")
    """
    number, values = _factors(node, state)
    if len(values) != 2 or not math.isclose(number, 0.5, rel_tol=1e-6):
        return None
    for x, gate in (values, values[::-1]):
        one_plus = state.made_by(gate, "Add")
        pair = other_operand(one_plus, state) if one_plus else None
        if pair is None or state.uniform(pair[1]) != 1.0:
            continue
        inner = state.made_by(pair[0], "Erf", "Tanh")
        if inner is None or state.types[x] != state.types[node.output]:
            continue
        if inner.op == "Erf" and _is_scaled(inner.inputs[0], x, SQRT_HALF, state):
            return [replace(node, op="Gelu", inputs=(x,), attrs={})]
        if inner.op == "Tanh" and _is_tanh_argument(inner.inputs[0], x, state):
            return [replace(node, op="Gelu", inputs=(x,), attrs={"approximate": "tanh"})]
    return None


def _factors(node: Node, state: Rewriting, depth: int = 3) -> tuple[float, list[str]]:
    """A product as one number and the values multiplied; nested products that nobody else reads are taken apart."""
    number = 1.0
    values: list[str] = []
    operands = [*node.inputs]
    if node.op == "Div":
        divisor = state.uniform(operands[1])
        if divisor is None or divisor == 0:
            return 1.0, [node.output]
        number, operands = 1 / divisor, operands[:1]
    for operand in operands:
        scalar = state.uniform(operand)
        inner = state.made_by(operand, "Mul", "Div") if depth and state.read_once(operand) else None
        if scalar is not None:
            number *= scalar
        elif inner:
            factor, more = _factors(inner, state, depth - 1)
            number, values = number * factor, values + more
        else:
            values.append(operand)
    return number, values


def _is_scaled(value: str, x: str, factor: float, state: Rewriting) -> bool:
    product = state.made_by(value, "Mul", "Div")
    if product is None:
        return False
    number, values = _factors(product, state)
    return values == [x] and math.isclose(number, factor, rel_tol=1e-5)


def _is_tanh_argument(value: str, x: str, state: Rewriting) -> bool:
    """Whether `value` is sqrt(2/pi) * (x + 0.044715*x*x*x)."""
    product = state.made_by(value, "Mul")
    if product is None:
        return False
    number, values = _factors(product, state)
    if len(values) != 1 or not math.isclose(number, SQRT_2_OVER_PI, rel_tol=1e-4):
        return False
    sum_ = state.made_by(values[0], "Add")
    if sum_ is None or x not in sum_.inputs:
        return False
    other = sum_.inputs[1] if sum_.inputs[0] == x else sum_.inputs[0]
    cube = state.made_by(other, "Mul")
    if cube is None:
        return False
    factor, powers = _factors(cube, state)
    return powers == [x, x, x] and math.isclose(factor, TANH_CUBE, rel_tol=1e-4)


def recognize_hard_swish(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid(x), and times x -> HardSwish(x): no division, one pass less.

    x * Clip(x + 3, 0, 6) / 6   ->   HardSwish(x)              Clip(x + 3, 0, 6) / 6   ->   HardSigmoid(x, 1/6, 0.5)
    """
    number, values = _factors(node, state)
    if not math.isclose(number, 1 / 6, rel_tol=1e-6) or len(values) not in (1, 2):
        return None
    for gate in values:
        clip = state.made_by(gate, "Clip")
        bounds = [state.uniform(i) if i else None for i in clip.inputs[1:]] if clip else []
        sum_ = state.made_by(clip.inputs[0], "Add") if clip and bounds == [0.0, 6.0] else None
        pair = other_operand(sum_, state) if sum_ else None
        if pair is None or state.uniform(pair[1]) != 3.0 or state.types[pair[0]] != state.types[node.output]:
            continue
        x = pair[0]
        if len(values) == 1:
            return [replace(node, op="HardSigmoid", inputs=(x,), attrs={"alpha": 1 / 6, "beta": 0.5})]
        if sorted(values) == sorted([x, gate]):
            return [replace(node, op="HardSwish", inputs=(x,), attrs={})]
    return None


RECOGNIZE_RULES: Mapping[str, Sequence[Rule]] = {
    "Div": (recognize_layer_normalization, recognize_hard_swish),
    "Mul": (recognize_gelu, recognize_hard_swish, scale_layer_normalization),
    "Add": (shift_layer_normalization,),
}
