"""What a cost model sees of a schedule: read off the loop nest, without lowering it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain import te
from toolchain.core.layout import Layout
from toolchain.te.tune.features import COLUMNS, DEPTHS, STATEMENTS, features

M, N, K = 8, 32, 64


def product(schedule: bool = False) -> te.Schedule:
    a, b = te.placeholder((M, K), name="a"), te.placeholder((K, N), name="b")
    k = te.reduce_axis(K, name="k")
    c = te.compute((M, N), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    s = te.create_schedule([c], name="product", inputs=[a, b])
    if schedule:
        jo, ji = s[c].split(s[c].op.axis[1], factor=16)
        s[c].reorder(s[c].op.axis[0], jo, *s[c].op.reduce_axis, ji)
        s[c].unroll(jo)
        s[c].vectorize(ji)
        s[c].parallel(s[c].op.axis[0])
    return s


def column(row: np.ndarray, name: str) -> float:
    return float(row[COLUMNS.index(name)])


def log(x: float) -> float:
    return float(np.log2(1 + x))


def test_of_a_matrix_product():
    (row,) = features(product().func)
    assert column(row, "iterations") == pytest.approx(log(M * N * K)) == column(row, "mul") == column(row, "add")
    assert column(row, "serial_loops") == 3 and column(row, "vector") == log(1) == column(row, "parallel")
    assert column(row, "innermost") == pytest.approx(log(K)) and column(row, "innermost_reduces") == 1
    assert column(row, "reduced") == pytest.approx(log(K))
    sizes = {"b": K * N * 4, "a": M * K * 4, "c": M * N * 4}                     # the largest first
    for n, size in enumerate(sorted(sizes.values(), reverse=True)):
        assert column(row, f"unique_bytes{n}") == pytest.approx(log(size))
        assert column(row, f"touched_bytes{n}") == pytest.approx(log(M * N * K * 4))
    assert (column(row, "writes0"), column(row, "writes1"), column(row, "writes2")) == (0, 0, 1)
    assert column(row, "reads2") == 1                                            # an update reads what it adds to
    assert column(row, "innermost_stride0") == 5                                 # a column of b
    assert column(row, "innermost_stride1") == 1 and column(row, "innermost_stride2") == 0
    assert column(row, "reuses0") == pytest.approx(log(M)) and column(row, "reuse_iterations0") == pytest.approx(log(N * K))
    assert column(row, "reuses1") == pytest.approx(log(N)) and column(row, "reuse_iterations1") == pytest.approx(log(K))
    assert column(row, "reuses2") == pytest.approx(log(K)) and column(row, "reuse_iterations2") == log(1)
    curve = [column(row, f"intensity{n}") for n in range(DEPTHS)]
    assert curve[0] == pytest.approx(log(2) - log(12))
    assert curve[-1] == pytest.approx(log(2 * M * N * K) - log(sum(sizes.values())))


def test_annotations_are_seen():
    (row,) = features(product(schedule=True).func)
    assert column(row, "vector") == pytest.approx(log(16)) and column(row, "unrolled") == pytest.approx(log(2))
    assert column(row, "unrolled_loops") == 1
    assert column(row, "parallel") == pytest.approx(log(M)) and column(row, "vector_reduces") == 0
    assert column(row, "lane_stride0") == 1 and column(row, "lane_stride1") == 0


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from((1, 2, 4, 16)))
def test_a_footprint_is_never_more_than_its_tensor_or_what_is_touched(m, n, stride):
    """Windows that overlap, windows with gaps, ragged splits."""
    x = te.placeholder(((m - 1) * stride + 3, n), name="x")
    r = te.reduce_axis(3, name="r")
    y = te.compute((m, n), lambda i, j: te.sum(x[i * stride + r, j], axis=r), name="y")
    s = te.create_schedule([y], name="windows", inputs=[x])
    s[y].split(s[y].op.axis[0], factor=4)
    for row in features(s.func):
        assert np.isfinite(row).all()
        for b in range(2):
            assert column(row, f"unique_bytes{b}") <= log(x.shape[0] * n * 4) + 1e-5
            assert column(row, f"lines{b}") <= column(row, f"unique_bytes{b}") + 1e-5


def test_statements_are_those_with_most_work():
    x = te.placeholder((100,), name="x")
    y = x
    for n in range(STATEMENTS + 3):
        y = te.compute((100,), lambda i, y=y, n=n: y[i] * float(n + 2), name=f"y{n}")      # type: ignore[misc]
    s = te.create_schedule([y], name="chain", inputs=[x])
    rows = features(s.func)
    assert rows.shape == (STATEMENTS, len(COLUMNS)) and rows.dtype == np.float32
    work = rows[:, COLUMNS.index("iterations")]
    assert (np.diff(work) <= 0).all()


def test_an_instruction_is_a_row_with_the_work_it_stands_for():
    """Before, a kernel of dot products looked like its epilogue alone, whatever its tiles."""
    lanes, group = 8, 4
    a, b = te.placeholder((M, K), "uint8", name="a"), te.placeholder((N, K), "int8", name="b")
    k = te.reduce_axis(K, name="k")
    c = te.compute((M, N), lambda i, j: te.sum(a[i, k].astype("int32") * b[j, k].astype("int32"), axis=k), name="c")
    p, q = te.placeholder((group,), "uint8", name="p"), te.placeholder((lanes, group), "int8", name="q")
    g = te.reduce_axis(group, name="g")
    meaning = te.compute((lanes,), lambda i: te.sum(p[g].astype("int32") * q[i, g].astype("int32"), axis=g), name="m")

    def rows(rolled: bool) -> np.ndarray:
        s = te.create_schedule([c], name="product", inputs=[a, b])
        s.set_layout(b, Layout("AB", ((0, 0), (1, 0), (0, lanes), (1, group)), ((0, 0), (0, 0))))
        i, j = s[c].op.axis
        jo, ji = s[c].split(j, factor=lanes)
        ko, ki = s[c].split(s[c].op.reduce_axis[0], factor=group)
        s[c].reorder(jo, i, ko, ji, ki)
        if not rolled:
            s[c].tensorize(ji, te.intrin("dot4.8", meaning))
        return features(s.func)
    (whole,), (dots, *_) = rows(True), rows(False)
    assert column(dots, "mul") == column(whole, "mul") == pytest.approx(log(M * N * K))
    assert column(dots, "dots") == pytest.approx(log(M * N * K // (lanes * group))) and column(whole, "dots") == 0
    assert column(dots, "dot_steps") == pytest.approx(log(group - 1)) and column(dots, "vector") == pytest.approx(log(lanes))
    reads = {name: sorted(column(r, f"unique_bytes{n}") for n in range(3)) for name, r in (("dots", dots), ("whole", whole))}
    assert reads["dots"] == pytest.approx(reads["whole"])
