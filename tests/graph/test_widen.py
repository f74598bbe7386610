"""The network in double precision: same meaning, less rounding, types in it all the way."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from small_models import imported, make_model, value

from toolchain.graph.interpret import interpret
from toolchain.graph.verify import verify
from toolchain.graph.widen import wide, widened

node = helper.make_node


def test_everything_single_becomes_double():
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Sigmoid", ["c"], ["s"]),
             node("Cast", ["s"], ["i"], to=TensorProto.INT32), node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
             node("Add", ["f", "s"], ["y"])]
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = imported(make_model(nodes, {"x": (1, 3, 8, 8)}, ["y"], {"w": w}))
    exact = widened(graph)
    verify(exact)
    assert {t.dtype for t in exact.types.values()} == {"float64", "int32"}
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    (single,), (double,) = interpret(graph, {"x": x}).values(), interpret(exact, {"x": wide(x)}).values()
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=1e-5)
    assert (single != double).any()


def test_subgraphs_are_widened_too():
    then = helper.make_graph([node("Exp", ["x"], ["a"])], "then", [], [value("a", [2])])
    other = helper.make_graph([node("Neg", ["x"], ["b"])], "else", [], [value("b", [2])])
    graph = imported(make_model([node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
                                {"c": (), "x": (2,)}, ["y"], dtypes={"c": "bool"}))
    x = np.array([1.5, -2.0], np.float32)
    for taken, expected in ((True, np.exp(wide(x))), (False, -wide(x))):
        (y,) = interpret(widened(graph), {"c": np.array(taken), "x": wide(x)}).values()
        np.testing.assert_array_equal(y, expected)
