"""Cases of every operator: attributes, ranks, ragged extents, broadcasting, types, special values. `CASES[op]` is a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from toolchain.core.dtype import is_float, to_numpy
from toolchain.graph.protos import ELEM_TYPE_OF

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTS = ("int8", "uint8", "int32", "int64")
INF, NAN = np.inf, np.nan


@dataclass(frozen=True, slots=True)
class Case:
    """One node: arrays per input (None: missing), attributes, which inputs the kernel bakes in, and the tolerance.

    exact: equal to the bit (moves, comparisons, integers); else |got - want| <= atol + rtol*|want| with the tolerance of the
    result's type: a few roundings of each operation, in another order than NumPy's.
    """

    arrays: tuple[np.ndarray | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: int = 1
    exact: bool = False
    rtol: float = 0.0


RTOL = {"float32": 2e-6, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}


def tolerance(case: Case, dtype: str) -> tuple[float, float]:
    """(rtol, atol) for an output of that type."""
    if case.exact or not is_float(dtype):
        return 0.0, 0.0
    rtol = max(RTOL[dtype], case.rtol)
    return rtol, rtol


class Draw:
    """Arrays from one seed: normal numbers, integers, and lists of special values."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, dtype: str = "float32", low: float = -3, high: float = 3) -> np.ndarray:
        kind = to_numpy(dtype)
        if dtype == "bool":
            return self.rng.integers(0, 2, shape).astype(bool)
        if not is_float(dtype):
            return self.rng.integers(max(int(low), 0) if kind.kind == "u" else int(low), int(high), shape,
                                     endpoint=True).astype(kind)
        return self.rng.uniform(low, high, shape).astype(kind)

    def pick(self, n: int, *shape: int, dtype: str = "int64") -> np.ndarray:
        return self.rng.integers(-n, n, shape).astype(dtype)


d = Draw(0)


def c(*arrays: np.ndarray | None, constants: Sequence[int] = (), outputs: int = 1, exact: bool = False, rtol: float = 0.0,
      **attrs: Any) -> Case:
    return Case(arrays, attrs, tuple(constants), outputs, exact, rtol)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, to_numpy(dtype))


SPECIAL = f(0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 3.5, 1e-40, 88.0, -88.0, 1e30, -1e30)
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (33,), (3, 13), (2, 1, 27), (1, 3, 5, 9), (2, 1, 3, 2, 5))


def unary(low: float = -3, high: float = 3, floats: Sequence[str] = FLOATS, others: Sequence[str] = (), exact: bool = False,
          special: bool = True, rtol: float = 0.0, **attrs: Any) -> list[Case]:
    made = [c(d(*s, low=low, high=high), exact=exact, rtol=rtol, **attrs) for s in SHAPES]
    made += [c(d(27, low=low, high=high, dtype=t), exact=exact, rtol=rtol, **attrs) for t in (*floats[1:], *others)]
    return [*made, c(SPECIAL, exact=exact, rtol=rtol, **attrs)] if special else made


PAIRS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), ()), ((33,), (33,)), ((33,), ()), ((1,), (7, 13)), ((3, 1, 5), (4, 1)), ((2, 3, 1, 7), (3, 9, 1)),
    ((13, 27), (13, 1)),
    ((2, 16, 5, 5), (16, 1, 1)), ((1, 1), (1,)), ((2, 1, 3, 1, 5), (4, 1, 2, 1)),
)


def binary(dtypes: Sequence[str] = FLOATS, low: float = -3, high: float = 3, low2: float | None = None, exact: bool = False,
           special: bool = True, rtol: float = 0.0, **attrs: Any) -> list[Case]:
    first = dtypes[0]
    b_low = low if low2 is None else low2
    made = [c(d(*a, dtype=first, low=low, high=high), d(*b, dtype=first, low=b_low, high=high), exact=exact, rtol=rtol,
              **attrs)
            for a, b in PAIRS]
    for t in dtypes[1:]:
        made.append(c(d(3, 27, dtype=t, low=low, high=high), d(27, dtype=t, low=b_low, high=high), exact=exact, rtol=rtol,
                      **attrs))
    if special and is_float(first):
        a, b = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(SPECIAL[:12], SPECIAL[:12]))
        made.append(c(a, b, exact=exact, rtol=rtol, **attrs))
    # a constant inside the kernel: one number, and several
    made.append(c(d(5, 3, dtype=first, low=low, high=high), d(dtype=first, low=max(b_low, 1), high=high), constants=[1],
                  exact=exact, rtol=rtol, **attrs))
    made.append(c(d(5, 3, dtype=first, low=low, high=high), d(3, dtype=first, low=max(b_low, 1), high=high), constants=[1],
                  exact=exact, rtol=rtol, **attrs))
    return made


def compare(*dtypes: str) -> list[Case]:
    made = binary(dtypes or ("float32", "float64", *INTS), exact=True)
    same = np.array([1.0, 2.0, -0.0, 0.0], np.float32)
    return [*made, c(same, same.copy(), exact=True)]


def logical() -> list[Case]:
    return binary(("bool",), exact=True, special=False)


def bitwise() -> list[Case]:
    return binary(("int32", "int8", "uint8", "int64"), low=-100, high=100, exact=True, special=False)


def reduce(dtypes: Sequence[str], low: float = -3, high: float = 3, exact: bool = False, rtol: float = 1e-5) -> list[Case]:
    def one(x: np.ndarray, *axes: int, **attrs: Any) -> Case:
        return c(x, ints(*axes), constants=[1], exact=exact, rtol=rtol, **attrs)

    def x(*shape: int, dtype: str = dtypes[0]) -> np.ndarray:
        return d(*shape, dtype=dtype, low=low, high=high)
    made = [
        one(x(3, 7, 13), 1), one(x(3, 7, 13), -1, keepdims=0), one(x(3, 7, 13), 0, 2), one(x(2, 3, 5, 7), 1, -1, keepdims=0),
        one(x(33), 0), one(x(33), 0, keepdims=0), one(x(2, 1, 5), 1), one(x(1, 1, 1), 0, 1, 2, keepdims=0),
        one(x(3, 100), 1),
        one(x(2, 16, 7, 7), 2, 3), one(x(2, 5, 3, 4, 6), -2, 0), one(x(27, 33), 0),
        c(x(3, 7), exact=exact, rtol=rtol), c(x(3, 7), keepdims=0, exact=exact, rtol=rtol),
        c(x(), exact=exact, rtol=rtol), c(x(3, 7), noop_with_empty_axes=1, exact=exact, rtol=rtol),
    ]
    return made + [one(x(5, 33, dtype=t), 1) for t in dtypes[1:]]


