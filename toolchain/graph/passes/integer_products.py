"""Products and convolutions of small integers, as the target's dot products take them.

Two forms. *Bytes*: unsigned by signed (x86) or signed by signed (Arm), four factors to a lane, where there is one zero point
for all weights (of a convolution: none, or one that the shift to signed bytes takes away). *Words*: 16 bits, one or two
factors to a lane, zero points subtracted before.

    bytes   sum (x - zx)*(w - zw) = sum x'*w' - zx'*sum w' - zw'*(sum x' - K*zx')
            x' = x + 128 if signed and to be unsigned, x - 128 the other way; w' = w - 128 if unsigned; zero points as they
    words   sum (x - zx)*(w - zw)                                 each factor within 9 bits, each product within 17

The sum of weights, -zx' times it and the bias are the start of the sum: constants wherever weights and zero points are.

Armv8.0 adds two products of bytes in 16 bits, which cannot wrap where no two weights of a column are -128: weights that are
known say so of a node ("pairs").

A depthwise convolution has no sums that a dot product could take. Its few products are exact in float32, so that a kernel
multiplies and adds there, and each sum becomes an int32 once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from toolchain.graph.infer import infer
from toolchain.graph.ir import Graph, Node
from toolchain.graph.passes.rewriting import Rewriting, rewrite_graph


@dataclass(frozen=True, slots=True)
class Form:
    """How a target takes a product: types of the factors, how many of them share a lane (the summed extent is a multiple of
    it), lanes of a vector of sums, and how many columns (output channels) a register tile has (the columns are a multiple
    of it). pairs: two products of a column are added in 16 bits."""

    left: str
    right: str
    group: int
    lanes: int
    panel: int
    pairs: bool = False

    @property
    def in_bytes(self) -> bool:
        return self.left in ("uint8", "int8")

    @property
    def attrs(self) -> dict[str, bool]:
        """What a node has to say of its weights."""
        return {"pairs": True} if self.pairs else {}

    def block(self, channels: int) -> int:
        """The channels of a convolution that lie together: as many as there are lanes; of a few, whole groups."""
        return max(self.group, min(self.lanes, -(-channels // self.group) * self.group))


@dataclass(frozen=True, slots=True)
class Product:
    """What kernels are asked about: height x width points by so many columns, each a sum of `depth` products (of a
    convolution: for each of its taps). in_bytes: zero points allow bytes. pairs: weights allow sums of two in 16 bits."""

    height: int
    width: int
    columns: int
    depth: int
    in_bytes: bool
    pairs: bool


Forms: TypeAlias = Callable[[Product], Form | None]
"""In which form kernels want a product; None: they have no instruction for it."""


InFloats: TypeAlias = Callable[[Node, Graph], bool]
"""What kernels answer about a convolution of dequantized values: whether floats compute it in less."""

DequantizedRule: TypeAlias = Callable[[Node, Rewriting, Forms], "Sequence[Node] | None"]


def integer_products(graph: Graph, forms: Forms) -> Graph:
    """Rewrite the integer products for which `forms` has an answer; what QLinear operators do behind is elementwise.

        y = MatMulInteger(a, b, za, zb)   ->   y = IntegerMatMul(a', b', start)         b' transposed: (N, K)
        y = QLinearConv(x, sx, zx, w, sw, zw, sy, zy, b)
            ->  t = IntegerConv(Pad(x', zx'), w', start); y = QuantizeLinear(float(t)*(sx*sw/sy), 1, zy)

    Left alone: grouped convolutions that are not depthwise, one column or output channel, vectors, zero points per element.
    Keeps: int32 sums, which wrap; the order of the float operations behind. Needs: explicit pads. What only constants
    decide is left as nodes for fold_constants.
    """
    table = {op: (lambda node, state, rule=rule: rule(node, state, forms),) for op, rule in RULES.items()}
    return rewrite_graph(graph, table)


class _Maker:
    """The nodes in place of one: `add` gives the value a new node makes."""

    def __init__(self, node: Node, state: Rewriting) -> None:
        self.node, self.state = node, state
        self.nodes: list[Node] = []

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        made = Node(op, inputs, (f"{self.node.output}/{op.lower()}",), attrs, self.node.name, self.node.sources)
        (kind, *_) = infer(made, self.state.types, self.state.params)
        return self._append(made, self.state.value(made.output, kind))

    def _append(self, made: Node, out: str) -> str:
        self.nodes.append(Node(made.op, made.inputs, (out,), made.attrs, made.name, made.sources))
        return out

    def finish(self, op: str, *inputs: str, **attrs: Any) -> Sequence[Node]:
        """The last node, which makes the replaced node's output."""
        self.nodes.append(Node(op, inputs, self.node.outputs, attrs, self.node.name, self.node.sources))
        return self.nodes

    def constant(self, value: Any, dtype: str) -> str:
        array = np.asarray(value, dtype)
        return self.state.param(f"{self.node.output}/constant", array, key=(dtype, array.shape, array.tobytes()))

    def shape(self, value: str) -> tuple[int, ...]:
        return self.state.shape(value)

    def narrowed(self, zero: str) -> str:
        """Of a zero point whose elements are all the same, one."""
        known = self.state.uniform(zero) if zero and math.prod(self.shape(zero)) > 1 else None
        return zero if known is None else self.constant(known, self.state.types[zero].dtype)

    def cast(self, value: str, dtype: str) -> str:
        return value if self.state.types[value].dtype == dtype else self.add("Cast", value, to=CODES[dtype])

    def padded(self, value: str, after: Sequence[int], before: Sequence[int] = (), fill: str = "") -> str:
        """With zeros (or `fill`) behind, and before, each dimension."""
        before = before or [0] * len(after)
        if not any((*before, *after)):
            return value
        return self.add("Pad", value, self.state.int64(*before, *after), *((fill,) if fill else ()))

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        return value if self.shape(value) == tuple(shape) else self.add("Reshape", value, self.state.int64(*shape))


CODES = {"float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6}                   # onnx.TensorProto.DataType
EXACT = 1 << 24                                     # integers up to here are float32 numbers
FLIP = 128                                          # between signed and unsigned bytes


def _present(node: Node, n: int) -> str:
    return node.inputs[n] if n < len(node.inputs) else ""


def _bytes_suffice(state: Rewriting, w: str, zero: str, x_zero: str) -> bool:
    """Whether weights have no zero point once they are signed, and activations one for all."""
    unsigned = state.types[w].dtype == "uint8"
    if x_zero and math.prod(state.shape(x_zero)) != 1:
        return False
    if not zero:
        return not unsigned
    return state.uniform(zero) == (FLIP if unsigned else 0)


def pairs_fit(state: Rewriting, w: str, axis: int) -> bool:
    """Whether the sum of any two products of a column fits 16 bits, once weights are signed bytes: 128 * (128 + 127) does,
    so one weight of a column may be -128. axis: that of the columns. Weights that are computed may be anything."""
    turned = state.made_by(w, "Transpose")
    array = state.constant(turned.inputs[0] if turned is not None else w)
    if array is None or array.dtype not in (np.int8, np.uint8):
        return False
    if turned is not None:
        axis = turned.attrs["perm"][axis]
    lowest = array == (np.iinfo(array.dtype).min)
    return bool((lowest.sum(axis=tuple(d for d in range(array.ndim) if d != axis)) <= 1).all())


def _bytes_of(make: _Maker, x: str, dtype: str) -> str:
    """x as unsigned or signed bytes: with the sign bit turned where it is the other."""
    if make.state.types[x].dtype == dtype:
        return x
    return make.cast(make.add("BitwiseXor", make.cast(x, "uint8"), make.constant(FLIP, "uint8")), dtype)


def _turned(state: Rewriting, x: str, dtype: str) -> int:
    """What `_bytes_of` adds."""
    return 0 if state.types[x].dtype == dtype else FLIP if dtype == "uint8" else -FLIP


def _centred(make: _Maker, x: str, zero: str, shape: Sequence[int]) -> str:
    """x - zero as words; `shape`: that of a zero point with several elements, to broadcast."""
    wide = make.cast(x, "int16")
    if not zero or make.state.uniform(zero) == 0:
        return wide
    many = math.prod(make.shape(zero)) > 1
    return make.add("Sub", wide, make.cast(make.reshaped(zero, shape if many else ()), "int16"))


def _start(make: _Maker, form: Form, w: str, axes: Sequence[int], x: str, x_zero: str, bias: str) -> str:
    """bias - zx' * sum of the weights of a column; "" where that is zero."""
    flip = _turned(make.state, x, form.left)
    known = make.state.uniform(x_zero) if x_zero else 0
    if known is not None and known + flip == 0:
        return bias
    zero = make.cast(make.reshaped(x_zero, ()), "int32") if x_zero else make.constant(0, "int32")
    zero = make.add("Add", zero, make.constant(flip, "int32")) if flip else zero
    return _less(make, w, axes, zero, bias)


def _less(make: _Maker, w: str, axes: Sequence[int], zero: str, bias: str) -> str:
    """bias - zero * sum of w over these axes."""
    sums = make.add("ReduceSum", make.cast(w, "int32"), make.state.int64(*axes), keepdims=0)
    start = make.add("Neg", make.add("Mul", sums, zero))
    return make.add("Add", start, bias) if bias else start


# --- matrix products ---


def _product(node: Node, state: Rewriting, forms: Forms, at: Sequence[int]) -> tuple[_Maker, str] | None:
    """The int32 product of two matrices, or of many pairs; `at`: where the node has a, b and their zero points."""
    a, b, a_zero, b_zero = (_present(node, n) for n in at)
    left, right = state.shape(a), state.shape(b)
    batched = len(right) > 2
    if len(left) < 2 or len(right) < 2 or right[-1] < 2 or 0 in (*left, *right) or (batched and left[:-2] != right[:-2]):
        return None
    make, rank = _Maker(node, state), len(right)
    a_zero, b_zero = make.narrowed(a_zero), make.narrowed(b_zero)
    several = [zero and math.prod(state.shape(zero)) > 1 for zero in (a_zero, b_zero)]
    if (several[0] and len(left) > 2) or (several[1] and (batched or len(state.shape(b_zero)) > 1)):
        return None
    rows, columns = left[-2] if batched else math.prod(left[:-1]), right[-1]
    form = forms(Product(1, rows, columns, left[-1], not any(several), pairs_fit(state, b, rank - 1)))
    if form is None:
        return None
    padding = [*(0 for _ in right[:-2]), -columns % form.panel, -left[-1] % form.group]
    if form.in_bytes:
        x, w = _bytes_of(make, a, form.left), _bytes_of(make, b, form.right)
    else:
        x = _centred(make, a, a_zero, (-1, 1))
        w = _centred(make, b, b_zero, (-1,))
    start = _start(make, form, w, [rank - 2], a, a_zero, "") if form.in_bytes else ""       # rows add up faster than columns
    start = start and make.padded(start, padding[:-1])
    w = make.add("Transpose", w, perm=(*range(rank - 2), rank - 1, rank - 2))
    w = make.padded(w, padding)
    x = make.padded(x, [*(0 for _ in left[:-1]), padding[-1]])
    made = make.add("IntegerMatMul", x, w, *((start,) if start else ()), columns=columns, panel=form.panel, **form.attrs)
    if form.in_bytes and not _bytes_suffice(state, b, b_zero, a_zero):
        made = make.add("Sub", made, _of_rows(make, form, x, (a, a_zero), (b, b_zero), left[-1]))
    return make, made


def _of_rows(make: _Maker, form: Form, x: str, left: tuple[str, str], right: tuple[str, str], depth: int) -> str:
    """What a zero point of the weights adds to a row: zw' * (sum x' - K * zx'). `left`, `right`: operand, zero point."""
    x_zero, w_zero = (make.cast(make.reshaped(zero, ()), "int32") if zero else make.constant(0, "int32")
                      for _, zero in (left, right))
    if turned := _turned(make.state, left[0], form.left):
        x_zero = make.add("Add", x_zero, make.constant(turned, "int32"))
    if make.state.types[right[0]].dtype == "uint8":
        w_zero = make.add("Sub", w_zero, make.constant(FLIP, "int32"))
    last = make.state.int64(len(make.shape(x)) - 1)
    sums = make.add("ReduceSum", make.cast(x, "int32"), last, keepdims=1)
    return make.add("Mul", make.add("Sub", sums, make.add("Mul", x_zero, make.constant(depth, "int32"))), w_zero)


def _matmul_integer(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    found = _product(node, state, forms, (0, 1, 2, 3))
    return found and found[0].finish("Identity", found[1])


def _qlinear_matmul(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    if any(math.prod(state.shape(node.inputs[n])) != 1 for n in (1, 6, 7)) or len(state.shape(node.inputs[4])) > 1:
        return None
    found = _product(node, state, forms, (0, 3, 2, 5))
    if found is None:
        return None
    make, total = found
    return _requantized(make, total, node.inputs[1], node.inputs[4], node.inputs[6], node.inputs[7], (-1,))


def _requantized(
    make: _Maker, total: str, x_scale: str, w_scale: str, y_scale: str, y_zero: str, shape: Sequence[int]
) -> Sequence[Node]:
    """round(total * (x_scale * w_scale / y_scale)) + y_zero, saturated; `shape`: that of scales per channel."""
    many = math.prod(make.shape(w_scale)) > 1
    x_scale, w_scale, y_scale = (make.cast(scale, "float32") for scale in (x_scale, w_scale, y_scale))
    scale = make.add("Mul", make.reshaped(x_scale, ()), make.reshaped(w_scale, shape if many else ()))
    factor = make.add("Div", scale, make.reshaped(y_scale, ()))
    exact = make.add("Mul", make.cast(total, "float32"), factor)
    return make.finish("QuantizeLinear", exact, make.constant(1.0, "float32"), make.reshaped(y_zero, ()))


# --- convolutions ---


def _convolution(
    node: Node, state: Rewriting, forms: Forms, at: Sequence[int], bias: str
) -> tuple[_Maker, str] | None:
    """The int32 convolution; `at`: where the node has x, w and their zero points."""
    x, w, x_zero, w_zero = (_present(node, n) for n in at)
    image, kernel, result = state.shape(x), state.shape(w), state.shape(node.output)
    group = node.attrs.get("group", 1)
    if kernel[0] < 2 or (x_zero and math.prod(state.shape(x_zero)) > 1) or len(image) < 3 or 0 in (*image, *kernel, *result):
        return None
    if group == kernel[0] == image[1] and math.prod(kernel[1:]) * 255 * 255 < EXACT:
        return _depthwise(node, state, at, bias)
    if group > 1:
        return None
    narrow, pairs = _bytes_suffice(state, w, w_zero, x_zero), pairs_fit(state, w, 0)
    form = forms(Product(math.prod(result[2:-1]), result[-1], kernel[0], image[1], narrow, pairs))
    if form is None:
        return None
    make, spatial = _Maker(node, state), len(image) - 2
    pads = [int(p) for p in node.attrs.get("pads") or [0] * 2 * spatial]
    channels = -image[1] % form.block(image[1])
    behind, before = [0, channels, *pads[spatial:]], [0, 0, *pads[:spatial]]
    if form.in_bytes:
        left, right = _bytes_of(make, x, form.left), _bytes_of(make, w, form.right)
        nothing = _turned(state, x, form.left)
        fill = _bytes_of(make, make.reshaped(x_zero, ()), form.left) if x_zero else make.constant(nothing, form.left)
    else:
        left = _centred(make, x, x_zero, ())
        right = _centred(make, w, w_zero, (-1, *(1 for _ in kernel[1:])))
        fill = ""
    left = make.padded(left, behind, before, fill)
    spare = -kernel[0] % form.panel
    right = make.padded(right, [spare, channels, *(0 for _ in range(spatial))])
    bias = make.padded(bias, [spare]) if bias else ""
    start = _start(make, form, right, range(1, len(kernel)), x, x_zero, bias) if form.in_bytes else bias
    made = make.add("IntegerConv", left, right, *((start,) if start else ()), columns=kernel[0], panel=form.panel,
                    **form.attrs, strides=tuple(node.attrs.get("strides") or (1,) * spatial),
                    dilations=tuple(node.attrs.get("dilations") or (1,) * spatial))
    return make, made


def _depthwise(node: Node, state: Rewriting, at: Sequence[int], bias: str) -> tuple[_Maker, str]:
    """Of float32 weights without zero point; activations stay as they are."""
    x, w, x_zero, w_zero = (_present(node, n) for n in at)
    make, kernel = _Maker(node, state), state.shape(w)
    spatial = len(kernel) - 2
    pads = [int(p) for p in node.attrs.get("pads") or [0] * 2 * spatial]
    padded = make.padded(x, [0, 0, *pads[spatial:]], [0, 0, *pads[:spatial]], make.reshaped(x_zero, ()) if x_zero else "")
    weights = _centred(make, w, w_zero, (-1, *(1 for _ in kernel[1:])))
    start = bias
    if x_zero and state.uniform(x_zero) != 0:
        start = _less(make, weights, range(1, len(kernel)), make.cast(make.reshaped(x_zero, ()), "int32"), bias)
    made = make.add("IntegerConv", padded, make.cast(weights, "float32"), *((start,) if start else ()), columns=kernel[0],
                    strides=tuple(node.attrs.get("strides") or (1,) * spatial),
                    dilations=tuple(node.attrs.get("dilations") or (1,) * spatial), group=kernel[0])
    return make, made


def _conv_integer(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    found = _convolution(node, state, forms, (0, 1, 2, 3), "")
    return found and found[0].finish("Identity", found[1])


def _qlinear_conv(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    if any(math.prod(state.shape(node.inputs[n])) != 1 for n in (1, 6, 7)):
        return None
    found = _convolution(node, state, forms, (0, 3, 2, 5), _present(node, 8))
    if found is None:
        return None
    make, total = found
    per_channel = (-1, *(1 for _ in state.shape(total)[2:]))
    return _requantized(make, total, node.inputs[1], node.inputs[4], node.inputs[6], node.inputs[7], per_channel)


RULES: dict[str, Callable[[Node, Rewriting, Forms], Sequence[Node] | None]] = {
    "ConvInteger": _conv_integer,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
}


# --- products of dequantized values ---


def dequantized_products(graph: Graph, forms: Forms, in_floats: InFloats = lambda node, graph: False) -> Graph:
    """Products of bytes that a model states in floats: in integers, for which `forms` has an answer, their scales behind.

        y = Conv(DequantizeLinear(x, sx, zx), DequantizeLinear(w, sw, zw), b)
            ->  y = float(IntegerConv(x', w', start)) * (sx*sw) + b

    MatMul and Gemm likewise. Exact but for the rounding of float sums, which are none any more. Scales: one of x, one or one
    per column (output channel) of w. Needs: weights not yet folded to floats; explicit pads. What QuantizeLinear does behind
    is elementwise. in_floats: which convolutions stay as they are.
    """
    def wanted(node: Node, state: Rewriting, rule: DequantizedRule) -> Sequence[Node] | None:
        return None if node.op == "Conv" and in_floats(node, graph) else rule(node, state, forms)
    table = {op: (lambda node, state, rule=rule: wanted(node, state, rule),) for op, rule in DEQUANTIZED_RULES.items()}
    return rewrite_graph(graph, table)


@dataclass(frozen=True, slots=True)
class _Dequantized:
    """Bytes, their scale (one, or one per element of a dimension) and their zero point ("": none)."""

    value: str
    scale: str
    zero: str


def _dequantized(state: Rewriting, value: str, axis: int | None) -> _Dequantized | None:
    """What a value was before DequantizeLinear. axis: the dimension that may have a scale per element."""
    node = state.made_by(value, "DequantizeLinear")
    if node is None or state.types[node.inputs[0]].dtype not in ("int8", "uint8") or state.types[value].dtype != "float32":
        return None
    shape, rank = state.shape(node.inputs[1]), len(state.shape(value))
    if math.prod(shape) != 1:
        stated = int(node.attrs.get("axis", 1)) % max(rank, 1)
        if axis is None or len(shape) != 1 or stated != axis % rank or node.attrs.get("block_size"):
            return None
    return _Dequantized(node.inputs[0], node.inputs[1], _present(node, 2))


def _in_integers(op: str, node: Node, x: _Dequantized, w: _Dequantized) -> Node:
    return Node(op, (x.value, w.value, x.zero, w.zero), node.outputs, node.attrs, node.name, node.sources)


def _rescaled(make: _Maker, total: str, x: _Dequantized, w: _Dequantized, bias: str, shape: Sequence[int]) -> Sequence[Node]:
    """total * (scale of x * scale of w) + bias; `shape`: that of scales per channel, and of the bias."""
    many = math.prod(make.shape(w.scale)) > 1
    scale = make.add("Mul", make.reshaped(x.scale, ()), make.reshaped(w.scale, shape if many else ()))
    if not bias:
        return make.finish("Mul", make.cast(total, "float32"), scale)
    return make.finish("Add", make.add("Mul", make.cast(total, "float32"), scale), make.reshaped(bias, shape))


def _dequantized_conv(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    x, w = _dequantized(state, node.inputs[0], None), _dequantized(state, node.inputs[1], 0)
    if x is None or w is None:
        return None
    found = _convolution(_in_integers("ConvInteger", node, x, w), state, forms, (0, 1, 2, 3), "")
    if found is None:
        return None
    per_channel = (-1, *(1 for _ in state.shape(node.output)[2:]))
    return _rescaled(*found, x, w, _present(node, 2), per_channel)


def _dequantized_matmul(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    right = len(state.shape(node.inputs[1]))
    x, w = _dequantized(state, node.inputs[0], None), _dequantized(state, node.inputs[1], 1 if right == 2 else None)
    if x is None or w is None:
        return None
    found = _product(_in_integers("MatMulInteger", node, x, w), state, forms, (0, 1, 2, 3))
    return found and _rescaled(*found, x, w, "", (-1,))


def _dequantized_gemm(node: Node, state: Rewriting, forms: Forms) -> Sequence[Node] | None:
    """A MatMul of it, for the rule above: the bytes are transposed, not the numbers."""
    attrs, w = node.attrs, state.made_by(node.inputs[1], "DequantizeLinear")
    plain = attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
    axis = 0 if attrs.get("transB", 0) else 1
    if not plain or w is None or any(
            _dequantized(state, node.inputs[n], scaled) is None for n, scaled in ((0, None), (1, axis))):
        return None
    make, right = _Maker(node, state), node.inputs[1]
    if axis == 0:
        turned = make.add("Transpose", w.inputs[0], perm=(1, 0))
        right = make.add("DequantizeLinear", turned, *w.inputs[1:], axis=1)
    bias = _present(node, 2)
    if not bias:
        return make.finish("MatMul", node.inputs[0], right)
    return make.finish("Add", make.add("MatMul", node.inputs[0], right), bias)


DEQUANTIZED_RULES: dict[str, DequantizedRule] = {
    "Conv": _dequantized_conv,
    "Gemm": _dequantized_gemm,
    "MatMul": _dequantized_matmul,
}

__all__ = ["Form", "Forms", "Product", "dequantized_products", "integer_products", "pairs_fit"]
