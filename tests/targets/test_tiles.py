"""Register tiles whose masked ends are filled with anything: less to carry between iterations, the same results."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

import toolchain.te as te
from toolchain.core.target import Target
from toolchain.targets.llvm.backend import LLVM
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.load import run
from toolchain.targets.llvm.object import assembly, spills
from toolchain.targets.llvm.tiles import Tiles
from toolchain.targets.presets import PRESETS
from toolchain.te.loop_ir import For, loops, reads
from toolchain.te.lower import lower

HOST = host_target(cores=1)
RUNNABLE = [t for t in PRESETS.values() if t.kind == "x86" and set(t.features) <= set(HOST.features)]
SELECT = re.compile(r"= select <\d+ x i1>")


def turned(channels: int, columns: int, size: int) -> te.Schedule:
    """(channels, columns) -> (columns, channels) through squares of `size` x `size`; both ends are ragged."""
    x = te.placeholder((channels, columns), name="X")
    y = te.compute((columns, channels), lambda p, c: x[c, p] * 2.0, name="Y")
    s = te.create_schedule(y)
    p, c = y.op.axis
    (po, row), (co, lane) = s[y].split(p, factor=size), s[y].split(c, factor=size)
    s[y].reorder(po, co, row, lane)
    tile = s.cache_read(x, "local", y)
    s[tile].compute_at(s[y], co)
    s[tile].unroll(s[tile].op.axis[0])
    s[tile].vectorize(s[tile].op.axis[1])
    s[y].unroll(row)
    s[y].vectorize(lane)
    for loop in (po, co):
        s[y].partition(loop)
    return s


def text(s: te.Schedule, target: Target) -> str:
    return str(LLVM.stages[0].run(lower(s.func, target, LLVM.passes), "k", {}, target))


@pytest.mark.parametrize(("name", "size"), [("x86-64-v3", 8), ("x86-64-v4", 16)])
def test_ragged_squares_carry_nothing(name: str, size: int) -> None:
    """Rows of the last squares, kept for the lanes that masks leave out, would live on the stack."""
    made = text(turned(5 * size, 3 * size + 5, size), PRESETS[name])
    assert not SELECT.search(made)
    assert not spills(assembly(made, PRESETS[name]))


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize(("channels", "columns"), [(16, 21), (13, 16), (11, 19), (8, 9)])
def test_turned_squares_are_right(channels: int, columns: int, target: Target) -> None:
    x = np.random.default_rng(0).normal(size=(channels, columns)).astype(np.float32)
    np.testing.assert_array_equal(run(turned(channels, columns, 8).func, target, {"X": x})["Y"], x.T * 2)


def joined(lanes: int, first: int) -> te.Schedule:
    """Each tile of `lanes` has its first elements of one tensor, the others of another: two stores, either masked."""
    a, b = te.placeholder((6, lanes), name="A"), te.placeholder((6, lanes), name="B")
    tile = te.compute((6, lanes), lambda r, n: te.select(n < first, a[r, n], b[r, n]), name="T")
    y = te.compute((6, lanes), lambda r, n: tile[r, n] + tile[r, lanes - 1 - n], name="Y")
    s = te.create_schedule(y)
    s[tile].set_scope("local")
    s[tile].compute_at(s[y], y.op.axis[0])
    _, lane = s[tile].split(s[tile].op.axis[1], factor=lanes)
    s[tile].vectorize(lane)
    s[y].vectorize(y.op.axis[1])
    return s


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_a_select_in_a_tile_is_right(target: Target) -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 6, 8)).astype(np.float32)
    tile = np.where(np.arange(8) < 3, a, b)
    np.testing.assert_array_equal(run(joined(8, 3).func, target, {"A": a, "B": b})["Y"], tile + tile[:, ::-1])


def lowered(s: te.Schedule) -> tuple[te.PrimFunc, te.Tensor, list[For]]:
    """(its code, the tile, the loops that read it)."""
    func = lower(s.func, PRESETS["x86-64-v3"], LLVM.passes)
    (tile,) = (t for t, b in func.buffers.items() if b.scope == "local")
    return func, tile, [loop for loop in loops(func.body) if reads(loop.body, tile)]


def test_only_the_first_store_of_an_iteration_fills() -> None:
    """What was stored before in this iteration stays, and so does what a loop in between may have stored."""
    func, tile, around = lowered(turned(11, 19, 8))
    tiles = Tiles(func, func.body)
    assert tile in tiles and all(t not in tiles for t in func.params)
    assert tiles.needs_mask(tile, 2, range(8))                     # no iteration has begun
    for loop in around:
        tiles.begin(loop, 2)
    assert tiles.needs_mask(tile, 3, range(8))
    assert not tiles.needs_mask(tile, 2, range(8, 16))
    assert tiles.needs_mask(tile, 2, range(12, 20))
    tiles.needs_mask(tile, 2, None)                                # anywhere
    assert tiles.needs_mask(tile, 2, range(24, 32))


def test_double_buffers_keep_their_lanes() -> None:
    func, tile, _ = lowered(turned(11, 19, 8))
    ahead = replace(func, attrs={**func.attrs, "double_buffer": (tile.name,)})
    assert tile not in Tiles(ahead, ahead.body)


def product(rows: int, columns: int, inner: int, size: int) -> te.Schedule:
    """Sums in registers, `size` columns at a time, the last of them ragged."""
    a, b = te.placeholder((rows, inner), name="A"), te.placeholder((inner, columns), name="B")
    k = te.reduce_axis(inner, "k")
    c = te.compute((rows, columns), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    s = te.create_schedule(c)
    sums = s.cache_write(c, "local")
    i, j = s[c].op.axis
    jo, lane = s[c].split(j, factor=size)
    s[c].reorder(jo, i, lane)
    s[sums].compute_at(s[c], jo)
    (i2, j2), (k2,) = s[sums].op.axis, s[sums].op.reduce_axis
    s[sums].reorder(k2, i2, j2)
    s[sums].unroll(i2)
    s[sums].vectorize(j2)
    s[c].unroll(i)
    s[c].vectorize(lane)
    return s


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_ragged_sums_are_not_blended(target: Target) -> None:
    a, b = (np.random.default_rng(2).normal(size=shape).astype(np.float32) for shape in ((6, 9), (9, 21)))
    s = product(6, 21, 9, 8)
    assert not SELECT.search(text(s, target))
    np.testing.assert_allclose(run(s.func, target, {"A": a, "B": b})["C"], a @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("length", [8, 19, 40])
def test_ragged_partial_sums_keep_their_lanes(length: int, target: Target) -> None:
    """The mask is the reduction's: a lane that it leaves out has its sum of the steps before."""
    x, r = te.placeholder((3, length), name="X"), te.reduce_axis(length, "r")
    y = te.compute((3,), lambda i: te.sum(x[i, r], axis=r), name="Y")
    s = te.create_schedule(y)
    _, lane = s[y].split(r, factor=8)
    lanes = s.rfactor(y, lane)
    s[lanes].set_scope("local")
    s[lanes].compute_at(s[y], s[y].op.axis[0])
    s[lanes].reorder(s[lanes].op.reduce_axis[0], s[lanes].op.axis[0])
    s[lanes].vectorize(s[lanes].op.axis[0])
    given = np.random.default_rng(3).normal(size=(3, length)).astype(np.float32)
    np.testing.assert_allclose(run(s.func, target, {"X": given})["Y"], given.sum(1), rtol=1e-5, atol=1e-6)
