"""Each fault of the matrix: an error that says what to do, in time, and nothing left behind on the board."""

from __future__ import annotations

import pytest
from faults import FAULTS, World, check_after


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_and_leaves_nothing(world: World, name: str) -> None:
    error = FAULTS[name](world)
    assert world.sshd.board().name in str(error)
    assert check_after(world) == []
