"""Graphs as folders and as JSON: what is loaded is what was saved, byte for byte."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_models import LIGHT

from toolchain.core.dtype import DTYPES, to_numpy
from toolchain.core.errors import InternalError
from toolchain.core.layout import Layout, TensorType
from toolchain.graph.importers.onnx import import_onnx
from toolchain.graph.ir import Graph, Node, array_type
from toolchain.graph.serialize import from_json, load, save, to_json
from toolchain.graph.text import to_text

names = st.text(max_size=8)
scalars = st.one_of(st.integers(-2**63, 2**63 - 1), st.floats(width=32), st.booleans(), names)
arrays = st.sampled_from([d for d in DTYPES if d != "bfloat16"]).flatmap(
    lambda d: hnp.arrays(to_numpy(d), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
layouts = st.sampled_from([
    Layout.row_major(4), Layout.parse("NCHW4c+h1"), Layout.parse("OIHW4i4o"), Layout.parse("NHWC", "NCHW")])


@st.composite
def graphs(draw: st.DrawFn, depth: int = 1) -> Graph:
    """Any graph the format can hold; it need not mean anything."""
    params = draw(st.dictionaries(names, arrays, max_size=3))
    types = {n: array_type(a) for n, a in params.items()}
    others = [n for n in draw(st.lists(names, max_size=3)) if n not in types]
    types |= {n: TensorType((1, 4, 2, 3), "float32", draw(layouts)) for n in others}
    attrs = st.dictionaries(names, st.one_of(scalars, arrays, st.lists(scalars, max_size=3).map(tuple),
                                             *([graphs(depth - 1)] if depth else [])), max_size=3)
    some = st.lists(names, max_size=3).map(tuple)
    nodes = tuple(Node(draw(names), draw(some), draw(some), draw(attrs), draw(names), draw(some))
                  for _ in range(draw(st.integers(0, 3))))
    return Graph(draw(names), nodes, draw(some), draw(some), types, params)


def same(a: Graph, b: Graph) -> bool:
    """Equal in everything, arrays bit by bit."""
    return _plain(a) == _plain(b)


def _plain(value: object) -> object:
    match value:
        case Graph():
            return [value.name, value.inputs, value.outputs, list(value.types.items()), [_plain(n) for n in value.nodes],
                    [(n, _plain(a)) for n, a in value.params.items()]]
        case Node():
            return [value.op, value.inputs, value.outputs, value.name, value.sources,
                    sorted((k, repr(type(v)), _plain(v)) for k, v in value.attrs.items())]
        case np.ndarray():
            return repr((value.dtype.name, value.shape, value.tobytes()))
        case tuple():
            return repr([_plain(v) for v in value])
    return repr(value)


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_round_trips(graph: Graph):
    assert same(from_json(to_json(graph)), graph)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        save(graph, Path(a))
        again = load(Path(a))
        assert same(again, graph)
        save(again, Path(b))
        for name in ("graph.json", "params.bin"):
            assert Path(a, name).read_bytes() == Path(b, name).read_bytes()


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_bytes_are_aligned_and_all_there(graph: Graph):
    def entries(data: object) -> list[dict]:
        if isinstance(data, dict):
            return [data] if "offset" in data else [e for v in data.values() for e in entries(v)]
        return [e for v in data for e in entries(v)] if isinstance(data, list) else []

    with tempfile.TemporaryDirectory() as a:
        save(graph, Path(a))
        found = entries(json.loads(Path(a, "graph.json").read_text()))
        assert all(e["offset"] % 64 == 0 for e in found)
        assert len({e["offset"] for e in found if 0 not in e["shape"]}) == len([e for e in found if 0 not in e["shape"]])


def test_a_model_with_its_weights(tmp_path: Path):
    graph = import_onnx(LIGHT / "light_squeezenet.onnx")
    save(graph, tmp_path)
    again = load(tmp_path)
    assert to_text(again) == to_text(graph)
    for name, array in graph.params.items():
        assert again.params[name].dtype == array.dtype
        np.testing.assert_array_equal(again.params[name], array)
        assert not again.params[name].flags.writeable


def test_repeated_elements_are_stored_once(tmp_path: Path):
    """The format's answer to models whose 500 MB of weights are one number."""
    fill = np.broadcast_to(np.float32(0.25), (1000, 1000))
    save(Graph("g", (), (), (), {"w": array_type(fill)}, {"w": fill}), tmp_path)
    assert (tmp_path / "params.bin").stat().st_size == 4
    again = load(tmp_path).params["w"]
    assert again.shape == (1000, 1000) and again.strides == (0, 0) and again[17, 3] == 0.25


def test_bfloat16(tmp_path: Path):
    array = np.asarray([1, -2.5, 3e38], ml_dtypes.bfloat16)
    save(Graph("g", (), (), (), {"w": array_type(array)}, {"w": array}), tmp_path)
    assert load(tmp_path).params["w"].tobytes() == array.tobytes()


def test_other_formats_and_values_are_refused(tmp_path: Path):
    save(Graph("g", (), (), (), {}, {}), tmp_path)
    (tmp_path / "graph.json").write_text('{"version": 99}')
    with pytest.raises(InternalError, match="graph format 99"):
        load(tmp_path)
    with pytest.raises(InternalError, match="no plain data"):
        to_json(Graph("g", (Node("Relu", (), (), {"a": object()}),), (), (), {}, {}))
