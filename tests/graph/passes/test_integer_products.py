"""integer_products: what the operators become in bytes and in words, that it means the same, and what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.core.errors import ImportModelError
from toolchain.graph.infer import infer
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.passes import (
    Form,
    Product,
    dequantized_products,
    integer_products,
    narrowing_dequantized,
    narrowing_products,
)
from toolchain.graph.text import to_text

WORDS = Form("int16", "int16", 2, 4, 8)
BYTES = Form("uint8", "int8", 4, 4, 8)


PAIRS = Form("int8", "int8", 16, 4, 8, pairs=True)


def both(product: Product) -> Form:
    return BYTES if product.in_bytes else WORDS


def arm(product: Product) -> Form:
    """Bytes signed on both sides; words one by one."""
    return Form("int8", "int8", 4, 4, 8) if product.in_bytes else Form("int16", "int16", 1, 4, 8)


def old_arm(product: Product) -> Form:
    """Bytes whose products are added in pairs, or words."""
    return PAIRS if product.in_bytes and product.pairs else Form("int16", "int16", 1, 4, 8)


def words(product: Product) -> Form:
    return WORDS


def one(
    op: str, inputs: list[np.ndarray | None], given_: tuple[int, ...], **attrs: Any
) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of one operator; the inputs at these positions are the graph's, the others constants."""
    names = tuple("" if a is None else f"v{n}" for n, a in enumerate(inputs))
    types = {name: array_type(a) for name, a in zip(names, inputs) if a is not None}
    arrays = {name: a for name, a in zip(names, inputs) if a is not None}
    node = Node(op, names, ("y",), attrs, "node", ("node",))
    types["y"] = infer(node, types, arrays)[0]
    fed = {f"v{n}": arrays[f"v{n}"] for n in given_ if f"v{n}" in arrays}
    return Graph("g", (node,), tuple(fed), ("y",), types, {k: v for k, v in arrays.items() if k not in fed}), fed


