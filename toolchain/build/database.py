"""A SQLite file: opened, made, and begun anew when it is damaged. What its tables mean, the store and the records know."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from toolchain.build.folders import fresh_name
from toolchain.build.locks import hold
from toolchain.core.errors import TaskError

T = TypeVar("T")
Statement = tuple[str, tuple[object, ...]]

WAIT_S = 20.0                       # for a lock: our own transactions take milliseconds
_VERSION = 1                        # of the store's tables; the file's name carries the format of what they hold
STORE_TABLES = """
create table if not exists traces (key text primary key, task text, run text, artifact text, digest text, blobs text,
    seal text, ingredients text, created_s real, duration_s real, used_s real) without rowid;
create index if not exists traces_by_task on traces (task, created_s, duration_s);
create index if not exists traces_by_run on traces (run, duration_s);
create table if not exists history (project text, name text, key text, run_id text, reason text, changes text,
    primary key (project, name)) without rowid;
create table if not exists sources (path text primary key, project text, signature text, digest text) without rowid;
create index if not exists sources_by_project on sources (project);
create table if not exists exports (folder text primary key, project text, artifact text, files text) without rowid;
"""
# "Database disk image is malformed" and "file is not a database"; and plain SQL errors: our statements are right, so a
# missing table or column is damage too.
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)


class Database:
    """One connection. A damaged file is renamed to `*.damaged-...` and an empty one begun: what it said is then unknown.

    Raises TaskError from any method: the file cannot be read or written (full disk, no permission, not free in time).
    """

    def __init__(self, path: Path, lock: Path, tables: str = STORE_TABLES, version: int = _VERSION) -> None:
        """tables: the statements that make them; a file of another version gets those it lacks. set_aside: what a damaged
        file is called now; None: it was whole."""
        self.path, self.lock, self.tables, self.version = path, lock, tables, version
        self.set_aside: Path | None = None
        self._db = self._open()

    def close(self) -> None:
        self._db.close()

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The result of a query; nothing when the file was damaged."""
        return self._guarded(lambda: self._db.execute(sql, values).fetchall())

    def write(self, statements: Sequence[Statement]) -> None:
        """Several statements, one transaction."""

        def transaction() -> list[tuple[Any, ...]]:
            self._db.execute("begin immediate")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
            return []

        self._guarded(transaction)

    def _guarded(self, action: Callable[[], T]) -> T:
        """Do it; after damage once more, on the new file."""
        try:
            return action()
        except sqlite3.Error as e:
            if not _is_damage(e):
                raise _error(e, self.path) from e
            self._db.close()
            self._set_aside()
            self._db = self._open()
        try:
            return action()
        except sqlite3.Error as e:
            raise _error(e, self.path) from e

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.Error as e:
            if not _is_damage(e):
                raise _error(e, self.path) from e
        self._set_aside()
        try:
            return self._connect()
        except sqlite3.Error as e:
            raise _error(e, self.path) from e

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        try:
            db.text_factory = _text
            db.execute("pragma synchronous = normal")       # WAL: no loss when a process dies, maybe at power failure
            if db.execute("pragma user_version").fetchone()[0] != self.version:
                self._make_tables(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make_tables(self, db: sqlite3.Connection) -> None:
        made = hold(self.lock)                              # changing the journal mode does not wait for other processes
        try:
            db.execute("pragma journal_mode = wal")
            for statement in self.tables.split(";"):
                db.execute(statement)
            db.execute(f"pragma user_version = {self.version}")
        finally:
            made.release(unlink=False)

    def _set_aside(self) -> None:
        """Rename a damaged file, unless another process has done so meanwhile."""
        lock = hold(self.lock)
        try:
            if self._is_damaged():
                self.set_aside = self.path.rename(self.path.with_name(fresh_name(f"{self.path.name}.damaged")))
                for journal in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + journal).unlink(missing_ok=True)
        finally:
            lock.release(unlink=False)

    def _is_damaged(self) -> bool:
        try:
            db = sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)
        except sqlite3.Error:
            return True
        try:
            if db.execute("pragma quick_check").fetchall() != [("ok",)]:
                return True
            return _tables(db) != _tables_wanted(self.tables)
        except sqlite3.Error as e:
            return _is_damage(e)
        finally:
            db.close()


def _tables(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return sorted(db.execute("select name, sql from sqlite_master where sql is not null").fetchall())


def _tables_wanted(tables: str) -> list[tuple[str, str]]:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(tables)
        return _tables(db)
    finally:
        db.close()


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in _DAMAGE


def _error(error: sqlite3.Error, path: Path) -> TaskError:
    code = getattr(error, "sqlite_errorcode", None)
    kind = None if code is None else code & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TaskError(f"another program has locked it, for {WAIT_S:g} s at least", where=str(path),
                         fix=f"end that program (`fuser {path}` says which), then run the same command again")
    full = kind in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    fix = "free space on that disk, then run the same command again" if full else ""
    return TaskError(f"cannot use the database: {error}", where=str(path), fix=fix)


def _text(data: bytes) -> str:
    """Text that is not UTF-8 is damage; its row's seal will say so."""
    return data.decode(errors="replace")
