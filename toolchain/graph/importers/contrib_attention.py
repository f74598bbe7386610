"""Attention as ONNX Runtime's transformer optimizer and its model builder write it, by ONNX's own Attention (contrib.py).

    GroupQueryAttention(q, k, v, past_k, past_v, seqlens_k, total)
        ->   K, V = past with the new keys and values at each batch's place;   Attention(RotaryEmbedding(q), K, V, seen)

Dimensions are written as Shape operators, which are constants once types are known.
"""

from __future__ import annotations

from onnx import TensorProto

from toolchain.graph.importers.contrib_body import Body, Recipe, require

MASKED = -10000.0                       # what a place that is not seen gets added: the default of mask_filter_value


# --- which places are seen

def _key_mask(b: Body, mask: str, keys: str) -> str:
    """What a mask of keys, 1 where they are seen, adds to the scores: [batch, 1, 1 or queries, keys].

    One dimension: the number of keys of each batch; two: per key; three: per query and key.
    """
    def lengths() -> str:
        seen = b.op("Less", b.places(keys), b.op("Unsqueeze", b.op("Cast", mask, to=TensorProto.INT64), b.ints(1)))
        return b.op("Unsqueeze", seen, b.ints(1, 2))

    def flags(*axes: int) -> str:
        return b.op("Unsqueeze", b.op("Cast", mask, to=TensorProto.BOOL), b.ints(*axes))
    seen = b.by_rank(mask, {1: lengths, 2: lambda: flags(1, 2), 3: lambda: flags(1)})
    kept, lost = b.op("CastLike", b.op("Constant", value_float=0.0), b.get(0)), b.number(
        b.attr("mask_filter_value", MASKED), b.get(0))
    return b.op("Where", seen, kept, lost)


def _added(b: Body, *parts: str) -> str:
    given = [p for p in parts if p]
    total = given[0] if given else ""
    for part in given[1:]:
        total = b.op("Add", total, part)
    return total


def _causal(b: Body, queries: str, keys: str) -> str:
    """Where a query of the last ones sees a key: bool [queries, keys]. ONNX's own attribute counts from the first key."""
    last = b.op("Add", b.places(queries), b.op("Sub", keys, queries))
    return b.op("LessOrEqual", b.places(keys), b.op("Unsqueeze", last, b.ints(1)))


def _seen_only(b: Body, added: str, seen: str) -> str:
    """The same scores, and the lowest where a key is not seen."""
    lost = b.op("CastLike", b.op("Constant", value_float=float("-inf")), b.get(0))
    kept = added or b.op("CastLike", b.op("Constant", value_float=0.0), b.get(0))
    return b.op("Where", seen, kept, lost)


def _scaled(b: Body) -> dict[str, float]:
    return {"scale": b.attrs["scale"]} if b.attr("scale", 0.0) else {}


# --- the operators

def _multi_head_attention(b: Body) -> list[str]:
    """Queries, keys and values apart, three-dimensional; keys and values of earlier steps before theirs."""
    require(b.has(1) and b.has(2) and len(b.inputs) <= 8 and b.has(6) == b.has(7))
    heads, given = b.required("num_heads"), [b.get(n) for n in range(3)]
    if b.has(3):                            # of all three, one behind the other
        parts = b.several("Split", 3, b.get(3), b.dims(*(b.size(v, -1) for v in given)), axis=0)
        given = [b.op("Add", v, part) for v, part in zip(given, parts)]
    keys = b.size(given[1], 1)
    if b.has(6):
        keys = b.op("Add", keys, b.size(b.get(6), 2))
    added = _added(b, _key_mask(b, b.get(4), keys) if b.has(4) else "", b.get(5))
    if b.attr("unidirectional", 0):
        added = _seen_only(b, added, _causal(b, b.size(given[0], 1), keys))
    return b.several("Attention", 3 if len(b.proto.output) > 1 else 1, *given, added, b.get(6), b.get(7),
                     q_num_heads=heads, kv_num_heads=heads, **_scaled(b))


