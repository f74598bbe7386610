"""Exports, cleaning, garbage collection and locks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_steps import EXECUTED, tasks_of

from toolchain.build import gc
from toolchain.build.blobs import Blobs, DamagedBlob
from toolchain.build.events import Warned
from toolchain.build.executor import Executor
from toolchain.build.export import export
from toolchain.build.folders import files_below, remove_tree, safe_name, write_atomically
from toolchain.build.locks import Lock, hold
from toolchain.build.store import Store
from toolchain.core.artifact import Artifact, File
from toolchain.core.errors import TaskError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    made.close()


def artifact(store: Store, folder: Path, **files: str) -> Artifact:
    """An artifact in the store with those files; a name that ends in _sh is a program."""
    made = {}
    for name, text in files.items():
        path = folder / fresh()
        path.write_text(text)
        path.chmod(0o755 if name.endswith("_sh") else 0o644)
        made[name.replace("__", "/")], _ = store.blobs.ingest(path)
    return Artifact("files", made)


def fresh() -> str:
    return f"new-{os.urandom(6).hex()}"


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in files_below(folder)}


# -- exports ----------------------------------------------------------------------------------------------------------


def test_export_writes_once_and_restores(store: Store, tmp_path: Path) -> None:
    made, out = artifact(store, tmp_path, a="one", sub__b="two", run_sh="#!/bin/sh"), tmp_path / "build" / "net"
    assert export(store, made, out) == "written"
    assert contents(out) == {"a": "one", "sub/b": "two", "run_sh": "#!/bin/sh"}
    assert os.access(out / "run_sh", os.X_OK)
    assert not os.access(out / "a", os.X_OK)
    before = {name: (out / name).stat() for name in contents(out)}
    assert export(store, made, out) == "unchanged"
    assert {name: (out / name).stat() for name in contents(out)} == before
    (out / "a").write_text("eno")
    assert export(store, made, out) == "restored"
    (out / "sub" / "b").unlink()
    assert export(store, made, out) == "restored"
    remove_tree(out)
    assert export(store, made, out) == "restored"
    assert contents(out) == {"a": "one", "sub/b": "two", "run_sh": "#!/bin/sh"}


def test_editing_an_output_does_not_edit_the_store(store: Store, tmp_path: Path) -> None:
    made, out = artifact(store, tmp_path, a="one"), tmp_path / "out"
    export(store, made, out)
    (out / "a").write_text("two")
    assert Blobs(store.root).check(made.files["a"].digest)


def test_a_new_artifact_replaces_the_old_but_not_the_users_files(store: Store, tmp_path: Path) -> None:
    old, new, out = artifact(store, tmp_path, a="1", b="2"), artifact(store, tmp_path, a="3", c="4"), tmp_path / "out"
    export(store, old, out)
    (out / "notes").mkdir()
    (out / "notes" / "mine.txt").write_text("mine")
    assert export(store, new, out) == "written"
    assert contents(out) == {"a": "3", "c": "4", "notes/mine.txt": "mine"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []


def test_what_a_killed_export_left_is_removed(store: Store, tmp_path: Path) -> None:
    (tmp_path / ".tmp-out-123-abc").mkdir()
    (tmp_path / ".tmp-out-123-abc" / "half").write_text("x")
    export(store, artifact(store, tmp_path, a="1"), tmp_path / "out")
    assert not (tmp_path / ".tmp-out-123-abc").exists()


def test_a_damaged_blob_is_not_exported(store: Store, tmp_path: Path) -> None:
    made, out = artifact(store, tmp_path, a="one", b="two"), tmp_path / "out"
    export(store, artifact(store, tmp_path, a="old"), out)
    blob = store.blobs.path(made.files["b"].digest)
    blob.chmod(0o600)
    blob.write_text("owt")
    with pytest.raises(DamagedBlob, match="b is damaged in the store"):
        export(store, made, out)
    assert contents(out) == {"a": "old"}
    blob.unlink()
    with pytest.raises(DamagedBlob, match="b is missing from the store"):
        export(store, made, out)


def test_outputs_cannot_go_where_a_file_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TaskError, match="outputs go here, but it is a file"):
        export(store, artifact(store, tmp_path, a="1"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_build_says_that_it_restored(store: Store, tmp_path: Path) -> None:
    task, warnings = tasks_of([{"name": "t", "value": 1}])["t"], []
    executor = Executor(store, tmp_path, jobs=0, on_event=lambda e: warnings.append(e) if isinstance(e, Warned) else None)
    executor.build([task], {tmp_path / "out": task})
    assert warnings == []
    (tmp_path / "out" / "value.txt").write_text("2\n")
    executor.build([task], {tmp_path / "out": task})
    assert [w.text for w in warnings] == [f"{tmp_path}/out had been changed by hand; restored"]
    assert (tmp_path / "out" / "value.txt").read_text() == "1\n"


# -- clean and gc -----------------------------------------------------------------------------------------------------


def test_clean_removes_outputs_and_the_next_build_only_exports(store: Store, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "deployfile.yaml").touch()
    task = tasks_of([{"name": "t", "value": 1}])["t"]
    executor = Executor(store, project, jobs=0)
    executor.build([task], {project / "build" / "a": task, project / "build" / "b": task})
    (project / "build" / "b" / "mine.txt").write_text("mine")
    assert sorted(p.name for p in gc.clean(store, project)) == ["a", "b"]
    assert files_below(project) == ["build/b/mine.txt", "deployfile.yaml"]
    EXECUTED.clear()
    executor.build([task], {project / "build" / "a": task})
    assert EXECUTED == []
    assert (project / "build" / "a" / "value.txt").read_text() == "1\n"


def build_three(store: Store, project: Path) -> None:
    plan = [{"name": f"t{n}", "value": n, "size": 500} for n in range(3)]
    Executor(store, project, jobs=0).build(list(tasks_of(plan).values()))


def age(store: Store, **days: float) -> None:
    for name, d in days.items():
        store.write([("update traces set used_s = ? where task = ?", (time.time() - 86_400 * d, name))])


def kept(store: Store) -> list[str]:
    return sorted(task for (task,) in store.rows("select task from traces"))


def test_gc_forgets_what_was_not_used_for_long(store: Store, tmp_path: Path) -> None:
    build_three(store, tmp_path)
    age(store, t0=40, t1=20, t2=0)
    swept = gc.gc(store, max_age_s=30 * 86_400)
    assert (kept(store), swept.traces, swept.blobs, swept.freed_bytes) == (["t1", "t2"], 1, 2, 1002)
    assert gc.verify(store) == []
    EXECUTED.clear()
    build_three(store, tmp_path)
    assert EXECUTED == ["t0"]


def test_gc_keeps_the_newest_that_fit(store: Store, tmp_path: Path) -> None:
    build_three(store, tmp_path)
    age(store, t0=1, t1=3, t2=2)
    swept = gc.gc(store, max_bytes=2100)
    assert (kept(store), swept.left_bytes) == (["t0", "t2"], 2004)
    assert gc.gc(store, max_bytes=0).left_bytes == 0
    assert list((tmp_path / "store" / "objects").glob("*/*")) == []


def test_a_build_renews_what_it_uses(store: Store, tmp_path: Path) -> None:
    build_three(store, tmp_path)
    age(store, t0=40, t1=40, t2=40)
    again = Store(tmp_path / "store")
    build_three(again, tmp_path)
    again.close()
    assert gc.gc(store, max_age_s=86_400).traces == 0


def test_gc_waits_for_builds_and_gives_up_politely(store: Store) -> None:
    build = hold(store.locks / "store", shared=True)
    with pytest.raises(TaskError, match="a build is using the store"):
        gc.gc(store, wait_s=0.02)
    build.release(unlink=False)
    assert gc.gc(store, wait_s=0).traces == 0


def test_gc_removes_litter(store: Store, tmp_path: Path) -> None:
    (store.temp / "run-1-dead").mkdir()
    (store.temp / "run-1-dead" / "half").write_text("x")
    (store.temp / "run-1-dead.lock").touch()
    (store.locks / "key-abc").touch()
    held = hold(store.locks / "key-held")
    gc.gc(store)
    assert list(store.temp.iterdir()) == []
    assert sorted(p.name for p in store.locks.glob("key-*")) == ["key-held"]
    held.release()


# -- locks and folders ------------------------------------------------------------------------------------------------


def test_a_lock_excludes_and_its_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = Lock.acquire(path)
    assert first is not None
    assert Lock.acquire(path) is None
    assert Lock.acquire(path, shared=True) is None
    first.release()
    assert not path.exists()
    shared = [Lock.acquire(path, shared=True) for _ in range(2)]
    assert all(shared)
    assert Lock.acquire(path) is None
    for lock in shared:
        assert lock is not None
        lock.release(unlink=False)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert Lock.acquire(tmp_path / "lock") is None
        holder.kill()
        holder.wait()
        lock = Lock.acquire(tmp_path / "lock", wait_s=5)
        assert lock is not None
        lock.release()


def test_names_of_any_kind_become_different_file_names() -> None:
    names = ["a", "a/b", "a_b", "../../etc/passwd", ".hidden", "x" * 500, "x" * 501, "ü", "", "a b"]
    safe = [safe_name(n) for n in names]
    assert len(set(safe)) == len(names)
    assert all(s and "/" not in s and not s.startswith(".") and len(s) < 120 for s in safe)
    assert safe_name("optimize:resnet18@x86") == "optimize:resnet18@x86"


def test_writes_are_whole_or_not_at_all(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", b"one")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "f", "not bytes")           # type: ignore[arg-type]
    assert contents(tmp_path) == {"f": "one"}


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    (tmp_path / "gone" / "deep").mkdir(parents=True)
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "gone" / "deep").chmod(0o500)
    remove_tree(tmp_path / "gone")
    assert files_below(tmp_path) == ["kept/f"]


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TaskError, match="cannot make the store: Not a directory") as caught:
        Store(tmp_path / "file" / "store")
    assert caught.value.fix == "set TC_STORE to a folder you may write"


def test_artifacts_of_equal_content_are_equal(store: Store, tmp_path: Path) -> None:
    one, other = (artifact(store, tmp_path, a="1", b="2") for _ in range(2))
    assert (one, one.digest) == (other, other.digest)
    program = Artifact("files", {"a": File(one.files["a"].digest, 1, True)})
    assert program.digest != Artifact("files", {"a": one.files["a"]}).digest
    assert Artifact.from_json(program.to_json()) == program


def test_only_plain_files_are_sources(store, tmp_path):
    """A pipe, or a device that somebody's archive links to, could be read for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    for name in ("pipe", "zero", "."):
        with pytest.raises(TaskError, match=f"{name}: not a plain file\nfix: put the file itself there"):
            store.source_digest(tmp_path / name)
    assert store.source_digest(tmp_path / "link") == store.source_digest(tmp_path / "real")
