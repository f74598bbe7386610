"""A TCP proxy between us and a server on loopback that misbehaves."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress


class Proxy:
    """Forwards connections to a host's port until it is told otherwise. cut_after: bytes towards the server, then both ends
    are reset. address: where it listens."""

    def __init__(self, host: str, port: int, cut_after: int = 0) -> None:
        self.to, self.cut_after, self.sent = (host, port), cut_after, 0
        self._frozen = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.to)
                for s in (client, server):
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=(source, sink, counted), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                if self._frozen.is_set():
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

    def freeze(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._frozen.set()

    def thaw(self) -> None:
        self._frozen.clear()

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
