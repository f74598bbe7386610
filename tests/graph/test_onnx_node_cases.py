"""ONNX's own single-operator test cases through importer, verifier, files and interpreter.

Every case whose inputs and outputs are tensors runs; inputs that decide shapes are imported as constants. What is left out
is listed here with its reason, so that a case that starts or stops working is noticed.
"""

from __future__ import annotations

import fnmatch
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolchain.core.errors import ImportModelError
from toolchain.graph.importers.onnx import import_model
from toolchain.graph.interpret import interpret
from toolchain.graph.serialize import from_json, to_json
from toolchain.graph.text import to_text
from toolchain.graph.verify import verify

WRONG = {
    "test_bernoulli*": "draws random numbers",
    "test_stft*": "ONNX's type rule for onesided contradicts its own reference",
}
REFUSED_AT_MOST = 110       # of 1,500: strings, other domains, optional types, shapes that depend on elements
COMPUTED_AT_LEAST = 1350

DECIDE = ("range", "nonzero", "compress", "unique", "loop")       # cases whose every input may decide a shape


@cache
def _cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # the generators of the cases overflow on purpose
        from onnx.backend.test.case.node import collect_testcases
        cases = collect_testcases(None)
    return {c.name: c for c in sorted(cases, key=lambda c: c.name)}


def _constants(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    decide = {k: a for k, a in inputs.items() if (a.dtype == "int64" and a.ndim < 2) or ("resize" in name and k != "X")
              or any(word in name for word in DECIDE)}
    return decide if len(decide) < len(inputs) or "range" in name else {}


def _run(name: str, case: Any) -> bool:
    """Whether the case was computed, and then rightly; False: refused."""
    given, wanted = case.data_sets[0]
    inputs = {v.name: a for v, a in zip(case.model.graph.input, given)}
    constants = _constants(name, inputs)
    shapes = {k: a.shape for k, a in inputs.items() if k not in constants}
    try:
        graph = verify(import_model(case.model, Path("/nonexistent"), shapes, {}, constants=constants))
    except ImportModelError as e:
        assert e.what
        return False
    assert to_text(from_json(to_json(graph))) == to_text(graph)
    made = graph.results(interpret(graph, inputs))
    for output, want in zip(case.model.graph.output, wanted):
        got = made[output.name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        # 1e-3: the tolerance ONNX's own runner uses; half-size floats keep eight or eleven bits
        atol = 1e-5 if want.dtype.itemsize > 2 else 1e-2
        np.testing.assert_allclose(got.astype("float64"), want.astype("float64"), rtol=1e-3, atol=atol, err_msg=name)
    return True


def test_all_cases():
    ran = refused = 0
    for name, case in _cases().items():
        given, wanted = case.data_sets[0]
        tensors = all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in (*given, *wanted))
        if not tensors or any(fnmatch.fnmatch(name, pattern) for pattern in WRONG):
            continue
        computed = _run(name, case)
        ran, refused = ran + computed, refused + (not computed)
    assert ran >= COMPUTED_AT_LEAST and refused <= REFUSED_AT_MOST, (ran, refused)


@pytest.mark.parametrize("name", [
    "test_conv_with_strides_and_asymmetric_padding", "test_averagepool_2d_ceil", "test_maxpool_2d_ceil",
    "test_resize_upsample_sizes_nearest", "test_resize_downsample_scales_linear_align_corners", "test_lrn_default",
    "test_convtranspose_output_shape", "test_lstm_with_peepholes", "test_scan9_sum"])
def test_named_case(name: str):
    """A few by name, so that a failure above is quickly told apart."""
    assert _run(name, _cases()[name])
