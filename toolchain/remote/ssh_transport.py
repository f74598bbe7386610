"""The Transport over a connection that `ssh.connect` opened: commands as channels, files by SFTP or by a shell."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import paramiko

from toolchain.core.errors import DeviceError
from toolchain.remote.board import LostError
from toolchain.remote.transport import KEPT_ERROR_BYTES, PIECE_BYTES, cannot_write
from toolchain.remote.watchdog import Watchdog


class SshTransport:
    """See `transport.Transport`. clients: the hops, the board's own last."""

    def __init__(self, where: str, clients: list[paramiko.SSHClient]) -> None:
        self.where, self._clients = where, clients
        transport = clients[-1].get_transport()
        assert transport is not None
        self._transport = transport
        self.watchdog = Watchdog(self._cut)
        self._sftp: paramiko.SFTPClient | None = None
        self.host_key = transport.get_remote_server_key().asbytes()

    @contextmanager
    def limited(self, doing: str, limit_s: float, *, files: bool = False) -> Iterator[None]:
        """Raises LostError when the connection breaks meanwhile, or has not done it in time. files: an OSError may also be
        the board's answer to what was asked of its files, and is passed on."""
        try:
            with self.watchdog.limit(limit_s):
                yield
        except (paramiko.SSHException, EOFError, OSError) as error:
            if files and isinstance(error, OSError) and not self.watchdog.expired and self._transport.is_active():
                raise
            how = f"no answer within {limit_s:g} s" if self.watchdog.expired else "the connection was cut"
            raise LostError(f"{how} while {doing}", where=self.where, fix=(
                "is the board still there? try again")) from None

    def start(self, command: str, limit_s: float) -> SshStream:
        with self.limited("starting a command", limit_s):
            channel = self._transport.open_session(timeout=limit_s)
            channel.exec_command(f"sh -c {shlex.quote(command)}")
        return SshStream(self, channel)

    def _files(self, limit_s: float) -> paramiko.SFTPClient | None:
        """The file transfer, or None: small SSH servers come without."""
        if self._sftp is None:
            try:
                with self.watchdog.limit(limit_s):
                    self._sftp = paramiko.SFTPClient.from_transport(self._transport)
            except (paramiko.SSHException, EOFError, OSError):
                if not self._transport.is_active():
                    raise LostError("the connection was cut while opening a file transfer", where=self.where, fix=(
                        "try again")) from None
        return self._sftp

    def put(self, path: str, data: bytes, limit_s: float) -> None:
        part = f"{path}.part"
        if (sftp := self._files(limit_s)) is None:
            self._put_by_shell(path, part, data, limit_s)
            return
        try:
            with self.limited("uploading", limit_s, files=True):
                with sftp.open(part, "wb") as file:
                    file.set_pipelined(True)
                    file.write(data)
                sftp.chmod(part, 0o700)
                with sftp.open(part, "rb") as file:
                    file.prefetch(len(data))
                    back = file.read()
                if back != data:
                    raise LostError("what arrived is not what was sent", where=self.where, fix="try again")
                sftp.posix_rename(part, path)
        except OSError as error:
            raise self._refused(path, error, limit_s) from None

    def _put_by_shell(self, path: str, part: str, data: bytes, limit_s: float) -> None:
        name = shlex.quote(part)
        stream = self.start(f"cat > {name} && chmod 700 {name} && test $(wc -c < {name}) = {len(data)} && "
                            f"mv {name} {shlex.quote(path)}", limit_s)
        stream.send(data, limit_s)
        stream.close_input()
        code = stream.exit_code(limit_s)
        stream.close()
        if code != 0:
            raise cannot_write(path, stream.errors().strip() or f"exit code {code}")

    def _refused(self, path: str, error: OSError, limit_s: float) -> DeviceError:
        """SFTP says no more than "Failure" of a full disk: ask how much room there is."""
        why = error.strerror or str(error)
        with suppress(DeviceError, TimeoutError):
            stream = self.start(f"df -Pk {shlex.quote(os.path.dirname(path))} | tail -n 1", limit_s)
            words = stream.receive(limit_s).decode(errors="replace").split()
            stream.close()
            if len(words) >= 6 and words[3].isdecimal() and int(words[3]) < 64:
                why = f"no space left ({words[3]} kB of {words[1]} kB free)"
        return replace_where(cannot_write(path, why), self.where)

    def make_folder(self, path: str, limit_s: float) -> None:
        try:
            if (sftp := self._files(limit_s)) is not None:
                with self.limited("making a folder", limit_s, files=True):
                    sftp.mkdir(path, 0o700)
                return
        except OSError as error:
            raise self._refused(path, error, limit_s) from None
        stream = self.start(f"umask 077; mkdir {shlex.quote(path)}", limit_s)
        if stream.exit_code(limit_s) != 0:
            raise cannot_write(path, stream.errors().strip())
        stream.close()

    def _cut(self) -> None:
        """Break the connection under everything that waits for it."""
        with suppress(Exception):
            self._transport.packetizer.close()
        with suppress(Exception):
            self._transport.sock.close()

    def close(self) -> None:
        self.watchdog.close()
        self._cut()
        for client in reversed(self._clients):
            client.close()


def replace_where(error: DeviceError, where: str) -> DeviceError:
    return type(error)(error.what, where=where, fix=error.fix)


class SshStream:
    """See `transport.Stream`: one channel."""

    def __init__(self, transport: SshTransport, channel: paramiko.Channel) -> None:
        self._transport, self._channel, self._errors = transport, channel, b""
        channel.settimeout(None)
        self._arrived = threading.Event()
        channel.in_buffer.set_event(self._arrived)
        self._drainer = threading.Thread(target=self._drain, name="tc-ssh-stderr", daemon=True)
        self._drainer.start()

    def _drain(self) -> None:
        with suppress(Exception):
            while data := self._channel.recv_stderr(PIECE_BYTES):
                self._errors = (self._errors + data)[-KEPT_ERROR_BYTES:]

    def send(self, data: bytes, limit_s: float) -> None:
        with self._transport.limited("sending", limit_s):
            self._channel.sendall(data)

    def close_input(self) -> None:
        with suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def receive(self, limit_s: float) -> bytes:
        end = time.monotonic() + limit_s
        while not self._channel.recv_ready():           # by our own clock: paramiko's own timeouts go by the wall clock
            if self._channel.closed or self._channel.eof_received:
                if self._channel.recv_ready():
                    break
                if not self._channel.get_transport().is_active():
                    raise LostError("the connection was cut", where=self._transport.where, fix="is the board still there?")
                return b""
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._arrived.wait(min(left, 1.0))          # set by data, and by the end of it
            if not self._channel.recv_ready() and not self._channel.eof_received:
                time.sleep(0.0001)
        data: bytes = self._channel.recv(PIECE_BYTES)
        return data

    def errors(self) -> str:
        if self._channel.eof_received or self._channel.closed:
            self._drainer.join(1.0)                     # what it said last is on its way
        return self._errors.decode(errors="replace")

    def exit_code(self, limit_s: float) -> int | None:
        if not self._channel.status_event.wait(limit_s):
            return None
        code = self._channel.recv_exit_status()
        return code if code >= 0 else None

    def close(self) -> None:
        self.close_input()
        with suppress(Exception):
            self._channel.close()
