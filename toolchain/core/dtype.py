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
SMALL_INTS = ("int4", "uint4", "int2", "uint2")
SMALL_FLOATS = (
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn",
)
SMALL = (*SMALL_INTS, *SMALL_FLOATS)
"""Types to keep numbers in, not to compute with: one byte each, as ml_dtypes has them. Kernels see the byte (`storage`)."""

STORED = (*DTYPES, *SMALL)
"""The types of values of a graph."""

_BITS = {"bool": 8, "bfloat16": 16, **{d: int(d.lstrip("floatuin")) for d in DTYPES if d not in ("bool", "bfloat16")},
         **dict.fromkeys(SMALL, 8)}


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


def storage(dtype: str) -> str:
    """The type that kernels see: of the small types their byte."""
    return "uint8" if dtype in SMALL else dtype


def to_numpy(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype of that name (bfloat16 and the small types come from ml_dtypes)."""
    return np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" or dtype in SMALL else np.dtype(dtype)


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
