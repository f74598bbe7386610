"""What the engine tells: why tasks run, the plan, the event stream; and how little a no-op build imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from build_steps import tasks_of

from toolchain.build import runs
from toolchain.build.events import Event, line, read_event
from toolchain.build.executor import Executor
from toolchain.build.explain import explain, find_task, plan
from toolchain.build.keys import Change, changes, describe, ingredients, key_of
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.core.errors import UsageError

Plan = list[dict[str, Any]]
NETWORK: Plan = [
    {"name": "import:net", "value": 3, "shapes": {"x": [1, 3, 224, 224]}},
    {"name": "optimize:net@x86", "value": 1, "reads": ["import:net"], "level": 2},
    {"name": "kernel:conv_1", "value": 2}, {"name": "kernel:conv_2", "value": 4},
    {"name": "link:net@x86", "value": 0, "reads": ["optimize:net@x86"], "either": ["kernel:conv_1", "kernel:conv_2"]},
    {"name": "verify:net@x86", "value": 0, "reads": ["link:net@x86"], "resource": "machine"},
]
GOAL = "verify:net@x86"


@pytest.fixture(autouse=True)
def run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are called run-1, run-2, ..."""
    begin, count = runs.begin, iter(range(1, 100))
    monkeypatch.setattr(runs, "begin", lambda folder: begin(folder)._replace(id=f"run-{next(count)}"))


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.events = folder, Store(folder / "store"), list[Event]()

    def build(self, entries: Plan, keep_going: bool = False) -> None:
        executor = Executor(self.store, self.folder, jobs=0, on_event=self.events.append, keep_going=keep_going)
        executor.build([tasks_of(entries)[GOAL]])

    def explain(self, entries: Plan, task: str = GOAL) -> str:
        return "\n".join(explain(tasks_of(entries)[task], self.store, self.folder))

    def plan(self, entries: Plan) -> str:
        rows = plan([tasks_of(entries)[GOAL]], self.store, self.folder)
        return "\n".join(f"{t.name:18} {'run' if t.would_run else '-':4}{'certain' if t.certain else 'perhaps':8}"
                         f"{'time known' if t.estimated_s is not None else '':11}{'more to come' if t.open_ended else '':13}"
                         f"{t.reason}".rstrip() for t in rows)


@pytest.fixture
def project(tmp_path: Path) -> Any:
    made = Project(tmp_path)
    yield made
    made.store.close()


def with_(entries: Plan, task: str, **more: Any) -> Plan:
    return [{**e, **more} if e["name"] == task else e for e in entries]


def test_explain_from_nothing_to_up_to_date(project: Project, golden: Callable[..., None]) -> None:
    golden(project.explain(NETWORK), "nothing_built")
    project.build(NETWORK)
    golden(project.explain(NETWORK), "up_to_date")
    golden(project.explain(with_(NETWORK, "import:net", shapes={"x": [8, 3, 224, 224]})), "shape_changed")
    golden(project.explain(with_(NETWORK, "optimize:net@x86", level=3, version=2)), "two_changes")


def test_explain_follows_what_was_rebuilt_to_its_cause(project: Project, golden: Callable[..., None]) -> None:
    """optimize was rebuilt by another build; link would run, and the story goes back to the edited parameter."""
    project.build(NETWORK)
    edited = with_(NETWORK, "import:net", value=5)
    Executor(project.store, project.folder, jobs=0).build([tasks_of(edited)["optimize:net@x86"]])
    golden(project.explain(edited))
    project.build(edited)
    golden(project.explain(edited), "afterwards")


def test_explain_damage(project: Project, golden: Callable[..., None]) -> None:
    project.build(NETWORK)
    for blob in (project.folder / "store" / "objects").glob("*/*"):
        if blob.read_bytes() == b"link:net@x86":
            blob.unlink()
    golden(project.explain(NETWORK, "link:net@x86"))


def test_plan(project: Project, golden: Callable[..., None]) -> None:
    golden(project.plan(NETWORK), "cold")
    project.build(NETWORK)
    golden(project.plan(NETWORK), "nothing_to_do")
    golden(project.plan(with_(NETWORK, "optimize:net@x86", level=3)), "edited")


def test_the_last_reason_is_recorded(project: Project) -> None:
    project.build(NETWORK)
    project.build(with_(NETWORK, "kernel:conv_1", value=8))
    past = project.store.past(str(project.folder), "kernel:conv_1")
    assert past is not None
    assert (past.run_id, past.changes) == ("run-2", (Change("param value", "2", "8"),))
    project.build(NETWORK)                              # back again: found in the store, and that is noted
    past = project.store.past(str(project.folder), "kernel:conv_1")
    assert past is not None
    assert (past.run_id, past.reason, past.changes) == ("run-3", "found in the store", (Change("param value", "8", "2"),))


def test_find_task(project: Project) -> None:
    goals = [tasks_of(NETWORK)[GOAL]]
    assert find_task(goals, "optimize:net@x86", project.store).name == "optimize:net@x86"
    with pytest.raises(UsageError, match=r"no task 'optimise:net@x86'\nfix: did you mean 'optimize:net@x86'"):
        find_task(goals, "optimise:net@x86", project.store)
    with pytest.raises(UsageError, match="no task 'kernel:conv_1'"):
        find_task(goals, "kernel:conv_1", project.store)        # not known before link's inputs are built
    project.build(NETWORK)
    assert find_task(goals, "kernel:conv_1", project.store, project.folder).params["value"] == 2


