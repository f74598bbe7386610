"""The executor: what runs, what does not, how failures look, and that one task's death is nobody else's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import build_steps
import pytest
from build_steps import EXECUTED, tasks_of

from toolchain.build.events import Event, Progress, TaskFinished, TaskStarted, Warned
from toolchain.build.executor import Build, Executor, available_cores
from toolchain.build.frontier import Node
from toolchain.build.journal import critical_path
from toolchain.build.runs import KEEP, events_of, recorded
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.core.errors import DeviceError, ScheduleError, TaskError

CHAIN = [{"name": "a", "value": 1}, {"name": "b", "value": 2, "reads": ["a"]},
         {"name": "c", "value": 3, "reads": ["a", "b"]}]


class Bench:
    """A store, a project, and builds in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, folder / "project"
        self.project.mkdir()
        self.events: list[Event] = []

    def build(
        self, plan: Sequence[Mapping[str, Any]], goals: Sequence[str] = (), *, jobs: int = 0, **options: Any,
    ) -> Build:
        tasks = tasks_of(plan)
        self.events.clear()
        EXECUTED.clear()
        store = Store(self.folder / "store")
        try:
            executor = Executor(store, self.project, jobs=jobs, on_event=self.events.append, **options)
            return executor.build([tasks[name] for name in goals or list(tasks)[-1:]])
        finally:
            store.close()

    def ran(self) -> list[str]:
        return sorted(e.task for e in self.events if isinstance(e, TaskFinished) and not e.cached)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def edited(plan: Sequence[Mapping[str, Any]], task: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**entry, **changes} if entry["name"] == task else dict(entry) for entry in plan]


@pytest.mark.parametrize("jobs", [0, 2])
def test_runs_once_then_finds_everything(bench: Bench, jobs: int) -> None:
    build = bench.build(CHAIN, jobs=jobs).check()
    assert bench.ran() == ["a", "b", "c"]
    assert build.artifacts["c"].meta == {"value": 7}
    assert set(build.artifacts["c"].files) == {"value.txt", "more/name.txt"}
    again = bench.build(CHAIN, jobs=jobs).check()
    assert bench.ran() == []
    assert again.artifacts == build.artifacts
    assert (again.summary.cached, again.summary.ran) == (3, 0)


def test_an_edit_runs_what_it_reaches_and_no_more(bench: Bench) -> None:
    bench.build(CHAIN)
    bench.build(edited(CHAIN, "b", value=5))
    assert bench.ran() == ["b", "c"]
    bench.build(CHAIN)
    assert bench.ran() == []                    # the store still has the old results


def test_equal_results_stop_an_edit(bench: Bench) -> None:
    plan = edited(CHAIN, "b", cut=100)
    bench.build(plan)
    build = bench.build(edited(plan, "b", value=7, cut=100))
    assert bench.ran() == ["b"]
    assert build.summary.cached == 2


def test_a_changed_source_file_is_noticed(bench: Bench) -> None:
    source = bench.folder / "source.txt"
    source.write_text("10")
    plan = edited(CHAIN, "a", source=str(source))
    assert bench.build(plan).artifacts["c"].meta == {"value": 27}
    source.write_text("20")
    assert bench.build(plan).artifacts["c"].meta == {"value": 47}
    os.utime(source)                            # other times, same bytes
    bench.build(plan)
    assert bench.ran() == []


def test_a_missing_source_file_is_the_tasks_failure(bench: Bench) -> None:
    build = bench.build(edited(CHAIN, "b", source="/nonexistent/model.onnx"))
    assert str(build.failed["b"]) == "/nonexistent/model.onnx: cannot read a source file: No such file or directory"
    assert build.skipped == ("c",)


def test_a_source_edited_while_it_is_read_makes_the_task_run_again(bench: Bench) -> None:
    source = bench.folder / "source.txt"
    source.write_text("before")
    plan = [{"name": "t", "run": "edit_source", "source": str(source)}]
    assert bench.build(plan).artifacts["t"].meta == {"text": "after!"}
    assert [e.text for e in bench.events if isinstance(e, Warned)] == ["its source files changed while it ran; once more"]
    bench.build(plan)
    assert bench.ran() == []


