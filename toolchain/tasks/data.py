"""What a network is verified and measured with: inputs, and expected outputs where somebody recorded them.

For each input the first of: what the deployfile says of it (`data.inputs`), a recorded set (`data.folder`, or the
test_data_set_0 beside the model), seeded random numbers. Equal declarations give equal numbers on every machine.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from toolchain.build.task import Input
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import UsageError
from toolchain.core.layout import TensorType
from toolchain.core.suggest import did_you_mean
from toolchain.graph.ir import Graph
from toolchain.tasks.image import image_input
from toolchain.tasks.plan import RECORDED

MAX_FILE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Sample:
    """One set of inputs by name, the outputs somebody recorded for them, and where they come from, for the report."""

    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    source: str


def samples(params: Mapping[str, Any], inputs: Mapping[str, Input], graph: Graph) -> list[Sample]:
    """The sets to run a network with; `graph` is the imported one, whose inputs and outputs are named as in the model.

    params: "data" (`Data` of the deployfile), "verify" (its `samples` and `seed` hold for what is random), "buckets"
    (whether the graph is one of several shape buckets). Needs: the files that `recorded_files` and plan.py name.
    Raises UsageError: a file that is not what it should be, or of another shape.
    """
    data, verify = params["data"], params.get("verify") or {}
    _check_names(data["inputs"], graph.inputs, "input")
    _check_names(data["expected"], graph.own_outputs, "output")
    recorded = recorded_files(inputs)
    if params.get("buckets") and data["folder"] is None and not _fits(recorded, graph):
        recorded = {}                                       # found beside the model, but of another shape bucket
    fixed = {name: _declared(name, data["inputs"][name], inputs, graph.types[name]) for name in data["inputs"]}
    if recorded:
        fixed = {**_match(recorded, "input", graph.inputs, graph), **fixed}
    expected = _match(recorded, "output", graph.own_outputs, graph) if recorded and not data["inputs"] else {}
    for name in data["expected"]:
        array = read_array(inputs[f"expected {name}"].path, name)
        expected[name] = _fitting(array, _type_like(array, name, graph), f"expected {name!r}")
    missing = [name for name in graph.inputs if name not in fixed]
    seed, count = verify.get("seed", 0), verify.get("samples", 1) if missing else 1
    source = ", ".join(filter(None, (
        RECORDED if recorded else "", "declared" if data["inputs"] else "", f"random, seed {seed}" if missing else "")))
    drawn = [{name: random_values(graph.types[name], name, seed=seed + n) for name in missing} for n in range(count)]
    return [Sample({**values, **fixed}, expected, source) for values in drawn]


def _check_names(named: Mapping[str, Any], known: Sequence[str], kind: str) -> None:
    for name in named:
        if name not in known:
            raise UsageError(f"the model has no {kind} '{name}'", fix=did_you_mean(name, known, noun=f"its {kind}s are"))


def recorded_files(inputs: Mapping[str, Input]) -> dict[str, Path]:
    """input_N.pb and output_N.pb by name: from the declared folder, or as a recipe wrote them beside its model."""
    found = {name.removeprefix("data "): i.path for name, i in inputs.items() if name.startswith("data ")}
    if not found and "source" in inputs:
        prefix = f"{RECORDED}/"
        found = {name.removeprefix(prefix): p for name, p in inputs["source"].files.items() if name.startswith(prefix)}
    return found


def _match(files: Mapping[str, Path], kind: str, names: Sequence[str], graph: Graph) -> dict[str, np.ndarray]:
    """KIND_N.pb by the tensor's own name, else by N among the model's inputs (those that are no weights) or outputs."""
    found: dict[str, np.ndarray] = {}
    for n in range(len(files)):
        if (path := files.get(f"{kind}_{n}.pb")) is None:
            break
        tensor = _read_tensor(path)
        name = tensor.name if tensor.name in names else names[n] if n < len(names) else ""
        if name:
            array = _tensor_array(tensor, path)
            found[name] = _fitting(array, _type_like(array, name, graph), f"{path.name} ({name!r})")
    return found


def _type_like(array: np.ndarray, name: str, graph: Graph) -> TensorType:
    """The type of a value, dimensions that depend on data as the array has them."""
    t, extents = graph.types[name], graph.extents.get(name)
    if extents is None or array.ndim != len(t.shape):
        return t
    return TensorType.plain([min(m, n) if e else n for n, m, e in zip(t.shape, array.shape, extents, strict=True)], t.dtype)


def _fits(files: Mapping[str, Path], graph: Graph) -> bool:
    """Whether the recorded inputs have the shapes of the graph's."""
    try:
        _match(files, "input", graph.inputs, graph)
    except UsageError:
        return False
    return True


