"""The content-addressed store: blobs, and the traces that say which task made what. Shared by all projects of a user.

    <store>/objects/ab/cdef...      blobs (blobs.py)
    <store>/traces-1.db             SQLite, WAL: traces, stat cache of source files, each project's last build, exports
    <store>/locks/                  one file per key being built, one per resource, `store` (builds share it, gc owns it)
    <store>/tmp/                    output folders of running steps, one folder per run, held by a lock

A trace is constructive (Build Systems a la Carte, section 4.2.3): key -> the artifact itself, in canonical JSON. One SQLite
commit per task, after its blobs have their final names: killed at any moment, the store holds whole tasks only.

What is checked, and when ("damage" is any difference between a blob and its name, or a trace and its seal):

- a trace row carries a seal, the digest of its key and content; one that does not match is as if it were not there.
  A database that SQLite cannot read is set aside and a new one begun: tasks run again, nothing else is lost;
- each trace keeps the signatures (size, mtime_ns, ctime_ns, inode) its blobs had when last read and found right. Every
  build, a no-op too, compares them for every task it decides about (2 us each); where they differ the blob is read.
  A write of any kind to a blob changes its ctime, so every flip made through the file system is found by the next build;
- what changes bytes beneath the file system (a failing disk) changes no signature: therefore a blob that is consumed by a
  step or exported is always read and digested first, once per process, and `verify` (`tc gc --verify`) reads all;
- damage drops the trace, and the task runs again.

Source files are digested once and remembered by (path, size, mtime_ns, ctime_ns, inode). A file changed less than RACY_S
before it was digested is not remembered, for it could change again within the same tick of the file system's clock.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolchain.build.blobs import Blobs, DamagedBlob, Signature, signature
from toolchain.build.database import Database, Statement
from toolchain.build.keys import STORE_FORMAT, Change
from toolchain.core.artifact import Artifact
from toolchain.core.digest import canonical_json, digest_bytes, digest_file
from toolchain.core.errors import TaskError
from toolchain.core.settings import settings

RACY_S = 0.05
FOUND = "found in the store"        # the reason noted for a task that did not have to run though its key was new here
_DAY_S = 86_400


class Trace(NamedTuple):
    """One finished task: what it made (canonical JSON and its digest), and how its blobs looked when last found right."""

    key: str
    task: str
    text: str
    digest: str
    signatures: Mapping[str, Signature]
    duration_s: float
    used_s: float

    @property
    def artifact(self) -> Artifact:
        return Artifact.from_json(json.loads(self.text))


class Past(NamedTuple):
    """The last build of one task in one project: its ingredients then, why it ran then, and in which run."""

    key: str
    run_id: str
    reason: str
    changes: tuple[Change, ...]
    ingredients: Mapping[str, str]


class Entry(NamedTuple):
    """What a commit writes: the artifact of a task that just ran, or (artifact None) that the store had its key already."""

    project: str
    task: str
    run: str
    key: str
    ingredients: Mapping[str, str]
    reason: str
    changes: tuple[Change, ...]
    run_id: str


class Store:
    """Open (and, when needed, make) the store below `root`; without one, the user's. One process, one thread per object."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or settings().store
        self.blobs = Blobs(self.root)
        self.locks, self.temp = self.root / "locks", self.root / "tmp"
        self.database = self.root / f"traces-{STORE_FORMAT}.db"
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.blobs.objects, self.locks, self.temp):
                folder.mkdir(exist_ok=True)
        except OSError as e:
            raise TaskError(f"cannot make the store: {e.strerror}", where=str(self.root),
                            fix="set TC_STORE to a folder you may write") from None
        self._traces: dict[str, Trace] = {}
        self._last: dict[tuple[str, str], str] = {}                     # (project, task) -> key of its last build
        self._sources: dict[str, tuple[str, str]] = {}                  # path -> (signature JSON, digest)
        self._new_sources: dict[str, tuple[str, str, str]] = {}         # the same with the project, not yet written
        self._db = Database(self.database, self.locks / "database")

    def close(self) -> None:
        self._db.close()

    # -- traces -------------------------------------------------------------------------------------------------------

    def load(self, project: str) -> None:
        """Read at once what the project's last build used: deciding about thousands of tasks is then a dict lookup each."""
        for row in self._db.rows(_TRACE + "join history using (key) where project = ?", project):
            self._remember(row)
        for name, key in self._db.rows("select name, key from history where project = ?", project):
            self._last[project, name] = key
        for path, sign, digest in self._db.rows("select path, signature, digest from sources where project = ?", project):
            self._sources.setdefault(path, (sign, digest))

    def find(self, key: str, *, fresh: bool = False) -> Trace | None:
        """The trace of that key. `fresh`: ask the database even if this process knows it (another may have built it)."""
        if (trace := self._traces.get(key)) and not fresh:
            return trace
        for row in self._db.rows(_TRACE + "where key = ?", key):
            self._remember(row)
        return self._traces.get(key)

    def intact(self, trace: Trace) -> str:
        """Empty when all blobs of the trace are right, else what is wrong. Cheap unless a blob looks different."""
        now: dict[str, Signature] = {}
        for digest, known in trace.signatures.items():
            if (found := self.blobs.signature(digest)) != known:
                try:
                    found = self.blobs.check(digest, _name_of(trace, digest))
                except DamagedBlob as e:
                    return e.what
                now[digest] = found
        if now:
            signatures = {**trace.signatures, **now}
            blobs = canonical_json(signatures)
            seal = _seal(trace.key, trace.text, trace.digest, blobs)
            self.write([("update traces set blobs = ?, seal = ? where key = ?", (blobs, seal, trace.key))])
        return ""

    def commit(self, entry: Entry, artifact: Artifact, signatures: Mapping[str, Signature], duration_s: float) -> Trace:
        """Record a task that ran, in one transaction. Its blobs must be in place."""
        text, now = canonical_json(artifact.to_json()), time.time()
        digest, blobs = digest_bytes(text.encode()), canonical_json(signatures)
        row = (entry.key, entry.task, entry.run, text, digest, blobs, _seal(entry.key, text, digest, blobs),
               canonical_json(entry.ingredients), now, duration_s, now)
        self.write([("insert or replace into traces values (?,?,?,?,?,?,?,?,?,?,?)", row), _history(entry)])
        trace = Trace(entry.key, entry.task, text, digest, signatures, duration_s, now)
        self._traces[entry.key] = trace
        self._last[entry.project, entry.task] = entry.key
        return trace

    def note(self, entries: Iterable[Entry], used: Iterable[Trace]) -> None:
        """At the end of a build: which keys its tasks now have, and that these traces were used (to the day)."""
        now = time.time()
        stale = [trace.key for trace in used if trace.used_s < now - _DAY_S]
        entries = list(entries)
        writes = [_history(e) for e in entries]
        self._last.update({(e.project, e.task): e.key for e in entries})
        writes += [("update traces set used_s = ? where key = ?", (now, key)) for key in stale]
        if writes or self._new_sources:
            self.write(writes)

    def drop(self, key: str) -> None:
        """Forget a trace; its task will run again."""
        self._traces.pop(key, None)
        self.write([("delete from traces where key = ?", (key,))])

    def past(self, project: str, task: str) -> Past | None:
        """The last build of a task in a project, with its ingredients (they prove themselves: their digest is the key)."""
        sql = ("select key, run_id, reason, changes, ingredients from history join traces using (key) "
               "where project = ? and name = ?")
        for key, run_id, reason, changed, facts in self._db.rows(sql, project, task):
            try:
                if digest_bytes(facts.encode()) == key:
                    return Past(key, run_id, reason, tuple(Change(*c) for c in json.loads(changed)), json.loads(facts))
            except (ValueError, TypeError, AttributeError):
                pass                                        # a damaged row
        return None

    def last_key(self, project: str, task: str) -> str:
        """The key a task had in a project's last build; empty: none. Needs: the project was loaded."""
        return self._last.get((project, task), "")

    def estimate_s(self, task: str, run: str) -> float | None:
        """How long the task will take: as the last time, else as its step takes on average; None: never seen."""
        last = "select duration_s from traces where task = ? order by created_s desc limit 1"
        mean = "select avg(duration_s) from traces where run = ?"
        for rows in (self._db.rows(last, task), self._db.rows(mean, run)):
            if rows and rows[0][0] is not None:
                return float(rows[0][0])
        return None

    # -- source files -------------------------------------------------------------------------------------------------

    def source_digest(self, path: Path, project: str = "") -> str:
        """Digest of a file outside the store; read only if it looks different from last time.

        Raises TaskError: it cannot be read, or is no plain file.
        """
        place = os.path.abspath(path)
        try:
            found = signature(place)
            sign = canonical_json(found)
            known = self._sources.get(place)
            if known is None:
                rows = self._db.rows("select signature, digest from sources where path = ?", place)
                known = (rows[0][0], rows[0][1]) if rows else None
            if known and known[0] == sign:
                self._sources[place] = known
                return known[1]
            if not stat.S_ISREG(os.stat(place).st_mode):                # a device, say, could be read for ever
                raise TaskError("not a plain file", where=str(path), fix="put the file itself there")
            digest = digest_file(Path(place))
        except OSError as e:
            raise TaskError(f"cannot read a source file: {e.strerror}", where=str(path)) from None
        if time.time() - max(found[1], found[2]) / 1e9 > RACY_S:
            self._sources[place] = (sign, digest)
            self._new_sources[place] = (project, sign, digest)
        return digest

    # -- exports ------------------------------------------------------------------------------------------------------

    def exported(self, folder: str) -> tuple[str, dict[str, Signature]] | None:
        """What was last put into a folder: the artifact's digest, and what each file looked like then."""
        for artifact, files in self._db.rows("select artifact, files from exports where folder = ?", folder):
            try:
                return artifact, {name: _signature(s) for name, s in json.loads(files).items()}
            except (ValueError, TypeError, AttributeError):
                break                                   # damaged row: the folder is written anew
        return None

    def note_export(self, folder: str, project: str, artifact: str, files: Mapping[str, Signature]) -> None:
        self.write([("insert or replace into exports values (?,?,?,?)", (folder, project, artifact, canonical_json(files)))])

    def exports_of(self, project: str) -> list[Path]:
        return [Path(folder) for (folder,) in self._db.rows("select folder from exports where project = ?", project)]

    def forget_exports(self, folders: Iterable[Path]) -> None:
        self.write([("delete from exports where folder = ?", (str(f),)) for f in folders])

    # -- the database -------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """For gc and reports."""
        return self._db.rows(sql, *values)

    def write(self, statements: Sequence[Statement]) -> None:
        """One transaction, with the digests of source files learnt since the last one."""
        sources: list[Statement] = [("insert or replace into sources values (?,?,?,?)", (path, *known))
                                    for path, known in self._new_sources.items()]
        self._db.write([*sources, *statements])
        self._new_sources.clear()

    def _remember(self, row: tuple[Any, ...]) -> None:
        key, task, text, digest, blobs, seal, duration_s, used_s = row
        try:
            if _seal(key, text, digest, blobs) == seal:
                signatures = {d: _signature(s) for d, s in json.loads(blobs).items()}
                self._traces[key] = Trace(key, task, text, digest, signatures, float(duration_s), float(used_s))
        except (ValueError, TypeError):
            pass                                            # a damaged row


_TRACE = "select key, task, artifact, digest, blobs, seal, duration_s, used_s from traces "


def _seal(key: str, text: str, digest: str, blobs: str) -> str:
    return digest_bytes(f"{key}\n{text}\n{digest}\n{blobs}".encode())


def _signature(values: Sequence[int]) -> Signature:
    size, mtime, ctime, inode = values
    return size, mtime, ctime, inode


def _history(entry: Entry) -> Statement:
    changed = json.dumps([[c.ingredient, c.old, c.new] for c in entry.changes])
    values = (entry.project, entry.task, entry.key, entry.run_id, entry.reason, changed)
    return "insert or replace into history values (?,?,?,?,?,?)", values


def _name_of(trace: Trace, digest: str) -> str:
    names = [name for name, file in trace.artifact.files.items() if file.digest == digest]
    return f"{trace.task}: {names[0]}" if names else trace.task
