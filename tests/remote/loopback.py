"""Boards without boards: a real sshd with keys of its own, at an address of its own (`network`)."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from network import Network, kinds, new
from programs import program

from toolchain.remote.board import Board
from toolchain.remote.host_keys import fingerprint


def free_port(network: Network) -> int:
    """One that nobody listens on there; a port of this machine may be taken by others, 22 of a namespace may not."""
    if network.words:
        return 22
    with socket.socket() as s:
        s.bind((network.address, 0))
        port: int = s.getsockname()[1]
        return port


def make_key(path: Path, kind: str = "ed25519") -> Path:
    if not path.exists():
        subprocess.run([program("ssh-keygen"), "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True)
    return path


class Sshd:
    """A server as the present user, below `folder`; everything it started dies with `stop`, its network with `close`."""

    def __init__(self, folder: Path, sftp: bool = True, network: Network | None = None) -> None:
        self.network = network or new(kinds()[0])
        self.folder, self.port, self._process = folder, free_port(self.network), None
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.host_key = make_key(folder / "user_key"), make_key(folder / "host_key")
        shutil.copyfile(f"{self.key}.pub", folder / "authorized_keys")
        (folder / "board").mkdir(exist_ok=True)
        lines = {
            "Port": self.port, "ListenAddress": self.network.address, "HostKey": self.host_key, "PidFile": "none",
            "AuthorizedKeysFile": folder / "authorized_keys", "UsePAM": "no", "StrictModes": "no",
            "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "MaxStartups": "100", "PrintMotd": "no",
            **({"Subsystem": "sftp internal-sftp"} if sftp else {}),
        }
        (folder / "config").write_text("".join(f"{k} {v}\n" for k, v in lines.items()))
        self.start()

    _process: subprocess.Popen[bytes] | None

    def start(self) -> None:
        with suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)              # Debian's wants it for its unprivileged half
        with (self.folder / "log").open("ab") as log:
            begun = log.tell()
            self._process = subprocess.Popen(
                [*self.network.words, program("sshd"), "-D", "-e", "-f", self.folder / "config"], stderr=log,
                start_new_session=True)
        for _ in range(200):
            if b"Server listening" in (self.folder / "log").read_bytes()[begun:]:
                return
            time.sleep(0.02)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()[-500:]}")

    def stop(self, number: int = signal.SIGKILL) -> None:
        """The listener and its sessions' processes; what those started is left to find out for itself."""
        if self._process is None:
            return
        for pid in [*descendants(self._process.pid, "sshd"), self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        self._process.wait()
        self._process = None

    def power_off(self) -> None:
        """Everything dies at once, and what lay in memory is gone."""
        pids = [] if self._process is None else descendants(self._process.pid)
        self.stop()
        for pid in {*pids, *processes_of(self.board_folder), *self.network.pids()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.board_folder)
        self.board_folder.mkdir()

    def close(self) -> None:
        self.power_off()
        self.network.close()

    @property
    def board_folder(self) -> Path:
        return self.folder / "board"

    def fingerprint(self) -> str:
        import base64

        return fingerprint(base64.b64decode(Path(f"{self.host_key}.pub").read_text().split()[1]))

    def board(self, name: str = "kitchen", **changes: object) -> Board:
        fields: dict[str, object] = {
            "name": name, "host": self.network.address, "port": self.port, "key_file": str(self.key),
            "fingerprint": self.fingerprint(), "folder": str(self.board_folder), **changes}
        return Board(**fields)          # type: ignore[arg-type]


def descendants(pid: int, name: str = "") -> list[int]:
    """Processes below one, innermost first; only those of that name, where given."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError):
                head, _, rest = (entry / "stat").read_text().rpartition(")")
                names[int(entry.name)] = head.partition("(")[2]
                children.setdefault(int(rest.split()[1]), []).append(int(entry.name))

    def below(of: int) -> list[int]:
        return [p for child in children.get(of, []) for p in (*below(child), child)]

    return [p for p in below(pid) if not name or names.get(p, "").startswith(name)]


def processes_of(folder: Path) -> list[int]:
    """Whose command line, or working folder, names the folder: runners and what they started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if os.fsencode(folder) in (entry / "cmdline").read_bytes() and b"serve" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
