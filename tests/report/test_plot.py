"""Curves as SVG: well-formed, inside their axes, the same bytes for the same data."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.report.plot import LEFT, PANEL_HEIGHT, PANEL_WIDTH, RIGHT, TOP, Curve, Panel, _bends, svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def curve(*middle: float) -> Curve:
    return Curve([m - 0.1 for m in middle], middle, [m + 0.1 for m in middle])


def test_a_drawing_has_a_line_and_a_band_per_curve():
    panels = [Panel("a < b", {"auto": curve(0.5, 0.9), "grid": curve(0.5, 0.6)}, 0.4), Panel("c", {"grid": curve(0.7, 0.8)})]
    text = svg("methods & kernels", panels, "trials", "part")
    root = ElementTree.fromstring(text)
    assert len(root.findall(f".//{SVG}polyline")) == len(root.findall(f".//{SVG}polygon")) == 3
    assert [t.text for t in root.iter(f"{SVG}text")][:3] == ["methods & kernels", "auto", "grid"]
    grids = {line.get("stroke") for line in root.iter(f"{SVG}polyline") if line.find(f"{SVG}title").text == "grid"}
    assert len(grids) == 1                                      # one colour per name, in every panel
    assert svg("methods & kernels", panels, "trials", "part") == text


@given(st.lists(st.floats(-1, 2), min_size=1, max_size=70), st.floats(0.0, 0.9))
def test_curves_stay_inside_their_axes(values, low):
    root = ElementTree.fromstring(svg("t", [Panel("p", {"x": curve(*values)}, low)], "n", "y"))
    for element in (*root.iter(f"{SVG}polyline"), *root.iter(f"{SVG}polygon")):
        for x, y in re.findall(r"([-\d.]+),([-\d.]+)", element.get("points")):
            assert LEFT - 0.1 <= float(x) <= PANEL_WIDTH - RIGHT + 0.1 and TOP - 0.1 <= float(y) <= PANEL_HEIGHT


def test_level_stretches_are_drawn_by_their_ends():
    assert _bends([1, 2, 2, 2, 2, 5, 5]) == [(1, 1), (2, 2), (5, 2), (6, 5), (7, 5)] and _bends([3]) == [(1, 3)]


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.85, 1.0, [0.85, 0.9, 0.95, 1.0]), (0.3, 1.0, [0.4, 0.6, 0.8, 1.0])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == expected
