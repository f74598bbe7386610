"""The weights of several shape buckets in one file: every bucket finds its own bytes, and equal ones are there once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.build.task import Input
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.ir import Graph
from toolchain.graph.passes.memory_plan import ALIGN_BYTES, aligned
from toolchain.graph.passes.plan_memory import plan_memory, with_weights_at
from toolchain.graph.serialize import save
from toolchain.targets.presets import PRESETS
from toolchain.tasks.assemble import weights_segment
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.steps import pack_weights, supported_operators


def network() -> onnx.ModelProto:
    """A convolution that wide images get in Winograd's form (other weights), a dense layer, a Loop with a weight inside."""
    r = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(r.standard_normal(shape).astype(np.float32), name)

    node, info = helper.make_node, helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["going_in"], ["going"]), node("Mul", ["s_in", "inner"], ["s"])], "body",
        [info("i", TensorProto.INT64, []), info("going_in", TensorProto.BOOL, []), info("s_in", TensorProto.FLOAT, [1, 8])],
        [info("going", TensorProto.BOOL, []), info("s", TensorProto.FLOAT, [1, 8])], [weight("inner", 1, 8)])
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]), node("Flatten", ["g"], ["f"]), node("MatMul", ["f", "dense"], ["d"]),
        node("Loop", ["three", "yes", "d"], ["y"], body=body),
    ]
    constants = [numpy_helper.from_array(np.array(3), "three"), numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "net", [info("x", TensorProto.FLOAT, [1, 16, "n", "n"])],
                              [info("y", TensorProto.FLOAT, [1, 8])], [weight("w", 32, 16, 3, 3), weight("dense", 32, 8),
                                                                       *constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def optimized(size: int) -> Graph:
    graph = import_model(network(), Path(), {"x": (1, 16, size, size)}, {}, supported_operators())
    return optimize_graph(graph, PRESETS["x86-64-v3"])[0]


def packed(folder: Path, *graphs: Graph) -> tuple[bytes, list[list[tuple[int, int]]]]:
    inputs = {}
    for n, graph in enumerate(graphs):
        (place := folder / f"graph{n}").mkdir(parents=True)
        save(graph, place)
        inputs[f"graph {n}"] = Input("graph", {}, {p.name: p for p in place.iterdir()})
    (out := folder / "out").mkdir()
    result = pack_weights({}, inputs, out)
    data = (out / "weights").read_bytes()
    assert len(data) == result.meta["size_bytes"]
    return data, result.meta["places"]


@pytest.mark.parametrize("sizes", [(8,), (8, 9), (6, 8, 40)])
def test_every_bucket_finds_its_weights_and_equal_ones_are_there_once(tmp_path, sizes):
    graphs = [optimized(size) for size in sizes]
    data, places = packed(tmp_path, *graphs)
    contents = set()
    for graph, moved in zip(graphs, places, strict=True):
        memory = plan_memory(graph)
        at = dict(moved)
        for offset, array in weights_segment(graph, memory):
            raw = array.tobytes()
            assert at[offset] % ALIGN_BYTES == 0 and data[at[offset]:at[offset] + len(raw)] == raw
            contents.add(raw)
        placed = with_weights_at(memory, at, len(data))
        assert placed.weights_bytes == len(data)
        assert [w.offset for w in placed.weights] == [at[w.offset] for w in memory.weights]
        for name, slot in memory.slots.items():
            moved_slot = placed.slots[name]
            assert moved_slot.offset == at[slot.offset] if slot.segment == "weights" else moved_slot == slot
    assert len(data) == sum(aligned(len(raw)) for raw in contents)


def test_buckets_that_pack_alike_cost_nothing_more(tmp_path):
    one, _ = packed(tmp_path / "one", optimized(8))
    two, _ = packed(tmp_path / "two", optimized(8), optimized(4))
    three, _ = packed(tmp_path / "three", optimized(8), optimized(4), optimized(40))
    assert two == one, "4 and 8 need the same weights"
    assert three[:len(one)] == one and len(three) - len(one) == 32 * 16 * 36 * 4, "new is Winograd's form of one weight"
