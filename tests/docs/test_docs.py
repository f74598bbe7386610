"""The documents say what the code says: generated pages are up to date, links lead somewhere, commands exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from toolchain.cli.commands import COMMANDS, EXIT_CODES, tc

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *(ROOT / "docs").glob("*.md")])
OUR_FILE = re.compile(r"`((?:toolchain|tests|docs|recipes|benchmarks)/[A-Za-z0-9_./-]*)`")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:\$ )?(?:python -m toolchain|tc) ([a-z]+)", re.MULTILINE)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["deployfile.md", "operators.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    text = generator().pages()[name]
    assert (ROOT / "docs" / name).read_text() == text, "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text()
    named = [ROOT / name for name in OUR_FILE.findall(text)]
    linked = [page.parent / link for link in LINK.findall(text) if "://" not in link]
    assert not [str(path) for path in (*named, *linked) if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    assert set(COMMAND.findall(page.read_text())) <= {*COMMANDS, "qdisc"}


def test_the_workflow_calls_tc_as_it_can_be_called() -> None:
    """Commands and options exist, and the store that is cached is the one that is used."""
    workflow = yaml.safe_load((ROOT / "docs" / "github-workflow.yaml").read_text())
    job = workflow["jobs"]["deploy"]
    calls = [shlex.split(step["run"]) for step in job["steps"] if step.get("run", "").startswith("tc ")]
    assert [name for _, name, *_ in calls] == ["doctor", "build", "report", "gc"]
    for _, name, *arguments in calls:
        options = {o for p in tc.get_command(click.Context(tc), name).params for o in p.opts}
        assert {a for a in arguments if a.startswith("-")} <= options
    cache = next(step["with"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache@"))
    assert job["env"]["TC_STORE"] == "${{ github.workspace }}/" + cache["path"]


def test_readme_names_every_command_and_exit_code() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [name for name in COMMANDS if f"`tc {name}" not in text]
    assert not [code for code, meaning in EXIT_CODES.items() if f"| {code} | {meaning}" not in text]


def test_readme_shows_the_environment_variables() -> None:
    from toolchain.core import settings

    variables = re.findall(r"^    ([A-Z_]+)", str(settings.__doc__), re.MULTILINE)
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert not [name for name in variables if name not in text]