def draw_bytes(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


FORMS = st.sampled_from((both, words, arm, old_arm))
KINDS = st.sampled_from(("uint8", "int8"))
ZEROS = st.sampled_from((None, 0, 128, 3))


def zero(value: int | None, dtype: str) -> np.ndarray | None:
    return None if value is None else np.asarray(value).astype(dtype)


@settings(max_examples=60)
@given(m=st.integers(1, 7), k=st.integers(1, 9), n=st.integers(2, 9), a=KINDS, b=KINDS, za=ZEROS, zb=ZEROS,
       batch=st.sampled_from(((), (2,))), paired=st.booleans(), forms=FORMS,
       computed=st.sampled_from(((0,), (0, 1), (0, 2), (0, 1, 2, 3))), seed=st.integers(0, 99))
def test_products_mean_the_same(m, k, n, a, b, za, zb, batch, paired, forms, computed, seed):
    left = draw_bytes(seed, (*batch, m, k), a)
    right = draw_bytes(seed + 1, (*(batch if paired else ()), k, n), b)
    graph, arrays = one("MatMulInteger", [left, right, zero(za, a), zero(zb, b)], computed)
    after = narrowing_products(forms)(graph)
    assert any(node.op == "IntegerMatMul" for node in after.nodes)
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


@settings(max_examples=40)
@given(channels=st.integers(1, 9), outputs=st.integers(2, 9), x=KINDS, w=KINDS, zx=ZEROS, zw=ZEROS,
       forms=FORMS, pads=st.tuples(*[st.integers(0, 2)] * 4), stride=st.integers(1, 2),
       dilation=st.integers(1, 2), computed=st.sampled_from(((0,), (0, 2), (0, 1, 2, 3))), seed=st.integers(0, 99))
def test_convolutions_mean_the_same(
    channels, outputs, x, w, zx, zw, forms, pads, stride, dilation, computed, seed
):
    image, weight = draw_bytes(seed, (1, channels, 7, 6), x), draw_bytes(seed + 1, (outputs, channels, 3, 2), w)
    graph, arrays = one("ConvInteger", [image, weight, zero(zx, x), zero(zw, w)], computed, pads=pads,
                        strides=(stride, 1), dilations=(1, dilation))
    after = narrowing_products(forms)(graph)
    assert any(node.op == "IntegerConv" for node in after.nodes)
    # onnx.reference adds in int64 before it subtracts; the sums here are exact either way
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


@settings(max_examples=30)
@given(channels=st.integers(2, 6), x=KINDS, w=KINDS, zx=ZEROS, zw=ZEROS, pads=st.tuples(*[st.integers(0, 2)] * 4),
       computed=st.sampled_from(((0,), (0, 2), (0, 1, 2, 3))), seed=st.integers(0, 99))
def test_depthwise_convolutions_mean_the_same(channels, x, w, zx, zw, pads, computed, seed):
    image, weight = draw_bytes(seed, (1, channels, 7, 6), x), draw_bytes(seed + 1, (channels, 1, 3, 3), w)
    graph, arrays = one("ConvInteger", [image, weight, zero(zx, x), zero(zw, w)], computed, pads=pads, group=channels)
    after = narrowing_products(both)(graph)
    (node,) = [node for node in after.nodes if node.op == "IntegerConv"]
    assert after.types[node.inputs[1]].dtype == "float32"
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("lowest, fits", [((), True), ((0,), True), ((3, 5), False)])
@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_pairs_are_taken_where_a_column_has_one_weight_of_minus_128_at_most(op, kind, lowest, fits):
    """Two of them, times -128 each, are 32768. Elsewhere words; a network's other columns may have one each."""
    low = np.iinfo(kind).min
    w = np.full((4, 8, 1, 1), low + 255, kind)
    w[:, 0] = low                                                       # of each column
    w[1, list(lowest)] = low
    x = np.full((1, 8, 2, 2), -128, "int8")
    w, x = (w, x) if op == "ConvInteger" else (w[:, :, 0, 0].T.copy(), np.full((3, 8), -128, "int8"))
    graph, arrays = one(op, [x, w, None, np.asarray(128 if kind == "uint8" else 0, kind)], (0,))
    after = narrowing_products(old_arm)(graph)
    (node,) = [n for n in after.nodes if n.op.startswith("Integer")]
    assert (node.attrs.get("pairs", False), after.types[node.inputs[0]].dtype) == (
        (True, "int8") if fits else (False, "int16"))
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


def test_weights_that_are_computed_may_be_anything():
    graph, _ = one("MatMulInteger", [draw_bytes(0, (3, 6), "int8"), np.ones((6, 5), "int8"), None, None], (0, 1))
    (node,) = [n for n in narrowing_products(old_arm)(graph).nodes if n.op.startswith("Integer")]
    assert "pairs" not in node.attrs


def quantized_conv(**attrs: Any) -> tuple[Graph, dict[str, np.ndarray]]:
    scale = np.float32(0.05)
    return one("QLinearConv", [
        draw_bytes(0, (1, 6, 5, 5), "uint8"), np.asarray(scale), np.uint8(7), draw_bytes(1, (9, 6, 3, 3), "int8"),
        np.linspace(0.01, 0.04, 9, dtype=np.float32), np.zeros(9, np.int8), np.float32(3.7), np.uint8(100),
        np.arange(-400, 500, 100, dtype=np.int32)], (0,), pads=(1, 1, 1, 1), **attrs)


def test_a_quantized_convolution(golden):
    graph, arrays = quantized_conv()
    after = narrowing_products(both)(graph)
    golden(to_text(after))
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


def test_a_product_quantized_at_run_time(golden):
    a, b = draw_bytes(0, (3, 6), "uint8"), draw_bytes(1, (6, 5), "uint8")
    graph, _ = one("MatMulInteger", [a, b, np.uint8(9), np.uint8(128)], (0, 2))
    golden(to_text(narrowing_products(both)(graph)))


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)])
def test_a_quantized_product_with_zero_points_per_column(shape):
    scale = np.asarray(0.05, np.float32)
    graph, arrays = one("QLinearMatMul", [
        draw_bytes(0, shape, "uint8"), scale, np.uint8(7), draw_bytes(1, (6, 5), "int8"),
        np.linspace(0.01, 0.04, 5, dtype=np.float32), np.arange(-2, 3, dtype=np.int8), np.float32(1.7), np.uint8(100)], (0,))
    after = narrowing_products(both)(graph)
    assert [n.op for n in after.nodes if n.op.startswith("Integer")] == ["IntegerMatMul"]
    np.testing.assert_array_equal(interpret(after, arrays)["y"], interpret(graph, arrays)["y"])


