"""A board behind a real sshd, shared by the tests of a process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import board_models
import pytest
from faults import World
from loopback import Sshd


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return board_models.artifact(tmp_path_factory.mktemp("artifact"), "work")


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, artifact: Path) -> Iterator[World]:
    sshd = Sshd(tmp_path_factory.mktemp("board"))
    yield World(sshd, artifact, random.Random(1))
    sshd.power_off()
