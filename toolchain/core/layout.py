"""How a tensor's logical indices become places in memory: blocks, halo and tail, as frozen data.

A layout lists the physical dimensions, outermost first, each as (logical dimension, block):

    NCHW16c+h1   axes "NCHW", dims ((0,0) (1,0) (2,0) (3,0) (1,16)), halo one element before and after H and W
    OIHW16i32o   axes "OIHW", dims ((0,0) (1,0) (2,0) (3,0) (1,16) (0,32))

Block 0 is what is left of that dimension outside its blocks. te speaks logical indices only; `physical` is the one map
from logical to physical, and works on ints, on symbolic `te.Index` values and (through `pack`) on arrays alike.

Two rules keep borders true (both checked in debug plans):
- the **halo** holds zeros: producers write the interior only, storage with a halo is zeroed once;
- the **tail** (a dimension that its blocks do not divide) holds zeros: whoever produces the tensor writes zeros there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

DEFAULT_AXES = ("", "A", "AB", "NCW", "NCHW", "NCDHW")


def default_axes(rank: int) -> str:
    """The letters of a layout of that rank when nobody names them."""
    return DEFAULT_AXES[rank] if rank < len(DEFAULT_AXES) else "".join(chr(ord("A") + i) for i in range(rank))


@dataclass(frozen=True, slots=True)
class Layout:
    """Physical dimensions (outermost first) of a tensor whose logical dimensions are the letters of `axes`.

    `halo[d]` is (before, after) in elements of logical dimension d; a dimension may have blocks or a halo, not both.
    """

    axes: str
    dims: tuple[tuple[int, int], ...]
    halo: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        rank = len(self.axes)
        outer = sorted(d for d, block in self.dims if block == 0)
        if outer != list(range(rank)) or len(self.halo) != rank:
            raise ValueError(f"a layout needs each of its {rank} logical dimensions once outside its blocks: {self.dims}")
        if any(self.halo[d] != (0, 0) for d, block in self.dims if block):
            raise ValueError(f"dimension blocked and with a halo: {self}")

    @classmethod
    def row_major(cls, rank: int) -> Layout:
        """The plain layout: as NumPy's C order."""
        return cls(default_axes(rank), tuple((d, 0) for d in range(rank)), ((0, 0),) * rank)

    @classmethod
    def parse(cls, text: str, axes: str | None = None) -> Layout:
        """Read `NCHW16c+h1`: capitals are outer dimensions, `16c` a block; `+h1` a halo of one around H and W (every
        dimension after the second). `axes` gives the logical order when it differs from the order of the capitals."""
        if not (match := re.fullmatch(r"([A-Z]+)((?:\d+[a-z])*)(?:\+h(\d+))?", text)):
            raise ValueError(f"not a layout: {text!r}")
        capitals, blocks, halo = match.groups()
        axes = axes or capitals
        dims = [(axes.index(c), 0) for c in capitals]
        dims += [(axes.index(letter.upper()), int(size)) for size, letter in re.findall(r"(\d+)([a-z])", blocks)]
        h = int(halo or 0)
        return cls(axes, tuple(dims), tuple((h, h) if d >= 2 else (0, 0) for d in range(len(axes))))

    def __str__(self) -> str:
        text = "".join(self.axes[d] if block == 0 else f"{block}{self.axes[d].lower()}" for d, block in self.dims)
        halos = set(self.halo[2:])
        if not any(any(h) for h in self.halo):
            return text
        if len(halos) == 1 and not any(any(h) for h in self.halo[:2]) and len(set(h := next(iter(halos)))) == 1:
            return f"{text}+h{h[0]}"
        return text + "+h(" + ",".join(f"{before}:{after}" for before, after in self.halo) + ")"

    @property
    def is_row_major(self) -> bool:
        return self.dims == tuple((d, 0) for d in range(len(self.axes))) and not self.has_halo

    @property
    def has_halo(self) -> bool:
        return any(any(h) for h in self.halo)

    def block(self, dim: int) -> int:
        """The product of all blocks of a logical dimension (1: not blocked)."""
        size = 1
        for d, block in self.dims:
            if d == dim and block:
                size *= block
        return size

    def padded(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The logical extents rounded up to whole blocks, without halo."""
        return tuple(-(-n // self.block(d)) * self.block(d) for d, n in enumerate(shape))

    def has_tail(self, shape: Sequence[int]) -> bool:
        return self.padded(shape) != tuple(shape)

    def with_halo(self, halo: Sequence[tuple[int, int]]) -> Layout:
        return Layout(self.axes, self.dims, tuple(halo))

    def physical_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Extent of each physical dimension, halo and tail included."""
        return _physical_shape(self, tuple(shape))

    def physical(self, index: Sequence[Any]) -> tuple[Any, ...]:
        """Map logical indices (ints or te.Index) to one index per physical dimension."""
        inner = [1] * len(self.axes)            # product of the blocks further in, seen so far from the right
        out: list[Any] = []
        for d, block in reversed(self.dims):
            i = index[d] + self.halo[d][0] if self.halo[d][0] else index[d]
            if inner[d] != 1:
                i = i // inner[d]
            if block:
                i = i % block
                inner[d] *= block
            out.append(i)
        return tuple(reversed(out))

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Elements between neighbours, per physical dimension."""
        return _strides(self, tuple(shape))

    def offset(self, shape: Sequence[int], index: Sequence[Any]) -> Any:
        """Elements from the start of the storage to a logical index (int or te.Index)."""
        parts = [i if s == 1 else i * s for i, s in zip(self.physical(index), self.strides(shape), strict=True)]
        return sum(parts[1:], parts[0]) if parts else 0

    def size(self, shape: Sequence[int]) -> int:
        """Elements of storage, halo and tail included."""
        return math.prod(self.physical_shape(shape))

    def pack(self, array: np.ndarray) -> np.ndarray:
        """The physical array of a logical one; halo and tail are zero."""
        whole = self.padded(array.shape)
        pads = [(h[0], h[1] + p - n) for h, p, n in zip(self.halo, whole, array.shape, strict=True)]
        logical = np.pad(array, pads) if any(any(p) for p in pads) else array
        blocks = [[b for d, b in self.dims if d == dim and b] for dim in range(len(self.axes))]
        split: list[int] = []                    # every logical dimension as (outer, blocks...), in logical order
        place: dict[tuple[int, int], int] = {}
        for dim, sizes in enumerate(blocks):
            place[dim, 0] = len(split)
            split.append(logical.shape[dim] // math.prod(sizes))
            for n, size in enumerate(sizes, 1):
                place[dim, n] = len(split)
                split.append(size)
        seen = [0] * len(self.axes)
        order = []
        for d, block in self.dims:
            if block:
                seen[d] += 1
            order.append(place[d, seen[d] if block else 0])
        return np.asarray(logical.reshape(split).transpose(order), order="C")

    def unpack(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The logical array of a physical one: the inverse of `pack`, halo and tail dropped."""
        physical = np.asarray(array).reshape(self.physical_shape(shape))
        order = sorted(range(len(self.dims)), key=lambda p: (self.dims[p][0], self.dims[p][1] != 0, p))
        extents = [p + sum(h) for p, h in zip(self.padded(shape), self.halo, strict=True)]
        logical = physical.transpose(order).reshape(extents)
        return np.asarray(logical[tuple(slice(h[0], h[0] + n) for h, n in zip(self.halo, shape, strict=True))], order="C")


# Lowering asks for the same few layouts and shapes at every access
@lru_cache(maxsize=4096)
def _physical_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    whole = layout.padded(shape)
    return tuple(block or (whole[d] + sum(layout.halo[d])) // layout.block(d) for d, block in layout.dims)


@lru_cache(maxsize=4096)
def _strides(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    extents = _physical_shape(layout, shape)
    return tuple(math.prod(extents[i + 1:]) for i in range(len(extents)))


@dataclass(frozen=True, slots=True)
class TensorType:
    """Logical shape, dtype and layout of a tensor. Prints `float32[1, 64, 56, 56] NCHW16c+h1` (plain layouts unnamed)."""

    shape: tuple[int, ...]
    dtype: str
    layout: Layout

    @classmethod
    def plain(cls, shape: Sequence[int], dtype: str = "float32") -> TensorType:
        return cls(tuple(shape), dtype, Layout.row_major(len(shape)))

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(map(str, self.shape))}]"
        return text if self.layout.is_row_major else f"{text} {self.layout}"

    def with_layout(self, layout: Layout) -> TensorType:
        return TensorType(self.shape, self.dtype, layout)

    @property
    def elements(self) -> int:
        """Logical elements, halo and tail not counted."""
        return math.prod(self.shape)
