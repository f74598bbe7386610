from __future__ import annotations

import pytest

import toolchain.te as te
from toolchain.te.expr import Broadcast, Index, Ramp, compare, index
from toolchain.te.substitute import substitute, substitute_index

i, j = te.Var("i", 8), te.Var("j", 4)
A = te.placeholder((8, 8), name="A")
K = te.placeholder((8,), "int8", name="K")


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (index(i * 16 + j - 1), "16*i + j - 1"),
        (index(0 - i + 7), "-i + 7"),
        (index((i + j) // 3 * 2 + (i + j) % 3), "2*((i + j)//3) + (i + j)%3"),
        (index(i // 2), "i//2"),
        (Index(), "0"),
        (A[i, j] * (A[i, 0] + 1.0), "A[i, j]*(A[i, 0] + 1.0)"),
        (A[i, j] - (A[i, 0] - A[i, 1]), "A[i, j] - (A[i, 0] - A[i, 1])"),
        (A[i, j] - A[i, 0] - A[i, 1], "A[i, j] - A[i, 0] - A[i, 1]"),
        (te.maximum(A[i, j], 0.5), "max(A[i, j], 0.5)"),
        (te.select(te.all(i + j >= 1, i < 7), A[i, j], 0.0), "select(i + j >= 1 and i < 7, A[i, j], 0.0)"),
        (te.exp(A[i, j]), "exp(A[i, j])"),
        (K[i] + 3, "K[i] + int8(3)"),
        (K[i].astype("float32"), "float32(K[i])"),
        (A[te.index(K[i], 0, 7), j], "A[index(K[i], 0, 7), j]"),
        (Ramp(index(i * 4), 1, 8), "ramp(4*i, 1, 8)"),
        (Broadcast(te.const(2.0), 8), "broadcast(2.0, 8)"),
        (te.const(True, "bool"), "true"),
    ],
)
def test_expressions(expr, text):
    assert te.to_text(expr) == text


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (compare("<", index(i * 4), 10), "i < 3"),                       # no common factor
        (compare("<", index((i + j) // 4), 2), "i + j < 8"),             # no outer division
        (compare(">=", index((i + j) // 4), 2), "i + j >= 8"),
        (compare(">", index(i), 2), "i >= 3"),
        (compare("<=", index(i), j), "i - j < 1"),
        (compare("<", index(i), 8), "true"),                             # the range decides
        (compare("<", index(0 - i), 0), "i >= 1"),
        (compare("==", index(i + 1), 9), "false"),
    ],
)
def test_conditions_are_canonical(condition, text):
    assert te.to_text(condition) == text


@pytest.mark.parametrize("divisor", [2, 3, 4, 7])
def test_canonical_indices_mean_what_python_means(divisor):
    from itertools import product

    for a, b, c in product((1, 2, 6, -3), (0, 1, 4), (-2, 0, 5)):
        at = index(i * a + j * b + c)
        for x, y in product(range(8), range(4)):
            exact = a * x + b * y + c
            values = {i: x, j: y}
            for made, expected in ((at // divisor, exact // divisor), (at % divisor, exact % divisor)):
                assert substitute_index(index(made), values) == Index((), expected)
            for op, holds in (("<", exact // divisor < 3), (">=", exact // divisor >= 3)):
                condition = substitute(compare(op, index(at // divisor), 3), values)
                assert condition.value == holds
