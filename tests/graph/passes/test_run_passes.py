"""run_passes: what it reports, dumps and checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pass_graphs import Builder

from toolchain.core.errors import InternalError
from toolchain.graph.ir import Graph
from toolchain.graph.passes import PASSES, PassRun, eliminate_dead_code, run_passes, simplify


def small() -> Graph:
    b = Builder()
    x = b.input(2)
    b.node("Exp", x)
    return b.graph(b.node("Relu", b.node("Identity", x)))


def test_reports_each_pass() -> None:
    runs: list[PassRun] = []
    run_passes(small(), (eliminate_dead_code, simplify, simplify), runs.append)
    assert [(r.name, r.changed, r.nodes_before, r.nodes_after) for r in runs] == [
        ("eliminate_dead_code", True, 3, 2), ("simplify", True, 2, 1), ("simplify", False, 1, 1)]
    assert str(replace(runs[1], ms=1.25)) == "simplify: 2 -> 1 nodes, 1.2 ms"
    assert str(replace(runs[2], ms=0.0)) == "simplify: unchanged, 0.0 ms"


def test_gives_the_same_object_when_nothing_changed() -> None:
    graph = run_passes(small(), PASSES)
    assert run_passes(graph, PASSES) is graph


def test_dumps_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_DUMP", str(tmp_path))
    run_passes(small(), (eliminate_dead_code, simplify, simplify))
    folder = tmp_path / "graph" / "test"
    assert sorted(p.name for p in folder.iterdir()) == ["00.input.txt", "01.eliminate_dead_code.txt", "02.simplify.txt"]
    assert "Identity" in (folder / "01.eliminate_dead_code.txt").read_text()
    assert "Identity" not in (folder / "02.simplify.txt").read_text()


def test_dumps_only_the_graphs_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TC_DUMP", str(tmp_path))
    monkeypatch.setenv("TC_ONLY", "other*")
    run_passes(small(), (simplify,))
    assert not list(tmp_path.iterdir())


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    def forget_a_node(graph: Graph) -> Graph:
        return replace(graph, nodes=graph.nodes[:-1])

    with pytest.raises(InternalError, match="after forget_a_node"):
        run_passes(small(), (forget_a_node,))