@pytest.mark.parametrize("jobs", [0, 2])
def test_dynamic_needs(bench: Bench, jobs: int) -> None:
    plan = [{"name": "a", "value": 2}, {"name": "even", "value": 10}, {"name": "odd", "value": 20},
            {"name": "top", "value": 0, "reads": ["a"], "either": ["even", "odd"]}]
    assert bench.build(plan, jobs=jobs).artifacts["top"].meta == {"value": 12}
    assert bench.ran() == ["a", "even", "top"]
    assert bench.build(edited(plan, "a", value=3), jobs=jobs).artifacts["top"].meta == {"value": 23}
    assert bench.ran() == ["a", "odd", "top"]
    bench.build(edited(plan, "odd", value=21))
    assert bench.ran() == []                    # nobody needs it


def test_tasks_of_one_key_run_once(bench: Bench) -> None:
    twins = [Task(name, "build_steps:add", 1, {"name": "twin", "value": 1, "sleep_s": 0.05}) for name in ("t1", "t2")]
    store = Store(bench.folder / "store")
    build = Executor(store, bench.project, jobs=2, on_event=bench.events.append).build(twins)
    store.close()
    assert len(bench.ran()) == 1
    assert build.artifacts["t1"] == build.artifacts["t2"]


def test_a_thousand_deep(bench: Bench) -> None:
    plan = [{"name": "t0", "value": 1}] + [{"name": f"t{n}", "value": 0, "reads": [f"t{n - 1}"]} for n in range(1, 1000)]
    store = Store(bench.folder / "store")
    tasks = tasks_of(plan)
    build = Executor(store, None, jobs=0).build([tasks["t999"]])
    assert build.artifacts["t999"].meta == {"value": 1}
    assert build.record is None
    store.close()


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [0, 1])
def test_our_errors_arrive_as_they_are(bench: Bench, jobs: int) -> None:
    build = bench.build([{"name": "t", "run": "refuse"}], jobs=jobs)
    error = build.failed["t"]
    assert type(error) is ScheduleError
    assert str(error) == "kernel 'conv1': factor 3 does not fit\nfix: choose 4"
    assert build.exit_code == 1
    with pytest.raises(ScheduleError):
        build.check()


def test_an_error_class_that_does_not_travel_keeps_its_text(bench: Bench) -> None:
    error = bench.build([{"name": "t", "run": "refuse_strangely"}], jobs=1).failed["t"]
    assert (type(error), error.what, error.where) == (DeviceError, "the board is gone", "pi4")


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_bug_in_a_step_leaves_its_traceback_in_the_log(bench: Bench, jobs: int) -> None:
    build = bench.build([{"name": "t", "run": "crash"}], jobs=jobs)
    error = build.failed["t"]
    assert isinstance(error, TaskError)
    assert error.what == "ZeroDivisionError: integer division or modulo by zero"
    log = Path(error.fix.removeprefix("see "))
    assert log.read_text().startswith("about to divide\nTraceback")
    assert 'build_steps.py", line' in log.read_text()


def test_failures_are_not_remembered(bench: Bench) -> None:
    plan = [{"name": "t", "run": "crash"}]
    bench.build(plan)
    assert bench.build(plan).failed.keys() == {"t"}
    assert [e.task for e in bench.events if isinstance(e, TaskStarted)] == ["t"]


@pytest.mark.parametrize(("keep_going", "ran"), [(False, []), (True, ["other", "second"])])
def test_keep_going(bench: Bench, keep_going: bool, ran: list[str]) -> None:
    plan = [{"name": "bad", "run": "crash"}, {"name": "after", "value": 1, "reads": ["bad"]},
            {"name": "last", "value": 1, "reads": ["after"]}, {"name": "other", "value": 1},
            {"name": "second", "value": 1, "reads": ["other"]}]
    build = bench.build(plan, ["bad", "last", "second"], keep_going=keep_going)
    assert bench.ran() == ran
    assert build.failed.keys() == {"bad"}
    assert sorted(build.skipped) == ["after", "last"]
    assert build.summary.status == "failed"


