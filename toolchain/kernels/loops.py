"""Operators as loops: those whose iterations need what earlier ones found, so that no te.compute describes them.

They are what data-dependent shapes are made of (toolchain/graph/importers/bounded.py): each writes its results one behind
the other, zeros after them, and how many there are as its last output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.kernels.border import BORDERS
from toolchain.kernels.op import Op
from toolchain.kernels.sampled import SAMPLED
from toolchain.kernels.scan import SCANS
from toolchain.kernels.scatter import SCATTER
from toolchain.kernels.top_k import RANKED
from toolchain.te.expr import Expr
from toolchain.te.ir_builder import IRBuilder, Variable
from toolchain.te.loop_ir import ForKind, PrimFunc
from toolchain.te.tensor import Placeholder, Tensor

Loops = Callable[[Op, str], PrimFunc | None]     # None: its te definition serves this one better


def _outputs(op: Op) -> list[Tensor]:
    return [Tensor(f"y{n}", t.shape, t.dtype, Placeholder()) for n, t in enumerate(op.types)]


def _int64(value: int | Any) -> Expr:
    return te.const(value, "int64") if isinstance(value, int) else te.index(value).astype("int64")


def _at(value: Expr, n: int) -> te.Index:
    """An int64 that is known to lie in [0, n)."""
    return te.index(value, 0, n - 1)


def flat_non_zero(op: Op, name: str) -> PrimFunc:
    """The positions of the true flags in order, then zeros; and their number.

        FlatNonZero(flags[N]) -> positions[N], number
        for i: positions[count] = i; count += flags[i]
    """
    (n,), flags, (positions, number) = op.in_shape(), op.tensor(0), _outputs(op)
    b = IRBuilder()
    count = b.variable("count", "int64", 0)
    with b.loop("i", n) as i:
        b.store(positions, (_at(count.value, n),), _int64(i))
        b.set(count, count.value + te.select(flags[i], _int64(1), _int64(0)))
    with b.loop("j", n) as j, b.when(_int64(j) >= count.value):
        b.store(positions, (j,), _int64(0))
    b.store(number, (), count.value)
    return b.function(name, [flags], [positions, number])


def _limit(op: Op, i: int, most: int) -> Expr:
    """Optional input i, how many elements there really are, of at most `most`; without it that many."""
    return te.minimum(op.scalar(i).astype("int64"), _int64(most)) if op.has(i) else _int64(most)


def _before(a: Expr, b: Expr) -> Expr:
    """Whether a sorts before b; NaN is the largest number."""
    if a.dtype == "bool":
        a, b = a.astype("int32"), b.astype("int32")
    return te.any(a < b, te.all(te.isnan(a).equal(False), te.isnan(b))) if dtypes.is_float(a.dtype) else a < b


class _Rows:
    """Comparing rows of a matrix: `compare` sets `decision` to 1 (the first before the second), 2 (after) or 0 (equal)."""

    def __init__(self, b: IRBuilder, rows: Tensor) -> None:
        self.b, self.rows = b, rows
        self.decision = b.variable("decision", "int32")

    def compare(self, first: te.Index, second: te.Index) -> None:
        b, decision = self.b, self.decision
        b.set(decision, te.const(0, "int32"))
        with b.loop("m", self.rows.shape[1]) as m, b.when(decision.value.equal(te.const(0, "int32"))):
            left, right = self.rows[first, m], self.rows[second, m]
            b.set(decision, te.select(_before(left, right), te.const(1, "int32"), te.select(
                _before(right, left), te.const(2, "int32"), te.const(0, "int32"))))

    def before(self, first: te.Index, second: te.Index) -> Expr:
        self.compare(first, second)
        return self.decision.value.equal(te.const(1, "int32"))


def _merge_sort(
    b: IRBuilder, n: int, count: Expr, before: Callable[[te.Index, te.Index], Expr], scope: str = "global",
) -> Tensor:
    """The numbers below `count` (at most n) in order, equal ones as they came: merge sort from the bottom up.

    before(i, j): whether number i comes before j; it may write statements of its own that find that out.
    """
    order, merged = b.buffer("order", (n,), "int64", scope), b.buffer("merged", (n,), "int64", scope)
    with b.loop("i", n) as i:
        b.store(order, (i,), _int64(i))
        b.store(merged, (i,), _int64(i))
    width, left, right, middle, end, take = (
        b.variable(v, "int64") for v in ("width", "left", "right", "middle", "end", "take"))
    b.set(width, 1)
    with b.loop("level", max((n - 1).bit_length(), 1)), b.when(width.value < count):
        b.set(end, 0)
        with b.loop_up_to("p", count, n) as p:
            with b.when(p.astype("int64").equal(end.value)):            # two sorted runs lie here, one behind the other
                b.set(left, p.astype("int64"))
                b.set(middle, te.minimum(left.value + width.value, count))
                b.set(right, middle.value)
                b.set(end, te.minimum(middle.value + width.value, count))
            b.set(take, te.select(left.value < middle.value, _int64(1), _int64(0)))
            with b.when(te.all(left.value < middle.value, right.value < end.value)):
                first = before(_at(order[_at(right.value, n)], n), _at(order[_at(left.value, n)], n))
                b.set(take, te.select(first, _int64(0), _int64(1)))
            source = te.minimum(te.select(take.value.equal(_int64(1)), left.value, right.value), _int64(n - 1))
            b.store(merged, (p,), order[_at(source, n)])
            b.set(left, left.value + take.value)
            b.set(right, right.value + (_int64(1) - take.value))
        with b.loop_up_to("c", count, n) as c:
            b.store(order, (c,), merged[c])
        b.set(width, width.value + width.value)
    return order


def unique_rows(op: Op, name: str) -> PrimFunc:
    """Of the first `limit` rows the distinct ones, sorted or as they come: where each is first, how often it is there, and
    of every row which of them it is. By a merge sort of the rows.

        UniqueRows(rows[N, M], limit?) {sorted} -> first[N], counts[N], inverse[N], number
    """
    n, rows, (first, counts, inverse, number) = op.in_shape()[0], op.tensor(0), _outputs(op)
    in_order = bool(op.attr("sorted", 1))
    b = IRBuilder()
    limit = _limit(op, 1, n)
    for made in (first, counts, inverse):
        with b.loop("z", n) as z:
            b.store(made, (z,), _int64(0))
    by = _Rows(b, rows)
    order = _merge_sort(b, n, limit, by.before)
    starts, sizes = (first, counts) if in_order else (b.buffer("starts", (n,), "int64"), b.buffer("sizes", (n,), "int64"))
    groups = b.variable("groups", "int64", 0)
    with b.loop_up_to("q", limit, n) as q:
        row = _at(order[q], n)
        before = _at(te.maximum(q.astype("int64") - _int64(1), _int64(0)), n)
        by.compare(_at(order[before], n), row)
        starts_group = te.any(q.astype("int64").equal(_int64(0)), by.decision.value.not_equal(te.const(0, "int32")))
        with b.when(starts_group):
            b.set(groups, groups.value + 1)
            b.store(starts, (_group(groups, n),), order[q])
            b.store(sizes, (_group(groups, n),), _int64(0))
        b.store(sizes, (_group(groups, n),), sizes[_group(groups, n)] + 1)
        b.store(inverse, (row,), groups.value - _int64(1))
    if not in_order:
        _by_occurrence(b, limit, (starts, sizes), (first, counts, inverse))
    b.store(number, (), groups.value)
    given = [t for t in op.inputs if t is not None]
    return b.function(name, given, [first, counts, inverse, number])


def _group(groups: Variable, n: int) -> te.Index:
    """The group counted last."""
    return _at(te.maximum(groups.value - _int64(1), _int64(0)), n)


def _by_occurrence(b: IRBuilder, limit: Expr, groups: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor, Tensor]) -> None:
    """Number the groups anew, by their first rows."""
    (starts, sizes), (first, counts, inverse) = groups, made
    n = first.shape[0]
    renamed, seen = b.buffer("renamed", (n,), "int64"), b.variable("seen", "int64", 0)
    with b.loop_up_to("r", limit, n) as r:
        group = _at(inverse[r], n)
        with b.when(starts[group].equal(r.astype("int64"))):
            b.store(renamed, (group,), seen.value)
            b.store(first, (_at(seen.value, n),), r.astype("int64"))
            b.store(counts, (_at(seen.value, n),), sizes[group])
            b.set(seen, seen.value + 1)
        b.store(inverse, (r,), renamed[group])


@dataclass(frozen=True, slots=True)
class _Box:
    """A box's corners in registers, and how to read one."""

    low_y: Variable
    low_x: Variable
    high_y: Variable
    high_x: Variable

    @classmethod
    def make(cls, b: IRBuilder, name: str, dtype: str) -> _Box:
        return cls(*(b.variable(f"{name}_{corner}", dtype) for corner in ("low_y", "low_x", "high_y", "high_x")))

    def read(self, b: IRBuilder, boxes: Tensor, batch: Any, which: te.Index, center: bool) -> None:
        at = [boxes[batch, which, k] for k in range(4)]
        if center:                              # x, y of the centre, width, height
            half = te.const(2, boxes.dtype)
            corners = [at[1] - at[3] / half, at[0] - at[2] / half, at[1] + at[3] / half, at[0] + at[2] / half]
        else:                                   # y, x of two opposite corners, in any order
            corners = [find(at[k], at[k + 2]) for find in (te.minimum, te.maximum) for k in (0, 1)]
        for variable, value in zip((self.low_y, self.low_x, self.high_y, self.high_x), corners, strict=True):
            b.set(variable, value)

    @property
    def area(self) -> Expr:
        return (self.high_x.value - self.low_x.value) * (self.high_y.value - self.low_y.value)


