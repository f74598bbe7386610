"""AutoTVM's logs (v0.2: a JSON object per line) as hints: what another compiler found good is tried early, never believed.

    {"input": [target, template, [["TENSOR", shape, dtype], ...], {}],
     "config": {"entity": [["tile_ow", "sp", [-1, 7]], ...]},
     "result": [[seconds, ...], error, all_cost, timestamp], "version": 0.2}
    ->  Prior("conv 1x64x56x56 64x64x3x3 s1,1 p1,1,1,1 d1,1 float32", target, {"tile_ow": [-1, 7], ...}, us)
    ->  answers: the register tile nearest to those factors

Rows that cannot be true are refused: faster than the device can be, or with another workload's times to the last digit
(published logs have both: TopHub's VTA rows imply 1,163 GOPS on a device of 51). Failed measurements are left out.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolchain.build.records import Prior
from toolchain.core import dtype as dtypes
from toolchain.core.errors import TuneError
from toolchain.core.target import Target
from toolchain.graph.ir import Graph
from toolchain.te.tune.choices import Question
from toolchain.te.tune.space import Point

CORE_GFLOPS = 320.0             # no x86 core does more: two AVX-512 multiply-adds a cycle at 5 GHz
MOST_CORES = 128                # of one processor, where a target does not say
VTA_HZ = 100e6                  # of the bitstreams that logs were made on


@dataclass(frozen=True, slots=True)
class Log:
    """What a log holds for us. refused: (line, why) of rows that cannot be true. skipped: rows of no use here, by reason."""

    priors: tuple[Prior, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def is_log(first_line: str) -> bool:
    """Whether a file that begins like this is one of AutoTVM's."""
    try:
        row = json.loads(first_line)
    except ValueError:
        return False
    return isinstance(row, dict) and {"input", "config", "result"} <= row.keys()


