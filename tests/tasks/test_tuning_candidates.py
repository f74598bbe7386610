"""Schedules that a search may choose: each computes the same, and what is wrong is found out."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolchain.core.errors import CodegenError
from toolchain.core.layout import Layout, TensorType
from toolchain.core.target import Target
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph, Node
from toolchain.targets.llvm.cpu import host_target
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.optimize import Workload as TuningWorkload
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.tuning.candidates import compile_candidate, space_of
from toolchain.tasks.tuning.trial_run import Workload, check, prepare

HOST = host_target(cores=2)
pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")


def network(op: str, shapes: list[tuple[int, ...]], weight: tuple[int, ...] = (), **attributes: object) -> onnx.ModelProto:
    """One operator, and a Relu. Its last input is a constant of shape `weight`, where there is one."""
    values = [helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, s) for n, s in enumerate(shapes)]
    w = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    names = [v.name for v in values] + (["w"] if weight else [])
    nodes = [helper.make_node(op, names, ["y"], **attributes), helper.make_node("Relu", ["y"], ["r"])]
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", values, [result], [numpy_helper.from_array(w, "w")] if weight else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


SAME = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
NETWORKS = {
    "matmul": network("MatMul", [(13, 24)], (24, 150)),
    "batched": network("MatMul", [(3, 7, 10), (3, 10, 40)]),
    "first": network("Conv", [(1, 3, 9, 11)], (24, 3, 3, 3), **SAME),
    "strided": network("Conv", [(1, 32, 12, 13)], (40, 32, 3, 3), strides=[2, 2], **SAME),
    "winograd": network("Conv", [(1, 32, 14, 14)], (32, 32, 3, 3), **SAME),
    "depthwise": network("Conv", [(1, 32, 9, 10)], (32, 1, 3, 3), group=32, **SAME),
    "transposed": network("ConvTranspose", [(1, 16, 5, 6)], (16, 17, 4, 4), strides=[2, 2], kernel_shape=[4, 4],
                          pads=[1, 1, 1, 1]),
    "softmax": network("Softmax", [(5, 3, 128)], axis=-1),
    "short softmax": network("Softmax", [(6, 100)], axis=-1),
    "columns": network("ReduceMax", [(9, 7, 160)], axes=[0], keepdims=0),
    "long mean": network("ReduceMean", [(2, 40_000)], axes=[1], keepdims=0),
    "elementwise": network("Mul", [(7, 384), (384,)]),
    "turned": network("Transpose", [(3, 40, 70)], perm=[0, 2, 1]),
}


def optimized(name: str, target: Target, folder: Path) -> Mapping[str, TuningWorkload]:
    onnx.save(NETWORKS[name], folder / "net.onnx")
    return optimize_graph(import_onnx(folder / "net.onnx"), target)[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_schedule_of_a_space_is_right(name, tmp_path):
    """Random points of every kernel that leaves a choice, on random inputs: the search can only choose among right ones."""
    tuned = 0
    for workload in optimized(name, HOST, tmp_path).values():
        _, facts = compile_workload(workload.body, HOST)
        if facts["sketch"] != "sketch":
            continue
        space = space_of(workload.body, HOST, facts["answers"])
        if space.size() == 1:
            continue
        tuned += 1
        run_on, rng = prepare(workload.body, (), 0), random.Random(1)
        drawn = {p for p in (space.default, *(space.sample(rng) for _ in range(3))) if not p.refused}
        failed = [p for p in sorted(drawn, key=str) if not _passes(workload.body, HOST, p, run_on)]
        assert len(failed) <= 1 and space.default not in failed, failed
    assert tuned


def test_blocked_columns_side_by_side_are_right():
    t = TensorType((2, 40, 6, 12), "float32", Layout.parse("NCHW8c"))
    body = Graph("body", (Node("Sigmoid", ("x",), ("y",), {}, "n"),), ("x",), ("y",), {"x": t, "y": t}, {})
    space = space_of(body, HOST, {"unroll": "1"})
    points = list(space.all())
    assert len({p.signature for p in points}) == 3 and all(_passes(body, HOST, p, prepare(body, (), 0)) for p in points)


def _passes(body: Graph, target: object, point: object, run_on: Workload) -> bool:
    """Whether it can be built; that it is right is asserted."""
    try:
        kernel = compile_candidate(body, target, point.answers)       # type: ignore[attr-defined,arg-type]
    except CodegenError:
        return False
    check(kernel, run_on)
    return True
