"""TC_CHECK=1: what each pass made is interpreted on random inputs and compared with the function it was given."""

from __future__ import annotations

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.te.interpret import interpret
from toolchain.te.loop_ir import PrimFunc

# Passes may fuse a multiply with an add and reorder sums over lanes; functions become polynomials of a few ulp
RELATIVE, ABSOLUTE = 1e-3, 1e-4


class Checker:
    """Holds the inputs and the outputs of the scheduled function. Interpreting is slow: for small shapes."""

    def __init__(self, func: PrimFunc) -> None:
        rng = np.random.default_rng(0)
        self.inputs: dict[str, np.ndarray] = {}
        for t in func.inputs:
            kind = dtypes.to_numpy(t.dtype)
            floats = np.asarray(rng.standard_normal(t.shape))
            self.inputs[t.name] = (floats if dtypes.is_float(t.dtype) else np.abs(floats) > 1).astype(kind)
        try:
            self.expected = interpret(func, self.inputs)
        except ScheduleError:                    # the random inputs are none the function can have (indices, say)
            self.expected = {}

    def compare(self, func: PrimFunc, after: str) -> None:
        """Raises CodegenError naming the pass whose result computes something else."""
        if not self.expected:
            return
        try:
            got = interpret(func, self.inputs)
        except ScheduleError as error:
            raise CodegenError(f"{after} broke {func.name}: {error.what}", where="TC_CHECK") from error
        for name, want in self.expected.items():
            a, b = np.asarray(got[name], np.float64), np.asarray(want, np.float64)
            if not np.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
                raise CodegenError(f"{after} changed {name} of {func.name}, by up to {np.nanmax(np.abs(a - b)):g}",
                                   where="TC_CHECK")


__all__ = ["Checker"]