@pytest.mark.parametrize("name", ["grouped", "one_column", "one_channel", "vector", "no_form", "broadcast_batch"])
def test_others_are_left_alone(name: str) -> None:
    image = draw_bytes(0, (1, 4, 5, 5), "uint8")
    match name:
        case "grouped":
            graph, _ = one("ConvInteger", [image, draw_bytes(1, (4, 2, 3, 3), "int8")], (0,), group=2)
        case "one_channel":
            graph, _ = one("ConvInteger", [image, draw_bytes(1, (1, 4, 3, 3), "int8")], (0,))
        case "one_column":
            graph, _ = one("MatMulInteger", [draw_bytes(0, (2, 6), "uint8"), draw_bytes(1, (6, 1), "int8")], (0,))
        case "vector":
            graph, _ = one("MatMulInteger", [draw_bytes(0, (6,), "uint8"), draw_bytes(1, (6, 5), "int8")], (0,))
        case "no_form":
            graph, _ = one("MatMulInteger", [draw_bytes(0, (2, 6), "uint8"), draw_bytes(1, (6, 5), "int8")], (0,))
        case "broadcast_batch":
            graph, _ = one("MatMulInteger", [draw_bytes(0, (1, 2, 6), "uint8"), draw_bytes(1, (3, 6, 5), "int8")], (0,))
    assert integer_products(graph, (lambda *_: None) if name == "no_form" else both) is graph


