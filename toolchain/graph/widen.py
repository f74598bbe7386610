"""The same network in double precision: what its outputs would be if float32 did not round.

    y: float32[8] = Exp(x)   ->   y: float64[8] = Exp(x)

Two programs that compute a network in float32 differ; which of them is right, the difference alone does not say. This graph
says it, at the price of the interpreter's time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph

FLOAT, DOUBLE = 1, 11           # onnx.TensorProto.DataType
NAMES_A_TYPE = frozenset(("to", "dtype"))       # attributes of Cast, EyeLike, RandomNormal, ... that hold such a number


def widened(graph: Graph) -> Graph:
    """Every float32 type, parameter and attribute as float64, in subgraphs too. Other types stay: values of float16 round
    as before."""
    types = {name: _wide_type(t) for name, t in graph.types.items()}
    params = {name: wide(array) for name, array in graph.params.items()}
    nodes = tuple(replace(node, attrs={key: _wide_attr(key, value) for key, value in node.attrs.items()})
                  for node in graph.nodes)
    return replace(graph, types=types, params=params, nodes=nodes)


def wide(array: np.ndarray) -> np.ndarray:
    """A float32 array as float64; another one as it is."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _wide_type(t: TensorType) -> TensorType:
    return replace(t, dtype="float64") if t.dtype == "float32" else t


def _wide_attr(key: str, value: Any) -> Any:
    if isinstance(value, Graph):
        return widened(value)
    if isinstance(value, np.ndarray):
        return wide(value)
    return DOUBLE if key in NAMES_A_TYPE and value == FLOAT else value


__all__ = ["wide", "widened"]
