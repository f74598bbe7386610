"""Instructions that sketches match by their meaning: dot products of small integers, a few factors per lane.

    c[l] += sum over k of a[k] * b[l, k]        l: the lanes of one vector of int32, k: 4 bytes or 2 words

The factors `a` are the same in all lanes (four bytes, broadcast), those of a lane lie together in `b`: a vector of each.
Sums wrap at 32 bits, as int32 does everywhere; no instruction taken here saturates (vpmaddubsw would).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from toolchain import te
from toolchain.core.target import Target


@dataclass(frozen=True, slots=True)
class Dot:
    """One kind of dot product: types of its factors, how many of them share a lane, which features have it (any of them),
    and which also add the sum to what is there (else that is an instruction more, and a register)."""

    name: str
    left: str
    right: str
    group: int
    features: tuple[str, ...]
    accumulating: tuple[str, ...]


VNNI = ("avx512vnni", "avxvnni")
BYTES = Dot("dot4", "uint8", "int8", 4, VNNI, VNNI)                       # vpdpbusd
WORDS = Dot("dot2", "int16", "int16", 2, ("sse2",), ("avx512vnni",))      # vpmaddwd and vpaddd, or vpdpwssd


def has_dot(kind: Dot, target: Target) -> bool:
    return any(target.has(f) for f in kind.features)


def accumulates(kind: Dot, target: Target) -> bool:
    """Whether the product and the addition to the sum are one instruction."""
    return any(target.has(f) for f in kind.accumulating)


def dot_of(left: str, right: str) -> Dot | None:
    """The dot product of factors of these types."""
    return next((kind for kind in (BYTES, WORDS) if (kind.left, kind.right) == (left, right)), None)


@lru_cache(16)
def dot(kind: Dot, lanes: int) -> te.Intrin:
    """The instruction: "dot4.16" is four bytes per lane, 16 lanes."""
    a = te.placeholder((kind.group,), kind.left, name="a")
    b = te.placeholder((lanes, kind.group), kind.right, name="b")
    k = te.reduce_axis(kind.group, "k")
    c = te.compute((lanes,), lambda i: te.sum(a[k].astype("int32") * b[i, k].astype("int32"), axis=k), name="c")
    return te.intrin(f"{kind.name}.{lanes}", c, {c: "local"})


__all__ = ["BYTES", "WORDS", "Dot", "accumulates", "dot", "dot_of", "has_dot"]
