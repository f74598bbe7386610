"""A limit, by our own clock, for calls into a library that may hang for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED_S = 1.0                     # a wait that ends this much too late: this process was stopped


class Watchdog:
    """Calls `expire` when a limit passes that nobody has lifted: the one way out of a call that hangs inside a library."""

    def __init__(self, expire: Callable[[], None]) -> None:
        self._expire, self._changed, self._ends, self._closed = expire, threading.Condition(), list[list[float]](), False
        self.expired = False
        threading.Thread(target=self._watch, name="tc-ssh-watchdog", daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        end = [time.monotonic() + seconds]
        with self._changed:
            self._ends.append(end)
            if end <= min(self._ends):
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._ends = [other for other in self._ends if other is not end]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                wait = min(self._ends)[0] - now if self._ends else None
                if self._closed:
                    return
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    late = time.monotonic() - now - wait if wait is not None else 0.0
                    for end in self._ends if late > STOPPED_S else ():
                        end[0] += late                      # this process was stopped meanwhile: nobody was slow
                    continue
                self.expired = True
            self._expire()
            return
