"""Every error a user can cause or meet. Anything else that escapes is our bug, and the command line says so.

    ToolchainError
    ├── UsageError          wrong command line                                  exit 2
    ├── DeployfileError     wrong deployfile (shows every wrong line at once)   exit 2
    ├── LockfileError       a lock file that cannot be used, or is not kept     exit 2
    ├── ImportModelError    a model we cannot or will not read                  exit 2
    │   └── MisfitError     ... because an operator does not take the shapes or types it is given
    ├── MissingToolError    a program or package that is not installed          exit 1
    ├── ScheduleError       a schedule primitive refused                        exit 1
    ├── CodegenError        a kernel that cannot be lowered or compiled         exit 1
    ├── TuneError           tuning cannot go on, or its records cannot be used  exit 1
    ├── TaskError           a task of the build failed                          exit 1
    │   └── BugError        ... with an exception that is not one of these: our bug, and the screen says so
    ├── VerificationError   an artifact disagrees with the reference            exit 3
    ├── RegressionError     a performance gate failed                           exit 4
    └── DeviceError         a device or the network is unavailable              exit 5
"""

from __future__ import annotations

import errno
import os

_NO_ROOM = "free space on that disk, then run the same command again"
_NOT_ALLOWED = "let this user write there, or work in another folder"
REFUSALS = {errno.ENOSPC: _NO_ROOM, errno.EDQUOT: _NO_ROOM, errno.EFBIG: _NO_ROOM,
            errno.EACCES: _NOT_ALLOWED, errno.EPERM: _NOT_ALLOWED, errno.EROFS: _NOT_ALLOWED}


class ToolchainError(Exception):
    """An error in the user's words: `what` happened, `where`, and the `fix` (an action; empty when none is known)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries (worker -> parent), keywords included."""
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _rebuild(kind: type[ToolchainError], what: str, where: str, fix: str) -> ToolchainError:
    return kind(what, where=where, fix=fix)


class UsageError(ToolchainError):
    exit_code = 2


class DeployfileError(ToolchainError):
    exit_code = 2


class LockfileError(ToolchainError):
    exit_code = 2


class ImportModelError(ToolchainError):
    exit_code = 2


class MisfitError(ImportModelError):
    pass


class MissingToolError(ToolchainError):
    pass


class ScheduleError(ToolchainError):
    pass


class CodegenError(ToolchainError):
    pass


class TuneError(ToolchainError):
    pass


class TaskError(ToolchainError):
    pass


class BugError(TaskError):
    pass


class VerificationError(ToolchainError):
    exit_code = 3


class RegressionError(ToolchainError):
    exit_code = 4


class DeviceError(ToolchainError):
    exit_code = 5


class InternalError(Exception):
    """Our bug, never the user's: a graph or a program breaks a rule that our own code should have kept."""


def refused_by_system(error: BaseException, where: str) -> TaskError | None:
    """What a user is told when the system has no room, or does not let this user write or read; None for any other error.

    where: the place, if the error itself names no file.
    """
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    verb = "cannot write" if REFUSALS[error.errno] is _NO_ROOM else "not allowed"
    return TaskError(f"{verb}: {os.strerror(error.errno)}", where=str(error.filename or where), fix=REFUSALS[error.errno])
