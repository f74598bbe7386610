"""The NumPy meaning of the operators that data-dependent shapes are made of: results one behind the other, then zeros, and
how many there are; and of scattering, which leaves an update out whose place is outside, as those of padding are. Written
for being plainly right: the kernels in kernels/loops.py are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from toolchain.graph.ir import Node

Arrays = Sequence[np.ndarray | None]


def _given(arrays: Arrays, i: int) -> np.ndarray:
    array = arrays[i]
    assert array is not None
    return array


def _number(arrays: Arrays, i: int, default: float) -> float:
    array = arrays[i] if i < len(arrays) else None
    return default if array is None else array.reshape(-1)[0].item()


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    made = np.zeros((length, *array.shape[1:]), "int64")
    made[:len(array)] = array
    return made


def flat_non_zero(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    flags = _given(arrays, 0)
    found = np.flatnonzero(flags)
    return _padded(found, len(flags)), np.asarray(len(found), "int64")


def unique_rows(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    rows = _given(arrays, 0)
    n = len(rows)
    limit = min(int(_number(arrays, 1, n)), n)
    keys = [_key(row) for row in rows[:limit]]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    order = sorted(groups) if node.attrs.get("sorted", 1) else list(groups)
    place = {key: k for k, key in enumerate(order)}
    first = np.array([groups[key][0] for key in order], "int64")
    counts = np.array([len(groups[key]) for key in order], "int64")
    inverse = np.array([place[key] for key in keys], "int64")
    return _padded(first, n), _padded(counts, n), _padded(inverse, n), np.asarray(len(order), "int64")


def _key(row: np.ndarray) -> tuple[object, ...]:
    """A row as something to sort by: NaN is equal to itself, and the largest number."""
    values = [v if isinstance(v := element.item(), bool | int) else float(v) for element in row]
    return tuple((1, 0.0) if v != v else (0, v) for v in values)


def non_max_suppression(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    boxes, scores = _given(arrays, 0), _given(arrays, 1)
    batches, classes, n = scores.shape
    bound, limit = int(node.attrs["bound"]), int(_number(arrays, 5, n))
    most = min(int(_number(arrays, 2, 0)), bound)
    overlap, least = np.float32(_number(arrays, 3, 0.0)), _number(arrays, 4, -np.inf)
    has_least = len(arrays) > 4 and arrays[4] is not None
    rows: list[tuple[int, int, int]] = []
    for batch in range(batches):
        corners = _corners(boxes[batch], bool(node.attrs.get("center_point_box", 0)))
        for cls in range(classes):
            row = scores[batch, cls]
            candidates = [i for i in range(min(limit, n)) if not has_least or row[i] > np.float32(least)]
            kept: list[int] = []
            for i in sorted(candidates, key=lambda i: -row[i]):
                if len(kept) < most and not any(_overlap(corners[i], corners[k]) > overlap for k in kept):
                    kept.append(i)
            rows += [(batch, cls, i) for i in kept]
    found = np.array(rows, "int64").reshape(-1, 3)
    return _padded(found, batches * classes * bound), np.asarray(len(found), "int64")


def _corners(boxes: np.ndarray, center: bool) -> np.ndarray:
    """Boxes as low y, low x, high y, high x."""
    if center:
        x, y, width, height = boxes.T
        two = boxes.dtype.type(2)
        return np.stack([y - height / two, x - width / two, y + height / two, x + width / two], 1)
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.floating:
    """Intersection over union; 0 where one is empty."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both, areas = size[1] * size[0], [(c[3] - c[1]) * (c[2] - c[0]) for c in (a, b)]
    union = areas[0] + areas[1] - both
    real = (size > 0).all() and both > 0 and min(areas) > 0 and union > 0
    return both / union if real else np.float32(-1)


def scatter_elements(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    x, indices, updates = (_given(arrays, i) for i in range(3))
    axis = int(node.attrs.get("axis", 0)) % x.ndim
    at, inside = _places(indices, np.array(x.shape[axis], "int64"))
    places = [at if d == axis else np.broadcast_to(np.arange(n).reshape(-1, *(1,) * (x.ndim - 1 - d)), at.shape)
              for d, n in enumerate(at.shape)]
    return (_put(node, x, np.stack(places, -1)[inside], updates[inside]),)


def scatter_nd(node: Node, arrays: Arrays) -> tuple[np.ndarray, ...]:
    x, indices, updates = (_given(arrays, i) for i in range(3))
    depth = indices.shape[-1]
    at, within = _places(indices, np.array(x.shape[:depth], "int64"))
    inside: np.ndarray = np.all(within, axis=-1)
    return (_put(node, x, at[inside], updates[inside]),)


def _places(indices: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices from the front, and which of them lie inside."""
    wide = indices.astype("int64")
    at = np.where(wide < 0, wide + n, wide)
    return at, (at >= 0) & (at < n)


def _put(node: Node, x: np.ndarray, at: np.ndarray, updates: np.ndarray) -> np.ndarray:
    """x with updates at places, one index into x per row; the last of several at one place stays."""
    y, places = np.array(x), tuple(at.T)
    reduction = str(node.attrs.get("reduction", "none"))
    if reduction in COMBINE:
        COMBINE[reduction].at(y, places, updates)
    else:
        y[places] = updates
    return y


COMBINE: dict[str, np.ufunc] = {"add": np.add, "max": np.maximum, "min": np.minimum, "mul": np.multiply}

RULES: dict[str, Callable[[Node, Arrays], tuple[np.ndarray, ...]]] = {
    "BoundedNonMaxSuppression": non_max_suppression,
    "FlatNonZero": flat_non_zero,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "UniqueRows": unique_rows,
}
