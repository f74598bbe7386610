"""A small decoder with key/value cache in three spellings, as ONNX files with seeded weights.

Each public function writes one model to the path it is given. All are LLaMA's structure (Touvron et al. 2023): RMS norm,
rotary positions, grouped-query attention, SwiGLU; 6 layers, 384 wide, 6 query heads on 2 key/value heads, 4,096 words.

    decoder             as PyTorch's exporter writes Hugging Face's modules (opset 17): RMS norm, rotation, repeated heads
                        and causal mask spelled out, shapes computed in the graph, the cache concatenated
    decoder_opset23     the same network with RMSNormalization, RotaryEmbedding and Attention as operators
    decoder_static      opset 24: a cache of fixed size that TensorScatter writes into, so that one shape serves every step

The first two take `past_key_values.N.key` (batch, key/value heads, past, depth) and give `present.N.key` with the new tokens
behind: a prefill (past 0) and a step (sequence 1) are the same file with other dimensions. Equal weights in all three.
Weights are uniform and He-scaled, made from the raw PCG64 stream (whose values NumPy guarantees), so equal versions of this
file write equal bytes on every machine. The keyword arguments make smaller networks of the same structure, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = {17: 8, 23: 11, 24: 12}
EPSILON = 1e-6
THETA = 10_000.0


@dataclass(frozen=True)
class Sizes:
    layers: int = 6
    width: int = 384
    heads: int = 6
    groups: int = 2                 # key/value heads
    hidden: int = 1024
    words: int = 4096
    context: int = 512              # positions

    @property
    def depth(self) -> int:
        return self.width // self.heads


class Uniform:
    """A reproducible stream of uniform numbers: the top 24 bits of each PCG64 word, which are exact in float32."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        words = self._bits.random_raw(math.prod(shape)) >> np.uint64(40)
        unit = words.astype(np.float32) * np.float32(2.0**-24)
        return (np.float32(low) + unit * np.float32(high - low)).reshape(shape)

    def he(self, fan_in: int, *shape: int, gain: float = 1.0) -> np.ndarray:
        bound = gain * math.sqrt(6 / fan_in)
        return self.between(-bound, bound, *shape)


class Network:
    """A half-built ONNX graph: each method adds nodes and returns the name of the value they make."""

    def __init__(self, name: str, opset: int) -> None:
        self.name, self.opset = name, opset
        self.random = Uniform(2023)
        self.nodes: list[onnx.NodeProto] = []
        self.params: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> None:
        self.op("Identity", name, value)
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, name: str, *inputs: str, outputs: Sequence[str] = (), **attrs: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name, *outputs], name=f"/{name}", **attrs))
        return name

    def param(self, name: str, array: np.ndarray) -> str:
        self.params[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.param("ints." + "_".join(map(str, values)), np.array(values, np.int64))

    def index(self, value: int) -> str:
        return self.param(f"int.{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        return self.param(f"number.{value:.9g}", np.array(value, np.float32))

    def cut(self, x: str, name: str, start: int, stop: int, axis: int) -> str:
        return self.op("Slice", name, x, self.ints(start), self.ints(stop), self.ints(axis), self.ints(1))

    def size(self, x: str, name: str, axis: int) -> str:
        return self.op("Gather", f"{name}.size{axis}", self.op("Shape", f"{name}.shape{axis}", x), self.index(axis), axis=0)

    def dims(self, name: str, *sizes: str | int) -> str:
        parts = [self.ints(s) if isinstance(s, int) else self.op("Unsqueeze", f"{name}.dim{i}", s, self.ints(0))
                 for i, s in enumerate(sizes)]
        return self.op("Concat", name, *parts, axis=0)

    def project(self, x: str, name: str, cin: int, cout: int, gain: float) -> str:
        return self.op("MatMul", name, x, self.param(f"{name}.weight", self.random.he(cin, cin, cout, gain=gain)))

    def write(self, out: Path) -> None:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.params.values()))
        model = helper.make_model(graph, producer_name="recipes/language", ir_version=IR_VERSION[self.opset],
                                  opset_imports=[helper.make_opsetid("", self.opset)])
        out.write_bytes(model.SerializeToString(deterministic=True))


