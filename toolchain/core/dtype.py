"""Data types by name, as NumPy and ml_dtypes spell them: "float32", "bfloat16", "int8", "bool", ...

A dtype is a plain string everywhere in the project; this module answers questions about one.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTS = ("int8", "int16", "int32", "int64")
UINTS = ("uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTS, *UINTS, "bool")

_BITS = {"bool": 8, "bfloat16": 16, **{d: int(d.lstrip("floatuin")) for d in DTYPES if d not in ("bool", "bfloat16")}}


def bits(dtype: str) -> int:
    """Storage size in bits; a bool is stored in one byte."""
    return _BITS[dtype]


def itemsize(dtype: str) -> int:
    """Storage size in bytes."""
    return _BITS[dtype] // 8


def is_float(dtype: str) -> bool:
    return dtype in FLOATS


def is_integer(dtype: str) -> bool:
    return dtype in INTS or dtype in UINTS


def to_numpy(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype of that name (bfloat16 comes from ml_dtypes)."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)


def from_numpy(dtype: np.dtype[np.generic]) -> str:
    """The name of a NumPy dtype. Raises KeyError when this project has no such type."""
    name = dtype.name
    if name not in _BITS:
        raise KeyError(name)
    return name


def lowest(dtype: str) -> float | int:
    """The identity of max: -inf for floats, the smallest value for integers, 0 for bool."""
    if is_float(dtype):
        return float("-inf")
    return 0 if dtype == "bool" else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float | int:
    """The identity of min: +inf for floats, the largest value for integers, 1 for bool."""
    if is_float(dtype):
        return float("inf")
    return 1 if dtype == "bool" else int(np.iinfo(dtype).max)