def test_an_abort_fails_only_its_task(bench: Bench) -> None:
    plan = [{"name": "bad", "run": "abort"}, *({"name": f"t{n}", "value": n} for n in range(8))]
    build = bench.build(plan, [entry["name"] for entry in plan], jobs=2, keep_going=True)
    assert build.failed["bad"].what == "worker died (signal 6, SIGABRT)"
    assert len(bench.ran()) == 8
    assert [e.text for e in bench.events if isinstance(e, Warned)] == ["worker died (signal 6, SIGABRT); trying once more"]


def test_a_death_is_tried_again_once(bench: Bench) -> None:
    build = bench.build([{"name": "t", "run": "abort", "once": str(bench.folder / "marker")}], jobs=1)
    assert build.check().artifacts["t"].meta == {"value": 1}
    assert [e.attempt for e in bench.events if isinstance(e, TaskStarted)] == [1, 2]


@pytest.mark.parametrize(("run", "what"), [
    ("leave_link", "'passwd' is not a regular file; a step may leave only files and folders"),
    ("not_plain", "the step's meta is not plain data: Object of type set is not JSON serializable"),
    ("no_such_step", "cannot load the step 'build_steps:no_such_step': "
                     "module 'build_steps' has no attribute 'no_such_step'"),
])
def test_steps_that_break_the_rules(bench: Bench, run: str, what: str) -> None:
    assert bench.build([{"name": "t", "run": run}], jobs=0).failed["t"].what == what


def test_a_cycle_is_named(bench: Bench) -> None:
    inputs: dict[str, Task] = {}
    a = Task("a", "build_steps:add", 1, inputs=inputs)
    inputs["x"] = Task("b", "build_steps:add", 1, inputs={"x": a})
    store = Store(bench.folder / "store")
    with pytest.raises(TaskError, match=r"tasks need each other: (a -> b -> a|b -> a -> b)"):
        Executor(store, bench.project, jobs=0).build([a])
    store.close()


def test_one_name_means_one_task(bench: Bench) -> None:
    pair = [Task("t", "build_steps:add", 1, {"value": v}) for v in (1, 2)]
    store = Store(bench.folder / "store")
    with pytest.raises(TaskError, match="two different tasks have this name: their params differ"):
        Executor(store, bench.project, jobs=0).build(pair)
    store.close()


def test_parameters_must_be_plain_data(bench: Bench) -> None:
    build = bench.build([{"name": "t", "value": {1, 2}}])
    assert build.failed["t"].what == "parameters are not plain data: Object of type set is not JSON serializable"


def test_what_needs_raises_fails_that_task(bench: Bench) -> None:
    def needs(_: object) -> Mapping[str, Task]:
        raise KeyError("kernels")

    store = Store(bench.folder / "store")
    build = Executor(store, bench.project, jobs=0).build([Task("t", "build_steps:add", 1, needs=needs)])
    store.close()
    assert str(build.failed["t"]) == "task 't': cannot tell what it needs: KeyError: 'kernels'"


def test_a_failed_task_leaves_a_folder_that_runs_it_again(bench: Bench) -> None:
    plan = [{"name": "a/b: 1", "value": 1}, {"name": "bad: x", "run": "crash", "reads": ["a/b: 1"], "deep": {"k": [1]}}]
    bench.build(plan, jobs=1)
    (folder,) = (bench.project / ".tc" / "failed").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["call.json", "error.txt", "inputs", "log", "params.json", "run.sh"]
    assert (folder / "inputs" / "r0" / "value.txt").read_text() == "1\n"
    again = subprocess.run(["sh", str(folder / "run.sh")], capture_output=True, text=True, cwd="/")
    assert again.returncode != 0
    assert "about to divide" in again.stdout
    assert "ZeroDivisionError" in again.stderr
    bench.build([plan[0], {"name": "bad: x", "value": 1}], jobs=0)
    assert not folder.exists()                  # it has succeeded since


# -- side by side -----------------------------------------------------------------------------------------------------


