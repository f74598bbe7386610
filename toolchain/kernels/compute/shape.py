"""Operators that only move elements: index maps. Reshape is a division, Transpose a permutation, Concat a select."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolchain import te
from toolchain.core.errors import CodegenError
from toolchain.kernels.op import Compute, Op, broadcast, injective, row_major

At = tuple[Any, ...]


def unflatten_index(position: Any, shape: Sequence[int]) -> At:
    """The index at a row-major position: the inverse of `row_major`."""
    out: list[Any] = []
    rest = te.index(position)
    for n in reversed(shape[1:]):
        out.append(rest % n)
        rest = rest // n
    return (rest, *reversed(out)) if shape else ()


def reshape(op: Op) -> te.Tensor:
    """Also Flatten, Squeeze and Unsqueeze: the types say all."""
    source = op.in_shape()
    return injective(op, lambda i: op.x[unflatten_index(row_major(i, op.shape), source)])


def transpose(op: Op) -> te.Tensor:
    rank = len(op.shape)
    perm = op.attr("perm") or tuple(reversed(range(rank)))
    inverse = [perm.index(d) for d in range(rank)]
    return injective(op, lambda i: op.x[tuple(i[p] for p in inverse)])


def concat(op: Op) -> te.Tensor:
    """The pieces side by side along `axis`: a select on the position, which `partition` turns into one loop per piece."""
    axis = op.axis("axis", rank=len(op.shape))
    ends = np.cumsum([op.in_shape(n)[axis] for n in range(len(op.inputs))]).tolist()

    def value(i: At) -> te.Expr:
        result: te.Expr | None = None
        for n in reversed(range(len(op.inputs))):
            start = ends[n - 1] if n else 0
            piece = op.tensor(n)[(*i[:axis], i[axis] - start, *i[axis + 1:])]
            result = piece if result is None else te.select(i[axis] < ends[n], piece, result)
        assert result is not None
        return result
    return te.compute(op.shape, lambda *i: value(i), name=op.name(), tag="concat", attrs={"axis": axis, "ends": ends})


def slice_(op: Op) -> te.Tensor:
    """Slice with constant starts, ends, axes, steps (ONNX: negative values count from the end, out-of-range ones clamp)."""
    source = op.in_shape()
    starts = op.ints(1, "starts") or []
    axes = [a % len(source) for a in op.ints(3, "axes", range(len(starts))) or []]
    steps = op.ints(4, "steps", [1] * len(starts)) or []
    first, step = [0] * len(source), [1] * len(source)
    for a, s, k in zip(axes, starts, steps, strict=True):
        n = source[a]
        s = s + n if s < 0 else s
        first[a] = min(max(s, 0), n) if k > 0 else min(max(s, 0), n - 1)
        step[a] = k
    return injective(op, lambda i: op.x[tuple(j * k + f for j, f, k in zip(i, first, step, strict=True))])


def split(op: Op) -> tuple[te.Tensor, ...]:
    """The parts along `axis`, one per named output."""
    axis = op.axis("axis", 0)
    total, count = op.in_shape()[axis], len(op.node.outputs)
    sizes = op.ints(1, "split") or [-(-total // count)] * (count - 1) + [total - -(-total // count) * (count - 1)]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    named = [s for s, output in zip(starts, op.node.outputs, strict=True) if output]
    return tuple(
        te.compute(type_.shape, lambda *i, o=offset: op.x[(*i[:axis], i[axis] + o, *i[axis + 1:])], name=op.name(),
                   tag="injective")
        for offset, type_ in zip(named, op.types, strict=True)
    )


@dataclass(frozen=True, slots=True)
class PadBounds:
    """What Pad adds before and after each dimension (negative: crops, before anything is padded), and how."""

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    mode: str

    @classmethod
    def of(cls, op: Op) -> PadBounds:
        shape, rank = op.in_shape(), len(op.in_shape())
        amounts = op.ints(1, "pads") or []
        axes = [a % rank for a in op.ints(3, "axes", range(rank)) or []]
        before, after = [0] * rank, [0] * rank
        for n, a in enumerate(axes):
            before[a], after[a] = amounts[n], amounts[len(axes) + n]
        mode = op.attr("mode", "constant")
        if mode not in ("constant", "edge", "reflect", "wrap"):
            raise CodegenError(f"Pad mode {mode!r} is not supported", where=op.node.name)
        return cls(shape, tuple(before), tuple(after), mode)

    def source(self, d: int, i: Any) -> Any:
        """Where the element i of dimension d comes from, in the modes that repeat elements."""
        first, end = max(-self.before[d], 0), self.shape[d] - max(-self.after[d], 0)
        return _reflected(self.mode, te.index(i) - self.before[d], first, end)


def pad(op: Op) -> te.Tensor:
    """Pad: the fill value may be computed at run time, the amounts not. Negative ones crop, before anything is padded."""
    bounds = PadBounds.of(op)
    fill = op.scalar(2) if op.has(2) else te.const(0, op.dtype)

    def value(i: At) -> te.Expr:
        if bounds.mode == "constant":
            at = [j - b for j, b in zip(i, bounds.before, strict=True)]
            inside = te.all(*(te.all(te.index(j) >= 0, te.index(j) < n) for j, n in zip(at, bounds.shape, strict=True)))
            return te.select(inside, op.x[tuple(at)], fill)
        return op.x[tuple(bounds.source(d, j) for d, j in enumerate(i))]
    return injective(op, value)


def _reflected(mode: str, j: Any, first: int, end: int) -> Any:
    """An index moved back inside [first, end) by the padding mode, however far outside it lies."""
    return _inside(mode, te.index(j - first), end - first) + first


def _inside(mode: str, j: te.Index, n: int) -> te.Index:
    """Moved inside [0, n)."""
    low, high = j.range()
    if n == 1:
        return te.index(0)
    if low >= 0 and high < n:
        return j
    period = n if mode == "wrap" else 2 * (n - 1)
    if mode != "edge":
        j = (j + period * -(low // period)) % period
    if mode == "wrap":
        return j
    value, top, nil = j.astype("int64"), te.const(n - 1, "int64"), te.const(0, "int64")
    moved = te.minimum(te.maximum(value, nil), top) if mode == "edge" else top - te.abs(top - value)
    return te.index(moved, 0, n - 1)


def expand(op: Op) -> te.Tensor:
    return injective(op, lambda i: broadcast(op.x, i))


def tile(op: Op) -> te.Tensor:
    return injective(op, lambda i: op.x[tuple(te.index(j) % n for j, n in zip(i, op.in_shape(), strict=True))])


def wrapped(value: te.Expr, n: int) -> te.Index:
    """A run-time index, negative values counted from the end (ONNX), kept in range."""
    wanted = _from_end(value.astype("int64"), n)
    clamped = te.minimum(te.maximum(wanted, te.const(0, "int64")), te.const(n - 1, "int64"))
    return te.index(clamped, 0, n - 1)


def _from_end(at: te.Expr, n: int) -> te.Expr:
    """An int64 index; negative ones count from the end."""
    return te.select(at < te.const(0, "int64"), at + te.const(n, "int64"), at)


def gather(op: Op) -> te.Tensor:
    """y[i..., j..., k...] = x[i..., indices[j...], k...], the indices along `axis`; negative ones count from the end."""
    axis = op.axis("axis", 0)
    n = op.in_shape()[axis]
    picks = len(op.in_shape(1))
    chosen_from = op.tensor(1)

    def value(i: At) -> te.Expr:
        if op.inputs[1] is None and op.constant(1).size == 1:
            chosen: Any = int(op.constant(1).reshape(-1)[0]) % n
        else:
            chosen = wrapped(chosen_from[tuple(i[axis:axis + picks])], n)
        return op.x[(*i[:axis], chosen, *i[axis + picks:])]
    return injective(op, value)


def gather_elements(op: Op) -> te.Tensor:
    axis = op.axis("axis", 0)
    n, picks = op.in_shape()[axis], op.tensor(1)
    return injective(op, lambda i: op.x[(*i[:axis], wrapped(picks[tuple(i)], n), *i[axis + 1:])])


def gather_nd(op: Op) -> te.Tensor:
    """x[b..., indices[b..., j..., :], ...]: the last dimension of the indices is one index into x."""
    picks, source, batch = op.tensor(1), op.in_shape(), int(op.attr("batch_dims", 0))
    depth, lead = picks.shape[-1], len(picks.shape) - 1

    def value(i: At) -> te.Expr:
        at = [wrapped(picks[(*i[:lead], d)], source[batch + d]) for d in range(depth)]
        return op.x[(*i[:batch], *at, *i[lead:])]
    return injective(op, value)


def reverse_sequence(op: Op) -> te.Tensor:
    """The first sequence_lens[b] elements along the time axis backwards, the rest as they are."""
    batch, time = op.axis("batch_axis", 1), op.axis("time_axis", 0)
    lengths, n = op.tensor(1), op.in_shape()[op.axis("time_axis", 0)]

    def value(i: At) -> te.Expr:
        here, length = te.index(i[time]).astype("int64"), lengths[i[batch]].astype("int64")
        there = te.select(here < length, length - here - te.const(1, "int64"), here)
        kept = te.minimum(te.maximum(there, te.const(0, "int64")), te.const(n - 1, "int64"))
        return op.x[(*i[:time], te.index(kept, 0, n - 1), *i[time + 1:])]
    return injective(op, value)


def eye_like(op: Op) -> te.Tensor:
    k = int(op.attr("k", 0))
    return injective(op, lambda i: te.select((te.index(i[1]) - i[0]).equal(k), te.const(1, op.dtype), te.const(0, op.dtype)))


def center_crop_pad(op: Op) -> te.Tensor:
    """Cropped or zero-padded around the centre to the result's shape. Source: ONNX CenterCropPad."""
    source = op.in_shape()

    def value(i: At) -> te.Expr:
        at = [j + ((n - m) // 2 if n > m else -((m - n) // 2)) for j, n, m in zip(i, source, op.shape, strict=True)]
        inside = te.all(*(te.all(te.index(j) >= 0, te.index(j) < n) for j, n in zip(at, source, strict=True)))
        return te.select(inside, op.x[tuple(at)], te.const(0, op.dtype))
    return injective(op, value)


def depth_to_space(op: Op) -> te.Tensor:
    """(N, C * b * b, H, W) -> (N, C, H * b, W * b). Phase (y, x) of channel c reads channel phase * C + c in mode DCR,
    c * b * b + phase in CRD.
    """
    b = op.attr("blocksize")
    channels = op.shape[1]

    def value(i: At) -> te.Expr:
        n, c, y, x = i
        y, x = te.index(y), te.index(x)
        phase = (y % b) * b + x % b
        source = phase * channels + c if op.attr("mode", "DCR") == "DCR" else c * (b * b) + phase
        return op.x[n, source, y // b, x // b]
    return injective(op, value)


def space_to_depth(op: Op) -> te.Tensor:
    """(N, C, H * b, W * b) -> (N, C * b * b, H, W), the inverse of DepthToSpace."""
    b, channels = op.attr("blocksize"), op.in_shape()[1]
    depth_first = op.attr("mode", "DCR") == "DCR"

    def value(i: At) -> te.Expr:
        n, c, y, x = i
        c = te.index(c)
        source, phase = (c % channels, c // channels) if depth_first else (c // (b * b), c % (b * b))
        return op.x[n, source, y * b + phase // b, x * b + phase % b]
    return injective(op, value)


def constant_of_shape(op: Op) -> te.Tensor:
    fill = op.attr("value")
    number = 0.0 if fill is None else np.asarray(fill).reshape(-1)[0].item()
    return injective(op, lambda i: te.const(number, op.dtype))


def one_hot(op: Op) -> te.Tensor:
    """values[1] where the class is the index along `axis`, values[0] elsewhere; negative classes count from the end."""
    axis = op.axis("axis", -1, rank=len(op.shape))
    depth, classes, values = op.shape[axis], op.tensor(0), op.tensor(2)

    def value(i: At) -> te.Expr:
        wanted = _from_end(classes[(*i[:axis], *i[axis + 1:])].astype("int64"), depth)
        return te.select(wanted.equal(te.index(i[axis]).astype("int64")), values[1], values[0])
    return injective(op, value)


def range_(op: Op) -> te.Tensor:
    start, _, delta = (op.constant(k).reshape(-1)[0].item() for k in range(3))
    return injective(op, lambda i: te.index(i[0]).astype(op.dtype) * te.const(delta, op.dtype) + te.const(start, op.dtype))


def trilu(op: Op) -> te.Tensor:
    k = int(op.constant(1).reshape(-1)[0]) if op.has(1) else 0
    upper = bool(op.attr("upper", 1))
    return injective(op, lambda i: te.select(
        (te.index(i[-1]) - i[-2] >= k) if upper else (te.index(i[-1]) - i[-2] <= k), op.x[tuple(i)], te.const(0, op.dtype)
    ))


SHAPE: dict[str, Compute] = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": reshape,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": reshape,
}
