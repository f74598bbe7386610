"""A board behind a real sshd: in a network namespace where that is permitted, else at an address of loopback."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import board_models
import network
import pytest
from faults import World
from loopback import Sshd


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return board_models.artifact(tmp_path_factory.mktemp("artifact"), "work")


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, artifact: Path) -> Iterator[World]:
    """Its parameter is a kind of network; left out, the best that is possible here."""
    kind = getattr(request, "param", network.kinds()[0])
    sshd = Sshd(tmp_path_factory.mktemp("board"), network=network.new(kind))
    yield World(sshd, artifact, random.Random(1))
    sshd.close()
