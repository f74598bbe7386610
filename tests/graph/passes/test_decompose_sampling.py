"""DeformConv and RoiAlign as samples: against ONNX Runtime, which does not know the pass, and ONNX's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

import toolchain
from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.interpret import interpret
from toolchain.graph.passes import decompose
from toolchain.kernels.table import KERNELS


def model(arrays: dict[str, np.ndarray], constant: bool, **attrs: object) -> onnx.ModelProto:
    """One DeformConv; `constant`: weights and bias are the model's own."""
    names = [n if n in arrays else "" for n in ("x", "w", "offset", "b", "mask")]
    node = helper.make_node("DeformConv", names, ["y"], name="n", **attrs)
    kept = {"w", "b"} if constant else set()
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in arrays.items() if n not in kept]
    params = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items() if n in kept]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)], params)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], bool, dict[str, object]]:
    groups, parts = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)]))
    channels, made = groups * parts * draw(st.integers(1, 9)), groups * draw(st.integers(1, 5))
    kernel, strides, dilations = (tuple(draw(st.integers(1, most)) for _ in range(2)) for most in (3, 2, 2))
    pads = tuple(draw(st.integers(0, 1)) for _ in range(4))
    size = tuple(draw(st.integers(5, 8)) for _ in range(2))
    out = [(size[d] + pads[d] + pads[2 + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1 for d in range(2)]
    rng, n, taps = np.random.default_rng(draw(st.integers(0, 99))), draw(st.integers(1, 2)), kernel[0] * kernel[1]

    def some(*shape: int, low: float = -1) -> np.ndarray:
        return rng.uniform(low, 2, shape).astype(np.float32)
    arrays = {"x": some(n, channels, *size), "w": some(made, channels // groups, *kernel),
              "offset": some(n, 2 * taps * parts, *out, low=-2)}
    arrays |= {"b": some(made)} if draw(st.booleans()) else {}
    arrays |= {"mask": some(n, taps * parts, *out, low=0)} if draw(st.booleans()) else {}
    return arrays, draw(st.booleans()), {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads,
                                         "group": groups, "offset_group": parts}


@settings(max_examples=60)
@given(cases())
def test_like_onnx_runtime(case: tuple[dict[str, np.ndarray], bool, dict[str, object]]) -> None:
    arrays, constant, attrs = case
    made = model(arrays, constant, **attrs)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    given_ = {i.name: arrays[i.name] for i in session.get_inputs()}
    (want,) = session.run(None, given_)
    graph = decompose(import_model(made, Path(), {}, {}, KERNELS | {"DeformConv"}), KERNELS)
    assert "DeformSample" in [n.op for n in graph.nodes] and "DeformConv" not in [n.op for n in graph.nodes]
    np.testing.assert_allclose(interpret(graph, given_)["y"], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86"])
def test_like_the_reference(target: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(1, 36, 7, 9)), "w": rng.normal(size=(4, 18, 3, 3)),
              "offset": rng.uniform(-3, 3, (1, 36, 7, 9)), "b": rng.normal(size=4), "mask": rng.uniform(0, 1, (1, 18, 7, 9))}
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    made = model(arrays, True, kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2, offset_group=2)
    given_ = {n: a for n, a in arrays.items() if n not in ("w", "b")}
    (want,) = ReferenceEvaluator(made).run(None, given_)
    module = toolchain.compile(made, target, threads=1)
    np.testing.assert_allclose(module.run(given_)["y"], want, rtol=1e-4, atol=1e-4)


def test_refuses_other_than_images() -> None:
    arrays = {"x": np.zeros((1, 2, 3, 4, 5), np.float32), "w": np.zeros((1, 2, 1, 1, 1), np.float32),
              "offset": np.zeros((1, 3, 3, 4, 5), np.float32)}
    with pytest.raises(ImportModelError, match="two spatial dimensions"):
        decompose(import_model(model(arrays, True), Path(), {}, {}, KERNELS | {"DeformConv"}), KERNELS)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("constant", [False, True])
def test_roi_align_like_onnx_runtime(mode: str, constant: bool) -> None:
    """Regions inside, across the border, and outside; few enough constants to become part of the kernel."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 21, 9, 11)).astype(np.float32)
    regions = np.array([[1, 2, 8.5, 7], [-4, -3, 3, 20], [30, 30, 40, 40]], np.float32)
    node = helper.make_node("RoiAlign", ["x", "r", "i"], ["y"], output_height=3, output_width=2, sampling_ratio=2,
                            spatial_scale=0.75, mode=mode)
    rest = {"r": regions, "i": np.array([0, 1, 1])}
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in {"x": x, **({} if constant else rest)}.items()]
    params = [onnx.numpy_helper.from_array(a, n) for n, a in rest.items()] if constant else []
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)], params)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given_ = {"x": x, **({} if constant else rest)}
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, given_)
    for target in ("x86-64-v3", "x86"):
        np.testing.assert_allclose(toolchain.compile(made, target, threads=1).run(given_)["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 16, 37])
@pytest.mark.parametrize("attrs", [
    {}, {"mode": "cubic", "padding_mode": "reflection"}, {"mode": "nearest", "align_corners": 1}])
def test_grid_sample_of_many_channels_reads_rows(channels: int, attrs: dict[str, object]) -> None:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((2, channels, 6, 5)).astype(np.float32)
    grid = rng.uniform(-1.3, 1.3, (2, 4, 7, 2)).astype(np.float32)
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], name="n", **attrs)
    inputs = [helper.make_tensor_value_info(n, 1, a.shape) for n, a in (("x", x), ("grid", grid))]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    after = decompose(import_model(proto, Path(), {}, {}, KERNELS), KERNELS)
    assert ("GridSampleLast" in [n.op for n in after.nodes]) == (channels >= 16)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x, "grid": grid})
    np.testing.assert_allclose(interpret(after, {"x": x, "grid": grid})["y"], want, rtol=1e-4, atol=1e-4)
    with toolchain.compile(proto, threads=1) as module:
        np.testing.assert_allclose(module.run({"x": x, "grid": grid})["y"], want, rtol=1e-4, atol=1e-4)
