"""AutoTVM's logs: rows become hints, what cannot be true is refused, and what is no such log is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolchain.build.records import Prior
from toolchain.core.errors import TuneError
from toolchain.core.layout import TensorType
from toolchain.graph.ir import Graph, Node
from toolchain.targets.llvm.cpu import host_target
from toolchain.tasks.tuning.autotvm import hints, is_log, operator_of, read_log
from toolchain.te.tune.choices import Choices
from toolchain.te.tune.space import Made, Space

CPU = "llvm -keys=cpu -mcpu=skylake-avx512 -num-cores=18"
CONV = [["TENSOR", [1, 64, 56, 56], "float32"], ["TENSOR", [64, 64, 3, 3], "float32"], [1, 1], [1, 1, 1, 1], [1, 1], "NCHW",
        "NCHW", "float32"]
OPERATOR = "conv 1x64x56x56 64x64x3x3 s1,1 p1,1,1,1 d1,1 float32"
TILES = [["tile_ic", "sp", [-1, 16]], ["tile_oc", "sp", [-1, 32]], ["tile_ow", "sp", [-1, 7]], ["unroll_kw", "ot", True]]


def row(args: list[Any] | None = None, seconds: float | list[float] = 1e-4, *, template: str = "conv2d_NCHWc.x86",
        target: str = CPU, entity: list[Any] | None = None, error: int = 0, version: float = 0.2) -> str:
    return json.dumps({
        "input": [target, template, args or CONV, {}],
        "config": {"index": 1, "code_hash": None, "entity": TILES if entity is None else entity},
        "result": [seconds if isinstance(seconds, list) else [seconds], error, 2.0, 1.0], "version": version,
        "tvm_version": "0.8"})


def test_a_row_becomes_a_prior():
    log = read_log([row(seconds=[1.2e-4, 1e-4]), "", row(error=6)], "tophub.log")
    (prior,) = log.priors
    assert (prior.operator, prior.us, prior.source) == (OPERATOR, pytest.approx(100.0), "tophub.log")
    assert prior.knobs["tile_ow"] == [-1, 7] and prior.target == f"conv2d_NCHWc.x86 {CPU}"
    assert not log.refused and log.skipped == {"failed when it was measured": 1}


def test_what_no_machine_can_do_is_refused():
    too_fast = 231e6 / (18 * 320e9) / 2
    log = read_log([row(seconds=too_fast), row()], "x.log")
    assert len(log.priors) == 1
    ((line, why),) = log.refused
    assert line == 1 and "GFLOP/s, where llvm -keys=cpu" in why and why.endswith("has 5760 at most")


def test_the_impossible_rows_of_a_published_log_are_refused():
    """TopHub's VTA rows of YOLO-tiny carry the times of ResNet-18: 51.2 GOPS at most, 538 and more claimed."""
    vta = "ext_dev -keys=vta,cpu -device=vta -model=pynq_1x16_i8w8a32_15_15_18_17"

    def packed(size: int, channels: int, outputs: int) -> list[Any]:
        return [["TENSOR", [1, channels // 16, size, size, 1, 16], "int8"],
                ["TENSOR", [outputs // 16, channels // 16, 3, 3, 16, 16], "int8"], [1, 1], [1, 1, 1, 1], [1, 1], "NCHW1n16c",
                "int32"]
    resnet, yolo = packed(56, 64, 64), packed(13, 512, 1024)
    log = read_log([row(resnet, 0.0057, template="conv2d_packed.vta", target=vta),
                    row(yolo, 0.0030, template="conv2d_packed.vta", target=vta)], "vta.log")
    assert [p.operator for p in log.priors] == ["conv 1x64x56x56 64x64x3x3 s1,1 p1,1,1,1 d1,1 int8"]
    assert log.refused == ((2, "532 GFLOP/s, where ext_dev -keys=vta,cpu -device=vta -mo... has 51 at most"),)


def test_the_times_of_another_workload_are_refused():
    other = [["TENSOR", [1, 64, 28, 28], "float32"], *CONV[1:]]
    log = read_log([row(seconds=1.234567e-4), row(other, 1.234567e-4)], "x.log")
    assert len(log.priors) == 1 and log.refused == (
        (2, f"the times of another workload, to the last digit: {OPERATOR}"),)


@pytest.mark.parametrize("line", ["{", "[]", "{}", row(version=0.1), row(seconds=[]), row(seconds=-1.0),
                                  row(args=[["TENSOR"]]), row(entity=[["tile"]])])
def test_what_is_no_such_row_is_named(line):
    with pytest.raises(TuneError, match=r"line 2: no row of an AutoTVM log v0\.2") as error:
        read_log([row(), line], "x.log")
    assert error.value.where == "x.log"


def test_rows_of_other_templates_are_counted():
    assert read_log([row(template="conv2d_nchw.cuda", target="cuda")], "x.log").skipped == {"template conv2d_nchw.cuda": 1}


def test_is_log():
    assert is_log(row()) and not is_log('{"v": 1, "kind": "toolchain tuning records"}') and not is_log("no json")


def body(op: str, x: tuple[int, ...], w: tuple[int, ...], **attrs: Any) -> Graph:
    types = {"x": TensorType.plain(x, "float32"), "w": TensorType.plain(w, "float32"), "y": TensorType.plain(x, "float32")}
    return Graph("body", (Node(op, ("x", "w"), ("y",), attrs, "n"),), ("x", "w"), ("y",), types, {})


@pytest.mark.parametrize(("graph", "template", "args"), [
    (body("Conv", (1, 64, 56, 56), (64, 64, 3, 3), pads=[1] * 4), "conv2d_NCHWc.x86", CONV),
    (body("Conv", (1, 32, 112, 112), (32, 1, 3, 3), pads=[1] * 4, group=32, strides=[2, 2]), "depthwise_conv2d_NCHWc.x86",
     [["TENSOR", [1, 32, 112, 112], "float32"], ["TENSOR", [32, 1, 3, 3], "float32"], [2, 2], [1, 1, 1, 1], [1, 1]]),
    (body("MatMul", (128, 768), (768, 2304)), "dense_pack.x86",
     [["TENSOR", [128, 768], "float32"], ["TENSOR", [2304, 768], "float32"], None, "float32"]),
    (body("MatMul", (12, 128, 64), (12, 64, 128)), "batch_matmul.x86",
     [["TENSOR", [12, 128, 64], "float32"], ["TENSOR", [12, 128, 64], "float32"]]),
], ids=["conv", "depthwise", "dense", "batch"])
def test_our_kernels_and_their_rows_are_called_the_same(graph, template, args):
    (prior,) = read_log([row(args, 1.0, template=template)], "x.log").priors
    assert operator_of(graph) == prior.operator


def test_what_logs_do_not_have_has_no_name():
    assert operator_of(body("Conv", (1, 8, 9), (8, 8, 3))) == ""
    assert operator_of(body("Conv", (1, 64, 9, 9), (64, 32, 3, 3), group=2)) == "" == operator_of(body("Add", (1,), (1,)))


def test_hints_are_the_nearest_answers():
    lanes = host_target().lanes(32)

    def program(choices: Choices) -> Made:
        tile = choices.one_of("tile", ("1x14x2", "1x7x2", "1x7x1", "2x3x1"), "1x14x2")
        return Made(f"{tile} {choices.one_of('unroll', (1, 2, 4, 8), 1)}")
    knobs = {"tile_oc": [-1, 2 * lanes], "tile_ow": [-1, 7], "unroll_kw": True}
    prior = Prior(OPERATOR, f"conv2d_NCHWc.x86 {CPU}", knobs, 9.0)
    elsewhere = Prior(OPERATOR, "conv2d_packed.vta ext_dev", knobs, 1.0)
    dense = Prior(OPERATOR, f"dense_pack.x86 {CPU}", {"tile_x": [-1, 2, lanes], "tile_y": [-1, 6], "tile_k": [-1, 6]}, 10.0)
    graph = body("Conv", (1, 64, 56, 56), (64, 64, 3, 3), pads=[1] * 4)
    asked: list[str] = []

    def priors(operator: str) -> list[Prior]:
        asked.append(operator)
        return [elsewhere, prior, dense, prior]
    assert hints(graph, host_target(), Space(program).default, priors) == [
        {"tile": "1x7x2"}, {"tile": "2x3x1", "unroll": "8"}] and asked == [OPERATOR]
    assert hints(body("Add", (1,), (1,)), host_target(), Space(program).default, priors) == [] and len(asked) == 1
