"""simplify: each rule as (before, what is left), and where it must not fire."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from pass_graphs import Builder, assert_same, layer_norm, ops

from toolchain.graph.passes import eliminate_common_subexpressions, fold_constants, simplify
from toolchain.graph.text import to_text

Case = Callable[[Builder, str], str]

SPATIAL = (0, 0, 1, 1, 0, 0, 1, 1)      # pads of one around H and W


def _neutral(b: Builder, x: str) -> str:
    return b.node("Relu", b.node("Div", b.node("Add", b.node("Mul", x, b.const([1.0])), b.const(0.0)), b.const(1.0)))


def _gemm(b: Builder, x: str) -> str:
    a = b.node("Reshape", x, b.ints(8, 16))
    return b.node("Gemm", a, b.weight(3, 16), b.weight(3), transB=1, alpha=0.5, beta=2.0)


def _gelu(b: Builder, x: str) -> str:
    erf = b.node("Erf", b.node("Mul", x, b.const(0.5 ** 0.5)))
    return b.node("Mul", b.node("Mul", x, b.const(0.5)), b.node("Add", b.const(1.0), erf))


def _gelu_tanh(b: Builder, x: str) -> str:
    cubic = b.node("Add", x, b.node("Mul", b.const(0.044715), b.node("Pow", x, b.const(3.0))))
    tanh = b.node("Tanh", b.node("Mul", b.const((2 / math.pi) ** 0.5), cubic))
    return b.node("Mul", b.node("Mul", b.const(0.5), x), b.node("Add", tanh, b.const(1.0)))


def _hard_sigmoid(b: Builder, x: str) -> str:
    return b.node("Div", b.node("Clip", b.node("Add", x, b.const(3.0)), b.const(0.0), b.const(6.0)), b.const(6.0))


def _hard_swish(b: Builder, x: str) -> str:
    clip = b.node("Clip", b.node("Add", b.const(3.0), x), b.const(0.0), b.const(6.0))
    return b.node("Mul", b.node("Mul", x, clip), b.const(1 / 6))


REWRITES: dict[str, tuple[Case, list[str]]] = {
    "squeeze": (lambda b, x: b.node("Relu", b.node("Squeeze", x, b.ints(0))), ["Reshape", "Relu"]),
    "flatten": (lambda b, x: b.node("Flatten", b.node("Unsqueeze", x, b.ints(0)), axis=1), ["Reshape"]),
    "reshape_twice": (lambda b, x: b.node("Reshape", b.node("Reshape", x, b.ints(-1)), b.ints(8, 16)), ["Reshape"]),
    "reshape_back": (
        lambda b, x: b.node("Relu", b.node("Reshape", b.node("Reshape", x, b.ints(-1)), b.ints(1, 8, 4, 4))), ["Relu"]),
    "transpose_twice": (
        lambda b, x: b.node("Transpose", b.node("Transpose", x, perm=(0, 2, 3, 1)), perm=(0, 2, 1, 3)), ["Transpose"]),
    "transpose_back": (
        lambda b, x: b.node("Relu", b.node("Transpose", b.node("Transpose", x, perm=(0, 2, 3, 1)), perm=(0, 3, 1, 2))),
        ["Relu"]),
    "transpose_units": (lambda b, x: b.node("Transpose", x, perm=(1, 0, 2, 3)), ["Reshape"]),
    "cast": (lambda b, x: b.node("Relu", b.node("Cast", b.node("Cast", x, to=11), to=1)), ["Relu"]),
    "slice_all": (lambda b, x: b.node("Relu", b.node("Slice", x, b.ints(0), b.ints(99), b.ints(1))), ["Relu"]),
    "pad_nothing": (lambda b, x: b.node("Relu", b.node("Pad", x, b.ints(*[0] * 8))), ["Relu"]),
    "concat_one": (lambda b, x: b.node("Relu", b.node("Concat", x, axis=1)), ["Relu"]),
    "split": (
        lambda b, x: b.node("Add", *b.node("Split", x, b.ints(4, 4), out=("a", "b"), axis=1)), ["Slice", "Slice", "Add"]),
    "expand_tile": (
        lambda b, x: b.node("Relu", b.node("Tile", b.node("Expand", x, b.ints(4)), b.ints(1, 1, 1, 1))), ["Relu"]),
    "dropout": (lambda b, x: b.node("Relu", b.node("Dropout", x)), ["Relu"]),
    "mean_of_units": (lambda b, x: b.node("ReduceMean", x, b.ints(0), keepdims=0), ["Reshape"]),
    "pool_of_one": (lambda b, x: b.node("Relu", b.node("MaxPool", x, kernel_shape=(1, 1))), ["Relu"]),
    "pad_conv": (
        lambda b, x: b.conv(b.node("Pad", x, b.ints(0, 0, 1, 0, 0, 0, 0, 2)), 4, 3, pads=(0, 1, 1, 0)), ["Conv"]),
    "pad_pool": (
        lambda b, x: b.node("AveragePool", b.node("Pad", x, b.ints(1, 1), b.const(0.0), b.ints(3)), kernel_shape=(3, 3)),
        ["AveragePool"]),
    "pad_max_pool": (
        lambda b, x: b.node("MaxPool", b.node("Pad", x, b.ints(*SPATIAL), b.const(-math.inf)), kernel_shape=(3, 3)),
        ["MaxPool"]),
    "neutral": (_neutral, ["Relu"]),
    "divide_by_power_of_two": (lambda b, x: b.node("Div", x, b.const([2.0, 0.25, -8.0, 1.0])), ["Mul"]),
    "subtract": (lambda b, x: b.node("Sub", b.node("Add", x, b.const(1.5)), b.const(0.25)), ["Add"]),
    "multiply_chain": (lambda b, x: b.node("Mul", b.const(3.0), b.node("Mul", x, b.weight(8, 1, 1))), ["Mul"]),
    "square": (lambda b, x: b.node("Pow", x, b.const(2.0)), ["Mul"]),
    "cube": (lambda b, x: b.node("Pow", x, b.const(3.0)), ["Mul", "Mul"]),
    "square_root": (lambda b, x: b.node("Pow", b.node("Exp", x), b.const(0.5)), ["Exp", "Sqrt"]),
    "resize_by_one": (
        lambda b, x: b.node("Relu", b.node("Resize", x, "", b.const([1.0] * 4), mode="cubic")), ["Relu"]),
    "resize_to_size": (
        lambda b, x: b.node("Relu", b.node("Resize", x, "", "", b.ints(1, 8, 4, 4), mode="linear")), ["Relu"]),
    "clip_at_infinity": (lambda b, x: b.node("Clip", x, b.const(0.0), b.const(math.inf)), ["Relu"]),
    "sum": (lambda b, x: b.node("Sum", x, b.input(8, 1, 1), x), ["Add", "Add"]),
    "relu_twice": (lambda b, x: b.node("Relu", b.node("Clip", x, b.const(0.0))), ["Relu"]),
    "gemm": (_gemm, ["Reshape", "MatMul", "Add"]),
    "gemm_computed": (
        lambda b, x: b.node("Gemm", b.node("Reshape", x, b.ints(8, 16)), b.input(8, 3), transA=1, alpha=0.5),
        ["Reshape", "Transpose", "Mul", "MatMul"]),
    "layer_norm": (lambda b, x: layer_norm(b, x, b.weight(4), b.weight(1, 4)), ["LayerNormalization"]),
    "hard_sigmoid": (_hard_sigmoid, ["HardSigmoid"]),
    "hard_swish": (_hard_swish, ["HardSwish"]),
    "gelu": (_gelu, ["Gelu"]),
    "gelu_tanh": (_gelu_tanh, ["Gelu"]),
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewrites(name: str) -> None:
    build, left = REWRITES[name]
    b = Builder()
    graph = b.graph(build(b, b.input(1, 8, 4, 4)))
    after = simplify(graph)
    assert ops(after) == left
    assert_same(graph, after)
    assert {s for n in after.nodes for s in n.sources} <= {s for n in graph.nodes for s in n.sources}


LEFT_ALONE: dict[str, Case] = {
    "transpose": lambda b, x: b.node("Transpose", x, perm=(0, 2, 1, 3)),
    "reversed_slice": lambda b, x: b.node("Slice", x, b.ints(-1), b.ints(-99), b.ints(1), b.ints(-1)),
    "inexact_division": lambda b, x: b.node("Div", x, b.const([2.0, 3.0, 4.0, 8.0])),
    "one_that_broadcasts": lambda b, x: b.node("Mul", x, b.const(np.ones((3, 1, 1, 1, 1)))),
    "merged_would_grow": lambda b, x: b.node("Mul", b.node("Mul", x, b.weight(8, 1, 1)), b.weight(1, 4)),
    "lossy_cast": lambda b, x: b.node("Cast", b.node("Cast", x, to=10), to=1),
    "padded_channels": lambda b, x: b.conv(b.node("Pad", x, b.ints(0, 1, 0, 0, 0, 0, 0, 0)), 4, 3),
    "padded_with_one": lambda b, x: b.conv(b.node("Pad", x, b.ints(*SPATIAL), b.const(1.0)), 4, 3),
    "zero_padded_max_pool": lambda b, x: b.node(
        "MaxPool", b.node("Pad", x, b.ints(*SPATIAL)), kernel_shape=(3, 3)),
    "clip_at_five": lambda b, x: b.node(
        "Mul", b.node("Clip", b.node("Add", x, b.const(3.0)), b.const(0.0), b.const(5.0)), b.const(1 / 6)),
    "clip_at_one": lambda b, x: b.node("Clip", x, b.const(0.0), b.const(1.0)),
    "resize_a_little": lambda b, x: b.node("Resize", x, "", b.const([1.0, 1.0, 1.1, 1.1]), mode="linear"),
    "resize": lambda b, x: b.node("Resize", x, "", b.const([1.0, 1.0, 2.0, 2.0]), mode="nearest"),
    "mean": lambda b, x: b.node("ReduceMean", x, b.ints(2, 3), keepdims=1),
    "training_dropout": lambda b, x: b.node("Dropout", x, b.const(0.5), b.const(True, "bool")),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_leaves_alone(name: str) -> None:
    b = Builder()
    graph = b.graph(LEFT_ALONE[name](b, b.input(1, 8, 4, 4)))
    assert simplify(graph) is graph


def test_layer_normalization_is_not_found_when_its_parts_have_other_readers() -> None:
    b = Builder()
    y = layer_norm(b, b.input(2, 8))
    difference = next(n for n in b.nodes if n.op == "Sub")
    graph = b.graph(y, difference.output)
    assert "LayerNormalization" not in ops(simplify(graph))
    assert_same(graph, simplify(graph))


def test_layer_normalization_over_inner_axes_is_not_one() -> None:
    b = Builder()
    x = b.input(2, 8, 4)
    d = b.node("Sub", x, b.node("ReduceMean", x, b.ints(1), keepdims=1))
    variance = b.node("ReduceMean", b.node("Mul", d, d), b.ints(1), keepdims=1)
    graph = b.graph(b.node("Div", d, b.node("Sqrt", b.node("Add", variance, b.const(1e-5)))))
    assert simplify(graph) is graph


def test_golden(golden: Callable[[str], None]) -> None:
    b = Builder()
    x = b.input(2, 1, 8)
    h = b.node("Gemm", b.node("Squeeze", x, b.ints(1)), b.weight(4, 8, name="w"), b.weight(4, name="bias"), transB=1)
    y = layer_norm(b, b.node("Identity", h), b.weight(4, name="gamma"), b.weight(4, name="beta"))
    graph = b.graph(b.node("Identity", b.node("Unsqueeze", y, b.ints(0)), out="y"))
    after = fold_constants(eliminate_common_subexpressions(simplify(graph)))
    assert_same(graph, after)
    golden(to_text(after))


def test_shared_weights_are_transposed_once() -> None:
    b = Builder()
    w = b.weight(4, 4)
    h = b.node("Gemm", b.input(2, 4), w, transB=1)
    graph = b.graph(b.node("Gemm", h, w, transB=1))
    after = simplify(graph)
    assert after.nodes[0].inputs[1] == after.nodes[1].inputs[1]
    assert np.shares_memory(after.params[after.nodes[0].inputs[1]], graph.params[w])
