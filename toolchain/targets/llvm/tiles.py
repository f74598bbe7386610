"""Register tiles that begin anew in each iteration of a loop: nobody wants what such a tile held before.

A tile is one alloca for a whole task. Where the end of a ragged axis masks a store to it, its other lanes would keep what
they held. In a tile that is turned, LLVM would carry every row from each iteration to the next, past loops in between, in
half of the registers; in a tile of sums, each multiply-add would need a blend. The emitter asks here which masks can go.

    for x:  for c in unrolled(8): tile[8*c ... 8*c + 7] = in[...] if lane < 6        tile of this x: computed here,
            for p in unrolled(6): out[...] = tile[p, p + 8, ..., p + 56]             and read here

    for x:  for i in unrolled(6): sums[8*i ... 8*i + 7] = 0
            for k: for i: sums[...] = fma(...) if 8*x + lane < 21                    the other lanes are read
            for i in unrolled(6): out[...] = sums[...] if 8*x + lane < 21            under this mask only
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from toolchain.te.expr import Bin, Broadcast, Call, Const, Expr, Index, Load, Ramp, Var
from toolchain.te.loop_ir import Block, Evaluate, For, ForKind, If, PrimFunc, Stmt, Store, Together, leaves
from toolchain.te.lower.shared import nodes
from toolchain.te.substitute import substitute_index
from toolchain.te.tensor import Compute, Tensor


class Tiles:
    """Per loop, the tiles that begin anew with its iterations; and of these, what is stored by now.

    Contains the tiles with masked stores only: the others need no answer.
    """

    def __init__(self, func: PrimFunc, body: Stmt) -> None:
        """body: a lowered phase of `func`."""
        self._tiles = _tiles(func, body)
        self._begin: dict[For, set[Tensor]] = {}
        self._open: dict[Tensor, For] = {}               # the loop it began with
        self._depth: dict[Tensor, int] = {}              # how many real loops stood around its beginning
        self._stored: dict[Tensor, set[int]] = {}        # elements
        self._unread: dict[tuple[For, Tensor], set[range]] = {}
        if self._tiles:
            self._find(body)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._tiles

    def begin(self, loop: For, depth: int) -> None:
        """An iteration of `loop` begins, with `depth` real loops around its body."""
        for tile in self._begin.get(loop, ()):
            self._open[tile], self._depth[tile], self._stored[tile] = loop, depth, set()

    def needs_mask(self, tensor: Tensor, depth: int, elements: range | None) -> bool:
        """Whether a store to these elements of a tile (None: to any of them) needs the mask it has; it counts as stored.

        Not where what the mask leaves out is read nowhere. Nor where the tile is new: no store before this one was to any
        of the elements, and it is not repeated (by a real loop since the beginning).
        """
        if tensor not in self._open:
            return True
        if elements is None:
            del self._open[tensor]
            return True
        stored = self._stored[tensor]
        new = self._depth[tensor] == depth and stored.isdisjoint(elements)
        stored.update(elements)
        return not new and elements not in self._unread[self._open[tensor], tensor]

    def _find(self, stmt: Stmt) -> tuple[set[Tensor], set[Tensor]]:
        """(tiles begun, tiles read by others) in `stmt`, without those whose loop is found: the innermost that does both."""
        match stmt:
            case Block(parts):
                found = [self._find(part) for part in parts]
                return set().union(*(b for b, _ in found)), set().union(*(r for _, r in found))
            case If(condition, body):
                begun, read = self._find(body)
                return begun, read | self._read(condition)
            case For(body=body):
                begun, read = self._find(body)
                if both := begun & read:
                    self._begin[stmt] = both
                    self._unread.update(((stmt, tile), _unread(body, tile)) for tile in both)
                return begun - both, read - both
            case Store() | Together():
                stored, read = {s.tensor for s in leaves(stmt) if isinstance(s, Store)}, self._read(stmt)
                return (stored & self._tiles if stored.isdisjoint(read) else set()), read - stored
        return set(), self._read(stmt)

    def _read(self, node: Stmt | Expr) -> set[Tensor]:
        return {n.tensor for n in nodes(node) if isinstance(n, Load) and n.tensor in self._tiles}


def _tiles(func: PrimFunc, body: Stmt) -> set[Tensor]:
    """Tensors in registers with masked stores that a schedule made: each element begins with one store where the tensor is
    attached, and what is attached there reads nothing else of it. No double buffers: those are filled ahead."""
    ahead = func.attrs.get("double_buffer", ())
    masked = {s.tensor for s in leaves(body) if isinstance(s, Store) and s.mask is not None}
    return {t for t in masked if func.buffers[t].scope == "local" and isinstance(t.op, Compute) and t.name not in ahead}


def _unread(body: Stmt, tile: Tensor) -> set[range]:
    """The vectors of a tile that `body` reads as it stores them, at the same place under the same mask: what the mask leaves
    out is read by the sums themselves only."""
    stores: dict[range, set[Mask | None]] = {}
    reads: dict[range, set[Mask | None]] = {}
    for stmt, known in _unrolled(body, {}):
        masks = {_mask(s.mask, known) for s in leaves(stmt) if isinstance(s, Store)}
        for s in (s for s in leaves(stmt) if isinstance(s, Store) and s.tensor is tile):
            if (at := _elements(s.index[0], known)) is None:
                return set()
            stores.setdefault(at, set()).add(_mask(s.mask, known) if s.mask is not None else ANY)
        if all(s.tensor is not tile for s in leaves(stmt) if isinstance(s, Store)):
            for load in (n for n in nodes(stmt) if isinstance(n, Load) and n.tensor is tile):
                if (at := _elements(load.index[0], known)) is None:
                    return set()
                reads.setdefault(at, set()).update(masks or {None})
    return {at for at, masks in stores.items() if None not in masks and len(masks - {ANY}) == 1 and all(
        at == other and found <= masks - {ANY} for other, found in reads.items() if _overlap(at, other))}


Mask: TypeAlias = tuple[str, Index, int, int, object]       # op, base, stride, lanes, bound
ANY: Mask = ("", Index(), 0, 0, None)                       # of a store without mask


def _unrolled(stmt: Stmt, known: Mapping[Var, int]) -> Iterator[tuple[Stmt, Mapping[Var, int]]]:
    """Each statement without others, as often as unrolled loops repeat it, with the values of their variables."""
    match stmt:
        case Block(parts):
            for part in parts:
                yield from _unrolled(part, known)
        case For(var, body, kind) if kind is ForKind.UNROLLED or var.extent == 1:
            for n in range(var.extent):
                yield from _unrolled(body, {**known, var: n})
        case For(body=body):
            yield from _unrolled(body, known)
        case If(condition, body):
            yield Evaluate(Call("if", (condition,), "bool")), known            # what the condition reads
            yield from _unrolled(body, known)
        case _:
            yield stmt, known


def _elements(at: Expr, known: Mapping[Var, int]) -> range | None:
    """The neighbours that an index means, where loops do not decide."""
    if not isinstance(at, Ramp) or at.stride != 1:
        return None
    base = substitute_index(at.base, known)
    return range(base.constant, base.constant + at.lanes) if base.is_constant else None


def _mask(mask: Expr | None, known: Mapping[Var, int]) -> Mask | None:
    match mask:
        case Bin(op, Ramp(base, stride, lanes), Broadcast(Const(value=bound))):
            return op, substitute_index(base, known), stride, lanes, bound
    return None


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


__all__ = ["Tiles"]
