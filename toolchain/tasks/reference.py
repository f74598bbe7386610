"""Step `reference`: what a network's outputs should be, computed once per model and data.

It needs no artifact, so it runs while kernels are compiled, and builds of one model for several targets share it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.build.task import Input, Result
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import MissingToolError, VerificationError
from toolchain.graph.interpret import interpret
from toolchain.graph.ir import Graph
from toolchain.graph.serialize import load_files
from toolchain.graph.widen import wide, widened
from toolchain.tasks.data import Sample, samples
from toolchain.tasks.steps import model_path


def reference(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Path) -> Result:
    """Compute the outputs of every sample. Meta: "labels", who answered per sample ("" where nobody was asked).

    Files: output N of sample K, its bytes row-major, under "K.N"; `computed` reads them. Raises as `compute` does.
    """
    graph = load_files(inputs["graph"].files)
    labels, shapes = [], []
    for k, sample in enumerate(samples(params, inputs, graph)):
        label, outputs = compute(graph, sample, params["verify"]["against"], inputs)
        for n, array in enumerate(outputs.values()):
            (out / f"{k}.{n}").write_bytes(np.ascontiguousarray(array).tobytes())
        labels.append(label)
        shapes.append([[name, array.dtype.name, list(array.shape)] for name, array in outputs.items()])
    return Result("reference", {"labels": labels, "outputs": shapes})


def computed(made: Input, k: int) -> tuple[str, dict[str, np.ndarray]]:
    """What `reference` found for sample `k`: who answered, and the outputs by name."""
    arrays = {name: np.frombuffer(made.files[f"{k}.{n}"].read_bytes(), to_numpy(dtype)).reshape(shape)
              for n, (name, dtype, shape) in enumerate(made.meta["outputs"][k])}
    return made.meta["labels"][k], arrays


def compute(
    graph: Graph, sample: Sample, against: str, inputs: Mapping[str, Input],
) -> tuple[str, Mapping[str, np.ndarray]]:
    """(who, outputs): onnxruntime where it is installed and can run the model, else the interpreter.

    against: "auto", "onnxruntime" or "interpreter". With "auto" recorded outputs are enough where there is no onnxruntime:
    ("", {}) then. Raises MissingToolError: onnxruntime is asked for and not installed; VerificationError: it is asked for
    and cannot run the model.
    """
    installed = importlib.util.find_spec("onnxruntime") is not None
    if against == "onnxruntime" and not installed:
        raise MissingToolError("onnxruntime is not installed", where="verify.against",
                               fix="pip install onnxruntime, or write `verify: {against: interpreter}`")
    if against != "interpreter" and installed:
        try:
            return _onnxruntime(model_path(inputs), graph, sample)
        except Exception as error:                          # it cannot run every model that we can
            if against == "onnxruntime":
                raise VerificationError(f"onnxruntime cannot run the model: {error}"[:2000]) from error
            print(f"onnxruntime cannot run the model, the interpreter takes its place: {error}")
    if against == "interpreter" or not sample.expected:
        return "the interpreter", graph.results(interpret(graph, sample.inputs))
    return "", {}


def exact(graph: Graph, sample: Sample) -> Mapping[str, np.ndarray]:
    """The outputs in double precision, by the interpreter: what decides between two that differ in single precision."""
    return graph.results(interpret(widened(graph), {name: wide(array) for name, array in sample.inputs.items()}))


def _onnxruntime(model: Path, graph: Graph, sample: Sample) -> tuple[str, dict[str, np.ndarray]]:
    import onnxruntime  # optional

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = list(graph.own_outputs)
    outputs = session.run(names, dict(sample.inputs))
    return f"onnxruntime {onnxruntime.__version__}", dict(zip(names, outputs, strict=True))
