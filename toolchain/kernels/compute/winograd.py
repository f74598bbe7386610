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
    """B^T d for m + 2 values: te expressions or anything else with + - *."""
    if len(d) == 4:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    far_even, far_odd = d[4] + d[2] * -4.0, d[3] + d[1] * -4.0
    even, odd = d[4] - d[2], d[3] - d[1]
    return [
        d[0] * 4.0 + (d[2] * -5.0 + d[4]), far_even + far_odd, far_even - far_odd,
        odd * 2.0 + even, odd * -2.0 + even, d[1] * 4.0 + (d[3] * -5.0 + d[5]),
    ]


def output_transform(t: Values) -> list[Any]:
    """A^T t for m + 2 values: m results."""
    if len(t) == 4:
        return [t[0] + (t[1] + t[2]), (t[1] - t[2]) - t[3]]
    sum1, less1, sum2, less2 = t[1] + t[2], t[1] - t[2], t[3] + t[4], t[3] - t[4]
    return [(t[0] + sum1) + sum2, less2 * 2.0 + less1, sum2 * 4.0 + sum1, (less2 * 8.0 + less1) + t[5]]


def at_position(position: Any, values: Values) -> te.Expr:
    """values[position] as nested selects, one of which is left when the position is known."""
    result: te.Expr = values[-1]
    for n in reversed(range(len(values) - 1)):
        result = te.select(te.index(position).equal(n), values[n], result)
    return result


def winograd_conv(op: Op) -> te.Tensor:
    """Y[n, o, y, x] = B[o] + the 3x3 convolution of X by the weights that input 1 holds transformed, (m+2, m+2, O, I).

    Padding is a select in the first stage; the last tiles may stand over the output, which reads just what it needs.
    """
    m, (top, left, *_) = op.attr("m"), op.attr("pads")
    x, u, side = op.x, op.tensor(1), m + 2
    (batch, outputs, height, width), (_, channels, *spatial) = op.shape, x.shape
    rows, columns = -(-height // m), -(-width // m)
    zero = te.const(0, op.dtype)

    def padded(n: Any, c: Any, y: Any, z: Any) -> te.Expr:
        return te.select(inside((y, z), spatial), x[n, c, y, z], zero)

    def vertical(n: Any, c: Any, t: Any, j: Any, z: Any) -> te.Expr:
        return at_position(j, input_transform([padded(n, c, t * m + i - top, z - left) for i in range(side)]))

    def horizontal(n: Any, c: Any, t: Any, s: Any, j: Any, k: Any) -> te.Expr:
        return at_position(k, input_transform([p[n, c, t, j, s * m + i] for i in range(side)]))

    def product(n: Any, o: Any, t: Any, s: Any, j: Any, k: Any) -> te.Expr:
        return te.sum(v[n, ic, t, s, j, k] * u[j, k, o, ic], axis=ic)

    def vertical_back(n: Any, o: Any, t: Any, s: Any, i: Any, k: Any) -> te.Expr:
        return at_position(i, output_transform([products[n, o, t, s, j, k] for j in range(side)]))

    def horizontal_back(n: Any, o: Any, y: Any, z: Any) -> te.Expr:
        row, column = te.index(y), te.index(z)
        taps = output_transform([q[n, o, row // m, column // m, row % m, k] for k in range(side)])
        value = at_position(column % m, taps)
        return value + op.read(2, (o,)) if op.has(2) else value

    ic = te.reduce_axis(channels, "ic")
    stage: Callable[..., te.Tensor] = te.compute
    p = stage((batch, channels, rows, side, columns * m + 2), vertical, name=op.name("vertical"), tag="winograd_rows")
    v = stage((batch, channels, rows, columns, side, side), horizontal, name=op.name("v"), tag="winograd_input")
    products = stage((batch, outputs, rows, columns, side, side), product, name=op.name("m"), tag="winograd")
    q = stage((batch, outputs, rows, columns, m, side), vertical_back, name=op.name("q"), tag="winograd_back")
    return te.compute(op.shape, horizontal_back, name=op.name(), tag="winograd_output", attrs={"m": m})


WINOGRAD = {"WinogradConv": winograd_conv}
