"""From an imported graph to one that asks for kernels: graph passes, layouts for the target, fusion, one key per kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from toolchain.core.digest import digest_bytes
from toolchain.core.target import Target
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes import (
    FUSION,
    PASSES,
    choosing_algorithms,
    decomposing,
    narrowing_dequantized,
    narrowing_products,
    planning_layouts,
    run_passes,
)
from toolchain.graph.passes.canonical import canonical
from toolchain.graph.passes.collapse_rows import collapse_rows
from toolchain.graph.passes.views import view_nodes
from toolchain.graph.passes.widen_moves import widen_moves
from toolchain.graph.serialize import to_json
from toolchain.kernels.algorithms import algorithms
from toolchain.kernels.build import anchor_name
from toolchain.kernels.flops import flops
from toolchain.kernels.integer_forms import integer_forms
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.table import KERNELS

CONTROL_FLOW = frozenset(("Fail", "If", "Loop", "Scan"))       # operators that become ops of the plan instead of kernels


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One distinct kernel: its key (equal bodies share it) and its canonical body."""

    key: str
    body: Graph

    def to_json(self) -> dict[str, Any]:
        return {"name": anchor_name(self.body), "graph": to_json(self.body)}


def optimize_graph(graph: Graph, target: Target) -> tuple[Graph, Mapping[str, Workload]]:
    """The graph with layouts planned and operators fused, each Fused node carrying its kernel's key; and those kernels."""
    graph = run_passes(graph, (
        narrowing_dequantized(integer_forms(target)), decomposing(KERNELS | CONTROL_FLOW), *PASSES,
        choosing_algorithms(algorithms(target)), narrowing_products(integer_forms(target)),
        planning_layouts(layout_options(target)), *FUSION,
    ))
    workloads: dict[str, Workload] = {}
    return _with_keys(graph, workloads), workloads


def _with_keys(graph: Graph, workloads: dict[str, Workload]) -> Graph:
    views = view_nodes(graph)
    changes: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "Fused":
            body, text = canonical(widen_moves(collapse_rows(node.attrs["body"])))
            key = digest_bytes(text.encode())[:32]
            workloads.setdefault(key, Workload(key, body))
            changes[node] = replace(node, attrs={**node.attrs, "kernel": key, "flops": flops(node, graph.types)})
        elif node not in views:
            bodies = {k: _with_keys(v, workloads) for k, v in node.attrs.items() if isinstance(v, Graph)}
            if bodies:
                changes[node] = replace(node, attrs={**node.attrs, **bodies})
    return graph.edit(changes)
