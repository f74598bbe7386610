"""Facts go to plain data and back unchanged, and what is no facts is refused with the place of the error."""

from __future__ import annotations

import json
import math

import pytest
from sample_report import report

from toolchain.report.facts import BuildFacts, LayerFacts, OutputError, Report, System, from_json, to_json


def test_round_trip_through_json_text() -> None:
    assert from_json(Report, json.loads(json.dumps(to_json(report()), allow_nan=False))) == report()


def test_values_json_has_no_word_for() -> None:
    data = to_json(OutputError("y", (), math.inf, math.nan, -math.inf, False))
    assert (data["max_abs_error"], data["max_rel_error"]) == ("inf", "nan")
    back = from_json(OutputError, data)
    assert math.isinf(back.max_abs_error) and math.isnan(back.max_rel_error) and back.tolerance_used == -math.inf


def test_missing_fields_take_their_defaults_and_unknown_ones_are_skipped() -> None:
    layer = from_json(LayerFacts, {"kernel": "k", "sources": ["a"], "network_us": 3, "colour": "blue"})
    assert layer == LayerFacts("k", ("a",), 3.0) and isinstance(layer.network_us, float)


@pytest.mark.parametrize(("kind", "data", "words"), [
    (LayerFacts, {"kernel": "k", "sources": "a", "network_us": 3.0}, "LayerFacts.sources: expected a list"),
    (LayerFacts, {"kernel": "k", "sources": [1], "network_us": 3.0}, r"LayerFacts.sources\[0\]: expected str"),
    (LayerFacts, {"kernel": "k", "network_us": 3.0}, "LayerFacts: .*sources"),
    (System, {"mhz": [1.0]}, "System.mhz: expected 2 values, found 1"),
    (System, {"cores": True}, "System.cores: expected int"),
    (BuildFacts, [], "BuildFacts: expected an object"),
    (BuildFacts, {"digests": []}, "BuildFacts.digests: expected an object"),
])
def test_wrong_data_names_its_field(kind: type, data: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_json(kind, data)
