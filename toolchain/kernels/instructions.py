"""Instructions that sketches match by their meaning: dot products of small integers, a few factors per lane.

    c[l] += sum over k of a[k] * b[l, k]        l: the lanes of one vector of int32, k: 4 bytes, 2 words, or one word

The factors `a` are the same in all lanes (four bytes, broadcast), those of a lane lie together in `b`: a vector of each.
Arm's take `a` as one lane of a register. Its Armv8.0 has no dot product, but a product of words that is added to int32.
It also multiplies bytes, adds two products in 16 bits, and neighbours of these to int32: sixteen products of one column,
whose four lanes are partial sums of it. They are joined when all products are in:

    c[l] += sum over h, q of a[8*h + 2*l + q] * b[8*h + 2*l + q]        h, q: 2, l: 4      sums over h in 16 bits
    c[j] += sum over l of r[j, l]                                       j, l: 4

Sums wrap at 32 bits, as int32 does everywhere; no instruction taken here saturates (vpmaddubsw would). Those of 16 bits are
taken only where the weights tell that none can wrap (`pairs_fit` in graph/passes/integer_products.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from toolchain import te
from toolchain.core.target import Target


@dataclass(frozen=True, slots=True)
class Dot:
    """One kind of dot product: types of its factors, how many of them share a lane, which features have it (any of them),
    and which also add the sum to what is there (else that is an instruction more, and a register). lane_registers: how many
    registers can give a lane as the left factor (0: any). pairs: the factors are those of one column, and its lanes partial
    sums; two products are added in 16 bits, which the weights have to allow."""

    name: str
    left: str
    right: str
    group: int
    features: tuple[str, ...]
    accumulating: tuple[str, ...]
    lane_registers: int = 0
    pairs: bool = False


VNNI = ("avx512vnni", "avxvnni")
BYTES = Dot("dot4", "uint8", "int8", 4, VNNI, VNNI)                       # vpdpbusd
WORDS = Dot("dot2", "int16", "int16", 2, ("sse2",), ("avx512vnni",))      # vpmaddwd and vpaddd, or vpdpwssd
SIGNED_BYTES = Dot("sdot4", "int8", "int8", 4, ("dotprod",), ("dotprod",))  # sdot
PAIRED_BYTES = Dot("pairs", "int8", "int8", 16, ("neon",), ("neon",), pairs=True)    # smull, smlal2 and sadalp
SINGLE_WORDS = Dot("dot1", "int16", "int16", 1, ("neon",), ("neon",), 16)   # smlal
DOTS = (BYTES, SIGNED_BYTES, PAIRED_BYTES, WORDS, SINGLE_WORDS)            # of those that take the same factors the first
NARROW = frozenset(("uint8", "int8"))


def has_dot(kind: Dot, target: Target) -> bool:
    return any(target.has(f) for f in kind.features)


def accumulates(kind: Dot, target: Target) -> bool:
    """Whether the product and the addition to the sum are one instruction."""
    return any(target.has(f) for f in kind.accumulating)


def dot_of(left: str, right: str, target: Target, pairs: bool = False) -> Dot | None:
    """The target's dot product of factors of these types. pairs: weights allow it to add two products in 16 bits."""
    return next((kind for kind in _dots(target, pairs) if (kind.left, kind.right) == (left, right)), None)


def bytes_and_words(target: Target, pairs: bool = False) -> tuple[Dot | None, Dot | None]:
    """The target's dot product of bytes, and that of words."""
    found = _dots(target, pairs)
    narrow = next((kind for kind in found if kind.left in NARROW), None)
    return narrow, next((kind for kind in found if kind.left not in NARROW), None)


def _dots(target: Target, pairs: bool) -> list[Dot]:
    return [kind for kind in DOTS if has_dot(kind, target) and (pairs or not kind.pairs)]


@lru_cache(16)
def dot(kind: Dot, lanes: int) -> te.Intrin:
    """The instruction: "dot4.16" is four bytes per lane, 16 lanes."""
    if kind.pairs:
        return _paired(kind, lanes)
    a = te.placeholder((kind.group,), kind.left, name="a")
    b = te.placeholder((lanes, kind.group), kind.right, name="b")
    k = te.reduce_axis(kind.group, "k")
    c = te.compute((lanes,), lambda i: te.sum(a[k].astype("int32") * b[i, k].astype("int32"), axis=k), name="c")
    return te.intrin(f"{kind.name}.{lanes}", c, {c: "local"})


def _paired(kind: Dot, lanes: int) -> te.Intrin:
    """"pairs.4": the instructions that are one here, sixteen bytes of a row by sixteen of a column."""
    half = kind.group // 2
    pair = half // lanes
    a, b = (te.placeholder((kind.group,), factor, name=name) for name, factor in (("a", kind.left), ("b", kind.right)))
    h, q = te.reduce_axis(2, "h"), te.reduce_axis(pair, "q")

    def value(i: te.Var) -> te.Expr:
        at = half * h + pair * i + q
        return te.sum(a[at].astype("int32") * b[at].astype("int32"), axis=(h, q))
    c = te.compute((lanes,), value, name="c")
    two = te.compute((lanes, pair), lambda i, n: te.sum(
        a[half * h + pair * i + n].astype("int32") * b[half * h + pair * i + n].astype("int32"), axis=h), name="two")
    return te.intrin(f"{kind.name}.{lanes}", c, {c: "local"}, between=(two, "int16"))


@lru_cache(4)
def join(lanes: int) -> te.Intrin:
    """The partial sums of as many columns as there are lanes, each added up into a lane: "join.4"."""
    r, k = te.placeholder((lanes, lanes), "int32", name="r"), te.reduce_axis(lanes, "k")
    c = te.compute((lanes,), lambda i: te.sum(r[i, k], axis=k), name="c")
    return te.intrin(f"join.{lanes}", c, {c: "local", r: "local"})


__all__ = ["BYTES", "DOTS", "PAIRED_BYTES", "SIGNED_BYTES", "SINGLE_WORDS", "WORDS", "Dot", "accumulates", "bytes_and_words",
           "dot", "dot_of", "has_dot", "join"]
