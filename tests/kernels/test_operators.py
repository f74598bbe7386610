"""Every operator's te definition and its compiled kernel against the graph interpreter, on the cases of operator_cases."""

from __future__ import annotations

import pytest
from operator_cases import CASES, Case, tolerance
from running import BOARD, HOST, RUNNABLE, close, compiled, defined, expected, one_node

from toolchain.core.target import Target
from toolchain.kernels.loops import LOOPS
from toolchain.kernels.table import KERNELS

pytestmark = pytest.mark.skipif(HOST.kind != "x86", reason="runs x86 code in this process")


def test_every_operator_has_cases():
    assert set(CASES) == KERNELS


@pytest.mark.parametrize(("op", "number"), [(op, n) for op in sorted(CASES) for n in range(len(CASES[op]))])
def test_operator(op: str, number: int):
    case: Case = CASES[op][number]
    body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
    want = expected(body, arrays)
    for what, made in (("definition", defined(body, arrays)), ("kernel", compiled(body, arrays))):
        assert len(made) == len(want)
        for output, got, right in zip(body.outputs, made, want, strict=True):
            close(got, right, *tolerance(case, body.types[output].dtype), f"{what} of {output}")


@pytest.mark.parametrize("op", sorted(CASES))
def test_operator_on_a_board(op: str):
    """Cortex-A53 code on an emulated one, every buffer between pages that are not there."""
    for number, case in enumerate(CASES[op]):
        body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
        for output, got, want in zip(body.outputs, compiled(body, arrays, BOARD), expected(body, arrays), strict=True):
            close(got, want, *tolerance(case, body.types[output].dtype), f"case {number}, {output}")


@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
@pytest.mark.parametrize("op", LOOPS)
def test_loops_on_every_processor(op: str, target: Target):
    """Their counters and corners fit the registers of the smallest."""
    for case in CASES[op]:
        body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
        for output, got, want in zip(body.outputs, compiled(body, arrays, target), expected(body, arrays), strict=True):
            close(got, want, *tolerance(case, body.types[output].dtype), output)
