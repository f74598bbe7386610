"""What `tc build` shows of models that are damaged or mean harm: what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from toolchain.build import executor
from toolchain.cli import main

X, Y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")


def plus(weight: TensorProto) -> bytes:
    """y = x + weight"""
    add = helper.make_node("Add", ["x", weight.name], ["y"], name="add")
    return model(helper.make_graph([add], "g", [X], [Y], [weight]))


def model(graph: onnx.GraphProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> bytes:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions).SerializeToString()
    return data


def elsewhere(location: str) -> bytes:
    weight = TensorProto(name="w", dims=[1, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    return plus(weight)


def circle() -> bytes:
    """F calls G, which calls F."""
    functions = tuple(
        helper.make_function("mine", name, ["a"], ["b"], [helper.make_node(other, ["a"], ["b"], domain="mine")],
                             [helper.make_opsetid("mine", 1)])
        for name, other in (("F", "G"), ("G", "F")))
    return model(helper.make_graph([helper.make_node("F", ["x"], ["y"], name="f", domain="mine")], "g", [X], [Y]), functions)


def large() -> bytes:
    """A tensor of 4 TB, of which the file has four bytes."""
    return plus(TensorProto(name="w", dims=[1 << 20, 1 << 20], data_type=TensorProto.FLOAT, raw_data=b"1234"))


def small() -> bytes:
    return plus(helper.make_tensor("w", TensorProto.FLOAT, [1, 4], [1.0, 2.0, 3.0, 4.0]))


NAME = "\033[31mred\033]0;title\007\n::error::a\u202e\x9b1m[bold]<b>|`"            # what names of a model might hope to do


def named() -> bytes:
    """A network that works, and whose every name is NAME with a letter before it."""
    x, y = (helper.make_tensor_value_info(name + NAME, TensorProto.FLOAT, [1, 4]) for name in "xy")
    nodes = [helper.make_node("Exp", [f"x{NAME}"], [f"e{NAME}"], name=f"n{NAME}"),
             helper.make_node("Softmax", [f"e{NAME}"], [f"y{NAME}"], name=f"m{NAME}")]
    return model(helper.make_graph(nodes, f"g{NAME}", [x], [y]))


def foreign() -> bytes:
    """An operator that nobody has, with such a name."""
    return model(helper.make_graph([helper.make_node(f"O{NAME}", ["x"], ["y"], name=NAME, domain="mine")], "g", [X], [Y]))


MODELS: Mapping[str, Callable[[], bytes]] = {
    "outside": lambda: elsewhere("../../../etc/passwd"), "missing": lambda: elsewhere("w.bin"),
    "huge": large, "circle": circle,
    "truncated": lambda: small()[:60], "empty": lambda: b"", "text": lambda: b"a page that says: not found",
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model_is_refused(name: str, tmp_path: Path, monkeypatch, capsys, golden) -> None:
    (tmp_path / "net.onnx").write_bytes(MODELS[name]())
    (tmp_path / "deployfile.yaml").write_text(
        "version: 1\nmodels:\n  net: {path: net.onnx}\ntargets:\n  x86: {kind: x86, cpu: x86-64-v3}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    for variable in ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "TC_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(executor, "available_cores", lambda: 0)             # in this process; imports have one of their own
    assert main(["build"]) == 2
    err = capsys.readouterr().err.replace(str(tmp_path), "DIR")
    golden(re.sub(r"\d{8}-\d{6}(-\d+)+", "RUN", err[err.index("\nfailed:") + 1:]))


@pytest.mark.parametrize("arguments", [
    ["check"], ["build"], ["build", "--json"], ["run", "net@x86"], ["run", "net@x86", "-i", "z=x.npy"],
    ["run", "net@x86", "-i", f"x{NAME}=x.npy"], ["run", "net@x86", "-i", f"x{NAME}=x.npy", "-o", "out"],
    ["bench", "net@x86", "--layers", "--time", "10ms"], ["verify"], ["verify", "--json"], ["show", "import:net"],
    ["show", "net@x86", "net.h"], ["show", "net@x86", "plan.json"], ["show", "optimize:net@x86", "--after", "list"],
    ["explain", "net@x86"], ["graph"], ["build", "-f", "foreign.yaml"], ["check", "-f", "foreign.yaml"]],
    ids=lambda arguments: " ".join(arguments).replace(NAME, ""))
def test_names_of_a_model_command_no_terminal_and_no_build_server(
        arguments: list[str], tmp_path_factory, monkeypatch, capfd) -> None:
    folder = tmp_path_factory.getbasetemp() / "names"
    if not folder.exists():
        folder.mkdir()
        (folder / "net.onnx").write_bytes(named())
        (folder / "foreign.onnx").write_bytes(foreign())
        for name in ("net", "foreign"):
            (folder / ("deployfile.yaml" if name == "net" else "foreign.yaml")).write_text(
                f"version: 1\nmodels:\n  {name}: {{path: {name}.onnx}}\ntargets:\n  x86: {{kind: x86}}\n")
        np.save(folder / "x.npy", np.zeros((1, 4), np.float32))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TC_STORE", str(folder / "store"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TC_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(executor, "available_cores", lambda: 0)
    main(["build"])
    capfd.readouterr()
    main(arguments)
    out, err = capfd.readouterr()
    shown = out + err
    assert shown and "bug in the toolchain" not in shown and "Traceback" not in shown
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    ours = [line for line in shown.split("\n") if line.lstrip().startswith("::")]
    assert all(line.startswith("::error title=import%3Aforeign::") for line in ours)
    assert len(ours) == ("foreign.yaml" in arguments)
