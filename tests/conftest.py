"""Fixtures of every test: `golden` compares text with a file, and `pytest --update-golden` writes those files; what `tally`
is told of many cases stands, added up, at the end of the run."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None)      # no test asserts a time
settings.load_profile("project")

GOLDEN = Path(__file__).parent / "golden"
TALLY = "tally of "


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden texts instead of comparing with them")


def compare(text: str, path: Path, *, update: bool) -> None:
    """`text` is what `path` holds; a difference is shown line by line."""
    if not text.endswith("\n"):
        text += "\n"
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    assert path.exists(), f"no {path}; write it with: pytest --update-golden"
    assert text.splitlines() == path.read_text().splitlines(), f"differs from {path}"


@pytest.fixture
def golden_file(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """golden_file(text, path) compares with a file of the test's own choice."""
    update = request.config.getoption("--update-golden")
    return lambda text, path: compare(text, path, update=update)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """golden(text) compares with golden/<test file>/<test>.txt; golden(text, "name") with <test>.name.txt."""
    file = Path(request.node.fspath).stem.removeprefix("test_")
    test = re.sub(r"[^A-Za-z0-9_.+-]", "_", request.node.name.removeprefix("test_"))
    update = request.config.getoption("--update-golden")

    def check(text: str, name: str = "") -> None:
        compare(text, GOLDEN / file / (f"{test}.{name}.txt" if name else f"{test}.txt"), update=update)

    return check


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[[str, Counter[str]], None]:
    """tally(cases, verdicts) counts for the end of the run."""
    return lambda cases, verdicts: record_property(f"{TALLY}{cases}", dict(verdicts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    calls = (r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "call")
    for name, verdicts in (told for call in calls for told in call.user_properties if told[0].startswith(TALLY)):
        tallies[name.removeprefix(TALLY)].update(verdicts)
    for cases, verdicts in tallies.items():
        each = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
        terminalreporter.write_line(f"{verdicts.total()} {cases}: {each}")
