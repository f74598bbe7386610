"""What tuning has found out, for all projects of a user: `<store>/tuning-1.db` (SQLite, WAL).

    sessions   one search: on which machine, with what; its trials, with every raw sample, and what cost models learn of them
    choices    per canonical workload and target the answers a build uses: confirmed ones only
    graphs     per model graph and target what alternatives of its nodes cost, which decides algorithms and layouts: only
               where a whole network became faster by it
    priors     what other compilers' logs say of an operator: hints for a search, never a build's choice

Emptying the store or bounding it leaves this file alone: what it holds cannot be made again in a moment. `export` writes
everything as JSON lines, `merge` reads such lines; of two choices for one kernel the later one counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolchain.build.database import Database, Statement
from toolchain.core.errors import TuneError
from toolchain.core.unit import MICROSECONDS, Unit

FORMAT = 1
EXPORT = 2                              # 1: costs were called times_us, default_us and tuned_us, whatever their unit
TABLES_VERSION = 3                      # 2: samples and priors beside what there was; 3: graphs
_TABLES = """
create table if not exists sessions (id text primary key, provenance text, finished_s real) without rowid;
create table if not exists trials (session text, n integer, workload text, answers text, times_us text, error text,
    cost_s real, stopped integer, primary key (session, n)) without rowid;
create table if not exists choices (workload text, target text, answers text, name text, default_us real, tuned_us real,
    provenance text, created_s real, primary key (workload, target)) without rowid;
create table if not exists samples (session text, n integer, sample text, primary key (session, n)) without rowid;
create table if not exists priors (operator text, target text, knobs text, us real, source text,
    primary key (operator, target)) without rowid;
create table if not exists graphs (graph text, target text, costs text, name text, default_us real, tuned_us real,
    provenance text, created_s real, primary key (graph, target)) without rowid;
"""
MOST_PRIOR_TRIALS = 5000                # of earlier sessions that a new one learns from
# Columns named `..._us` hold costs in the unit that the provenance of the row, or of its session, names, microseconds where
# it names none. They are older than the other unit, and older versions read the file, too; here they are costs with a unit.


def _unit(row: str) -> str:
    return f"coalesce(json_extract({row}provenance, '$.unit'), '{MICROSECONDS}')"


_TAKES_ITS_PLACE = (
    f"case when {_unit('')} = {_unit('excluded.')} then excluded.created_s > created_s "
    f"else {_unit('excluded.')} = '{MICROSECONDS}' end")


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One measured candidate. samples: raw costs, in its session's unit; error: why it has none, or why they do not count.
    sample: what cost models learn from (`tasks.tuning.samples`), a text that nobody here reads."""

    workload: str
    answers: Mapping[str, str]
    samples: tuple[float, ...]
    error: str
    cost_s: float
    stopped: bool = False
    sample: str = ""


@dataclass(frozen=True, slots=True)
class KeptSample:
    """A trial as a cost model sees it. best_cost: infinite where it failed."""

    session: str
    workload: str
    sample: str
    best_cost: float


