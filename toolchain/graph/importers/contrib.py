"""Operators of ONNX Runtime's own domain (com.microsoft) as ONNX functions: what its quantizer and its optimizer write.

    QLinearAdd(a, sa, za, b, sb, zb, sc, zc)   ->   QuantizeLinear(Add(DequantizeLinear(a, sa, za), ...), sc, zc)

The importer inlines these as it inlines a model's own functions. Which body a node gets depends on its attributes and on
which inputs it has, so a function is made per node. Source of their meanings: ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from onnx import FunctionProto, NodeProto, TensorProto, helper

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.contrib_attention import ATTENTION
from toolchain.graph.importers.contrib_body import Body, Recipe, UnwrittenError, require
from toolchain.graph.protos import OPSET

DOMAIN = "com.microsoft"
FOUR_BITS_ZERO = 8              # of MatMulNBits without zero points


def contrib_function(proto: NodeProto) -> FunctionProto | None:
    """The node's meaning in ONNX's own operators; None: another domain, or an operator or form that is not written here."""
    domain = DOMAIN if proto.op_type in MISPLACED and proto.domain in ("", "ai.onnx") else proto.domain
    recipe = RECIPES.get(proto.op_type) if domain == DOMAIN else None
    if recipe is None or any(a.ref_attr_name for a in proto.attribute):
        return None
    body = Body(proto)
    try:
        outputs = list(recipe(body))
    except UnwrittenError:
        return None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ImportModelError(f"has an attribute of the wrong kind: {error}"[:300],
                               where=f"node {proto.name!r} ({proto.op_type})") from None
    if any(proto.output[len(outputs):]):
        return None
    formals = [f"x{n}" for n in range(len(proto.input))]        # missing ones have a formal too, which nothing reads
    return helper.make_function(
        DOMAIN, proto.op_type, formals, outputs[:len(proto.output)], body.nodes, [helper.make_opsetid("", OPSET)])


# --- activations and products ----------------------------------------------------------------------------------------------

def _activated(b: Body, value: str) -> str:
    """By the attribute `activation` of the fused operators, with its parameters under either spelling."""
    kind = b.attr("activation", "")
    if not kind:
        return value
    given = b.attr("activation_params", None)
    params = list(given) if given is not None else [
        b.attrs[name] for name in ("activation_alpha", "activation_beta") if name in b.attrs]
    if kind == "Clip":
        require(len(params) == 2)
        return b.op("Clip", value, *(b.number(p, value) for p in params))
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(kind, ())
    require(kind in ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid"))
    return b.op(kind, value, **dict(zip(names, params)))


def _bias_gelu(b: Body) -> list[str]:
    return [b.op("Gelu", b.plus(b.get(0), 1))]


def _fast_gelu(b: Body) -> list[str]:
    return [b.op("Gelu", b.plus(b.get(0), 1), approximate="tanh")]


def _quick_gelu(b: Body) -> list[str]:
    return [b.op("Mul", b.get(0), b.op("Sigmoid", b.scaled(b.get(0), b.attr("alpha", 1.702))))]


def _fused_conv(b: Body) -> list[str]:
    own = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    y = b.op("Conv", *(b.get(n) for n in range(3)), **{k: b.attrs[k] for k in own if k in b.attrs})
    return [_activated(b, b.plus(y, 3))]


def _fused_gemm(b: Body) -> list[str]:
    own = ("alpha", "beta", "transA", "transB")
    return [_activated(b, b.op("Gemm", *(b.get(n) for n in range(3)), **{k: b.attrs[k] for k in own if k in b.attrs}))]


def _fused_matmul(b: Body) -> list[str]:
    require(not b.attr("transBatchA", 0) and not b.attr("transBatchB", 0))
    left, right = "...ji" if b.attr("transA", 0) else "...ij", "...kj" if b.attr("transB", 0) else "...jk"
    if (left, right) == ("...ij", "...jk"):
        y = b.op("MatMul", b.get(0), b.get(1))
    else:
        y = b.op("Einsum", b.get(0), b.get(1), equation=f"{left},{right}->...ik")
    return [b.scaled(y, b.attr("alpha", 1.0))]


def _matmul_n_bits(b: Body) -> list[str]:
    """Weights of 4 or 8 bits in blocks along K, each with a scale and a zero point; constant, so nothing of this stays."""
    bits, size, k, n = b.attr("bits", 4), b.required("block_size"), b.required("K"), b.required("N")
    require(bits in (4, 8) and not b.has(4))
    blocks = -(-k // size)

    def unpacked(name: str) -> str:
        """Of the last dimension: the low four bits first."""
        if bits == 8:
            return name
        last = b.ints(-1)
        low = b.op("BitwiseAnd", name, b.op("CastLike", b.op("Constant", value_int=15), name))
        high = b.op("BitShift", name, b.op("CastLike", b.op("Constant", value_int=4), name), direction="RIGHT")
        pair = b.op("Concat", b.op("Unsqueeze", low, last), b.op("Unsqueeze", high, last), axis=-1)
        return b.op("Reshape", pair, b.ints(n, -1))

    def per_block(name: str) -> str:
        return b.op("Reshape", name, b.ints(n, blocks, 1))
    scale = per_block(b.get(2))
    values = b.op("CastLike", b.op("Reshape", unpacked(b.get(1)), b.ints(n, blocks, size)), b.get(2))
    if b.has(3):                # a row's zero points begin at a byte of their own; float ones are not packed
        packed = b.op("Reshape", b.get(3), b.ints(n, -1))
        whole = b.op("Slice", unpacked(packed), b.ints(0), b.ints(blocks), b.ints(1))
        zero = b.op("CastLike", per_block(whole), b.get(2))
    else:
        zero = b.number(FOUR_BITS_ZERO if bits == 4 else 128, b.get(2))
    weight = b.op("Reshape", b.op("Mul", b.op("Sub", values, zero), scale), b.ints(n, blocks * size))
    weight = b.op("Slice", weight, b.ints(0), b.ints(k), b.ints(1))
    y = b.op("MatMul", b.get(0), b.op("CastLike", b.op("Transpose", weight, perm=[1, 0]), b.get(0)))
    return [b.plus(y, 5)]


# --- normalization and transformers ----------------------------------------------------------------------------------------

def _skip_layer_normalization(b: Body) -> list[str]:
    total = b.plus(b.op("Add", b.get(0), b.get(1)), 4)
    made = b.several("LayerNormalization", 3, total, b.get(2), b.get(3), axis=-1, epsilon=b.attr("epsilon", 1e-12))
    return [*made, total]


def _simplified_layer_normalization(b: Body) -> list[str]:
    return [b.op("RMSNormalization", b.get(0), b.get(1), axis=b.attr("axis", -1), epsilon=b.attr("epsilon", 1e-5))]


def _skip_simplified_layer_normalization(b: Body) -> list[str]:
    total = b.plus(b.op("Add", b.get(0), b.get(1)), 3)
    y = b.op("RMSNormalization", total, b.get(2), axis=-1, epsilon=b.attr("epsilon", 1e-12))
    require(not any(b.proto.output[1:3]))
    return [y, "unused1", "unused2", total]


def _embed_layer_normalization(b: Body) -> list[str]:
    words = b.op("Gather", b.get(2), b.get(0))
    if b.has(8):
        places = b.op("Gather", b.get(3), b.get(8))
    else:
        length = b.op("Shape", b.get(0), start=1, end=2)
        places = b.op("Slice", b.get(3), b.ints(0), length, b.ints(0))
    total = b.op("Add", words, places)
    if b.has(1):
        total = b.op("Add", total, b.op("Gather", b.get(4), b.get(1)))
    y = b.op("LayerNormalization", total, b.get(5), b.get(6), axis=-1, epsilon=b.attr("epsilon", 1e-12))
    if b.has(7):
        count = b.op("Cast", b.op("ReduceSum", b.get(7), b.ints(1), keepdims=0), to=TensorProto.INT32)
    else:
        batch = b.op("Shape", b.get(0), start=0, end=1)
        count = b.op("Cast", b.op("ConstantOfShape", batch), to=TensorProto.INT32)
    return [y, count, total]


# --- quantized -------------------------------------------------------------------------------------------------------------

def _quantized_binary(op: str) -> Recipe:
    return lambda b: [b.quantized(b.op(op, b.dequantized(0), b.dequantized(3)), 6)]


def _quantized_unary(op: str, *attrs: str) -> Recipe:
    """x, its scale and zero point, the result's."""
    return lambda b: [b.quantized(b.op(op, b.dequantized(0), **{a: b.attrs[a] for a in attrs if a in b.attrs}), 3)]


