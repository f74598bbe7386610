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
from toolchain.kernels.alternatives import Costs, choosing_by_costs, measured_options
from toolchain.kernels.build import anchor_name
from toolchain.kernels.flops import flops
from toolchain.kernels.integer_forms import in_floats, integer_forms
from toolchain.kernels.layouts import layout_options
from toolchain.kernels.table import KERNELS

CONTROL_FLOW = frozenset(("Fail", "If", "Loop", "Scan"))       # operators that become ops of the plan instead of kernels


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """One distinct kernel: its key (equal bodies share it), its canonical body, and the model's nodes it computes where the
    graph has it first."""

    key: str
    body: Graph
    sources: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"name": anchor_name(self.body), "graph": to_json(self.body), "nodes": list(self.sources)}


def optimize_graph(graph: Graph, target: Target, costs: Costs | None = None) -> tuple[Graph, Mapping[str, Workload]]:
    """The graph with layouts planned and operators fused, each Fused node carrying its kernel's key; and those kernels.

    costs: what tuning has measured of alternatives; algorithms and layouts are then decided by it.
    """
    choosing = choosing_by_costs(target, costs) if costs else choosing_algorithms(algorithms(target))
    options = measured_options(target, costs) if costs else layout_options(target)
    graph = run_passes(prepare_graph(graph, target), (
        choosing, narrowing_products(integer_forms(target)), planning_layouts(options), *FUSION,
    ))
    workloads: dict[str, Workload] = {}
    return _with_keys(graph, workloads), workloads


def prepare_graph(graph: Graph, target: Target) -> Graph:
    """What algorithms and layouts are chosen for."""
    return run_passes(graph, (
        narrowing_dequantized(integer_forms(target), in_floats(target)), decomposing(KERNELS | CONTROL_FLOW), *PASSES))


def workload_of(body: Graph, sources: tuple[str, ...] = ()) -> Workload:
    """The kernel of a fused group, made of these nodes."""
    canonical_body, text = canonical(widen_moves(collapse_rows(body)))
    return Workload(digest_bytes(text.encode())[:32], canonical_body, sources)


def _with_keys(graph: Graph, workloads: dict[str, Workload]) -> Graph:
    views = view_nodes(graph)
    changes: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "Fused":
            workload = workload_of(node.attrs["body"], node.sources)
            workloads.setdefault(workload.key, workload)
            changes[node] = replace(node, attrs={**node.attrs, "kernel": workload.key, "flops": flops(node, graph.types)})
        elif node not in views:
            bodies = {k: _with_keys(v, workloads) for k, v in node.attrs.items() if isinstance(v, Graph)}
            if bodies:
                changes[node] = replace(node, attrs={**node.attrs, **bodies})
    return graph.edit(changes)
