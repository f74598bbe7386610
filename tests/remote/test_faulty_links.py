"""A link that cuts, stalls or damages anywhere: the result is right, or there is an error in time; nothing is left."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import board_models
import numpy as np
import pytest
from faults import run_once

from toolchain.core.errors import DeviceError
from toolchain.remote.board import Board, LostError
from toolchain.remote.fake import Faults, FaultyTransport
from toolchain.remote.frames import DamagedFrame, Decoder, Frame, Kind
from toolchain.remote.session import Limits, Session
from toolchain.remote.transport import LocalTransport
from toolchain.targets.llvm.runner_program import runner_program

LIMITS = Limits(start_s=0.5, request_s=1.0, silence_s=0.5, grace_s=0.5)
MOST_BYTES = 36_000             # of what a run sends


def attempt(folder: Path, artifact: Path, faults: Faults) -> np.ndarray | DeviceError:
    try:
        transport = FaultyTransport(LocalTransport(), faults)
        with Session(Board("desk", "local", folder=str(folder)), transport, runner_program("x86_64"), LIMITS) as session:
            return run_once(session, artifact)
    except DeviceError as error:
        return error


@pytest.mark.parametrize("kind", ["cut_to", "cut_of", "stall_to", "stall_of", "flip_to", "flip_of"])
def test_wherever_it_happens_there_is_an_error_or_the_right_result(tmp_path, artifact, kind):
    chance = random.Random(kind)
    most = MOST_BYTES if kind.endswith("_to") else 1600
    places = [0, 1, 31, 32, 33, *(chance.randrange(most) for _ in range(3 if kind.startswith("stall") else 12))]
    for at in places:
        begun = time.monotonic()
        found = attempt(tmp_path, artifact, replace(Faults(), **{kind: at}))
        assert time.monotonic() - begun < 60, (kind, at)        # it ended: how fast is benchmarks/devices.py's question
        if isinstance(found, DeviceError):
            assert "desk" in str(found) or "cut" in found.what, found
        else:
            np.testing.assert_array_equal(found, board_models.expected(board_models.X))
        end = time.monotonic() + 3
        while list(tmp_path.iterdir()) and time.monotonic() < end:
            time.sleep(0.02)
        assert list(tmp_path.iterdir()) == [], (kind, at)


def test_without_faults_it_works(tmp_path, artifact):
    np.testing.assert_array_equal(attempt(tmp_path, artifact, Faults()), board_models.expected(board_models.X))


def test_a_program_that_cannot_be_sent(tmp_path, artifact):
    full = attempt(tmp_path, artifact, Faults(disk_full=True))
    assert isinstance(full, DeviceError) and "no space left" in full.what and "make room" in full.fix
    assert isinstance(attempt(tmp_path, artifact, Faults(refuse_put=True)), DeviceError)
    assert list(tmp_path.iterdir()) == []


class TestFrames:
    def test_any_cut_of_the_stream_gives_the_same_frames(self):
        frames = [Frame(Kind.RUN, 3, 7, 500, b""), Frame(Kind.SET, 0, 8, 0, bytes(range(256)) * 4), Frame(Kind.BEAT)]
        data = b"hello from a shell\n" + b"".join(f.encode() for f in frames)
        for size in (1, 2, 31, 32, 33, 1000, len(data)):
            decoder, found = Decoder(), []
            for at in range(0, len(data), size):
                found += decoder.feed(data[at:at + size])
            assert found == frames and decoder.preamble == b"hello from a shell\n"

    def test_a_damaged_frame_is_refused_wherever_the_damage_is(self):
        data = Frame(Kind.SET, 0, 8, 0, b"payload").encode()
        for at in range(4, len(data)):
            with pytest.raises(DamagedFrame):
                Decoder().feed(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1:] + data)

    def test_what_is_no_runner_is_noticed(self):
        decoder = Decoder(most_preamble_bytes=1000)
        with pytest.raises(DamagedFrame, match="that no runner sends"):
            for _ in range(100):
                decoder.feed(b"yes\n" * 10)


def test_a_broken_session_says_so_again(tmp_path, artifact):
    transport = FaultyTransport(LocalTransport(), Faults(cut_to=2000))
    with Session(Board("desk", "local", folder=str(tmp_path)), transport, runner_program("x86_64"), LIMITS) as session:
        with pytest.raises(LostError):
            run_once(session, artifact)
        with pytest.raises(LostError, match="cut"):
            session.request(Kind.FACTS)
