"""The judge: what counts as equal, and what rounding decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from toolchain.graph.importers.onnx import import_model
from toolchain.tasks.steps import supported_operators

from .builder import Case, make_model, session
from .judging import Judge, compare


def a_case(nodes, dtype: str = "float32", **inputs: np.ndarray) -> Case:
    (output,) = nodes[-1].output
    made = session(make_model(nodes, inputs, {output: np.zeros(0, dtype)}, {})).run(None, inputs)[0]
    return Case(make_model(nodes, inputs, {output: made}, {}), inputs, {output: made})


def judge(case: Case) -> Judge:
    return Judge(case, import_model(case.model, Path(), {}, {}, supported_operators()))


def test_comparison():
    one = {"y": np.array([1.0, np.nan], np.float32)}
    assert "y[1] is nan" in compare(one, {"y": np.array([1, 2], np.float32)}, 1e-4)
    assert "float32[2], not float64[2]" in compare(one, {"y": np.array([1.0, 2.0])}, 1e-4)
    assert compare({"y": np.array([1.00001], np.float32)}, {"y": np.array([1], np.float32)}, 1e-4) == ""
    assert compare({"y": np.array([3])}, {"y": np.array([4])}, 1e-4) != ""


def test_nan_and_inf_are_numbers_like_others():
    want = {"y": np.array([np.nan, np.inf, -np.inf, 2.0], np.float32)}
    assert compare(want, want, 1e-4) == ""
    for at, value in ((0, 1.0), (1, 1e30), (1, np.nan), (2, np.inf), (3, np.inf), (3, 2.1)):
        got = want["y"].copy()
        got[at] = value
        assert f"y[{at}] is" in compare({"y": got}, want, 1e-4)


def test_a_rounded_number_on_a_jump_is_unstable():
    """sin(x)^2 + cos(x)^2 is 1 but for rounding: its floor is 0 or 1, and nothing else."""
    nodes = [helper.make_node("Sin", ["x"], ["s"]), helper.make_node("Cos", ["x"], ["c"]),
             helper.make_node("Mul", ["s", "s"], ["ss"]), helper.make_node("Mul", ["c", "c"], ["cc"]),
             helper.make_node("Add", ["ss", "cc"], ["one"]), helper.make_node("Floor", ["one"], ["y"])]
    case = a_case(nodes, x=np.linspace(0, 3, 64, dtype=np.float32))
    one = judge(case)
    unlike = one.reference["y"].copy()
    unlike[1:] = 1 - unlike[1:]                         # sin(0) and cos(0) are what they are
    assert one.problem({"y": unlike}) == "" and one.unstable
    assert "y[0] is 7.0" in judge(case).problem({"y": np.full_like(unlike, 7)})


def test_an_exact_jump_is_never_unstable():
    case = a_case([helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Floor", ["n"], ["y"])],
                  x=np.array([1, 2, 3], np.float32))
    one = judge(case)
    assert "y[1] is -3.0, not -2.0" in one.problem({"y": np.array([-1, -3, -3], np.float32)})
    assert one.problem(case.expected) == "" and not one.unstable and not one.special


def test_cancellation_allows_what_it_loses_and_no_more():
    """(x + 1e4) - 1e4 keeps three digits of x."""
    nodes = [helper.make_node("Add", ["x", "b"], ["s"]), helper.make_node("Sub", ["s", "b"], ["y"])]
    case = a_case(nodes, x=np.array([0.1, 0.25], np.float32), b=np.array([1e4], np.float32))
    one = judge(case)
    assert one.problem({"y": np.array([0.102, 0.251], np.float32)}) == ""
    assert one.unstable
    assert "not 0.0996" in judge(case).problem({"y": np.array([0.9, 0.25], np.float32)})


def test_the_references_have_to_agree():
    case = a_case([helper.make_node("Exp", ["x"], ["y"])], x=np.array([0, 1], np.float32))
    case.expected["y"] = np.array([1, 2.5], np.float32)
    assert "y[1] is 2.7" in judge(case).interpreter()


def test_nan_on_the_way_is_noted():
    case = a_case([helper.make_node("Sqrt", ["x"], ["s"]), helper.make_node("IsNaN", ["s"], ["n"]),
                   helper.make_node("Cast", ["n"], ["y"], to=1)], x=np.array([-1, 4], np.float32))
    assert judge(case).special and judge(case).problem({"y": np.array([1, 0], np.float32)}) == ""


def test_what_becomes_of_a_nan_is_open_but_not_anything():
    case = a_case([helper.make_node("Sqrt", ["x"], ["s"]), helper.make_node("ReduceMax", ["s"], ["y"], keepdims=0)],
                  x=np.array([-1, 4], np.float32))
    case.expected["y"] = np.array(2, np.float32)                    # as if ONNX Runtime had passed over it
    one = judge(case)
    assert one.interpreter() == "" and one.unstable
    for answer in (2, np.nan):
        assert one.problem({"y": np.array(answer, np.float32)}) == ""
    assert "y[] is 3.0" in one.problem({"y": np.array(3, np.float32)})


def test_a_tiny_sigmoid_may_be_nothing():
    case = a_case([helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Cast", ["s"], ["y"], to=9)],
                  "bool", x=np.array([-25, 0], np.float32))
    case.expected["y"] = np.array([True, True])
    assert judge(case).problem({"y": np.array([False, True])}) == ""
    assert "y[1] is False" in judge(case).problem({"y": np.array([True, False])})
