"""Boards without boards: a real sshd on loopback with keys of its own, and a TCP proxy between it and us that misbehaves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from programs import program

from toolchain.remote.board import Board
from toolchain.remote.host_keys import fingerprint


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def make_key(path: Path, kind: str = "ed25519") -> Path:
    if not path.exists():
        subprocess.run([program("ssh-keygen"), "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True)
    return path


class Sshd:
    """A server as the present user, below `folder`; everything it started dies with `stop`."""

    def __init__(self, folder: Path, sftp: bool = True) -> None:
        self.folder, self.port, self._process = folder, free_port(), None
        folder.mkdir(parents=True, exist_ok=True)
        self.key, self.host_key = make_key(folder / "user_key"), make_key(folder / "host_key")
        shutil.copyfile(f"{self.key}.pub", folder / "authorized_keys")
        (folder / "board").mkdir(exist_ok=True)
        lines = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": self.host_key, "PidFile": "none",
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
            self._process = subprocess.Popen(
                [program("sshd"), "-D", "-e", "-f", self.folder / "config"], stderr=log, start_new_session=True)
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
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
        for pid in {*pids, *processes_of(self.board_folder)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.board_folder)
        self.board_folder.mkdir()

    @property
    def board_folder(self) -> Path:
        return self.folder / "board"

    def fingerprint(self) -> str:
        import base64

        return fingerprint(base64.b64decode(Path(f"{self.host_key}.pub").read_text().split()[1]))

    def board(self, name: str = "kitchen", **changes: object) -> Board:
        fields: dict[str, object] = {
            "name": name, "host": "127.0.0.1", "port": self.port, "key_file": str(self.key),
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


class Proxy:
    """Forwards connections to a port until it is told otherwise. cut_after: bytes towards the server, then both ends are
    reset."""

    def __init__(self, port: int, cut_after: int = 0, delay_s: float = 0.0) -> None:
        self.to, self.cut_after, self.delay_s, self.sent = port, cut_after, delay_s, 0
        self.frozen = threading.Event()                         # nothing passes any more, and nobody is told
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                for s in (client, server):
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=(source, sink, counted), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.frozen.is_set():
                    continue
                if counted:
                    left = self.cut_after - self.sent if self.cut_after else len(data)
                    sink.sendall(data[:max(0, left)])
                    self.sent += len(data)
                    if self.cut_after and self.sent >= self.cut_after:
                        self.cut()
                        return
                else:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset every connection, as a router that forgets them does."""
        for s in self._sockets[1:]:
            with suppress(OSError):
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        del self._sockets[1:]

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
