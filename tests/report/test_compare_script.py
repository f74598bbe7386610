"""benchmarks/compare.py, run as its users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from toolchain.report.contenders import is_installed
from toolchain.report.json import parse

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compare.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x + x, of open width."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, "width"]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", [x], [y])
    path = tmp_path / "twice.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_rivals_alone_on_two_models(model: Path, tmp_path: Path) -> None:
    if not is_installed("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    facts = tmp_path / "facts.json"
    done = run("-", model, "-", model, "--shape", "x=2,3", "--against", "onnxruntime,torch", "--time", "0.1",
               "--threads", "1", "--json", facts)
    assert done.returncode == 0, done.stderr
    assert "torch is left out" in done.stderr
    assert done.stdout.count("onnxruntime") >= 3 and "twice" in done.stdout
    report = parse(facts.read_text())
    assert [len(b.measure.contenders[0].bursts_us) for b in report.builds if b.measure] == [6, 6]


@pytest.mark.parametrize(("arguments", "words"), [
    (("-",), "give pairs"),
    (("-", "none.onnx"), "no such model"),
    (("-", "MODEL"), "leaves the shape of 'x' open"),
    (("-", "MODEL", "--shape", "x:3"), "expected NAME=VALUE"),
    (("-", "MODEL", "--against", "onxruntime"), "no baseline 'onxruntime'"),
])
def test_wrong_usage_exits_2(
    arguments: tuple[str, ...], words: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import compare

    monkeypatch.setattr(sys, "argv", ["compare.py", *(str(model) if a == "MODEL" else a for a in arguments)])
    try:
        code = compare.main()
    except SystemExit as exit:
        code = int(str(exit.code))
    assert code == 2 and words in capsys.readouterr().err