def _attention(b: Body) -> list[str]:
    """The products to queries, keys and values as well; keys and values of earlier steps in one tensor, [2, ...]."""
    require(not b.has(6) and not b.attr("do_rotary", 0) and not b.attr("past_present_share_buffer", 0))
    heads, sizes = b.required("num_heads"), b.attr("qkv_hidden_sizes", None)
    product = b.plus(b.op("MatMul", b.get(0), b.get(1)), 2)
    parts = (b.several("Split", 3, product, b.ints(*sizes), axis=-1) if sizes
             else b.several("Split", 3, product, axis=-1, num_outputs=3))
    keys, past = b.size(b.get(0), 1), ["", ""]
    if b.has(4):
        keys = b.op("Add", keys, b.size(b.get(4), 3))
        past = [b.op("Squeeze", v, b.ints(0)) for v in b.several("Split", 2, b.get(4), axis=0, num_outputs=2)]
    added = _added(b, _key_mask(b, b.get(3), keys) if b.has(3) else "", b.get(5))
    if b.attr("unidirectional", 0):
        added = _seen_only(b, added, _causal(b, b.size(b.get(0), 1), keys))
    if len(b.proto.output) < 2:
        return b.several("Attention", 1, *parts, added, *past, q_num_heads=heads, kv_num_heads=heads, **_scaled(b))
    y, key, value = b.several("Attention", 3, *parts, added, *past, q_num_heads=heads, kv_num_heads=heads, **_scaled(b))
    if not b.has(4):                        # then the heads of this step are what later ones are given
        key, value = (_heads(b, p, heads) for p in parts[1:])
    return [y, b.op("Concat", b.op("Unsqueeze", key, b.ints(0)), b.op("Unsqueeze", value, b.ints(0)), axis=0)]


def _heads(b: Body, x: str, count: int) -> str:
    """[batch, length, count * size] as [batch, count, length, size]."""
    return b.op("Transpose", b.op("Reshape", x, b.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])


