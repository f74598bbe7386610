"""What an installed package holds: everything that works in a checkout works without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of modules and data that becomes the wheel, built in a tree of links: nothing is written into ours."""
    if find_spec("setuptools") is None:                     # not importorskip: it replaces distutils, which others loaded
        pytest.skip("setuptools is not installed")
    tree = tmp_path_factory.mktemp("checkout")
    for name in ("toolchain", "recipes", "pyproject.toml", "setup.py", "README.md"):
        if (ROOT / name).exists():
            (tree / name).symlink_to(ROOT / name)
    stale = tree / "lib" / "toolchain" / "removed.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("left over from an earlier build")
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", "lib"], cwd=tree,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return tree / "lib"


def test_every_module_and_data_file_is_there(built: Path) -> None:
    ours = {p.relative_to(ROOT) for p in (ROOT / "toolchain").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    theirs = {p.relative_to(built) for p in built.rglob("*") if p.is_file()}
    assert ours - theirs == set()
    assert {p.parts[1] for p in theirs - ours} == {"recipes"}
    assert Path("toolchain/targets/llvm/runtime/runtime.c") in theirs


def test_init_copies_a_recipe_of_the_installed_package(built: Path, tmp_path: Path) -> None:
    script = "import sys; from toolchain.cli import main; sys.exit(main(['init', 'new', '--recipe', 'quickstart']))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(built)})
    assert done.returncode == 0, done.stderr
    recipe = ROOT / "recipes" / "quickstart"
    copied = {p.name for p in (tmp_path / "new").iterdir() if not p.name.startswith(".")}
    assert copied == {p.name for p in (built / "toolchain" / "recipes" / "quickstart").iterdir()}
    assert (tmp_path / "new" / "deployfile.yaml").read_bytes() == (recipe / "deployfile.yaml").read_bytes()


def test_every_recipe_is_packed_whole(built: Path) -> None:
    """What git tracks of a recipe must have one of the endings that setup.py copies."""
    tracked = subprocess.run(["git", "ls-files", "recipes/*/*"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    assert {name for name in tracked.stdout.split() if not (built / "toolchain" / name).is_file()} == set()


def test_a_source_distribution_holds_what_the_readme_points_to(tmp_path: Path) -> None:
    """Pages, tests and benchmarks travel with the source."""
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    tree = tmp_path / "checkout"
    tree.mkdir()
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("build", "dist") and path.suffix != ".egg-info":
            (tree / path.name).symlink_to(path)
    done = subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)], cwd=tree,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    held = set((tmp_path / "toolchain.egg-info" / "SOURCES.txt").read_text().split("\n"))
    pages = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert {*pages, "pyproject.toml", "setup.py", "Makefile", "docs/generate.py", "tests/conftest.py"} - held == set()
    assert any(name.startswith("tests/golden/") for name in held)
    assert not [name for name in held if re.search(r"recipes/\w+/(build|\.tc)/", name)]


def test_every_dependency_has_a_range_and_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    lines = {line.partition('"')[2].partition('"')[0]: line for line in text.splitlines() if line.startswith('    "')}
    for requirement in project["dependencies"]:
        assert ">=" in requirement and "<" in requirement, requirement
        assert "# " in lines[requirement], requirement
