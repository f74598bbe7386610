"""Every pass, alone and in its place, keeps what a graph computes: random graphs, recurrent ones, and real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from layout_fakes import conv_options
from pass_graphs import Builder, assert_same, random_graphs

from toolchain.graph import passes
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph
from toolchain.graph.passes import FUSION, PASSES, GraphPass, check_memory, plan_memory, planning_layouts, run_passes
from toolchain.graph.verify import verify

SINGLE = dict.fromkeys((*PASSES, *FUSION, planning_layouts(conv_options)))
IDEMPOTENT = ("eliminate_dead_code", "fold_constants", "eliminate_common_subexpressions")
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("one", SINGLE, ids=lambda p: p.__name__)
def test_one_pass(one: GraphPass) -> None:
    @EXAMPLES
    @given(random_graphs())
    def keeps(graph: Graph) -> None:
        after = run_passes(graph, (one,))
        assert_same(graph, after)
        if one.__name__ in IDEMPOTENT:
            assert one(after) is after

    keeps()


@settings(EXAMPLES, max_examples=60)
@given(random_graphs(max_nodes=24))
def test_all_passes_and_the_memory_plan(graph: Graph) -> None:
    after = run_passes(graph, (*PASSES, planning_layouts(conv_options), *FUSION))
    assert_same(graph, after)
    check_memory(after, plan_memory(after))


def light_model(name: str) -> Graph:
    """A network from the onnx package, its constant stand-in weights replaced by random ones that keep values in range."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    graph = import_onnx(folder / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    params = {}
    for value, array in graph.params.items():
        if array.dtype != np.float32 or array.size < 2:
            continue
        fan_in = int(np.prod(array.shape[1:])) if array.ndim > 1 else 1
        if graph.readers(value)[0].op == "Gemm" and array.ndim == 2:
            fan_in = array.shape[1]
        params[value] = rng.normal(0, np.sqrt(2 / fan_in), array.shape).astype(np.float32) if array.ndim > 1 else (
            rng.uniform(0.5, 1.5, array.shape).astype(np.float32))
    return graph.edit({}, params=params)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "inception_v2"])
def test_real_models(name: str) -> None:
    graph = light_model(name)
    after = run_passes(graph, (*PASSES, planning_layouts(conv_options), *FUSION))
    assert len(after.nodes) < 0.8 * len(graph.nodes)
    assert_same(graph, after, tolerance=1e-5)
    check_memory(after, plan_memory(after))


def test_densenet_folds_every_normalization() -> None:
    """Too slow to interpret here; its structure says enough: 121 BatchNormalizations, 59 of them behind a Conv."""
    graph = light_model("densenet121")
    after = run_passes(graph, (*PASSES, planning_layouts(conv_options), *FUSION))
    verify(after)
    inside = [tuple(m.op for m in n.attrs["body"].nodes) for n in after.nodes if n.op == "Fused"]
    assert inside.count(("Conv", "Relu")) == 59
    assert not any("BatchNormalization" in found for found in inside)
    check_memory(after, plan_memory(after))


def test_the_package_lists_each_pass_once_under_its_name() -> None:
    names = [p.__name__ for p in SINGLE]
    assert len(set(names)) == len(names)
    assert all(callable(getattr(passes, name)) for name in names)


def test_passes_reach_the_bodies_of_control_flow() -> None:
    b = Builder()
    x, h = b.input(3, 2, 4), b.input(2, 4)
    inner = Builder()
    state, element = inner.input(2, 4, name="h"), inner.input(2, 4, name="p")
    total = inner.node("Add", state, inner.node("Mul", element, inner.const([1.0])))
    body = inner.graph(inner.node("Identity", inner.node("Tanh", total)), total)
    out = b.node("Scan", h, x, out=("last", "all"), body=body, num_scan_inputs=1, captures=0)
    graph = b.graph(*out)
    after = run_passes(graph, PASSES)
    (scan,) = after.nodes
    assert "Mul" not in [n.op for n in scan.attrs["body"].nodes]
    assert_same(graph, after)
    fused = run_passes(after, FUSION)
    assert_same(graph, fused)
    check_memory(fused, plan_memory(fused))
