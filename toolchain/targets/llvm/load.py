"""Kernels called in this process: for tests, tuning and small runs. Artifacts are linked and run by the C runtime."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence

import llvmlite.binding as llvm
import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.target import Target
from toolchain.targets.backend import Kernel
from toolchain.targets.base import compile_kernel
from toolchain.targets.llvm.object import initialize
from toolchain.te.loop_ir import PrimFunc

ALIGNMENT_BYTES = 64
_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class LoadedKernel:
    """A kernel's functions in memory. Calling it runs all phases over their whole extent on physical, aligned arrays."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._library = llvm.JITLibraryBuilder().add_object_img(kernel.object)
        for symbol, _ in kernel.phases:
            self._library.export_symbol(symbol)
        self._tracker = self._library.link(jit(), kernel.symbol + f"_{next(_counter)}")
        self.phases = tuple((_TASK(self._tracker[symbol]), extent) for symbol, extent in kernel.phases)
        self._scratch = aligned(kernel.scratch_bytes)
        self._workspace = [aligned(size) for size in kernel.workspace]

    def __call__(self, *buffers: np.ndarray) -> None:
        """Run on the parameters' storage. Needs: as many arrays as parameters, in order, contiguous and aligned."""
        table = self.table(buffers)
        for task, extent in self.phases:
            task(table, 0, extent, self._scratch.ctypes.data)

    def table(
        self, buffers: Sequence[np.ndarray], workspace: Sequence[np.ndarray] | None = None,
    ) -> ctypes.Array[ctypes.c_void_p]:
        """The buffer table of the tasks: parameters, then workspace (the kernel's own unless it is given)."""
        if len(buffers) != self.kernel.n_params:
            raise ValueError(f"{self.kernel.symbol} takes {self.kernel.n_params} buffers, given {len(buffers)}")
        all_buffers = (*buffers, *(self._workspace if workspace is None else workspace))
        if any(b.ctypes.data % ALIGNMENT_BYTES for b in all_buffers):
            raise ValueError("kernels need 64-byte aligned buffers: use aligned() or aligned_copy()")
        return (ctypes.c_void_p * len(all_buffers))(*(b.ctypes.data for b in all_buffers))


def load(kernel: Kernel) -> LoadedKernel:
    """Load a kernel's object into this process."""
    return LoadedKernel(kernel)


def run(func: PrimFunc, target: Target, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compile, pack, run, unpack: what `te.interpret` does with NumPy, done by the machine. Logical arrays by name."""
    kernel = load(compile_kernel(func, target))
    types = {t.name: func.buffers[t].type for t in func.params}
    storage = {name: aligned(type.layout.size(type.shape), to_numpy(type.dtype)) for name, type in types.items()}
    for t in func.inputs:
        storage[t.name][:] = types[t.name].layout.pack(np.asarray(arrays[t.name])).reshape(-1)
    kernel(*(storage[t.name] for t in func.params))
    return {t.name: types[t.name].layout.unpack(storage[t.name], types[t.name].shape) for t in func.outputs}


def aligned(size: int, dtype: str | np.dtype[np.generic] = "uint8") -> np.ndarray:
    """A zeroed one-dimensional array of `size` elements that starts on a 64-byte boundary."""
    item = np.dtype(dtype).itemsize
    raw = np.zeros(size * item + 2 * ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start:start + size * item].view(dtype)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """The elements of an array in C order, in aligned storage of the same shape."""
    copy = aligned(array.size, array.dtype)
    copy[:] = array.reshape(-1)
    return copy.reshape(array.shape)


_counter = iter(range(1 << 62))


@functools.cache
def jit() -> llvm.LLJIT:
    """The one of this process."""
    initialize()
    return llvm.create_lljit_compiler()


__all__ = ["LoadedKernel", "aligned", "aligned_copy", "jit", "load", "run"]