def _quantized_pool(op: str, *attrs: str) -> Recipe:
    def recipe(b: Body) -> list[str]:
        require(not b.attr("channels_last", 0))
        return list(_quantized_unary(op, *attrs)(b))
    return recipe


def _quantized_softmax(b: Body) -> list[str]:
    """Before opset 13 over all dimensions from the axis on."""
    x, axis = b.dequantized(0), b.attr("axis", -1)
    if b.attr("opset", 13) >= 13:
        return [b.quantized(b.op("Softmax", x, axis=axis), 3)]
    flat = b.op("Softmax", b.op("Flatten", x, axis=axis), axis=1)
    return [b.quantized(b.op("Reshape", flat, b.op("Shape", x)), 3)]


def _quantized_concat(b: Body) -> list[str]:
    parts = [b.dequantized(n) for n in range(2, len(b.inputs), 3)]
    return [b.quantized(b.op("Concat", *parts, axis=b.required("axis")), 0)]


def _quantized_where(b: Body) -> list[str]:
    return [b.quantized(b.op("Where", b.get(0), b.dequantized(1), b.dequantized(4)), 7)]


def _quantized_gemm(b: Body) -> list[str]:
    """C is int32, in units of alpha * (scale of A) * (scale of B). Without a scale of its own the result stays float."""
    alpha, transposed = b.attr("alpha", 1.0), b.attr("transB", 0)
    given = [b.dequantized(0), b.dequantized(3, axis=0 if transposed else 1)]
    y = b.op("Gemm", *given, alpha=alpha, transA=b.attr("transA", 0), transB=transposed)
    if b.has(6):
        unit = b.scaled(b.op("Mul", b.get(1), b.get(4)), alpha)
        y = b.op("Add", y, b.op("Mul", b.op("CastLike", b.get(6), unit), unit))
    return [b.quantized(y, 7) if b.has(7) else y]


