"""What a random network is made of: functions that propose nodes, and how often each is asked.

A proposal draws operands and attributes from the whole range that ONNX allows (ONNX Runtime has the last word), keeping to
values on which an operator is well conditioned: no logarithm near zero, no rounding of a rounded number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .builder import Builder

F = ("float32",)
FLOATS = ("float32", "float32", "float32", "float64", "float16")
INTS = ("int32", "int64", "int8", "uint8")
ANY = ("float32", "float32", "float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool")
NUMBERS = ANY[:-1]

SMOOTH = ("Atan", "Sin", "Cos", "Erf", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Selu", "Celu", "LeakyRelu",
          "HardSigmoid", "HardSwish", "Mish", "Gelu", "Relu", "Abs", "Neg", "Identity", "Clip", "ThresholdedRelu", "Asinh")
JUMPS = ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf", "Shrink", "Not", "Hardmax", "BitwiseNot")


def _above(low: float) -> Callable[[np.ndarray], bool]:
    return lambda a: bool(a.min() > low)


def _within(high: float) -> Callable[[np.ndarray], bool]:
    return lambda a: bool(abs(a).max() < high)


DOMAINS: dict[str, Callable[[np.ndarray], bool]] = {
    "Log": _above(0.05), "Sqrt": _above(0.01), "Reciprocal": lambda a: bool(abs(a).min() > 0.1), "Acosh": _above(1.1),
    "Acos": _within(0.95), "Asin": _within(0.95), "Atanh": _within(0.9), "Exp": lambda a: bool(a.max() < 4),
    "Sinh": _within(4), "Cosh": _within(4), "Tan": _within(1.2),
}


def unary(b: Builder) -> None:
    op = b.rng.choice(SMOOTH)
    attrs: dict[str, float | str] = {}
    if op in ("Elu", "Celu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid") and b.chance(0.7):
        attrs["alpha"] = b.rng.uniform(0.1, 2.0)
    if op == "HardSigmoid":
        attrs["beta"] = b.rng.uniform(0.1, 0.9)
    if op == "Gelu":
        attrs["approximate"] = b.one_of("none", "tanh")
    jumps = op == "ThresholdedRelu"
    x = b.some(dtypes=("float32", "float32", "float16", "float64"), exact=jumps)
    more = []
    if op == "Clip":
        kind = b[x].dtype
        low, high = b.one_of(("lo", "hi"), ("lo", ""), ("", "hi"))
        more = [b.const(np.array(-0.7, kind)) if low else "", b.const(np.array(0.9, kind)) if high else ""]
    b.op(op, x, *more, exact=False if op not in ("Relu", "Abs", "Neg", "Identity", "Clip") else None, **attrs)


def on_a_domain(b: Builder) -> None:
    """A function that is not defined, or steep, for some numbers: on a value that keeps away from them."""
    op = b.rng.choice(list(DOMAINS))
    x = b.some(dtypes=F)
    if not DOMAINS[op](b[x]):
        (x,) = b.op("Sigmoid", x, exact=False) or [x]
        (x,) = b.op("Mul", x, b.const(np.float32(0.8)), exact=False) or [x]
        if op in ("Log", "Sqrt", "Reciprocal", "Acosh"):
            (x,) = b.op("Add", x, b.const(np.float32(1.2)), exact=False) or [x]
    if DOMAINS[op](b[x]):
        b.op(op, x, exact=False)


def jump(b: Builder) -> None:
    op = b.rng.choice(JUMPS)
    if op == "Not":
        b.op(op, b.some(dtypes=("bool",)))
    elif op == "BitwiseNot":
        b.op(op, b.some(dtypes=INTS))
    elif op == "Hardmax":
        x = b.some((1, 4), F, exact=True)
        b.op(op, x, axis=b.rng.randint(-b[x].ndim, b[x].ndim - 1))
    elif op == "Shrink":
        b.op(op, b.some(dtypes=F, exact=True), lambd=b.rng.uniform(0.2, 1), bias=b.rng.uniform(0, 0.5))
    else:
        b.op(op, b.some(dtypes=FLOATS, exact=True))


def partner(b: Builder, x: str) -> str:
    """A second operand that broadcasts with x: a value so far, a new input, or a constant."""
    array = b[x]
    fits = [n for n, a in b.values.items() if a.dtype == array.dtype and broadcasts(a.shape, array.shape)]
    if b.chance(0.5):
        return b.rng.choice(fits)
    shape = [n if b.chance(0.6) else 1 for n in array.shape]
    shape = shape[b.rng.randint(0, len(shape)) if b.chance(0.4) else 0:]
    if len(shape) == array.ndim < 4 and b.chance(0.15):
        shape = [b.rng.choice((1, 2, 3)), *shape]
    made = b.array(shape, array.dtype.name)
    return b.const(made) if b.chance(0.5) else b.given(made)


def broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        return math.prod(np.broadcast_shapes(*shapes)) < 4000
    except ValueError:
        return False


def binary(b: Builder) -> None:
    op = b.one_of("Add", "Add", "Add", "Mul", "Mul", "Sub", "Max", "Min", "Div", "Pow", "PRelu", "Sum", "Mean", "Mod")
    x = b.some(dtypes=F if op in ("Div", "Pow", "PRelu", "Mean") else NUMBERS, exact=op == "Mod")
    if op == "Pow":
        if b[x].min() > 0.1:
            b.op(op, x, b.const(np.float32(b.one_of(0.5, 1.5, -1.0, 2.0, 3.0))), exact=False)
        else:
            b.op(op, x, b.const(np.float32(b.one_of(2.0, 3.0))), exact=False)
        return
    y = partner(b, x)
    if op in ("Div", "Mod") and abs(b[y].astype(np.float64)).min() < 0.2:
        shape = b[y].shape
        y = b.const((b.numpy.integers(1, 6, shape) * b.numpy.choice([-1, 1] if b[x].dtype.kind != "u" else [1], shape)
                     ).astype(b[x].dtype))
    if op == "Mod":
        b.op(op, x, y, fmod=1 if b[x].dtype.kind == "f" else b.rng.randint(0, 1))
        return
    if op == "PRelu" and np.broadcast_shapes(b[x].shape, b[y].shape) != b[x].shape:
        return
    operands = [x, y] if b.chance(0.5) or op in ("PRelu",) else [y, x] if op != "Div" else [x, y]
    if op in ("Sum", "Mean", "Max", "Min") and b.chance(0.4):
        operands.append(partner(b, x))
    b.op(op, *operands, exact=None if op in ("Max", "Min") or b[x].dtype.kind != "f" else False)


def comparison(b: Builder) -> None:
    x = b.some(dtypes=NUMBERS, exact=True)
    y = partner(b, x)
    if y in b.exact:
        b.op(b.one_of("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), x, y)


def logic(b: Builder) -> None:
    x = b.some(dtypes=("bool",))
    b.op(b.one_of("And", "Or", "Xor"), x, partner(b, x))


def bits(b: Builder) -> None:
    x = b.some(dtypes=("int32", "int64", "uint8", "int8"))
    if b.chance(0.3) and b[x].dtype.kind == "u":
        b.op("BitShift", x, b.const(b.array(b[x].shape, b[x].dtype.name) % 4), direction=b.one_of("LEFT", "RIGHT"))
    else:
        b.op(b.one_of("BitwiseAnd", "BitwiseOr", "BitwiseXor"), x, partner(b, x))


def where(b: Builder) -> None:
    x = b.some(dtypes=NUMBERS)
    y = partner(b, x)
    c = b.some(dtypes=("bool",)) if b.chance(0.4) else ""
    if not c or not broadcasts(b[c].shape, b[x].shape, b[y].shape):
        shape = [n if b.chance(0.7) else 1 for n in b[x].shape]
        c = b.given(b.array(shape, "bool"))
    b.op("Where", c, *((x, y) if b.chance(0.5) else (y, x)))


def cast(b: Builder) -> None:
    kind = b.one_of("float32", "float32", "int32", "int64", "uint8", "bool", "float16", "float64", "int8")
    to = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}[kind]
    x = b.some(dtypes=ANY, exact=not kind.startswith("float"))
    if kind.startswith(("int", "uint")) and b[x].dtype.kind == "f" and (
            abs(b[x]).max() > 100 or (kind[0] == "u" and b[x].min() < 0)):
        return
    exact = False if kind == "float16" or b[x].dtype.name == "float64" else None
    if b.chance(0.2):
        b.op("CastLike", x, b.const(b.array((1,), kind)), exact=exact)
    else:
        b.op("Cast", x, to=to, exact=exact)


# ---- moving elements

def reshape(b: Builder) -> None:
    x = b.some((1, 5), ANY)
    shape = b[x].shape
    match b.one_of("Reshape", "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        case "Flatten":
            b.op("Flatten", x, axis=b.rng.randint(-len(shape), len(shape)))
        case "Squeeze":
            ones = [d for d, n in enumerate(shape) if n == 1]
            some = [d - len(shape) * b.chance(0.3) for d in ones if b.chance(0.7)]
            b.op("Squeeze", x, *([b.ints(*some)] if some else []))
        case "Unsqueeze" if len(shape) < 5:
            b.op("Unsqueeze", x, b.ints(*sorted(b.rng.sample(range(len(shape) + 2), 2 if b.chance(0.3) else 1))))
        case _:
            b.op("Reshape", x, b.ints(*new_shape(b, shape)))


def new_shape(b: Builder, shape: tuple[int, ...]) -> list[int]:
    """Another shape of as many elements: dimensions joined and cut anew, at times with 0 (as it was) and -1."""
    left, made = math.prod(shape), []
    while left > 1 and len(made) < 4:
        divisors = [d for d in range(2, left + 1) if left % d == 0]
        made.append(b.rng.choice(divisors))
        left //= made[-1]
    made += [left] if left > 1 else []
    for _ in range(b.rng.randint(0, 2)):
        if len(made) < 5:
            made.insert(b.rng.randint(0, len(made)), 1)
    b.rng.shuffle(made)
    if made and b.chance(0.3):
        made[b.rng.randrange(len(made))] = -1
    elif made and made[0] == shape[0] and b.chance(0.5):
        made[0] = 0
    return made or [1]


def transpose(b: Builder) -> None:
    x = b.some((1, 5), ANY)
    perm = list(range(b[x].ndim))
    b.rng.shuffle(perm)
    b.op("Transpose", x, perm=perm if b.chance(0.9) else None)


def slices(b: Builder) -> None:
    x = b.some((1, 5), ANY)
    axes = sorted(b.rng.sample(range(b[x].ndim), b.rng.randint(1, b[x].ndim)))
    starts, ends, steps = [], [], []
    for d in axes:
        n = b[x].shape[d]
        step = b.one_of(1, 1, 1, 2, 3, -1, -1, -2)
        first, last = sorted((b.rng.randint(0, n), b.rng.randint(0, n)))
        if step < 0:
            first, last = last, first - 1 if first else -n - 1
        if b.chance(0.2):
            first, last = (first - n, last) if step > 0 and first < n else (first, last)
        if b.chance(0.1) and step > 0:
            last = 1 << 31
        starts.append(first)
        ends.append(last)
        steps.append(step)
    signed = [d - b[x].ndim * b.chance(0.3) for d in axes]
    b.op("Slice", x, b.ints(*starts), b.ints(*ends), b.ints(*signed), b.ints(*steps))


def split(b: Builder) -> None:
    x = b.some((1, 5), ANY, when=lambda a: max(a.shape) > 1)
    axis = b.rng.choice([d for d, n in enumerate(b[x].shape) if n > 1])
    n = b[x].shape[axis]
    parts = b.rng.randint(2, min(n, 4))
    signed = axis - b[x].ndim * b.chance(0.3)
    if b.chance(0.5):
        b.op("Split", x, outputs=parts, axis=signed, num_outputs=parts)
        return
    cuts = sorted(b.rng.sample(range(1, n), parts - 1))
    b.op("Split", x, b.ints(*(e - s for s, e in zip([0, *cuts], [*cuts, n], strict=True))), outputs=parts, axis=signed)


def concat(b: Builder) -> None:
    x = b.some((1, 5), ANY)
    axis = b.rng.randrange(b[x].ndim)
    parts = [x]
    for _ in range(b.rng.randint(1, 3)):
        fits = [n for n, a in b.values.items() if a.dtype == b[x].dtype and a.ndim == b[x].ndim
                and all(p == q or d == axis for d, (p, q) in enumerate(zip(a.shape, b[x].shape, strict=True)))]
        shape = [b.rng.randint(1, 9) if d == axis else n for d, n in enumerate(b[x].shape)]
        more = b.rng.choice(fits) if b.chance(0.7) else b.given(b.array(shape, b[x].dtype.name))
        parts.insert(b.rng.randint(0, len(parts)), more)
    b.op("Concat", *parts, axis=axis - b[x].ndim * b.chance(0.3))


def pad(b: Builder) -> None:
    x = b.some((1, 5), NUMBERS)
    mode = b.one_of("constant", "constant", "reflect", "edge", "wrap")
    most = [3 if mode in ("constant", "edge") else max(0, min(3, n - 1)) for n in b[x].shape]
    pads = [b.rng.randint(0, m) if b.chance(0.6) else 0 for m in most + most]
    if mode == "constant" and b.chance(0.2):
        pads = [-1 if n > 2 and b.chance(0.3) else p for p, n in zip(pads, b[x].shape * 2, strict=True)]
    value = [b.const(np.array(b.rng.randint(-2, 2) if b[x].dtype.kind != "u" else 3, b[x].dtype))]
    b.op("Pad", x, b.ints(*pads), *(value if mode == "constant" and b.chance(0.7) else []), mode=mode)


def expand(b: Builder) -> None:
    x = b.some((1, 4), ANY, when=lambda a: a.size < 600)
    shape = [b.rng.randint(1, 5) if n == 1 else b.one_of(1, n) for n in b[x].shape]
    if b.chance(0.3):
        shape = [b.rng.randint(1, 3), *shape]
    b.op("Expand", x, b.ints(*shape))


def tile(b: Builder) -> None:
    x = b.some((1, 4), ANY, when=lambda a: a.size < 600)
    b.op("Tile", x, b.ints(*(b.one_of(1, 1, 2, 3) for _ in b[x].shape)))


def gather(b: Builder) -> None:
    x = b.some((1, 4), ANY)
    axis = b.rng.randrange(b[x].ndim)
    n = b[x].shape[axis]
    kind = b.one_of("Gather", "Gather", "GatherElements", "GatherND")
    if kind == "GatherND":
        depth = b.rng.randint(1, b[x].ndim)
        last = np.stack([b.numpy.integers(-m, m, (4,)) for m in b[x].shape[:depth]], -1)
        b.op(kind, x, at(b, last))
        return
    if kind == "GatherElements":
        shape = [b.rng.randint(1, m) if d != axis else b.rng.randint(1, 6) for d, m in enumerate(b[x].shape)]
    else:
        shape = list(b.shape(b.rng.randint(0, 2), 40))
    b.op(kind, x, at(b, b.numpy.integers(-n, n, shape)), axis=axis - b[x].ndim * b.chance(0.3))


def at(b: Builder, indices: np.ndarray) -> str:
    indices = np.asarray(indices, b.one_of("int64", "int64", "int32") if b.chance(0.5) else "int64")
    return b.const(indices) if b.chance(0.5) else b.given(indices)


def scatter(b: Builder) -> None:
    x = b.some((1, 3), F)
    shape = b[x].shape
    reduction = b.one_of("none", "none", "add", "mul", "max", "min")
    if b.chance(0.5):
        depth = b.rng.randint(1, len(shape))
        every = np.stack(np.meshgrid(*(np.arange(n) for n in shape[:depth]), indexing="ij"), -1).reshape(-1, depth)
        count = b.rng.randint(1, len(every))
        indices = b.numpy.permutation(every)[:count]            # each place once: the order of several is open
        b.op("ScatterND", x, at(b, indices),
             b.given(b.array((count, *shape[depth:]))), reduction=reduction, exact=False)
        return
    axis = b.rng.randrange(len(shape))
    small = [b.rng.randint(1, n) for n in shape]
    order = np.argsort(b.numpy.random(shape), axis)
    indices = order[tuple(slice(0, m) for m in small)]
    b.op("ScatterElements", x, at(b, indices), b.given(b.array(small)), axis=axis, reduction=reduction, exact=False)


def depth_space(b: Builder) -> None:
    block = b.one_of(2, 3)
    if b.chance(0.5):
        shape = (b.one_of(1, 2), block * block * b.rng.randint(1, 4), b.rng.randint(1, 6), b.rng.randint(1, 6))
        x = b.some(4, F, when=lambda a: a.shape[1] % (block * block) == 0) if b.chance(0.5) else b.input(shape)
        b.op("DepthToSpace", x, blocksize=block, mode=b.one_of("DCR", "CRD"))
    else:
        x = b.input((b.one_of(1, 2), b.rng.randint(1, 6), block * b.rng.randint(1, 4), block * b.rng.randint(1, 4)))
        b.op("SpaceToDepth", x, blocksize=block)


def moves(b: Builder) -> None:
    """The rarer moves."""
    match b.one_of("Trilu", "CumSum", "OneHot", "EyeLike", "ReverseSequence", "CenterCropPad", "Range", "ConstantOfShape"):
        case "Trilu":
            x = b.some((2, 4), NUMBERS)
            k = [b.const(np.array(b.rng.randint(-3, 3)))] if b.chance(0.6) else []
            b.op("Trilu", x, *k, upper=b.rng.randint(0, 1))
        case "CumSum":
            x = b.some((1, 4), ("float32", "int32", "int64"))
            b.op("CumSum", x, b.const(np.array(b.rng.randint(-b[x].ndim, b[x].ndim - 1))), exclusive=b.rng.randint(0, 1),
                 reverse=b.rng.randint(0, 1), exact=b[x].dtype.kind != "f" and None)
        case "OneHot":
            depth = b.rng.randint(1, 9)
            indices = at(b, b.numpy.integers(-depth, depth + 2, b.shape(b.rng.randint(1, 2), 100)))
            b.op("OneHot", indices, b.const(np.array(depth)), b.const(np.array([-0.5, 2], np.float32)),
                 axis=b.rng.randint(-1, b[indices].ndim))
        case "EyeLike":
            b.op("EyeLike", b.some(2, ("float32", "int32")), k=b.rng.randint(-2, 2))
        case "ReverseSequence":
            x = b.some((2, 4), F)
            time = b.rng.randint(0, 1)
            n, batch = b[x].shape[time], b[x].shape[1 - time]
            b.op("ReverseSequence", x, at(b, b.numpy.integers(1, n + 1, batch)), time_axis=time, batch_axis=1 - time)
        case "CenterCropPad":
            x = b.some((1, 4), F)
            b.op("CenterCropPad", x, b.ints(*(b.rng.randint(1, 8) for _ in b[x].shape)))
        case "Range":
            b.op("Range", *(b.const(np.array(n)) for n in (b.rng.randint(-5, 5), 20, b.rng.randint(1, 7))))
        case "ConstantOfShape":
            b.op("ConstantOfShape", b.ints(*b.shape(2, 200)))


def resize(b: Builder) -> None:
    rank = b.one_of(1, 2, 2, 2, 3)
    x = b.some(rank + 2, F, when=lambda a: a.size < 800)
    mode = b.one_of("nearest", "nearest", "linear", "cubic")
    if mode == "cubic" and rank != 2:
        return
    sizes = [*b[x].shape[:2], *(b.rng.randint(1, 2 * n + 2) for n in b[x].shape[2:])]
    how = b.one_of("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    scales = [1.0, 1.0, *(b.one_of(0.5, 1.0, 2.0, 3.0, 1.5) for _ in range(rank))]
    if mode == "nearest":               # others land on ties, where a rounding error decides
        how, scales = b.one_of("half_pixel", "asymmetric"), [1.0, 1.0, *(b.one_of(0.5, 1.0, 2.0, 4.0) for _ in range(rank))]
    by_size = mode != "nearest" and (how == "align_corners" or b.chance(0.5))       # aligned ends of 13.5 elements: unclear
    target = ["", b.ints(*sizes)] if by_size else [b.const(np.array(scales, np.float32))]
    attrs: dict = {}
    if mode == "nearest":
        attrs["nearest_mode"] = b.one_of("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    elif b.chance(0.2):
        attrs["antialias"] = 1
        if how == "pytorch_half_pixel":         # of one element ONNX Runtime makes something else than ONNX
            how = "half_pixel"
    b.op("Resize", x, "", *target, mode=mode, coordinate_transformation_mode=how, exact=None if mode == "nearest" else False,
         **attrs)