def decoder(out: Path, **sizes: int) -> None:
    """Hugging Face's LlamaForCausalLM traced by torch.onnx with past keys and values, eager attention."""
    z, net = Sizes(**sizes), Network("decoder", 17)
    x, past = _inputs(net, z)
    mask = _causal_mask(net, x, past[0][0])
    cos, sin = _rotation(net, z)
    for i in range(z.layers):
        name = f"model/layers.{i}"
        y = _rms_norm(net, x, f"{name}/input_layernorm", z.width)
        q, k, v = _query_key_value(net, y, name, z)
        q, k = _rotate(net, q, f"{name}/q", cos, sin, z), _rotate(net, k, f"{name}/k", cos, sin, z)
        k = net.op("Concat", f"{name}/present_key", past[i][0], k, axis=-2)
        v = net.op("Concat", f"{name}/present_value", past[i][1], v, axis=-2)
        _present(net, i, k, v, z, "total")
        keys = net.op("Transpose", f"{name}/keys", _repeat_heads(net, k, f"{name}/repeat_k", z), perm=[0, 1, 3, 2])
        scores = net.op("Mul", f"{name}/scaled", net.op("MatMul", f"{name}/scores", q, keys), net.number(z.depth**-0.5))
        total = net.op("Unsqueeze", f"{name}/total", net.size(k, f"{name}/k.present", 2), net.ints(0))
        seen = net.op("Slice", f"{name}/mask", mask, net.ints(0), total, net.ints(3), net.ints(1))
        weights = net.op("Softmax", f"{name}/softmax", net.op("Add", f"{name}/masked", scores, seen), axis=-1)
        y = net.op("MatMul", f"{name}/context", weights, _repeat_heads(net, v, f"{name}/repeat_v", z))
        y = net.op("Transpose", f"{name}/context.transposed", y, perm=[0, 2, 1, 3])
        batch, sequence = net.size(x, f"{name}/x", 0), net.size(x, f"{name}/x", 1)
        y = net.op("Reshape", f"{name}/merged", y, net.dims(f"{name}/merged.shape", batch, sequence, -1))
        x = net.op("Add", f"{name}/attention.add", x, net.project(y, f"{name}/o_proj", z.width, z.width, gain=0.5))
        x = _feed_forward(net, x, _rms_norm(net, x, f"{name}/post_attention_layernorm", z.width), name, z)
    _logits(net, _rms_norm(net, x, "model/norm", z.width), z)
    net.write(out)


def decoder_opset23(out: Path, **sizes: int) -> None:
    """The same network where each of its parts is one operator; heads stay side by side in the last dimension."""
    z, net = Sizes(**sizes), Network("decoder_opset23", 23)
    x, past = _inputs(net, z)
    mask = _boolean_mask(net)
    for i in range(z.layers):
        name = f"model/layers.{i}"
        q, k, v = _rotated(net, x, name, z)
        present = f"{name}/present_key", f"{name}/present_value"
        y = net.op("Attention", f"{name}/attention", q, k, v, mask, *past[i], outputs=present, q_num_heads=z.heads,
                   kv_num_heads=z.groups)
        _present(net, i, *present, z, "total")
        x = net.op("Add", f"{name}/attention.add", x, net.project(y, f"{name}/o_proj", z.width, z.width, gain=0.5))
        x = _feed_forward(net, x, _rms_operator(net, x, f"{name}/post_attention_layernorm", z.width), name, z)
    _logits(net, _rms_operator(net, x, "model/norm", z.width), z)
    net.write(out)


