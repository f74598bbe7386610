"""Local algebraic rewrites, all in one sweep: what to write once so that later passes and kernels see fewer forms.

After it, among others: no Identity, Dropout, Squeeze, Unsqueeze, Flatten, Split, Sum or Gemm is left; every Reshape names
its shape; constants of Add and Mul chains stand in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toolchain.graph.ir import Graph
from toolchain.graph.passes.recognize import RECOGNIZE_RULES
from toolchain.graph.passes.rewriting import Rule, rewrite_graph
from toolchain.graph.passes.simplify_arithmetic import ARITHMETIC_RULES
from toolchain.graph.passes.simplify_convolutions import CONVOLUTION_RULES
from toolchain.graph.passes.simplify_einsum import EINSUM_RULES
from toolchain.graph.passes.simplify_shapes import SHAPE_RULES


def _joined(*tables: Mapping[str, Sequence[Rule]]) -> dict[str, tuple[Rule, ...]]:
    joined: dict[str, tuple[Rule, ...]] = {}
    for table in tables:
        for op, rules in table.items():
            joined[op] = (*joined.get(op, ()), *rules)
    return joined


RULES = _joined(
    RECOGNIZE_RULES,        # first: merging constants would take the patterns apart
    SHAPE_RULES,
    ARITHMETIC_RULES,
    CONVOLUTION_RULES,
    EINSUM_RULES,
)


def simplify(graph: Graph) -> Graph:
    """Apply the rules of simplify_*.py and recognize.py to every node, once, in order.

        a = Squeeze(x); b = Reshape(a, s); y = Gemm(b, w, c)   ->   b = Reshape(x, s); p = MatMul(b, w); y = Add(p, c)

    Each rule's docstring is its rewrite. Needs: inference (training forms stay as they are). Keeps: names of the graph's
    inputs and outputs, and every node an output needs of its own (an output that is just an input stays an Identity).
    """
    return rewrite_graph(graph, RULES)