def _integer_product(b: Body, a: str, weight: str, scale: str, a_zero: str, weight_zero: str, bias: int) -> list[str]:
    product = b.op("CastLike", b.op("MatMulInteger", a, weight, a_zero, weight_zero), scale)
    return [b.plus(b.op("Mul", product, scale), bias)]


def _dynamic_quantize_matmul(b: Body) -> list[str]:
    a, scale, zero = b.several("DynamicQuantizeLinear", 3, b.get(0))
    return _integer_product(b, a, b.get(1), b.op("Mul", scale, b.get(2)), zero, b.get(3), 4)


def _matmul_integer_to_float(b: Body) -> list[str]:
    return _integer_product(b, b.get(0), b.get(1), b.op("Mul", b.get(2), b.get(3)), b.get(4), b.get(5), 6)


def _dynamic_quantize_lstm(b: Body) -> list[str]:
    """With its weights as numbers again: ONNX Runtime also rounds the input and each step's state to 8 bits, which is faster
    there and less exact. W and R are transposed, their scales and zero points of a direction or of each of its columns."""
    def weight(n: int, scale: int) -> str:
        shape = b.ints(0, 1, -1)
        values = b.op("Cast", b.get(n), to=TensorProto.FLOAT)
        if b.has(scale + 1):
            values = b.op("Sub", values, b.op("Cast", b.op("Reshape", b.get(scale + 1), shape), to=TensorProto.FLOAT))
        return b.op("Transpose", b.op("Mul", values, b.op("Reshape", b.get(scale), shape)), perm=[0, 2, 1])
    own = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
    return b.several("LSTM", 3, b.get(0), weight(1, 8), weight(2, 10), *(b.get(n) for n in range(3, 8)),
                     **{k: b.attrs[k] for k in own if k in b.attrs})


def _same(op: str, *attrs: str) -> Recipe:
    """An operator that ONNX has since taken over."""
    return lambda b: [b.op(op, *b.inputs, **{a: b.attrs[a] for a in attrs if a in b.attrs})]


RECIPES: dict[str, Recipe] = {
    **ATTENTION,
    "BiasGelu": _bias_gelu,
    "DequantizeLinear": _same("DequantizeLinear", "axis"),
    "DynamicQuantizeLSTM": _dynamic_quantize_lstm,
    "DynamicQuantizeMatMul": _dynamic_quantize_matmul,
    "EmbedLayerNormalization": _embed_layer_normalization,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _same("Gelu"),
    "MatMulIntegerToFloat": _matmul_integer_to_float,
    "MatMulNBits": _matmul_n_bits,
    "QGemm": _quantized_gemm,
    "QLinearAdd": _quantized_binary("Add"),
    "QLinearAveragePool": _quantized_pool(
        "AveragePool", "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized_pool("GlobalAveragePool"),
    "QLinearLeakyRelu": _quantized_unary("LeakyRelu", "alpha"),
    "QLinearMul": _quantized_binary("Mul"),
    "QLinearSigmoid": _quantized_unary("Sigmoid"),
    "QLinearSoftmax": _quantized_softmax,
    "QLinearWhere": _quantized_where,
    "QuantizeLinear": _same("QuantizeLinear", "axis"),
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _simplified_layer_normalization,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified_layer_normalization,
}
MISPLACED = frozenset(("SimplifiedLayerNormalization",))        # written without a domain, though ONNX has no such operator

__all__ = ["DOMAIN", "RECIPES", "contrib_function"]
