"""Counts of floating-point operations against sums done by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from running import one_node

from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.kernels.flops import MOVES, flops
from toolchain.kernels.table import KERNELS


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


WINDOW = {"kernel_shape": (3, 3), "strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
COUNTS: list[tuple[str, list[np.ndarray], dict[str, Any], int]] = [
    ("Conv", [ones(2, 8, 10, 12), ones(16, 8, 3, 3)], WINDOW, 2 * 2 * 16 * 10 * 12 * 8 * 9),
    ("Conv", [ones(1, 8, 10, 12), ones(8, 1, 3, 3)], {**WINDOW, "group": 8}, 2 * 8 * 10 * 12 * 9),
    ("ConvTranspose", [ones(1, 8, 5, 6), ones(8, 4, 3, 3)], {**WINDOW, "strides": (2, 2)}, 2 * 8 * 5 * 6 * 4 * 9),
    ("MatMul", [ones(3, 5, 7), ones(7, 9)], {}, 2 * 3 * 5 * 7 * 9),
    ("MatMul", [ones(7), ones(7)], {}, 2 * 7),
    ("Gemm", [ones(7, 5), ones(9, 7), ones(9)], {"transA": 1, "transB": 1}, 2 * 5 * 7 * 9),
    ("Einsum", [ones(2, 3, 5), ones(2, 5, 4)], {"equation": "bij,bjk->bik"}, 2 * 2 * 3 * 5 * 4),
    ("Einsum", [ones(4, 3, 5), ones(5, 6)], {"equation": "...ij,jk->...ik"}, 2 * 4 * 3 * 5 * 6),
    ("Einsum", [ones(3, 5)], {"equation": "ij"}, 15),
    ("MaxPool", [ones(1, 4, 8, 8)], {**WINDOW, "strides": (2, 2)}, 4 * 4 * 4 * 9),
    ("LRN", [ones(1, 4, 3, 3)], {"size": 5}, 36 * 15),
    ("Softmax", [ones(3, 7)], {}, 8 * 21),
    ("Add", [ones(3, 1), ones(7)], {}, 21),
    ("ReduceSum", [ones(3, 7)], {}, 21),
    ("GlobalAveragePool", [ones(1, 3, 7, 7)], {}, 147),
    ("Transpose", [ones(3, 7)], {}, 0),
]


@pytest.mark.parametrize(("op", "arrays", "attrs", "count"), COUNTS)
def test_count(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], count: int):
    body, _ = one_node(op, arrays, attrs)
    assert flops(body.nodes[0], body.types) == count


def test_moves_are_operators():
    assert KERNELS > MOVES


def test_bodies_count_their_nodes_and_a_scan_its_steps():
    a, b = TensorType.plain((3, 5)), TensorType.plain((5, 5))
    body = Graph("body", (Node("MatMul", ("s", "w"), ("p",)), Node("Add", ("p", "x"), ("n",))), ("s", "x", "w"), ("n",),
                 {"s": a, "x": a, "w": b, "p": a, "n": a})
    once = 2 * 3 * 5 * 5 + 15
    assert flops(Node("Fused", ("s", "x", "w"), ("n",), {"body": body}), body.types) == once
    types = {"s": a, "xs": TensorType.plain((7, 3, 5)), "w": b, "last": a}
    scan = Node("Scan", ("s", "xs", "w"), ("last",), {"body": body, "num_scan_inputs": 1, "captures": 1})
    assert flops(scan, types) == 7 * once
    lstm = {"x": TensorType.plain((20, 2, 6)), "w": TensorType.plain((1, 16, 6)), "r": TensorType.plain((1, 16, 4)),
            "y": TensorType.plain((20, 1, 2, 4))}
    assert flops(Node("LSTM", ("x", "w", "r"), ("y",), {"hidden_size": 4}), lstm) == 2 * 20 * 2 * (16 * 6 + 16 * 4)
