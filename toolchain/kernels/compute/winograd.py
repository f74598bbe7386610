"""Winograd convolution as te stages: two 1-D transforms of the input, a product per position, two 1-D transforms back.

    P = B^T d       V = P B       M[j, k] = V[j, k] . U[j, k]       Q = A^T M       Y = Q A + bias

Positions j, k of a tile are dimensions of P, V, M and Q. Their transforms are written out per position, without zeros and
ones, chosen by selects on j or k: a schedule that unrolls the position decides them. Parts that two positions share (sums of
even and of odd taps) are written alike, so that a code generator computes them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from toolchain import te
from toolchain.kernels.compute.nn import inside
from toolchain.kernels.op import Op

Values = Sequence[Any]


def input_transform(d: Values) -> list[Any]:
    """B^T d for `side` values: te expressions or anything else with + - *.

    With few coefficients: each takes a register in all loops of a kernel, and those that transform back have none left. So
    4*d0 - 5*d2 + d4 is 4*(d0 - d2) + (d4 - d2).
    """
    match len(d):
        case 3:
            return [d[0] - d[1], d[1], d[2] - d[1]]
        case 4:
            return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
        case 5:
            odd = d[3] - d[1]
            return [(d[0] - d[2]) * 2.0 + odd, odd - (d[1] + d[2]), (d[1] - d[2]) * 3.0 + odd, odd,
                    odd * -2.0 + (d[4] - d[2])]
    far_even, far_odd = d[4] + d[2] * -4.0, d[3] + d[1] * -4.0
    even, odd = d[4] - d[2], d[3] - d[1]
    return [
        (d[0] - d[2]) * 4.0 + even, far_even + far_odd, far_even - far_odd,
        odd * 2.0 + even, odd * -2.0 + even, odd * -4.0 + (d[5] - d[3]),
    ]


def output_transform(t: Values, m: int) -> list[Any]:
    """A^T t for `side` values: m results."""
    match len(t), m:
        case 3, 2:
            return [t[0] + t[1], t[1] + t[2]]
        case 4, 2:
            return [t[0] + (t[1] + t[2]), (t[1] - t[2]) - t[3]]
        case 4, 3:
            total = t[1] + t[2]
            return [t[0] + total, t[1] - t[2], total - t[3]]
        case 6, 2:
            return [(t[0] + (t[1] + t[2])) + (t[3] + t[4]), ((t[3] - t[4]) * 2.0 + (t[1] - t[2])) + t[5]]
        case 5, 4:
            total, less = t[1] + t[2], t[1] - t[2]
            return [(t[0] + total) + t[3], t[3] * 2.0 + less, t[3] * 4.0 + total, (t[3] * 8.0 + less) + t[4]]
    sum1, less1, sum2, less2 = t[1] + t[2], t[1] - t[2], t[3] + t[4], t[3] - t[4]
    return [(t[0] + sum1) + sum2, less2 * 2.0 + less1, sum2 * 4.0 + sum1, (less2 * 8.0 + less1) + t[5]]


def at_position(position: Any, values: Values) -> te.Expr:
    """values[position] as nested selects, one of which is left when the position is known."""
    result: te.Expr = values[-1]
    for n in reversed(range(len(values) - 1)):
        result = te.select(te.index(position).equal(n), values[n], result)
    return result


def winograd_conv(op: Op) -> te.Tensor:
    """Y[n, o, y, x] = B[o] + the convolution of X by the weights that input 1 holds transformed, (side, side, O, I)."""
    m, taps, pads, step = op.attr("m"), op.attr("taps", 3), op.attr("pads"), op.attr("stride", 1)
    if step > 1:
        return _stages(op, m, taps, 1, [lambda _: 0] * 2, lambda *at: _apart(op, pads, step, *at))
    return _stages(op, m, taps, 1, [lambda _, pad=pad: -pad for pad in pads[:2]])


def _apart(op: Op, pads: Sequence[int], step: int, n: Any, c: Any, y: Any, z: Any) -> te.Expr:
    """X with rows and columns that are `step` apart as channels of their own (`graph.winograd.split_strides`)."""
    channels, phase = op.x.shape[1], te.index(c) // op.x.shape[1]
    place = (te.index(y) * step + phase // step - pads[0], te.index(z) * step + phase % step - pads[1])
    return te.select(inside(place, op.x.shape[2:]), op.x[(n, te.index(c) % channels, *place)], te.const(0, op.dtype))


def winograd_conv_transpose(op: Op) -> te.Tensor:
    """Each phase (y % s, x % s) of the output is a convolution of X by weights of its own, (s, s, side, side, O, I).

    See `compute.nn.conv_transpose`, and `graph.winograd.phase_weights` for the taps.
    """
    m, taps, pads = op.attr("m"), op.attr("taps"), op.attr("pads")
    stride = op.tensor(1).shape[0]
    return _stages(op, m, taps, stride, [lambda a, pad=pad: (te.index(a) + pad) // stride - (taps - 1) for pad in pads[:2]])


def _stages(
    op: Op, m: int, taps: int, stride: int, starts: Sequence[Callable[[Any], Any]],
    read: Callable[..., te.Expr] | None = None,
) -> te.Tensor:
    """The five stages. The phases of an output with a stride stand beside the images, n = (image * stride + a) * stride + b;
    starts[d](phase): the input that the first tap of output 0 meets. read: (n, channel, y, x) of the input, by default of X.

    Padding is a select in the first stage; the last tiles may stand over the output, which reads just what it needs.
    """
    x, u, side = op.x, op.tensor(1), m + taps - 1
    (batch, outputs, *extents), channels, spatial = op.shape, u.shape[-1], x.shape[2:]
    rows, columns = (-(-n // stride // m) for n in extents)
    phases, zero = stride * stride, te.const(0, op.dtype)
    first, last = (te.index(starts[1](a)).constant for a in (0, stride - 1))

    def padded(n: Any, c: Any, y: Any, z: Any) -> te.Expr:
        if read is not None:
            return read(n, c, y, z)
        return te.select(inside((y, z), spatial), x[n, c, y, z], zero)

    def vertical(n: Any, c: Any, t: Any, j: Any, z: Any) -> te.Expr:
        image, top = te.index(n) // stride, starts[0](te.index(n) % stride)
        return at_position(j, input_transform([padded(image, c, t * m + i + top, z + first) for i in range(side)]))

    def horizontal(n: Any, c: Any, t: Any, s: Any, j: Any, k: Any) -> te.Expr:
        left = starts[1](te.index(n) % stride) - first
        return at_position(k, input_transform([p[te.index(n) // stride, c, t, j, s * m + i + left] for i in range(side)]))

    def product(n: Any, o: Any, t: Any, s: Any, j: Any, k: Any) -> te.Expr:
        a = te.index(n) // stride % stride
        weight = u[j, k, o, ic] if stride == 1 else u[a, te.index(n) % stride, j, k, o, ic]
        return te.sum(v[n, ic, t, s, j, k] * weight, axis=ic)

    def vertical_back(n: Any, o: Any, t: Any, s: Any, i: Any, k: Any) -> te.Expr:
        return at_position(i, output_transform([products[n, o, t, s, j, k] for j in range(side)], m))

    def horizontal_back(n: Any, o: Any, y: Any, z: Any) -> te.Expr:
        (row, a), (column, b) = ((te.index(i) // stride, te.index(i) % stride) for i in (y, z))
        n = (te.index(n) * stride + a) * stride + b
        taps = output_transform([q[n, o, row // m, column // m, row % m, k] for k in range(side)], m)
        value = at_position(column % m, taps)
        return value + op.read(2, (o,)) if op.has(2) else value

    ic = te.reduce_axis(channels, "ic")
    stage: Callable[..., te.Tensor] = te.compute
    width = columns * m + taps - 1 + last - first
    p = stage((batch * stride, channels, rows, side, width), vertical, name=op.name("vertical"), tag="winograd_rows")
    v = stage((batch * phases, channels, rows, columns, side, side), horizontal, name=op.name("v"), tag="winograd_input")
    products = stage((batch * phases, outputs, rows, columns, side, side), product, name=op.name("m"), tag="winograd",
                     attrs={"stride": stride, "taps": taps})
    q = stage((batch * phases, outputs, rows, columns, m, side), vertical_back, name=op.name("q"), tag="winograd_back")
    return te.compute(op.shape, horizontal_back, name=op.name(), tag="winograd_output", attrs={"m": m})


WINOGRAD = {"WinogradConv": winograd_conv, "WinogradConvTranspose": winograd_conv_transpose}
