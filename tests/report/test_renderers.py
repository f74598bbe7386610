"""The exact texts of a fixed report, and that names chosen by strangers change nothing but themselves."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape

import pytest
from rich.console import Console
from sample_report import HOSTILE, report

from toolchain.core.errors import UsageError
from toolchain.report import charts, console, html, junit, markdown
from toolchain.report import json as report_json
from toolchain.report.facts import BuildFacts, BuildReport, CountedKernel, LayerFacts, MeasureFacts, Report
from toolchain.report.gate import GateResult
from toolchain.report.tables import sections, show_bytes, show_count, show_name, show_time

GATES = (
    GateResult("resnet18@x86", "regressed", "", 10_000.0, 11_200.0, 0.12),
    GateResult("dqn@x86", "ok", "", 150.0, 149.0, -0.0067),
    GateResult("lstm@x86", "skipped", "unstable now (variation 9.1%)"),
)


def on_console(*, width: int = 120, colour: bool = False) -> str:
    out = io.StringIO()
    screen = Console(file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    console.show(report(), screen, GATES)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_console(golden: Callable[..., None]) -> None:
    golden(on_console())


def test_markdown(golden: Callable[..., None]) -> None:
    golden(markdown.render(report(), GATES))


def test_junit(golden: Callable[..., None]) -> None:
    golden(junit.render(report(), GATES))


def test_a_narrow_screen_folds_but_loses_nothing() -> None:
    narrow = on_console(width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    for word in ("resnet18@x86", "onnxrunti", "1.10x", "[1.10,", "SIGSEGV"):
        assert word in narrow


def test_numbers_stay_whole_where_they_fit() -> None:
    assert "1.10x [1.10, 1.10]" in on_console(width=80)


def test_no_control_character_reaches_any_output() -> None:
    for text in (on_console(), markdown.render(report()), junit.render(report()), html.render(report())):
        assert all(c.isprintable() or c == "\n" for c in text)


def test_colour_marks_only_our_own_words() -> None:
    coloured = on_console(colour=True)
    assert "\x1b[32mfaster" in coloured and "\x1b[1;31mFAIL" in coloured
    assert "\x1b[31m" not in coloured                       # the hostile name's own escape, and its [red]


def test_markdown_shows_hostile_names_literally() -> None:
    shown = markdown.escape(show_name(HOSTILE, 200))
    for harm in ("|x|", "<script>", "`<", " @all", " #1", "https://", "[red]"):
        assert harm not in shown.replace("\\|", "").replace("\\`", "").replace("\\[", "(")
    rows = [line for line in markdown.render(report()).splitlines() if line.startswith("|")]
    unescaped = [line.replace("\\|", "").count("|") for line in rows]
    assert all(n == unescaped[i - 1] for i, n in enumerate(unescaped) if i and rows[i].startswith("| -"))


def test_html(golden: Callable[..., None]) -> None:
    golden(html.render(report(), GATES))


def test_html_runs_nothing_asks_for_nothing_and_shows_hostile_names_literally() -> None:
    page = html.render(report(), GATES)
    assert "default-src 'none'" in page
    body = page.partition("<body>")[2]
    assert "<script" not in page and "http:" not in body.replace('xmlns="http:', "") and "url(" not in page
    assert escape(show_name(HOSTILE, 32)) in page and show_name(HOSTILE, 32) not in page


def test_html_is_well_formed_and_tells_all_the_console_tells() -> None:
    page = html.render(report(), GATES)
    body = ET.fromstring(f"<body>{page.partition('<body>')[2].partition('</body>')[0]}</body>")
    shown = " ".join("".join(body.itertext()).split())
    for section in sections(report(), GATES):
        assert section.title in shown
        for text in (*(v.text for v in section.verdicts), *section.notes):
            assert " ".join(text.split()) in shown


def test_charts_draw_each_contender_and_layer() -> None:
    page = html.render(report(), GATES)
    b = next(b for b in report().builds if b.measure and b.layers)
    assert b.measure is not None
    assert charts.speedups([b]).count("<circle") == len(b.measure.comparisons)
    assert charts.latencies("x", b.measure).count("<g>") == sum(bool(c.bursts_us) for c in b.measure.contenders)
    assert charts.layer_times(b.layers).count("<title>") == len(b.layers)
    assert charts.layer_times(b.layers) in page


def test_charts_of_nothing_are_empty() -> None:
    bare = BuildReport(BuildFacts("m@x86", "m", "x86", "fp32", 1), layers=(LayerFacts("k", ("n",), 0.0),))
    assert charts.speedups([bare]) == charts.layer_times(bare.layers) == ""
    assert "<svg" not in html.render(Report((bare,)))


def test_junit_is_xml_that_counts_its_cases() -> None:
    root = ET.fromstring(junit.render(report(), GATES).encode())
    verify, performance = root
    assert [verify.get(k) for k in ("tests", "failures", "errors", "skipped")] == ["4", "1", "1", "1"]
    assert [performance.get(k) for k in ("tests", "failures", "skipped")] == ["3", "1", "1"]
    assert "</testcase>" in (verify[1].get("name") or "")
    assert len(ET.fromstring(junit.render(report()))) == 1  # without gates no performance suite


def test_json_comes_back_unchanged() -> None:
    text = report_json.render(report())
    assert report_json.parse(text) == report()
    assert report_json.render(report_json.parse(text)) == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99, "report": {}}', '{"schema": 1, "report": {"builds": 3}}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        report_json.parse(text, where="old.json")


def test_only_the_expensive_layers_are_shown() -> None:
    layers = tuple(LayerFacts(f"k{i}", (f"n{i}",), float(i)) for i in range(1, 31))
    many = Report((BuildReport(BuildFacts("m@x86", "m", "x86", "fp32", 1), layers=layers),))
    shown = next(s for s in sections(many, layers=3) if s.title == "Layers of m@x86")
    assert [row[1] for row in shown.tables[0].rows] == ["k30", "k29", "k28"]
    assert "the 3 most expensive of 30 layers are shown: 19% of the time" in shown.notes


@pytest.mark.parametrize(("us", "text"), [
    (0.5, "0.50 us"), (9.994, "9.99 us"), (9.996, "10.0 us"), (999.4, "999 us"), (999.6, "1.00 ms"), (12_345, "12.3 ms"),
    (999_600, "1.00 s"), (75e6, "75.0 s"),
])
def test_times_have_three_digits_in_the_unit_that_suits(us: float, text: str) -> None:
    assert show_time(us) == text


def test_sizes() -> None:
    assert [show_bytes(n) for n in (0, 999, 1000, 47_300_000, 3.2e9)] == ["0 B", "999 B", "1.00 kB", "47.3 MB", "3.20 GB"]


def of_an_emulated_device(*kernels: CountedKernel, why: str = "") -> str:
    measure = MeasureFacts(1, 0, 0.0, (), (), counted=kernels, not_counted=why)
    (found,) = [s for s in sections(Report((BuildReport(BuildFacts("net@a53", "net", "a53", "fp32", 1, 1, 1, 1.0, 3),
                                                        measure=measure),))) if s.title.startswith("Counted")]
    return "\n".join([found.title, *("  ".join(row) for table in found.tables for row in table.rows), *found.notes])


def test_what_is_counted_stands_under_its_own_names() -> None:
    """Kernels of one name together; nothing of it is a time."""
    some = (CountedKernel("conv", 1, 600_000, 9e5), CountedKernel("pool", 4, 1_500_000, 2e6),
            CountedKernel("conv", 2, 1_400_000, 1e6))
    assert of_an_emulated_device(*some) == """\
Counted: net@a53
conv  3  2.00 million  57.1%  1.90 million
pool  4  1.50 million  42.9%  2.00 million
3.50 million instructions, 3.90 million static cycles (llvm-mca, cache model) in a run, on one thread: counted in the \
kernels' machine code, no times"""
    assert of_an_emulated_device(CountedKernel("conv", 1, 950)) == """\
Counted: net@a53
conv  1  950  100.0%
950 instructions in a run, on one thread: counted in the kernels' machine code, no times; static cycles need llvm-mca \
(Debian: the package llvm) and its model of the CPU"""
    assert of_an_emulated_device(why="too much code") == "Counted: net@a53\ninstructions cannot be counted: too much code"


@pytest.mark.parametrize(("n", "text"), [(0, "0"), (999, "999"), (1000, "1.00 thousand"), (45_600, "45.6 thousand"),
                                         (306_800_000, "307 million"), (2.5e9, "2.50 billion")])
def test_counts(n: float, text: str) -> None:
    assert show_count(n) == text
