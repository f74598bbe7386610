"""Arrays between pages that nobody may touch: one element too far, read or written, ends the process."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np

PAGE = mmap.PAGESIZE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(shape: Sequence[int], dtype: np.dtype, *, at_end: bool) -> np.ndarray:
    """An array whose last (or first) byte is the last (or first) before a page without any access. Filled with 0xff."""
    size = int(np.prod(shape)) * dtype.itemsize
    inner = max(PAGE, -(-size // PAGE) * PAGE)
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + PAGE + inner):
        if _mprotect(page, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE + inner - size if at_end else PAGE
    array = np.frombuffer(memory, np.uint8, size, first)
    array[:] = 0xFF
    return array.view(dtype).reshape(shape)
