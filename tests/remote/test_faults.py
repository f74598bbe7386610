"""Each fault of the matrix: an error that says what to do, in time, and nothing left behind on the board."""

from __future__ import annotations

import time

import network
import pytest
from faults import DEADLINE_S, FAULTS, World, check_after, works

from toolchain.core.errors import DeviceError
from toolchain.remote import ssh


@pytest.mark.parametrize("world", network.kinds(), indirect=True)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_and_leaves_nothing(world: World, name: str) -> None:
    error = FAULTS[name](world)
    assert world.sshd.board().name in str(error)
    assert check_after(world) == []


@pytest.mark.parametrize("world", network.kinds(), indirect=True)
def test_a_board_that_is_switched_off_is_an_error_in_time(world: World) -> None:
    with world.cable() as cable:
        cable.freeze()
        begun = time.monotonic()
        with pytest.raises(DeviceError, match=r"no answer within|cannot be reached: No route to host") as caught:
            ssh.connect(world.through(cable), 2.0)
        assert time.monotonic() - begun < DEADLINE_S and caught.value.fix
        cable.thaw()
        works(world)
