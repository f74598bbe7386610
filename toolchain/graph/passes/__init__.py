"""Graph passes: plain functions Graph -> Graph, one file each, and the order they run in.

`PASSES` brings an imported graph into the form that layout planning expects. Those with options follow, made by functions:
narrowing dequantized products and decomposing(supported) before them, then choosing algorithms, narrowing integer products,
planning layouts, fusing and planning memory for a target:

    graph = run_passes(graph, (narrowing_dequantized(forms), decomposing(supported), *PASSES), on_pass)
    graph = run_passes(graph, (choosing_algorithms(choose), narrowing_products(forms), planning_layouts(options), *FUSION))
    plan = plan_memory(graph, workspace)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from toolchain.core.settings import settings
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.check_memory import check_memory
from toolchain.graph.passes.choose_algorithms import Algorithms, choose_algorithms
from toolchain.graph.passes.decompose import decompose, decomposing
from toolchain.graph.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from toolchain.graph.passes.eliminate_dead_code import eliminate_dead_code
from toolchain.graph.passes.fold_batch_norm import fold_batch_norm
from toolchain.graph.passes.fold_constants import fold_constants
from toolchain.graph.passes.fold_empty import fold_empty
from toolchain.graph.passes.fuse_operators import fuse_operators
from toolchain.graph.passes.integer_products import Form, Forms, InFloats, Product, dequantized_products, integer_products
from toolchain.graph.passes.layout_options import ANY, LayoutOption, Options, pass_through
from toolchain.graph.passes.memory_plan import MemoryPlan, Slot, Weight
from toolchain.graph.passes.plan_layouts import plan_layouts
from toolchain.graph.passes.plan_memory import plan_memory
from toolchain.graph.passes.rewriting import bodies
from toolchain.graph.passes.separate_body_outputs import separate_body_outputs
from toolchain.graph.passes.separate_pools import separate_pools
from toolchain.graph.passes.simplify import simplify
from toolchain.graph.passes.views import view_nodes
from toolchain.graph.text import to_text
from toolchain.graph.verify import verify

GraphPass: TypeAlias = Callable[[Graph], Graph]

PASSES: tuple[GraphPass, ...] = (
    eliminate_dead_code,                # first: nothing below is spent on what nobody needs
    fold_empty,                         # before folding constants, which these values become; kernels take no empty tensor
    fold_constants,                     # weights computed in the graph become constants, which the rules below look for
    eliminate_common_subexpressions,    # before simplify: patterns (layer normalization) count the readers of a value
    simplify,                           # Gemm -> MatMul + Add, chains of constants merged: what fold_batch_norm meets
    fold_batch_norm,
    simplify,                           # again: folding leaves Mul and Add chains with other neighbours
    eliminate_common_subexpressions,    # again: Squeeze and Unsqueeze of one value to one shape are equal only as Reshapes
    fold_constants,                     # again: what rules built from constants
    eliminate_dead_code,                # last: later steps count readers
)

REQUIRED: frozenset[GraphPass] = frozenset((
    fold_empty,                         # kernels compute at least one element
))
"""Of PASSES, what later steps rely on. Without any of the others (or choosing algorithms, or planning layouts) a graph
computes the same, only slower: tests/fuzz runs random subsets. FUSION is required; fuse_operators may join nothing."""

FUSION: tuple[GraphPass, ...] = (
    separate_body_outputs,              # after all passes that would merge such copies; memory planning gives each its place
    eliminate_dead_code,                # layout planning asks kernels about every node, and may leave parameters unread
    separate_pools,                     # of plain tensors kernels do it; before its pools join others in kernels
    fuse_operators,                     # last: kernels are made from what comes out
)


@dataclass(frozen=True, slots=True)
class PassRun:
    """What one pass did: for progress, `tc show` and tests."""

    name: str
    changed: bool
    nodes_before: int
    nodes_after: int
    ms: float

    def __str__(self) -> str:
        count = f"{self.nodes_before} -> {self.nodes_after} nodes" if self.changed else "unchanged"
        return f"{self.name}: {count}, {self.ms:.1f} ms"


def planning_layouts(options: Options) -> GraphPass:
    """`plan_layouts` with the layout options of a target's kernels, as a pass."""

    def plan_layouts_for(graph: Graph) -> Graph:
        return plan_layouts(graph, options)

    plan_layouts_for.__name__ = "plan_layouts"
    plan_layouts_for.__doc__ = plan_layouts.__doc__
    return plan_layouts_for


