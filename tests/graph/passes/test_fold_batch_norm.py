"""fold_batch_norm: what folds into what, and what must not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pass_graphs import Builder, assert_same, ops

from toolchain.graph.passes import fold_batch_norm
from toolchain.graph.text import to_text

Case = Callable[[Builder], str]


def _scaled(b: Builder, y: str) -> str:
    """Mul and Add by unsqueezed scale and bias, as Caffe's Scale layer is exported."""
    c = b.types[y].shape[1]
    return b.node("Add", b.node("Mul", y, b.weight(c, 1, 1)), b.weight(1, c, 1, 1))


FOLDS: dict[str, tuple[Case, list[str]]] = {
    "conv": (lambda b: b.batch_norm(b.conv(b.input(1, 4, 5, 5), 6, 3)), ["Conv"]),
    "conv_without_bias": (lambda b: b.batch_norm(b.conv(b.input(1, 4, 5, 5), 6, bias=False)), ["Conv"]),
    "depthwise": (lambda b: b.batch_norm(b.conv(b.input(1, 4, 5, 5), 4, 3, group=4)), ["Conv"]),
    "normalization_and_scale": (lambda b: _scaled(b, b.batch_norm(b.conv(b.input(1, 4, 5, 5), 6))), ["Conv"]),
    "scalars": (
        lambda b: b.node("Add", b.const([2.0]), b.node("Mul", b.conv(b.input(1, 4, 5, 5), 6), b.const(3.0))), ["Conv"]),
    "grouped_transposed": (
        lambda b: b.batch_norm(b.node("ConvTranspose", b.input(1, 4, 5, 5), b.weight(4, 3, 2, 2), b.weight(6), group=2)),
        ["ConvTranspose"]),
    "matmul": (lambda b: b.batch_norm(b.node("MatMul", b.input(3, 4), b.weight(4, 5))), ["MatMul", "Add"]),
    "matmul_with_bias": (
        lambda b: b.batch_norm(b.node("Add", b.node("MatMul", b.input(3, 4), b.weight(4, 5)), b.weight(5))),
        ["MatMul", "Add"]),
    "gemm": (lambda b: b.batch_norm(b.node("Gemm", b.input(3, 4), b.weight(5, 4), b.weight(5), transB=1)), ["Gemm"]),
    "one_dimensional": (
        lambda b: b.batch_norm(b.node("Conv", b.input(1, 4, 9), b.weight(6, 4, 3), kernel_shape=(3,))), ["Conv"]),
    "behind_relu": (lambda b: b.batch_norm(b.node("Relu", b.input(1, 4, 5, 5))), ["Relu", "Mul", "Add"]),
    "two_behind_relu": (lambda b: _scaled(b, b.batch_norm(b.node("Relu", b.input(1, 4, 5, 5)))), ["Relu", "Mul", "Add"]),
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    build, left = FOLDS[name]
    b = Builder()
    graph = b.graph(build(b))
    after = fold_batch_norm(graph)
    assert ops(after) == left
    assert_same(graph, after, tolerance=1e-5)


LEFT_ALONE: dict[str, Case] = {
    "scale_along_width": lambda b: b.node("Mul", b.conv(b.input(1, 5, 5, 5), 5), b.weight(1, 5)),
    "scale_that_broadcasts": lambda b: b.node("Mul", b.conv(b.input(1, 4, 5, 5), 6), b.weight(3, 1, 1, 1)),
    "computed_weights": lambda b: b.node("Mul", b.node("Conv", b.input(1, 4, 5, 5), b.input(6, 4, 1, 1)), b.const(2.0)),
    "gemm_with_factor": lambda b: b.node("Mul", b.node("Gemm", b.input(3, 4), b.weight(4, 5), alpha=0.5), b.const(2.0)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_leaves_alone(name: str) -> None:
    b = Builder()
    graph = b.graph(LEFT_ALONE[name](b))
    assert fold_batch_norm(graph) is graph


def test_leaves_a_result_with_another_reader_alone() -> None:
    b = Builder()
    y = b.conv(b.input(1, 4, 5, 5), 6)
    graph = b.graph(b.node("Add", b.batch_norm(y), y))
    after = fold_batch_norm(graph)
    assert ops(after) == ["Conv", "Mul", "Add", "Add"]
    assert_same(graph, after)


def test_leaves_a_graph_output_alone() -> None:
    b = Builder()
    y = b.conv(b.input(1, 4, 5, 5), 6)
    graph = b.graph(y, b.node("Mul", y, b.const(2.0)))
    assert fold_batch_norm(graph) is graph


def test_weights_shared_by_two_convolutions_stay_right() -> None:
    b = Builder()
    x, w = b.input(1, 4, 5, 5), b.weight(4, 4, 1, 1)
    first = b.batch_norm(b.node("Conv", x, w))
    graph = b.graph(b.node("Conv", first, w))
    after = fold_batch_norm(graph)
    assert np.array_equal(after.params[w], graph.params[w])
    assert_same(graph, after, tolerance=1e-5)


def test_golden(golden: Callable[[str], None]) -> None:
    b = Builder()
    y = _scaled(b, b.batch_norm(b.conv(b.input(1, 4, 5, 5), 6)))
    golden(to_text(fold_batch_norm(b.graph(b.batch_norm(b.node("Relu", y))))))
