"""The public ONNX backend test suite, case by case: the official runner's own test functions over our backend."""

from __future__ import annotations

import time
import unittest
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolchain import onnx_backend
from toolchain.core.errors import ToolchainError

EXPECTED = Path(__file__).with_name("expected_failures.txt")
CLOSE = Path(__file__).with_name("close.txt")
NEAR = {"rtol": 2e-3, "atol": 1e-6}         # two units in the last place of a float16; the noise of a float32 transform
CATEGORIES = ("NodeModel", "SimpleModel", "PyTorchConvertedModel", "PyTorchOperatorModel", "RealModel")


@dataclass(frozen=True, slots=True)
class Outcome:
    """verdict: "pass", "refused" (by a typed error), "close" (outside the case's own tolerance, within NEAR) or "wrong"
    (another result, or any other exception)."""

    name: str
    op: str
    verdict: str
    reason: str
    detail: str
    seconds: float
    constant: bool


@cache
def _items() -> dict[str, Any]:
    """Test name -> the official runner's item, those for the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # the generators of the cases overflow on purpose
        from onnx.backend.test import BackendTest
        found = BackendTest(_Recording, __name__)._test_items
    return {name.removesuffix("_cpu"): item for category in CATEGORIES for name, item in found[category].items()
            if name.endswith("_cpu")}


def case_names() -> list[str]:
    """The 2,033 cases that the official runner counts, nine whole networks among them."""
    return sorted(_items())



class _Recording(onnx_backend.ToolchainBackend):
    """The backend, remembering the last model it prepared: what a summary says of a case."""

    prepared: onnx_backend.Prepared | None = None
    op = ""

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> onnx_backend.Prepared:
        _Recording.op = "+".join(sorted({n.op_type for n in model.graph.node})[:3])
        _Recording.prepared = super().prepare(model, device, **kwargs)
        return _Recording.prepared

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        return True                             # so that a refusal says why


def run_case(name: str) -> Outcome:
    """Run one case as the official runner does."""
    _Recording.prepared, _Recording.op = None, name
    started = time.perf_counter()
    verdict, reason, detail = "pass", "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _items()[name].func(unittest.TestCase())
    except ToolchainError as e:
        verdict, reason, detail = "refused", reason_of(e), str(e).replace("\n", " | ")
    except (Exception, unittest.SkipTest) as e:
        near = isinstance(e, AssertionError) and "Not equal to tolerance" in str(e) and _is_near(name)
        verdict, reason = "close" if near else "wrong", type(e).__name__
        detail = " ".join(f"{type(e).__name__}: {e}".split())[:600]
    made = _Recording.prepared
    constant = verdict == "pass" and made is not None and all(c.is_constant for c in made._compiled.values())
    return Outcome(name, _operator(name), verdict, reason, detail, time.perf_counter() - started, constant)


def _is_near(name: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _items()[name].func(unittest.TestCase(), **NEAR)
    except AssertionError:
        return False
    return True


def _operator(name: str) -> str:
    return _Recording.op or name


def reason_of(error: ToolchainError) -> str:
    """The error in one line, without the names of values."""
    lines = error.what.splitlines()
    text = lines[0] + (" " + lines[1].strip() if lines[0].endswith(":") and len(lines) > 1 else "")
    where = error.where.rpartition("(")[2].rstrip(")") if "(" in error.where else ""
    return " ".join(f"{where}: {text}".split()) if where else " ".join(text.split())


def expected_failures(path: Path = EXPECTED) -> dict[str, str]:
    """Case -> reason, from expected_failures.txt or close.txt."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))
