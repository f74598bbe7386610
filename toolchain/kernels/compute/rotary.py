"""Rotary position embeddings: pairs of elements of a head are turned by an angle that its token's position gives."""

from __future__ import annotations

from typing import Any

from toolchain import te
from toolchain.kernels.compute.shape import wrapped
from toolchain.kernels.op import Compute, Op, injective, wide


def rotary_embedding(op: Op) -> te.Tensor:
    """Element d of a head, with its partner, the angle's cosine c and sine s of their pair:

        x[d]*c - x[partner]*s    the first of a pair
        x[partner]*s + x[d]*c    the second
        x[d]                     behind the rotary_embedding_dim elements that are turned

    The partner is `half` away, or (interleaved) the neighbour. x: (N, heads, S, D), or (N, S, heads*D).
    Source: ONNX RotaryEmbedding; Su et al., "RoFormer", 2021.
    """
    heads = int(op.attr("num_heads", 0))
    size = op.shape[-1] if len(op.shape) == 4 else op.shape[-1] // heads
    half = (int(op.attr("rotary_embedding_dim", 0)) or size) // 2
    interleaved, kind = bool(op.attr("interleaved", 0)), wide(op.dtype)

    def value(i: tuple[Any, ...]) -> te.Expr:
        *outer, last = i
        d, head = te.index(last) % size, te.index(last) // size * size
        token = (i[0], i[2] if len(i) == 4 else i[1])

        def x(at: Any) -> te.Expr:
            return op.x[(*outer, at + head)].astype(kind)

        def factor(n: int, pair: Any) -> te.Expr:
            row = (wrapped(op.tensor(3)[token], op.in_shape(n)[0]),) if op.has(3) else token
            return op.tensor(n)[(*row, pair)].astype(kind)
        pair = d // 2 if interleaved else d % half
        before, after, first = (d - 1, d + 1, (d % 2).equal(0)) if interleaved else (d - half, d + half, d < half)
        turned = x(d) * factor(1, pair) + te.select(first, -x(after), x(before)) * factor(2, pair)
        return (turned if 2 * half == size else te.select(d < 2 * half, turned, x(d))).astype(op.dtype)
    return injective(op, value)


ROTARY: dict[str, Compute] = {"RotaryEmbedding": rotary_embedding}
