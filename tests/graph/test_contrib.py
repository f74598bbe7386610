"""ONNX Runtime's own operators, written in ONNX's: the imported graph beside what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import ELEM, imported, make_model, run_onnxruntime

import toolchain
from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.contrib import DOMAIN, RECIPES
from toolchain.graph.interpret import interpret
from toolchain.tasks.steps import supported_operators

rng = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def u8(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def zero(value: int) -> np.ndarray:
    return np.array(value, np.uint8)


def angles(places: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Caches of cosines and sines."""
    turn = np.arange(places)[:, None] / 3.0 ** np.arange(half)
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


class Case(NamedTuple):
    op: str
    inputs: tuple[np.ndarray | None, ...]
    attrs: Mapping[str, Any] = {}
    outputs: tuple[str, ...] = ("y",)
    constant: tuple[int, ...] = ()
    domain: str = DOMAIN
    atol: float = 2e-5


Q = (u8(2, 3, 4, 5), scale(0.02), zero(120))
R = (u8(2, 3, 4, 5), scale(0.03), zero(100))
TO = (scale(0.05), zero(128))
IDS = rng.integers(0, 9, (2, 6)).astype(np.int32)
SEGMENTS = rng.integers(0, 2, (2, 6)).astype(np.int32)
GROUPED = ("y", "key", "value")
MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)

