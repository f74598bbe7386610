"""The verifier finds each broken rule and names the node; the text form shows a graph whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from small_models import LIGHT, imported, make_model

from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node
from toolchain.graph.ops import INTERNAL, OPS, FusionClass, info
from toolchain.graph.protos import schema
from toolchain.graph.text import node_text, to_text
from toolchain.graph.verify import verify

t = TensorType.plain


def _graph() -> Graph:
    weights = np.arange(36, dtype="float32").reshape(4, 1, 3, 3)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv1", group=2, pads=[1, 1, 1, 1]),
             helper.make_node("Clip", ["c", "", "hi"], ["y"], name="relu1")]
    return imported(make_model(nodes, {"x": (1, 2, 8, 8)}, ["y"], {"w": weights, "hi": np.asarray(6, "float32")}))


def _fused() -> Graph:
    """conv1 in a blocked layout with a halo, then relu1 in a fused body."""
    graph = _graph()
    conv, clip = graph.nodes
    types = {"c": graph.types["c"], "hi": graph.types["hi"], "y": graph.types["y"]}
    body = Graph("body", (replace(clip, sources=()),), ("c", "hi"), ("y",), types)
    blocked = t((1, 4, 8, 8)).with_layout(Layout.parse("NCHW4c+h1"))
    fused = Node("Fused", ("b", "hi"), ("y",), {"body": body}, "relu1", ("relu1",))
    layout = Node("Layout", ("c",), ("b",), {}, "to_blocked", ("conv1",))
    return replace(graph, nodes=(conv, layout, fused), types={**graph.types, "b": blocked})


def test_text(golden):
    golden(to_text(verify(_fused())))


def test_text_of_a_real_model_is_the_same_every_time():
    first, second = (to_text(import_onnx(LIGHT / "light_bvlc_alexnet.onnx")) for _ in range(2))
    assert first == second and "conv1" in first.splitlines()[-22]


def test_node_text():
    graph = _graph()
    assert node_text(graph, graph.nodes[1]) == "%y: float32[1, 4, 8, 8] = Clip(%c, _, %hi)  # relu1"


def test_fused_and_layout_mean_what_they_hold():
    x = {"x": np.linspace(-1, 1, 128, dtype="float32").reshape(1, 2, 8, 8)}
    np.testing.assert_array_equal(interpret(_fused(), x)["y"], interpret(_graph(), x)["y"])


def test_kept_values_come_back():
    x = np.ones((1, 2, 8, 8), "float32")
    made = interpret(_graph(), {"x": x}, keep=["c"])
    np.testing.assert_array_equal(np.minimum(made["c"], 6), made["y"])


def _break(graph: Graph, rule: str) -> Graph:
    conv, clip = graph.nodes
    types, params = dict(graph.types), dict(graph.params)
    match rule:
        case "order":
            return replace(graph, nodes=(clip, conv))
        case "twice":
            return replace(graph, nodes=(conv, replace(conv, name="again"), clip))
        case "untyped":
            del types["c"]
        case "shape":
            types["c"] = t((1, 4, 8, 9))
        case "dtype":
            types["y"] = t((1, 4, 8, 8), "float16")
        case "rank":
            types["c"] = TensorType((1, 4, 8, 8), "float32", Layout.row_major(3))
        case "param":
            params["hi"] = np.asarray(6, "float64")
        case "output":
            return replace(graph, outputs=("z",))
        case "names":
            return replace(graph, nodes=(conv, replace(clip, name="conv1")))
        case "shadow":
            return replace(graph, inputs=("x", "w"))
        case "arity":
            return replace(graph, nodes=(conv, replace(clip, outputs=("y", ""))))
        case "operator":
            return replace(graph, nodes=(conv, replace(clip, op="Clap")))
    return replace(graph, types=types, params=params)


@pytest.mark.parametrize("rule, message", [
    ("order", r"node 'relu1' \(Clip\): reads 'c', which is defined later or nowhere"),
    ("twice", r"node 'again' \(Conv\): defines 'c' a second time"),
    ("untyped", r"node 'conv1' \(Conv\): 'c' has no type"),
    ("shape", r"node 'conv1' \(Conv\): 'c' is stated as float32\[1, 4, 8, 9\], its operator yields float32\[1, 4, 8, 8\]"),
    ("dtype", r"node 'relu1' \(Clip\): 'y' is stated as float16"),
    ("rank", "'c' has the type"),
    ("param", r"parameter 'hi' is float64\[\], its type says float32\[\]"),
    ("output", "output 'z' is defined nowhere"),
    ("names", r"node 'conv1' \(Clip\): another node has the same name"),
    ("shadow", "'w' is an input and a parameter"),
    ("arity", r"node 'relu1' \(Clip\)"),
    ("operator", "ONNX has no such operator"),
])
def test_each_broken_rule_is_named(rule: str, message: str):
    with pytest.raises(InternalError, match=message) as e:
        verify(_break(_graph(), rule), after="some_pass")
    assert str(e.value).startswith("graph 'small' after some_pass: ")


def test_a_fused_body_must_fit_its_node():
    graph = _fused()
    body: Graph = graph.nodes[2].attrs["body"]
    other = replace(body, types={**body.types, "c": t((1, 4, 8, 9)), "y": t((1, 4, 8, 9))})
    nodes = (*graph.nodes[:2], replace(graph.nodes[2], attrs={"body": other}))
    with pytest.raises(InternalError, match=r"differ from its body's|its operator yields"):
        verify(replace(graph, nodes=nodes))


def test_interpreting_checks_what_it_is_given():
    graph = _graph()
    with pytest.raises(InternalError, match="no array for input 'x'"):
        interpret(graph, {})
    with pytest.raises(InternalError, match=r"input 'x': shape \[1, 2, 8\]"):
        interpret(graph, {"x": np.ones((1, 2, 8), "float32")})
    with pytest.raises(InternalError, match="input 'x': float64"):
        interpret(graph, {"x": np.ones((1, 2, 8, 8))})


def test_the_table_lists_onnx_operators():
    """A misspelt operator would silently be opaque."""
    assert [op for op in OPS if schema(op) is None] == list(INTERNAL)
    assert info("Conv").fusion is FusionClass.COMPLEX and info("NoSuch").fusion is FusionClass.OPAQUE
    assert [c.is_injective for c in FusionClass] == [True, True, True, False, False, False]
