"""separate_pools: which pools become several, and that they compute exactly the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_graphs import Builder, ops

from toolchain.core.layout import Layout
from toolchain.graph.interpret import interpret
from toolchain.graph.passes import run_passes
from toolchain.graph.passes.separate_pools import separate_pools


def pool(shape: tuple[int, ...], blocked: bool = True, **attrs: object):
    """A graph of one pool: of channel blocks, or plain."""
    b = Builder()
    graph = b.graph(b.node("MaxPool", b.input(*shape), **attrs))
    layout = Layout.parse("NC" + "DHW"[5 - len(shape):] + "4c") if blocked else Layout.row_major(len(shape))
    return graph.edit({}, types={v: graph.types[v].with_layout(layout) for v in (*graph.inputs, *graph.outputs)})


def same(graph, after, seed: int = 0) -> None:
    x = np.random.default_rng(seed).standard_normal(graph.types[graph.inputs[0]].shape).astype(np.float32)
    x.reshape(-1)[::17] = np.nan
    (before,), (found,) = (interpret(g, {graph.inputs[0]: x}).values() for g in (graph, after))
    np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize(("shape", "kernel", "count"), [
    ((1, 3, 9, 9), (5, 5), 2), ((1, 3, 9, 9), (3, 3), 1), ((1, 3, 9, 9), (9, 1), 1), ((1, 2, 5, 6, 7), (3, 3, 3), 3),
])
def test_pools_that_gain(shape, kernel, count):
    graph = pool(shape, kernel_shape=kernel)
    after = run_passes(graph, (separate_pools,))
    assert ops(after) == ["MaxPool"] * count
    assert after is graph or count > 1
    assert len({str(t.layout) for t in after.types.values()}) == 1
    same(graph, after)


@pytest.mark.parametrize(("shape", "kernel", "count"), [((1, 3, 9, 9), (5, 5), 1), ((1, 2, 5, 6, 7), (3, 3, 3), 2)])
def test_rows_and_columns_of_plain_tensors_stay_together(shape, kernel, count):
    graph = pool(shape, blocked=False, kernel_shape=kernel)
    after = run_passes(graph, (separate_pools,))
    assert ops(after) == ["MaxPool"] * count
    assert after is graph or count > 1
    same(graph, after)


def test_indices_need_the_whole_window():
    b = Builder()
    graph = b.graph(*b.node("MaxPool", b.input(1, 1, 9, 9), out=("y", "where"), kernel_shape=(5, 5)))
    assert run_passes(graph, (separate_pools,)) is graph


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kernel=st.tuples(st.integers(5, 7), st.integers(4, 6)), ceil=st.booleans(), seed=st.integers(0, 99))
def test_keeps_the_result(data, kernel, ceil, seed):
    strides, dilations = (data.draw(st.tuples(st.integers(1, 3), st.integers(1, 2))) for _ in range(2))
    pads = tuple(data.draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    graph = pool((2, 3, 20, 14), kernel_shape=kernel, strides=strides, dilations=dilations, ceil_mode=int(ceil), pads=pads)
    after = run_passes(graph, (separate_pools,))
    assert len(ops(after)) == (2 if math.prod(kernel) > 2 * sum(kernel) else 1)
    same(graph, after, seed)
