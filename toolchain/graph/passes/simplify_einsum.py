"""The rules of `simplify` on Einsum: a product of two operands is a matrix product, one of more is several of two. See
simplify.py."""

from __future__ import annotations

import itertools
import math
import string
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


def einsum_in_pairs(node: Node, state: Rewriting) -> Sequence[Node] | None:
    """Einsum of three and more operands -> Einsums of two, where that computes less.

        y = Einsum(x, w, z) "ni,ij,nj->n"   ->   t = Einsum(x, w) "ni,ij->nj";  y = Einsum(t, z) "nj,nj->n"

    n*i*j + n*j products in place of 2*n*i*j, and the first is a matrix product. The cheapest pair comes first, what nobody
    needs any more is summed over at once. Left alone: letters twice in an operand, extents of one that broadcast, integers.
    Source: the greedy order of opt_einsum (Smith and Gray, JOSS 2018).
    """
    if len(node.inputs) < 3 or not dtypes.is_float(state.types[node.output].dtype):
        return None
    terms, result = letters(str(node.attrs["equation"]), [state.shape(v) for v in node.inputs])
    found = [dict(zip(t, state.shape(v), strict=True)) for t, v in zip(terms, node.inputs, strict=True)]
    extents = {c: n for d in found for c, n in d.items()}
    if any(len(set(t)) < len(t) for t in terms) or any(d[c] != extents[c] for d in found for c in d):
        return None
    steps = _pairs(terms, result, extents)
    whole = (len(terms) - 1) * math.prod(extents.values())
    if len(extents) > len(string.ascii_letters) or sum(cost for *_, cost in steps) >= whole:
        return None
    plain = dict(zip(extents, string.ascii_letters))
    values, nodes = list(zip(terms, node.inputs, strict=True)), list[Node]()
    for a, b, made, _ in steps:
        (left, x), (right, y) = values[a], values[b]
        values = [v for n, v in enumerate(values) if n not in (a, b)]
        last = not values
        kind = state.types[node.output].dtype
        out = node.output if last else state.value(f"{node.output}.pair", TensorType.plain([extents[c] for c in made], kind))
        equation = ",".join("".join(plain[c] for c in t) for t in (left, right)) + "->" + "".join(plain[c] for c in made)
        nodes.append(Node("Einsum", (x, y), (out,), {"equation": equation}, node.name))
        values.append((made, out))
    return nodes


def _pairs(terms: Sequence[str], result: str, extents: Mapping[str, int]) -> list[tuple[int, int, str, int]]:
    """(two positions among the operands left, letters of their product, what that costs), the product being the last
    operand afterwards."""
    left, steps = list(terms), list[tuple[int, int, str, int]]()
    while len(left) > 1:
        options = []
        for a, b in itertools.combinations(range(len(left)), 2):
            needed = {*result, *(c for n, t in enumerate(left) if n not in (a, b) for c in t)}
            both = dict.fromkeys((*left[a], *left[b]))
            made = result if len(left) == 2 else "".join(c for c in both if c in needed)
            products, stored = math.prod(extents[c] for c in both), math.prod(extents[c] for c in made)
            options.append((products + stored, a, b, made))
        cost, a, b, made = min(options)
        steps.append((a, b, made, cost))
        left = [t for n, t in enumerate(left) if n not in (a, b)] + [made]
    return steps


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


EINSUM_RULES: Mapping[str, Sequence[Rule]] = {"Einsum": (einsum_to_matmul, einsum_in_pairs)}