def _rotary_embedding(b: Body) -> list[str]:
    require(b.attr("scale", 1.0) == 1 and not b.attr("is_packed_batching", 0))
    heads, turned = b.attr("num_heads", 0), b.attr("rotary_embedding_dim", 0)
    attrs = {"interleaved": b.attr("interleaved", 0), "rotary_embedding_dim": turned}
    batch, length = b.size(b.get(0), 0), b.size(b.get(0), -2)
    first = b.op("Equal", b.op("Size", b.get(1)), b.op("Constant", value_int=1))        # one place: that of the first token
    places = b.op("Where", first, b.places(length), b.op("Constant", value_ints=[0]))
    places = b.op("Expand", b.op("Add", b.get(1), places), b.dims(batch, length))

    def in_heads(x: str) -> str:
        return b.op("RotaryEmbedding", x, b.get(2), b.get(3), places, **attrs)

    def flat() -> str:
        if heads:
            return b.op("RotaryEmbedding", b.get(0), b.get(2), b.get(3), places, num_heads=heads, **attrs)
        size = b.op("Mul", b.size(b.get(2), 1), b.ints(2))
        apart = b.op("Reshape", b.get(0), b.dims(0, 0, -1, size))
        made = b.op("Transpose", in_heads(b.op("Transpose", apart, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
        return b.op("Reshape", made, b.op("Shape", b.get(0)))
    return [b.by_rank(b.get(0), {3: flat, 4: lambda: in_heads(b.get(0))})]


def _group_query_attention(b: Body) -> list[str]:
    """Of generating models: fewer heads of keys and values than of queries, which earlier steps left in a buffer.

    Batch b has seqlens_k[b] + 1 keys, those of this step last: they are written behind seqlens_k[b] + 1 - length others. All
    of it is [batch, heads, length, size] here. Where nobody asks for the longer buffers, ONNX Runtime leaves out the earlier
    keys; that is not written.
    """
    require(b.has(3) and b.has(4) and len(b.proto.output) > 2 and all(b.proto.output[1:3]) and not b.has(11))
    require(not any(b.attr(name, 0) for name in ("k_quant_type", "qk_output", "smooth_softmax")))
    heads, groups = b.required("num_heads"), b.required("kv_num_heads")
    size = b.size(b.get(3), 3)
    if b.has(1):
        given = [b.get(n) for n in range(3)]
    else:
        widths = b.op("Concat", *(b.op("Mul", size, b.ints(n)) for n in (heads, groups, groups)), axis=0)
        given = b.several("Split", 3, b.get(0), widths, axis=-1)
    q, k, v = (_heads(b, x, n) for x, n in zip(given, (heads, groups, groups)))
    length, batch = b.size(given[0], 1), b.size(given[0], 0)
    last = b.op("Cast", b.op("Reshape", b.get(5), b.ints(-1)), to=TensorProto.INT64)
    have = b.op("Max", b.op("Sub", last, b.op("Sub", length, b.ints(1))), b.ints(0))    # per batch: the earlier keys
    places = b.op("Add", b.op("Unsqueeze", have, b.ints(1)), b.places(length))          # [batch, length]
    if b.attr("do_rotary", 0):
        attrs = {"interleaved": b.attr("rotary_interleaved", 0)}
        at = b.op("Expand", b.get(9) if b.has(9) else places, b.dims(batch, length))
        at = b.op("Cast", at, to=TensorProto.INT64)
        turned = b.op("Mul", b.size(b.get(7), 1), b.ints(2))
        q, k = (_turned(b, x, at, turned, size, attrs) for x in (q, k))
    total = b.op("Cast", b.op("Reshape", b.get(6), b.ints(1)), to=TensorProto.INT64)
    past = b.size(b.get(3), 2)
    keys = b.op("Max", past, total)
    missing = b.op("Sub", keys, past)
    key, value = (_written(b, old, new, have, missing) for old, new in ((b.get(3), k), (b.get(4), v)))
    seen = b.op("LessOrEqual", b.places(keys), b.op("Unsqueeze", places, b.ints(2)))    # [batch, length, keys]
    if (window := b.attr("local_window_size", -1)) > 0:
        nearest = b.op("Greater", b.places(keys), b.op("Unsqueeze", b.op("Sub", places, b.ints(window)), b.ints(2)))
        seen = b.op("And", seen, nearest)
    added = _seen_only(b, b.get(10), b.op("Unsqueeze", seen, b.ints(1)))
    y = b.op("Attention", q, key, value, added, softcap=b.attr("softcap", 0.0), **_scaled(b))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.ints(0, 0, -1))
    return [y, key, value]


def _turned(b: Body, x: str, places: str, turned: str, size: str, attrs: dict[str, int]) -> str:
    """Rotary embedding of as many elements of a head as the caches have angles for; the rest stays."""
    def whole() -> str:
        return b.op("RotaryEmbedding", x, b.get(7), b.get(8), places, **attrs)

    def part() -> str:
        first, rest = b.several("Split", 2, x, b.op("Concat", turned, b.op("Sub", size, turned), axis=0), axis=3)
        return b.op("Concat", b.op("RotaryEmbedding", first, b.get(7), b.get(8), places, **attrs), rest, axis=3)
    return b.chosen(b.op("Equal", turned, size), whole, part)


def _written(b: Body, old: str, new: str, have: str, missing: str) -> str:
    """A buffer, longer by `missing`, with what is new at each batch's place."""
    room = b.op("Pad", old, b.op("Concat", b.ints(0, 0, 0, 0, 0, 0), missing, b.ints(0), axis=0))
    return b.op("TensorScatter", room, new, have, axis=2)


ATTENTION: dict[str, Recipe] = {
    "Attention": _attention,
    "GroupQueryAttention": _group_query_attention,
    "MultiHeadAttention": _multi_head_attention,
    "RotaryEmbedding": _rotary_embedding,
}

__all__ = ["ATTENTION"]
