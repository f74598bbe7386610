"""Every operator on RISC-V: without vectors, with the least there are, and with longer ones, each on an emulated CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from foreign_kernels import RISCV, QemuKernel, cannot_be_emulated, emulated_session
from operator_cases import CASES, Case, tolerance
from running import close, compiled, expected, one_node

from toolchain.core.target import Target
from toolchain.remote.session import Session
from toolchain.targets.backend import Kernel
from toolchain.te.loop_ir import PrimFunc

PARTS = 4                           # of the operators, some forty to a session
FLOATS_TO_INTEGERS = {"CastLike", "GridSample", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear"}


@pytest.fixture
def machine(name: str, tmp_path: Path) -> Iterator[tuple[Target, Session]]:
    target, exec_prefix = RISCV[name]
    with emulated_session(target, exec_prefix, tmp_path) as session:
        yield target, session


@pytest.mark.parametrize(("name", "part"), [
    *((name, part) for name in ("rv64gc", "rv64gcv") for part in range(PARTS)),
    ("rv64gcv on 256 bits", 1), ("rv64gcv, zvl256b", 2),
])
def test_operators(machine: tuple[Target, Session], name: str, part: int):
    """The first case of each; on longer vectors of a quarter of them."""
    target, session = machine
    beyond: set[str] = set()

    def called(kernel: Kernel, func: PrimFunc, target: Target) -> QemuKernel:
        if cannot_be_emulated(kernel.object):
            raise NotImplementedError
        return QemuKernel(kernel, func, target, session)

    for op in sorted(CASES)[part::PARTS]:
        case: Case = CASES[op][0]
        body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
        try:
            made = compiled(body, arrays, target, called=called)
        except NotImplementedError:
            beyond.add(op)
            continue
        for output, got, want in zip(body.outputs, made, expected(body, arrays), strict=True):
            close(got, want, *tolerance(case, body.types[output].dtype), f"{op}, {output}")
    assert beyond <= FLOATS_TO_INTEGERS


@pytest.mark.parametrize("name", ["rv64gc", "rv64gcv"])
def test_float16_without_instructions_for_it(machine: tuple[Target, Session], name: str):
    """Neither has Zfhmin: halves are converted by integer arithmetic, with and without vectors."""
    target, session = machine
    assert not target.has("zfhmin")
    for op in ("Cast", "IsNaN", "Add", "Softmax", "MatMul"):
        case: Case = next(c for c in CASES[op] if c.attrs.get("to") == 10 or any(
            a is not None and a.dtype == np.float16 for a in c.arrays))
        body, arrays = one_node(op, case.arrays, case.attrs, case.constants, case.outputs)
        made = compiled(body, arrays, target, called=lambda *k: QemuKernel(*k, session))
        for output, got, want in zip(body.outputs, made, expected(body, arrays), strict=True):
            close(got, want, *tolerance(case, body.types[output].dtype), f"{op}, {output}")
