"""One model per class of published attack on ONNX loaders, and random damage: each refused, with a clear error."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import LIGHT, make_model, value

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.child import import_in_child
from toolchain.graph.importers.limits import MB, Limits
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.importers.tensors import TensorReader
from toolchain.graph.verify import verify

node = helper.make_node


def _external(location: str, dims: tuple[int, ...] = (4,), **facts: str) -> onnx.ModelProto:
    model = make_model([node("Add", ["x", "w"], ["y"])], {"x": (4,)}, ["y"])
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **facts}.items():
        tensor.external_data.add(key=key, value=text)
    model.graph.initializer.append(tensor)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with its data, and a secret beside it."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "sub" / "w.bin").write_bytes(np.arange(4, dtype="float32").tobytes())
    (tmp_path / "secret").write_bytes(b"s" * 16)
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "sublink").symlink_to(tmp_path)
    os.link(tmp_path / "secret", made / "hardlink")
    os.mkfifo(made / "fifo")
    return made


def _write(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_external_data_beneath_the_folder_is_read(folder: Path):
    graph = import_onnx(_write(_external("sub/w.bin"), folder))
    np.testing.assert_array_equal(graph.params["w"], [0, 1, 2, 3])


@pytest.mark.parametrize("location, facts, message", [
    ("../secret", {}, "relative path without '..'"),
    ("sub/../../secret", {}, "relative path without '..'"),
    ("/etc/passwd", {}, "relative path without '..'"),
    ("", {}, "relative path without '..'"),
    ("..\\secret", {}, "relative path without '..'"),
    ("link", {}, "links are not followed"),
    ("sublink/secret", {}, "links are not followed"),
    ("hardlink", {}, "hard links are refused"),
    ("fifo", {}, "not a plain file"),
    ("sub", {}, "not a plain file"),
    ("absent.bin", {}, "cannot be opened"),
    ("sub/w.bin", {"offset": "4"}, "needs bytes 4 to 20, the file has 16"),
    ("sub/w.bin", {"offset": "-4"}, "offset is not a size"),
    ("sub/w.bin", {"offset": "1e3"}, "offset is not a size"),
    ("sub/w.bin", {"length": "18446744073709551616"}, "length is not a size"),
    ("sub/w.bin", {"length": "999999999999"}, "declares 999999999999 bytes, its type needs 16"),
])
def test_external_data_elsewhere_is_refused(folder: Path, location: str, facts: dict[str, str], message: str):
    with pytest.raises(ImportModelError) as e:
        import_onnx(_write(_external(location, **facts), folder))
    assert message in str(e.value) and e.value.exit_code == 2


@pytest.mark.parametrize("dims, message", [
    ((1 << 40, 1 << 40), "tensors need more than"),             # the product overflows 64 bits
    ((1 << 62, 4), "tensors need more than"),                   # ... to exactly 0
    ((-1, 4), "declares the shape [-1, 4]"),
    ((1,) * 100, "declares the shape"),
    ((1 << 20,), "holds 4 bytes, its type needs 4194304"),
])
def test_declared_sizes_are_not_believed(dims: tuple[int, ...], message: str, tmp_path: Path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"abcd")
    with pytest.raises(ImportModelError) as e:
        TensorReader(tmp_path, Limits()).array(tensor, "initializer 'w'")
    assert message in e.value.what


@pytest.mark.parametrize("field, count, message", [
    ("float_data", 3, "holds 3 elements, its shape [4] needs 4"), ("float_data", 0, "holds 0 elements")])
def test_element_lists_are_counted(field: str, count: int, message: str, tmp_path: Path):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    getattr(tensor, field).extend([1.0] * count)
    with pytest.raises(ImportModelError, match=message.replace("[", r"\[").replace("]", r"\]")):
        TensorReader(tmp_path, Limits()).array(tensor, "w")


@pytest.mark.parametrize("indices, dims", [([5], [4]), ([-1], [4]), ([[0, 9]], [2, 2]), ([[0]], [2, 2]), ([0, 1], [4])])
def test_sparse_indices_are_checked(indices: list, dims: list[int], tmp_path: Path):
    sparse = onnx.SparseTensorProto(dims=dims)
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, "float32"), "s"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.asarray(indices, "int64")))
    with pytest.raises(ImportModelError, match="sparse tensor"):
        TensorReader(tmp_path, Limits()).sparse(sparse, "s")


def _grown(elements: int) -> onnx.ModelProto:
    """A 150-byte model that asks for as much memory as it likes."""
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("Exp", ["c"], ["e"]), node("ReduceSum", ["e"], ["r"]),
             node("Add", ["x", "r"], ["y"])]
    return make_model(nodes, {"x": (1,)}, ["y"], {"s": np.asarray([elements], "int64")})


def _nested(depth: int) -> onnx.ModelProto:
    graph = helper.make_graph([node("Relu", ["x"], ["r"])], "leaf", [], [value("r", (2,))])
    for _ in range(depth):
        graph = helper.make_graph([node("If", ["c"], ["r"], then_branch=graph, else_branch=graph)], "g", [],
                                  [value("r", (2,))]) if graph.name == "leaf" else helper.make_graph(
            [node("If", ["c"], ["r"], then_branch=graph, else_branch=helper.make_graph(
                [node("Relu", ["x"], ["r"])], "leaf", [], [value("r", (2,))]))], "g", [], [value("r", (2,))])
    return make_model(list(graph.node), {"x": (2,), "c": ()}, ["r"], dtypes={"c": "bool"})


@pytest.mark.parametrize("model, limits, message", [
    (_grown(1 << 40), Limits(), "would be float32[1099511627776]"),
    (_grown(1 << 33), Limits(), "constants computed while importing need more than"),
    (_nested(20), Limits(), "nested deeper than 16"),
    (make_model([node("Relu", ["x"], ["y"])] + [node("Relu", ["x"], [f"y{n}"]) for n in range(50)], {"x": (2,)}, ["y"]),
     Limits(nodes=50), "more than 50 nodes"),
    (make_model([node("Relu", ["x"], ["y"])], {"x": (1 << 40, 1 << 20)}, ["y"]), Limits(), "would be float32"),
    (make_model([node("Relu", ["x"], ["y"])], {"x": (2,)}, ["y"]), Limits(protobuf_bytes=40), "more than the 40 allowed"),
    (make_model([node("Expand", ["x", "s"], ["y"])], {"x": (1,)}, ["y"], {"s": np.asarray([-5], "int64")}), Limits(), ""),
    (make_model([node("Conv", ["x", "w"], ["y"], strides=[0])], {"x": (1, 1, 4)}, ["y"],
                {"w": np.ones((1, 1, 2), "float32")}), Limits(), ""),
    (make_model([node("Tile", ["c", "s"], ["y"])], {"x": (1,)}, ["y"],
                {"c": np.ones(1000, "float32"), "s": np.asarray([1 << 60], "int64")}), Limits(), ""),
])
def test_exhaustion_is_refused(model: onnx.ModelProto, limits: Limits, message: str, tmp_path: Path):
    with pytest.raises(ImportModelError) as e:
        import_onnx(_write(model, tmp_path), limits=limits)
    assert message in e.value.what


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "absent", "folder"])
def test_what_is_no_model_is_refused(damage: str, tmp_path: Path):
    path = tmp_path / "m.onnx"
    whole = (LIGHT / "light_squeezenet.onnx").read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[:len(whole) // 2])
        case "text":
            path.write_text("version https://git-lfs.github.com/spec/v1\n")
        case "folder":
            path.mkdir()
    with pytest.raises(ImportModelError) as e:
        import_onnx(path)
    assert e.value.where == str(path)


def test_deep_protobuf_is_refused_not_overflowed(tmp_path: Path):
    """Protobuf's own bound on nesting: 5,000 messages, each within the last."""
    inner = b""
    for _ in range(5000):
        inner = b"\x32" + _varint(len(inner)) + inner           # AttributeProto.g / GraphProto nested without end
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(inner)) + inner)
    with pytest.raises(ImportModelError):
        import_onnx(tmp_path / "m.onnx")


