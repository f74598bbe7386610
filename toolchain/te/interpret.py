"""Run a PrimFunc with NumPy: the meaning of the loop IR, at any stage of its lowering.

`interpret(func, {"A": a, "B": b})["C"]` takes and returns logical arrays; execution is on physical storage through each
buffer's layout. The function is turned into Python source once: loops that every iteration of which writes another element
run as one NumPy operation over a grid ("vectorized by hand"), all others as Python loops, so each element still sees its
reduction steps in the order of the loop nest.

Strict on purpose: storage nobody wrote holds NaN (integers 0x5a5a...), an access out of bounds raises with buffer and index,
a Select evaluates only the branch taken, an fma rounds once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolchain.core import dtype as dtypes
from toolchain.core.errors import ScheduleError
from toolchain.core.layout import TensorType
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.numpy_source import generate
from toolchain.te.tensor import Tensor


def interpret(func: PrimFunc, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `func`, by name, as logical arrays. `arrays` holds every input (outputs in it are ignored).

    Instructions are executed by the meaning they were declared with (`func.attrs["intrinsics"]`, see `te.intrin`).
    Raises ScheduleError: a missing input or one of another shape or type, an access out of bounds.
    """
    storage = {t.name: _storage(func, t, arrays) for t in func.buffers}
    run = generate(func, storage)
    with np.errstate(all="ignore"):
        run()
    outputs = func.outputs or tuple(t for t in func.params if t.name not in arrays)
    return {t.name: storage_type(func, t).layout.unpack(storage[t.name], storage_type(func, t).shape) for t in outputs}


def storage_type(func: PrimFunc, tensor: Tensor) -> TensorType:
    """How a tensor is stored: after flatten_buffers `attrs["types"]` still knows the parameters' shapes and layouts."""
    types: Mapping[str, TensorType] = func.attrs.get("types", {})
    return types.get(tensor.name, func.buffers[tensor].type)


def _storage(func: PrimFunc, tensor: Tensor, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Flat physical storage: packed inputs, outputs with zero halo and tail, everything else unwritten."""
    type = storage_type(func, tensor)
    if tensor in func.params and tensor not in func.stages and tensor.name in arrays:
        array = np.asarray(arrays[tensor.name])
        if array.shape != type.shape or array.dtype != dtypes.to_numpy(type.dtype):
            raise ScheduleError(f"interpret: {tensor.name} is {type}, given {array.dtype}{list(array.shape)}")
        return type.layout.pack(array).reshape(-1).copy()
    if tensor in func.params and tensor not in func.stages and func.stages:
        raise ScheduleError(f"interpret: input {tensor.name} is missing", fix=f"{func.name} reads all its parameters")
    if tensor in func.params:
        return type.layout.pack(unwritten(type.shape, type.dtype)).reshape(-1)
    return unwritten((type.layout.size(type.shape),), type.dtype)


def unwritten(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Storage that shows when it is read before it was written."""
    if dtypes.is_float(dtype):
        return np.full(shape, np.nan, dtypes.to_numpy(dtype))
    if dtype == "bool":
        return np.ones(shape, np.bool_)
    pattern = np.frombuffer(b"\x5a" * dtypes.itemsize(dtype), dtypes.to_numpy(dtype))[0]
    return np.full(shape, pattern, dtypes.to_numpy(dtype))
