"""A workplace for whole builds: the current folder is empty, and all tests of a process share a store (kernels are made
once); tests that count tasks ask for a store of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def workplace(tmp_path, monkeypatch, shared_store):
    """An empty folder, the current one; a store that other tests have filled."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "TC_DEBUG", "TC_CHECK", "TC_DUMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TC_STORE", str(shared_store))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def own_store(workplace, tmp_path, monkeypatch):
    """A store nobody has used."""
    monkeypatch.setenv("TC_STORE", str(tmp_path / "own-store"))
    return workplace
