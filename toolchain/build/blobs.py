"""The bytes of artifacts: read-only files named by their SHA-256, `objects/ab/cdef...`. Knows nothing of traces.

A blob is written elsewhere on the same file system, made read-only and renamed into place, so under its final name it is
always whole, even after `kill -9`. Nothing is synced to disk: after a power failure a blob may be missing, short or wrong,
which the checks below find like any other damage.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from toolchain.build.folders import files_below
from toolchain.core.artifact import File
from toolchain.core.digest import digest_file
from toolchain.core.errors import TaskError, ToolchainError

Signature = tuple[int, int, int, int]         # size_bytes, mtime_ns, ctime_ns, inode: any write to a file changes it


class DamagedBlob(ToolchainError):
    """A blob is missing or its bytes are not those of its name. The engine rebuilds what made it; users do not see this."""


def signature(path: str | Path) -> Signature:
    s = os.stat(path)
    return s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino


class Blobs:
    """The blobs below one store folder."""

    def __init__(self, root: Path) -> None:
        self.objects = root / "objects"
        self._prefix = f"{self.objects}/"
        self._checked: dict[str, Signature] = {}        # whose bytes this process has read and found right

    def path(self, digest: str) -> Path:
        return Path(self._path(digest))

    def _path(self, digest: str) -> str:
        return f"{self._prefix}{digest[:2]}/{digest[2:]}"

    def signature(self, digest: str) -> Signature | None:
        """What the file looks like from outside; None when it is not there."""
        try:
            return signature(self._path(digest))
        except FileNotFoundError:
            return None

    def check(self, digest: str, name: str = "") -> Signature:
        """Read the blob and compare it with its name; once per process unless the file changes.

        Raises DamagedBlob: it is missing or its bytes are wrong.
        """
        found = self.signature(digest)
        if found is not None and self._checked.get(digest) == found:
            return found
        if found is None or digest_file(self.path(digest)) != digest:
            what = "is missing from the store" if found is None else "is damaged in the store"
            raise DamagedBlob(f"{name or 'a file'} {what}", where=self._path(digest))
        self._checked[digest] = found
        return found

    def ingest(self, path: Path) -> tuple[File, Signature]:
        """Move one file into the store. A blob that is already there stays if its bytes are right, else it is replaced."""
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise TaskError(f"{path.name!r} is not a regular file; a step may leave only files and folders")
        executable = bool(mode & 0o100)
        path.chmod(0o555 if executable else 0o444)
        digest = digest_file(path)
        file = File(digest, path.stat().st_size, executable)
        final = self.path(digest)
        try:
            found = self.check(digest)
            if executable and not final.stat().st_mode & 0o100:
                final.chmod(0o555)
                found = signature(final)
            path.unlink()
        except DamagedBlob:
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
            found = signature(final)
        self._checked[digest] = found
        return file, found

    def ingest_folder(self, folder: Path) -> dict[str, tuple[File, Signature]]:
        """Move all files below `folder` into the store; by relative name."""
        return {name: self.ingest(folder / name) for name in files_below(folder)}

    def paths(self, files: Mapping[str, File]) -> dict[str, Path]:
        return {name: self.path(file.digest) for name, file in files.items()}