def choosing_algorithms(choose: Algorithms) -> GraphPass:
    """`choose_algorithms` with the cost model of a target's kernels, as a pass."""

    def choose_algorithms_for(graph: Graph) -> Graph:
        return choose_algorithms(graph, choose)

    choose_algorithms_for.__name__ = "choose_algorithms"
    choose_algorithms_for.__doc__ = choose_algorithms.__doc__
    return choose_algorithms_for


def narrowing_products(forms: Forms) -> GraphPass:
    """`integer_products` in the forms a target's kernels have, and the constants that it leaves to fold, as a pass."""

    def integer_products_for(graph: Graph) -> Graph:
        new = integer_products(graph, forms)
        return graph if new is graph else eliminate_common_subexpressions(fold_constants(simplify(new)))

    integer_products_for.__name__ = "integer_products"
    integer_products_for.__doc__ = integer_products.__doc__
    return integer_products_for


def narrowing_dequantized(forms: Forms, in_floats: InFloats = lambda node, graph: False) -> GraphPass:
    """`dequantized_products` in the forms a target's kernels have, as a pass. First of all, while weights are bytes; what
    stays in floats is folded."""

    def dequantized_products_for(graph: Graph) -> Graph:
        return fold_constants(dequantized_products(graph, forms, in_floats))

    dequantized_products_for.__name__ = "dequantized_products"
    dequantized_products_for.__doc__ = dequantized_products.__doc__
    return dequantized_products_for


def run_passes(graph: Graph, passes: Iterable[GraphPass], on_pass: Callable[[PassRun], None] | None = None) -> Graph:
    """Run passes in order, bodies of control flow included; verify what each one changed, and tell `on_pass` about it.

    With TC_DUMP, the graph after each changing pass is written to DIR/graph/<name>/NN.pass.txt. Raises InternalError when a
    pass leaves a graph that breaks a rule (its name is in the message).
    """
    before = settings()
    folder = before.dump / "graph" / _file_name(graph.name) if before.dump and before.selects(graph.name) else None
    number = len(list(folder.glob("*.txt"))) if folder and folder.exists() else 0
    if folder and number == 0:
        number = _dump(folder, number, "input", graph)
    for one in passes:
        name = getattr(one, "__name__", type(one).__name__)
        start = time.perf_counter()
        after = apply_pass(graph, one)
        ms = (time.perf_counter() - start) * 1e3
        changed = after is not graph
        if changed:
            verify(after, name)
            number = _dump(folder, number, name, after) if folder else number
        if on_pass:
            on_pass(PassRun(name, changed, count_nodes(graph), count_nodes(after), ms))
        graph = after
    return graph


def apply_pass(graph: Graph, one: GraphPass) -> Graph:
    """The pass on the bodies of control flow first, then on the graph; the same object when neither changed."""
    changes: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "Fused" or not (inner := bodies(node)):
            continue
        new = {key: apply_pass(body, one) for key, body in inner.items()}
        if any(new[key] is not inner[key] for key in inner):
            changes[node] = replace(node, attrs={**node.attrs, **new})
    return one(graph.edit(dict(changes)) if changes else graph)


def count_nodes(graph: Graph) -> int:
    """Nodes of the graph and of its control-flow bodies (a Fused counts as one)."""
    inner = (body for n in graph.nodes if n.op != "Fused" for body in bodies(n).values())
    return len(graph.nodes) + sum(map(count_nodes, inner))


def _dump(folder: Path, number: int, name: str, graph: Graph) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:02d}.{name}.txt").write_text(to_text(graph), encoding="utf-8")
    return number + 1


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name) or "graph"


__all__ = [
    "ANY",
    "FUSION",
    "PASSES",
    "REQUIRED",
    "Algorithms",
    "Form",
    "Forms",
    "GraphPass",
    "LayoutOption",
    "MemoryPlan",
    "Options",
    "PassRun",
    "Product",
    "Slot",
    "Weight",
    "apply_pass",
    "check_memory",
    "choose_algorithms",
    "choosing_algorithms",
    "count_nodes",
    "decompose",
    "decomposing",
    "dequantized_products",
    "eliminate_common_subexpressions",
    "eliminate_dead_code",
    "fold_batch_norm",
    "fold_constants",
    "fold_empty",
    "fuse_operators",
    "integer_products",
    "narrowing_dequantized",
    "narrowing_products",
    "pass_through",
    "plan_layouts",
    "plan_memory",
    "planning_layouts",
    "run_passes",
    "separate_body_outputs",
    "simplify",
    "view_nodes",
]