def _overlap(one: _Box, other: _Box, threshold: Expr) -> Expr:
    """Whether intersection over union exceeds the threshold: the arithmetic of ONNX Runtime, step by step."""
    nil = te.const(0, threshold.dtype)
    width = te.minimum(one.high_x.value, other.high_x.value) - te.maximum(one.low_x.value, other.low_x.value)
    height = te.minimum(one.high_y.value, other.high_y.value) - te.maximum(one.low_y.value, other.low_y.value)
    both = width * height
    union = one.area + other.area - both
    real = te.all(width > nil, height > nil, both > nil, one.area > nil, other.area > nil, union > nil)
    return te.all(real, both / union > threshold)


def non_max_suppression(op: Op, name: str) -> PrimFunc:
    """Per batch and class, in parallel: the candidates above the score threshold, the best first (the lower index among
    equals); one is selected unless it overlaps a selected one too much, until `most` are.

        BoundedNonMaxSuppression(boxes[B, N, 4], scores[B, C, N], most?, iou?, score?, limit?) {bound, center_point_box}
            -> selected[B*C*bound, 3], number
    """
    boxes, scores, (selected, number) = op.tensor(0), op.tensor(1), _outputs(op)
    batches, classes, _ = scores.shape
    bound = int(op.attr("bound"))
    b = IRBuilder()
    picked = b.buffer("picked", (batches * classes, bound), "int64")
    found = b.buffer("found", (batches * classes,), "int64")
    with b.loop("row", batches * classes, ForKind.PARALLEL) as row:
        _select(op, b, boxes, scores, row, (picked, found))
    total = b.variable("total", "int64", 0)
    with b.loop("batch", batches) as batch, b.loop("class", classes) as cls:
        place = te.index(batch) * classes + cls
        with b.loop_up_to("k", found[place], bound) as k:
            for column, value in enumerate((_int64(batch), _int64(cls), picked[place, k])):
                b.store(selected, (_at(total.value, batches * classes * bound), column), value)
            b.set(total, total.value + 1)
    with b.loop("z", batches * classes * bound) as z, b.when(_int64(z) >= total.value), b.loop("column", 3) as c:
        b.store(selected, (z, c), _int64(0))
    b.store(number, (), total.value)
    given = [t for t in op.inputs if t is not None]
    return replace(b.function(name, given, [selected, number]), attrs={"exact": True})


