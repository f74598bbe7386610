"""elide_guards and fill_tails: what goes, what stays, and that halos and tails keep their zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toolchain.te as te
from toolchain.core.layout import Layout
from toolchain.core.target import Target
from toolchain.te.expr import Select
from toolchain.te.interpret import storage_type
from toolchain.te.loop_ir import If, PrimFunc
from toolchain.te.lower.elide_guards import elide_guards
from toolchain.te.lower.fill_tails import fill_tails
from toolchain.te.lower.place_init import place_init
from toolchain.te.lower.shared import nodes
from toolchain.te.numpy_source import generate

TARGET = Target("test", "x86")


def elide(func: PrimFunc) -> PrimFunc:
    return fill_tails(elide_guards(place_init(func, TARGET), TARGET), TARGET)


def guards(func: PrimFunc) -> int:
    return sum(isinstance(n, If | Select) for n in nodes(func.body))


def run_on_storage(func: PrimFunc, seed: int) -> dict[str, np.ndarray]:
    """The parameters' physical storage after a run; outputs start with zero halos and NaN everywhere else, tails too."""
    rng = np.random.default_rng(seed)
    storage = {}
    for t in func.buffers:
        type = storage_type(func, t)
        if t in func.params and t not in func.stages:
            array = rng.standard_normal(type.shape).astype(np.float32)
            storage[t.name] = type.layout.pack(array).reshape(-1).copy()
        else:
            layout = type.layout
            whole = np.full(layout.padded(type.shape), np.nan, np.float32)
            storage[t.name] = layout.pack(whole).reshape(-1).copy() if t in func.params else np.full(
                layout.size(type.shape), np.nan, np.float32)
    with np.errstate(all="ignore"):
        generate(func, storage)()
    return {t.name: storage[t.name] for t in func.params}


def check(func: PrimFunc, seed: int = 0) -> PrimFunc:
    """Equal results, and outputs that are what packing the logical result gives: zeros in halo and tail."""
    elided = elide(func)
    before, after = run_on_storage(func, seed), run_on_storage(elided, seed)
    for t in func.outputs:
        type = func.buffers[t].type
        want = type.layout.unpack(before[t.name], type.shape)
        np.testing.assert_array_equal(after[t.name], type.layout.pack(want).reshape(-1))    # exact: no arithmetic moves
    return elided


def conv(channels: int, filters: int, size: int, kernel: int, stride: int, pad: int, value: float = 0.0, act=None):
    x = te.placeholder((channels, size, size), name="X")
    w = te.placeholder((filters, channels, kernel, kernel), name="W", constant=True)
    b = te.placeholder((filters,), name="b", constant=True)
    ic, kh, kw = te.reduce_axis(channels, "ic"), te.reduce_axis(kernel, "kh"), te.reduce_axis(kernel, "kw")
    out = (size + 2 * pad - kernel) // stride + 1

    def at(c, y, x_):
        inside = te.all_of(y >= 0, y < size, x_ >= 0, x_ < size)
        return te.select(inside, x[c, y, x_], value)

    y = te.compute((filters, out, out), lambda o, y, x_: te.sum(
        at(ic, y * stride + kh - pad, x_ * stride + kw - pad) * w[o, ic, kh, kw], axis=(ic, kh, kw), init=b[o]), name="Y")
    r = te.compute((filters, out, out), lambda o, y_, x_: (act or (lambda v: te.maximum(v, 0.0)))(y[o, y_, x_]), name="R")
    return x, w, b, y, r


def blocked(halo: int = 0, block: int = 4) -> Layout:
    return Layout("ABC", ((0, 0), (1, 0), (2, 0), (0, block)), ((0, 0), (halo, halo), (halo, halo)))


def tiled_conv(channels=6, filters=6, size=5, kernel=3, stride=1, pad=1, halo=1, value=0.0, act=None) -> PrimFunc:
    """A convolution in blocks of 4 channels, 4 does not divide 6: tails everywhere."""
    x, w, b, y, r = conv(channels, filters, size, kernel, stride, pad, value, act)
    s = te.create_schedule(r)
    o, yy, xx = r.op.axis
    oo, oi = s[r].split(o, factor=min(4, filters))
    s[r].reorder(oo, yy, xx, oi)
    s[y].set_scope("local")
    s[y].compute_at(s[r], xx)
    s[y].split(s[y].op.reduce_axis[0], factor=min(4, channels))
    s.set_layout(x, blocked(halo))
    s.set_layout(r, blocked(1))
    s.set_layout(b, Layout("A", ((0, 0), (0, 4)), ((0, 0),)))
    s.set_layout(w, Layout("ABCD", ((0, 0), (1, 0), (2, 0), (3, 0), (1, 4), (0, 4)), ((0, 0),) * 4))
    return s.func


