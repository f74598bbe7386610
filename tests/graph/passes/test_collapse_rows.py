"""collapse_rows: pointwise convolutions see one long row; what looks across rows, or lies otherwise, is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pass_graphs import Builder

from toolchain.core.layout import Layout, TensorType
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.graph.passes.collapse_rows import collapse_rows
from toolchain.graph.text import to_text
from toolchain.graph.verify import verify

Case = Callable[[Builder], str]


def body_of(case: Case) -> Graph:
    """A body as fusion makes it: every weight is an input."""
    b = Builder()
    graph = b.graph(case(b))
    return replace(graph, inputs=(*graph.inputs, *graph.params), params={})


COLLAPSES: dict[str, Case] = {
    "alone": lambda b: b.conv(b.input(2, 8, 5, 7), 6),
    "grouped_without_bias": lambda b: b.conv(b.input(1, 8, 3, 4), 4, group=4, bias=False),
    "volume": lambda b: b.node("Conv", b.input(1, 4, 2, 3, 5), b.weight(6, 4, 1, 1, 1)),
    "epilogue": lambda b: b.node("Relu", b.node("Add", b.conv(b.input(1, 4, 5, 5), 6), b.input(1, 6, 5, 5))),
    "per_channel": lambda b: b.node("Mul", b.node("Add", b.conv(b.input(1, 4, 5, 5), 5), b.weight(5, 1, 1)), b.const(2.0)),
    "square_scale": lambda b: b.node("Mul", b.conv(b.input(2, 4, 5, 5), 5), b.input(1, 5, 1, 1)),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_collapses_and_keeps_every_byte(name: str) -> None:
    before = body_of(COLLAPSES[name])
    after = collapse_rows(before)
    verify(after, "collapse_rows")
    assert len(after.types[after.outputs[0]].shape) == 3
    rng = np.random.default_rng(1)
    values = {i: rng.standard_normal(before.types[i].shape).astype("float32") for i in before.inputs}
    want = interpret(before, values)
    got = interpret(after, {i: v.reshape(after.types[i].shape) for i, v in values.items()})
    for o in before.outputs:
        np.testing.assert_array_equal(got[o].ravel(), want[o].ravel())


LEFT_ALONE: dict[str, Case] = {
    "window": lambda b: b.conv(b.input(1, 4, 5, 5), 6, 3),
    "stride": lambda b: b.conv(b.input(1, 4, 5, 5), 6, strides=(2, 2)),
    "padding": lambda b: b.conv(b.input(1, 4, 5, 5), 6, pads=(1, 1, 1, 1)),
    "one_row_already": lambda b: b.node("Conv", b.input(1, 4, 9), b.weight(6, 4, 1)),
    "along_width": lambda b: b.node("Add", b.conv(b.input(1, 4, 5, 6), 6), b.input(6)),
    "along_height": lambda b: b.node("Add", b.conv(b.input(1, 4, 5, 6), 6), b.input(5, 1)),
    "reduction": lambda b: b.node("Softmax", b.conv(b.input(1, 4, 5, 6), 6), axis=1),
    "no_convolution": lambda b: b.node("Relu", b.input(1, 4, 5, 6)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    before = body_of(LEFT_ALONE[name])
    assert collapse_rows(before) is before


def test_other_layouts_are_left_alone() -> None:
    before = body_of(COLLAPSES["alone"])
    halo = Layout.parse("NCHW+h1")
    types = {**before.types, "x0": TensorType((2, 8, 5, 7), "float32", halo)}
    with_halo = replace(before, types=types)
    assert collapse_rows(with_halo) is with_halo


def test_text(golden: Callable[[str], None]) -> None:
    golden(to_text(collapse_rows(body_of(COLLAPSES["epilogue"]))))