def spans(bench: Bench) -> dict[str, tuple[float, float]]:
    started = {e.task: e.at_s for e in bench.events if isinstance(e, TaskStarted)}
    return {e.task: (started[e.task], e.at_s) for e in bench.events if isinstance(e, TaskFinished) and not e.cached}


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_resources_are_used_by_one_at_a_time(bench: Bench) -> None:
    plan = [{"name": f"{kind}{n}", "value": n, "sleep_s": 0.03, "resource": resource}
            for n in range(3) for kind, resource in (("board", "board:pi4"), ("alone", "machine"), ("free", ""))]
    bench.build(plan, [entry["name"] for entry in plan], jobs=4).check()
    seen = spans(bench)
    pairs = [(a, b) for a in seen for b in seen if a < b and overlap(seen[a], seen[b])]
    assert len(seen) == 9
    assert pairs                                # free tasks do run side by side
    for a, b in pairs:
        assert "alone" not in a + b
        assert not (a.startswith("board") and b.startswith("board"))


def test_logs_and_progress_and_programs(bench: Bench) -> None:
    build = bench.build([{"name": "t", "run": "talk"}], jobs=1).check()
    assert build.record is not None
    assert (build.record / "logs" / "t.txt").read_text() == "from python\nfrom native code\n" or \
        (build.record / "logs" / "t.txt").read_text() == "from native code\nfrom python\n"
    assert [(e.done, e.total, e.text) for e in bench.events if isinstance(e, Progress)] == [(1, 2, "half")]
    assert build.artifacts["t"].files["run.sh"].executable


def test_the_last_runs_stay_on_record(bench: Bench) -> None:
    for n in range(KEEP + 3):
        bench.build([{"name": "t", "value": n}])
    runs = recorded(bench.project)
    assert len(runs) == KEEP
    assert list(events_of(runs[-1])) == bench.events


def test_the_critical_path_is_the_longest_chain() -> None:
    nodes = {name: Node(Task(name, "", 1)) for name in "abcd"}
    nodes["c"].inputs = {"x": nodes["a"], "y": nodes["b"]}
    nodes["d"].inputs = {"x": nodes["a"]}
    assert critical_path({nodes["a"]: 1.0, nodes["b"]: 2.0, nodes["c"]: 1.0, nodes["d"]: 1.5}) == (("b", 2.0), ("c", 1.0))


def test_jobs_default_to_the_cores_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert available_cores() == 3
    store = Store(tmp_path)
    assert Executor(store).jobs == 3
    store.close()


def test_workers_end_with_their_builder(bench: Bench, wait_for: Callable[..., None]) -> None:
    notes, plan = bench.folder / "notes", bench.folder / "plan.json"
    plan.write_text(f'[{{"name": "t", "value": 1, "sleep_s": 60, "notes": "{notes}"}}]')
    builder = subprocess.Popen(builder_command(bench.folder, 1), start_new_session=True)
    wait_for(lambda: notes.exists() and notes.read_text().endswith("\n"))
    pid = int(notes.read_text().split()[-1])
    assert alive(pid)
    builder.kill()
    builder.wait()
    wait_for(lambda: not alive(pid))


def test_an_interrupt_ends_workers_and_exits_130(bench: Bench, wait_for: Callable[..., None]) -> None:
    notes, plan = bench.folder / "notes", bench.folder / "plan.json"
    plan.write_text(f'[{{"name": "t", "value": 1, "sleep_s": 60, "notes": "{notes}"}}]')
    builder = subprocess.Popen(builder_command(bench.folder, 1), start_new_session=True)
    wait_for(lambda: notes.exists() and notes.read_text().endswith("\n"))
    pid = int(notes.read_text().split()[-1])
    builder.send_signal(2)
    assert builder.wait() == 130
    wait_for(lambda: not alive(pid))
    (run,) = recorded(bench.project)
    assert list(events_of(run))[-1].status == "interrupted"
    assert list((bench.folder / "store" / "tmp").iterdir()) == []


def builder_command(folder: Path, jobs: int) -> list[str]:
    return build_steps.command(folder / "store", folder / "project", folder / "plan.json", jobs)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def wait_for() -> Callable[..., None]:
    def wait(condition: Callable[[], bool], limit_s: float = 20) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait
