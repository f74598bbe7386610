"""SSH: the connection to a board, by paramiko. It is opened once and kept; its host key is verified always.

What paramiko does by itself, and what is done about it here and in ssh_transport.py:

    a peer that has gone quiet hangs a call for ever        a watchdog of our own clock closes the connection
    an exec round trip takes 44 ms                           TCP_NODELAY: 0.6 ms
    a full window of stdout while stderr is read: deadlock   stderr is read by a thread of its own
    ProxyJump is parsed, not applied                         `ssh -G` says what the configuration means; hop by direct-tcpip
    known_hosts with a line it does not know: refused whole  host_keys.py reads it
    an upload that is cut leaves half a file                 NAME.part, read back, then posix_rename
"""

from __future__ import annotations

import getpass
import itertools
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from toolchain.core.errors import DeviceError, UsageError
from toolchain.remote.board import Board, ChangedHostKey, HostKeyError, UnknownHostKey
from toolchain.remote.host_keys import KnownKey, fingerprint, host_name, known_keys
from toolchain.remote.ssh_transport import SshTransport
from toolchain.remote.watchdog import Watchdog

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)        # failures are errors of ours; nothing of keys in logs
CONNECT_LIMIT_S = 15.0
KEY_KINDS = {
    "ed25519": ("ssh-ed25519",), "ecdsa": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    "rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, once the user's own ssh configuration has been asked."""

    host: str
    port: int
    user: str
    key_files: tuple[str, ...] = ()
    jump: str = ""


def resolve(board: Board) -> Address:
    """The board's address as `ssh` would have it: its configuration gives what the deployfile leaves out."""
    said = _configured(board)
    user = board.user or said.get("user", "") or getpass.getuser()
    keys = (board.key_file,) if board.key_file else tuple(said.get("identityfile", "").split("\n"))
    jump = board.jump or ("" if said.get("proxyjump", "none") == "none" else said["proxyjump"])
    port = board.port if board.port != 22 else int(said.get("port", "22"))
    return Address(said.get("hostname", board.host), port, user, tuple(str(Path(k).expanduser()) for k in keys if k), jump)


def _configured(board: Board) -> Mapping[str, str]:
    """What `ssh -G` says; nothing where there is no configuration, or no ssh."""
    files = (Path.home() / ".ssh" / "config", Path("/etc/ssh/ssh_config"))
    if not any(file.exists() for file in files) or (ssh := shutil.which("ssh")) is None:
        return {}
    try:
        done = subprocess.run([ssh, "-G", "--", board.host], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found[name] = f"{found[name]}\n{value}" if name == "identityfile" and name in found else value
    return found


def parse_jump(text: str) -> Address:
    """"[USER@]HOST[:PORT]"; of several hops the first only is given here."""
    user, _, rest = text.rpartition("@")
    host, colon, port = rest.rpartition(":")
    if colon and not port.isdecimal():
        raise UsageError(f"no jump host: {text!r}", fix="write [USER@]HOST[:PORT]")
    return Address(host if colon else rest, int(port) if colon else 22, user or getpass.getuser())


def tcp_socket(address: Address, where: str, limit_s: float) -> socket.socket:
    try:
        sock: socket.socket = _within(limit_s, lambda: socket.create_connection((address.host, address.port), limit_s))
    except TimeoutError:
        raise DeviceError(f"no answer within {limit_s:g} s", where=where, fix=(
            "is it switched on and in this network? is `host` right?")) from None
    except ConnectionRefusedError:
        raise DeviceError(f"refuses connections to port {address.port}", where=where, fix=(
            "start its SSH server, or name its `port` in the deployfile")) from None
    except socket.gaierror:
        raise DeviceError(f"no host is known by the name {address.host!r}", where=where, fix=(
            "write its address as `host`")) from None
    except OSError as error:
        raise DeviceError(f"cannot be reached: {error.strerror or error}", where=where, fix=(
            "is it switched on and in this network?")) from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _within(limit_s: float, work: Callable[[], Any]) -> Any:
    """In a thread that is left behind when it takes too long: looking a name up knows no time limit."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((True, work()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s + 0.5)
    if not outcome:
        raise TimeoutError
    done, value = outcome[0]
    if not done:
        raise value
    return value


class _Verify(paramiko.MissingHostKeyPolicy):       # type: ignore[misc]
    """Asked for a key that is not in the client's table: trusted only when it has the pinned fingerprint. shown: a key that
    was refused."""

    def __init__(self, pinned: str) -> None:
        self.pinned, self.shown = pinned, b""

    def missing_host_key(self, client: Any, hostname: str, key: paramiko.PKey) -> None:
        if not self.pinned or fingerprint(key.asbytes()) != self.pinned:
            self.shown = key.asbytes()
            raise paramiko.SSHException("host key not trusted")


def connect(board: Board, limit_s: float = CONNECT_LIMIT_S) -> SshTransport:
    """Connected and authenticated. Raises DeviceError, each kind of failure with what to do about it."""
    address, end = resolve(board), time.monotonic() + limit_s
    hops, sock = _on_the_way(board, address, end)
    try:
        hops.append(_client(address, board.fingerprint, board.where, _left_s(end), sock, board.name, address.key_files))
    except BaseException:
        _close(hops)
        raise
    return SshTransport(board.where, hops)


def _on_the_way(board: Board, address: Address, end: float) -> tuple[list[paramiko.SSHClient], Any]:
    """The jump hosts, connected and authenticated, and a channel from the last one to the board (None: there are none).
    end: by the monotonic clock."""
    hops = list[paramiko.SSHClient]()
    sock: Any = None
    places = [*(parse_jump(hop) for hop in address.jump.split(",") if hop), address]
    try:
        for place, following in itertools.pairwise(places):
            where = f"jump host of {board.where}"
            hops.append(_client(place, "", where, _left_s(end), sock, "", address.key_files))
            sock = _through(hops[-1], following, board.where if following is address else where, _left_s(end))
    except BaseException:
        _close(hops)
        raise
    return hops, sock


def _left_s(end: float) -> float:
    return max(1.0, end - time.monotonic())


def _close(hops: list[paramiko.SSHClient]) -> None:
    for client in reversed(hops):
        client.close()


def _through(hop: paramiko.SSHClient, to: Address, where: str, limit_s: float) -> Any:
    transport = hop.get_transport()
    assert transport is not None
    try:
        return transport.open_channel("direct-tcpip", (to.host, to.port), ("127.0.0.1", 0), timeout=limit_s)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise DeviceError(f"the jump host does not get through to it: {error or 'closed'}", where=where, fix=(
            "is it reachable from the jump host, and does that allow forwarding?")) from None


def _client(
    address: Address, pinned: str, where: str, limit_s: float, sock: Any, device: str, key_files: tuple[str, ...] = (),
) -> paramiko.SSHClient:
    """One hop. A pinned fingerprint does not tell the kind of key: the server is asked for each kind it may have."""
    kinds = ["", *KEY_KINDS] if pinned and sock is None else [""]
    wrong: HostKeyError | None = None
    for kind in kinds:
        try:
            return _client_of_kind(address, pinned, where, limit_s, sock, device, key_files, kind)
        except HostKeyError as error:
            wrong = wrong or error
        except _NoSuchKey:
            continue
    assert wrong is not None
    raise wrong


class _NoSuchKey(Exception):
    """The server has no host key of the kind it was asked for."""


def _client_of_kind(
    address: Address, pinned: str, where: str, limit_s: float, sock: Any, device: str, key_files: tuple[str, ...], kind: str,
) -> paramiko.SSHClient:
    known = [] if pinned else known_keys(address.host, address.port)
    client, policy, name = paramiko.SSHClient(), _Verify(pinned), host_name(address.host, address.port)
    client.set_missing_host_key_policy(policy)
    for entry in known:
        if not entry.revoked:
            with suppress(paramiko.SSHException, ValueError, IndexError):
                client.get_host_keys().add(name, entry.algorithm, paramiko.PKey.from_type_string(entry.algorithm, entry.key))
    others = [a for k, algorithms in KEY_KINDS.items() if kind and k != kind for a in algorithms]
    sock = sock if sock is not None else tcp_socket(address, where, limit_s)
    guard = Watchdog(sock.close)
    keys = _key_files(key_files, where)
    try:
        with guard.limit(limit_s):
            client.connect(
                address.host, address.port, username=address.user, sock=sock, timeout=limit_s, banner_timeout=limit_s,
                auth_timeout=limit_s, channel_timeout=limit_s, key_filename=list(keys) or None,
                look_for_keys=not keys, allow_agent=True, disabled_algorithms={"keys": others} if others else None)
        shown = client.get_transport().get_remote_server_key().asbytes()
        if any(entry.revoked and entry.key == shown for entry in known):
            raise ChangedHostKey(f"its host key {fingerprint(shown)} is marked @revoked", where=where, fix=(
                "the board must get a new host key (ssh-keygen -A), then: tc devices rekey " + device))
        return client
    except BaseException as error:
        client.close()
        sock.close()
        if isinstance(error, DeviceError):
            raise
        raise _explain(error, policy, known, address, where, limit_s, device, bool(kind), guard.expired, keys) from None
    finally:
        guard.close()


def _key_files(files: tuple[str, ...], where: str) -> list[str]:
    """Those that are there; the one that a deployfile names must be."""
    if len(files) == 1 and not Path(files[0]).exists():
        raise DeviceError(f"there is no private key {files[0]}", where=where, fix="name an existing `key_file`, or none: "
                          "then the agent's keys and those in ~/.ssh are tried")
    return [file for file in files if Path(file).exists()]


def _explain(
    error: BaseException, policy: _Verify, known: list[KnownKey], address: Address, where: str, limit_s: float, device: str,
    asked_kind: bool, expired: bool, keys: list[str],
) -> BaseException:
    """The user's words for what paramiko raised."""
    text = str(error)
    if isinstance(error, paramiko.BadHostKeyException):
        policy.shown, policy.pinned = error.key.asbytes(), ", ".join(k.fingerprint for k in known if not k.revoked)
    if policy.shown:
        return _host_key_error(policy, known, where, device)
    match error:
        case _ if expired or isinstance(error, TimeoutError):
            return DeviceError(f"its SSH server gives no answer within {limit_s:g} s", where=where, fix=(
                "is the board overloaded, or something else listening on that port? try again"))
        case paramiko.PasswordRequiredException():
            return DeviceError(f"the private key {', '.join(keys)} has a passphrase", where=where, fix=(
                "add it to the agent (ssh-add), which is asked first"))
        case paramiko.AuthenticationException():
            tried = f"the key {', '.join(keys)}" if keys else "no key of the agent or of ~/.ssh"
            return DeviceError(f"does not let user {address.user!r} in: {tried} was accepted" if not keys else
                               f"does not let user {address.user!r} in with {tried}", where=where, fix=(
                f"ssh-copy-id -p {address.port} {address.user}@{address.host}, or name the right `user` and `key_file`"))
        case paramiko.SSHException() if "no acceptable" in text:
            if asked_kind and "host key" in text:
                return _NoSuchKey()
            return DeviceError(f"its SSH server is too old or too new for this one: {text}", where=where, fix=(
                "key exchange with SHA-1 is no longer spoken here: update the board's SSH server"))
        case paramiko.SSHException() | EOFError() | OSError() | ValueError():
            return DeviceError(f"the connection failed: {text or type(error).__name__}", where=where, fix=(
                "is that an SSH server? try again"))
    return error


def _host_key_error(policy: _Verify, known: list[KnownKey], where: str, device: str) -> HostKeyError:
    shown = fingerprint(policy.shown)
    algorithm = algorithm_of(policy.shown)
    command = f"tc devices {{}} {device} --accept {shown}" if device else "ssh to it once, by hand"
    compare = f"compare it with the board's own: ssh-keygen -lf /etc/ssh/ssh_host_{algorithm}_key.pub; then {command}"
    kind: type[HostKeyError]
    if policy.pinned:
        places = ", ".join(k.place for k in known if not k.revoked) or "the deployfile"
        kind, what = ChangedHostKey, (f"its host key has changed: it shows {shown} ({algorithm}), known is {policy.pinned} "
                                      f"({places}). Was the board installed anew, or is somebody in between?")
        compare = compare.format("rekey") if known or not device else (
            f"if the board was installed anew, write the new `fingerprint` into the deployfile: \"{shown}\"")
    else:
        kind, what = UnknownHostKey, f"its host key is not known yet: {shown} ({algorithm})"
        compare = compare.format("add")
    error = kind(what, where=where, fix=compare)
    error.fingerprint, error.algorithm = shown, algorithm
    return error


def algorithm_of(key: bytes) -> str:
    """"ssh-ed25519" -> "ed25519": the first string of a key's bytes, as files in /etc/ssh are named."""
    name = key[4:4 + int.from_bytes(key[:4], "big")].decode(errors="replace")
    return name.split("-")[1] if name.startswith("ssh-") else name.split("-")[0]


def fetch_host_key(board: Board, limit_s: float = CONNECT_LIMIT_S) -> tuple[Address, str, bytes]:
    """(address, algorithm, key) that the board shows, without trusting it: nothing is sent to it but the key exchange. Jump
    hosts on the way must be trusted already."""
    address, end = resolve(board), time.monotonic() + limit_s
    hops, sock = _on_the_way(board, address, end)
    try:
        return address, *_shown_key(sock if sock is not None else tcp_socket(address, board.where, limit_s), board, limit_s)
    finally:
        _close(hops)


def _shown_key(sock: Any, board: Board, limit_s: float) -> tuple[str, bytes]:
    guard = Watchdog(sock.close)
    transport = paramiko.Transport(sock)
    try:
        with guard.limit(limit_s):
            transport.start_client(timeout=limit_s)
            key = transport.get_remote_server_key()
        return key.get_name(), key.asbytes()
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise DeviceError(f"the connection failed: {error or type(error).__name__}", where=board.where, fix=(
            "is that an SSH server? try again")) from None
    finally:
        guard.close()
        transport.close()


__all__ = ["Address", "algorithm_of", "connect", "fetch_host_key", "resolve"]
