"""fold_constants, eliminate_dead_code, eliminate_common_subexpressions: texts, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pass_graphs import Builder, assert_same, ops

from toolchain.core.errors import InternalError
from toolchain.graph.ir import Node
from toolchain.graph.passes import eliminate_common_subexpressions, eliminate_dead_code, fold_constants
from toolchain.graph.passes.rewriting import Rewriting
from toolchain.graph.text import to_text


def test_fold_constants(golden: Callable[[str], None]) -> None:
    b = Builder()
    x = b.input(2, 3)
    w = b.node("Mul", b.const([1, 2, 3]), b.node("Cast", b.ints(2), to=1))
    rows = b.node("Gather", b.node("Shape", x), b.ints(0))
    graph = b.graph(b.node("Expand", b.node("Add", x, w), b.node("Concat", rows, b.ints(3), axis=0)))
    after = fold_constants(graph)
    assert_same(graph, after)
    golden(to_text(after))


def test_fold_constants_leaves_outputs_and_large_results_alone() -> None:
    b = Builder()
    big = b.node("Expand", b.const([1.0]), b.ints(3000, 3000))
    small = b.node("Neg", b.const([1.0]))
    graph = b.graph(b.node("Add", big, b.input(1)), small)
    assert fold_constants(graph) is graph


def test_fold_constants_leaves_random_operators_alone() -> None:
    b = Builder()
    graph = b.graph(b.node("Relu", b.node("RandomUniformLike", b.const([1.0, 2.0]), dtype=1)))
    assert fold_constants(graph) is graph


def test_eliminate_dead_code(golden: Callable[[str], None]) -> None:
    b = Builder()
    x, _unused = b.input(2), b.input(2)
    y = b.node("Relu", x)
    b.node("Mul", b.node("Exp", x), b.const([3.0, 4.0]))
    graph = b.graph(y)
    golden(to_text(eliminate_dead_code(graph)))
    assert eliminate_dead_code(graph).inputs == ("x0", "x1")


def test_eliminate_dead_code_keeps_a_node_with_one_needed_output() -> None:
    b = Builder()
    first, _second = b.node("Split", b.input(4), b.ints(2, 2), out=("a", "b"), axis=0)
    graph = b.graph(first)
    assert eliminate_dead_code(graph) is graph


def test_eliminate_common_subexpressions(golden: Callable[[str], None]) -> None:
    b = Builder()
    x = b.input(4, 4)
    left = b.node("Reshape", b.node("Exp", x), b.ints(2, 8))
    right = b.node("Reshape", b.node("Exp", x), b.ints(2, 8))
    graph = b.graph(b.node("Add", left, right))
    after = eliminate_common_subexpressions(graph)
    assert_same(graph, after)
    golden(to_text(after))


@pytest.mark.parametrize("other", [{"alpha": 0.5}, {"alpha": -0.0}])
def test_eliminate_common_subexpressions_compares_attributes(other: dict[str, float]) -> None:
    b = Builder()
    x = b.input(4)
    graph = b.graph(b.node("Add", b.node("LeakyRelu", x, alpha=0.0), b.node("LeakyRelu", x, **other)))
    assert eliminate_common_subexpressions(graph) is graph


def test_eliminate_common_subexpressions_keeps_both_outputs_and_random_nodes() -> None:
    b = Builder()
    x = b.input(4)
    noise = b.node("Add", b.node("RandomUniformLike", x, dtype=1), b.node("RandomUniformLike", x, dtype=1))
    graph = b.graph(b.node("Relu", x), b.node("Relu", x), noise)
    assert eliminate_common_subexpressions(graph) is graph


def test_a_sweep_keeps_the_names_of_outputs() -> None:
    b = Builder()
    x = b.input(4)
    shared = b.node("Relu", x)
    graph = b.graph(b.node("Identity", shared, out="first"), b.node("Identity", shared, out="second"), b.node("Identity", x))
    after = Rewriting(graph).sweep(lambda node, state: node.inputs[0] if node.op == "Identity" else None)
    assert_same(graph, after)
    assert ops(after) == ["Relu", "Identity", "Identity"]       # one output takes the name over, the others are copies


def test_rules_that_undo_each_other_are_reported() -> None:
    b = Builder()
    graph = b.graph(b.node("Relu", b.input(4)))
    with pytest.raises(InternalError, match="do not come to an end on node 'n0'"):
        Rewriting(graph).sweep(lambda node, state: [Node("Relu", node.inputs, node.outputs, name=node.name)])
