"""What is known of a board before anything is said to it, and the errors that talking to it may end in."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.core.errors import DeviceError

LOCAL = "local"             # as `host`: this machine, without SSH (an emulator in `exec_prefix` makes a board of it)


@dataclass(frozen=True, slots=True)
class Board:
    """One device of the deployfile. folder: below it a session makes a folder of its own, and the lease lies there.

    fingerprint: of the host key, "SHA256:..."; empty: known_hosts decides. cpus: where models run; empty: anywhere.
    """

    name: str
    host: str
    user: str = ""
    port: int = 22
    key_file: str = ""
    jump: str = ""
    fingerprint: str = ""
    cpus: tuple[int, ...] = ()
    folder: str = "/tmp"
    exec_prefix: str = ""
    cool_below_c: float = 0.0

    @property
    def where(self) -> str:
        """For messages: who is meant, by name and by address."""
        at = f"{self.user}@{self.host}" if self.user else self.host
        return f"device {self.name!r} ({at}{'' if self.port == 22 else f':{self.port}'})"


class LostError(DeviceError):
    """The connection or the runner is gone: nothing more comes of this session."""


class CrashError(DeviceError):
    """A model's code died on the board; the session goes on. signal: its number, 0 where it ended otherwise."""

    @property
    def signal(self) -> int:
        words = self.what.rpartition("signal ")[2].split()
        return int(words[0]) if words and words[0].isdecimal() else 0


class TooLongError(DeviceError):
    """A request took longer than it may and was ended on the board; the session goes on."""


class OtherCpuError(DeviceError):
    """The runner's program is for another CPU than the board has."""


class HostKeyError(DeviceError):
    """The board's host key is not the one to trust; `fingerprint` is what it showed."""

    fingerprint = ""
    algorithm = ""


class UnknownHostKey(HostKeyError):
    pass


class ChangedHostKey(HostKeyError):
    pass
