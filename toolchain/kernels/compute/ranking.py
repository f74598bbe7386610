"""Operators that put elements in order or in their place: TopK, TensorScatter; and Det of small matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolchain import te
from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError
from toolchain.kernels.compute.reduce import prefix_scan
from toolchain.kernels.op import Compute, Op, injective
from toolchain.te.expr import Bin, binary

At = tuple[Any, ...]

LARGEST_DETERMINANT = 4


def sort_key(x: te.Expr, largest: bool) -> te.Expr:
    """An int32 (int64) that orders as x does, the first of the order largest. NaN counts as the largest number; -0 is 0."""
    if dtypes.is_float(x.dtype):
        value = x if x.dtype == "float64" else x.astype("float32")
        kind, bits = ("int64", 64) if x.dtype == "float64" else ("int32", 32)
        code = te.call("bitcast", value + te.const(0, value.dtype), dtype=kind)
        below = Bin("xor", code, te.const(2 ** (bits - 1) - 1, kind))           # of negative numbers the larger is nearer 0
        key = te.select(te.isnan(value), te.const(2 ** (bits - 1) - 1, kind), te.select(code < 0, below, code))
    elif x.dtype == "uint64":
        key = Bin("xor", x, te.const(2**63, "uint64")).astype("int64")
    else:
        key = x.astype("int64" if x.dtype in ("int64", "uint32") else "int32")
    return key if largest else Bin("xor", key, te.const(-1, key.dtype))


def _threshold(op: Op, keys: te.Tensor, axis: int, k: int) -> te.Tensor:
    """The k-th largest key of each row, four bits at a time: the most of 0 .. 15 that can be added so that k keys reach it.

        t = lowest;   for the bits from the highest:  t += how many of t + 1, ..., t + 15 (in that place) k keys reach
    """
    kind = keys.dtype
    one_row = _moved(keys.shape, axis, 1)
    found = te.compute(one_row, lambda *i: te.const(dtypes.lowest(kind), kind), name=op.name("start"), tag="scan")
    for place in range(dtypes.bits(kind) - 4, -1, -4):
        found = _four_bits(op, keys, axis, k, found, place)
    return found


def _four_bits(op: Op, keys: te.Tensor, axis: int, k: int, before: te.Tensor, place: int) -> te.Tensor:
    kind, n = keys.dtype, keys.shape[axis]
    r, c = te.reduce_axis(n, "r"), te.reduce_axis(DIGITS, "c")
    unit = te.const(_wrapped(1 << place, kind), kind)

    def reaching(*i: Any) -> te.Expr:
        wanted = before[i[:-1]] + te.index(i[-1]).astype(kind) * unit
        return te.sum(te.select(keys[_moved(i[:-1], axis, r)] >= wanted, te.const(1, "int32"), te.const(0, "int32")), axis=r)
    reached = te.compute((*before.shape, DIGITS), reaching, name=op.name("reached"), tag="reduce")
    digit = te.compute(before.shape, lambda *i: te.max(
        te.select(reached[(*i, c)] >= k, te.index(c).astype("int32"), te.const(0, "int32")), axis=c),
        name=op.name("digit"), tag="reduce")
    return te.compute(before.shape, lambda *i: before[i] + digit[i].astype(kind) * unit, name=op.name("threshold"),
                      tag="scan")


def _wrapped(value: int, kind: str) -> int:
    """The number of that type with those low bits."""
    bits = dtypes.bits(kind)
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


DIGITS = 16                     # of four bits
RANKED_DIRECTLY = 256           # elements of a row up to which every element is compared with every other
BLOCK = 64                      # elements that are looked through for one whose number is known


def _candidates(op: Op, keys: te.Tensor, axis: int, k: int) -> te.Tensor:
    """The positions of the k largest keys of each row, in the order of positions; of equal ones the first.

        P = prefix sums of (key > threshold) and of (key == threshold), two numbers in one
        C[i] = P's first + min(P's second, how many equal ones are wanted)          candidates among the first i + 1
        c[t] = the first i with C[i] > t: blocks whose last C is at most t are counted, then elements of the next block
    """
    n, kind = keys.shape[axis], "int32" if keys.shape[axis] < 1 << 15 else "int64"
    half, whole = dtypes.bits(kind) // 2, -(-n // BLOCK) * BLOCK
    threshold = _threshold(op, keys, axis, k)
    padded = tuple(whole if d == axis else m for d, m in enumerate(keys.shape))

    def flags(i: At) -> te.Expr:
        key, limit = keys[i], threshold[_moved(i, axis, 0)]
        above, equal = te.const(1, kind), te.const(1 << half, kind)
        flag = te.select(key > limit, above, te.select(key.equal(limit), equal, te.const(0, kind)))
        return te.select(te.index(i[axis]) < n, flag, te.const(0, kind)) if whole > n else flag
    sums = prefix_scan(op, padded, axis, flags, lambda a, b: a + b, te.const(0, kind))
    mask = te.const((1 << half) - 1, kind)

    def chosen(*i: Any) -> te.Expr:
        last = sums[_moved(i, axis, whole - 1)]
        here = sums[i]
        wanted = te.const(k, kind) - Bin("and", last, mask)
        return Bin("and", here, mask) + te.minimum(binary(">>", here, te.const(half, kind)), wanted)
    count = te.compute(padded, chosen, name=op.name("chosen"), tag="scan")
    blocks = whole // BLOCK
    ends = te.compute(_moved(padded, axis, blocks), lambda *i: count[_moved(i, axis, te.index(i[axis]) * BLOCK + BLOCK - 1)],
                      name=op.name("ends"), tag="scan")
    shape = _moved(keys.shape, axis, k)
    b, j = te.reduce_axis(blocks, "b"), te.reduce_axis(BLOCK, "j")

    def at_most(value: te.Expr, t: Any) -> te.Expr:
        return te.select(value <= te.index(t).astype(kind), te.const(1, "int32"), te.const(0, "int32"))
    block = te.compute(shape, lambda *i: te.sum(at_most(ends[_moved(i, axis, b)], i[axis]), axis=b), name=op.name("block"),
                       tag="reduce")

    def within(*i: Any) -> te.Expr:
        first = te.index(block[i].astype("int64"), 0, blocks - 1) * BLOCK
        return te.sum(at_most(count[_moved(i, axis, first + j)], i[axis]), axis=j)
    offset = te.compute(shape, within, name=op.name("offset"), tag="reduce")
    return te.compute(shape, lambda *i: block[i] * BLOCK + offset[i], name=op.name("candidate"), tag="scan")


def _moved(at: Sequence[Any], axis: int, to: Any) -> At:
    return (*at[:axis], to, *at[axis + 1:])


def top_k(op: Op) -> tuple[te.Tensor, ...]:
    """The k first of each row in order, the lower index first among equals: k candidates by a threshold, then their ranks.

        rank[t] = how many candidates come before candidate t;   found[t] = the candidate of rank t;
        values[t] = x[found[t]]

    Work: some 50 times the row's length, and k squared.
    """
    axis, largest = op.axis("axis", -1), bool(op.attr("largest", 1))
    n = op.in_shape()[axis]
    shape = op.shape if op.node.outputs[0] else op.types[-1].shape
    k = shape[axis]
    keys = te.compute(op.in_shape(), lambda *i: sort_key(op.x[i], largest), name=op.name("key"), tag="scan")
    picked = None
    if n > RANKED_DIRECTLY and k < n:
        picked = _candidates(op, keys, axis, k)
        keys = _gathered(op, keys, picked, axis, n)
    m = keys.shape[axis]
    u, r = te.reduce_axis(m, "u"), te.reduce_axis(m, "r")

    def rank(*i: Any) -> te.Expr:
        here, there = keys[i], keys[_moved(i, axis, u)]
        before = te.any(there > here, te.all(there.equal(here), te.index(u) < i[axis]))
        return te.sum(te.select(before, te.const(1, "int32"), te.const(0, "int32")), axis=u)
    ranks = te.compute(keys.shape, rank, name=op.name("rank"), tag="reduce")

    def position(*i: Any) -> te.Expr:
        which = te.index(r).astype("int32") if picked is None else picked[_moved(i, axis, r)]
        here = ranks[_moved(i, axis, r)].equal(te.index(i[axis]).astype("int32"))
        return te.max(te.select(here, which, te.const(0, "int32")), axis=r)
    found = te.compute(shape, position, name=op.name("found"), tag="reduce")

    def value(*i: Any) -> te.Expr:
        return op.x[_moved(i, axis, te.index(found[i].astype("int64"), 0, n - 1))]
    made: list[te.Tensor] = []
    for number, output in enumerate(op.node.outputs):
        if output and number == 0:
            made.append(te.compute(shape, value, name=op.name(), tag="injective"))
        elif output:
            made.append(te.compute(shape, lambda *i: found[i].astype("int64"), name=op.name("indices"), tag="injective"))
    return tuple(made)


def _gathered(op: Op, keys: te.Tensor, picked: te.Tensor, axis: int, n: int) -> te.Tensor:
    return te.compute(picked.shape, lambda *i: keys[_moved(i, axis, te.index(picked[i].astype("int64"), 0, n - 1))],
                      name=op.name("key"), tag="scan")


def tensor_scatter(op: Op) -> te.Tensor:
    """The cache with the update written at each batch's position along `axis`. Source: ONNX TensorScatter."""
    axis = op.axis("axis", -2)
    update, size = op.tensor(1), op.in_shape()[axis]
    length, circular = op.in_shape(1)[axis], op.attr("mode", "linear") == "circular"

    def value(i: At) -> te.Expr:
        start = op.tensor(2)[i[0]].astype("int64") if op.has(2) else te.const(0, "int64")
        step = te.index(i[axis]).astype("int64") - start
        if circular:
            step = step % te.const(size, "int64")
        inside = te.all(step >= 0, step < length)
        kept = te.minimum(te.maximum(step, te.const(0, "int64")), te.const(length - 1, "int64"))
        return te.select(inside, update[(*i[:axis], te.index(kept, 0, length - 1), *i[axis + 1:])], op.x[tuple(i)])
    return injective(op, value)


def det(op: Op) -> te.Tensor:
    """Determinants by their first row, cofactor by cofactor."""
    n = op.in_shape()[-1]
    if n > LARGEST_DETERMINANT:
        raise CodegenError(f"Det of matrices larger than {LARGEST_DETERMINANT} x {LARGEST_DETERMINANT} is not supported",
                           where=op.node.name)

    def minor(i: At, row: int, columns: Sequence[int]) -> te.Expr:
        if len(columns) == 1:
            return op.x[(*i, row, columns[0])]
        total: te.Expr | None = None
        for k, column in enumerate(columns):
            part = op.x[(*i, row, column)] * minor(i, row + 1, [c for c in columns if c != column])
            total = part if total is None else total - part if k % 2 else total + part
        assert total is not None
        return total
    return injective(op, lambda i: minor(i, 0, range(n)))


RANKING: dict[str, Compute] = {"Det": det, "TensorScatter": tensor_scatter, "TopK": top_k}
