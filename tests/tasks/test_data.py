"""Inputs and expected outputs: recorded, declared, drawn; and what is wrong with files, in the user's words."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from toolchain.build.deployfile import Data, Image, InputData, Random
from toolchain.build.task import Input
from toolchain.core.errors import UsageError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph
from toolchain.tasks.data import random_values, read_array, samples

FIRST = (0.8018812537, 0.8451448083, 0.9561458230)         # 3 words of PCG64([0, crc32(b"x")]), top 24 bits
GRAPH = Graph("net", (), ("x", "ids"), ("y",), {
    "x": TensorType.plain((2, 3)), "ids": TensorType.plain((4,), "int64"), "y": TensorType.plain((2, 3)),
})


def params(data: Data, **verify: int) -> dict:
    return {"data": asdict(data), "verify": {"samples": 1, "seed": 0, **verify}}


def file_input(path: Path) -> Input:
    return Input("file", {}, {path.name: path})


def tensor(path: Path, array: np.ndarray, name: str = "") -> Input:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    return file_input(path)


def test_undeclared_inputs_are_drawn_and_stay_the_same():
    (sample,) = samples(params(Data()), {}, GRAPH)
    assert sample.inputs["x"].dtype == np.float32 and ((sample.inputs["x"] >= 0) & (sample.inputs["x"] < 1)).all()
    assert set(sample.inputs["ids"]) <= {0, 1} and sample.source == "random, seed 0" and not sample.expected
    # the raw PCG64 stream is guaranteed by NumPy: these numbers are the same on every machine
    np.testing.assert_allclose(random_values(TensorType.plain((3,)), "x"), FIRST, rtol=1e-7)


def test_more_samples_are_other_numbers():
    first, second = samples(params(Data(), samples=2, seed=5), {}, GRAPH)
    (again, _) = samples(params(Data(), samples=2, seed=5), {}, GRAPH)
    assert not np.array_equal(first.inputs["x"], second.inputs["x"])
    np.testing.assert_array_equal(first.inputs["x"], again.inputs["x"])


def test_recorded_tensors_match_by_name_then_by_number(tmp_path):
    x, ids, y = np.ones((2, 3), np.float32), np.arange(4), np.zeros((2, 3), np.float32)
    named = {"data input_0.pb": tensor(tmp_path / "input_0.pb", ids, "ids"),
             "data input_1.pb": tensor(tmp_path / "input_1.pb", x, "x"),
             "data output_0.pb": tensor(tmp_path / "output_0.pb", y, "who_knows")}
    (sample,) = samples(params(Data()), named, GRAPH)
    np.testing.assert_array_equal(sample.inputs["x"], x)
    np.testing.assert_array_equal(sample.expected["y"], y)
    assert sample.source == "test_data_set_0"
    numbered = {"source": Input("model", {}, {
        "model.onnx": tmp_path / "none", "test_data_set_0/input_0.pb": tensor(tmp_path / "a", x).path,
        "test_data_set_0/input_1.pb": tensor(tmp_path / "b", ids).path})}
    (sample,) = samples(params(Data()), numbered, GRAPH)
    np.testing.assert_array_equal(sample.inputs["ids"], ids)


def test_what_the_deployfile_says_wins_over_what_is_recorded(tmp_path):
    recorded = {"data input_0.pb": tensor(tmp_path / "input_0.pb", np.ones((2, 3), np.float32)),
                "data output_0.pb": tensor(tmp_path / "output_0.pb", np.zeros((2, 3), np.float32))}
    declared = Data(inputs={"x": InputData(constant=0.5)})
    (sample,) = samples(params(declared), recorded, GRAPH)
    assert (sample.inputs["x"] == 0.5).all()
    assert not sample.expected, "what was recorded belongs to other inputs"


def test_files_of_every_kind(tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 3), 2, np.float32))
    np.savez(tmp_path / "all.npz", ids=np.arange(4), other=np.zeros(1))
    data = Data(inputs={"x": InputData(file="x.npy"), "ids": InputData(file="all.npz")}, expected={"y": "x.npy"})
    inputs = {"input x": file_input(tmp_path / "x.npy"), "input ids": file_input(tmp_path / "all.npz"),
              "expected y": file_input(tmp_path / "x.npy")}
    (sample,) = samples(params(data, samples=9), inputs, GRAPH)
    assert (sample.inputs["x"] == 2).all() and list(sample.inputs["ids"]) == [0, 1, 2, 3]
    assert (sample.expected["y"] == 2).all()
    assert sample.source == "declared"


def test_ranges():
    ranges = {"x": Random(low=-3, high=-1, seed=4), "ids": Random(low=5, high=7)}
    data = Data(inputs={name: InputData(random=r) for name, r in ranges.items()})
    (sample,) = samples(params(data), {}, GRAPH)
    assert ((sample.inputs["x"] >= -3) & (sample.inputs["x"] < -1)).all()
    assert set(sample.inputs["ids"]) <= {5, 6, 7}


@pytest.mark.parametrize(("array", "what"), [
    (np.zeros((3, 2), np.float32), r"input 'x' is float32\[3, 2\], but the model was built for float32\[2, 3\]"),
    (np.zeros((2, 3)), r"input 'x' is float64\[2, 3\]"),
])
def test_values_of_another_type_are_refused(array, what, tmp_path):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UsageError, match=what):
        samples(params(Data(inputs={"x": InputData(file="x.npy")})), {"input x": file_input(tmp_path / "x.npy")}, GRAPH)


@pytest.mark.parametrize(("name", "content", "what"), [
    ("x.npy", b"no", "not a .npy, .npz or .pb file"),
    ("x.pb", b"\xff\xff", "not an ONNX tensor"),
    ("x.npz", None, "no array 'x' in it"),
])
def test_files_that_are_not_what_they_should_be(name, content, what, tmp_path):
    if content is None:
        np.savez(tmp_path / name, z=np.zeros(1))
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=what):
        read_array(tmp_path / name, "x")


def test_a_tensor_that_points_to_another_file_is_refused(tmp_path):
    outside = onnx.TensorProto(name="x", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "x.pb").write_bytes(outside.SerializeToString())
    with pytest.raises(UsageError, match="its values lie in another file"):
        read_array(tmp_path / "x.pb", "x")


def header(*shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return out.getvalue()


def zipped(content, *, declared=None, flip=False):
    """A .npz file of one array `x`; declared: the size of it that the directory says; flip: one bit is wrong."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("x.npy", content)
        if declared is not None:
            file.infolist()[0].file_size = declared
    data = bytearray(out.getvalue())
    data[data.index(content) + len(content) - 1] ^= flip
    return bytes(data)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.npy", header(1 << 44), "declares more values than fit into memory"),
    ("x.npy", header(1 << 62, 1 << 62), "not a .npy, .npz or .pb file"),
    ("x.npy", header(-5), "not a .npy, .npz or .pb file"),
    ("x.npz", b"PK\x03\x04 and no more", "not a .npy, .npz or .pb file"),
    ("x.npz", zipped(header(2) + bytes(8), flip=True), "not a .npy, .npz or .pb file: Bad CRC-32"),
    ("x.npz", zipped(header(2) + bytes(8), declared=5 << 30), "array 'x' unpacks to more than 4 GiB"),
    ("x.npz", zipped(header(1 << 44)), "declares more values than fit into memory"),
], ids=["huge", "overflow", "negative", "no zip", "flipped", "bomb", "huge in a zip"])
def test_arrays_that_are_damaged_or_mean_harm(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_array(tmp_path / name, "x")


def test_pickles_are_never_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError):
        read_array(tmp_path / "x.npy", "x")


@pytest.mark.parametrize("data", [Data(inputs={"xx": InputData(constant=0)}), Data(expected={"z": "x.npy"})])
def test_names_the_model_does_not_have(data):
    with pytest.raises(UsageError, match=r"the model has no (input|output) "):
        samples(params(data), {}, GRAPH)


def test_an_image_is_an_input(tmp_path):
    pytest.importorskip("PIL.Image").fromarray(np.full((4, 6, 3), 255, np.uint8)).save(tmp_path / "white.png")
    graph = Graph("net", (), ("x",), (), {"x": TensorType.plain((1, 3, 2, 3))})
    data = Data(inputs={"x": InputData(image=Image(file="white.png", mean=(0.5,), std=(0.5,)))})
    (sample,) = samples(params(data), {"input x": file_input(tmp_path / "white.png")}, graph)
    np.testing.assert_array_equal(sample.inputs["x"], np.ones((1, 3, 2, 3), np.float32))
