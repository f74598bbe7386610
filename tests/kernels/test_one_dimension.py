"""Convolutions in one dimension: those of speech models, whose windows are long and whose rows are all there is to share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from running import HOST

from toolchain.graph.importers.onnx import import_model
from toolchain.onnx_backend import compile_model
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.optimize import optimize_graph

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")

CASES = {
    "a Fourier transform, frames a prime number": ("Conv", (1, 1, 160 * 100 + 400), (402, 1, 400), {"strides": [160]}),
    "a long window of a prime number of taps": ("Conv", (1, 2, 900), (40, 2, 401), {"strides": [7], "pads": [200, 200]}),
    "channel blocks, columns shared": ("Conv", (1, 32, 307), (16, 32, 5), {"pads": [2, 2], "dilations": [1]}),
    "depthwise": ("Conv", (1, 16, 307), (16, 1, 9), {"pads": [4, 4], "group": 16}),
    "transposed, one group of channels": ("ConvTranspose", (1, 16, 77), (16, 16, 4), {"strides": [2], "pads": [1, 1]}),
    "transposed, outputs a prime number": ("ConvTranspose", (2, 24, 50), (24, 20, 5), {"strides": [3]}),
}


@pytest.mark.parametrize("name", CASES)
def test_one_dimension(name: str) -> None:
    """Each has the schedule made for it, none gives way to a plainer one, and they agree with ONNX Runtime (sums of up to
    800 products)."""
    op, shape, weight, attrs = CASES[name]
    random = np.random.default_rng(0)
    given = {"x": random.standard_normal(shape, np.float32)}
    arrays = {"w": random.standard_normal(weight, np.float32) / np.float32(np.sqrt(np.prod(weight[1:]))),
              "b": random.standard_normal(weight[0 if op == "Conv" else 1], np.float32)}
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w", "b"], ["y"], kernel_shape=[weight[-1]], **attrs)], "one",
        [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for target in (replace(HOST, cores=1), replace(HOST, cores=16)):
        _, workloads = optimize_graph(import_model(model, Path(), {}, {}), target)
        for workload in workloads.values():
            _, facts = compile_workload(workload.body, target)
            assert facts["sketch"] == "sketch" and not facts["refused"], facts["refused"]
    rival = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = compile_model(model, Path(), given, {})(given)["y"]
    np.testing.assert_allclose(ours, rival.run(None, given)[0], rtol=0, atol=1e-4)
