"""What tuning has found out, for all projects of a user: `<store>/tuning-1.db` (SQLite, WAL).

    sessions   one search: on which machine, with what; its trials, with every raw sample
    choices    per canonical workload and target the answers a build uses: confirmed ones only

Emptying the store or bounding it leaves this file alone: what it holds cannot be made again in a moment. `export` writes
everything as JSON lines, `merge` reads such lines; of two choices for one kernel the later one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolchain.build.database import Database
from toolchain.core.errors import TuneError

FORMAT = 1
_TABLES = """
create table if not exists sessions (id text primary key, provenance text, finished_s real) without rowid;
create table if not exists trials (session text, n integer, workload text, answers text, times_us text, error text,
    cost_s real, stopped integer, primary key (session, n)) without rowid;
create table if not exists choices (workload text, target text, answers text, name text, default_us real, tuned_us real,
    provenance text, created_s real, primary key (workload, target)) without rowid;
"""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One measured candidate. times_us: raw samples; error: why it has none, or why they do not count."""

    workload: str
    answers: Mapping[str, str]
    times_us: tuple[float, ...]
    error: str
    cost_s: float
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The answers a build gives a kernel, confirmed side by side with the default's. No answers: the default was confirmed.

    target: digest of the Target. provenance: machine, versions, samples of the confirmation. created_s: seconds since 1970.
    """

    workload: str
    target: str
    answers: Mapping[str, str]
    name: str
    default_us: float
    tuned_us: float
    created_s: float
    provenance: Mapping[str, Any] = field(default_factory=dict)


def records_path(store: Path) -> Path:
    return store / f"tuning-{FORMAT}.db"


class Records:
    """One connection; several processes may have one each. A damaged file is set aside (`damaged`: where) and a new one
    begun. Raises TaskError from any method: the file cannot be read or written."""

    def __init__(self, store: Path) -> None:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        (store / "locks").mkdir(exist_ok=True)
        self._db = Database(records_path(store), store / "locks" / "records", _TABLES)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def damaged(self) -> Path | None:
        return self._db.set_aside

    # -- sessions -----------------------------------------------------------------------------------------------------

    def begin(self, session: str, provenance: Mapping[str, Any]) -> float:
        """Note a session, unless it is known. Returns the seconds it had spent when it last came to its end; 0: never."""
        self._db.write([("insert or ignore into sessions values (?, ?, 0)", (session, _json(provenance)))])
        ((finished_s,),) = self._db.rows("select finished_s from sessions where id = ?", session)
        return float(finished_s)

    def finish(self, session: str, spent_s: float) -> None:
        """A session came to the end of its budget."""
        self._db.write([("update sessions set finished_s = ? where id = ?", (spent_s, session))])

    def trials(self, session: str) -> list[TrialRow]:
        """In the order they were measured."""
        rows = self._db.rows(
            "select workload, answers, times_us, error, cost_s, stopped from trials where session = ? order by n", session)
        return [TrialRow(w, json.loads(a), tuple(json.loads(t)), e, c, bool(s)) for w, a, t, e, c, s in rows]

    def append(self, session: str, trial: TrialRow) -> None:
        """Keep one more trial of a session. On disk on return."""
        self._db.write([(
            "insert into trials select ?, coalesce(max(n) + 1, 0), ?, ?, ?, ?, ?, ? from trials where session = ?",
            (session, *_trial_values(trial), session))])

    # -- choices ------------------------------------------------------------------------------------------------------

    def choose(self, choices: Iterable[Choice]) -> None:
        """Keep confirmed answers; later ones take the place of earlier ones."""
        self._db.write([
            ("insert into choices values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set answers = excluded.answers, "
             "name = excluded.name, default_us = excluded.default_us, tuned_us = excluded.tuned_us, "
             "provenance = excluded.provenance, created_s = excluded.created_s where excluded.created_s > created_s",
             (c.workload, c.target, _json(c.answers), c.name, c.default_us, c.tuned_us, _json(c.provenance), c.created_s))
            for c in choices
        ])

    def choices(self, target: str | None = None) -> dict[str, Choice]:
        """By workload: those for a target (the digest of it); or, without one, by workload and target."""
        where, values = ("where target = ?", (target,)) if target is not None else ("", ())
        rows = self._db.rows("select workload, target, answers, name, default_us, tuned_us, created_s, provenance "
                             f"from choices {where} order by workload, target", *values)
        made = [Choice(w, t, json.loads(a), n, d, u, s, json.loads(p)) for w, t, a, n, d, u, s, p in rows]
        return {c.workload if target is not None else f"{c.workload} {c.target}": c for c in made}

    # -- exchange -----------------------------------------------------------------------------------------------------

    def export(self) -> Iterator[str]:
        """Every session, trial and choice, as one JSON line each."""
        yield _json({"v": FORMAT, "kind": "toolchain tuning records"})
        for session, provenance in self._db.rows("select id, provenance from sessions order by id"):
            yield _json({"kind": "session", "id": session, "provenance": json.loads(provenance)})
            for n, trial in enumerate(self.trials(session)):
                yield _json({"kind": "trial", "session": session, "n": n, **asdict(trial)})
        for choice in self.choices().values():
            yield _json({"kind": "choice", **asdict(choice)})

    def merge(self, lines: Iterable[str], where: str) -> int:
        """Take in what another `export` wrote; all of it, or nothing. Returns how many choices it had.

        A session that is known here stays as it is here. Raises TuneError naming the line that is none of ours.
        """
        statements: list[tuple[str, tuple[object, ...]]] = []
        choices: list[Choice] = []
        known = {id_ for (id_,) in self._db.rows("select id from sessions")}
        for number, line in enumerate(lines, 1):
            try:
                data = json.loads(line)
                kind = data.pop("kind")
                if number == 1 and (kind, data) != ("toolchain tuning records", {"v": FORMAT}):
                    raise ValueError("no tuning records of this version")
                if kind == "session" and data["id"] not in known:
                    statements.append(("insert into sessions values (?, ?, 0)", (data["id"], _json(data["provenance"]))))
                elif kind == "trial" and data["session"] not in known:
                    session, n = data.pop("session"), int(data.pop("n"))
                    statements.append(("insert into trials values (?, ?, ?, ?, ?, ?, ?, ?)",
                                       (session, n, *_trial_values(TrialRow(**data)))))
                elif kind == "choice":
                    choices.append(_checked(Choice(**data)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TuneError(f"line {number}: {error}", where=where,
                                fix="give a file that `tc tune --export` wrote") from None
        self._db.write(statements)
        self.choose(choices)
        return len(choices)


def _checked(choice: Choice) -> Choice:
    """Plain text to plain text, and times that are times: what stands in a file may be anything."""
    texts = (choice.workload, choice.target, choice.name, *choice.answers, *choice.answers.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("answers are texts by name")
    if not 0 <= float(choice.tuned_us) <= float(choice.default_us):
        raise ValueError(f"tuned {choice.tuned_us} us, default {choice.default_us} us")
    return choice


def _trial_values(t: TrialRow) -> tuple[object, ...]:
    return t.workload, _json(t.answers), _json(list(t.times_us)), t.error, t.cost_s, int(t.stopped)


def _json(value: Any) -> str:
    """In the order given: a point's answers are replayed in the order its questions are asked."""
    return json.dumps(value)
