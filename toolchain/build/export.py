"""Puts an artifact's files into a project folder: all of them or none, and nothing at all when they are there already.

Files are copied, not linked: editing an output must not edit the store. Each copy is digested on the way. The new folder is
made beside the old one and the two change names in one step, so a reader sees either. Files in the folder that no build put
there are the user's and stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from toolchain.build.blobs import DamagedBlob, Signature, signature
from toolchain.build.folders import files_below, fresh_name, remove_tree
from toolchain.build.locks import hold
from toolchain.build.store import Store
from toolchain.core.artifact import Artifact, File
from toolchain.core.digest import digest_bytes
from toolchain.core.errors import TaskError

_CHUNK_BYTES = 1 << 20


def export(store: Store, artifact: Artifact, folder: Path, project: str = "", digest: str = "") -> str:
    """Make `folder` hold the artifact's files. `digest`: the artifact's, where the caller knows it.

    Returns "unchanged" (nothing was touched), "restored" (files had been changed or removed by someone else) or "written".
    Raises DamagedBlob: the store's copy is damaged; TaskError: `folder` is a file.
    """
    place, digest = os.path.realpath(folder), digest or artifact.digest
    if _is_current(store, place, digest):
        return "unchanged"
    lock = hold(store.locks / f"export-{digest_bytes(place.encode())[:32]}", wait_s=600)
    try:
        if _is_current(store, place, digest):
            return "unchanged"                              # another process has done it
        known = store.exported(place)
        files = _replace(store, artifact, Path(place), known[1] if known else {})
        store.note_export(place, project, digest, files)
        return "restored" if known and known[0] == digest else "written"
    finally:
        lock.release()


def remove_exported(store: Store, folder: Path) -> None:
    """Take out what `export` put there, and the folders that are empty then; files of the user stay."""
    place = os.path.realpath(folder)
    known = store.exported(place)
    for name in known[1] if known else ():
        Path(place, name).unlink(missing_ok=True)
    for below, _, _ in list(os.walk(place, topdown=False)):
        with contextlib.suppress(OSError):                  # not empty
            os.rmdir(below)
    store.forget_exports([Path(place)])


def _is_current(store: Store, place: str, digest: str) -> bool:
    known = store.exported(place)
    if known is None or known[0] != digest:
        return False
    try:
        return all(signature(f"{place}/{name}") == seen for name, seen in known[1].items())
    except OSError:
        return False


def _replace(store: Store, artifact: Artifact, folder: Path, ours: Mapping[str, Signature]) -> dict[str, Signature]:
    if folder.exists() and not folder.is_dir():
        raise TaskError("outputs go here, but it is a file", where=str(folder), fix="move it away, or build elsewhere")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.parent.glob(f".tmp-{folder.name}-*"):     # by a process that was killed: we hold the lock
        remove_tree(left_behind)
    new = folder.with_name(fresh_name(f".tmp-{folder.name}"))
    try:
        new.mkdir()
        for name, file in artifact.files.items():
            _copy(store, name, file, new / name)
        if folder.exists():
            _keep_foreign(folder, new, ours)
        _swap(new, folder)
    finally:
        remove_tree(new)
    return {name: signature(folder / name) for name in artifact.files}


def _copy(store: Store, name: str, file: File, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.sha256()
    blob = store.blobs.path(file.digest)
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o777 if file.executable else 0o666)
    with os.fdopen(fd, "wb") as target:
        try:
            source = blob.open("rb")
        except FileNotFoundError:
            raise DamagedBlob(f"{name} is missing from the store", where=str(blob)) from None
        with source:
            while chunk := source.read(_CHUNK_BYTES):
                seen.update(chunk)
                target.write(chunk)
    if seen.hexdigest() != file.digest:
        raise DamagedBlob(f"{name} is damaged in the store", where=str(blob))


def _keep_foreign(old: Path, new: Path, ours: Mapping[str, Signature]) -> None:
    """Carry over what no build put there."""
    for name in files_below(old):
        if name not in ours and not os.path.lexists(new / name):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(old / name, new / name, follow_symlinks=False)


def _swap(new: Path, folder: Path) -> None:
    """`folder` becomes `new`; what `folder` was is then under the name of `new`, if anything."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        old = folder.with_name(fresh_name(f".tmp-{folder.name}"))       # two steps where the system has no exchange; killed
        folder.rename(old)                                              # in between, the next build finds it missing
        new.rename(folder)
        remove_tree(old)


def _exchange(a: Path, b: Path) -> bool:
    import ctypes  # not for a no-op build, which exports nothing

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    return renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0