def ragged(last: list[int]) -> Case:
    """Batches with so many keys (and one), in a buffer of eight; a head's first 16 elements of 32 are turned."""
    return Case("GroupQueryAttention", (f(2, 1, 128), f(2, 1, 64), f(2, 1, 64), f(2, 2, 8, 32), f(2, 2, 8, 32),
                                        np.array(last, np.int32), np.array([8], np.int32), *angles(10, 8)),
                {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, GROUPED, constant=(6,))


CASES = [
    Case("Gelu", (f(3, 4),)), Case("FastGelu", (f(3, 4),)), Case("FastGelu", (f(3, 4), f(4))),
    Case("BiasGelu", (f(3, 4), f(4))), Case("QuickGelu", (f(3, 4),)), Case("QuickGelu", (f(3, 4),), {"alpha": 1.2}),
    Case("FusedMatMul", (f(2, 3, 4), f(2, 4, 5)), {"alpha": 0.5}),
    Case("FusedMatMul", (f(2, 4, 3), f(2, 4, 5)), {"transA": 1}),
    Case("FusedMatMul", (f(3, 4), f(5, 4)), {"transB": 1, "alpha": 2.0}),
    Case("FusedGemm", (f(3, 4), f(4, 5), f(5)), {"activation": "Relu", "alpha": 0.5}),
    Case("FusedGemm", (f(3, 4), f(5, 4), f(5)), {"activation": "LeakyRelu", "activation_alpha": 0.2, "transB": 1}),
    Case("FusedConv", (f(1, 3, 6, 6), f(4, 3, 3, 3), f(4)), {"activation": "Relu", "pads": [1, 1, 1, 1]}, constant=(1, 2)),
    Case("FusedConv", (f(1, 3, 6, 6), f(4, 3, 3, 3), f(4)),
         {"activation": "Clip", "activation_params": [-0.5, 0.5], "strides": [2, 2]}, constant=(1, 2)),
    Case("FusedConv", (f(1, 3, 6, 6), f(4, 3, 1, 1), f(4), f(1, 4, 6, 6)), {"activation": "Relu"}, constant=(1, 2)),
    Case("SkipLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(8)), {"epsilon": 1e-5},
         ("y", "", "", "total")),
    Case("SkipLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8))),
    Case("SkipSimplifiedLayerNormalization", (f(2, 3, 8), f(2, 3, 8), f(8)), {"epsilon": 1e-5}, ("y", "", "", "total")),
    Case("SimplifiedLayerNormalization", (f(2, 3, 8), f(8)), {"axis": -1, "epsilon": 1e-5}, domain=""),
    Case("EmbedLayerNormalization", (IDS, SEGMENTS, f(9, 8), f(7, 8), f(2, 8), f(8), f(8), MASK), {"epsilon": 1e-6},
         ("y", "count")),
    Case("EmbedLayerNormalization", (IDS, None, f(9, 8), f(7, 8), None, f(8), f(8)), {}, ("y", "count", "total")),
    Case("MultiHeadAttention", (f(2, 5, 8), f(2, 6, 8), f(2, 6, 8)), {"num_heads": 2}),
    Case("MultiHeadAttention", (f(2, 5, 8), f(2, 6, 8), f(2, 6, 8), None, None, f(2, 2, 5, 6)),
         {"num_heads": 2, "scale": 0.3}),
    Case("MultiHeadAttention",
         (f(2, 1, 8), f(2, 1, 8), f(2, 1, 8), None, None, None, f(2, 2, 4, 4), f(2, 2, 4, 4)), {"num_heads": 2},
         ("y", "key", "value")),
    Case("MultiHeadAttention", (f(2, 5, 8), f(2, 6, 8), f(2, 6, 4), f(20)), {"num_heads": 2}),
    Case("MultiHeadAttention", (f(2, 5, 8), f(2, 6, 8), f(2, 6, 8), None, MASK), {"num_heads": 2}),
    Case("MultiHeadAttention", (f(2, 6, 8), f(2, 6, 8), f(2, 6, 8)), {"num_heads": 4, "unidirectional": 1}),
    Case("Attention", (f(2, 6, 8), f(8, 24), f(24)), {"num_heads": 2}),
    Case("Attention", (f(2, 6, 8), f(8, 24), f(24), MASK), {"num_heads": 2, "scale": 0.2}),
    Case("Attention", (f(2, 6, 8), f(8, 24), f(24), np.array([4, 6], np.int32)), {"num_heads": 2}, ("y", "present")),
    Case("Attention", (f(2, 6, 8), f(8, 24), f(24), None, None, f(2, 2, 6, 6)), {"num_heads": 2, "unidirectional": 1}),
    Case("Attention", (f(2, 6, 8), f(8, 20), f(20)), {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}),
    Case("Attention", (f(2, 1, 8), f(8, 24), f(24), np.ones((2, 6), np.int32), f(2, 2, 2, 5, 4)),
         {"num_heads": 2, "unidirectional": 1}, ("y", "present")),
    Case("RotaryEmbedding", (f(2, 3, 16), np.array([4], np.int64), *angles(10, 4))),
    Case("RotaryEmbedding", (f(2, 3, 16), rng.integers(0, 10, (2, 3)), *angles(10, 4)), {"interleaved": 1}),
    Case("RotaryEmbedding", (f(2, 2, 3, 8), rng.integers(0, 10, (2, 3)), *angles(10, 4))),
    Case("RotaryEmbedding", (f(2, 3, 16), np.array([0], np.int64), *angles(10, 2)),
         {"num_heads": 2, "rotary_embedding_dim": 4}),
    Case("GroupQueryAttention", (f(2, 3, 32), f(2, 3, 16), f(2, 3, 16), f(2, 2, 0, 8), f(2, 2, 0, 8),
                                 np.array([2, 2], np.int32), np.array([3], np.int32)),
         {"num_heads": 4, "kv_num_heads": 2}, GROUPED, constant=(6,)),
    Case("GroupQueryAttention", (f(2, 1, 64), f(2, 1, 32), f(2, 1, 32), f(2, 2, 5, 16), f(2, 2, 5, 16),
                                 np.array([5, 5], np.int32), np.array([6], np.int32), *angles(10, 8)),
         {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "scale": 0.3}, GROUPED, constant=(6,)),
    Case("GroupQueryAttention", (f(1, 4, 128), None, None, f(1, 2, 5, 16), f(1, 2, 5, 16),
                                 np.array([8], np.int32), np.array([9], np.int32), *angles(12, 8)),
         {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 3,
          "softcap": 2.0}, GROUPED, constant=(6,)),
    ragged([7, 7]),
    Case("QLinearAdd", (*Q, *R, *TO)), Case("QLinearMul", (*Q, *R, *TO)),
    Case("QLinearSigmoid", (*Q, scale(1 / 256), zero(0))),
    Case("QLinearLeakyRelu", (*Q, *TO), {"alpha": 0.1}), Case("QLinearGlobalAveragePool", (*Q, *TO)),
    Case("QLinearAveragePool", (*Q, *TO), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("QLinearSoftmax", (*Q, scale(1 / 256), zero(0)), {"axis": -1, "opset": 13}),
    Case("QLinearSoftmax", (*Q, scale(1 / 256), zero(0)), {"axis": 2, "opset": 12}),
    Case("QLinearConcat", (*TO, *Q, *R), {"axis": 1}),
    Case("QLinearWhere", (rng.integers(0, 2, (2, 3, 4, 5)).astype(bool), *Q, *R, *TO)),
    Case("QGemm", (u8(3, 4), scale(0.02), zero(120), u8(4, 5), scale(0.03), zero(130),
                   rng.integers(-900, 900, (5,)).astype(np.int32), scale(0.1), zero(128)), constant=(3,)),
    Case("QGemm", (u8(3, 4), scale(0.02), zero(120), u8(5, 4), scale(0.03), zero(130)), {"transB": 1, "alpha": 0.5},
         constant=(3,)),
    Case("DynamicQuantizeMatMul", (f(3, 8), u8(8, 5), scale(0.03), zero(120), f(5))),
    Case("DynamicQuantizeLSTM",
         (f(5, 2, 6), u8(2, 6, 16), u8(2, 4, 16), f(2, 32) / 4, None, f(2, 2, 4), None, None, np.full(2, 0.004, np.float32),
          np.full(2, 120, np.uint8), np.full(2, 0.004, np.float32), np.full(2, 130, np.uint8)),
         {"hidden_size": 4, "direction": "bidirectional"}, ("y", "h", "c"), constant=(1, 2, 8, 9, 10, 11), atol=0.02),
    Case("MatMulIntegerToFloat", (u8(3, 8), u8(8, 5), scale(0.03), scale(0.02), zero(120), zero(128), f(5))),
    Case("MatMulNBits", (f(3, 40), u8(6, 2, 16), np.abs(f(12))), {"K": 40, "N": 6, "bits": 4, "block_size": 32},
         constant=(1, 2)),
    Case("MatMulNBits", (f(3, 64), u8(6, 2, 16), np.abs(f(12)), u8(6)), {"K": 64, "N": 6, "bits": 4, "block_size": 32},
         constant=(1, 2, 3)),
    Case("QuantizeLinear", (f(3, 4), *TO)), Case("DequantizeLinear", Q),
]


def model_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    names = [f"i{n}" if a is not None else "" for n, a in enumerate(case.inputs)]
    arrays = {name: a for name, a in zip(names, case.inputs, strict=True) if a is not None}
    node = helper.make_node(case.op, names, case.outputs, "node", domain=case.domain, **case.attrs)
    constants = {f"i{n}" for n in case.constant}
    given = {n: a for n, a in arrays.items() if n not in constants}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value(n, ELEM[a.dtype.name], a.shape) for n, a in given.items()],
        [onnx.ValueInfoProto(name=o) for o in case.outputs if o],
        [numpy_helper.from_array(arrays[n], n) for n in sorted(constants)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), given


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op)
def test_the_function_computes_what_onnxruntime_does(case: Case) -> None:
    pytest.importorskip("onnxruntime")
    model, inputs = model_of(case)
    graph = imported(model, supported=supported_operators())
    own = {"Gelu", "QuantizeLinear", "DequantizeLinear", "RotaryEmbedding"}     # ONNX has operators of these names, too
    assert not {n.op for n in graph.nodes} & (RECIPES.keys() - own)
    ours = graph.results(interpret(graph, inputs))
    for name, theirs in run_onnxruntime(model, inputs).items():
        assert ours[name].dtype == theirs.dtype and ours[name].shape == theirs.shape
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours[name], theirs, rtol=2e-4, atol=case.atol)
        else:                                           # of a tie between two numbers either may be taken
            assert np.abs(ours[name].astype(int) - theirs.astype(int)).max() <= 1


