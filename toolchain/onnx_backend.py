"""The ONNX backend interface over compiled code: `onnx.backend.base.Backend` for the CPU this runs on.

    rep = toolchain.onnx_backend.prepare(model)
    (y,) = rep.run([x])

Shapes are static here, and ONNX's interface gives them only when it runs: a model is compiled for the shapes (and for the
values of inputs that decide shapes) of the first run, and again when they change. Kernels are the artifact's, loaded into
this process; equal ones are compiled once. What is not supported raises a ToolchainError that names operator and reason.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from toolchain.core.errors import ImportModelError
from toolchain.core.target import Target
from toolchain.graph.importers.build_time import build_time_inputs
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.ir import Graph
from toolchain.graph.passes.plan_memory import plan_memory
from toolchain.graph.protos import dtype_of
from toolchain.targets.backend import Kernel
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.in_process import LoadedPlan
from toolchain.targets.llvm.load import LoadedKernel, load
from toolchain.tasks.assemble import assemble, weights_segment, workspaces
from toolchain.tasks.compile import compile_workload
from toolchain.tasks.optimize import optimize_graph
from toolchain.tasks.steps import supported_operators

KERNELS_KEPT = 512              # compiled kernels a process remembers, the least recently used leave
MODELS_KEPT = 8                 # shapes a prepared model remembers


class Prepared(BackendRep):
    """A model ready to run; compiled when the first inputs tell its shapes."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.model, self.folder = model, folder
        weights = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in weights)
        self.deciding = build_time_inputs(model)
        self._compiled: OrderedDict[Any, Compiled] = OrderedDict()

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs for these inputs (a list in the model's order, a mapping by name, or one array)."""
        given = self._by_name(inputs)
        constants = {name: given[name] for name in self.deciding if name in given}
        key = (tuple((n, a.shape, a.dtype.name) for n, a in given.items()),
               tuple((n, a.tobytes()) for n, a in constants.items()))
        if key not in self._compiled:
            self._compiled[key] = compile_model(self.model, self.folder, given, constants)
            if len(self._compiled) > MODELS_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        outputs = self._compiled[key](given)
        names = [o.name for o in self.model.graph.output]
        return namedtupledict("Outputs", names)(*(outputs[n] for n in names))     # type: ignore[no-any-return]

    def _by_name(self, inputs: Any) -> dict[str, np.ndarray]:
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        else:
            values = list(inputs) if isinstance(inputs, Sequence) else [inputs]
            if len(values) > len(self.inputs):
                raise ImportModelError(f"takes {len(self.inputs)} inputs, given {len(values)}", where="model")
            given = dict(zip(self.inputs, values))
        for name, value in given.items():
            if not isinstance(value, np.ndarray | np.generic):
                raise ImportModelError(f"is a {type(value).__name__}; only tensors are supported", where=f"input {name!r}")
        return {name: np.asarray(value) for name, value in given.items()}


class Compiled:
    """A model for one set of shapes: its plan on loaded kernels."""

    def __init__(self, graph: Graph, plan: LoadedPlan) -> None:
        self.graph, self.plan = graph, plan

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = self.plan([given[name] for name in self.graph.inputs])
        return dict(zip((v.name for v in self.plan.plan.outputs), made, strict=True))

    @property
    def is_constant(self) -> bool:
        """Whether importing computed everything: nothing is left to run."""
        return not self.plan.kernels


def compile_model(
    model: onnx.ModelProto, folder: Path, given: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray],
) -> Compiled:
    """Import, optimize, compile the kernels that are new, place: for the shapes of `given`, with `constants` built in.

    Raises ToolchainError: what is not supported.
    """
    known = {i.name for i in model.graph.input}
    if unknown := [name for name in given if name not in known]:
        raise ImportModelError(f"has no input {unknown[0]!r}", where="model")
    shapes = {name: a.shape for name, a in given.items() if name not in constants}
    graph = import_model(model, folder, shapes, {}, supported_operators(), constants=constants)
    for name in graph.inputs:
        if given[name].dtype.name != graph.types[name].dtype:
            raise ImportModelError(f"is {given[name].dtype}, the model takes {graph.types[name].dtype}",
                                   where=f"input {name!r}")
    target = _target()
    graph, workloads = optimize_graph(graph, target)
    kernels: dict[str, Kernel] = {}
    loaded: dict[str, LoadedKernel] = {}
    for key, workload in workloads.items():
        ready = _KERNELS.get(key) or _KERNELS.setdefault(key, load(compile_workload(workload.body, target)[0]))
        _KERNELS.move_to_end(key)
        kernels[key], loaded[ready.kernel.symbol] = ready.kernel, ready
    while len(_KERNELS) > KERNELS_KEPT:
        _KERNELS.popitem(last=False)
    memory = plan_memory(graph, workspaces(kernels))
    plan = assemble("model", graph, memory, kernels)
    return Compiled(graph, LoadedPlan(plan, loaded, weights_segment(graph, memory)))


_KERNELS: OrderedDict[str, LoadedKernel] = OrderedDict()


@functools.cache
def _target() -> Target:
    return host_target(cores=1)


class ToolchainBackend(Backend):
    """What `onnx.backend.test.BackendTest` takes."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every input and output is a tensor of a type that is supported."""
        try:
            _check_values(model)
        except ImportModelError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """The model, ready to be compiled for what `run` is given. Raises ImportModelError: not for us, and why."""
        if not cls.supports_device(device):
            raise ImportModelError(f"there is no device {device!r}", fix="use CPU")
        _check_values(model)
        return Prepared(model, Path(kwargs.get("folder", ".")))

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any,
    ) -> tuple[Any, ...]:
        """One operator of the newest opset (or of `opset_version`)."""
        opset = int(kwargs.pop("opset_version", onnx.defs.onnx_opset_version()))
        names = [n for n in node.input if n]
        arrays = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs))
        values = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype),
                                                     np.asarray(a).shape) for n, a in arrays.items()]
        results = [onnx.ValueInfoProto(name=n) for n in node.output if n]
        graph = onnx.helper.make_graph([node], "node", values, results)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return Prepared(model, Path()).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.split(":")[0] == "CPU" and _target().kind == "x86"


def _check_values(model: onnx.ModelProto) -> None:
    """Raises ImportModelError for the first input or output that is not a tensor of a type we hold."""
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for v in values:
            where = f"{what} {v.name!r}"
            kind = v.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                raise ImportModelError(f"is a {kind.removesuffix('_type')}; only tensors are supported", where=where)
            if kind == "tensor_type":
                dtype_of(v.type.tensor_type.elem_type, where)


prepare = ToolchainBackend.prepare
run_model = ToolchainBackend.run_model
run_node = ToolchainBackend.run_node
is_compatible = ToolchainBackend.is_compatible
supports_device = ToolchainBackend.supports_device

__all__ = ["Prepared", "ToolchainBackend", "compile_model", "is_compatible", "prepare", "run_model", "run_node",
           "supports_device"]
