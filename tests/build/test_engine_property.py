"""Random task graphs x edits: what is rebuilt is what an oracle says, and the results are right."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build_steps import EXECUTED, tasks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.build.executor import Executor
from toolchain.build.explain import plan as planned
from toolchain.build.store import Store

Plan = list[dict[str, Any]]
FIELDS = ("value", "cut", "version", "source_text")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    plan: Plan = []
    for n in range(draw(st.integers(1, 8))):
        earlier = [entry["name"] for entry in plan]
        reads = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        entry: dict[str, Any] = {"name": f"t{n}", "value": draw(st.integers(0, 9)), "version": 1, "reads": reads,
                                 "cut": draw(st.sampled_from([1, 1, 4, 50])),
                                 "source_text": draw(st.none() | st.sampled_from(["1", "2"]))}
        if len(earlier) >= 2 and draw(st.booleans()):
            entry["either"] = draw(st.lists(st.sampled_from(earlier), min_size=2, max_size=2))
        plan.append(entry)
    return plan


edits = st.tuples(st.integers(0, 7), st.sampled_from(FIELDS), st.integers(1, 9))


def apply(plan: Plan, edit: tuple[int, str, int]) -> Plan:
    which, field, value = edit
    entry = dict(plan[which % len(plan)])
    if field == "source_text":
        entry[field] = None if entry[field] is None else str(value)
    else:
        entry[field] = value
    return [entry if e["name"] == entry["name"] else e for e in plan]


class Oracle:
    """Build systems in ten lines: a task runs when this combination of itself and what it reads was never seen."""

    def __init__(self) -> None:
        self.seen: dict[object, int] = {}

    def build(self, plan: Plan) -> tuple[dict[str, int], set[str]]:
        entries, values, ran = {e["name"]: e for e in plan}, {}, set()

        def value(name: str) -> int:
            if name not in values:
                entry = entries[name]
                read = [value(other) for other in entry["reads"]]
                if "either" in entry:
                    read.append(value(entry["either"][sum(read) % 2]))
                source = entry["source_text"]
                key = (name, entry["value"], entry["cut"], entry["version"], source, tuple(read))
                if key not in self.seen:
                    ran.add(name)
                    self.seen[key] = (entry["value"] + sum(read) + int(source or 0)) // entry["cut"]
                values[name] = self.seen[key]
            return values[name]

        value(plan[-1]["name"])
        return values, ran


def tasks_with_sources(plan: Plan, folder: Path) -> Mapping[str, Any]:
    entries = []
    for entry in plan:
        entry = dict(entry)
        if (text := entry.pop("source_text")) is not None:
            source = folder / f"{entry['name']}.txt"
            if not source.exists() or source.read_text() != text:
                source.write_text(text)
            entry["source"] = str(source)
        entries.append(entry)
    return tasks_of(entries)


@settings(max_examples=80, deadline=None)
@given(plan=plans(), changes=st.lists(edits, max_size=4))
def test_rebuilds_what_the_oracle_says(plan: Plan, changes: list[tuple[int, str, int]]) -> None:
    oracle = Oracle()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "store")
        for step in range(len(changes) + 1):
            values, expected = oracle.build(plan)
            goal = tasks_with_sources(plan, folder)[plan[-1]["name"]]
            would = planned([goal], store, folder)
            EXECUTED.clear()
            build = Executor(store, folder, jobs=0).build([goal]).check()
            assert {n: a.meta["value"] for n, a in build.artifacts.items()} == values
            assert set(EXECUTED) == expected
            assert len(EXECUTED) == len(expected)
            # the plan knew: what needs nothing new for its decision ran, and nothing ran that it did not list or foresee
            new = {t.name for t in would if t.would_run}
            assert {t.name for t in would if t.would_run and t.certain and not new & set(t.inputs)} <= expected
            if not any(t.open_ended for t in would):
                assert expected <= new
            if step < len(changes):
                plan = apply(plan, changes[step])
        store.close()


@settings(max_examples=6, deadline=None)
@given(plan=plans(), change=edits)
def test_workers_rebuild_the_same(plan: Plan, change: tuple[int, str, int]) -> None:
    oracle = Oracle()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for current in (plan, apply(plan, change)):
            values, expected = oracle.build(current)
            store = Store(folder / "store")
            build = Executor(store, folder, jobs=3).build([tasks_with_sources(current, folder)[current[-1]["name"]]]).check()
            store.close()
            assert {n: a.meta["value"] for n, a in build.artifacts.items()} == values
            assert build.summary.ran == len(expected)
