"""The lock file's text: one spelling, read back as it was written, damage refused by line, written whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.build import lockfile
from toolchain.build.lockfile import KINDS, Difference, compare, flatten, lock_path, parse, read, render, spell, update
from toolchain.core.errors import LockfileError

PATH = Path("deployfile.lock")
BUILD = {"model": "m", "target": "t", "inputs": "0" * 64, "artifact": "1" * 64}
SMALL = {
    ("tools", ""): {"numpy": "2.4.6"},
    ("models", "a b"): flatten({"deployfile": {"dims": {"n.1": 1}, "shapes": {"x": (1, 3)}}, "files": {"model": "ab" * 32}}),
    ("targets", "x86"): {"features": [f"+feature{n}" for n in range(12)], "has_fma": True},
    ("builds", "a@x86"): BUILD,
}

parts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
scalars = st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | parts
values = scalars | st.lists(parts, min_size=1, max_size=30) | st.lists(st.integers(0, 9), min_size=1, max_size=4)
facts = st.dictionaries(parts, values | st.dictionaries(parts, values, min_size=1, max_size=3), max_size=4).map(flatten)
sections = st.dictionaries(st.tuples(st.sampled_from(("models", "targets")), parts), facts, max_size=4)


def test_text(golden):
    golden(render(SMALL))


@settings(max_examples=40)
@given(sections)
def test_what_is_written_is_read_back_and_is_toml(content):
    text = render(content)
    assert parse(text, PATH).sections == content
    assert render(parse(text, PATH).sections) == text
    plain = tomllib.loads(text)
    assert plain.pop("version") == 1
    assert {(kind, name): flatten(section) for kind, named in plain.items() for name, section in named.items()} == content


@settings(max_examples=20)
@given(sections, st.randoms())
def test_the_order_facts_come_in_does_not_matter(content, random):
    def shuffled(items):
        return dict(random.sample(list(items), len(items)))

    assert render(shuffled({n: shuffled(s.items()) for n, s in content.items()}.items())) == render(content)


def test_every_fact_knows_its_line():
    text = render(SMALL)
    lock, lines = parse(text, PATH), text.split("\n")
    for name, section in lock.sections.items():
        assert lines[lock.line(name) - 1].startswith(f"[{name[0]}")
        for key in section:
            assert lines[lock.line(name, key) - 1].startswith(f"{key} = ")
    assert lock.where(("models", "a b"), "no such key") == f"deployfile.lock:{lock.line(('models', 'a b'))}"
    assert lock.where(("models", "none")) == "deployfile.lock"


def test_line_ends_of_another_system_are_read():
    assert parse(render(SMALL).replace("\n", "\r\n"), PATH).sections == SMALL


def test_no_file_has_no_sections(tmp_path):
    assert read(tmp_path / "deployfile.lock") == (tmp_path / "deployfile.lock", "", {}, {})


@pytest.mark.parametrize(("deployfile", "lock"), [
    ("a/deployfile.yaml", "a/deployfile.lock"), ("other.yml", "other.lock"), ("v1.2", "v1.2.lock"),
    ("x.lock", "x.lock.lock")])
def test_each_deployfile_has_its_own(deployfile, lock):
    assert lock_path(Path(deployfile)) == Path(lock)


@pytest.mark.parametrize(("part", "text"), [
    ("numpy", "numpy"), ("a-b_1", "a-b_1"), ("a.b", '"a.b"'), ("ü", '"ü"'), ("", '""')])
def test_names_are_quoted_where_they_must_be(part, text):
    assert spell(part) == text


def test_compare():
    name = ("models", "m")
    assert list(compare(name, {"a": 1, "b": 2}, {"a": 1, "b": 2})) == []
    assert list(compare(name, {"a": 1, "b": 2}, {"a": 3, "c": 4})) == [
        Difference(name, "a", 1, 3), Difference(name, "b", 2, None), Difference(name, "c", None, 4)]
    assert list(compare(name, {"a": 1, "b": 2}, {"a": 1}, whole=False)) == []
    assert list(compare(name, None, {"a": 1})) == [Difference(name, "", None, None)]


# --- damage ------------------------------------------------------------------------------------------------------------

OURS, THEIRS = '<<<<<<< HEAD\nnumpy = "2.4.6"\n=======\n', 'numpy = "2.4.7"\n>>>>>>> other\n'
FIX = "fix: take it from version control (git checkout deployfile.lock), or remove it and `tc build`"
MERGE = ("deployfile.lock:6: a merge was not resolved here\n"
         "fix: take one side (git checkout --theirs deployfile.lock), then `tc build` brings it up to date")


def damaged(line: int, text: str) -> str:
    return f"deployfile.lock:{line}: damaged: {text}\n{FIX}"


@pytest.mark.parametrize(("old", "new", "screen"), [
    ('numpy = "2.4.6"\n', f"{OURS}{THEIRS}", MERGE),
    ("version = 1\n\n[tools]", "version = 1\n\n<<<<<<< HEAD\n[tools]", MERGE.replace(":6:", ":5:")),
    ('  "+feature0",', '<<<<<<< HEAD\n  "+feature0",', MERGE.replace(":6:", ":15:")),
    ("version = 1", "version = 2", (
        "deployfile.lock:3: its format is version 2, and this toolchain reads 1\n"
        "fix: use the toolchain that wrote it, or a newer one; or remove deployfile.lock and `tc build`")),
    ("version = 1", "version = 0", damaged(3, "version = 0")),
    ("version = 1", 'version = "1"', damaged(3, 'version = "1"')),
    ("version = 1\n", "", damaged(4, "[tools]")),
    ("version = 1", "version = 1\nversion = 1", damaged(4, "version = 1")),
    ("[tools]", "[tools", damaged(5, "[tools")),
    ("[tools]", "[tools.x]", damaged(5, "[tools.x]")),
    ("[tools]", "[tuls]", damaged(5, "[tuls]")),
    ("[targets.x86]", "[targets]", damaged(13, "[targets]")),
    ("[targets.x86]", '[models."a b"]', damaged(13, '[models."a b"]')),
    ('numpy = "2.4.6"', 'numpy = "2.4.6"\nnumpy = "2.4.6"', damaged(7, 'numpy = "2.4.6"')),
    ('numpy = "2.4.6"', 'numpy = "2.4.6', damaged(6, 'numpy = "2.4.6')),
    ('numpy = "2.4.6"', 'numpy = {"a": 1}', damaged(6, 'numpy = {"a": 1}')),
    ('numpy = "2.4.6"', "numpy = null", damaged(6, "numpy = null")),
    ('numpy = "2.4.6"', "numpy 2.4.6 \x1b[31m", damaged(6, "numpy 2.4.6 ?[31m")),
    ('artifact = "', 'artefact = "', damaged(30, '[builds."a@x86"]')),
    ('target = "t"', "target = 3", damaged(30, '[builds."a@x86"]')),
    ("\n]", "", damaged(14, "features = [")),
])
def test_damage_is_refused_with_its_line(old, new, screen):
    text = render(SMALL)
    assert old in text
    with pytest.raises(LockfileError) as caught:
        parse(text.replace(old, new, 1), PATH)
    assert str(caught.value) == screen


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "deployfile.lock"
    path.write_bytes(render(SMALL).encode().replace(b"2.4.6", b"2.\xff.6"))
    with pytest.raises(LockfileError) as caught:
        read(path)
    assert str(caught.value) == damaged(6, 'numpy = "2.�.6"')


@given(st.data())
def test_no_cut_and_no_lost_line_crashes_the_reader(data):
    text = render(SMALL)
    lines = text.split("\n")
    lost = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(0, len(text)))
    for broken in ("\n".join(lines[:lost] + lines[lost + 1:]), text[:end]):
        try:
            assert set(parse(broken, PATH).sections) <= set(SMALL)
        except LockfileError as error:
            assert error.what.startswith("deployfile.lock:")


# --- writing -----------------------------------------------------------------------------------------------------------

def built(name: str, artifact: str = "1") -> dict:
    return {("builds", name): {**BUILD, "artifact": artifact * 64}}


KEEP = frozenset(("builds", name) for name in "abcdefgh")


def test_others_stay_and_what_is_not_declared_goes(tmp_path):
    path = tmp_path / "deployfile.lock"
    assert update(read(path), {**built("a"), **built("b")}, KEEP) == (("builds", "a"), ("builds", "b"))
    assert update(read(path), built("b", "2"), KEEP) == (("builds", "b"),)
    assert read(path).sections == {**built("a"), **built("b", "2")}
    assert update(read(path), {}, KEEP - {("builds", "a")}) == ()
    assert read(path).sections == built("b", "2")


def test_an_equal_file_is_not_touched(tmp_path):
    path = tmp_path / "deployfile.lock"
    update(read(path), built("a"), KEEP)
    before = path.stat()
    assert update(read(path), built("a"), KEEP) == ()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.unlink()
    (tmp_path / ".tc").rmdir()
    assert update(read(path), {}, KEEP) == ()
    assert os.listdir(tmp_path) == [], "nothing to lock writes no file"


def test_what_another_build_has_written_meanwhile_stays(tmp_path):
    path = tmp_path / "deployfile.lock"
    seen = read(path)
    update(read(path), built("a"), KEEP)
    update(seen, built("b"), KEEP)
    assert read(path).sections == {**built("a"), **built("b")}


def add_many(path: Path, name: str) -> None:
    for n in range(20):
        update(read(path), built(name, f"{n:x}"[-1]), KEEP)


def test_builds_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "deployfile.lock"
    workers = [multiprocessing.get_context("fork").Process(target=add_many, args=(path, name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0] * 4
    assert read(path).sections == {k: v for name in "abcd" for k, v in built(name, "3").items()}
    assert os.listdir(tmp_path / ".tc") == []


@pytest.mark.parametrize("at", ["before", "after"])
def test_killed_while_it_writes(tmp_path, at, monkeypatch):
    """Killed just before or just after the new text gets its name: old or new, nothing half; the next one cleans up."""
    path = tmp_path / "deployfile.lock"
    update(read(path), built("a"), KEEP)
    replace = os.replace

    def killed(source, target):
        if at == "after":
            replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "replace", killed)
    child = multiprocessing.get_context("fork").Process(target=update, args=(read(path), built("b"), KEEP))
    child.start()
    child.join()
    monkeypatch.undo()
    assert child.exitcode == -signal.SIGKILL
    assert read(path).sections == (built("a") if at == "before" else {**built("a"), **built("b")})
    update(read(path), built("c"), KEEP)
    assert ("builds", "c") in read(path).sections
    assert sorted(os.listdir(tmp_path)) == [".tc", "deployfile.lock"]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lockfile, "write_atomically", refuse)
    path = tmp_path / "deployfile.lock"
    with pytest.raises(LockfileError) as caught:
        update(read(path), built("a"), KEEP)
    assert str(caught.value) == f"{path}: it cannot be written: Permission denied"


def test_kinds_are_written_in_their_order():
    heads = [line[1:].split(".")[0].rstrip("]") for line in render(SMALL).split("\n") if line.startswith("[")]
    assert heads == list(KINDS)
