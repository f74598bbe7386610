"""What must hold whatever happens: kill -9, builders at the same time, flipped bytes, full disks."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from build_steps import EXECUTED, command, tasks_of

from toolchain.build import gc
from toolchain.build.blobs import signature
from toolchain.build.events import Warned
from toolchain.build.executor import Executor
from toolchain.build.store import Store
from toolchain.core.digest import canonical_json, digest_bytes, digest_file


def pyramid(width: int, **more: Any) -> list[dict[str, Any]]:
    """`width` leaves, pairs of them, and one task that reads all pairs."""
    leaves = [{"name": f"leaf{n}", "value": n, **more} for n in range(width)]
    pairs = [{"name": f"pair{n}", "value": 0, "reads": [f"leaf{n}", f"leaf{(n + 1) % width}"], **more} for n in range(width)]
    return [*leaves, *pairs, {"name": "top", "value": 0, "reads": [p["name"] for p in pairs], **more}]


def top_value(width: int) -> str:
    return f"{2 * sum(range(width))}\n"


class Site:
    """A plan on disk, built by processes of their own that write down what they run."""

    def __init__(self, folder: Path, plan: list[dict[str, Any]]) -> None:
        folder.mkdir()
        self.folder, self.plan, self.notes = folder, plan, folder / "notes"
        self.notes.touch()
        (folder / "project").mkdir()
        (folder / "plan.json").write_text(json.dumps([{**entry, "notes": str(self.notes)} for entry in plan]))

    def start(self, jobs: int = 2, limit_bytes: str = "") -> subprocess.Popen[str]:
        line = command(self.folder / "store", self.folder / "project", self.folder / "plan.json", jobs, limit_bytes)
        return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def started(self) -> Counter[str]:
        return Counter(line.split()[1] for line in self.notes.read_text().splitlines() if line.startswith("start"))

    def committed(self) -> set[str]:
        """Tasks that are in the store, as another program would see them."""
        try:
            db = sqlite3.connect(f"file:{self.folder / 'store' / 'traces-1.db'}?mode=ro", uri=True)
            try:
                return {task for (task,) in db.execute("select task from traces")}
            finally:
                db.close()
        except sqlite3.OperationalError:
            return set()                        # killed before there was a database

    def result(self) -> str:
        return (self.folder / "project" / "out" / "value.txt").read_text()


def wait_for_a_moment(site: Site, builder: subprocess.Popen[str], rng: random.Random) -> None:
    """Half of the time a moment of the start, else one after some more steps have begun or ended."""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, 0.25))
        return
    enough = len(site.notes.read_text().splitlines()) + rng.randint(1, 12)
    while builder.poll() is None and len(site.notes.read_text().splitlines()) < enough:
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.01))


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """50 kills at random moments: what was committed never runs again, nothing needs a flag or a repair."""
    rng = random.Random(20)
    kills, rounds, midway = 0, 0, 0
    while kills < 50:
        rounds += 1
        site = Site(tmp_path / f"round{rounds}", pyramid(8, sleep_s=0.015, size=300))
        finished = False
        while not finished and kills < 50:
            before, committed = site.started(), site.committed()
            builder = site.start()
            wait_for_a_moment(site, builder, rng)
            builder.kill()
            _, errors = builder.communicate()
            finished = builder.returncode == 0
            kills += builder.returncode == -signal.SIGKILL
            assert finished or builder.returncode == -signal.SIGKILL, errors
            again = site.started() - before
            assert not again.keys() & committed
            assert max(again.values(), default=0) <= 1
            midway += bool(again) and not finished
        before, committed = site.started(), site.committed()
        builder = site.start()
        assert (builder.communicate(timeout=60)[1], builder.returncode) == ("", 0)
        assert site.result() == top_value(8) * 300
        again = site.started() - before
        assert not again.keys() & committed
        store = Store(site.folder / "store")
        assert gc.verify(store) == []
        store.close()
        assert list((site.folder / "store" / "tmp").iterdir()) == []
        assert [p.name for p in (site.folder / "project").iterdir() if p.name.startswith(".tmp")] == []
    assert midway > 10                          # the moments were not all before or after the work


def test_four_builders_of_one_project(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", pyramid(6, sleep_s=0.02))
    builders = [site.start() for _ in range(4)]
    for builder in builders:
        _, errors = builder.communicate(timeout=60)
        assert (builder.returncode, errors) == (0, "")
    assert set(site.started().values()) == {1}
    assert len(site.started()) == 13
    assert site.result() == top_value(6)


# -- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path, rng: random.Random) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    path.chmod(mode)


def build(folder: Path, plan: list[dict[str, Any]], on_event: Any = None) -> tuple[list[str], Mapping[str, Any]]:
    """Names of the tasks that ran, and the artifacts."""
    EXECUTED.clear()
    tasks = tasks_of(plan)
    store = Store(folder / "store")
    executor = Executor(store, folder / "project", jobs=0, on_event=on_event)
    made = executor.build([tasks["top"]], {folder / "project" / "out": tasks["top"]}).check()
    store.close()
    return list(EXECUTED), made.artifacts


def owners(artifacts: Mapping[str, Any], digest: str) -> set[str]:
    return {name for name, artifact in artifacts.items() if digest in {f.digest for f in artifact.files.values()}}


def test_a_hundred_flipped_bytes(tmp_path: Path) -> None:
    """Each is found by the next build, which makes the damaged tasks again, and no others. (Of several tasks whose results
    share the damaged file, it is enough that one runs again before the others are looked at.)"""
    rng = random.Random(4)
    plan = pyramid(4, size=50)
    _, artifacts = build(tmp_path, plan)
    blobs = sorted((tmp_path / "store" / "objects").glob("*/*"))
    for _ in range(100):
        blob = rng.choice(blobs)
        flip(blob, rng)
        ran, after = build(tmp_path, plan)
        assert ran
        assert set(ran) <= owners(artifacts, blob.parent.name + blob.name)
        assert after == artifacts
        assert digest_file(blob) == blob.parent.name + blob.name
        assert (tmp_path / "project" / "out" / "value.txt").read_text() == top_value(4) * 50
    assert build(tmp_path, plan)[0] == []


def test_a_missing_blob_is_made_again(tmp_path: Path) -> None:
    plan = pyramid(2)
    _, artifacts = build(tmp_path, plan)
    (tmp_path / "store" / "objects").joinpath(*split(artifacts["leaf1"].files["more/name.txt"].digest)).unlink()
    assert build(tmp_path, plan)[0] == ["leaf1"]


def split(digest: str) -> tuple[str, str]:
    return digest[:2], digest[2:]


def test_flipped_bytes_in_the_database(tmp_path: Path) -> None:
    """Whatever SQLite makes of it: the build succeeds, and what it makes is right."""
    rng = random.Random(5)
    plan = pyramid(3)
    _, artifacts = build(tmp_path, plan)
    database = tmp_path / "store" / "traces-1.db"
    reran = 0
    for _ in range(60):
        flip(database, rng)
        ran, after = build(tmp_path, plan)
        reran += bool(ran)
        assert after == artifacts
        assert (tmp_path / "project" / "out" / "value.txt").read_text() == top_value(3)
    assert reran                                # some of them hit something that matters
    for garbage in (b"", b"not a database at all" * 500):
        database.write_bytes(garbage)
        assert build(tmp_path, plan)[1] == artifacts


def rot(folder: Path, artifact: Any, rng: random.Random) -> None:
    """Damage a blob beneath the file system: its trace believes that the file looks as it did."""
    digest = artifact.files["value.txt"].digest
    store = Store(folder / "store")
    flip(store.blobs.path(digest), rng)
    for key, text, of, blobs in store.rows("select key, artifact, digest, blobs from traces"):
        if digest in (known := json.loads(blobs)):
            blobs = canonical_json({**known, digest: signature(store.blobs.path(digest))})
            seal = digest_bytes(f"{key}\n{text}\n{of}\n{blobs}".encode())
            store.write([("update traces set blobs = ?, seal = ? where key = ?", (blobs, seal, key))])
    store.close()


def test_silent_damage_is_found_when_a_step_reads_it(tmp_path: Path) -> None:
    plan = pyramid(3)
    _, artifacts = build(tmp_path, plan)
    rot(tmp_path, artifacts["leaf1"], random.Random(1))
    assert build(tmp_path, plan)[0] == []       # nobody reads it
    warnings: list[Warned] = []
    changed = [{**entry, "value": 1} if entry["name"] == "pair1" else entry for entry in plan]
    ran, after = build(tmp_path, changed, lambda e: warnings.append(e) if isinstance(e, Warned) else None)
    assert ran == ["leaf1", "pair1", "top"]
    assert after["top"].meta == {"value": 7}
    assert [w.text for w in warnings] == ["r0/value.txt is damaged in the store; making it again"]


def test_silent_damage_is_found_when_it_is_exported(tmp_path: Path) -> None:
    plan = pyramid(3)
    _, artifacts = build(tmp_path, plan)
    rot(tmp_path, artifacts["top"], random.Random(2))
    (tmp_path / "project" / "out" / "value.txt").unlink()
    assert build(tmp_path, plan)[0] == ["top"]
    assert (tmp_path / "project" / "out" / "value.txt").read_text() == top_value(3)


def test_silent_damage_is_found_by_verify(tmp_path: Path) -> None:
    plan = pyramid(3)
    _, artifacts = build(tmp_path, plan)
    rot(tmp_path, artifacts["leaf2"], random.Random(3))
    store = Store(tmp_path / "store")
    assert sorted(gc.verify(store)) == [f"{task}: value.txt is damaged in the store" for task in ("leaf2", "pair2")]
    assert gc.verify(store) == []
    store.close()
    assert build(tmp_path, plan)[0] == ["leaf2", "pair2"]


# -- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_bytes", [0, 100, 4_000, 20_000, 40_000, 70_000, 110_000])
def test_files_may_not_grow(tmp_path: Path, limit_bytes: int) -> None:
    """A file-size limit stands for a full disk: a clear error, nothing half-written, and the next build goes on."""
    site = Site(tmp_path / "site", [*pyramid(3, size=2000), {"name": "big", "value": 1, "reads": ["top"], "size": 60_000}])
    builder = site.start(limit_bytes=str(limit_bytes))
    _, errors = builder.communicate(timeout=60)
    assert builder.returncode == 1
    assert "Traceback" not in errors
    assert "fix: free space on that disk, then run the same command again" in errors
    committed = site.committed()
    before = site.started()
    builder = site.start()
    assert (builder.communicate(timeout=60)[1], builder.returncode) == ("", 0)
    assert not (site.started() - before).keys() & committed
    assert (site.folder / "project" / "out" / "value.txt").stat().st_size > 100_000
