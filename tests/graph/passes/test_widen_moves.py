"""widen_moves: conversions to words of bytes move the words; every byte lands where it did."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.widen_moves import widen_moves
from toolchain.graph.verify import verify


def body_of(shape: tuple[int, ...], layout: str, dtype: str) -> Graph:
    types = {"0": TensorType.plain(shape, dtype), "1": TensorType(shape, dtype, Layout.parse(layout))}
    return Graph("body", (Node("Layout", ("0",), ("1",)),), ("0",), ("1",), types)


@pytest.mark.parametrize(("shape", "layout", "dtype"), [
    ((20, 24), "AB16a4b", "int8"), ((3, 40, 8), "NCW16c4w", "uint8"), ((20, 24), "AB16a2b", "int16"),
    ((20, 32), "AB4b16a4b", "int8"),
])
def test_every_byte_lands_where_it_did(shape, layout, dtype):
    before = body_of(shape, layout, dtype)
    after = widen_moves(before)
    verify(after, "widen_moves")
    (source, target), (words, packed) = ([g.types[v] for v in "01"] for g in (before, after))
    assert source.dtype != words.dtype == packed.dtype == "int32"
    x = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    wide = np.ascontiguousarray(x).view(np.int32)
    assert wide.shape == words.shape == packed.shape
    np.testing.assert_array_equal(packed.layout.pack(wide).reshape(-1).view(dtype), target.layout.pack(x).reshape(-1))


@pytest.mark.parametrize(("shape", "layout", "dtype"), [
    ((20, 22), "AB16a4b", "int8"), ((20, 24), "AB16a2b", "int8"), ((20, 24), "AB16a4b", "float32"),
    ((20, 24), "AB4a", "int8"),
])
def test_left_alone(shape, layout, dtype):
    body = body_of(shape, layout, dtype)
    assert widen_moves(body) is body
