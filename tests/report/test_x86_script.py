"""benchmarks/x86.py: what its tables say of measured facts, and one small network through it. No time is asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sample_report import contender, measured

from toolchain.report.facts import to_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Scripts import their neighbours: their folder is the first of the path, as when they are run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def facts(ours_us: float, *, passed: bool = True, **rivals_us: float) -> dict[str, Any]:
    from speed import summary

    found = measured(ours_us, *(contender(name, us) for name, us in rivals_us.items()))
    return {**summary(found), "passed": passed, "facts": to_json(found)}


def text_of(table: object) -> list[str]:
    screen = Console(width=160, no_color=True)
    with screen.capture() as capture:
        screen.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


FOUND = {
    "paper/resnet18": {"ours_us": 8000.0, "onnxruntime": 12_800.0, "openvino": 12_000.0},
    "paper/dqn": {"ours_us": 100.0, "onnxruntime": 120.0},
    "light/alexnet": {"ours_us": 1000.0, "openvino": 900.0},
    "light/vgg19": {"ours_us": 1000.0, "openvino": 1600.0},
}


def test_the_table_names_the_better_rival_and_what_was_reached() -> None:
    from x86 import speed_table

    lines = text_of(speed_table({name: facts(**times) for name, times in FOUND.items()}, 2))
    assert lines[2:] == [
        "ResNet-18 12.00 ms openvino 8.00 ms 1.50 [1.50, 1.50] 1.3 1.6 reached",
        "DQN 0.120 ms onnxruntime 0.100 ms 1.20 [1.20, 1.20] 1.3 1.6 not reached",
        "the nine light models, geometric mean (2 of 9) 1.20 [1.20, 1.20] 1.25 1.5 not reached",
        "light/alexnet 0.900 ms openvino 1.00 ms 0.90 [0.90, 0.90]",
        "light/vgg19 1.60 ms openvino 1.00 ms 1.60 [1.60, 1.60]",
        "least of 4 models: light/alexnet 0.90 >= 1.0 not reached",
    ]


def test_one_thread_has_one_goal_for_all() -> None:
    from x86 import speed_table

    lines = text_of(speed_table({name: facts(**times) for name, times in FOUND.items()}, 1))
    assert "all of these, geometric mean 1.27 1.15 1.4 reached" in lines
    assert "ResNet-18 12.00 ms openvino 8.00 ms 1.50 [1.50, 1.50]" in lines


def test_wrong_outputs_and_missing_rivals_are_said() -> None:
    from x86 import ratio_text, speed_table

    found = {"ocr/read": facts(100.0, passed=False, openvino=200.0)}
    (_, _, line, _) = text_of(speed_table(found, 2))
    assert line.endswith("aim reached, WRONG OUTPUTS")
    alone = {**facts(100.0), "errors": {"openvino": "cannot read it\nbecause"}}
    assert ratio_text(alone) == "openvino failed: cannot read it"


def test_a_busy_core_is_judged_by_onnx_runtime() -> None:
    from x86 import busy_rows

    quiet, busy = facts(100.0, onnxruntime=120.0, openvino=110.0), facts(190.0, onnxruntime=240.0, openvino=500.0)
    ours, theirs, other = busy_rows("paper/dqn", quiet, busy)
    assert ours[4:] == ("1.90x", "32", "<= 2.00x", "reached")
    assert theirs[4:] == ("2.00x", "32", "", "") and other[4] == "4.55x"


def test_the_spinning_process_is_pinned_and_ends() -> None:
    import os

    from processes import busy_core, tree_of

    with busy_core() as core:
        (spinner,) = (pid for pid in tree_of(os.getpid()) if pid != os.getpid())
        assert os.sched_getaffinity(spinner) == {core}
    assert spinner not in tree_of(os.getpid())


def test_a_section_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures go to the screen and to the JSON file; the fresh process is the next test's."""
    import x86

    file = tmp_path / "x86.json"
    monkeypatch.setattr(x86, "build_small_model", lambda folder, env: (folder / "build" / "small@x86").mkdir(parents=True))
    monkeypatch.setattr(x86, "child", lambda kind, folder: {"run_us": 6.0, "bound_us": 2.0} if kind == "call" else {})
    monkeypatch.setattr(sys, "argv", ["x86.py", "--only", "call", "--json", str(file)])
    assert x86.main() == 0
    (run, bound) = json.loads(file.read_text())["sections"]["call"]
    assert (run["value"], run["reach"], bound["value"]) == ("6.0 us", "<= 15 us", "2.0 us")


def test_fresh_processes_load_run_and_call(tmp_path: Path) -> None:
    from figures import build_small_model
    from x86 import child

    build_small_model(tmp_path / "small", {"TC_STORE": str(tmp_path / "store")})
    (folder,) = (tmp_path / "small" / "build").iterdir()
    first = child("ours", folder, 1)
    assert first.keys() == {"import_ms", "load_ms", "first_ms", "grown_bytes"} and min(first.values()) > 0
    cost = child("call", folder)
    assert cost["run_us"] > 0 < cost["bound_us"]
