"""Small ONNX models made in place, and a run of ONNX Runtime beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from toolchain.graph.importers.onnx import import_model
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.graph.verify import verify

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
ELEM = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8,
        "int8": TensorProto.INT8, "int32": TensorProto.INT32, "float16": TensorProto.FLOAT16}


def value(name: str, shape: Sequence[int | str] | None = None, dtype: str = "float32") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEM[dtype], shape)


def make_model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int | str] | None], outputs: Sequence[str],
    params: Mapping[str, np.ndarray] | None = None, opset: int = 17, dtypes: Mapping[str, str] | None = None, **extra: Any,
) -> onnx.ModelProto:
    dtypes = dtypes or {}
    graph = helper.make_graph(
        list(nodes), "small", [value(n, s, dtypes.get(n, "float32")) for n, s in inputs.items()],
        [value(o, None, dtypes.get(o, "float32")) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (params or {}).items()])
    imports = [helper.make_opsetid("", opset), *extra.pop("opset_imports", [])]
    ir_version = min(onnx.IR_VERSION, 10) if opset < 23 else onnx.IR_VERSION
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **extra)


def imported(model: onnx.ModelProto, **options: Any) -> Graph:
    """`model` imported, and verified."""
    return verify(import_model(model, Path("/nonexistent"), options.pop("shapes", {}), options.pop("dims", {}), **options))


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(graph.types[name].shape).astype(graph.types[name].dtype) for name in graph.inputs}


def run_onnxruntime(model: onnx.ModelProto | Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs))))


def assert_like_onnxruntime(model: onnx.ModelProto, graph: Graph, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """float32 sums of a few dozen terms in another order: 1e-5 relative covers them."""
    inputs = random_inputs(graph)
    ours, theirs = interpret(graph, inputs), run_onnxruntime(model, inputs)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=atol)