def conv(**changes: Any) -> Case:
    """A convolution with its window spelled out, as the importer gives it."""
    spatial = changes.pop("spatial", (9, 11))
    channels, out, group = changes.pop("channels", 5), changes.pop("out", 7), changes.get("group", 1)
    kernel, rank = changes.pop("kernel", (3,) * len(spatial)), len(spatial)
    batch, bias, dtype = changes.pop("batch", 1), changes.pop("bias", True), changes.pop("dtype", "float32")
    attrs = {"kernel_shape": kernel, "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank, **changes}
    w = d(out, channels // group, *kernel, dtype=dtype, low=-1, high=1)
    return c(d(batch, channels, *spatial, dtype=dtype, low=-1, high=1), w, d(out, dtype=dtype) if bias else None, rtol=1e-5,
             **attrs)


def transposed(**changes: Any) -> Case:
    case = conv(**changes)
    x, w, b = case.arrays
    assert x is not None and w is not None
    group, out = changes.get("group", 1), w.shape[0]
    weight = d(x.shape[1], out // group, *w.shape[2:], dtype=x.dtype.name, low=-1, high=1)
    return Case((x, weight, b), case.attrs, rtol=1e-5)


def pool(x: np.ndarray, kernel: Sequence[int], **changes: Any) -> Case:
    outputs, exact = changes.pop("outputs", 1), changes.pop("exact", False)
    rank = len(kernel)
    attrs = {"kernel_shape": tuple(kernel), "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank,
             **changes}
    return Case((x,), attrs, outputs=outputs, exact=exact, rtol=1e-5)


def pools(exact: bool, floats: Sequence[str] = FLOATS, **attrs: Any) -> list[Case]:
    return [
        pool(d(1, 3, 9), (3,), exact=exact, **attrs),
        pool(d(2, 5, 9, 11), (2, 3), strides=(2, 1), exact=exact, **attrs),
        pool(d(1, 17, 8, 8), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1), exact=exact, **attrs),
        pool(d(1, 3, 9, 7), (3, 2), pads=(0, 1, 2, 0), dilations=(2, 1), exact=exact, **attrs),
        pool(d(1, 2, 10, 10), (3, 3), strides=(2, 2), ceil_mode=1, exact=exact, **attrs),
        pool(d(1, 2, 5, 6, 7), (2, 3, 2), strides=(2, 1, 3), pads=(1, 1, 0, 0, 1, 1), exact=exact, **attrs),
        pool(d(1, 4, 1, 1), (1, 1), exact=exact, **attrs),
        *(pool(d(1, 3, 6, 6, dtype=t), (2, 2), strides=(2, 2), exact=exact, **attrs) for t in floats[1:]),
    ]


CONVS = [
    conv(), conv(pads=(1, 1, 1, 1)), conv(pads=(0, 2, 1, 0), strides=(2, 1)), conv(dilations=(2, 1), pads=(2, 1, 2, 1)),
    conv(kernel=(1, 1), channels=16, out=33), conv(channels=6, out=9, group=3),
    conv(channels=16, out=16, group=16, pads=(1, 1, 1, 1)),
    conv(channels=4, out=8, group=4), conv(bias=False, batch=3), conv(spatial=(13,), kernel=(5,), strides=(3,), pads=(2, 1)),
    conv(spatial=(4, 5, 6), kernel=(2, 3, 1), strides=(1, 2, 1), pads=(1, 0, 0, 0, 1, 0)),
    conv(spatial=(1, 1), kernel=(1, 1)),
    conv(spatial=(3, 3), kernel=(3, 3), out=1, channels=1), conv(dtype="float64"), conv(dtype="float16", channels=40),
    conv(dtype="bfloat16", channels=40), conv(spatial=(2, 2), pads=(3, 3, 3, 3)),
    conv(spatial=(15, 17), kernel=(5, 4), strides=(3, 2)),
]
TRANSPOSED = [
    transposed(), transposed(strides=(2, 2)), transposed(strides=(2, 2), kernel=(4, 4), pads=(1, 1, 1, 1)),
    transposed(strides=(2, 3), output_padding=(1, 0)), transposed(pads=(0, 1, 2, 0), bias=False),
    transposed(strides=(3, 3), kernel=(2, 2)),
    transposed(channels=6, out=9, group=3, strides=(2, 1)), transposed(spatial=(7,), kernel=(4,), strides=(2,), pads=(1, 1)),
    transposed(spatial=(3, 4, 2), kernel=(2, 3, 1), strides=(1, 2, 2)),
    transposed(dilations=(2, 3), strides=(2, 1), pads=(1, 1, 0, 2)),
    transposed(channels=4, out=4, group=2, dilations=(2, 2)), transposed(batch=2, channels=16, out=17),
    transposed(dtype="float16", channels=20),
]


def matmuls() -> list[Case]:
    shapes = [
        ((7, 13), (13, 5)), ((1, 33), (33, 27)), ((33, 16), (16, 32)), ((7,), (7,)), ((7,), (7, 5)), ((5, 7), (7,)),
        ((1, 1), (1, 1)),
        ((2, 3, 5, 7), (7, 9)), ((2, 3, 5, 7), (2, 3, 7, 9)), ((3, 1, 5, 7), (2, 7, 9)), ((7,), (3, 7, 5)),
        ((3, 5, 7), (7,)),
        ((5, 7), (3, 7, 2)), ((2, 1, 40), (40, 33)), ((130, 3), (3, 70)),
    ]
    made = [c(d(*a), d(*b), rtol=1e-5) for a, b in shapes]
    made += [c(d(7, 40, dtype=t), d(40, 9, dtype=t), rtol=1e-5) for t in FLOATS[1:]]
    made += [c(d(2, 3, 40, dtype="bfloat16"), d(40, 9, dtype="bfloat16")),
             c(d(2, 3, 8, dtype="int32"), d(8, 5, dtype="int32"))]
    return [*made, c(d(5, 6, dtype="int64"), d(6, 3, dtype="int64"))]


def softmaxes(rtol: float = 1e-5) -> list[Case]:
    big = d(3, 40, low=-100, high=100)
    return [c(d(3, 13), rtol=rtol), c(d(3, 13), axis=0, rtol=rtol), c(d(2, 3, 33, 5), axis=2, rtol=rtol), c(d(7), rtol=rtol),
            c(d(2, 1, 100), axis=-1, rtol=rtol), c(d(2, 5, 1), rtol=rtol), c(d(4, 3, 2), axis=-3, rtol=rtol),
            c(big, rtol=rtol),
            c(f(-INF, 0.0, 1.0), rtol=rtol), *(c(d(3, 33, dtype=t), rtol=rtol) for t in FLOATS[1:])]


def norms() -> list[Case]:
    return [
        c(d(3, 13), d(13), d(13), rtol=1e-5), c(d(3, 13), d(13), rtol=1e-5),
        c(d(2, 3, 5), d(3, 5), d(3, 5), axis=1, rtol=1e-5),
        c(d(2, 7, 33), d(33), d(33), epsilon=0.01, rtol=1e-5), c(d(4, 6), d(4, 6), axis=-2, rtol=1e-5),
        c(d(9, 1), d(1), rtol=1e-5),
        *(c(d(3, 33, dtype=t), d(33, dtype=t), d(33, dtype=t), rtol=1e-5) for t in FLOATS[1:]),
    ]


def resizes() -> list[Case]:
    def scales(x: np.ndarray, *by: float, **attrs: Any) -> Case:
        return c(x, None, f(*by), constants=[2], rtol=1e-5, **attrs)

    def sizes(x: np.ndarray, *to: int, **attrs: Any) -> Case:
        return c(x, None, None, ints(*to), constants=[3], rtol=1e-5, **attrs)
    x = d(1, 2, 5, 7)
    modes = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
    return [
        scales(x, 1, 1, 2, 2), scales(x, 1, 1, 2, 3, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        *(sizes(x, 1, 2, 9, 4, nearest_mode=m) for m in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
        *(sizes(x, 1, 2, 13, 4, mode=mode, coordinate_transformation_mode=m) for m in modes for mode in ("linear", "cubic")),
        *(scales(x, 1, 1, 0.6, 1.7, mode=mode, coordinate_transformation_mode=m) for m in modes for mode in ("nearest",
                                                                                                             "linear")),
        scales(d(1, 1, 40, 50), 1, 1, 2, 1.7, mode="cubic"),
        scales(d(1, 1, 33, 50), 1, 1, 2.37, 3, mode="cubic", cubic_coeff_a=-0.5),
        scales(x, 1, 1, 2, 2, mode="linear"), sizes(d(2, 3, 4), 2, 3, 9, mode="linear"), sizes(d(7), 3),
        sizes(x, 1, 2, 1, 1, mode="linear"),
        sizes(x, 1, 2, 1, 9, mode="cubic", coordinate_transformation_mode="pytorch_half_pixel"),
        sizes(x, 3, 3, axes=(2, 3), mode="linear", antialias=1), sizes(x, 4, 2, axes=(3, 2), mode="cubic", antialias=1),
        sizes(x, 8, 9, axes=(2, 3), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
        sizes(d(1, 2, 3, 4, 5), 1, 2, 5, 4, 8, mode="linear"),
        *(sizes(d(2, 3, 20, 37), 2, 3, 31, 70, mode=mode, coordinate_transformation_mode=m) for m in modes
          for mode in ("linear", "cubic")),
        sizes(d(1, 2, 20, 90), 1, 2, 31, 40, mode="linear"), sizes(d(1, 3, 9, 10, 30), 1, 3, 9, 15, 41, mode="linear"),
        sizes(d(1, 3, 4, 10, 30), 1, 3, 9, 15, 41, mode="linear"), sizes(d(1, 40, 20, 5), 1, 40, 31, 9, mode="linear"),
        *(sizes(d(1, 2, 20, 33, dtype=t), 1, 2, 30, 50, mode="linear", coordinate_transformation_mode="align_corners")
          for t in ("float64", "float16", "bfloat16")),
        *(sizes(np.where((x := d(1, 1, 20, 33)) > 1.8, np.float32(NAN), x), 1, 1, 33, 47, mode="linear",
                coordinate_transformation_mode=m) for m in ("align_corners", "half_pixel")),
        *(scales(d(1, 2, 9, 40, dtype=t), 1, 1, 2, by, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
          for t in ("float32", "uint8", "float16", "int64", "bool") for by in (2, 3)),
        sizes(d(1, 1, 4, 4, dtype="float16"), 1, 1, 7, 8, mode="linear"), sizes(d(1, 1, 4, 4, dtype="uint8"), 1, 1, 8, 8),
        c(x, f(0, 0, 0.4, 0.6, 1, 1, 0.8, 1.4), None, ints(1, 2, 3, 4), constants=[1, 3], rtol=1e-5, mode="linear",
          coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0),
    ]


def casts() -> list[Case]:
    made = []
    for source in (*FLOATS, *INTS, "bool"):
        for to in (*FLOATS, *INTS, "bool"):
            x = d(3, 11, dtype=source, low=0 if "uint" in to else -60, high=60)
            made.append(c(x, to=ELEM_TYPE_OF[to], exact=True))
    return [*made, c(f(0.0, -0.0, INF, NAN, 0.3), to=ELEM_TYPE_OF["bool"], exact=True),
            c(f(0.0, -0.0, INF, -INF, NAN, 65519.0, 65520.0, 1e-8), to=ELEM_TYPE_OF["float16"], exact=True),
            c(f(1.0, 1.00390625, INF, NAN, 3.3895e38, -0.0), to=ELEM_TYPE_OF["bfloat16"], exact=True)]


def quantized() -> dict[str, list[Case]]:
    x = d(3, 5, 7, low=-8, high=8)
    u, i = np.array(128, np.uint8), np.array([3, -5, 0, 1, 9], np.int8)
    per_channel = d(5, low=0.01, high=0.3)
    q = d(3, 5, 7, dtype="uint8", low=0, high=255)
    a, b = d(4, 9, dtype="uint8", low=0, high=255), d(9, 6, dtype="uint8", low=0, high=255)
    scale = np.array(0.05, np.float32)
    window: dict[str, Any] = {"kernel_shape": (3, 3), "strides": (2, 1), "dilations": (1, 1), "pads": (1, 0, 1, 1)}
    image, weight = d(1, 4, 7, 8, dtype="uint8", low=0, high=255), d(6, 4, 3, 3, dtype="int8", low=-127, high=127)
    return {
        "QuantizeLinear": [
            c(x, scale, u, exact=True), c(x, per_channel, i, axis=1, exact=True), c(x, scale, exact=True),
            c(d(27) * 100, scale, u, exact=True),
            c(x, per_channel, i, axis=-2, constants=[1, 2], exact=True),
            c(x, d(3, 5, 4, low=0.1, high=1.0), d(3, 5, 4, dtype="int8"),
                                                                          axis=2, block_size=2, exact=True),
            c(f(0.5, 1.5, 2.5, -0.5, -1.5, 1000.0, -1000.0), np.array(1, np.float32), np.array(0, np.int8), exact=True),
        ],
        "DequantizeLinear": [
            c(q, scale, u), c(q, per_channel, i.astype(np.uint8), axis=1), c(q, scale), c(d(9, dtype="int32"), scale),
            c(q, per_channel, i.astype(np.uint8), axis=1, constants=[1, 2]), c(q, d(3, 5, 4), axis=2, block_size=2),
        ],
        "IntegerMatMul": [c(d(4, 8, dtype="uint8", low=0, high=255), d(7, 8, dtype="int8", low=-128, high=127),
                            d(7, dtype="int32"), columns=5, panel=1),
                          c(d(2, 3, 6, dtype="int16", low=-255, high=255), d(2, 4, 6, dtype="int16", low=-255, high=255),
                            columns=4, panel=4)],
        "IntegerConv": [c(image, weight, d(6, dtype="int32"), columns=5, panel=1, strides=(2, 1), dilations=(1, 1))],
        "MatMulInteger": [c(a, b, np.array(12, np.uint8), np.array(7, np.uint8)), c(a, b),
                          c(a, b, np.array(5, np.uint8), d(6, dtype="uint8")),
                          c(d(2, 4, 9, dtype="int8"), d(9, 6, dtype="int8"))],
        "ConvInteger": [c(image, weight.astype(np.uint8), np.array(100, np.uint8), **window), c(image, weight, **window),
                        c(image, weight, np.array(3, np.uint8), d(6, dtype="int8"), **window)],
        "QLinearMatMul": [c(a, scale, np.array(113, np.uint8), b, scale, np.array(99, np.uint8),
                            np.array(1.6937, np.float32), u, exact=True)],
        "QLinearConv": [
            c(image, scale, np.array(120, np.uint8), weight, d(6, low=0.01, high=0.05), np.zeros(6, np.int8),
              np.array(1.9, np.float32),
              np.array(4, np.int8).astype(np.uint8), d(6, dtype="int32", low=-900, high=900), exact=True, **window)],
    }


EYE = np.eye(3, 5, dtype=np.float32)
NANS = f(NAN, 1.0, -2.0, INF, 0.0, -0.0, 3.0)
X3 = d(3, 7, 13)
def regions() -> np.ndarray:
    return np.array([[0, 0, 9, 9], [0, 5, 4, 9], [-3, 2, 20, 7.5]], np.float32)


def deformed() -> list[Case]:
    """Samples between pixels and outside, with groups that do and do not lie across those of the offsets."""
    made = []
    for channels, group, parts, dtype in ((2, 1, 1, "float32"), (24, 2, 3, "float32"), (32, 1, 2, "float64"),
                                          (17, 1, 1, "float16"), (8, 4, 2, "float32")):
        for masked in (False, True):
            steering = {"kernel_shape": (2, 3), "strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 2)}
            arrays = [d(2, 5, 6, channels, dtype=dtype), d(2, 12 * parts, 3, 4, dtype=dtype, low=-2, high=2)]
            arrays += [d(2, 6 * parts, 3, 4, dtype=dtype, low=0, high=1)] if masked else []
            made.append(c(*arrays, **steering, group=group, offset_group=parts, rtol=1e-5))
    return made


def unpooled() -> list[Case]:
    """What MaxPool found, several planes and ranks, one with an output_shape: (6, 10) in the corner of (7, 11)."""
    made = []
    for shape, count, more in (((2, 3, 3, 5), (6, 10), {}), ((2, 3, 3, 5), (6, 10), {"to": (2, 3, 7, 11)}),
                               ((1, 40, 16), (32,), {}), ((1, 2, 2, 3, 2), (4, 6, 4), {})):
        rank = len(count)
        corner = np.stack(np.indices(shape))
        inside = [2 * corner[2 + k] + (corner.sum(0) * (k + 3) // 2) % 2 for k in range(rank)]
        flat = np.ravel_multi_index((corner[0], corner[1], *inside), (*shape[:2], *count))
        attrs = {"kernel_shape": (2,) * rank, "strides": (2,) * rank, "exact": True}
        arrays = [d(*shape), flat.astype(np.int64)]
        made.append(c(*arrays, ints(*more["to"]), constants=[2], **attrs) if more else c(*arrays, **attrs))
    return made


def placed() -> dict[str, list[Case]]:
    """Operators that read at computed places, and those that order elements."""
    grid, volume = d(2, 5, 4, 2, low=-1.3, high=1.3), d(1, 2, 3, 4, 3, low=-1.2, high=1.2)
    image = d(2, 3, 6, 7)
    samples = [c(image, grid, mode=m, padding_mode=p, align_corners=a, rtol=1e-4) for m in ("nearest", "linear", "cubic")
               for p in ("zeros", "border", "reflection") for a in (0, 1)]
    samples += [c(d(1, 2, 4, 3, 5), volume, mode=m, rtol=1e-4) for m in ("nearest", "linear")]
    pooled, places = d(1, 1, 2, 2), ints(5, 7, 13, 15).reshape(1, 1, 2, 2)
    equal = np.array([[3, 1, 3, 2, 1, 3]], np.float32)
    many = np.round(d(3, 270), 1)
    many[1, 5], many[1, 99], many[2, 7], many[2, 8] = NAN, -INF, -0.0, 0.0
    return {
        "AffineGrid": [c(d(2, 2, 3), ints(2, 3, 5, 6), constants=[1], align_corners=a, rtol=1e-5) for a in (0, 1)]
        + [c(d(1, 3, 4), ints(1, 1, 3, 4, 5), constants=[1], rtol=1e-5)],
        "Col2Im": [c(d(1, 4 * 3, 20), ints(5, 6), ints(2, 2), constants=[1, 2], rtol=1e-5),
                   c(d(2, 9, 4), ints(5, 5), ints(3, 3), constants=[1, 2], strides=(2, 2), rtol=1e-5),
                   c(d(1, 2 * 4, 36), ints(5, 5), ints(2, 2), constants=[1, 2], pads=(1, 1, 1, 1), rtol=1e-5)],
        "DeformSample": deformed(),
        "Det": [c(d(2, 2)), c(d(3, 3, 3), rtol=1e-5), c(d(2, 1, 4, 4), rtol=1e-4), c(d(5, 1, 1))],
        "GridSample": samples,
        "GridSampleLast": [replace(s, arrays=(np.ascontiguousarray(np.moveaxis(s.arrays[0], 1, -1)), *s.arrays[1:]))
                           for s in samples],
        "MaxUnpool": [*(c(pooled, places, constants=k, kernel_shape=(2, 2), strides=(2, 2), exact=True) for k in ([], [1])),
                      *unpooled()],
        "RoiSample": [c(*boxes, output_height=3, output_width=4, sampling_ratio=2, spatial_scale=s, mode=m,
                       coordinate_transformation_mode=t, rtol=1e-4)
                     for boxes in ((d(2, 10, 10, 3), regions(), ints(0, 1, 1)), (d(2, 9, 12, 37), regions(), ints(0, 1, 1)))
                     for s, m, t in ((1.0, "avg", "half_pixel"), (0.5, "avg", "output_half_pixel"),
                                     (1.0, "max", "half_pixel"))],
        "TensorScatter": [c(d(2, 6, 3), d(2, 2, 3), ints(1, 3), axis=1, exact=True),
                          c(d(2, 3, 6), d(2, 3, 2), axis=2, exact=True),
                          c(d(2, 4, 6, 3), d(2, 4, 3, 3), ints(5, 2), mode="circular", axis=2, exact=True)],
        "TopK": [c(d(3, 9), ints(4), constants=[1], outputs=2, exact=True),
                 c(d(7, 3, 2), ints(7), constants=[1], outputs=2, axis=0, largest=0, exact=True),
                 c(equal, ints(5), constants=[1], outputs=2, exact=True),
                 c(d(5, 33, dtype="int64"), ints(3), constants=[1], outputs=2),
                 *(c(a, ints(20), constants=[1], outputs=2, largest=largest, exact=True) for largest, a in (
                     (0, many), (1, many.astype(np.float64)), (1, d(2, 270, dtype="int8", high=9)))),
                 c(np.tile(equal, (1, 300 // equal.shape[1] + 1)), ints(299), constants=[1], outputs=2, exact=True)],
    }


def selections() -> dict[str, list[Case]]:
    """What data-dependent shapes are made of: results one behind the other, zeros after them, and how many."""
    draw = Draw(5)

    def boxes(batch: int, n: int) -> np.ndarray:
        corner = draw(batch, n, 2, low=0, high=20)
        return np.concatenate([corner, corner + draw(batch, n, 2, low=-6, high=9)], 2)

    scores = np.round(draw(2, 3, 37, low=0, high=1), 1)            # many equal ones
    most, overlap, least = np.array([5]), f(0.3), f(0.25)
    centers = np.abs(boxes(1, 20))
    few = np.round(draw(19, 3, high=1, low=-1))
    return {
        "FlatNonZero": [c(d(37, dtype="bool"), outputs=2), c(np.zeros(5, bool), outputs=2), c(np.ones(1, bool), outputs=2)],
        "UniqueRows": [
            c(few, outputs=4, sorted=1), c(few, np.array(7), outputs=4, sorted=0), c(few[:, :1], np.array(0), outputs=4),
            c(few[:1], outputs=4), c(d(33, 1, dtype="int64"), outputs=4, sorted=0), c(d(9, 2, dtype="bool"), outputs=4),
            c(f(NAN, 1, -INF, NAN, 0, -0.0, 1).reshape(-1, 1), outputs=4), c(d(17, 1, dtype="float16").round(), outputs=4)],
        "BoundedNonMaxSuppression": [
            c(boxes(2, 37), scores, most, overlap, least, outputs=2, bound=5, constants=[2, 3, 4]),
            c(boxes(2, 37), scores, np.array([99]), overlap, None, outputs=2, bound=37),
            c(boxes(2, 37), scores, most, overlap, least, np.array(11), outputs=2, bound=5),
            c(centers, scores[:1, :1, :20], most, overlap, outputs=2, bound=5, center_point_box=1),
            c(boxes(2, 37), scores, np.array(0), outputs=2, bound=4)],
    }


CASES: dict[str, list[Case]] = {
    "Abs": unary(others=("int8", "int32", "int64", "uint8"), exact=True),
    "Acos": unary(-0.99, 0.99, special=False), "Acosh": unary(1.01, 9, special=False),
    "Add": binary((*FLOATS, *INTS)), "And": logical(),
    "ArgMax": [c(X3, exact=True), c(X3, axis=1, keepdims=0, exact=True), c(np.round(X3), axis=-1, exact=True),
               c(np.round(X3), axis=2, select_last_index=1, exact=True), c(d(9, dtype="int32"), axis=0, keepdims=0),
               c(d(5, 40, dtype="uint8"), axis=1), c(f(NAN, NAN, NAN), axis=0, exact=True)],
    "ArgMin": [c(X3, exact=True), c(np.round(X3), axis=-1, keepdims=0), c(np.round(X3), axis=1, select_last_index=1),
               c(d(2, 1, 3), axis=1), c(f(NAN, NAN), axis=0, select_last_index=1, exact=True)],
    "Asin": unary(-0.99, 0.99, special=False), "Asinh": unary(-9, 9), "Atan": unary(-9, 9),
    "Atanh": unary(-0.99, 0.99, special=False),
    "AveragePool": [*pools(False), *pools(False, floats=("float32",), count_include_pad=1)],
    "BatchNormalization": [
        c(d(2, 5, 3, 4), d(5), d(5), d(5), d(5, low=0.1), rtol=1e-5),
        c(d(3, 7), d(7), d(7), d(7), d(7, low=0.1), epsilon=0.1, rtol=1e-5),
        c(d(1, 4, 9, dtype="float64"), *(d(4, dtype="float64", low=0.1) for _ in range(4)), rtol=1e-5),
        c(d(1, 4, 9, dtype="float16"), *(d(4, dtype="float16", low=0.1) for _ in range(4)), rtol=4e-3)],
    "BitCast": [c(d(3, 5), to=ELEM_TYPE_OF["int32"], exact=True),
                c(d(7, dtype="int64"), to=ELEM_TYPE_OF["float64"], exact=True)],
    "BitShift": [c(d(3, 7, dtype=t, low=0, high=120), d(7, dtype=t, low=0, high=9), direction=way)
                 for t in ("uint8", "uint32", "uint64") for way in ("LEFT", "RIGHT")],
    "BitwiseAnd": bitwise(), "BitwiseOr": bitwise(), "BitwiseXor": bitwise(),
    "BitwiseNot": unary(floats=("int32",), others=("int8", "uint8", "uint32"),
                        special=False)[len(SHAPES):] + [c(d(3, 5, dtype="int32"))],
    "Cast": casts(), "CastLike": [c(d(3, 5), d(2, dtype="int32"), exact=True),
                                  c(d(5, dtype="bool"), d(dtype="float16"), exact=True)],
    "Ceil": unary(exact=True), "Celu": unary(floats=("float32",), alpha=0.7, special=False) + unary(floats=("float32",),
                                                                                                    special=False),
    "CenterCropPad": [c(d(5, 8, 3), ints(9, 5, 3), constants=[1], exact=True),
                      c(d(4, 7), ints(7, 4), constants=[1], exact=True),
                      c(d(5, 6, 3), ints(4, 9), axes=(2, 0), constants=[1], exact=True)],
    "Clip": [c(d(3, 7), f(-1.0).reshape(()), f(1.0).reshape(()), constants=[1, 2], exact=True),
             c(d(3, 7), None, f(1.0).reshape(())),
             c(d(33), f(-0.5).reshape(()), exact=True), c(d(33), exact=True),
             c(NANS, f(-1.0).reshape(()), f(1.0).reshape(())),
             c(d(9, dtype="int8"), np.int8(-1), np.int8(2)), c(d(9, dtype="int64"), np.int64(-1), None),
             c(d(9, dtype="float16"), np.float16(-1))],
    "Concat": [c(d(2, 3), d(2, 5), axis=1, exact=True), c(d(2, 3), d(4, 3), d(1, 3), axis=0, exact=True),
               c(d(2, 3, 4), d(2, 3, 1), axis=-1, exact=True),
               c(d(5), axis=0, exact=True), c(d(1, 16, 3, 3), d(1, 16, 3, 3), d(1, 5, 3, 3), axis=1, exact=True),
               c(*(d(1, n, dtype="int64") for n in (1, 2, 3, 4, 5)), axis=1),
               c(d(7, dtype="bool"), d(3, dtype="bool"), axis=0)],
    "ConstantOfShape": [c(ints(2, 3), constants=[0], exact=True), c(ints(5), constants=[0], value=np.array([7], np.int64))],
    "Conv": CONVS, "ConvTranspose": TRANSPOSED,
    "Cos": unary(-9, 9, special=False), "Cosh": unary(),
    "CumProd": [c(d(3, 7), np.array(1), constants=[1], rtol=1e-5),
                c(d(3, 5), np.array(0), constants=[1], reverse=1, exclusive=1, rtol=1e-5)],
    "CumSum": [c(d(3, 33), np.array(1), constants=[1], rtol=1e-5, reverse=r, exclusive=e) for r in (0, 1) for e in (0, 1)]
              + [c(d(5, 3, 2, dtype="int32"), np.array(-3), constants=[1]), c(d(9), np.array(0), constants=[1], rtol=1e-5),
                 c(d(2, 300), np.array(1), constants=[1], rtol=1e-5), c(d(19, 40), np.array(0), constants=[1], rtol=1e-5)]
              + [c(d(2, 9, 5, 17, low=0.5, high=1.5, dtype=t), np.array(1), constants=[1], rtol=1e-5, reverse=r, exclusive=e)
                 for t in ("float32", "float16", "float64") for r in (0, 1) for e in (0, 1)]
              + [c(d(3, 50, 131, dtype="int64"), np.array(1), constants=[1])],
    "DepthToSpace": [c(d(2, 12, 3, 5), blocksize=2, exact=True), c(d(1, 18, 2, 3), blocksize=3, mode="CRD", exact=True)],
    "Div": binary(FLOATS) + [c(d(3, 27, dtype=t, low=-100, high=100), d(27, dtype=t, low=1, high=9)) for t in INTS]
           + [c(np.array([7, -7, 7, -7, 0], np.int32), np.array([2, 2, -2, -2, 5], np.int32)),
              c(d(9, dtype="int32"), np.array([3], np.int32), constants=[1])],
    "Einsum": [c(d(3, 5), d(5, 7), equation="ij,jk->ik", rtol=1e-5), c(d(3, 5), equation="ij->ji", exact=True),
               c(d(4, 4), equation="ii->i", exact=True),
               c(d(2, 3, 5), d(2, 5, 4), equation="bij,bjk->bik", rtol=1e-5), c(d(5), d(5), equation="i,i", rtol=1e-5),
               c(d(3, 4), equation="ij->i", rtol=1e-5),
               c(d(2, 3, 4, 5), d(2, 3, 6, 5), equation="bhqd,bhkd->bhqk", rtol=1e-5),
               c(d(3, 5, 4), d(4, 2), equation="...ij,jk->...ik", rtol=1e-5),
               c(d(4, 4), equation="ii", rtol=1e-5), c(d(3), d(4), equation="i,j->ij"),
               c(d(2, 3), d(3, 4), d(4, 5), equation="ab,bc,cd->ad", rtol=1e-5)],
    "Elu": unary(special=False) + unary(floats=("float32",), alpha=2.0, special=False), "Equal": compare(),
    "Erf": unary(rtol=1e-7), "Exp": unary(-9, 9),
    "Expand": [c(d(3, 1), ints(2, 1, 6), constants=[1], exact=True), c(d(3, 1), ints(3, 4), constants=[1], exact=True),
               c(d(), ints(2, 3), constants=[1], exact=True),
               c(d(5, dtype="int64"), ints(1), constants=[1])],
    "EyeLike": [c(EYE, exact=True), c(EYE, k=1, exact=True), c(EYE, k=-2, dtype=ELEM_TYPE_OF["int32"])],
    "Flatten": [c(d(2, 3, 4), exact=True), c(d(2, 3, 4, 5), axis=2, exact=True), c(d(5), axis=0, exact=True),
                c(d(2, 3, 4), axis=-1, exact=True)],
    "Floor": unary(exact=True),
    "Gather": [c(X3, d.pick(7, 4), axis=1, exact=True), c(X3, d.pick(3, 2, 2), exact=True),
               c(X3, np.array(-1), axis=-1, exact=True),
               c(X3, d.pick(13, 3), axis=2, constants=[1], exact=True),
               c(X3, np.array(2), axis=1, constants=[1], exact=True),
               c(d(50, 6), d.pick(50, 2, 7, dtype="int32"), exact=True), c(X3, ints(4), axis=1, constants=[1], exact=True),
               c(d(9, dtype="int64"), d.pick(9))],
    "GatherElements": [c(d(3, 5), d.pick(3, 2, 5), exact=True), c(d(3, 5), d.pick(5, 3, 4), axis=1, exact=True),
                       c(d(4), d.pick(4, 3, dtype="int32"), constants=[1])],
    "GatherND": [c(d(3, 5, 4), d.pick(3, 6, 2), exact=True), c(d(3, 5, 4), d.pick(3, 2, 7, 3), exact=True),
                 c(d(3, 5, 4), d.pick(4, 3, 2, 2), batch_dims=1, exact=True)],
    "Gelu": unary(rtol=1e-7) + unary(floats=("float32", "float16"), approximate="tanh", special=False),
    "Gemm": [c(d(5, 7), d(7, 9), rtol=1e-5), c(d(7, 5), d(7, 9), d(9), transA=1, alpha=0.5, rtol=1e-5),
             c(d(5, 7), d(9, 7), d(5, 1), transB=1, beta=2.0, rtol=1e-5),
             c(d(5, 7), d(7, 9), d(), alpha=2.0, beta=0.5, rtol=1e-5),
             c(d(5, 40, dtype="bfloat16"), d(40, 9, dtype="bfloat16"), d(9, dtype="bfloat16"))],
    "GlobalAveragePool": [c(d(2, 5, 7, 7), rtol=1e-5), c(d(1, 17, 3), rtol=1e-5), c(d(1, 3, 2, 3, 4), rtol=1e-5),
                          c(d(1, 3, 9, 9, dtype="float16"))],
    "GlobalLpPool": [c(d(2, 5, 7, 7), rtol=1e-5), c(d(1, 3, 9), p=1, rtol=1e-5), c(d(1, 3, 4, 4), p=3, rtol=1e-5)],
    "GlobalMaxPool": [c(d(2, 5, 7, 7), exact=True), c(d(1, 17, 3), exact=True),
                      c(d(1, 3, 4, 4, dtype="float16"), exact=True)],
    "Greater": compare(), "GreaterOrEqual": compare(),
    "HardSigmoid": unary(special=False) + unary(floats=("float32",), alpha=0.5, beta=0.6, special=False),
    "HardSwish": unary(special=False, rtol=1e-7),
    "Hardmax": [c(np.round(X3), exact=True), c(np.round(X3), axis=1, exact=True), c(d(9), axis=0, exact=True)],
    "Identity": unary(others=(*INTS, "bool"), exact=True),
    "InstanceNormalization": [c(d(2, 5, 7, 3), d(5), d(5), rtol=1e-4), c(d(1, 3, 33), d(3), d(3), epsilon=0.1, rtol=1e-4),
                              c(d(1, 3, 9, dtype="float16"), d(3, dtype="float16"), d(3, dtype="float16"))],
    "IsInf": [c(SPECIAL), c(SPECIAL, detect_negative=0), c(SPECIAL, detect_positive=0), c(SPECIAL.astype(np.float64))],
    "IsNaN": [c(SPECIAL), c(SPECIAL[:13].astype(np.float16))],
    "LRN": [c(d(2, 7, 5, 5), size=3, rtol=1e-5), c(d(1, 20, 4, 4), size=5, alpha=0.1, beta=0.5, bias=2.0, rtol=1e-5),
            c(d(1, 4, 3, 3), size=4, rtol=1e-5), c(d(1, 4, 9), size=3)],
    "LayerNormalization": [*norms(), Case((d(3, 13), d(13), d(13)), outputs=3, rtol=1e-5)],
    "Layout": [c(d(3, 5), exact=True)], "LeakyRelu": unary() + unary(floats=("float32",), alpha=0.3, special=False),
    "Less": compare(), "LessOrEqual": compare(),
    "Log": unary(0.01, 9), "LogSoftmax": softmaxes(),
    "LpNormalization": [c(X3, rtol=1e-5), c(X3, axis=1, p=1, rtol=1e-5), c(np.zeros((2, 5), np.float32), rtol=1e-5)],
    "LpPool": [*pools(False, floats=("float32",)), *pools(False, floats=("float32", "float16"), p=1)[:3]],
    "MatMul": matmuls(), "Max": binary((*FLOATS, *INTS)) + [c(d(3, 1), d(5), d(3, 5), exact=True), c(d(7), exact=True),
                                                                c(d(7), f(NAN), constants=[1], exact=True)],
    "MaxPool": [*pools(True), *pools(True, floats=("float32",), outputs=2)[:-1],
                pool(np.round(d(1, 2, 6, 6)) + 0, (2, 3), outputs=2, storage_order=1, exact=True),        # no -0: equal to 0
                pool(d(1, 3, 6, 6, dtype="int8"), (3, 3), pads=(1, 1, 1, 1)),
                pool(d(1, 3, 6, 6, dtype="uint8"), (3, 3), pads=(1, 1, 1, 1))],
    "Mean": binary(FLOATS, special=False) + [c(d(3, 1), d(5), d(3, 5)), c(d(7))],
    "Min": binary((*FLOATS, *INTS)) + [c(d(3, 1), d(5), d(3, 5), exact=True), c(d(7), f(NAN), constants=[1], exact=True)],
    "Mish": unary(special=False),
    "Mod": [c(d(3, 27, dtype=t, low=-100, high=100), d(27, dtype=t, low=1, high=9), fmod=m) for t in INTS for m in (0, 1)]
           + [c(np.array([7, -7, 7, -7, 0], np.int64), np.array([3, 3, -3, -3, 5], np.int64), fmod=m) for m in (0, 1)]
           + [c(d(3, 27, low=-100, high=100), d(27, low=0.5, high=9), fmod=1, exact=True),
              c(d(27, dtype="float64", low=-9, high=9), d(27, dtype="float64", low=1), fmod=1),
              c(f(5.5, -5.5, 5.5, -5.5, 0.0, -0.0, 1.0, -1.0, INF, 3.0),
                f(2.0, 2.0, -2.0, -2.0, 3.0, 3.0, INF, INF, 2.0, -INF), fmod=1, exact=True),
              c(f(5.5, -5.5, 5.5, -5.5, 0.0, -0.0, 1.0, -1.0, INF, 3.0),
                f(2.0, 2.0, -2.0, -2.0, 3.0, -3.0, INF, INF, 2.0, -INF), exact=True)],
    "Mul": binary((*FLOATS, *INTS)), "Neg": unary(others=("int8", "int32", "int64"), exact=True),
    "Not": [c(d(3, 7, dtype="bool")), c(d(dtype="bool"))],
    "OneHot": [c(d.pick(5, 3, 2), np.array(5), f(-1.0, 2.0), constants=[1, 2], exact=True),
               c(d.pick(5, 3), np.array(5), f(0.0, 1.0), axis=0, constants=[1], exact=True),
               c(d.pick(4, 7, dtype="int32"), np.array(4), np.array([0, 9], np.int64), constants=[1, 2])],
    "Or": logical(),
    "PRelu": [p for p in binary(FLOATS,
                                special=False)
                   if np.broadcast_shapes(*(a.shape for a in p.arrays if a is not None)) == p.arrays[0].shape],
    "Pad": [c(d(3, 5), ints(1, 0, 2, 3), constants=[1], exact=True),
            c(d(3, 5), ints(1, 0, 2, 3), np.array(7, np.float32), constants=[1, 2], exact=True),
            c(d(3, 5), ints(1, 0, 2, 3), np.array(7, np.float32), constants=[1], exact=True),
            c(d(1, 3, 7, 9), ints(0, 0, -1, 2, 0, 0, 3, -4), constants=[1], exact=True),
            *(c(d(3, 5, 6), ints(1, 0, 2, 2, 3, 4), constants=[1], mode=m, exact=True) for m in ("edge", "reflect", "wrap")),
            *(c(d(3, 2), ints(7, 5, 6, 3), constants=[1], mode=m, exact=True) for m in ("edge", "reflect", "wrap")),
            *(c(d(7), ints(-2, 4), constants=[1], mode=m, exact=True) for m in ("constant", "edge", "reflect", "wrap")),
            *(c(d(5, 6), ints(2, -1, -1, 3), constants=[1], mode=m, exact=True) for m in ("edge", "reflect", "wrap")),
            *(c(d(2, 3, 4, 37, dtype=t), ints(0, 0, 2, 3, 0, 0, 1, 5), constants=[1], mode=m, exact=True)
              for m in ("edge", "reflect", "wrap") for t in ("float32", "float16", "int8")),
            *(c(d(2, 5, 6, 3), ints(0, 2, 1, 0, 0, 1, 3, 0), constants=[1], mode=m, exact=True)
              for m in ("edge", "reflect", "wrap")),
            c(d(5, 3), ints(2, 1), None, ints(-1), constants=[1, 3], exact=True),
            c(d(7, dtype="int64"), ints(2, 2), np.array(-3), constants=[1, 2]),
            c(d(3, 3, dtype="bool"), ints(1, 1, 1, 1), constants=[1])],
    "Pow": [c(d(3, 7, low=0.1), d(7)), c(d(7), np.array(2.0, np.float32), constants=[1]),
            c(d(7, low=0.1), np.array(0.5, np.float32), constants=[1]),
            c(d(7), np.array(3, np.int64), constants=[1]), c(d(7, dtype="int32"), d(7, dtype="int32", low=0)),
            c(d(7, low=0.1), d(7, dtype="int64")), c(d(7), np.array(-1.0, np.float32), constants=[1]),
            c(d(7, dtype="int64", low=1), d(7, low=0.1)), c(f(0.0, -1.0, -2.0, -8.0, 2.0, INF, NAN, 0.0),
                                                            f(0.0, 3.0, 2.0, 0.3, -2.0, -1.0, 0.0, -1.0)),
                                                            c(d(7, dtype="float64", low=0.1), d(7, dtype="float64")),
            c(d(9, dtype="float16", low=0.1), d(9, dtype="float16")),
            c(d(5, low=0.1), f(0.5, 1.0, 2.0, 3.0, 4.0), constants=[1])],
    "RMSNormalization": [c(d(3, 13), d(13), rtol=1e-5), c(d(2, 3, 5), d(3, 5), axis=1, rtol=1e-5),
                         c(d(2, 3, 33), d(33), epsilon=0.1, rtol=1e-5), c(d(3, 9, dtype="float16"), d(9, dtype="float16"))],
    "Range": [c(np.array(2, np.int64), np.array(20, np.int64), np.array(3, np.int64), constants=[0, 1, 2]),
              c(np.float32(1), np.float32(3), np.float32(0.3), constants=[0, 1, 2])],
    "Reciprocal": unary(0.1, 9), "ReduceL1": reduce((*FLOATS, "int32", "int64")), "ReduceL2": reduce(FLOATS),
    "ReduceLogSum": reduce(FLOATS, low=0.1), "ReduceLogSumExp": [*reduce(FLOATS, low=-3),
                                                                 c(d(3, 9, low=80, high=99), ints(1), constants=[1],
                                                                   rtol=1e-5), c(f(-INF, -INF), rtol=1e-5)],
    "ReduceMax": [*reduce((*FLOATS, *INTS), exact=True), c(d(3, 7, dtype="bool"), ints(1), constants=[1])],
    "ReduceMean": reduce((*FLOATS, "int32", "int64")),
    "ReduceMin": [*reduce((*FLOATS, *INTS), exact=True), c(d(3, 7, dtype="bool"), ints(1), constants=[1])],
    "ReduceProd": reduce((*FLOATS[:2], "int32"), low=0.8, high=1.2), "ReduceSum": reduce((*FLOATS, "int32", "int64")),
    "ReduceSumSquare": reduce((*FLOATS, "int32")),
    "Relu": unary(others=("int8", "int32")), "Reshape": [c(d(2, 6), ints(3, 4), constants=[1], exact=True),
                                                         c(d(2, 3, 4), ints(0, -1), constants=[1], exact=True),
                                                         c(d(7), ints(1, 7, 1), constants=[1], exact=True),
                                                       c(d(), ints(1, 1), constants=[1], exact=True),
                                                       c(d(1, 1), np.zeros(0, np.int64), constants=[1], exact=True),
                                                       c(d(4, 33), ints(12, 11), constants=[1], exact=True)],
    "Resize": resizes(),
    "ReverseSequence": [c(d(5, 4), ints(5, 1, 3, 2), exact=True),
                        c(d(4, 5, 3), ints(2, 5, 1, 3), batch_axis=0, time_axis=1, exact=True)],
    "RotaryEmbedding": [
        c(d(2, 3, 5, 8), d(7, 4), d(7, 4), np.array([[0, 3, 1, 2, 6], [5, 4, 3, 2, 1]])),
        c(d(2, 3, 5, 8), d(2, 5, 4), d(2, 5, 4), interleaved=1),
        c(d(2, 5, 36), d(2, 5, 6), d(2, 5, 6), num_heads=3),
        c(d(1, 2, 3, 64), d(4, 32), d(4, 32), np.array([[3, 0, 1]])),
        c(d(1, 2, 3, 40), d(1, 3, 8), d(1, 3, 8), rotary_embedding_dim=16),
        c(d(1, 2, 3, 20), d(1, 3, 8), d(1, 3, 8), rotary_embedding_dim=16, interleaved=1),
        c(d(1, 2, 3, 8, dtype="float16"), d(1, 3, 4, dtype="float16"), d(1, 3, 4, dtype="float16")),
    ],
    "Round": unary(exact=True),
    "ScatterElements": [c(d(3, 5), np.array([[1, 0, 2, -1, 0]]), d(1, 5), exact=True),
                        c(d(3, 5), np.array([[1, 0, 2, -1, 0]]), d(1, 5), constants=[1], exact=True),
                        c(d(3, 35), np.array([[7, 34, 7], [0, -35, 3]]), d(2, 3), axis=1, exact=True),
                        c(d(130, 140), np.arange(130)[:, None] % 7, d(130, 1), axis=1, reduction="add"),
                        c(d(1, 7), np.array([[1, 3, -1]]), d(1, 3), axis=1, exact=True),
                        *(c(d(1, 7), np.array([[1, 3, 1]]), d(1, 3), axis=1, reduction=m) for m in ("add", "mul", "max",
                                                                                                    "min"))],
    "ScatterND": [c(d(8), np.array([[4], [3], [1], [-1]]), d(4), exact=True),
                  c(d(4, 3, 2), np.array([[0], [2]]), d(2, 3, 2), exact=True),
                  c(d(4, 3, 2), np.array([[0], [2]]), d(2, 3, 2), constants=[1], exact=True),
                  c(d(3, 2, 37), np.array([[2, 1], [0, 0], [2, 1]]), d(3, 37), reduction="max", exact=True),
                  c(d(2, 3), np.array([[[1, 2]]]).reshape(1, 1, 2), d(1, 1), exact=True),
                  c(d(4, 3), np.array([[[0, 1], [2, 2]]]), d(1, 2), exact=True),
                  *(c(d(8), np.array([[4], [3], [4]]), d(3), reduction=m) for m in ("add", "mul", "max", "min"))],
    "Selu": unary(special=False) + unary(floats=("float32",), alpha=2.0, gamma=3.0, special=False),
    "Shrink": unary(floats=FLOATS[:3], special=False) + unary(floats=("float32",), lambd=1.5, bias=1.0, special=False),
    "Sigmoid": unary(), "Sign": unary(others=("int8", "int32", "uint8"), special=False), "Sin": unary(-9, 9, special=False),
    "Sinh": unary(),
    "Slice": [c(X3, ints(1), ints(6), constants=[1, 2], exact=True),
              c(X3, ints(-3, 1), ints(100, -1), ints(2, 0), constants=[1, 2, 3], exact=True),
              c(X3, ints(5, -1), ints(-100, 2), ints(1, -1), ints(-2, -3), constants=[1, 2, 3, 4], exact=True),
              c(d(9, dtype="int64"), ints(1), ints(9), ints(0), ints(3), constants=[1, 2, 3, 4])],
    "Softmax": softmaxes(), "Softplus": unary(special=False), "Softsign": unary(special=False)[1:],
    "SpaceToDepth": [c(d(1, 3, 4, 6), blocksize=2, exact=True), c(d(2, 2, 3, 6), blocksize=3, mode="CRD", exact=True)],
    "Split": [c(d(7, 6), ints(2, 4), constants=[1], axis=1, outputs=2, exact=True),
              c(d(7, 3), num_outputs=3, outputs=3, exact=True),
              c(d(2, 3, 4), num_outputs=2, axis=-1, outputs=2, exact=True)],
    "Sqrt": unary(0.0, 9), "Squeeze": [c(d(1, 3, 1), exact=True), c(d(1, 3, 1), ints(-1), constants=[1], exact=True)],
    "Sub": binary((*FLOATS, *INTS)), "Sum": binary(FLOATS) + [c(d(3, 1), d(5), d(3, 5)), c(d(7))],
    "Swish": unary(special=False) + unary(floats=("float32",), alpha=0.5, special=False),
    "Tan": unary(-1.4, 1.4, special=False), "Tanh": unary(),
    "ThresholdedRelu": unary(special=False) + unary(floats=("float32",), alpha=0.2, special=False),
    "Tile": [c(d(2, 3), ints(2, 3), constants=[1], exact=True), c(d(7), ints(1), constants=[1], exact=True),
             c(d(2, 1, 5, dtype="int64"), ints(1, 4, 2), constants=[1])],
    "Transpose": [c(d(3, 7), exact=True), c(d(2, 3, 5, 7), perm=(0, 2, 3, 1), exact=True),
                  c(d(5, 1, 3), perm=(2, 0, 1), exact=True), c(d(7), exact=True), c(d(33, 27, dtype="float16"), exact=True),
                  *(c(d(2, 37, 21, dtype=t), perm=(0, 2, 1), exact=True) for t in (*FLOATS, "int8", "int64", "bool")),
                  c(d(16, 1, 2, 32, dtype="uint8"), perm=(1, 3, 2, 0), exact=True)],
    "Trilu": [c(d(5, 7), exact=True), c(d(2, 5, 5), upper=0, exact=True), c(d(5, 7), np.array(2), constants=[1], exact=True),
              c(d(5, 7), np.array(-2), constants=[1], upper=0, exact=True)],
    "Unsqueeze": [c(d(3, 5), ints(0, -1), constants=[1], exact=True), c(d(), ints(0), constants=[1], exact=True)],
    "Where": [c(d(3, 7, dtype="bool"), d(3, 7), d(3, 7), exact=True), c(d(3, 1, dtype="bool"), d(7), d(), exact=True),
              c(d(7, dtype="bool"), d(3, 7, dtype="int64"), d(1, 7, dtype="int64")),
              c(d(4, dtype="bool"), d(3, 4), f(-INF).reshape(()), constants=[0, 2], exact=True)],
    "WinogradConv": [c(d(2, 3, 7, 9, low=-1, high=1), d(m + 2, m + 2, 5, 3, low=-0.2, high=0.2), bias, m=m,
                       pads=(1, 0, 1, 2), rtol=1e-5 * m * m)
                     for m in (2, 4) for bias in (None, d(5))],
    "WinogradConvTranspose": [
        c(d(2, 3, 4, 5, low=-1, high=1), d(2, 2, m + 1, m + 1, 5, 3, low=-0.2, high=0.2), bias, m=m, taps=2, pads=(1, 0),
          size=(8, 11), rtol=1e-5 * m * m) for m in (2, 4) for bias in (None, d(5))],
    "Xor": logical(), **quantized(), **placed(), **selections(),
}

__all__ = ["CASES", "Case", "ml_dtypes", "tolerance"]
