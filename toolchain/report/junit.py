"""Verification and performance gates as JUnit XML, which every CI server shows as tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from toolchain.report.facts import BuildReport, Report
from toolchain.report.gate import GateResult
from toolchain.report.tables import show_error, show_name, show_time


def render(report: Report, gates: Sequence[GateResult] = ()) -> str:
    """One suite `verify` with a case per build, and a suite `performance` with a case per gate, if there are gates."""
    root = ET.Element("testsuites", name="toolchain")
    _suite(root, "verify", [_verify_case(b) for b in report.builds])
    if gates:
        _suite(root, "performance", [_gate_case(g) for g in gates])
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, cases: Sequence[ET.Element]) -> None:
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    suite = ET.SubElement(root, "testsuite", name=name, tests=str(len(cases)), failures=str(counts["failure"]),
                          errors=str(counts["error"]), skipped=str(counts["skipped"]))
    suite.extend(cases)


def _verify_case(b: BuildReport) -> ET.Element:
    case = ET.Element("testcase", classname="verify", name=show_name(b.build.name, 200))
    if b.verify is None:
        ET.SubElement(case, "skipped", message="not verified")
    elif b.verify.error:
        ET.SubElement(case, "error", message=show_name(b.verify.error, 500))
    elif not b.verify.passed:
        bad = [o for o in b.verify.outputs if not o.passed]
        message = f"disagrees with {show_name(b.verify.reference)} in {len(bad)} of {len(b.verify.outputs)} outputs"
        failure = ET.SubElement(case, "failure", message=message)
        lines = [f"{show_name(o.output, 200)}: max abs error {show_error(o.max_abs_error)}, max rel error "
                 f"{show_error(o.max_rel_error)}, {show_error(o.tolerance_used)} times the tolerance" for o in bad]
        if b.verify.first_bad_node:
            lines.append(f"first wrong node: {show_name(b.verify.first_bad_node, 200)}")
        if b.verify.repro:
            lines.append(f"to reproduce: {show_name(b.verify.repro, 500)}")
        failure.text = "\n".join(lines)
    return case


def _gate_case(gate: GateResult) -> ET.Element:
    case = ET.Element("testcase", classname="performance", name=show_name(gate.build, 200))
    if gate.status == "skipped":
        ET.SubElement(case, "skipped", message=show_name(gate.reason, 500))
    elif gate.status == "regressed":
        message = f"{show_time(gate.before_us)} before, {show_time(gate.now_us)} now ({gate.change:+.1%})"
        ET.SubElement(case, "failure", message=message)
    return case
