"""Where a board of the tests stands: a network namespace with an address and a cable of its own, where that is permitted;
else an address of this machine's loopback. Tests are the same in both: what they ask of the network is a `Cable`.

    Namespace    freeze: the interface goes down there; cut: the kernel there resets its connections
    Loopback     a proxy on the way does both
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

from programs import program
from proxy import Proxy

NAMESPACES, LOOPBACK = "namespaces", "loopback"
SUBNETS = 1 << 14               # of four addresses each, in 198.18.0.0/16: set apart for tests of networks (RFC 2544)
PREFIX = "tc-test-"             # of names: PREFIX, the process that made it, the number of its subnet
_loopback = itertools.count(2)


class Cable(Protocol):
    """The way to a board, for tests to disturb. address: where it begins here."""

    address: tuple[str, int]

    def freeze(self) -> None:
        """Nothing passes any more, and nobody is told."""

    def thaw(self) -> None: ...

    def cut(self) -> None:
        """Every connection is reset, at both ends."""


class Network(Protocol):
    """A place for an SSH server. words: what starts a program there; address: its own."""

    words: tuple[str, ...]
    address: str

    @contextmanager
    def cable(self, port: int) -> Iterator[Cable]: ...

    def pids(self) -> list[int]:
        """Processes that are known to be there."""

    def close(self) -> None: ...


class Loopback:
    """An address of 127.0.0.0/8 that no other board of this process has."""

    words: tuple[str, ...] = ()

    def __init__(self, address: str = "") -> None:
        n = next(_loopback)
        self.address = address or f"127.{1 + os.getpid() % 250}.{n // 250}.{1 + n % 250}"

    @contextmanager
    def cable(self, port: int) -> Iterator[Cable]:
        proxy = Proxy(self.address, port)
        try:
            yield proxy
        finally:
            proxy.close()

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        pass


class Namespace:
    """A network namespace behind a pair of virtual interfaces. behind: the namespace at the cable's other end, which alone
    can reach this one; None: this machine.

    Raises OSError: it may not be made.
    """

    def __init__(self, behind: Namespace | None = None) -> None:
        _remove_stale()
        self.name, number = _claim()
        base = number << 2
        here, self.address = (f"198.18.{base >> 8}.{(base & 255) + n}" for n in (1, 2))
        self.words = _within(self.name)
        outer = self._outer = () if behind is None else ("-n", behind.name)
        interface = self._interface = f"tcv{number}"
        try:
            _ip(*outer, "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip(*outer, "addr", "add", f"{here}/30", "dev", interface)
            _ip(*outer, "link", "set", interface, "up")
            _ip("-n", self.name, "addr", "add", f"{self.address}/30", "dev", "eth0")
            self._link("lo", "up")
            self._link("eth0", "up")
        except OSError:
            self.close()
            raise

    @contextmanager
    def cable(self, port: int) -> Iterator[Cable]:
        try:
            yield _Veth(self, port)
        finally:
            self.mend()

    def mend(self) -> None:
        """The cable is in again, and this machine, which may have found out that nobody answers there, has found out."""
        self._link("eth0", "up")
        _ip(*self._outer, "neigh", "flush", "dev", self._interface)

    def _link(self, interface: str, state: str) -> None:
        _ip("-n", self.name, "link", "set", interface, state)

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def close(self) -> None:
        _remove(self.name)


class _Veth:
    """The cable of a namespace."""

    def __init__(self, namespace: Namespace, port: int) -> None:
        self._namespace, self.address = namespace, (namespace.address, port)

    def freeze(self) -> None:
        self._namespace._link("eth0", "down")

    def thaw(self) -> None:
        self._namespace.mend()

    def cut(self) -> None:
        _run([*self._namespace.words, program("ss"), "-K", "state", "established"])


def new(kind: str) -> Network:
    return Namespace() if kind == NAMESPACES else Loopback()


def behind(gate: Network) -> Network:
    """A place that only `gate` can reach; on loopback, where everything can, just another one."""
    return Namespace(gate) if isinstance(gate, Namespace) else Loopback()


def kinds() -> tuple[str, ...]:
    """What is possible here, the better one first."""
    return (NAMESPACES, LOOPBACK) if permitted() else (LOOPBACK,)


@cache
def permitted() -> bool:
    """Whether this process may make namespaces, and connections into them can be made and reset."""
    try:
        namespace = Namespace()
    except (OSError, RuntimeError):
        return False
    namespace.close()
    return True


def _claim() -> tuple[str, int]:
    """(name, number) of a namespace of this process; the number is nobody else's: the pid's place, or one of the next."""
    taken = {name.rpartition("-")[2] for name in _names()}
    for n in range(SUBNETS):
        number = (os.getpid() + n) % SUBNETS
        if str(number) not in taken:
            name = f"{PREFIX}{os.getpid()}-{number}"
            with suppress(FileExistsError):
                os.close(os.open(_claim_file(number), os.O_CREAT | os.O_EXCL))
                _ip("netns", "add", name)
                return name, number
    raise OSError("no subnet is left")


def _claim_file(number: int | str) -> Path:
    return Path(tempfile.gettempdir()) / f"{PREFIX}{number}"


def _names() -> list[str]:
    with suppress(OSError):
        return [p.name for p in Path("/run/netns").iterdir() if p.name.startswith(PREFIX)]
    return []


def _remove_stale() -> None:
    """Those of test processes that were killed."""
    for name in _names():
        if not Path(f"/proc/{name.removeprefix(PREFIX).partition('-')[0]}").exists():
            _remove(name)


def _remove(name: str) -> None:
    with suppress(OSError):
        for pid in _ip("netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    number = name.rpartition("-")[2]
    for words in (["-n", name, "link", "del", "eth0"], ["netns", "del", name]):
        with suppress(OSError):
            _ip(*words)
    _claim_file(number).unlink(missing_ok=True)


def _within(name: str) -> tuple[str, ...]:
    """Not by `ip netns exec`, which would hide file systems that are mounted later."""
    return (program("nsenter"), f"--net=/run/netns/{name}")


def _ip(*words: str) -> str:
    return _run([program("ip"), *words])


def _run(words: Sequence[str]) -> str:
    """What it prints. Raises OSError: it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
