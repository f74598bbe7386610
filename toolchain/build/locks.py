"""Locks between processes that the kernel releases, so that `kill -9` leaves nothing stale (flock on a file)."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

from toolchain.core.errors import TaskError


class Lock(NamedTuple):
    """A held lock. `release` it, or end the process."""

    path: Path
    fd: int

    @classmethod
    def acquire(cls, path: Path, *, shared: bool = False, wait_s: float = 0) -> Lock | None:
        """Take the lock, or None when someone else holds it and still does after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        while True:
            if lock := cls._attempt(path, shared):
                return lock
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    @classmethod
    def _attempt(cls, path: Path, shared: bool) -> Lock | None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(path, fd):
                return cls(path, fd)
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def release(self, *, unlink: bool = True) -> None:
        """Give it back. The file goes too (only for exclusive locks), so that locks of thousands of keys leave no litter."""
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self.fd)


def _is_at(path: Path, fd: int) -> bool:
    """Whether the locked file still stands under its name: its last holder may have unlinked it meanwhile."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)


def hold(path: Path, *, shared: bool = False, wait_s: float = 60) -> Lock:
    """Take a lock that is only ever held briefly. Raises TaskError when it is not free in time."""
    if lock := Lock.acquire(path, shared=shared, wait_s=wait_s):
        return lock
    raise TaskError(f"still locked by another process after {wait_s:g} s", where=str(path), fix="wait until it has finished")
