"""known_hosts as OpenSSH reads it, and what becomes of keys that are unknown, changed or revoked."""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import board_models
import network
import numpy as np
import pytest
from faults import World, run_once, works
from loopback import Sshd, make_key, program

from toolchain.core.errors import DeviceError
from toolchain.remote import ssh
from toolchain.remote.board import Board, ChangedHostKey, UnknownHostKey
from toolchain.remote.host_keys import fingerprint, host_name, known_keys, matches, pin, pins_file

KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519" + b"k" * 36).decode()


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TC_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "config"


class TestFiles:
    @pytest.mark.parametrize(("patterns", "name", "expected"), [
        ("board", "board", True), ("board,10.0.0.1", "10.0.0.1", True), ("board", "boards", False), ("*.lab", "a.lab", True),
        ("10.0.0.?", "10.0.0.7", True), ("*.lab,!b.lab", "b.lab", False), ("!b.lab", "a.lab", False),
        ("[board]:2222", "[board]:2222", True), ("board", "[board]:2222", False), ("Board", "bOARD", True),
    ])
    def test_patterns(self, patterns, name, expected):
        assert matches(patterns, name) == expected

    def test_hashed_names(self, tmp_path):
        file = tmp_path / "known"
        file.write_text(f"[board]:2222 ssh-ed25519 {KEY}\n")
        subprocess.run([program("ssh-keygen"), "-q", "-H", "-f", file], check=True, capture_output=True)
        assert file.read_text().startswith("|1|")
        assert len(known_keys("board", 2222, [file])) == 1
        assert known_keys("board", 22, [file]) == []

    def test_lines_that_mean_something_else_do_not_spoil_the_file(self, tmp_path):
        file = tmp_path / "known"
        file.write_text(f"# a comment\n\n@cert-authority * ssh-ed25519 {KEY}\nnonsense\nboard ssh-ed25519 not-base-64!\n"
                        f"@revoked board ssh-ed25519 {KEY}\nboard ssh-ed25519 {KEY} comment\n")
        found = known_keys("board", 22, [file])
        assert [(k.revoked, k.place.rpartition(":")[2]) for k in found] == [(True, "6"), (False, "7")]

    def test_pins_replace_each_other(self):
        pin("board", 22, "ssh-ed25519", b"a")
        pin("other", 2222, "ssh-ed25519", b"b")
        file = pin("board", 22, "ssh-ed25519", b"c")
        assert file == pins_file()
        assert [k.key for k in known_keys("board", 22)] == [b"c"]
        assert [k.key for k in known_keys("other", 2222)] == [b"b"]

    def test_fingerprints_are_those_of_ssh_keygen(self, tmp_path):
        key = make_key(tmp_path / "key")
        said = subprocess.run([program("ssh-keygen"), "-lf", key], capture_output=True, text=True, check=True).stdout
        assert fingerprint(base64.b64decode(Path(f"{key}.pub").read_text().split()[1])) == said.split()[1]

    def test_names(self):
        assert (host_name("a", 22), host_name("a", 23)) == ("a", "[a]:23")


class TestConnecting:
    def test_an_unknown_key_is_refused_until_it_is_pinned(self, world: World):
        board = replace(world.sshd.board(), fingerprint="")
        with pytest.raises(UnknownHostKey) as caught:
            ssh.connect(board)
        assert caught.value.fingerprint == world.sshd.fingerprint()
        assert "is not known yet: SHA256:" in caught.value.what
        assert f"tc devices add kitchen --accept {world.sshd.fingerprint()}" in caught.value.fix
        address, algorithm, key = ssh.fetch_host_key(board)
        pin(address.host, address.port, algorithm, key)
        ssh.connect(board).close()

    def test_a_changed_key_is_another_error(self, world: World):
        board = replace(world.sshd.board(), fingerprint="")
        pin(board.host, board.port, "ssh-ed25519", base64.b64decode(make_other(world)))
        with pytest.raises(ChangedHostKey) as caught:
            ssh.connect(board)
        assert "has changed: it shows SHA256:" in caught.value.what and f"{pins_file()}:1" in caught.value.what
        assert f"tc devices rekey kitchen --accept {world.sshd.fingerprint()}" in caught.value.fix

    def test_a_wrong_fingerprint_in_the_deployfile_is_a_changed_key(self, world: World):
        with pytest.raises(ChangedHostKey, match="write the new `fingerprint` into the deployfile"):
            ssh.connect(replace(world.sshd.board(), fingerprint="SHA256:" + "B" * 43))

    def test_the_users_known_hosts_count_hashed_or_not(self, world: World, tmp_path):
        public = Path(f"{world.sshd.host_key}.pub").read_text().split()
        folder = tmp_path / ".ssh"
        folder.mkdir()
        (folder / "known_hosts").write_text(
            f"{name_of(world)} {public[0]} {public[1]}\n@cert-authority * {public[0]} x\n")
        subprocess.run([program("ssh-keygen"), "-q", "-H", "-f", folder / "known_hosts"], check=True, capture_output=True)
        ssh.connect(replace(world.sshd.board(), fingerprint="")).close()

    def test_a_revoked_key_is_refused(self, world: World, tmp_path):
        public = Path(f"{world.sshd.host_key}.pub").read_text().split()
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "known_hosts").write_text(
            f"{name_of(world)} {public[0]} {public[1]}\n@revoked * {public[0]} {public[1]}\n")
        with pytest.raises(ChangedHostKey, match="marked @revoked"):
            ssh.connect(replace(world.sshd.board(), fingerprint=""))

    def test_a_jump_host(self, world: World, tmp_path: Path):
        """To a board that only the jump host reaches; both are verified, each by its own key, which comes the same way."""
        board = Sshd(tmp_path / "board", network=network.behind(world.sshd.network))
        try:
            alone = replace(board.board(), fingerprint="", key_file=str(world.sshd.key))
            shutil.copyfile(f"{world.sshd.key}.pub", board.folder / "authorized_keys")
            jump = replace(alone, jump=f"{world.sshd.network.address}:{world.sshd.port}")
            if world.sshd.network.words:
                with pytest.raises(DeviceError):            # by whatever this machine's default route leads to
                    ssh.connect(alone, 1.0)
            for connect in (ssh.connect, ssh.fetch_host_key):
                with pytest.raises(UnknownHostKey, match="jump host of device"):
                    connect(jump)
            learn(replace(world.sshd.board(), fingerprint=""))
            with pytest.raises(UnknownHostKey, match=r"\): its host key is not known yet") as caught:
                ssh.connect(jump)
            assert caught.value.fingerprint == board.fingerprint()
            learn(jump)
            with world.session(jump) as session:
                np.testing.assert_array_equal(run_once(session, world.artifact), board_models.expected(board_models.X))
            board.stop()
            with pytest.raises(DeviceError, match="jump host does not get through"):
                ssh.connect(jump)
        finally:
            board.close()
        works(world)


def learn(board: Board) -> None:
    address, algorithm, key = ssh.fetch_host_key(board)
    pin(address.host, address.port, algorithm, key)


def name_of(world: World) -> str:
    return host_name(world.sshd.network.address, world.sshd.port)


def make_other(world: World) -> str:
    key = make_key(world.sshd.folder / "other_key")
    return Path(f"{key}.pub").read_text().split()[1]
