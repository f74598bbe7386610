"""What can take part in a measurement: the Contender protocol, and the rivals installed here.

A contender lives in a process of its own (`burst.py`), which makes it from its import path; so nothing here imports a rival
until it runs. Ours is made by a layer above (an import path like any other).

A rival is added by a class with `prepare`, `call` and `outputs`, and an entry in BASELINES.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolchain.core.errors import MissingToolError, UsageError


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a contender says of itself once it is ready: its version, and every setting that could matter, as shown."""

    version: str
    config: Mapping[str, str]


class Contender(Protocol):
    """Something that runs a network. Made without arguments in its own process; `call` is what is timed.

    `prepare` loads the model (a file, or an artifact's folder), binds inputs and outputs beforehand where its interface
    allows, and uses exactly `threads` threads. `call` runs the network once on the bound inputs, to the end. `outputs`
    returns what the last call computed, by output name.
    """

    def prepare(
        self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]
    ) -> Prepared: ...
    def call(self) -> object: ...
    def outputs(self) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender of a measurement. make: import path of its class ("package.module:Class"); options go to `prepare`.
    converted: it runs what another program made of the model, so its results are no reference, and wrong ones end it.
    original: the model it runs where it refuses `model`, a copy with static shapes."""

    name: str
    make: str
    model: Path
    options: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    converted: bool = False
    original: Path | None = None


class OnnxRuntime:
    """ONNX Runtime's CPU provider, all graph optimizations, inputs and outputs bound (IOBinding)."""

    def prepare(self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]) -> Prepared:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        self._names = [o.name for o in session.get_outputs()]
        binding = session.io_binding()
        self._inputs = {n: ort.OrtValue.ortvalue_from_numpy(np.asarray(a, order="C")) for n, a in inputs.items()}
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)                  # finds the outputs' shapes; later runs write in place
        self._outputs = list(binding.get_outputs())
        for name, value in zip(self._names, self._outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._session, self._binding = session, binding
        return Prepared(ort.__version__, {
            "threads": f"{threads}", "provider": "CPU", "optimization": "all", "execution": "sequential", "io": "bound",
        })

    def call(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> Mapping[str, np.ndarray]:
        return {n: v.numpy() for n, v in zip(self._names, self._outputs, strict=True)}


class OpenVino:
    """OpenVINO's CPU plugin with the latency hint, one stream; computes in f32 unless the option `precision` says otherwise.

    (Left to itself it computes fp32 models in bf16 on CPUs that have it, which would compare two precisions.)
    """

    def prepare(self, model: Path, inputs: Mapping[str, np.ndarray], threads: int, options: Mapping[str, str]) -> Prepared:
        import openvino

        precision = options.get("precision", "f32")
        core = openvino.Core()
        network = core.read_model(str(model))
        network.reshape({name: list(a.shape) for name, a in inputs.items()})
        compiled = core.compile_model(network, "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": precision,
        })
        request = compiled.create_infer_request()
        self._inputs = [np.asarray(a, order="C") for a in inputs.values()]
        for name, array in zip(inputs, self._inputs, strict=True):
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
        self._names = [_output_name(o) for o in network.outputs]
        self._request = request
        return Prepared(openvino.__version__.split("-")[0], {
            "threads": f"{compiled.get_property('INFERENCE_NUM_THREADS')}", "hint": "latency",
            "precision": _element(compiled.get_property("INFERENCE_PRECISION_HINT")), "streams": "1", "io": "bound",
        })

    def call(self) -> None:
        self._request.infer()

    def outputs(self) -> Mapping[str, np.ndarray]:
        return {n: np.array(self._request.get_output_tensor(i).data) for i, n in enumerate(self._names)}


def _output_name(output: Any) -> str:
    """The ONNX name of an OpenVINO output (it may know several; nodes' own names carry a ":0")."""
    names = sorted(output.get_names())
    return next((n for n in names if ":" not in n), names[0]) if names else str(output.index)


def _element(kind: Any) -> str:
    return str(kind.get_type_name()) if hasattr(kind, "get_type_name") else str(kind)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A rival that runs ONNX files. packages: what must be installed. converted: as in Entry."""

    packages: tuple[str, ...]
    make: str
    options: Mapping[str, str] = field(default_factory=dict)
    converted: bool = False


BASELINES: dict[str, Baseline] = {
    "onnxruntime": Baseline(("onnxruntime",), "toolchain.report.contenders:OnnxRuntime"),
    "openvino": Baseline(("openvino",), "toolchain.report.contenders:OpenVino"),
    "openvino-bf16": Baseline(("openvino",), "toolchain.report.contenders:OpenVino", {"precision": "bf16"}),
    "torch": Baseline(("torch", "onnx2torch"), "toolchain.report.converted:Torch", converted=True),
}


def is_installed(name: str) -> bool:
    """Whether the baseline of that name can take part here."""
    return name in BASELINES and not _absent(name)


def _absent(name: str) -> list[str]:
    return [package for package in BASELINES[name].packages if importlib.util.find_spec(package) is None]


def missing_baselines(names: Sequence[str]) -> dict[str, str]:
    """Why each of the baselines that cannot take part cannot. Raises UsageError for a name nobody knows."""
    why: dict[str, str] = {}
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"no baseline {name!r}", fix=f"the baselines are {', '.join(BASELINES)}")
        if absent := _absent(name):
            why[name] = f"not installed: pip install {' '.join(absent)}"
    return why


def baseline_entries(names: Sequence[str], model: Path) -> list[Entry]:
    """Entries of those baselines that are installed, in the order given."""
    missing = missing_baselines(names)
    found = ((name, BASELINES[name]) for name in names if name not in missing)
    return [Entry(name, b.make, model, b.options, converted=b.converted) for name, b in found]


def with_static_shapes(model: Path, shapes: Mapping[str, Sequence[int]], out: Path) -> Path:
    """`model` itself when its inputs' shapes are all known, else a copy at `out` with the given ones written into it.

    A rival that sees the shapes beforehand plans its memory and kernels for them, as ours does. A model with external data
    is left as it is (the copy would not find it).
    """
    import onnx

    proto = onnx.load(model, load_external_data=False)
    open_inputs = [i for i in proto.graph.input if i.name in shapes and _is_open(i)]
    if not open_inputs or any(p.data_location == onnx.TensorProto.EXTERNAL for p in proto.graph.initializer):
        return model
    for value in open_inputs:
        for dim, extent in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = int(extent)
    for value in (*proto.graph.output, *proto.graph.value_info):      # what was symbolic is inferred again
        value.type.tensor_type.ClearField("shape")
    onnx.save(proto, out)
    return out


def _is_open(value: Any) -> bool:
    return any(not d.HasField("dim_value") or d.dim_value < 1 for d in value.type.tensor_type.shape.dim)


def resolve(path: str) -> Callable[[], Contender]:
    """The class an import path names. Raises MissingToolError when the module cannot be imported."""
    module, _, name = path.partition(":")
    try:
        made: Callable[[], Contender] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MissingToolError(f"no contender {path}: {error}") from error
    return made


def version_of(package: str) -> str:
    """The installed version of a package, "" when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
