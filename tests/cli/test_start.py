"""`tc init`, `tc schema`, and the reader of ONNX headers that init uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from toolchain.build.load import load_deployfile
from toolchain.cli import main
from toolchain.cli.onnx_header import Input, read_inputs
from toolchain.cli.start import PACKAGE, RECIPES, first_deployfile, free_name, recipe_files


def model(inputs, weights=("w",)):
    """An ONNX model of one Sum over `inputs` (name -> shape) and weights that are declared as inputs, too."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    infos += [helper.make_tensor_value_info(w, TensorProto.FLOAT, [2]) for w in weights]
    constants = [helper.make_tensor(w, TensorProto.FLOAT, [2], [1.0, 2.0]) for w in weights]
    node = helper.make_node("Sum", [*inputs, *weights], ["y"])
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_in_an_empty_folder(folder, capsys):
    assert main(["init"]) == 0
    assert (folder / "deployfile.yaml").read_text().startswith(
        "# yaml-language-server: $schema=.tc/deployfile.schema.json\nversion: 1\n")
    assert (folder / ".gitignore").read_text() == "/.tc/\n/build/\n"
    assert json.loads((folder / ".tc/deployfile.schema.json").read_text())["title"] == "deployfile.yaml"
    assert main(["build"]) == 2                 # it asks for a model
    assert "models: expected a mapping, found nothing" in capsys.readouterr().err


def test_init_declares_the_models_it_finds(folder, golden):
    onnx.save(model({"image": [1, 3, 224, 224]}), folder / "fixed.onnx")
    onnx.save(model({"x": ["batch", 3, "width", "width"], "n": [4]}), folder / "my net (2).onnx")
    onnx.save(model({"x": [None, 3, 8], "y": None}, weights=()), folder / "open.onnx")
    (folder / "broken.onnx").write_bytes(b"\xff" * 100)
    assert main(["init"]) == 0
    golden((folder / "deployfile.yaml").read_text())
    deployfile = load_deployfile(folder / "deployfile.yaml")
    assert {n: m.path for n, m in deployfile.models.items()} == {
        "fixed": "fixed.onnx", "my_net__2_": "my net (2).onnx", "open": "open.onnx", "broken": "broken.onnx"}


def test_what_init_asks_for_loads_when_it_is_filled_in(folder):
    onnx.save(model({"x": ["batch", None, 4]}), folder / "net.onnx")
    main(["init"])
    text = (folder / "deployfile.yaml").read_text()
    text = text.replace("# dims:", "dims:").replace("# shapes:", "shapes:").replace('#   "', '  "')
    text = text.replace("[batch, ?, 4]", "[1, 2, 4]")
    (folder / "deployfile.yaml").write_text(text)
    net = load_deployfile(folder / "deployfile.yaml").models["net"]
    assert (net.dims, net.shapes) == ({"batch": 1}, {"x": (1, 2, 4)})


def test_what_is_no_plain_file_is_not_read(folder):
    os.mkfifo(folder / "pipe.onnx")
    (folder / "zero.onnx").symlink_to("/dev/zero")
    assert main(["init"]) == 0
    assert list(yaml.safe_load((folder / "deployfile.yaml").read_text())["models"]) == ["pipe", "zero"]


def test_init_overwrites_nothing(folder, capsys):
    (folder / "deployfile.yaml").write_text("mine")
    (folder / ".gitignore").write_text("*.pyc\nbuild/\n")
    assert main(["init"]) == 2
    assert capsys.readouterr().err == "error: deployfile.yaml is there already\nfix: edit it, or remove it first\n"
    assert (folder / "deployfile.yaml").read_text() == "mine"
    (folder / "deployfile.yaml").unlink()
    assert main(["init"]) == 0
    assert (folder / ".gitignore").read_text() == "*.pyc\nbuild/\n/.tc/\n"


def test_init_from_a_recipe(folder, capsys):
    assert main(["init", "made", "--recipe", "paper"]) == 0
    assert "resnet18@x86" in [b.name for b in load_deployfile(folder / "made/deployfile.yaml").all_builds()]
    assert not (folder / "made/build").exists()
    assert main(["init", "more", "--recipe", "papers"]) == 2
    assert "did you mean 'paper'?" in capsys.readouterr().err


