"""The report as JSON, and back: what `--json` writes and `--fail-on-regression` compares with."""

from __future__ import annotations

import json

from toolchain.core.errors import UsageError
from toolchain.report.facts import SCHEMA, Report, from_json, to_json


def render(report: Report, *, one_line: bool = False) -> str:
    """{"schema": 1, "report": {...}}, one spelling for equal reports, in ASCII; ends with a newline."""
    data = {"schema": SCHEMA, "report": to_json(report)}
    return json.dumps(data, indent=None if one_line else 1, allow_nan=False) + "\n"


def parse(text: str, *, where: str = "") -> Report:
    """The report in such a text. Raises UsageError when it is none, or of another schema."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise UsageError(f"a report of schema {data['schema']}; this version reads schema {SCHEMA}", where=where,
                             fix="make it again with this version: tc report --json FILE")
        return from_json(Report, data["report"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"not a report: {error}", where=where, fix="make one with: tc report --json FILE") from error
