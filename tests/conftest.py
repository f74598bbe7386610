"""Fixtures of every test: `golden` compares text with a file, and `pytest --update-golden` writes those files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None)      # no test asserts a time
settings.load_profile("project")

GOLDEN = Path(__file__).parent / "golden"


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