def test_conv_loses_every_guard(golden):
    elided = check(tiled_conv())
    assert guards(elided) == 0
    golden(te.to_text(elided))


def test_a_value_that_is_not_zero_in_the_tail_is_selected(golden):
    elided = check(tiled_conv(kernel=1, pad=0, halo=0, act=te.sigmoid))
    golden(te.to_text(elided))


def test_padding_with_another_value_stays():
    elided = check(tiled_conv(value=-1.0))
    assert guards(elided) == 1


def test_padding_without_halo_stays():
    assert guards(check(tiled_conv(halo=0))) == 1


def test_a_halo_too_small_keeps_the_side_it_misses(golden):
    """5x5 kernels reach two elements out, the halo holds one."""
    elided = check(tiled_conv(channels=4, filters=4, kernel=5, pad=2, halo=1))
    assert guards(elided) == 1


def test_max_reduction_keeps_its_guard():
    """A tail's zero is no -inf."""
    a = te.placeholder((6, 5), name="A")
    k = te.reduce_axis(6, "k")
    c = te.compute((5,), lambda i: te.max(a[k, i], axis=k), name="C")
    s = te.create_schedule(c)
    s[c].split(c.op.reduce_axis[0], factor=4)
    s.set_layout(a, Layout.parse("AB4a"))
    assert guards(check(s.func)) == 1


def test_plain_outputs_keep_their_guard():
    a = te.placeholder((6,), name="A")
    c = te.compute((6,), lambda i: a[i] * 2.0, name="C")
    s = te.create_schedule(c)
    s[c].split(c.op.axis[0], factor=4)
    assert guards(check(s.func)) == 1


def test_tails_no_loop_reaches_are_filled(golden):
    a = te.placeholder((6, 3), name="A")
    c = te.compute((6, 3), lambda i, j: te.exp(a[i, j]), name="C")
    s = te.create_schedule(c)
    s.set_layout(c, Layout.parse("AB4a"))
    golden(te.to_text(check(s.func)))


@given(
    channels=st.integers(1, 9), filters=st.integers(1, 9), size=st.integers(3, 6), kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2), pad=st.integers(0, 1), halo=st.integers(0, 2), seed=st.integers(0, 9),
    act=st.sampled_from([None, te.sigmoid, te.tanh, lambda v: v + 1.0]), value=st.sampled_from([0.0, 0.5]),
)
def test_keeps_results_halos_and_tails(channels, filters, size, kernel, stride, pad, halo, seed, act, value):
    check(tiled_conv(channels, filters, size, kernel, stride, pad, halo, value, act), seed)


@pytest.mark.parametrize("act", [te.sigmoid, te.tanh])
def test_registers_with_unknown_tails_do_not_reach_the_output(act):
    """A local stage whose tail is not zero: the reader's tail is selected."""
    a = te.placeholder((6, 3), name="A")
    b = te.compute((6, 3), lambda i, j: act(a[i, j]) + 1.0, name="B")
    c = te.compute((6, 3), lambda i, j: b[i, j] * 2.0, name="C")
    s = te.create_schedule(c)
    io, _ = s[c].split(c.op.axis[0], factor=4)
    s[b].set_scope("local")
    s[b].compute_at(s[c], io)
    for t in (a, c):
        s.set_layout(t, Layout.parse("AB4a"))
    check(s.func)


def test_conditions_without_their_common_factor_are_met() -> None:
    """4*t + i - 1 >= 0 with i unrolled away is kept as t >= 1: it is the halo that t = 0 reads all the same."""
    x = te.placeholder((12, 8), name="X")

    def at(t, j):
        return te.select(te.all_of(t * 4 - 1 >= 0, t * 4 - 1 < 12), x[t * 4 - 1, j], 0.0)

    y = te.compute((4, 8), lambda t, j: at(t, j) + te.select(t * 4 + 2 < 12, x[t * 4 + 2, j], 0.0), name="Y")
    for halo, left in (((1, 3), 0), ((0, 3), 1), ((1, 0), 1)):
        s = te.create_schedule(y)
        s.set_layout(x, Layout("AB", ((0, 0), (1, 0)), (halo, (0, 0))))
        assert guards(check(s.func)) == left
