"""Every operator as WebAssembly, in wasmtime."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_kernels import WasmKernel
from operator_cases import CASES, Case, tolerance
from running import close, compiled, expected, one_node

from toolchain.core.errors import CodegenError
from toolchain.targets.presets import PRESETS

PARTS = 4                           # of the operators


@pytest.mark.parametrize("part", range(PARTS))
def test_operators(part: int):
    """The first and the last case of each, but for float16."""
    for op in sorted(CASES)[part::PARTS]:
        fitting = [case for case in CASES[op] if not has_float16(case)]
        for case in {id(case): case for case in (fitting[0], fitting[-1])}.values():
            check(op, case)


def test_float16_is_refused():
    with pytest.raises(CodegenError, match="WebAssembly has no conversions of float16"):
        check("IsNaN", next(case for case in CASES["IsNaN"] if has_float16(case)))


def has_float16(case: Case) -> bool:
    return any(a is not None and a.dtype == np.float16 for a in case.arrays)


def check(op: str, case: Case) -> None:
    body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
    made = compiled(body, arrays, PRESETS["wasm32"], called=WasmKernel)
    for output, got, want in zip(body.outputs, made, expected(body, arrays), strict=True):
        close(got, want, *tolerance(case, body.types[output].dtype), f"{op}, {output}")