# -- ingredients ------------------------------------------------------------------------------------------------------


def test_ingredients_are_one_line_per_fact() -> None:
    task = Task("t", "m:f", 3, {"a": {"b": 1, "c": [1, {"z": 2}]}, "d": "x", "e": {}})
    assert ingredients(task, {"graph": "cd"}, {"model": "ab"}) == {
        "format": "1", "run": "m:f", "version": "3", "param a.b": "1", "param a.c": '[1,{"z":2}]', "param d": '"x"',
        "param e": "{}", "file model": "ab", "input graph": "cd"}


@pytest.mark.parametrize("pair", [
    ({"a.b": 1}, {"a": {"b": 1}}), ({"a": 1}, {"a": 1.0}), ({"a": {}}, {"a": []}), ({"a": "1"}, {"a": 1}), ({}, {"a": None}),
    ({"a": "x" * 300 + "y"}, {"a": "x" * 300 + "z"}), ({'"a.b"': 1}, {"a.b": 1}), ({"a": {"b": {}}}, {"a": {'b': "{}"}}),
])
def test_different_parameters_never_share_a_key(pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, other = (key_of(ingredients(Task("t", "m:f", 1, params), {}, {})) for params in pair)
    assert one != other


def test_the_order_of_parameters_does_not_matter() -> None:
    one, other = (Task("t", "m:f", 1, p) for p in ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}))
    assert key_of(ingredients(one, {}, {})) == key_of(ingredients(other, {}, {}))


def test_changes_in_words() -> None:
    old = {"version": "1", "param a": "1", "input g": "a" * 64, "file m": "b" * 64, "param gone": "2"}
    new = {"version": "2", "param a": "5", "input g": "c" * 64, "file m": "b" * 64, "input new": "d" * 64}
    assert list(map(str, changes(old, new))) == [
        "version changed: 1 -> 2", "param a changed: 1 -> 5", "param gone removed: 2",
        "input g changed: aaaaaaaaaaaa -> cccccccccccc", "input new added: dddddddddddd"]
    assert describe(changes(old, new)) == (
        "version changed: 1 -> 2; param a changed: 1 -> 5; param gone removed: 2; and 2 more")


# -- events -----------------------------------------------------------------------------------------------------------


def normalised(events: Sequence[Event], folder: Path) -> str:
    """The stream without what differs from run to run: times, and the temporary folder."""
    text = "\n".join(line(e) for e in events)
    text = re.sub(r'("(?:at|duration|wall|saved|critical|estimated)_s":)[0-9.e-]+', r"\1T", text.replace(str(folder), "DIR"))
    text = re.sub(r'"critical_path":\[.*?\]\]', '"critical_path":[...]', text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "WHEN", text)
    return re.sub(r"runs/[0-9-]+", "runs/RUN", text)


def test_events(project: Project, golden: Callable[..., None]) -> None:
    project.build(NETWORK)
    golden(normalised(project.events, project.folder), "first")
    project.events.clear()
    broken = with_(with_(NETWORK, "link:net@x86", run="crash"), "optimize:net@x86", level=3)
    project.build(broken, keep_going=True)
    golden(normalised([e for e in project.events if type(e).__name__ != "TaskLog"], project.folder), "failed")


def test_events_survive_their_json(project: Project) -> None:
    project.build(with_(NETWORK, "link:net@x86", run="crash"))
    assert len(project.events) > 8
    for event in project.events:
        assert read_event(json.loads(line(event))) == event
    assert read_event({"v": 1, "event": "invented_later", "at_s": 0}) is None


def test_listeners_and_the_record_get_the_same(project: Project) -> None:
    project.build(NETWORK)
    (run,) = runs.recorded(project.folder)
    assert list(runs.events_of(run)) == project.events
    with (run / "events.jsonl").open("a") as file:
        file.write('{"v":1,"event":"task_fin')                  # cut short by a kill
    assert list(runs.events_of(run)) == project.events


# -- the no-op path ---------------------------------------------------------------------------------------------------

HEAVY = ("numpy", "onnx", "llvmlite", "pydantic", "yaml", "rich", "click", "paramiko", "multiprocessing", "asyncio",
         "subprocess", "socket", "pickle", "ctypes", "shutil", "tempfile", "concurrent", "logging", "traceback", "difflib")


def test_a_no_op_build_imports_nothing_heavy(project: Project) -> None:
    tests = Path(__file__).parent
    code = f"""
import json, sys
sys.path.insert(0, {str(tests)!r})
from pathlib import Path
from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.build.task import Task
goal = Task("t", "build_steps:add", 1, {{"name": "t", "value": 1}}, files={{}})
folder = Path({str(project.folder)!r})
build = Executor(Store(folder / "store"), folder, jobs=1).build([goal], {{folder / "out": goal}})
print(json.dumps([build.summary.ran, sorted(sys.modules)]))
"""
    command = [sys.executable, "-c", code]
    first, second = (json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for _ in range(2))
    assert (first[0], second[0]) == (1, 0)
    assert not {name.split(".")[0] for name in second[1]} & set(HEAVY)
    assert "pickle" in first[1]                                 # the test can tell the difference
