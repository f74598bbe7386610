"""Between which numbers the elements of a value lie, as far as its operator says: from there come bounds of shapes.

    %n = ReduceSum(%mask: bool[1, 50] as int64)      [0, 50]       so that Range(0, %n, 1) has at most 50 elements
    %k = Clip(%x, 1, 10)                             [1, 10]
    %at = ArgMax(%y: [4, 30], axis=1)                [0, 29]

A range holds for every element, those of padding too (bounded.py), but not for a NaN: what becomes an extent is kept in
its bound when it runs. Types alone say something as well: a bool is 0 or 1, a uint8 at most 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node

Range = tuple[float, float]                 # lowest and highest, both possible; whole numbers are kept as int
UNKNOWN: Range = (-math.inf, math.inf)
MOST_ELEMENTS = 2**16                       # of a constant that is looked at


def of_constant(array: np.ndarray) -> Range:
    """Of an array of numbers that are not too many."""
    if not 0 < array.size <= MOST_ELEMENTS or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        return of_type(array.dtype.name)
    return array.min().item(), array.max().item()


def of_type(dtype: str) -> Range:
    """What a type of few bits says by itself."""
    if dtype == "bool":
        return 0, 1
    if dtype in ("int8", "uint8", "int16", "uint16"):
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return (0, math.inf) if dtype.startswith("uint") else UNKNOWN


def of_results(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """Of each output of a node, from those of its inputs (UNKNOWN for a missing one). What may wrap around is unknown."""
    rule = RULES.get(node.op)
    found = rule(node, given, types) if rule is not None else ()
    found = (*found, *(UNKNOWN for _ in node.outputs))[:len(node.outputs)]
    return tuple(_within(r, types[o].dtype) if o else UNKNOWN for o, r in zip(node.outputs, found))


def _within(found: Range, dtype: str) -> Range:
    """What a type can hold: a whole number outside wraps around, so that nothing is known then."""
    if dtype == "bool" or found == UNKNOWN or any(v != v for v in found):
        return of_type(dtype)
    if not dtype.startswith(("int", "uint")):
        return _rounded(found)
    info = np.iinfo(dtype)
    wraps = any(math.isfinite(v) and not info.min <= v <= info.max for v in found)
    return of_type(dtype) if wraps else found


def _rounded(found: Range) -> Range:
    """Of sums and products of floats, which round: a little wider, unless they are whole numbers."""
    low, high = (v if math.isinf(v) or v == round(v) else v + sign * abs(v) * 1e-5 for v, sign in zip(found, (-1, 1)))
    return low, high


Rule = Callable[[Node, Sequence[Range], Mapping[str, TensorType]], tuple[Range, ...]]


def _same(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """Elements of the first input, moved or picked."""
    return (given[0],) * len(node.outputs)


def _joined(*which: int) -> Rule:
    """Elements of any of these inputs (none named: of all)."""
    def rule(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
        picked = [given[w] for w in which] if which else given
        return ((min(r[0] for r in picked), max(r[1] for r in picked)),)
    return rule


def _monotonic(function: Callable[[float], float]) -> Rule:
    def rule(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
        low, high = (v if math.isinf(v) else function(v) for v in given[0])
        return ((low, high),)
    return rule


def _cast(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    if types[node.output].dtype.startswith(("int", "uint")):
        return _monotonic(math.trunc)(node, given, types)
    return (given[0],)


def _fixed(low: float, high: float) -> Rule:
    return lambda node, given, types: ((low, high),)


def _sum(a: Range, b: Range) -> Range:
    return a[0] + b[0], a[1] + b[1]


def _negative(a: Range) -> Range:
    return -a[1], -a[0]


def _product(a: Range, b: Range) -> Range:
    ends = [0 if 0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _folded(step: Callable[[Range, Range], Range]) -> Rule:
    def rule(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
        total = given[0]
        for other in given[1:]:
            total = step(total, other)
        return (total,)
    return rule


def _quotient(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """By something of at least 1 only: then it comes nearer to 0. Whole numbers are cut off."""
    (low, high), (least, most) = given
    if least < 1:
        return ()
    whole = types[node.output].dtype.startswith(("int", "uint"))
    cut = math.trunc if whole else float
    ends = [v if math.isinf(v) else cut(v / d) for v in (low, high) for d in (least, most)]
    return ((min(ends), max(ends)),)


def _rest(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    low, high = given[1]
    if low <= 0 or node.attrs.get("fmod", 0):
        return ()
    return ((0, high - 1 if types[node.output].dtype.startswith(("int", "uint")) else high),)


def _absolute(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    low, high = given[0]
    return ((max(low, -high, 0), max(-low, high)),)


def _clip(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    low, high = given[0]
    if len(given) > 1 and len(node.inputs) > 1 and node.inputs[1]:
        low, high = max(low, given[1][0]), max(high, given[1][1])
    if len(given) > 2 and node.inputs[2]:
        low, high = min(low, given[2][0]), min(high, given[2][1])
    return ((low, high),)


def _summed(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """Of so many elements each, or of none: what is left out of a sum of padding is 0."""
    x, y = types[node.inputs[0]].elements, types[node.output].elements
    many = x if node.op == "CumSum" else x // y if y else 0
    low, high = given[0]
    return ((min(low * many, 0) if low else 0, max(high * many, 0) if high else 0),)


def _place(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """An index along an axis."""
    shape = types[node.inputs[0]].shape
    highest = max(shape[int(node.attrs.get("axis", 0))] - 1, 0) if shape else 0
    return ((0, highest),)


def _top_k(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    shape = types[node.inputs[0]].shape
    return given[0], (0, max(shape[int(node.attrs.get("axis", -1))] - 1, 0))


def _positions(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    """Positions of rows, and counts of them."""
    n = types[node.inputs[0]].shape[0]
    at: Range = (0, max(n - 1, 0))
    return (at, (0, n)) if node.op == "FlatNonZero" else (at, (0, n), at, (0, n))


def _selected(node: Node, given: Sequence[Range], types: Mapping[str, TensorType]) -> tuple[Range, ...]:
    batches, classes, n = types[node.inputs[1]].shape
    return (0, max(batches - 1, classes - 1, n - 1, 0)), (0, types[node.output].shape[0])


RULES: dict[str, Rule] = {
    **dict.fromkeys((
        "Compress", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool",
        "ReduceMax", "ReduceMean", "ReduceMin", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze"), _same),
    "Abs": _absolute,
    "Add": _folded(_sum),
    "ArgMax": _place,
    "ArgMin": _place,
    "BoundedNonMaxSuppression": _selected,
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _monotonic(math.ceil),
    "Clip": _clip,
    "Concat": _joined(),
    "CumSum": _summed,
    "Div": _quotient,
    "FlatNonZero": _positions,
    "Floor": _monotonic(math.floor),
    "HardSigmoid": _fixed(0, 1),
    "Max": _folded(lambda a, b: (max(a[0], b[0]), max(a[1], b[1]))),
    "Min": _folded(lambda a, b: (min(a[0], b[0]), min(a[1], b[1]))),
    "Mod": _rest,
    "Mul": _folded(_product),
    "Neg": lambda node, given, types: (_negative(given[0]),),
    "OneHot": lambda node, given, types: (given[2],),
    "Pad": lambda node, given, types: ((min(given[0][0], 0), max(given[0][1], 0)),) if len(given) < 3 else (),
    "ReduceSum": _summed,
    "Relu": lambda node, given, types: ((max(given[0][0], 0), max(given[0][1], 0)),),
    "Round": _monotonic(round),
    "ScatterElements": _joined(0, 2),
    "ScatterND": _joined(0, 2),
    "Sigmoid": _fixed(0, 1),
    "Softmax": _fixed(0, 1),
    "Sub": lambda node, given, types: (_sum(given[0], _negative(given[1])),),
    "Sum": _folded(_sum),
    "Tanh": _fixed(-1, 1),
    "TopK": _top_k,
    "UniqueRows": _positions,
    "Where": _joined(1, 2),
}

__all__ = ["MOST_ELEMENTS", "UNKNOWN", "Range", "of_constant", "of_results", "of_type"]
