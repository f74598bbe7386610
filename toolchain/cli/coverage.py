"""What `tc check` says of an imported model: its operators, how many nodes each has, and its share of the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolchain.cli.screen import count
from toolchain.graph.ir import Graph, Node
from toolchain.graph.serialize import load_files
from toolchain.kernels.flops import flops


def coverage(model: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """Nodes and operations per operator, the most expensive operator first; bodies of control flow included."""
    graph = load_files(files)
    operators: dict[str, dict[str, Any]] = {}
    for node, work in _costs(graph):
        entry = operators.setdefault(node.op, {"operator": node.op, "nodes": 0, "flops": 0})
        entry["nodes"] += 1
        entry["flops"] += work
    ordered = sorted(operators.values(), key=lambda o: (-o["flops"], -o["nodes"], o["operator"]))
    return {"model": model, "covered": True, "flops": sum(o["flops"] for o in ordered), "operators": ordered}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A model's coverage as a table."""
    nodes = sum(o["nodes"] for o in found["operators"])
    yield f"{found['model']}: {count(nodes, 'nodes')}, all covered, {found['flops'] / 1e9:.3g} GFLOP"
    for o in found["operators"]:
        yield f"  {o['operator']:<24} {o['nodes']:>5}  {100 * o['flops'] / max(found['flops'], 1):5.1f} %"


def _costs(graph: Graph) -> Iterator[tuple[Node, int]]:
    """Every node with its own work; a node with bodies stands for what is in them."""
    for node in graph.nodes:
        bodies = [v for v in node.attrs.values() if isinstance(v, Graph)]
        if bodies:
            yield node, 0
            for body in bodies:
                yield from _costs(body)
        else:
            yield node, flops(node, graph.types)
