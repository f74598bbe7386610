"""The rule of `simplify` on Einsum: a product of two operands is a matrix product. See simplify.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toolchain.core import dtype as dtypes
from toolchain.core.layout import TensorType
from toolchain.graph.einsum import letters
from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting, Rule


def einsum_to_matmul(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Einsum of two operands -> MatMul, with what brings operands and result into its order.

        y = Einsum(q, k) "bhqd,bhkd->bhqk"   ->   t = Transpose(k) to bhdk;  y = MatMul(q, t)

    Every letter is one of four: of both operands and the result (a batch), of one and the result (a row, a column), of both
    but not the result (what is summed). Left alone: letters twice in an operand, or in one alone and not in the result,
    extents of one that broadcast, products that are no matrix products, integers.
    """
    if len(node.inputs) != 2 or not dtypes.is_float(state.types[node.output].dtype):
        return None
    (left, right), result = letters(str(node.attrs["equation"]), [state.shape(v) for v in node.inputs])
    extents = [dict(zip(t, state.shape(v), strict=True)) for t, v in zip((left, right), node.inputs, strict=True)]
    shared = extents[0].keys() & extents[1].keys()
    if any(len(set(t)) < len(t) for t in (left, right)) or any(extents[0][c] != extents[1][c] for c in shared):
        return None
    batch, rows, columns = ([c for c in result if (c in left, c in right) == where]
                            for where in ((True, True), (True, False), (False, True)))
    summed = [c for c in left if c in right and c not in result]
    if len(result) + len(summed) != len({*left, *right}) or not (rows and columns and summed):
        return None
    make = _Maker(node, state, extents[0] | extents[1])
    a = make.ordered(node.inputs[0], left, batch, rows, summed)
    b = make.ordered(node.inputs[1], right, batch, summed, columns)
    made = make.add("MatMul", (a, b), make.shape(batch, rows, columns))
    return make.finish(made, [*batch, *rows, *columns], result)


class _Maker:
    """Appends nodes; `extents` by letter."""

    def __init__(self, node: Node, state: Rewriting, extents: Mapping[str, int]) -> None:
        self.node, self.state, self.extents = node, state, extents
        self.nodes: list[Node] = []

    def shape(self, batch: Sequence[str], *groups: Sequence[str]) -> tuple[int, ...]:
        """The batch's extents, and those of each group joined."""
        return (*(self.extents[c] for c in batch), *(math.prod(self.extents[c] for c in g) for g in groups))

    def add(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attrs: object) -> str:
        kind = self.state.types[self.node.output].dtype
        out = self.state.value(f"{self.node.output}.{op.lower()}", TensorType.plain(tuple(shape), kind))
        self.nodes.append(Node(op, tuple(inputs), (out,), dict(attrs), self.node.name))
        return out

    def ordered(self, value: str, have: str, batch: Sequence[str], *groups: Sequence[str]) -> str:
        """An operand with its dimensions in that order, those of a group joined."""
        wanted = [*batch, *(c for g in groups for c in g)]
        return self.reshaped(self.transposed(value, have, wanted), self.shape(batch, *groups))

    def transposed(self, value: str, have: Sequence[str], wanted: Sequence[str]) -> str:
        if [*have] == [*wanted]:
            return value
        return self.add("Transpose", (value,), self.shape(wanted), perm=tuple([*have].index(c) for c in wanted))

    def reshaped(self, value: str, shape: tuple[int, ...]) -> str:
        if self.state.shape(value) == shape:
            return value
        return self.add("Reshape", (value, self.state.int64(*shape)), shape)

    def finish(self, made: str, have: Sequence[str], result: str) -> list[Node]:
        """The nodes, the last of which makes the result."""
        made = self.transposed(self.reshaped(made, self.shape(have)), have, [*result])
        *before, last = self.nodes
        assert last.output == made, "the product itself at least is new"
        return [*before, Node(last.op, last.inputs, self.node.outputs, last.attrs, last.name)]


EINSUM_RULES: Mapping[str, Sequence[Rule]] = {"Einsum": (einsum_to_matmul,)}
