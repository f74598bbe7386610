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