def decoder_static(out: Path, **sizes: int) -> None:
    """The same network on caches of `context` positions that each step gives back with its tokens written in: inputs and
    outputs of one shape, which a program binds to one buffer. `position_ids` says where in the cache the tokens go."""
    z, net = Sizes(**sizes), Network("decoder_static", 24)
    x = _embedding(net, z)
    net.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
    shape = ["batch", z.groups, z.context, z.depth]
    first = net.op("Gather", "cache/start", "position_ids", net.index(0), axis=1)
    places = net.param("cache/places", np.arange(z.context, dtype=np.int64))
    rows = net.op("Unsqueeze", "cache/rows", net.op("Unsqueeze", "cache/row", "position_ids", net.ints(2)), net.ints(1))
    mask = net.op("LessOrEqual", "cache/seen", places, rows)
    for i in range(z.layers):
        name = f"model/layers.{i}"
        q, *new = _rotated(net, x, name, z)
        caches = []
        for part, made in zip(("key", "value"), new, strict=True):
            heads = net.op("Reshape", f"{name}/{part}.heads", made, net.ints(0, 0, z.groups, z.depth))
            heads = net.op("Transpose", f"{name}/{part}.transposed", heads, perm=[0, 2, 1, 3])
            cache = net.input(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape)
            caches.append(net.op("TensorScatter", f"{name}/{part}.cache", cache, heads, first, axis=2, mode="linear"))
        _present(net, i, *caches, z, z.context)
        q = net.op("Reshape", f"{name}/q.heads", q, net.ints(0, 0, z.heads, z.depth))
        q = net.op("Transpose", f"{name}/q.transposed", q, perm=[0, 2, 1, 3])
        y = net.op("Attention", f"{name}/attention", q, *caches, mask)
        y = net.op("Reshape", f"{name}/merged", net.op("Transpose", f"{name}/context", y, perm=[0, 2, 1, 3]),
                   net.ints(0, 0, z.width))
        x = net.op("Add", f"{name}/attention.add", x, net.project(y, f"{name}/o_proj", z.width, z.width, gain=0.5))
        x = _feed_forward(net, x, _rms_operator(net, x, f"{name}/post_attention_layernorm", z.width), name, z)
    _logits(net, _rms_operator(net, x, "model/norm", z.width), z)
    net.write(out)


def _embedding(net: Network, z: Sizes) -> str:
    table = net.param("model/embed_tokens.weight", net.random.between(-1.0, 1.0, z.words, z.width))
    return net.op("Gather", "model/embed_tokens", table, net.input("input_ids", TensorProto.INT64, ["batch", "sequence"]))


def _inputs(net: Network, z: Sizes) -> tuple[str, list[tuple[str, str]]]:
    """The embedded tokens, and the past of each layer."""
    x = _embedding(net, z)
    net.input("attention_mask", TensorProto.INT64, ["batch", "total"])
    net.input("position_ids", TensorProto.INT64, ["batch", "sequence"])
    shape = ["batch", z.groups, "past", z.depth]
    past = [tuple(net.input(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape) for part in ("key", "value"))
            for i in range(z.layers)]
    return x, [(key, value) for key, value in past]


def _present(net: Network, i: int, key: str, value: str, z: Sizes, extent: str | int) -> None:
    for part, made in (("key", key), ("value", value)):
        net.output(made, f"present.{i}.{part}", ["batch", z.groups, extent, z.depth])


def _logits(net: Network, x: str, z: Sizes) -> None:
    net.output(net.project(x, "lm_head", z.width, z.words, gain=0.5), "logits", ["batch", "sequence", z.words])


def _norm_weight(net: Network, name: str, width: int) -> str:
    return net.param(f"{name}.weight", net.random.between(0.8, 1.2, width))


def _rms_norm(net: Network, x: str, name: str, width: int) -> str:
    """weight * (x * rsqrt(mean(x ** 2) + epsilon)); rsqrt becomes Sqrt and Div."""
    square = net.op("Pow", f"{name}/pow", x, net.number(2.0))
    mean = net.op("ReduceMean", f"{name}/mean", square, axes=[-1], keepdims=1)
    root = net.op("Sqrt", f"{name}/sqrt", net.op("Add", f"{name}/add", mean, net.number(EPSILON)))
    y = net.op("Mul", f"{name}/mul", x, net.op("Div", f"{name}/rsqrt", net.number(1.0), root))
    return net.op("Mul", name, _norm_weight(net, name, width), y)


def _rms_operator(net: Network, x: str, name: str, width: int) -> str:
    return net.op("RMSNormalization", name, x, _norm_weight(net, name, width), axis=-1, epsilon=EPSILON)


def _query_key_value(net: Network, x: str, name: str, z: Sizes) -> tuple[str, str, str]:
    """view(batch, sequence, heads, depth).transpose(1, 2) of the three projections."""
    batch, sequence = net.size(x, f"{name}/heads", 0), net.size(x, f"{name}/heads", 1)
    made = []
    for part, heads in (("q", z.heads), ("k", z.groups), ("v", z.groups)):
        y = net.project(x, f"{name}/{part}_proj", z.width, heads * z.depth, gain=0.7)
        y = net.op("Reshape", f"{name}/{part}.heads", y, net.dims(f"{name}/{part}.shape", batch, sequence, -1, z.depth))
        made.append(net.op("Transpose", f"{name}/{part}.transposed", y, perm=[0, 2, 1, 3]))
    return made[0], made[1], made[2]


def _frequencies(z: Sizes) -> np.ndarray:
    return THETA ** (-np.arange(0, z.depth, 2, dtype=np.float64) / z.depth)