def _varint(n: int) -> bytes:
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def test_random_damage_is_refused_or_harmless(tmp_path: Path):
    """Bytes of a real model changed at random: a graph that verifies, or an ImportModelError; never anything else."""
    rng = random.Random(7)
    whole = (LIGHT / "light_bvlc_alexnet.onnx").read_bytes()
    outcomes = {"graph": 0, "refused": 0}
    limits = Limits(tensor_bytes=64 * MB, folded_bytes=64 * MB, value_bytes=1024 * MB)
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(len(data))
            data[at] = rng.choice((rng.randrange(256), data[at] ^ (1 << rng.randrange(8)), 255, 0))
        (tmp_path / "m.onnx").write_bytes(data)
        try:
            verify(import_onnx(tmp_path / "m.onnx", limits=limits))
            outcomes["graph"] += 1
        except ImportModelError as e:
            assert str(e)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10          # else the damage tests nothing


# --- the child process

def test_child_gives_what_the_parent_would_have_read(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    meta = import_in_child(_write(_external("sub/w.bin"), folder), {}, {}, out)
    assert meta["inputs"] == {"x": "float32[4]"} and meta["nodes"] == 1 and meta["params_bytes"] == 16
    assert sorted(p.name for p in out.iterdir()) == ["graph.json", "params.bin"]


def test_child_passes_our_errors_on(folder: Path, tmp_path: Path):
    with pytest.raises(ImportModelError, match="relative path without") as e:
        import_in_child(_write(_external("../secret"), folder), {}, {}, tmp_path)
    assert e.value.where.startswith("initializer 'w'") and e.value.exit_code == 2


def test_child_reports_unsupported_operators(tmp_path: Path):
    path = _write(make_model([node("Relu", ["x"], ["y"])], {"x": (2,)}, ["y"]), tmp_path)
    with pytest.raises(ImportModelError, match=r"Relu \(1x: Relu_0\)"):
        import_in_child(path, {}, {}, tmp_path, supported={"Add"})


def test_child_out_of_memory(tmp_path: Path):
    limits = Limits(memory_bytes=1200 * MB)
    with pytest.raises(ImportModelError, match=r"memory_bytes|tried to allocate|Unable to allocate") as e:
        import_in_child(_write(_grown(1 << 29), tmp_path), {}, {}, tmp_path, limits=limits)
    assert e.value.exit_code == 2


def test_child_out_of_time(tmp_path: Path):
    with pytest.raises(ImportModelError, match=r"took longer than 0.05 s \(limit wall_s\)"):
        import_in_child(_write(_grown(1 << 20), tmp_path), {}, {}, tmp_path, limits=Limits(wall_s=0.05))


def test_child_out_of_processor_time(tmp_path: Path):
    """Folding Einsum over a large index space: small arrays, a long computation."""
    big = [node("ConstantOfShape", ["s"], ["c"]), node("MatMul", ["c", "c"], ["d"]), node("MatMul", ["d", "c"], ["e"]),
           node("ReduceSum", ["e"], ["r"]), node("Add", ["x", "r"], ["y"])]
    path = _write(make_model(big, {"x": (1, 1)}, ["y"], {"s": np.asarray([16_000, 16_000], "int64")}), tmp_path)
    with pytest.raises(ImportModelError, match=r"more than 2 s of processor time \(limit cpu_s\)"):
        import_in_child(path, {}, {}, tmp_path, limits=Limits(cpu_s=2, folded_bytes=1 << 40))