def _declared(name: str, values: Mapping[str, Any], inputs: Mapping[str, Input], t: TensorType) -> np.ndarray:
    """The values of one input as `InputData` of the deployfile says."""
    if values["image"] is not None:
        return image_input(inputs[f"input {name}"].path, values["image"], t.shape, t.dtype)
    if values["file"] is not None:
        return _fitting(read_array(inputs[f"input {name}"].path, name), t, f"input {name!r}")
    if values["random"] is not None:
        r = values["random"]
        return random_values(t, name, seed=r["seed"], low=r["low"], high=r["high"])
    return np.full(t.shape, values["constant"]).astype(to_numpy(t.dtype))


def random_values(t: TensorType, name: str, *, seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform in [low, high); whole numbers from low to high for integers, which are often indices.

    From the raw PCG64 stream, whose values NumPy guarantees: the top 24 bits of each word are exact in float32. Inputs of
    different names get different numbers.
    """
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(t.shape)) >> np.uint64(40)
    unit = (words.astype(np.float64) * 2.0**-24).reshape(t.shape)
    if to_numpy(t.dtype).kind in "iub":
        return np.floor(low + unit * (math.floor(high) - math.ceil(low) + 1)).astype(to_numpy(t.dtype))
    return (low + unit * (high - low)).astype(to_numpy(t.dtype))


def _fitting(array: np.ndarray, t: TensorType, what: str) -> np.ndarray:
    """The array, if its type is that one. Raises UsageError."""
    if array.dtype != to_numpy(t.dtype) or array.shape != t.shape:
        raise UsageError(f"{what} is {array.dtype.name}{list(array.shape)}, but the model was built for {t}",
                         fix="give values of that type, change `shapes` and `dims` of the model, "
                             "or give a shape bucket `data` of its own")
    return array


def read_array(path: Path, name: str) -> np.ndarray:
    """A .npy file, the array of that name in a .npz file, or a .pb file (ONNX TensorProto). Nothing is ever unpickled.

    Raises UsageError: no such file, none of these, damaged, or larger than MAX_FILE_BYTES (packed or not).
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"more than {MAX_FILE_BYTES >> 30} GiB", where=str(path))
        if path.suffix == ".pb":
            return _tensor_array(_read_tensor(path), path)
        with path.open("rb") as file:
            return _numpy_array(file, name, path)
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path)) from None
    except MemoryError:
        raise UsageError("declares more values than fit into memory", where=str(path)) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        # the last two: zipfile's, of a packing it does not know and of an encrypted member
        raise UsageError(f"not a .npy, .npz or .pb file: {error}", where=str(path)) from None


def _numpy_array(file: BinaryIO, name: str, path: Path) -> np.ndarray:
    """What `read_array` reads of a .npy or .npz file."""
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if name not in loaded.files:
            raise UsageError(f"no array '{name}' in it", where=str(path), fix=did_you_mean(name, loaded.files))
        if sum(i.file_size for i in loaded.zip.infolist() if i.filename in (name, f"{name}.npy")) > MAX_FILE_BYTES:
            raise UsageError(f"array '{name}' unpacks to more than {MAX_FILE_BYTES >> 30} GiB", where=str(path))
        return np.asarray(loaded[name])


def _read_tensor(path: Path) -> Any:
    """The TensorProto in a file. onnx is imported here: most deployments have no such file, and it takes long."""
    import onnx
    from google.protobuf.message import DecodeError

    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UsageError("not an ONNX tensor", where=str(path)) from None
    return tensor


def _tensor_array(tensor: Any, path: Path) -> np.ndarray:
    from onnx import numpy_helper

    if tensor.data_location:
        raise UsageError("its values lie in another file", where=str(path), fix="store them inside it")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"not a tensor this project holds: {error}", where=str(path)) from None