@dataclass(frozen=True, slots=True)
class Prior:
    """What a foreign log says: with these knobs (by the log's names), an operator took `us` on a target (the log's text)."""

    operator: str
    target: str
    knobs: Mapping[str, Any]
    us: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The answers a build gives a kernel, confirmed side by side with the default's. No answers: the default was confirmed.

    target: digest of the Target. provenance: machine, versions, samples of the confirmation; the unit of all costs where
    that is not microseconds. created_s: seconds since 1970.
    """

    workload: str
    target: str
    answers: Mapping[str, str]
    name: str
    default_cost: float
    tuned_cost: float
    created_s: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        return unit_in(self.provenance)


@dataclass(frozen=True, slots=True)
class GraphChoice:
    """What decides algorithms and layouts of a model's graph, and the whole network's costs with and without it.

    graph: digest of the imported graph, weights left out. costs: by key of a node, then by alternative
    (`kernels.alternatives`); none: the graph by Target facts was confirmed. provenance: machine, versions, what lost,
    the unit as a Choice's.
    """

    graph: str
    target: str
    costs: Mapping[str, Mapping[str, float]]
    name: str
    default_cost: float
    tuned_cost: float
    created_s: float
    provenance: Mapping[str, Any] = field(default_factory=dict)


def unit_in(provenance: Mapping[str, Any]) -> Unit:
    """Of the costs that it is about. Raises ValueError: a unit that is none of ours."""
    return Unit(provenance.get("unit", MICROSECONDS))


def records_path(store: Path) -> Path:
    return store / f"tuning-{FORMAT}.db"


class Records:
    """One connection; several processes may have one each. A damaged file is set aside (`damaged`: where) and a new one
    begun. Raises TaskError from any method: the file cannot be read or written."""

    def __init__(self, store: Path) -> None:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        (store / "locks").mkdir(exist_ok=True)
        self._db = Database(records_path(store), store / "locks" / "records", _TABLES, TABLES_VERSION)

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

    def begin(self, session: str, provenance: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        """Note a session, unless it is known. Returns the seconds it had spent when it last came to its end (0: never), and
        the provenance it began with: what it was told then, it is told again."""
        self._db.write([("insert or ignore into sessions values (?, ?, 0)", (session, _json(provenance)))])
        ((finished_s, begun_with),) = self._db.rows("select finished_s, provenance from sessions where id = ?", session)
        return float(finished_s), json.loads(begun_with)

    def finish(self, session: str, spent_s: float, limits: Sequence[float | None] = ()) -> None:
        """A session came to the end of its budget. limits: what ended it, added to the "runs" of its provenance."""
        self._db.write([(
            "update sessions set finished_s = ?, provenance = json_set(provenance, '$.runs', "
            "json_insert(coalesce(json_extract(provenance, '$.runs'), '[]'), '$[#]', json(?))) where id = ?",
            (spent_s, _json(list(limits)), session))])

    def sessions(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Those with trials: name, provenance, and how many trials; the oldest first."""
        rows = self._db.rows("select s.id, s.provenance, count(*) from sessions s join trials t on t.session = s.id "
                             "group by s.id order by json_extract(s.provenance, '$.begun_s'), s.id")
        for session, provenance, trials in rows:
            yield session, json.loads(provenance), trials

    def trials(self, session: str) -> list[TrialRow]:
        """In the order they were measured."""
        rows = self._db.rows(
            "select t.workload, t.answers, t.times_us, t.error, t.cost_s, t.stopped, coalesce(s.sample, '') from trials t "
            "left join samples s on s.session = t.session and s.n = t.n where t.session = ? order by t.n", session)
        return [TrialRow(w, json.loads(a), tuple(json.loads(t)), e, c, bool(s), x) for w, a, t, e, c, s, x in rows]

    def append(self, session: str, trial: TrialRow) -> None:
        """Keep one more trial of a session. On disk on return."""
        next_n = "select ?, coalesce(max(n) + 1, 0)"
        statements: list[Statement] = [(
            f"insert into trials {next_n}, ?, ?, ?, ?, ?, ? from trials where session = ?",
            (session, *_trial_values(trial), session))]
        if trial.sample:
            statements.append(("insert into samples select ?, max(n), ? from trials where session = ?",
                               (session, trial.sample, session)))
        self._db.write(statements)

    def trial_counts(self, unit: Unit = MICROSECONDS) -> dict[str, int]:
        """Sessions with samples in a unit and how many trials each has, the latest, at most MOST_PRIOR_TRIALS in all."""
        rows = self._db.rows(
            "select s.id, count(*) from sessions s join trials t on t.session = s.id where exists "
            f"(select 1 from samples where session = s.id) and {_unit('s.')} = ? group by s.id "
            "order by json_extract(s.provenance, '$.begun_s') desc", unit)
        counts: dict[str, int] = {}
        for session, n in rows:
            if sum(counts.values()) + n > MOST_PRIOR_TRIALS and counts:
                break
            counts[session] = n
        return counts

    def samples(self, counts: Mapping[str, int]) -> Iterator[KeptSample]:
        """Of the first trials of some sessions, in order; what `trial_counts` said once stays what it was."""
        for session in sorted(counts):
            for trial in self.trials(session)[:counts[session]]:
                if trial.sample:
                    best = min(trial.samples) if trial.samples and not trial.error else math.inf
                    yield KeptSample(session, trial.workload, trial.sample, best)

    # -- choices ------------------------------------------------------------------------------------------------------

    def choose(self, choices: Iterable[Choice]) -> None:
        """Keep confirmed answers; later ones take the place of earlier ones, measured times that of any other cost."""
        self._db.write([
            ("insert into choices values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set answers = excluded.answers, "
             "name = excluded.name, default_us = excluded.default_us, tuned_us = excluded.tuned_us, "
             f"provenance = excluded.provenance, created_s = excluded.created_s where {_TAKES_ITS_PLACE}",
             (c.workload, c.target, _json(c.answers), c.name, c.default_cost, c.tuned_cost, _json(c.provenance),
              c.created_s))
            for c in choices
        ])

    def choices(self, target: str | None = None) -> dict[str, Choice]:
        """By workload: those for a target (the digest of it); or, without one, by workload and target."""
        where, values = ("where target = ?", (target,)) if target is not None else ("", ())
        rows = self._db.rows("select workload, target, answers, name, default_us, tuned_us, created_s, provenance "
                             f"from choices {where} order by workload, target", *values)
        made = [Choice(w, t, json.loads(a), n, d, u, s, json.loads(p)) for w, t, a, n, d, u, s, p in rows]
        return {c.workload if target is not None else f"{c.workload} {c.target}": c for c in made}

    def hints(self, workload: str, target: str) -> list[dict[str, str]]:
        """Confirmed answers for a workload on other targets, the latest first."""
        rows = self._db.rows("select answers from choices where workload = ? and target != ? order by created_s desc",
                             workload, target)
        return [answers for (text,) in rows if (answers := json.loads(text))]

    def choose_graphs(self, choices: Iterable[GraphChoice]) -> None:
        """Keep what decides graphs; as `choose`."""
        self._db.write([
            ("insert into graphs values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set costs = excluded.costs, "
             "name = excluded.name, default_us = excluded.default_us, tuned_us = excluded.tuned_us, "
             f"provenance = excluded.provenance, created_s = excluded.created_s where {_TAKES_ITS_PLACE}",
             (c.graph, c.target, _json(c.costs), c.name, c.default_cost, c.tuned_cost, _json(c.provenance), c.created_s))
            for c in choices
        ])

    def graph_choices(self, target: str | None = None) -> list[GraphChoice]:
        """Of one target, or all."""
        where, values = ("where target = ?", (target,)) if target is not None else ("", ())
        rows = self._db.rows("select graph, target, costs, name, default_us, tuned_us, created_s, provenance "
                             f"from graphs {where} order by graph, target", *values)
        return [GraphChoice(g, t, json.loads(c), n, d, u, s, json.loads(p)) for g, t, c, n, d, u, s, p in rows]

    # -- priors -------------------------------------------------------------------------------------------------------

    def add_priors(self, priors: Iterable[Prior]) -> None:
        """Keep the fastest per operator and target."""
        self._db.write([
            ("insert into priors values (?, ?, ?, ?, ?) on conflict do update set knobs = excluded.knobs, us = excluded.us, "
             "source = excluded.source where excluded.us < us", (p.operator, p.target, _json(p.knobs), p.us, p.source))
            for p in priors
        ])

    def priors(self, operator: str) -> list[Prior]:
        """The fastest first."""
        rows = self._db.rows("select operator, target, knobs, us, source from priors where operator = ? order by us, target",
                             operator)
        return [Prior(o, t, json.loads(k), us, s) for o, t, k, us, s in rows]

    # -- exchange -----------------------------------------------------------------------------------------------------

    def export(self) -> Iterator[str]:
        """Every session, trial and choice, as one JSON line each."""
        yield _json({"v": EXPORT, "kind": "toolchain tuning records"})
        for session, provenance in self._db.rows("select id, provenance from sessions order by id"):
            yield _json({"kind": "session", "id": session, "provenance": json.loads(provenance)})
            for n, trial in enumerate(self.trials(session)):
                yield _json({"kind": "trial", "session": session, "n": n, **asdict(trial)})
        for choice in self.choices().values():
            yield _json({"kind": "choice", **asdict(choice)})
        for graph in self.graph_choices():
            yield _json({"kind": "graph", **asdict(graph)})
        for operator, target, knobs, us, source in self._db.rows("select * from priors order by operator, target"):
            yield _json({"kind": "prior", **asdict(Prior(operator, target, json.loads(knobs), us, source))})

    def merge(self, lines: Iterable[str], where: str) -> int:
        """Take in what another `export` wrote; all of it, or nothing. Returns how many choices it had.

        A session that is known here stays as it is here. Raises TuneError naming the line that is none of ours.
        """
        statements: list[tuple[str, tuple[object, ...]]] = []
        choices: list[Choice] = []
        graphs: list[GraphChoice] = []
        priors: list[Prior] = []
        known = {id_ for (id_,) in self._db.rows("select id from sessions")}
        for number, line in enumerate(lines, 1):
            try:
                data = json.loads(line)
                kind = data.pop("kind")
                if number == 1 and (kind != "toolchain tuning records" or data not in [{"v": v + 1} for v in range(EXPORT)]):
                    raise ValueError("no tuning records of this version")
                data = {_RENAMED.get(key, key): value for key, value in data.items()}
                if kind == "session" and data["id"] not in known:
                    statements.append(("insert into sessions values (?, ?, 0)", (data["id"], _json(data["provenance"]))))
                elif kind == "trial" and data["session"] not in known:
                    session, n = data.pop("session"), int(data.pop("n"))
                    trial = TrialRow(**data)
                    statements.append(("insert into trials values (?, ?, ?, ?, ?, ?, ?, ?)",
                                       (session, n, *_trial_values(trial))))
                    if trial.sample:
                        statements.append(("insert into samples values (?, ?, ?)", (session, n, str(trial.sample))))
                elif kind == "prior":
                    priors.append(Prior(**data))
                elif kind == "choice":
                    choices.append(_checked(Choice(**data)))
                elif kind == "graph":
                    graphs.append(_checked_graph(GraphChoice(**data)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TuneError(f"line {number}: {error}", where=where,
                                fix="give a file that `tc tune --export` wrote") from None
        self._db.write(statements)
        self.add_priors(priors)
        self.choose(choices)
        self.choose_graphs(graphs)
        return len(choices)


_RENAMED = {"times_us": "samples", "default_us": "default_cost", "tuned_us": "tuned_cost"}         # since the first EXPORT


def _checked(choice: Choice) -> Choice:
    """Plain text to plain text, and times that are times: what stands in a file may be anything."""
    texts = (choice.workload, choice.target, choice.name, *choice.answers, *choice.answers.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("answers are texts by name")
    unit_in(choice.provenance)
    if not 0 <= float(choice.tuned_cost) <= float(choice.default_cost):
        raise ValueError(f"tuned {choice.tuned_cost}, default {choice.default_cost}: no costs")
    return choice


def _checked_graph(choice: GraphChoice) -> GraphChoice:
    """As `_checked`."""
    unit_in(choice.provenance)
    names = (choice.graph, choice.target, choice.name, *choice.costs, *(n for us in choice.costs.values() for n in us))
    if not all(isinstance(text, str) for text in names):
        raise ValueError("costs are numbers by name")
    if not all(0 < float(us) < math.inf for found in choice.costs.values() for us in found.values()):
        raise ValueError("a cost is no time")
    if not 0 <= float(choice.tuned_cost) <= float(choice.default_cost):
        raise ValueError(f"tuned {choice.tuned_cost}, default {choice.default_cost}: no costs")
    return choice


def _trial_values(t: TrialRow) -> tuple[object, ...]:
    return t.workload, _json(t.answers), _json(list(t.samples)), t.error, t.cost_s, int(t.stopped)


def _json(value: Any) -> str:
    """In the order given: a point's answers are replayed in the order its questions are asked."""
    return json.dumps(value)