def _rotation(net: Network, z: Sizes) -> tuple[str, str]:
    """cos and sin of (inv_freq.expand(batch, -1, 1) @ position_ids[:, None, :]).transpose(1, 2), twice side by side."""
    name = "model/rotary_emb"
    inverse = net.param(f"{name}/inv_freq", _frequencies(z).astype(np.float32).reshape(1, -1, 1))
    wanted = net.dims(f"{name}/wanted", net.size("position_ids", name, 0), -1, 1)
    expanded = net.op("Expand", f"{name}/expand", inverse, _kept_where_minus_one(net, wanted, name, 3))
    places = net.op("Cast", f"{name}/places", net.op("Unsqueeze", f"{name}/row", "position_ids", net.ints(1)),
                    to=TensorProto.FLOAT)
    angles = net.op("Transpose", f"{name}/angles", net.op("MatMul", f"{name}/matmul", expanded, places), perm=[0, 2, 1])
    both = net.op("Concat", f"{name}/both", angles, angles, axis=-1)
    made = [net.op("Unsqueeze", f"{name}/{kind}.heads", net.op(kind, f"{name}/{kind}", both), net.ints(1))
            for kind in ("Cos", "Sin")]
    return made[0], made[1]


def _rotate(net: Network, x: str, name: str, cos: str, sin: str, z: Sizes) -> str:
    """x * cos + cat(-x[half:], x[:half]) * sin"""
    first = net.cut(x, f"{name}/first", 0, z.depth // 2, 3)
    second = net.op("Neg", f"{name}/neg", net.cut(x, f"{name}/second", z.depth // 2, 2**63 - 1, 3))
    turned = net.op("Mul", f"{name}/sin", net.op("Concat", f"{name}/turned", second, first, axis=-1), sin)
    return net.op("Add", f"{name}/rotated", net.op("Mul", f"{name}/cos", x, cos), turned)


def _rotated(net: Network, x: str, name: str, z: Sizes) -> tuple[str, str, str]:
    """Query, key and value of a layer by operators: normalised, projected, the first two rotated."""
    y = _rms_operator(net, x, f"{name}/input_layernorm", z.width)
    q, k, v = (net.project(y, f"{name}/{part}_proj", z.width, heads * z.depth, gain=0.7)
               for part, heads in (("q", z.heads), ("k", z.groups), ("v", z.groups)))
    angles = np.outer(np.arange(z.context), _frequencies(z))
    cos = net.param("model/rotary_emb/cos", np.cos(angles).astype(np.float32))
    sin = net.param("model/rotary_emb/sin", np.sin(angles).astype(np.float32))
    q, k = (net.op("RotaryEmbedding", f"{name}/{part}.rotated", made, cos, sin, "position_ids", num_heads=heads)
            for part, made, heads in (("q", q, z.heads), ("k", k, z.groups)))
    return q, k, v


def _repeat_heads(net: Network, x: str, name: str, z: Sizes) -> str:
    """x[:, :, None].expand(batch, groups, repeats, total, depth).reshape(batch, heads, total, depth)"""
    if z.heads == z.groups:
        return x
    batch, groups, total, depth = (net.size(x, name, axis) for axis in range(4))
    wanted = net.dims(f"{name}/wanted", batch, groups, z.heads // z.groups, total, depth)
    y = net.op("Expand", f"{name}/expand", net.op("Unsqueeze", f"{name}/unsqueeze", x, net.ints(2)),
               _kept_where_minus_one(net, wanted, name, 5))
    heads = net.op("Mul", f"{name}/heads", groups, net.index(z.heads // z.groups))
    return net.op("Reshape", name, y, net.dims(f"{name}/shape", batch, heads, total, depth))


def _kept_where_minus_one(net: Network, wanted: str, name: str, rank: int) -> str:
    """The shape of an expand as the exporter computes it: 1 where -1 is asked for, which Expand leaves as it is."""
    ones = net.op("ConstantOfShape", f"{name}/ones", net.ints(rank), value=numpy_helper.from_array(np.array([1], np.int64)))
    minus = net.op("Mul", f"{name}/minus", ones, net.index(-1))
    return net.op("Where", f"{name}/where", net.op("Equal", f"{name}/equal", wanted, minus), ones, wanted)


def _causal_mask(net: Network, x: str, past_key: str) -> str:
    """Transformers' _prepare_4d_causal_attention_mask_with_cache_position: the smallest float above the diagonal and where
    attention_mask is 0, written back into a slice of the mask."""
    name, lowest = "model/mask", net.number(float(np.finfo(np.float32).min))
    past, sequence = net.size(past_key, f"{name}/past", 2), net.size(x, f"{name}/x", 1)
    target, batch = net.size("attention_mask", f"{name}/target", 1), net.size(x, f"{name}/x", 0)
    position = net.op("Range", f"{name}/cache_position", past, net.op("Add", f"{name}/end", past, sequence), net.index(1))
    full = net.op("Expand", f"{name}/full", lowest, net.dims(f"{name}/full.shape", sequence, target))
    upper = net.op("Trilu", f"{name}/triu", full, net.index(1), upper=1)
    columns = net.op("Range", f"{name}/columns", net.index(0), target, net.index(1))
    later = net.op("Greater", f"{name}/later", columns, net.op("Reshape", f"{name}/rows", position, net.ints(-1, 1)))
    mask = net.op("Mul", f"{name}/causal", upper, net.op("Cast", f"{name}/later.float", later, to=TensorProto.FLOAT))
    mask = net.op("Unsqueeze", f"{name}/heads", net.op("Unsqueeze", f"{name}/batch", mask, net.ints(0)), net.ints(1))
    wanted = net.dims(f"{name}/wanted", batch, 1, -1, -1)
    mask = net.op("Expand", f"{name}/expand", mask, _kept_where_minus_one(net, wanted, name, 4))
    given = net.op("Unsqueeze", f"{name}/given", net.op("Unsqueeze", f"{name}/given.batch", "attention_mask", net.ints(1)),
                   net.ints(2))
    padding = net.op("Add", f"{name}/padding", mask, net.op("Cast", f"{name}/given.float", given, to=TensorProto.FLOAT))
    empty = net.op("Equal", f"{name}/empty", padding, net.number(0.0))
    filled = net.op("Where", f"{name}/filled", empty, lowest, mask)
    return _written_back(net, mask, filled, name)


def _written_back(net: Network, mask: str, values: str, name: str) -> str:
    """mask[:, :, :, :] = values, as the exporter spells it: one index per element, a Range along each axis spread over the
    others, then ScatterND."""
    shape = net.op("Shape", f"{name}/scatter.shape", values)
    indices = []
    for axis in range(4):
        at = f"{name}/scatter.{axis}"
        line = net.op("Range", f"{at}.range", net.index(0), net.size(mask, at, axis), net.index(1))
        spread = net.op("Reshape", f"{at}.reshape", line, net.ints(*(-1 if k == axis else 1 for k in range(4))))
        indices.append(net.op("Unsqueeze", f"{at}.index", net.op("Expand", f"{at}.expand", spread, shape), net.ints(-1)))
    at = net.op("Concat", f"{name}/scatter.indices", *indices, axis=-1)
    return net.op("ScatterND", f"{name}/scatter", mask, at, values)


def _boolean_mask(net: Network) -> str:
    """Which positions each token may see: those up to its own that are not padding. (batch, 1, sequence, total)"""
    name = "model/mask"
    columns = net.op("Range", f"{name}/columns", net.index(0), net.size("attention_mask", name, 1), net.index(1))
    rows = net.op("Unsqueeze", f"{name}/rows", "position_ids", net.ints(2))
    causal = net.op("LessOrEqual", f"{name}/causal", columns, rows)
    given = net.op("Unsqueeze", f"{name}/given", net.op("Cast", f"{name}/kept", "attention_mask", to=TensorProto.BOOL),
                   net.ints(1))
    return net.op("Unsqueeze", f"{name}/heads", net.op("And", f"{name}/both", causal, given), net.ints(1))


def _feed_forward(net: Network, x: str, y: str, name: str, z: Sizes) -> str:
    """x + down(silu(gate(y)) * up(y))"""
    gate = net.project(y, f"{name}/gate_proj", z.width, z.hidden, gain=0.7)
    gate = net.op("Mul", f"{name}/silu", gate, net.op("Sigmoid", f"{name}/sigmoid", gate))
    y = net.op("Mul", f"{name}/gated", gate, net.project(y, f"{name}/up_proj", z.width, z.hidden, gain=0.7))
    return net.op("Add", f"{name}/mlp.add", x, net.project(y, f"{name}/down_proj", z.hidden, z.width, gain=0.5))
