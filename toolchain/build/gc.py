"""Remove a project's outputs (`clean`) and the store's old artifacts (`gc`); read all of the store (`verify`).

`gc` owns the store's lock while it works and builds share it, so nothing a build has seen disappears under it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from toolchain.build.blobs import DamagedBlob
from toolchain.build.export import remove_exported
from toolchain.build.folders import remove_tree
from toolchain.build.locks import Lock
from toolchain.build.runs import state_folder
from toolchain.build.store import Store
from toolchain.core.errors import TaskError


class Swept(NamedTuple):
    """What `gc` removed and what is left."""

    traces: int
    blobs: int
    freed_bytes: int
    left_bytes: int


def clean(store: Store, project: Path) -> list[Path]:
    """Remove what builds put into the project: exported files (not what the user added beside them) and `.tc`.

    The store keeps its artifacts, so the next build only exports again. Returns the folders.
    """
    folders = store.exports_of(str(project.absolute()))
    for folder in folders:
        remove_exported(store, folder)
        _remove_empty(folder.parent, project.absolute())
    remove_tree(state_folder(project))
    return folders


def _remove_empty(folder: Path, top: Path) -> None:
    """The folder and those above it, up to `top`, as far as nothing is in them."""
    while folder != top and top in folder.parents:
        try:
            folder.rmdir()
        except OSError:                 # somebody else's file is in it, or it is gone
            return
        folder = folder.parent


def gc(store: Store, *, max_bytes: int | None = None, max_age_s: float | None = None, wait_s: float = 600) -> Swept:
    """Forget artifacts unused for longer than `max_age_s` (to the day), then the longest unused ones until the blobs fit
    into `max_bytes`; remove blobs that no artifact has.

    Raises TaskError: builds were using the store for all of `wait_s`.
    """
    lock = Lock.acquire(store.locks / "store", wait_s=wait_s)
    if lock is None:
        raise TaskError("a build is using the store", where=str(store.root), fix="try again when it has finished")
    try:
        kept, dropped = _choose(store, max_bytes, max_age_s)
        for key in dropped:
            store.drop(key)
        blobs, freed = _remove_blobs(store, kept)
        _remove_litter(store)
        left = sum(size for _, size in _blobs(store))
        return Swept(len(dropped), blobs, freed, left)
    finally:
        lock.release(unlink=False)


def verify(store: Store) -> list[str]:
    """Read every artifact's blobs and drop the traces of damaged ones; their tasks run again. Returns what was wrong."""
    wrong: list[str] = []
    for key, task in store.rows("select key, task from traces"):
        if (trace := store.find(key, fresh=True)) is None:
            wrong.append(f"{task}: its record is damaged")
            store.drop(key)
            continue
        for name, file in trace.artifact.files.items():
            try:
                store.blobs.check(file.digest, f"{task}: {name}")
            except DamagedBlob as e:
                wrong.append(e.what)
                store.drop(key)
                break
    return wrong


def _choose(store: Store, max_bytes: int | None, max_age_s: float | None) -> tuple[set[str], list[str]]:
    """(digests of blobs to keep, keys to drop): newest first, as long as they are young enough and fit."""
    oldest = time.time() - max_age_s if max_age_s is not None else 0.0
    kept: set[str] = set()
    dropped: list[str] = []
    total = 0
    newest_first = "select key, artifact, used_s from traces order by used_s desc, created_s desc, key"
    for key, text, used_s in store.rows(newest_first):
        try:
            files = {digest: int(size) for digest, size, *_ in json.loads(text)["files"].values()}
        except (ValueError, TypeError, KeyError, AttributeError):
            dropped.append(key)
            continue
        more = sum(size for digest, size in files.items() if digest not in kept)
        if used_s < oldest or (max_bytes is not None and total + more > max_bytes):
            dropped.append(key)
            continue
        kept.update(files)
        total += more
    return kept, dropped


def _blobs(store: Store) -> Iterator[tuple[Path, int]]:
    for folder in os.scandir(store.blobs.objects):
        for blob in list(os.scandir(folder.path)):
            yield Path(blob.path), blob.stat(follow_symlinks=False).st_size


def _remove_blobs(store: Store, kept: set[str]) -> tuple[int, int]:
    count = freed = 0
    for path, size in list(_blobs(store)):
        if path.parent.name + path.name not in kept:
            path.unlink()
            count, freed = count + 1, freed + size
    return count, freed


def _remove_litter(store: Store) -> None:
    """Temporary folders of killed runs, lock files nobody holds, history that leads nowhere."""
    for path in store.temp.glob("*.lock"):
        if stale := Lock.acquire(path):
            remove_tree(path.with_suffix(""))
            stale.release()
    for path in store.locks.glob("key-*"):
        if free := Lock.acquire(path):
            free.release()
    store.write([
        ("delete from history where key not in (select key from traces)", ()),
        ("delete from sources where project not in (select project from history)", ()),
    ])
    for path in store.root.glob("*.damaged-*"):
        path.unlink()
    store.rows("pragma wal_checkpoint(truncate)")