def _select(op: Op, b: IRBuilder, boxes: Tensor, scores: Tensor, row: Any, made: tuple[Tensor, Tensor]) -> None:
    """One class of one batch: `picked[row, :]` the boxes selected, `found[row]` how many."""
    (picked, found), (_, classes, n), dtype = made, scores.shape, scores.dtype
    bound, center = int(op.attr("bound")), bool(op.attr("center_point_box", 0))
    most = te.minimum(op.scalar(2).astype("int64"), _int64(bound)) if op.has(2) else _int64(0)
    threshold = op.scalar(3).astype(dtype) if op.has(3) else te.const(0, dtype)
    batch, cls = te.index(row) // classes, te.index(row) % classes
    candidates, values = b.buffer("candidates", (n,), "int64", "lane"), b.buffer("values", (n,), dtype, "lane")
    count, taken, hit = b.variable("count", "int64", 0), b.variable("taken", "int64", 0), b.variable("hit", "int64")
    with b.loop_up_to("i", _limit(op, 5, n), n) as i:
        score = scores[batch, cls, i]
        with b.when(score > op.scalar(4).astype(dtype) if op.has(4) else te.const(True, "bool")):
            b.store(candidates, (_at(count.value, n),), i.astype("int64"))
            b.store(values, (_at(count.value, n),), score)
            b.set(count, count.value + 1)
    order = _merge_sort(b, n, count.value, lambda first, second: values[first] > values[second], "lane")
    box, other = _Box.make(b, "box", dtype), _Box.make(b, "other", dtype)
    with b.loop_up_to("j", count.value, n) as j, b.when(taken.value < most):
        which = candidates[_at(order[j], n)]
        box.read(b, boxes, batch, _at(which, n), center)
        b.set(hit, 0)
        with b.loop_up_to("s", taken.value, bound) as s, b.when(hit.value.equal(_int64(0))):
            other.read(b, boxes, batch, _at(picked[row, s], n), center)
            b.set(hit, te.select(_overlap(box, other, threshold), _int64(1), _int64(0)))
        with b.when(hit.value.equal(_int64(0))):
            b.store(picked, (row, _at(taken.value, bound)), which)
            b.set(taken, taken.value + 1)
    b.store(found, (row,), taken.value)


LOOPS: dict[str, Loops] = {
    **BORDERS, **RANKED, **SAMPLED, **SCANS, **SCATTER,
    "BoundedNonMaxSuppression": non_max_suppression,
    "FlatNonZero": flat_non_zero,
    "UniqueRows": unique_rows,
}
