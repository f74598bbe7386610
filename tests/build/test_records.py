"""Tuning records: kept, exchanged, and what becomes of damaged or locked files."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from toolchain.build import database
from toolchain.build.records import Choice, GraphChoice, KeptSample, Prior, Records, TrialRow, records_path
from toolchain.core.errors import TaskError, TuneError
from toolchain.core.unit import STATIC_CYCLES

TRIAL = TrialRow("w1", {"tile": "1x6x2", "order": "rows"}, (10.5, 11.0), "", 0.2)
FAILED = TrialRow("w1", {"tile": "1x1x1"}, (), "crash: killed by SIGSEGV", 0.1)


def choice(workload: str = "w1", created_s: float = 100, answers: dict[str, str] | None = None) -> Choice:
    return Choice(workload, "t1", {"tile": "1x6x2"} if answers is None else answers, "matmul", 12.0, 10.0, created_s,
                  {"machine": "m"})


def test_trials_survive_in_order(tmp_path):
    with Records(tmp_path) as records:
        assert records.begin("s", {"seed": 0}) == (0, {"seed": 0})
        for trial in (TRIAL, FAILED, TRIAL):
            records.append("s", trial)
        records.append("t", FAILED)
        records.finish("s", 4.5, (None, 9))
    with Records(tmp_path) as records:
        assert records.trials("s") == [TRIAL, FAILED, TRIAL]
        assert records.begin("s", {}) == (4.5, {"seed": 0, "runs": [[None, 9]]})
        records.append("s", FAILED)
        assert records.trials("s") == [TRIAL, FAILED, TRIAL, FAILED] and records.trials("other") == []


def test_later_choices_take_the_place_of_earlier_ones(tmp_path):
    with Records(tmp_path) as records:
        records.choose([choice(created_s=100), choice("w2")])
        records.choose([choice(created_s=50, answers={"tile": "older"})])
        assert records.choices("t1") == {"w1": choice(), "w2": choice("w2")}
        records.choose([choice(created_s=200, answers={})])
        assert records.choices("t1")["w1"].answers == {} and records.choices("t2") == {}


def test_what_is_exported_can_be_merged(tmp_path):
    with Records(tmp_path / "a") as a, Records(tmp_path / "b") as b:
        a.begin("s", {"seed": 3})
        a.append("s", TRIAL)
        a.choose([choice(), choice("w2", 300)])
        b.choose([choice(created_s=200, answers={"tile": "mine"})])
        lines = list(a.export())
        assert b.merge(lines, "a.jsonl") == 2 and b.merge(lines, "a.jsonl") == 2
        assert b.trials("s") == [TRIAL]
        assert b.choices("t1")["w1"].answers == {"tile": "mine"} and b.choices("t1")["w2"] == choice("w2", 300)


@pytest.mark.parametrize(("line", "what"), [
    ("{", "line 3: "), ('{"kind": "choice", "workload": "w"}', "line 3: "), ("[]", "line 3: "),
    ('{"kind": "choice", "workload": "w", "target": "t", "answers": {"a": 1}, "name": "n", "default_us": 2, "tuned_us": 1,'
     ' "created_s": 0}', "answers are texts"),
    ('{"kind": "choice", "workload": "w", "target": "t", "answers": {}, "name": "n", "default_us": 1, "tuned_us": 2,'
     ' "created_s": 0}', "tuned 2, default 1: no costs"),
])
def test_a_wrong_line_is_named_and_nothing_is_taken(tmp_path, line, what):
    with Records(tmp_path) as records:
        good = list(records.export()) + ['{"kind": "session", "id": "s", "provenance": {}}']
        with pytest.raises(TuneError, match=what):
            records.merge([*good, line], "x.jsonl")
        assert len(list(records.export())) == 1
        with pytest.raises(TuneError, match="no tuning records of this version"):
            records.merge(['{"v": 99, "kind": "toolchain tuning records"}'], "x.jsonl")


def test_what_older_versions_exported_is_taken_in(tmp_path):
    """Where costs were called microseconds, whatever they were."""
    older = ['{"v": 1, "kind": "toolchain tuning records"}', '{"kind": "session", "id": "s", "provenance": {}}',
             '{"kind": "trial", "session": "s", "n": 0, "workload": "w", "answers": {}, "times_us": [2.0], "error": "", '
             '"cost_s": 1}',
             '{"kind": "choice", "workload": "w", "target": "t", "answers": {}, "name": "n", "default_us": 3, "tuned_us": 2,'
             ' "created_s": 0, "provenance": {"unit": "static cycles"}}']
    with Records(tmp_path) as records:
        assert records.merge(older, "older.jsonl") == 1
        (kept,), (trial,) = records.choices().values(), records.trials("s")
    assert (kept.default_cost, kept.tuned_cost, kept.unit, trial.samples) == (3, 2, STATIC_CYCLES, (2.0,))


def test_a_unit_that_is_none_is_refused(tmp_path):
    line = ('{"kind": "choice", "workload": "w", "target": "t", "answers": {}, "name": "n", "default_cost": 3, '
            '"tuned_cost": 2, "created_s": 0, "provenance": {"unit": "bogomips"}}')
    with Records(tmp_path) as records, pytest.raises(TuneError, match="'bogomips' is not a valid Unit"):
        records.merge([*records.export(), line], "x.jsonl")


def test_a_damaged_file_is_set_aside(tmp_path):
    with Records(tmp_path) as records:
        records.choose([choice()])
    path = records_path(tmp_path)
    for journal in ("-wal", "-shm"):
        path.with_name(path.name + journal).unlink(missing_ok=True)
    path.write_bytes(b"not a database at all" * 100)
    with Records(tmp_path) as records:
        assert records.choices("t1") == {}
        assert records.damaged is not None and records.damaged.read_bytes().startswith(b"not a database")


def test_a_locked_file_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "WAIT_S", 0.05)
    with Records(tmp_path) as records:
        other = sqlite3.connect(records_path(tmp_path))
        other.execute("begin immediate")
        with pytest.raises(TaskError, match=r"another program has locked it") as caught:
            records.choose([choice()])
        assert "fuser" in caught.value.fix
        other.rollback()
        other.close()
        records.choose([choice()])
        assert len(records.choices("t1")) == 1


SAMPLED = TrialRow("w1", {"tile": "1x6x2"}, (9.0, 8.0), "", 0.2, False, "1:1.0:1:text")


def test_samples_of_earlier_sessions_are_kept_beside_their_trials(tmp_path):
    with Records(tmp_path / "a") as a, Records(tmp_path / "b") as b:
        for n, session in enumerate(("old", "new", "none")):
            a.begin(session, {"begun_s": n})
        for session, row in (("old", SAMPLED), ("new", FAILED), ("new", SAMPLED), ("none", TRIAL)):
            a.append(session, row)
        counts = a.trial_counts()
        assert counts == {"new": 2, "old": 1}                       # the latest first; one without samples is none
        a.append("new", SAMPLED)                                    # what comes later is not part of what was counted
        kept = [KeptSample("new", "w1", SAMPLED.sample, 8.0), KeptSample("old", "w1", SAMPLED.sample, 8.0)]
        assert list(a.samples(counts)) == kept
        b.merge(a.export(), "a.jsonl")
        assert list(b.samples(counts)) == kept and b.trials("old") == [SAMPLED]


GRAPH = GraphChoice("g1", "t1", {"n1": {"direct:NCHW:NCHW": 12.5, "winograd4:NCHW8c:NCHW8c": 7.0}}, "net@x86", 150.0, 100.0,
                    100.0, {"machine": "m"})


def test_what_decides_graphs_is_kept_and_exchanged(tmp_path):
    with Records(tmp_path / "a") as a, Records(tmp_path / "b") as b:
        a.choose_graphs([GRAPH, replace(GRAPH, target="t2", created_s=50.0)])
        assert a.graph_choices("t1") == [GRAPH] and len(a.graph_choices()) == 2
        b.choose_graphs([replace(GRAPH, costs={}, created_s=200.0)])
        lines = list(a.export())
        b.merge(lines, "a.jsonl")
        assert [c.costs for c in b.graph_choices()] == [{}, GRAPH.costs]            # the later one counts
        bad = [lines[0], lines[1].replace("12.5", "-1")], [lines[0], lines[1].replace("12.5", '"x"')], [
            lines[0], lines[1].replace("100.0", "300.0", 1)]
        for broken in bad:
            with pytest.raises(TuneError, match="line 2: "):
                b.merge(broken, "x.jsonl")


def test_a_file_from_before_there_were_samples_gets_them(tmp_path):
    with Records(tmp_path) as records:
        records.choose([choice()])
    db = sqlite3.connect(records_path(tmp_path))
    for table in ("samples", "priors", "graphs"):
        db.execute(f"drop table {table}")
    db.execute("pragma user_version = 1")
    db.commit()
    db.close()
    with Records(tmp_path) as records:
        assert records.damaged is None and records.choices("t1") == {"w1": choice()}
        records.append("s", SAMPLED)
        assert records.trials("s") == [SAMPLED] and records.priors("conv") == records.graph_choices() == []


def test_priors_are_the_fastest_per_operator_and_target(tmp_path):
    slow, fast = Prior("conv", "t", {"a": [1]}, 9.0, "x.log"), Prior("conv", "t", {"a": [2]}, 5.0, "y.log")
    other = Prior("conv", "u", {"a": [3]}, 7.0, "x.log")
    with Records(tmp_path / "a") as a, Records(tmp_path / "b") as b:
        a.add_priors([slow, fast, other, slow])
        assert a.priors("conv") == [fast, other] and a.priors("matmul") == []
        b.merge(a.export(), "a.jsonl")
        assert b.priors("conv") == [fast, other]


def test_hints_are_what_other_targets_chose(tmp_path):
    with Records(tmp_path) as records:
        records.choose([choice(), replace(choice(), target="t2", answers={"tile": "2x2x2"}),
                        replace(choice(), target="t3", answers={})])
        assert records.hints("w1", "t1") == [{"tile": "2x2x2"}] and records.hints("w2", "t1") == []
