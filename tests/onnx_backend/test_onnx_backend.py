"""The public ONNX backend test suite over compiled x86 code, in shards that run in parallel.

expected_failures.txt lists the cases that are refused, with the reason. A ratchet: a case that is not in the list must pass,
and one that is in it must be refused by a typed error for that reason. A wrong result is never expected. close.txt lists
cases whose recorded result itself is inexact by more than the case's tolerance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from suite_cases import CLOSE, case_names, expected_failures, run_case

from toolchain import onnx_backend
from toolchain.core.errors import ImportModelError

pytestmark = pytest.mark.skipif(not onnx_backend.supports_device("CPU"), reason="runs x86 code in this process")

SHARDS = 16
PASSES_AT_LEAST = 1927


@pytest.mark.parametrize("shard", range(SHARDS))
def test_public_suite(shard: int, tally: Callable[[str, Counter[str]], None]):
    expected, close = expected_failures(), expected_failures(CLOSE)
    problems, verdicts = [], Counter[str]()
    for name in case_names()[shard::SHARDS]:
        outcome, reason = run_case(name), expected.get(name)
        verdicts[outcome.verdict] += 1
        if (outcome.verdict == "close") != (name in close):
            listed = "" if name in close else "not "
            problems.append(f"{name} is {outcome.verdict}, {listed}listed in close.txt: {outcome.detail}")
        elif outcome.verdict == "wrong":
            problems.append(f"{name} is wrong: {outcome.detail}")
        elif outcome.verdict == "refused" and reason is None:
            problems.append(f"{name} is refused: {outcome.detail}")
        elif outcome.verdict == "refused" and reason != outcome.reason:
            problems.append(f"{name} is refused for another reason: {outcome.reason}")
        elif outcome.verdict == "pass" and reason is not None:
            problems.append(f"{name} passes now: take it out of expected_failures.txt")
    tally("cases of the ONNX backend test suite", verdicts)
    assert not problems, "\n".join(problems)


def test_expected_failures_are_cases_of_the_suite():
    names = set(case_names())
    failing = {*expected_failures(), *expected_failures(CLOSE)}
    assert len(names) == 2033 and not failing - names
    assert len(names - failing) >= PASSES_AT_LEAST


def _relu() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_a_prepared_model_takes_any_shape():
    prepared = onnx_backend.prepare(_relu())
    for n in (3, 70, 3):
        x = np.linspace(-1, 1, n, dtype=np.float32)
        np.testing.assert_array_equal(prepared.run([x]).y, np.maximum(x, 0))
        np.testing.assert_array_equal(prepared.run({"x": x})[0], np.maximum(x, 0))


def test_run_model_and_run_node():
    x = np.array([-1, 2], np.float32)
    np.testing.assert_array_equal(onnx_backend.run_model(_relu(), [x])[0], [0, 2])
    node = helper.make_node("Add", ["a", "b"], ["c"])
    np.testing.assert_array_equal(onnx_backend.run_node(node, [x, x])[0], x + x)


def test_what_is_not_a_tensor_is_refused():
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [text],
                              [helper.make_tensor_value_info("y", TensorProto.STRING, [1])])
    model = helper.make_model(graph)
    assert not onnx_backend.is_compatible(model)
    assert onnx_backend.is_compatible(_relu())
    with pytest.raises(ImportModelError, match="STRING"):
        onnx_backend.prepare(model)
    assert not onnx_backend.supports_device("CUDA:0")


@pytest.mark.parametrize(("given", "problem"), [
    ([np.zeros(2, np.float64)], "the model takes float32"),
    ([np.zeros(2, np.float32)] * 2, "takes 1 inputs"),
    ({"z": np.zeros(2, np.float32)}, "no input 'z'"),
])
def test_wrong_inputs(given: object, problem: str):
    with pytest.raises(ImportModelError, match=problem):
        onnx_backend.prepare(_relu()).run(given)