def test_the_help_names_every_recipe():
    assert set(RECIPES) == {path.parent.name for path in recipe_files()}


def test_init_says_whether_something_is_left_to_fill_in(folder, capsys):
    onnx.save(model({"x": [1, 3]}), folder / "net.onnx")
    main(["init"])
    assert capsys.readouterr().out == "wrote deployfile.yaml\nnext: `tc build`\n"
    (folder / "my models").mkdir()
    onnx.save(model({"x": ["batch", 3]}), folder / "my models/net.onnx")
    main(["init", "my models"])
    assert capsys.readouterr().out.endswith("next: fill in what it asks for, then `tc build -C 'my models'`\n")


def test_no_name_in_a_model_writes_a_line_of_the_deployfile(folder):
    """What ends a line for YAML ends no comment: \\n, but also U+0085 and U+2028, which JSON leaves as they are."""
    for n, end in enumerate("\n\r\x85\u2028\u2029"):
        name = f"x{end}models: {{m: {{recipe: 'evil.py:f'}}}}{end}# \x9b31m\U000e0001"
        onnx.save(model({name: [1, f"b{name}"], f"y{name}": [None]}, weights=()), folder / f"net{n}.onnx")
    main(["init"])
    text = (folder / "deployfile.yaml").read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable()
    read = yaml.safe_load(text)
    assert list(read) == ["version", "models"] and all(m == {"path": f"{n}.onnx"} for n, m in read["models"].items())
    filled = yaml.safe_load(text.replace("# dims:", "dims:").replace('#   "b', '  "b'))
    assert filled["models"]["net4"]["dims"] == {f"b{name}": 1}


def test_init_writes_utf8_in_any_locale(folder):
    onnx.save(model({"größe": ["höhe", 3]}), folder / "net.onnx")
    env = {"PATH": "/usr/bin", "HOME": str(folder), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
           "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-m", "toolchain", "init"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"größe"' in (folder / "deployfile.yaml").read_text(encoding="utf-8")


def test_names_of_models_are_free_and_allowed():
    taken: set[str] = set()
    names = [free_name(s, taken) for s in ("a b", "a_b", "模型", "..", "x" * 99)]
    assert names == ["a_b", "a_b_2", "model", "model_2", "x" * 60]


def test_strange_names_stay_yaml():
    from toolchain.build.load import check_bytes

    text = first_deployfile({'a: "b" #.onnx': (Input('x: "y"', ("n: 1", "")),)})
    assert check_bytes(text.encode(), "deployfile.yaml")["models"]["a___b___"]["path"] == 'a: "b" #.onnx'


def test_the_schema(folder, capsys):
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["schema", "-o", "schema.json"]) == 0
    assert json.loads((folder / "schema.json").read_text()) == printed
    assert printed["$schema"].endswith("draft-07/schema#")


# --- ONNX headers -------------------------------------------------------------------------------------------------------

@given(st.dictionaries(st.text(min_size=1, max_size=5), st.none() | st.lists(
    st.none() | st.integers(1, 10**6) | st.text("abc", min_size=1, max_size=3), max_size=4), min_size=1, max_size=3))
def test_inputs_are_those_the_onnx_package_reads(tmp_path_factory, inputs):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(model(inputs, weights=("a weight of a longer name",)), path)
    expected = tuple(Input(n, None if s is None else tuple("" if d is None else d for d in s)) for n, s in inputs.items())
    assert read_inputs(path) == expected


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_header_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    path.write_bytes(data)
    assert isinstance(read_inputs(path), tuple)


def test_a_truncated_model_has_no_inputs(tmp_path):
    whole = model({"x": [1]}).SerializeToString()
    for length in range(len(whole)):
        (tmp_path / "net.onnx").write_bytes(whole[:length])
        assert read_inputs(tmp_path / "net.onnx") in ((), (Input("x", (1,)),))


def test_a_dimension_s_name_ends_no_comment():
    text = first_deployfile({"m.onnx": (Input("x", ("n\ntargets: {}", 3)),)})
    assert yaml.safe_load(text) == {"version": 1, "models": {"m": {"path": "m.onnx"}}}
    assert '    # input "x": [n?targets: {}, 3]' in text.splitlines()
