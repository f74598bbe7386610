"""The inputs an ONNX file declares, read without the onnx package and without the weights' bytes.

A protobuf message is a sequence of (field number << 3 | wire type, value); unknown fields are skipped by their length, so a
model of any size costs a few seeks. Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.initializer 5,
GraphProto.input 11, TensorProto.name 8, ValueInfoProto.name 1 and type 2, TypeProto.tensor_type 1, Tensor.shape 2,
TensorShapeProto.dim 1, Dimension.dim_value 1 and dim_param 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_MESSAGE_BYTES = 1 << 20         # of the small messages that are read whole


@dataclass(frozen=True, slots=True)
class Input:
    """A graph input: sizes are numbers, names of symbolic dimensions, or "" where unnamed. shape None: not even the rank."""

    name: str
    shape: tuple[int | str, ...] | None


def read_inputs(path: Path) -> tuple[Input, ...]:
    """The inputs of the model at `path` that are not weights; () when it does not read as ONNX."""
    if not path.is_file():                          # of a pipe, or a device, a read may never end
        return ()
    try:
        with path.open("rb") as file:
            end = path.stat().st_size
            for field, start, stop in _fields(file, 0, end):
                if field == 7:
                    return _graph_inputs(file, start, stop)
    except (ValueError, OSError, UnicodeDecodeError):
        pass
    return ()


def _graph_inputs(file: BinaryIO, start: int, stop: int) -> tuple[Input, ...]:
    inputs: list[Input] = []
    weights: set[str] = set()
    for field, at, end in _fields(file, start, stop):
        if field == 5:
            weights |= {_text(file, a, b) for f, a, b in _fields(file, at, end) if f == 8}
        elif field == 11:
            inputs.append(_value_info(file, at, end))
    return tuple(i for i in inputs if i.name not in weights)


def _value_info(file: BinaryIO, start: int, stop: int) -> Input:
    name, shape = "", None
    for field, at, end in _fields(file, start, stop):
        if field == 1:
            name = _text(file, at, end)
        elif field == 2:
            for _, tensor_at, tensor_end in (f for f in _fields(file, at, end) if f[0] == 1):
                for _, shape_at, shape_end in (f for f in _fields(file, tensor_at, tensor_end) if f[0] == 2):
                    shape = tuple(_dim(file, a, b) for f, a, b in _fields(file, shape_at, shape_end) if f == 1)
    return Input(name, shape)


def _dim(file: BinaryIO, start: int, stop: int) -> int | str:
    for field, at, end in _fields(file, start, stop):
        if field == 1:
            return at                   # a varint's value comes in place of its start
        if field == 2:
            return _text(file, at, end)
    return ""


def _text(file: BinaryIO, start: int, stop: int) -> str:
    if stop - start > MAX_MESSAGE_BYTES:
        raise ValueError("a name of more than 1 MB")
    file.seek(start)
    return file.read(stop - start).decode()


def _fields(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, stop) of each field of the message in [start, stop); for a varint (number, value, -1).

    Raises ValueError: not a protobuf message.
    """
    at = start
    while at < stop:
        file.seek(at)
        key, at = _varint(file, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(file, at)
            yield key >> 3, value, -1
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(file, at)
            if at + length > stop:
                raise ValueError("a field reaches beyond its message")
            yield key >> 3, at, at + length
            at += length
        else:
            raise ValueError(f"wire type {wire}")


def _varint(file: BinaryIO, at: int) -> tuple[int, int]:
    """The number at the file's place, and the offset after it."""
    value = 0
    for n in range(10):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends within a number")
        value |= (byte[0] & 127) << (7 * n)
        if byte[0] < 128:
            return value, at + n + 1
    raise ValueError("a number of more than ten bytes")