def read_log(lines: Iterable[str], where: str) -> Log:
    """Raises TuneError naming the line that is no row of such a log."""
    priors, refused, skipped = list[Prior](), list[tuple[int, str]](), Counter[str]()
    workload_of: dict[tuple[float, ...], str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            target, template, knobs, us, operator, gflop, costs = _row(json.loads(line))
        except _UnusedError as reason:
            skipped[str(reason)] += 1
            continue
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise TuneError(f"line {number}: no row of an AutoTVM log v0.2 ({type(error).__name__}: {error})", where=where,
                            fix="give a file of AutoTVM, or one that `tc tune --export` wrote") from None
        rate, peak = gflop / us * 1e6, _peak_gflops(target)
        if rate > peak:
            refused.append((number, f"{rate:.0f} GFLOP/s, where {_short(target)} has {peak:.0f} at most"))
        elif workload_of.setdefault(costs, operator) != operator:
            refused.append((number, f"the times of another workload, to the last digit: {workload_of[costs]}"))
        else:
            priors.append(Prior(operator, f"{template} {target}", knobs, us, where))
    return Log(tuple(priors), tuple(refused), dict(skipped))


class _UnusedError(Exception):
    """A row that says nothing here; the text says why."""


def _row(row: Any) -> tuple[str, str, dict[str, Any], float, str, float, tuple[float, ...]]:
    if not isinstance(row, dict):
        raise TypeError("no object")
    if row.get("version") != 0.2:
        raise ValueError(f"version {row.get('version')!r}")
    target, template, args, *_ = row["input"]
    costs, error, *_ = row["result"]
    if error:
        raise _UnusedError("failed when it was measured")
    if template not in _OPERATORS:
        raise _UnusedError(f"template {template}")
    operator, gflop = _OPERATORS[template](args)
    seconds = min(map(float, costs))
    if not 0 < seconds < math.inf:
        raise ValueError(f"a time of {seconds} s")
    knobs = {name: value for name, _, value in row["config"]["entity"]}
    return str(target), template, knobs, seconds * 1e6, operator, gflop, tuple(costs)


def _peak_gflops(target: str) -> float:
    """What the device can do at most, from what its text says."""
    if match := re.search(r"-model=\S*?_(\d+)x(\d+)_", target):         # VTA: batch x block, a block x block product a cycle
        batch, block = map(int, match.groups())
        return 2 * batch * block * block * VTA_HZ / 1e9
    cores = re.search(r"-num-cores[= ](\d+)", target)
    return CORE_GFLOPS * (int(cores[1]) if cores else MOST_CORES)


def _short(target: str) -> str:
    return target if len(target) <= 40 else f"{target[:37]}..."


# -- operators ----------------------------------------------------------------------------------------------------------


def _x(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def _comma(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def conv_operator(
    data: Sequence[int], weight: Sequence[int], strides: Sequence[int], pads: Sequence[int], dilations: Sequence[int],
    dtype: str, *, depthwise: bool = False,
) -> str:
    """One spelling for a convolution, whoever describes it. pads: top, left, bottom, right."""
    kind = "depthwise" if depthwise else "conv"
    return f"{kind} {_x(data)} {_x(weight)} s{_comma(strides)} p{_comma(pads)} d{_comma(dilations)} {dtype}"


def matmul_operator(batch: int, m: int, k: int, n: int, dtype: str) -> str:
    return f"matmul {batch} {m}x{k}x{n} {dtype}"


def _conv(args: Sequence[Any], depthwise: bool = False) -> tuple[str, float]:
    (_, data, dtype), (_, weight, _), strides, pads, dilations = args[:5]
    if len(data) == 6:                                                  # VTA's packed form: NCHW1n16c, OIHW16o16i
        data = [data[0] * data[4], data[1] * data[5], *data[2:4]]
        weight = [weight[0] * weight[4], weight[1] * weight[5], *weight[2:4]]
    if len(data) != 4 or len(weight) != 4:
        raise _UnusedError("a layout other than NCHW")
    pads = [*pads, *pads] if len(pads) == 2 else pads
    size = [(n + before + after - d * (w - 1) - 1) // s + 1 for n, before, after, d, w, s in
            zip(data[2:], pads[:2], pads[2:], dilations, weight[2:], strides, strict=True)]
    outputs = data[0] * (weight[0] * weight[1] if depthwise else weight[0]) * math.prod(size)
    flop = 2 * outputs * math.prod(weight[2:]) * (1 if depthwise else weight[1])
    return conv_operator(data, weight, strides, pads, dilations, dtype, depthwise=depthwise), flop / 1e9


def _dense(args: Sequence[Any]) -> tuple[str, float]:
    (_, a, dtype), (_, b, _) = args[:2]
    return matmul_operator(1, a[0], a[1], b[0], dtype), 2 * a[0] * a[1] * b[0] / 1e9


def _batch(args: Sequence[Any]) -> tuple[str, float]:
    (_, a, dtype), (_, b, _) = args[:2]
    return matmul_operator(a[0], a[1], a[2], b[1], dtype), 2 * a[0] * a[1] * a[2] * b[1] / 1e9


_OPERATORS: dict[str, Callable[[Sequence[Any]], tuple[str, float]]] = {
    "conv2d_NCHWc.x86": _conv,
    "depthwise_conv2d_NCHWc.x86": lambda args: _conv(args, depthwise=True),
    "conv2d_packed.vta": _conv,
    "dense_pack.x86": _dense,
    "dense_nopack.x86": _dense,
    "batch_matmul.x86": _batch,
}


def operator_of(body: Graph) -> str:
    """What a kernel's heavy operator is called in `Prior.operator`; "": logs have no such operator."""
    for node in body.nodes:
        if node.op not in ("Conv", "MatMul"):
            continue
        a, b = (body.types[i] for i in node.inputs[:2])
        if node.op == "MatMul":
            if len(b.shape) < 2 or len(a.shape) < 2:
                return ""
            return matmul_operator(math.prod(a.shape[:-2]), a.shape[-2], a.shape[-1], b.shape[-1], a.dtype)
        if len(a.shape) != 4:
            return ""
        group, pads = node.attrs.get("group", 1), node.attrs.get("pads", [0] * 4)
        depthwise = group == a.shape[1] > 1
        if group > 1 and not depthwise:
            return ""
        weight = (group, b.shape[0] // group, *b.shape[2:]) if depthwise else b.shape
        return conv_operator(a.shape, weight, node.attrs.get("strides", [1, 1]), pads,
                             node.attrs.get("dilations", [1, 1]), a.dtype, depthwise=depthwise)
    return ""


# -- hints --------------------------------------------------------------------------------------------------------------


def hints(body: Graph, target: Target, default: Point, priors: Callable[[str], Sequence[Prior]]) -> list[dict[str, str]]:
    """Answers near what logs found good for the kernel's operator, the fastest log first; each once."""
    operator = operator_of(body)
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for prior in priors(operator) if operator else ():
        if prior.target.partition(" ")[0].endswith(f".{target.kind}"):
            near = _answers(prior.knobs, default, target.lanes(dtypes.bits(body.types[body.outputs[0]].dtype)))
            if near:
                found.setdefault(tuple(near.items()), near)
    return list(found.values())


def _answers(knobs: Mapping[str, Any], default: Point, lanes: int) -> dict[str, str]:
    """The register tile and the unrolling nearest to a log's factors. Of a list, the last factor is the innermost."""
    inner = {name: float(value[-1]) for name, value in knobs.items() if isinstance(value, list) and value and value[-1] > 0}
    columns, vectors = inner.get("tile_ow") or inner.get("tile_y"), inner.get("tile_oc") or inner.get("tile_x")
    answers: dict[str, str] = {}
    for q in default.questions:
        if q.name == "tile" and columns:
            answers["tile"] = _nearest(q, lambda o: _apart(o, columns, (vectors or lanes) / lanes))
        elif q.name == "columns" and columns:
            answers["columns"] = _nearest(q, lambda o: abs(math.log(float(o) / columns)))
        elif q.name == "unroll" and "tile_k" in inner:
            answers["unroll"] = _nearest(q, lambda o: abs(math.log(float(o) / inner["tile_k"])))
    return answers


def _nearest(question: Question, apart: Callable[[str], float]) -> str:
    return min(question.options, key=apart)


def _apart(tile: str, columns: float, vectors: float) -> float:
    r, c, v = map(int, tile.split("x"))
    return abs(math.log(r * c / columns)) + abs(math.log(v / max(vectors, 1.0)))
