"""Operators that become several when a model is imported, against ONNX Runtime or their formula."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import imported, make_model, run_onnxruntime

from toolchain.core.errors import ImportModelError
from toolchain.graph.interpret import interpret

POOL = {"ngram_counts": [0, 4], "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7], "ngram_indexes": [0, 1, 2, 3, 4, 6, 5]}


def vectorizer(mode: str, shape: tuple[int, ...], **attrs: object) -> onnx.ModelProto:
    weights = {"weights": [float(n + 1) for n in range(7)]} if mode != "TF" else {}
    found = helper.make_node("TfIdfVectorizer", ["x"], ["y"], mode=mode, **{**POOL, **weights, **attrs})
    return make_model([found], {"x": shape}, ["y"], dtypes={"x": "int64"})


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(("low", "high", "skips"), [(1, 1, 0), (2, 2, 0), (1, 2, 0), (1, 2, 3), (2, 2, 9)])
@pytest.mark.parametrize("shape", [(12,), (3, 8), (2, 1)])
def test_counts_of_n_grams(mode: str, low: int, high: int, skips: int, shape: tuple[int, ...]):
    model = vectorizer(mode, shape, min_gram_length=low, max_gram_length=high, max_skip_count=skips)
    x = np.random.default_rng(skips).integers(2, 9, shape)
    graph = imported(model)
    assert not any(n.op == "TfIdfVectorizer" for n in graph.nodes)
    np.testing.assert_array_equal(interpret(graph, {"x": x})["y"], run_onnxruntime(model, {"x": x})["y"])


def test_a_pool_that_contradicts_itself_is_refused():
    with pytest.raises(ImportModelError, match="its pool holds 7 n-grams, ngram_indexes 2"):
        imported(vectorizer("TF", (4,), min_gram_length=1, max_gram_length=2, max_skip_count=0, ngram_indexes=[0, 1]))


def test_statistics_of_the_batch():
    inputs, outputs = ["x", "s", "b", "m", "v"], ["y", "m2", "v2"]
    norm = helper.make_node("BatchNormalization", inputs, outputs, training_mode=1, momentum=0.7)
    graph = imported(make_model([norm], {"x": (4, 3, 5), "s": (3,), "b": (3,), "m": (3,), "v": (3,)}, outputs))
    rng = np.random.default_rng(0)
    given = {n: rng.random(graph.types[n].shape).astype("float32") for n in graph.inputs}
    mean, var = given["x"].mean((0, 2)), given["x"].var((0, 2))
    s, b = (given[n][:, None] for n in "sb")
    want = {"y": (given["x"] - mean[:, None]) / np.sqrt(var[:, None] + 1e-5) * s + b,
            "m2": 0.7 * given["m"] + 0.3 * mean, "v2": 0.7 * given["v"] + 0.3 * var}
    for name, array in interpret(graph, given).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-6)     # sums of 20 float32
