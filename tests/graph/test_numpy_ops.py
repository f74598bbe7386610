"""Where the interpreter does not follow onnx.reference: by the operators' definitions."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.infer import infer
from toolchain.graph.interpret import evaluate
from toolchain.graph.ir import Node


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements_at_fewer_places_than_there_are(axis):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    index = np.array([[0, -1], [2, 1]])
    (made,) = evaluate(Node("GatherElements", ("x", "i"), ("y",), {"axis": axis}), [x, index])
    want = [[x[k, j] if axis == 0 else x[i, k] for j, k in enumerate(row)] for i, row in enumerate(index)]
    np.testing.assert_array_equal(made, want)


@pytest.mark.parametrize("slope,fits", [((4,), True), ((3, 1), True), ((), True), ((2, 3, 4), False), ((2,), False)])
def test_the_slope_of_prelu_is_not_larger_than_x(slope, fits):
    node, types = Node("PRelu", ("x", "s"), ("y",)), {"x": TensorType.plain((3, 4), "float32"),
                                                      "s": TensorType.plain(slope, "float32")}
    if fits:
        assert infer(node, types, {}) == (types["x"],)
        return
    with pytest.raises(ImportModelError, match=r"its slope of shape .* does not broadcast to \[3, 4\]"):
        infer(node, types, {})


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("ordered", [0, 1])
def test_unique_gives_back_what_it_was_made_of(axis, ordered):
    x = np.random.default_rng(0).integers(0, 2, (5, 3)).astype(np.float32)
    attrs = {"sorted": ordered} | ({} if axis is None else {"axis": axis})
    y, first, inverse, counts = evaluate(Node("Unique", ("x",), ("y", "f", "i", "c"), attrs), [x])
    rows = x.reshape(-1) if axis is None else np.moveaxis(x, axis, 0)
    kept = y if axis is None else np.moveaxis(y, axis, 0)
    np.testing.assert_array_equal(kept[inverse], rows)
    np.testing.assert_array_equal(rows[first], kept)
    np.testing.assert_array_equal(np.bincount(inverse), counts)
    assert ordered or list(first) == sorted(first)
    assert len(kept) == len({r.tobytes() for r in rows})


def test_the_one_element_of_pytorch_half_pixel_is_the_first():
    x = np.arange(8.0, dtype=np.float32).reshape(1, 1, 8) ** 2 + 3
    attrs = {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"}
    (y,) = evaluate(Node("Resize", ("x", "", "", "s"), ("y",), attrs), [x, None, None, np.array([1, 1, 1])])
    np.testing.assert_array_equal(y, [[[3.0]]])
