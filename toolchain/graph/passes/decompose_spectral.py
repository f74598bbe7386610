"""DFT and STFT as products with a constant matrix of cosines and sines.

    DFT(x (..., N, 2), axis)   ->   Transpose, Reshape to (..., 2N), MatMul with (2N, 2K), Reshape to (..., K, 2), Transpose
    STFT(x, step, window)      ->   Gather of the frames, Mul by the window, DFT of each

A matrix product of N*K; the lengths that networks use (hundreds of points) are faster so than by a transform of many passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolchain.core.dtype import to_numpy
from toolchain.core.errors import ImportModelError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Node
from toolchain.graph.passes.rewriting import Rewriting

SPECTRAL = frozenset(("DFT", "STFT"))


def decompose_spectral(node: Node, state: Rewriting) -> Sequence[Node]:
    """See the module. Raises ImportModelError: a length, axis or step that is not constant."""
    return (_dft if node.op == "DFT" else _stft)(node, state)


def _number(node: Node, state: Rewriting, i: int, default: int) -> int:
    name = node.inputs[i] if i < len(node.inputs) else ""
    if not name:
        return default
    if (found := state.integers(name)) is None:
        raise ImportModelError(f"input {i} has to be constant", where=f"node {node.name!r} ({node.op})")
    return found[0]


def _dft(node: Node, state: Rewriting) -> list[Node]:
    x = node.inputs[0]
    shape, dtype = state.shape(x), state.types[x].dtype
    axis = _number(node, state, 2, -2) % len(shape)
    inverse, onesided = bool(node.attrs.get("inverse", 0)), bool(node.attrs.get("onesided", 0))
    short = inverse and onesided
    length = _number(node, state, 1, 2 * (shape[axis] - 1) if short else shape[axis])
    matrix = dft_matrix(shape[axis], length, shape[-1], inverse, onesided)
    return _product(node, state, x, axis, matrix, state.types[node.output].shape, dtype)


def dft_matrix(given: int, length: int, parts: int, inverse: bool, onesided: bool) -> np.ndarray:
    """The matrix of a transform: rows are (time, part), columns (frequency, part). A signal of another length than `length`
    is cut or filled with zeros; a one-sided inverse takes half a spectrum and gives real numbers. Source: ONNX DFT."""
    half = length // 2 + 1
    used = min(given, half if inverse and onesided else length)
    out = length if inverse or not onesided else half
    turns = np.outer(np.arange(used), np.arange(out)) % length / length
    wave = np.exp((2j if inverse else -2j) * np.pi * turns) / (length if inverse else 1)
    if inverse and onesided:                    # the other half of the spectrum mirrors this one
        twice = np.ones(used)
        twice[1:(length + 1) // 2] = 2
        wave = wave * twice[:, None]
    matrix = np.zeros((given, parts, out, 1 if inverse and onesided else 2))
    matrix[:used, 0, :, 0] = wave.real
    if matrix.shape[3] == 2:
        matrix[:used, 0, :, 1] = wave.imag
    if parts == 2:
        matrix[:used, 1, :, 0] = -wave.imag
        if matrix.shape[3] == 2:
            matrix[:used, 1, :, 1] = wave.real
    return matrix.reshape(given * parts, -1)


def _product(
    node: Node, state: Rewriting, x: str, axis: int, matrix: np.ndarray, result: tuple[int, ...], dtype: str,
) -> list[Node]:
    """x, its axis brought next to the parts, times the matrix."""
    shape, label = state.shape(x), node.name or node.output
    rank = len(shape)
    perm = (*(d for d in range(rank - 1) if d != axis), axis, rank - 1)
    back = tuple(perm.index(d) for d in range(rank))
    outer = tuple(shape[d] for d in perm[:-2])
    nodes: list[Node] = []

    def add(op: str, inputs: tuple[str, ...], made: Sequence[int], **attrs: object) -> str:
        out = state.value(f"{label}.{op.lower()}", TensorType.plain(tuple(made), dtype))
        nodes.append(Node(op, inputs, (out,), attrs, f"{label}.{op.lower()}"))
        return out
    moved = add("Transpose", (x,), [shape[d] for d in perm], perm=perm)
    rows = add("Reshape", (moved, state.int64(*outer, matrix.shape[0])), (*outer, matrix.shape[0]))
    weights = state.param(f"{label}.waves", np.ascontiguousarray(matrix, to_numpy(dtype)))
    made = add("MatMul", (rows, weights), (*outer, matrix.shape[1]))
    apart = tuple(result[d] for d in perm)
    split = add("Reshape", (made, state.int64(*apart)), apart)
    nodes.append(Node("Transpose", (split,), node.outputs, {"perm": back}, f"{label}.back"))
    return nodes


def _stft(node: Node, state: Rewriting) -> list[Node]:
    x, dtype = node.inputs[0], state.types[node.inputs[0]].dtype
    shape, label = state.shape(x), node.name or node.output
    batch, total, parts = (*shape, 1)[:3]
    window = node.inputs[2] if len(node.inputs) > 2 else ""
    step = _number(node, state, 1, 1)
    length = _number(node, state, 3, state.shape(window)[0] if window else total)
    count = 1 + (total - length) // step
    nodes: list[Node] = []

    def add(op: str, inputs: tuple[str, ...], made: tuple[int, ...], **attrs: object) -> str:
        out = state.value(f"{label}.{op.lower()}", TensorType.plain(made, dtype))
        nodes.append(Node(op, inputs, (out,), attrs, f"{label}.{op.lower()}"))
        return out
    if len(shape) == 2:
        x = add("Reshape", (x, state.int64(batch, total, 1)), (batch, total, 1))
    places = state.param(f"{label}.places", np.arange(count)[:, None] * step + np.arange(length)[None, :])
    frames = add("Gather", (x, places), (batch, count, length, parts), axis=1)
    if window:
        column = add("Reshape", (window, state.int64(length, 1)), (length, 1))
        frames = add("Mul", (frames, column), (batch, count, length, parts))
    matrix = dft_matrix(length, length, parts, False, bool(node.attrs.get("onesided", 1)))
    return nodes + _product(node, state, frames, 2, matrix, state.types[node.output].shape, dtype)
