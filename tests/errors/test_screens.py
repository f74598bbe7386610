"""The exact screen of every error a deployfile can have: <name>.yaml in, <name>.txt out (written by --update-golden)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from toolchain.cli import main

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(p.stem for p in HERE.glob("*.yaml")))
def test_screen(name, tmp_path, monkeypatch, capsys, golden_file):
    shutil.copyfile(HERE / f"{name}.yaml", tmp_path / "deployfile.yaml")
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "net.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TC_STORE", str(tmp_path / "store"))
    assert main(["build"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    golden_file(err, HERE / f"{name}.txt")


def test_every_screen_has_its_input():
    assert {p.stem for p in HERE.glob("*.txt")} == {p.stem for p in HERE.glob("*.yaml")}
