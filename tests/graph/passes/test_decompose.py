"""decompose: recurrent operators against ONNX's reference, function bodies, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from pass_graphs import Builder, assert_same, ops, random_inputs

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.graph.ops import OPS
from toolchain.graph.passes import FUSION, PASSES, check_memory, decompose, decomposing, plan_memory, run_passes
from toolchain.graph.text import to_text

NOT_FOR_US = ("LSTM", "GRU", "RNN", "Mish", "GroupNormalization", "LayerNormalization", "HardSwish", "Celu", "Attention",
              "ReduceLogSumExp", "MeanVarianceNormalization")
SUPPORTED = frozenset(OPS) - frozenset(NOT_FOR_US)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(
    op: str, direction: str = "forward", bias: bool = True, initial: bool = False, outputs: str = "yh", **attrs: object
) -> Graph:
    b = Builder()
    steps, batch, size, hidden, d = 3, 2, 3, 4, 2 if direction == "bidirectional" else 1
    x = b.input(*((batch, steps, size) if attrs.get("layout") else (steps, batch, size)))
    inputs = [x, b.weight(d, GATES[op] * hidden, size), b.weight(d, GATES[op] * hidden, hidden)]
    inputs.append(b.weight(d, 2 * GATES[op] * hidden) if bias else "")
    if initial:
        shape = (batch, d, hidden) if attrs.get("layout") else (d, batch, hidden)
        inputs += ["", b.input(*shape)] + ([b.input(*shape)] if op == "LSTM" else [])
    names = tuple(name if name in outputs else "" for name in "yhc"[:3 if op == "LSTM" else 2])
    made = b.node(op, *inputs, out=names, direction=direction, hidden_size=hidden, **attrs)
    return b.graph(*(name for name in made if name))


VARIANTS: tuple[dict[str, object], ...] = (
    {}, {"initial": True, "outputs": "yhc"}, {"layout": 1, "initial": True}, {"bias": False},
)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_recurrent(op: str, direction: str, variant: int) -> None:
    graph = recurrent(op, direction, **VARIANTS[variant])  # type: ignore[arg-type]
    after = decompose(graph, SUPPORTED)
    assert op not in ops(after) and ops(after).count("Scan") == (2 if direction == "bidirectional" else 1)
    assert_same(graph, after)


def test_gru_with_reset_behind_the_product() -> None:
    graph = recurrent("GRU", linear_before_reset=1)
    assert_same(graph, decompose(graph, SUPPORTED))


def test_other_activations() -> None:
    """Against NumPy: onnx.reference computes every LSTM with the default activations."""
    graph = recurrent("LSTM", activations=("relu", "softsign", "Tanh"), outputs="y")
    w, r, bias = (graph.params[name][0] for name in graph.nodes[0].inputs[1:4])
    x = random_inputs(graph)["x0"]
    h = c = np.zeros((2, 4), "float32")
    expected = []
    for element in x:
        i, o, f, g = np.split(element @ w.T + h @ r.T + bias[:16] + bias[16:], 4, axis=1)
        c = np.maximum(f, 0) * c + np.maximum(i, 0) * (g / (1 + np.abs(g)))
        h = np.maximum(o, 0) * np.tanh(c)
        expected.append(h[None])
    found = interpret(decompose(graph, SUPPORTED), {"x0": x})["y"]
    np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-6)


def test_the_loop_fuses_into_few_kernels() -> None:
    """One product, one kernel per state: what an LSTM step costs."""
    graph = recurrent("LSTM", outputs="yhc", initial=True)
    after = run_passes(graph, (decomposing(SUPPORTED), *PASSES, *FUSION))
    body = next(n.attrs["body"] for n in after.nodes if n.op == "Scan")
    kernels = [tuple(m.op for m in n.attrs["body"].nodes) for n in body.nodes if n.op == "Fused"]
    assert kernels[0] == ("MatMul", "Add") and len(kernels) <= 4
    assert_same(graph, after)
    check_memory(after, plan_memory(after))


def test_golden(golden: Callable[[str], None]) -> None:
    golden(to_text(decompose(recurrent("LSTM", outputs="y"), SUPPORTED)))


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "activation": ({"activations": ("Sigmoid", "Elu", "Tanh")}, "Elu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    attrs, message = REFUSED[name]
    with pytest.raises(ImportModelError, match=message) as e:
        decompose(recurrent("LSTM", **attrs), SUPPORTED)  # type: ignore[arg-type]
    assert "node 'n0' (LSTM)" in str(e.value)


FULL: tuple[tuple[str, dict[str, object]], ...] = (
    ("LSTM", {}), ("LSTM", {"clip": 0.3}), ("LSTM", {"peepholes": True}), ("LSTM", {"input_forget": 1}),
    ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("GRU", {"clip": 0.3}), ("RNN", {}),
)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "attrs"), FULL)
def test_recurrent_in_full(op: str, attrs: dict[str, object], direction: str) -> None:
    """Weights and sequence lengths of run time, peepholes, clipping: like ONNX Runtime, which does not know the pass."""
    attrs = dict(attrs)
    d, hidden, gates = 2 if direction == "bidirectional" else 1, 4, GATES[op]
    rng = np.random.default_rng(0)
    arrays = {"x": (5, 3, 2), "w": (d, gates * hidden, 2), "r": (d, gates * hidden, hidden), "b": (d, 2 * gates * hidden),
              "h": (d, 3, hidden)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    given["lengths"] = np.array([2, 5, 3], np.int32)
    inputs = ["x", "w", "r", "b", "lengths", "h"]
    if attrs.pop("peepholes", False):
        given["p"] = rng.standard_normal((d, 3 * hidden)).astype(np.float32)
        inputs += ["", "p"]
    outputs = ["y", "yh", "yc"][:3 if op == "LSTM" else 2]
    node = helper.make_node(op, inputs, outputs, direction=direction, hidden_size=hidden, **attrs)
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()]
    made = helper.make_graph([node], "g", values, [helper.make_tensor_value_info(o, 1, None) for o in outputs])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)
    graph = decompose(import_model(model, Path(), {}, {}), SUPPORTED)
    assert op not in ops(graph)
    got = interpret(graph, given)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, want in zip(outputs, session.run(outputs, given), strict=True):
        np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-5, err_msg=name)


FUNCTIONS: dict[str, Callable[[Builder, str], str]] = {
    "Mish": lambda b, x: b.node("Mish", x),
    "HardSwish": lambda b, x: b.node("HardSwish", x),
    "Celu": lambda b, x: b.node("Celu", x, alpha=0.5),
    "ReduceLogSumExp": lambda b, x: b.node("ReduceLogSumExp", x, b.ints(1)),
    "MeanVarianceNormalization": lambda b, x: b.node("MeanVarianceNormalization", x, axes=(0, 2, 3)),
    "GroupNormalization": lambda b, x: b.node("GroupNormalization", x, b.weight(4), b.weight(4), num_groups=2),
    "LayerNormalization": lambda b, x: b.node("LayerNormalization", x, b.weight(5), b.weight(5)),
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions(op: str) -> None:
    b = Builder()
    x = b.input(2, 4, 5, 5)
    graph = b.graph(b.node("Add", FUNCTIONS[op](b, x), FUNCTIONS[op](b, x)))
    after = decompose(graph, SUPPORTED)
    assert op not in ops(after)
    assert all(n.sources[0] in ("n0", "n1", "n2") for n in after.nodes)
    assert_same(graph, after)
    assert_same(graph, run_passes(after, PASSES))


@pytest.mark.parametrize("axes", [(1, 0), (-1, 1), (0, -1), (2, 2)])
@pytest.mark.parametrize("back", [0, 1])
def test_scans_run_along_the_first_axis(axes: tuple[int, int], back: int) -> None:
    """Whatever axes the model scans along: the rounds of a plan move on by a fixed number of bytes."""
    inside = Builder()
    state, x = inside.input(1, 1, name="state"), inside.input(4, 5, name="x")
    out = inside.node("ReduceSum", x, out="sum")
    body = inside.graph(inside.node("Add", state, out), inside.node("Mul", x, out))
    shape = [4, 5]
    shape.insert(axes[0] % 3, 3)
    b = Builder()
    made = b.node("Scan", b.input(1, 1), b.input(*shape), out=("last", "all"), body=body, num_scan_inputs=1, captures=0,
                  scan_input_axes=axes[:1], scan_output_axes=axes[1:], scan_input_directions=(back,),
                  scan_output_directions=(back,))
    graph = b.graph(*made)
    after = decompose(graph, SUPPORTED)
    (scan,) = (n for n in after.nodes if n.op == "Scan")
    assert not any(name.endswith("_axes") for name in scan.attrs)
    assert_same(graph, after)
    assert_same(graph, run_passes(after, PASSES))


def test_leaves_supported_operators_and_those_without_a_function_alone() -> None:
    b = Builder()
    x = b.input(2, 4, 5, 5)
    graph = b.graph(b.node("Mish", b.node("GridSample", x, b.input(2, 3, 3, 2))))
    assert decompose(graph, SUPPORTED | {"Mish"}) is graph