def test_types_that_do_not_fit_are_refused() -> None:
    x, w = array_type(np.zeros((3, 8), np.uint8)), array_type(np.zeros((5, 4), np.int8))
    with pytest.raises(ImportModelError, match="does not fit its inputs"):
        infer(Node("IntegerMatMul", ("x", "w"), ("y",), {"columns": 5, "panel": 1}, "n"), {"x": x, "w": w}, {})
    image = array_type(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(ImportModelError, match="does not fit its inputs"):
        infer(Node("IntegerConv", ("x", "w"), ("y",), {"columns": 5, "strides": (1, 1), "dilations": (1, 1)}, "n"),
              {"x": image, "w": array_type(np.zeros((5, 4, 3, 3), np.int8))}, {})


# --- products of dequantized values ---

SCALES = st.sampled_from((0.02, 0.5))


def dequantized(
    op: str, left: np.ndarray, right: np.ndarray, zeros: tuple[np.ndarray | None, np.ndarray | None], scale: float,
    axis: int | None, bias: np.ndarray | None, **attrs: Any,
) -> tuple[Graph, dict[str, np.ndarray]]:
    """op(DequantizeLinear(left), DequantizeLinear(right)) with constant weights; axis: of their scales, None: one scale."""
    rng = np.random.default_rng(0)
    many = rng.uniform(0.01, 0.03, right.shape[axis]).astype(np.float32) if axis is not None else np.float32(0.02)
    params = {"w": right, "sw": np.asarray(many), "sx": np.asarray(np.float32(scale))}
    names = {"x": ["x", "sx"], "w": ["w", "sw"]}
    for name, zero_point in zip(("x", "w"), zeros, strict=True):
        if zero_point is not None:
            full = np.full(many.shape, zero_point) if name == "w" else zero_point
            params[f"z{name}"] = np.asarray(full, zero_point.dtype)
            names[name].append(f"z{name}")
    if bias is not None:
        params["bias"] = bias
    types = {"x": array_type(left)} | {n: array_type(a) for n, a in params.items()}
    nodes = [Node("DequantizeLinear", tuple(names["x"]), ("dx",), {}, "dx", ("dx",)),
             Node("DequantizeLinear", tuple(names["w"]), ("dw",), {"axis": 0 if axis is None else axis}, "dw", ("dw",)),
             Node(op, ("dx", "dw", *(["bias"] if bias is not None else [])), ("y",), attrs, "node", ("node",))]
    for node in nodes:
        types[node.output] = infer(node, types, params)[0]
    return Graph("g", tuple(nodes), ("x",), ("y",), types, params), {"x": left}


def assert_in_integers(graph: Graph, arrays: dict[str, np.ndarray], forms: Any, op: str) -> None:
    after = narrowing_dequantized(forms)(graph)
    assert [n.op for n in after.nodes if n.op.startswith("Integer")] == [op]
    want = interpret(graph, arrays)["y"]
    np.testing.assert_allclose(interpret(after, arrays)["y"], want, rtol=1e-5, atol=1e-6 * max(1.0, np.abs(want).max()))


@settings(max_examples=40)
@given(channels=st.integers(1, 9), outputs=st.integers(2, 9), x=KINDS, w=KINDS, zx=ZEROS, zw=ZEROS, scale=SCALES,
       many=st.booleans(), bias=st.booleans(), pads=st.tuples(*[st.integers(0, 2)] * 4),
       forms=FORMS, depthwise=st.booleans(), seed=st.integers(0, 99))
def test_dequantized_convolutions_mean_the_same(
    channels, outputs, x, w, zx, zw, scale, many, bias, pads, forms, depthwise, seed
):
    if depthwise:
        outputs = channels = max(channels, 2)
    image = draw_bytes(seed, (1, channels, 7, 6), x)
    weight = draw_bytes(seed + 1, (outputs, 1 if depthwise else channels, 3, 2), w)
    added = np.random.default_rng(seed).standard_normal(outputs).astype(np.float32) if bias else None
    graph, arrays = dequantized("Conv", image, weight, (zero(zx, x), zero(zw, w)), scale, 0 if many else None, added,
                                pads=pads, group=channels if depthwise else 1)
    assert_in_integers(graph, arrays, forms, "IntegerConv")


@settings(max_examples=40)
@given(m=st.integers(1, 7), k=st.integers(1, 9), n=st.integers(2, 9), a=KINDS, b=KINDS, za=ZEROS, zb=ZEROS, scale=SCALES,
       many=st.booleans(), kind=st.sampled_from(("MatMul", "rows", "Gemm", "turned", "biased")),
       forms=FORMS, seed=st.integers(0, 99))
def test_dequantized_matrix_products_mean_the_same(m, k, n, a, b, za, zb, scale, many, kind, forms, seed):
    turned = kind in ("turned", "biased")
    left = draw_bytes(seed, (2, m, k) if kind == "rows" else (m, k), a)
    right = draw_bytes(seed + 1, (n, k) if turned else (k, n), b)
    added = np.random.default_rng(seed).standard_normal(n).astype(np.float32) if kind == "biased" else None
    axis = (0 if turned else 1) if many else None
    op, attrs = "MatMul" if kind in ("MatMul", "rows") else "Gemm", {"transB": 1} if turned else {}
    graph, arrays = dequantized(op, left, right, (zero(za, a), zero(zb, b)), scale, axis, added, **attrs)
    assert_in_integers(graph, arrays, forms, "IntegerMatMul")


@pytest.mark.parametrize("axis", [1, None])
def test_scales_along_the_sum_stay_floats(axis):
    image, weight = draw_bytes(0, (1, 4, 5, 5), "uint8"), draw_bytes(1, (4, 4, 3, 3), "int8")
    graph, _ = dequantized("Conv", image, weight, (None, None), 0.5, axis, None, group=1 if axis == 1 else 2)
    assert dequantized_products(graph, both) is graph
