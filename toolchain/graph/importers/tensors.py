"""TensorProto -> NumPy array, distrusting every number: sizes are checked before anything is allocated or read.

External data is opened beneath the model's folder only: no absolute path, no "..", no symbolic or hard link on the way
(the weak points of nine CVEs in ONNX loaders, e.g. CVE-2022-25882, CVE-2024-27318, CVE-2024-5187).
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from onnx import SparseTensorProto, TensorProto, numpy_helper

from toolchain.core.dtype import SMALL, itemsize, to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.limits import Limits
from toolchain.graph.protos import dtype_of

MAX_RANK = 32
_TYPED_FIELD = {                    # where a tensor without raw_data keeps its elements
    "float32": "float_data", "float64": "double_data", "int64": "int64_data",
    "uint64": "uint64_data", "uint32": "uint64_data",
}


@dataclass
class TensorReader:
    """Reads the tensors of one model; counts their bytes against the limit."""

    folder: Path
    limits: Limits
    read_bytes: int = field(default=0, init=False)

    def array(self, proto: TensorProto, where: str) -> np.ndarray:
        """The tensor's elements. Raises ImportModelError: a bad type, size or place, or over the limit."""
        dtype = dtype_of(proto.data_type, where)
        shape = tuple(int(n) for n in proto.dims)
        if any(n < 0 for n in shape) or len(shape) > MAX_RANK:
            raise ImportModelError(f"declares the shape {list(shape)[:MAX_RANK]}", where=where)
        elements = math.prod(shape)                     # Python's integers do not overflow
        size_bytes = elements * itemsize(dtype)
        self._count(size_bytes, where)
        if proto.HasField("segment"):
            raise ImportModelError("is split in segments, which is not supported", where=where)
        if proto.data_location == TensorProto.EXTERNAL:
            if dtype in SMALL:
                raise ImportModelError(f"holds {dtype} as external data, which is not supported", where=where)
            return np.frombuffer(self._external(proto, size_bytes, where), _little(dtype)).reshape(shape)
        if dtype in SMALL:
            return _small(proto, dtype, elements, where)
        if proto.HasField("raw_data"):
            if len(proto.raw_data) != size_bytes:
                raise ImportModelError(f"holds {len(proto.raw_data)} bytes, its type needs {size_bytes}", where=where)
            return np.frombuffer(proto.raw_data, _little(dtype)).reshape(shape)
        stored = len(getattr(proto, _TYPED_FIELD.get(dtype, "int32_data")))
        if stored != elements:
            raise ImportModelError(f"holds {stored} elements, its shape {list(shape)} needs {elements}", where=where)
        return np.asarray(numpy_helper.to_array(proto), to_numpy(dtype))

    def sparse(self, proto: SparseTensorProto, where: str) -> np.ndarray:
        """The dense form of a sparse tensor."""
        values, indices = self.array(proto.values, where), self.array(proto.indices, where)
        shape = tuple(int(n) for n in proto.dims)
        if any(n < 0 for n in shape) or len(shape) > MAX_RANK:
            raise ImportModelError(f"declares the shape {list(shape)[:MAX_RANK]}", where=where)
        self._count(math.prod(shape) * values.dtype.itemsize, where)
        flat = np.zeros(math.prod(shape), values.dtype)
        if values.ndim != 1 or indices.ndim not in (1, 2) or len(indices) != len(values):
            raise ImportModelError("sparse tensor whose indices do not match its values", where=where)
        if indices.ndim == 2:
            if indices.shape[1] != len(shape) or (indices < 0).any() or (indices >= np.asarray(shape)).any():
                raise ImportModelError("sparse tensor with an index out of range", where=where)
            indices = np.ravel_multi_index(tuple(indices.T), shape) if len(values) else indices[:, 0]
        if len(indices) and (indices.min() < 0 or indices.max() >= flat.size):
            raise ImportModelError("sparse tensor with an index out of range", where=where)
        flat[indices] = values
        return flat.reshape(shape)

    def _count(self, size_bytes: int, where: str) -> None:
        self.read_bytes += size_bytes
        if self.read_bytes > self.limits.tensor_bytes:
            raise ImportModelError(f"has {size_bytes} bytes: the model's tensors need more than {self.limits.tensor_bytes}",
                                   where=where,
                                   fix="raise limits.model_size in the deployfile if the model is trusted")

    def _external(self, proto: TensorProto, size_bytes: int, where: str) -> bytes:
        facts = {e.key: e.value for e in proto.external_data}
        where = f"{where}, external data {facts.get('location', '')!r}"
        offset = _natural(facts.get("offset", "0"), "offset", where)
        length = _natural(facts.get("length", str(size_bytes)), "length", where)
        if length != size_bytes:
            raise ImportModelError(f"declares {length} bytes, its type needs {size_bytes}", where=where)
        with os.fdopen(open_beneath(self.folder, facts.get("location", ""), where), "rb") as file:
            held = os.fstat(file.fileno()).st_size
            if offset + length > held:
                raise ImportModelError(f"needs bytes {offset} to {offset + length}, the file has {held}", where=where)
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise ImportModelError("the file shrank while it was read", where=where)
        return data


def open_beneath(folder: Path, location: str, where: str) -> int:
    """A descriptor of the file at the relative path `location`, walked component by component without following links.

    Raises ImportModelError: the path leaves the folder, a link is on the way, or it is no plain file of its own.
    """
    parts = PurePosixPath(location).parts
    if not parts or "\0" in location or location.startswith("/") or ".." in parts or "\\" in location:
        raise ImportModelError("external data must lie in the model's folder, named by a relative path without '..'",
                               where=where, fix="put the data file beside the model, named there by its name alone")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            at, parent = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at), at
            os.close(parent)
        found = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except OSError as e:
        raise ImportModelError(f"cannot be opened: {e.strerror} (links are not followed)", where=where,
                               fix="put the data file beside the model, as a plain file") from None
    finally:
        os.close(at)
    facts = os.fstat(found)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(found)
        raise ImportModelError("is not a plain file with one name (hard links are refused)", where=where,
                               fix="copy the data file beside the model")
    return found


def _natural(text: str, what: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ImportModelError(f"{what} is not a size: {text[:40]!r}", where=where)
    return int(text)


def _small(proto: TensorProto, dtype: str, elements: int, where: str) -> np.ndarray:
    """Types of two and four bits are stored several to a byte, those of eight one to a byte (or to an int32)."""
    per_byte = 8 // int("".join(c for c in dtype.split("_")[0] if c.isdigit()))
    stored = len(proto.raw_data) if proto.HasField("raw_data") else len(proto.int32_data)
    if stored != -(-elements // per_byte):
        raise ImportModelError(f"holds {stored} bytes, its {elements} elements need {-(-elements // per_byte)}", where=where)
    return np.asarray(numpy_helper.to_array(proto), to_numpy(dtype))


def _little(dtype: str) -> np.dtype[np.generic]:
    found = to_numpy(dtype)
    return found if dtype == "bfloat16" else found.newbyteorder("<")
