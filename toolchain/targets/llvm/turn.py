"""Calls of one loaded model take turns, whichever threads they come from."""

from __future__ import annotations

import os
import threading
import weakref

from toolchain.core.errors import UsageError


class Turn:
    """A lock whose holder is refused, not left waiting for itself. Also keeps close() from a run that is going on."""

    def __init__(self) -> None:
        self.reset()
        _turns.add(self)

    def reset(self) -> None:
        self._lock, self._taken_by = threading.Lock(), 0

    def __enter__(self) -> None:
        if self._taken_by == (me := threading.get_ident()):
            raise UsageError("a hook may not call the module that is running")
        self._lock.acquire()
        self._taken_by = me

    def __exit__(self, *_: object) -> None:
        self._taken_by = 0
        self._lock.release()


_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


def _free_turns() -> None:
    """In the child of a fork nobody runs a module, whoever did so in the parent."""
    for turn in _turns:
        turn.reset()


os.register_at_fork(after_in_child=_free_turns)
