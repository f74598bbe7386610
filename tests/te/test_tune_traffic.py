"""The cache model: bytes of small nests as counted by hand, and what holds of every nest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain import te
from toolchain.core.layout import Layout
from toolchain.te.tune.traffic import traffic_bytes

LINE = 64


def product(m: int, n: int, k: int, order: str = "ijk") -> te.Schedule:
    a, b = te.placeholder((m, k), name="a"), te.placeholder((k, n), name="b")
    r = te.reduce_axis(k, name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    s = te.create_schedule([c], name="product", inputs=[a, b])
    loops = dict(zip("ijk", (*s[c].op.axis, r), strict=True))
    s[c].reorder(*(loops[name] for name in order))
    return s


def moved(s: te.Schedule, *capacities: int) -> tuple[float, ...]:
    return traffic_bytes(s.func, capacities, LINE)


def test_a_product_by_hand():
    """64x64 floats are 256 lines a tensor; a column of b takes a line per element."""
    size, line = 64 * 64 * 4, LINE
    everything, rows, nothing = moved(product(64, 64, 64), 1 << 20, 6000, 100)
    assert everything == 2 * size + 2 * size                        # each tensor once, c allocated and written back
    # one (i, j): 4 lines of a, 64 of b, one of c fit into 6000 bytes; one i, all of b, does not: b comes anew for each i
    assert rows == size + 64 * size + 2 * size
    # not even two elements fit together with a third: every access is a line
    assert nothing == (1 + 1 + 2) * 64**3 * line


def test_what_lies_in_registers_moves_nothing():
    s = product(8, 8, 8)
    (c,) = (t for t in s.func.stages if t.name == "c")
    s.cache_write(c, "local")
    assert moved(s, 1 << 20) == (4 * 8 * 8 * 4.0,)


def test_a_box_of_blocked_channels_takes_the_lines_it_touches():
    """Four channels of sixteen elements of a row lie together; another block of channels lies elsewhere."""
    x = te.placeholder((1, 8, 4, 16), name="x")
    y = te.compute((1, 8, 4, 16), lambda n, c, h, w: x[n, c, h, w] + 1.0, name="y")
    s = te.create_schedule([y], name="blocked", inputs=[x])
    for t in (x, y):
        s.set_layout(t, Layout.parse("NCHW4c"))
    s[y].reorder(*(s[y].op.axis[n] for n in (0, 2, 3, 1)))
    assert moved(s, 1 << 20) == (3 * 8 * 4 * 16 * 4.0,)


@given(st.tuples(*[st.integers(1, 40)] * 3), st.permutations("ijk"), st.integers(0, 2), st.integers(2, 4),
       st.lists(st.integers(200, 40000), min_size=2, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_holds_of_every_nest(extents, order, grown, times, capacities):
    """More work moves no less, a larger cache no more; each line moves once at the least."""
    bytes_ = moved(product(*extents, order="".join(order)), *sorted(capacities))
    more = tuple(n * times if d == grown else n for d, n in enumerate(extents))
    assert all(a <= b for a, b in zip(bytes_, moved(product(*more, order="".join(order)), *sorted(capacities))))
    assert list(bytes_) == sorted(bytes_, reverse=True)
    m, n, k = extents
    assert bytes_[-1] >= 4 * (m * k + n * k + 2 * m * n) * (1 - 1e-9)


@pytest.mark.parametrize(("good", "bad"), [("ikj", "jki"), ("ijk", "jki")])
def test_an_order_that_jumps_over_lines_ranks_worse(good, bad):
    capacity = 8 << 10
    assert moved(product(128, 128, 128, good), capacity) < moved(product(128, 128, 128, bad), capacity)