def test_batches_may_have_keys_of_their_own_number() -> None:
    """What the buffers hold behind them is nobody's business, and differs."""
    model, inputs = model_of(ragged([5, 7]))
    graph = imported(model, supported=supported_operators())
    ours, theirs = graph.results(interpret(graph, inputs)), run_onnxruntime(model, inputs)
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours["key"][0, :, :6], theirs["key"][0, :, :6], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours["value"][1], theirs["value"][1], rtol=2e-4, atol=2e-5)


def test_a_model_in_a_processors_layout_is_refused_with_a_way_out() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", domain="com.microsoft.nchwc")]
    model = make_model(nodes, {"x": (1, 16, 4, 4)}, ["y"], {"w": f(16, 16, 1, 1)})
    with pytest.raises(ImportModelError) as e:
        imported(model, supported=supported_operators())
    assert "com.microsoft.nchwc.Conv (1x: conv)" in e.value.what and "ORT_ENABLE_EXTENDED" in str(e.value.fix)


def test_every_recipe_is_compared() -> None:
    assert {case.op for case in CASES} == set(RECIPES)


def test_weights_of_four_bits_are_unpacked_when_the_model_is_imported() -> None:
    model, inputs = model_of(next(c for c in CASES if c.op == "MatMulNBits"))
    assert [n.op for n in imported(model).nodes] == ["MatMul"]
    with toolchain.compile(model, threads=1) as module:
        np.testing.assert_allclose(module.run(inputs)["y"], run_onnxruntime(model, inputs)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "what"), [
    (Case("QLinearConcat", (*TO, *Q)), "needs the attribute axis"),
    (Case("MatMulNBits", (f(3, 40), u8(6, 2, 16), f(12)), {"K": "x", "N": 6, "block_size": 32}), "of the wrong kind"),
    (Case("MatMulNBits", (f(3, 40), u8(6, 2, 16), f(12)), {"K": 8, "N": 6, "block_size": 0}), "of the wrong kind"),
    (Case("FusedGemm", (f(3, 4), f(4, 5)), {"activation": "Softplus"}), r"com.microsoft.FusedGemm \(1x: node\)"),
    (Case("GroupNorm", (f(3, 4),)), r"com.microsoft.GroupNorm \(1x: node\)"),
])
def test_what_is_not_written_is_refused(case: Case, what: str) -> None:
    model, _ = model_of(case)
    with pytest.raises(ImportModelError, match=what):
        imported(model, supported=supported_operators())
