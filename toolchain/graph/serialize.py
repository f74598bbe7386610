"""A graph as a folder: `graph.json` (nodes, types, where each parameter lies) and `params.bin` (their bytes).

params.bin holds raw little-endian arrays in C order, each at a multiple of 64 bytes; loading maps the file, read-only.
An array that repeats one element (stride 0, as folded ConstantOfShape) is stored as that element. The bytes are
deterministic: equal graphs give equal files. `to_json` and `from_json` put everything in the JSON instead, for kernel
workloads and small bodies.
"""

from __future__ import annotations

import base64
import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.core.digest import canonical_json
from toolchain.core.dtype import to_numpy
from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.ir import Graph, Node

ALIGN_BYTES = 64
VERSION = 1
GRAPH_FILE, PARAMS_FILE = "graph.json", "params.bin"

Json = dict[str, Any]
Put = Callable[[np.ndarray], Json]
Get = Callable[[Mapping[str, Any]], np.ndarray]


def save(graph: Graph, folder: Path) -> None:
    """Write `graph` below `folder`, which exists. Bodies' parameters go to the same params.bin."""
    at = 0
    with (folder / PARAMS_FILE).open("wb") as file:
        def put(array: np.ndarray) -> Json:
            nonlocal at
            file.write(b"\0" * (-at % ALIGN_BYTES))
            at += -at % ALIGN_BYTES
            stored = _stored(array)
            file.write(stored.view("uint8").data)
            entry = {**_header(array), "offset": at}
            at += stored.nbytes
            return entry
        data = {"version": VERSION, "graph": _graph_json(graph, put)}
    (folder / GRAPH_FILE).write_text(canonical_json(data), encoding="utf-8")


def load(folder: Path) -> Graph:
    """The graph saved below `folder`; its parameters are read-only views of the mapped file."""
    return load_files({name: folder / name for name in (GRAPH_FILE, PARAMS_FILE)})


def load_files(files: Mapping[str, Path]) -> Graph:
    """`load` for a graph whose two files lie anywhere (a content-addressed store), by their names."""
    data = json.loads(files[GRAPH_FILE].read_text(encoding="utf-8"))
    if data.get("version") != VERSION:
        raise InternalError(f"{files[GRAPH_FILE]}: graph format {data.get('version')}, this is {VERSION}")
    params = files[PARAMS_FILE]
    with params.open("rb") as file:
        size_bytes = params.stat().st_size
        raw: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_bytes else b""

    def get(entry: Mapping[str, Any]) -> np.ndarray:
        return _restore(entry, raw, entry["offset"])
    return _graph_from(data["graph"], get)


def to_json(graph: Graph) -> Json:
    """`graph` as plain JSON data, the parameters inline: for bodies whose parameters are small."""
    def put(array: np.ndarray) -> Json:
        return {**_header(array), "data": base64.b64encode(_stored(array).tobytes()).decode()}
    return _graph_json(graph, put)


def from_json(data: Mapping[str, Any]) -> Graph:
    """The inverse of `to_json`."""
    return _graph_from(data, lambda entry: _restore(entry, base64.b64decode(entry["data"]), 0))


def _is_splat(array: np.ndarray) -> bool:
    return array.size > 1 and not any(s for s, n in zip(array.strides, array.shape) if n > 1)


def _stored(array: np.ndarray) -> np.ndarray:
    """The elements to write: all in C order, or one when all are the same one."""
    if _is_splat(array):
        array = array[(slice(0, 1),) * array.ndim]
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1)


def _header(array: np.ndarray) -> Json:
    return {"dtype": array.dtype.name, "shape": list(array.shape), **({"splat": True} if _is_splat(array) else {})}


def _restore(entry: Mapping[str, Any], raw: Any, offset: int) -> np.ndarray:
    dtype, shape = to_numpy(entry["dtype"]), tuple(entry["shape"])
    splat = entry.get("splat", False)
    count = 1 if splat else int(np.prod(shape, dtype=object))
    if not count:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(raw, dtype, count, offset)
    return np.broadcast_to(flat.reshape(()), shape) if splat else flat.reshape(shape)


def _graph_json(graph: Graph, put: Put) -> Json:
    return {
        "name": graph.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "types": [[name, type_to_json(t)] for name, t in graph.types.items()],
        "params": [[name, put(array)] for name, array in graph.params.items()],
        "nodes": [_node_json(n, put) for n in graph.nodes],
        **({"extents": {name: list(extents) for name, extents in graph.extents.items()}} if graph.extents else {}),
    }


def _graph_from(data: Mapping[str, Any], get: Get) -> Graph:
    return Graph(
        data["name"],
        tuple(_node_from(n, get) for n in data["nodes"]),
        tuple(data["inputs"]),
        tuple(data["outputs"]),
        {name: type_from_json(t) for name, t in data["types"]},
        {name: get(entry) for name, entry in data["params"]},
        {name: tuple(extents) for name, extents in data.get("extents", {}).items()},
    )


def _node_json(node: Node, put: Put) -> Json:
    data: Json = {"op": node.op, "name": node.name, "inputs": list(node.inputs), "outputs": list(node.outputs)}
    if node.attrs:
        data["attrs"] = {name: _attr_json(value, put) for name, value in sorted(node.attrs.items())}
    if node.sources:
        data["sources"] = list(node.sources)
    return data


def _node_from(data: Mapping[str, Any], get: Get) -> Node:
    attrs = {name: _attr_from(value, get) for name, value in data.get("attrs", {}).items()}
    sources = tuple(data.get("sources", ()))
    return Node(data["op"], tuple(data["inputs"]), tuple(data["outputs"]), attrs, data["name"], sources)


def _attr_json(value: Any, put: Put) -> Any:
    """Numbers, strings and booleans stand for themselves; lists for tuples; objects of one key for the rest."""
    match value:
        case Graph():
            return {"graph": _graph_json(value, put)}
        case np.ndarray():
            return {"tensor": put(value)}
        case TensorType():
            return {"type": type_to_json(value)}
        case tuple() | list():
            return [_attr_json(v, put) for v in value]
        case bool() | int() | float() | str() | None:
            return value
        case np.generic():
            return value.item()
    raise InternalError(f"attribute value {value!r} is no plain data")


def _attr_from(value: Any, get: Get) -> Any:
    match value:
        case {"graph": data}:
            return _graph_from(data, get)
        case {"tensor": entry}:
            return get(entry)
        case {"type": data}:
            return type_from_json(data)
        case list():
            return tuple(_attr_from(v, get) for v in value)
    return value


def type_to_json(t: TensorType) -> list[Any]:
    """[dtype, shape], and the layout when it is not the plain one."""
    plain = [t.dtype, list(t.shape)]
    if t.layout == Layout.row_major(len(t.shape)):
        return plain
    return [*plain, [t.layout.axes, [list(d) for d in t.layout.dims], [list(h) for h in t.layout.halo]]]


def type_from_json(data: Any) -> TensorType:
    dtype, shape, *layout = data
    if not layout:
        return TensorType.plain(shape, dtype)
    axes, dims, halo = layout[0]
    return TensorType(tuple(shape), dtype, Layout(axes, tuple((d, b) for d, b in dims), tuple((a, b) for a, b in halo)))
