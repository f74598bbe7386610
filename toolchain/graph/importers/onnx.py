"""ONNX -> Graph: one forward sweep that converts, types and folds each node as it comes.

    read (limits) -> bind input shapes -> for each node: inline functions, convert to the newest opset, infer, fold

Everything static: input shapes are bound first, so each node's types are known when the sweep reaches it, and whatever
depends on constants and shapes alone is computed there and then. `import_in_child` (child.py) is how a build calls this.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.coverage import refuse, unsupported, unsupported_in_model
from toolchain.graph.importers.forms import check_strings
from toolchain.graph.importers.inputs import bind_inputs
from toolchain.graph.importers.limits import DEFAULT, Limits
from toolchain.graph.importers.names import Model
from toolchain.graph.importers.sweep import read_graph
from toolchain.graph.importers.tensors import TensorReader
from toolchain.graph.ir import Graph
from toolchain.graph.protos import OPSET

OLDEST_OPSET = 1
METADATA_BYTES = 1 << 20            # of all names and texts together that are kept; a list of classes is some 100 kB

__all__ = ["import_model", "import_onnx", "metadata_of", "read_model", "unsupported"]


def import_onnx(
    path: Path | str, shapes: Mapping[str, tuple[int, ...]] | None = None, dims: Mapping[str, int] | None = None,
    supported: Collection[str] | None = None, limits: Limits = DEFAULT,
) -> Graph:
    """Read the model at `path` as a Graph of static types, operators in the newest opset's form, constants folded.

    shapes: whole shapes by input name; dims: numbers by symbolic dimension. supported: the operators that have kernels
    (None: do not ask). Runs in this process: `import_in_child` is the safe way for models one did not make.
    Raises ImportModelError: not a model, over a limit, shapes left open, operators nobody supports (all at once), ...
    """
    path = Path(path)
    return import_model(read_model(path, limits), path.parent, shapes or {}, dims or {}, supported, limits, where=str(path))


def read_model(path: Path, limits: Limits) -> onnx.ModelProto:
    """Parse a model file without its external data. Raises ImportModelError when it is none."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > limits.protobuf_bytes:
                raise ImportModelError(f"the file has {size_bytes} bytes, more than the {limits.protobuf_bytes} allowed",
                                       where=str(path))
            data = file.read(limits.protobuf_bytes + 1)
    except OSError as e:
        raise ImportModelError(f"cannot be read: {e.strerror}", where=str(path)) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ImportModelError("is not an ONNX model: the file is truncated, damaged, nested too deeply, or something else",
                               where=str(path), fix="download or export it again") from None
    if not model.graph.node and not model.graph.output:
        raise ImportModelError("is not an ONNX model: it holds no graph", where=str(path), fix="download or export it again")
    return model


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """What the model says of itself (`metadata_props`: class names, a character set, ...), in order up to METADATA_BYTES."""
    found: dict[str, str] = {}
    left = METADATA_BYTES
    for entry in model.metadata_props:
        left -= len(entry.key.encode()) + len(entry.value.encode())
        if left < 0:
            break
        found[entry.key] = entry.value
    return found


def import_model(
    model: onnx.ModelProto, folder: Path, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int],
    supported: Collection[str] | None = None, limits: Limits = DEFAULT, where: str = "model",
    constants: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """`import_onnx` for a model already parsed; external data is looked for beneath `folder`.

    constants: inputs to import as constants of that value, such as an axis or a shape that is the same for every run.
    """
    check_strings(model)
    opset = _opset(model.opset_import, where)
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    shared = Model(TensorReader(folder, limits), limits, supported, functions)
    if supported is not None:
        refuse(unsupported_in_model(model, supported, limits, constants or {}), where)
    proto = model.graph
    weights = {t.name for t in proto.initializer} | {t.values.name for t in proto.sparse_initializer}
    constants = constants or {}
    types = bind_inputs([i for i in proto.input if i.name not in weights and i.name not in constants], shapes, dims)
    graph = read_graph(shared, proto, types, opset, constants)
    if supported is not None:
        refuse(unsupported(graph, supported), where)
    return graph


def _opset(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> int:
    """The opset of ONNX's own operators. Raises ImportModelError when it is outside what this importer converts."""
    found = [int(o.version) for o in imports if o.domain in ("", "ai.onnx")]
    opset = found[0] if found else OPSET            # a model of functions only never asks
    if not OLDEST_OPSET <= opset <= OPSET:
        raise ImportModelError(
            f"uses ONNX opset {opset}; opsets {OLDEST_OPSET} to {OPSET} are supported", where=where,
            fix="install a newer onnx package" if opset > OPSET else "export the model again, or use onnx.version_converter")
    return opset
