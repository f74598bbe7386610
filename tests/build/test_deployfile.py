"""Deployfiles: what they mean, how they are read, cached and described. The screens of wrong ones are in tests/errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.build.deployfile import (
    DURATION,
    PERCENT,
    SIZE,
    Bucket,
    Build,
    Builds,
    Data,
    Deployfile,
    InputData,
    Model,
    Section,
    TargetSpec,
    Tolerance,
    Verify,
    from_json,
    keys_of,
    paths,
    strip_optional,
)
from toolchain.build.load import check_bytes, load_deployfile, located
from toolchain.build.schema import json_schema
from toolchain.build.yaml_tree import MAX_BYTES, parse, resolve
from toolchain.core.errors import DeployfileError

ROOT = Path(__file__).parents[2]
SMALL = "version: 1\nmodels: {net: {path: net.onnx}}\n"


@pytest.fixture
def write(tmp_path):
    """write(text) -> the path of a deployfile with that text, beside an empty net.onnx."""
    (tmp_path / "net.onnx").write_bytes(b"")

    def write(text: str) -> Path:
        (tmp_path / "deployfile.yaml").write_text(text)
        return tmp_path / "deployfile.yaml"

    return write


def parsed(text: str) -> Deployfile:
    return from_json(Deployfile, check_bytes(text.encode(), "deployfile.yaml"))


# --- meaning ----------------------------------------------------------------------------------------------------------

def test_the_smallest_deployfile_builds_for_this_machine():
    deployfile = parsed(SMALL)
    assert [b.name for b in deployfile.all_builds()] == ["net@x86"]
    assert deployfile.targets == {"x86": TargetSpec(kind="x86")}
    assert deployfile == Deployfile(version=1, models={"net": Model(path="net.onnx")})


def test_builds_are_every_combination_once_in_the_order_of_the_file():
    deployfile = Deployfile(
        version=1, models={"a": Model(path="a"), "b": Model(path="b")},
        targets={"x86": TargetSpec(kind="x86"), "old": TargetSpec(kind="x86", cpu="x86-64-v3")},
        builds=(Builds(models=("b",)), Builds(targets=("x86",), precisions=("fp32", "int8"))))
    assert [b.name for b in deployfile.all_builds()] == ["b@x86", "b@old", "a@x86", "a@x86.int8", "b@x86.int8"]


def test_a_builds_own_tuning_replaces_the_files():
    deployfile = parsed(SMALL + "tune: {budget: 1h}\nbuilds: [{tune: {trials: 7}}]\n")
    (build,) = deployfile.all_builds()
    assert (build.tune.trials, build.tune.budget) == (7, None)
    assert parsed(SMALL + "tune: {budget: 1h 30m}\n").all_builds()[0].tune.budget == 5400


def test_buckets_add_to_the_models_own_shapes():
    model = parsed("""
version: 1
models:
  net:
    path: net.onnx
    shapes: {x: [1, 3, 48, 320]}
    dims: {batch: 1}
    buckets: [{dims: {width: 320}}, {shapes: {x: [1, 3, 48, 640]}, dims: {batch: 2}}]
""").models["net"]
    assert model.bindings() == {
        "width=320": Bucket(shapes={"x": (1, 3, 48, 320)}, dims={"batch": 1, "width": 320}, data=Data()),
        "1x3x48x640,batch=2": Bucket(shapes={"x": (1, 3, 48, 640)}, dims={"batch": 2}, data=Data())}


def test_all_buckets_are_one_build():
    net = Model(path="net.onnx", buckets=(Bucket(dims={"n": 1}), Bucket(dims={"n": 2})))
    (build,) = Deployfile(version=1, models={"net": net}).all_builds()
    assert build.name == "net@x86" and build.bucket_name("n=1") == "net[n=1]@x86"
    assert Build("net", "x86", "int8").bucket_name("n=1") == "net[n=1]@x86.int8"


def test_labels_of_buckets_differ():
    same = Bucket(shapes={"x": (1, 4)}), Bucket(shapes={"y": (1, 4)}), Bucket()
    assert list(Model(path="net.onnx", buckets=same).bindings()) == ["1x4", "1x4#2", "#3"]


def test_a_bucket_can_have_data_of_its_own():
    own = Data(inputs={"x": InputData(constant=1)})
    model = Model(path="net.onnx", buckets=(Bucket(dims={"n": 1}), Bucket(dims={"n": 2}, data=own)), data=Data(folder="set"))
    assert [b.data for b in model.bindings().values()] == [Data(folder="set"), own]


def test_a_model_without_buckets_has_one_binding():
    assert Model(path="x", dims={"n": 4}).bindings() == {"": Bucket(dims={"n": 4}, data=Data())}


def test_the_models_tolerance_goes_before_the_files():
    ours, theirs = Tolerance(rtol=1, atol=2), Tolerance(rtol=3, atol=4)
    deployfile = Deployfile(version=1, models={"a": Model(path="a", tolerance={"fp32": ours}), "b": Model(path="b")},
                            verify=Verify(tolerance={"fp32": theirs}))
    assert [deployfile.tolerance(b) for b in deployfile.all_builds()] == [ours, theirs]
    assert parsed(SMALL).tolerance(parsed(SMALL).all_builds()[0]) is None


def test_paths_name_every_file_a_build_reads():
    deployfile = parsed("""
version: 1
models:
  a:
    recipe: "make.py:net"
    data: {folder: set, inputs: {x: {file: x.npy}, y: {image: {file: y.png}}, z: {constant: 1}}, expected: {o: o.npy}}
    buckets: [{dims: {n: 1}, data: {folder: other}}]
""")
    assert [path for _, path in paths(deployfile)] == ["make.py", "set", "o.npy", "x.npy", "y.png", "other"]


def test_the_data_can_be_written_as_json_and_read_back():
    plain = check_bytes((ROOT / "deployfile.yaml.example").read_bytes(), "example")
    deployfile = from_json(Deployfile, plain)
    assert from_json(Deployfile, json.loads(json.dumps(dataclasses.asdict(deployfile)))) == deployfile


# --- quantities -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "value"), [
    ("90s", 90), ("2h", 7200), ("1h 30m", 5400), ("1h30m", 5400), ("250 ms", 0.25), ("1.5d", 129600), ("0s", 0)])
def test_durations(text, value):
    assert DURATION.parse(text) == value


@pytest.mark.parametrize(("text", "value"), [("64MB", 64e6), ("5 GB", 5e9), ("1.5KiB", 1536), ("12B", 12)])
def test_sizes(text, value):
    assert SIZE.parse(text) == value


@pytest.mark.parametrize("text", [
    "", " ", "2", "h", "2 hours", "-1s", "1s2", "2:30", "1..5s", "1e3s", "s1", "9" * 30 + "s", "2h,3m"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        DURATION.parse(text)


@given(st.integers(0, 10**6), st.sampled_from(sorted(SIZE.factors)))
def test_a_size_is_number_times_unit(n, unit):
    assert SIZE.parse(f"{n}{unit}") == SIZE.parse(f"{n} {unit}") == n * SIZE.factors[unit]


def test_percentages():
    assert PERCENT.parse("5%") == pytest.approx(0.05)


# --- YAML -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "value"), [
    ("2:30", "2:30"), ("no", "no"), ("on", "on"), ("y", "y"), ("017", 17), ("0o17", 15), ("0x1F", 31), ("1_000", "1_000"),
    ("0b11", "0b11"), ("true", True), ("False", False), ("null", None), ("~", None), ("1e3", 1000.0), (".5", 0.5),
    (".inf", float("inf")), ("-.INF", float("-inf")), ("1.4.4", "1.4.4"), ("2001-12-14", "2001-12-14"), ("-3", -3),
    ("=", "="), ("", None)])
def test_unquoted_words_by_yaml_1_2(text, value):
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_quoted_words_are_text():
    tree, errors = parse(b'[ "1", \'true\', "", |-\n  7\n]'.replace(b"|-\n  7\n", b'"7"'))
    assert (tree.to_plain(), errors) == (["1", "true", "", "7"], [])


def test_places_are_those_of_the_text():
    tree, _ = parse(b"a:\n  b: [x, {c: 12}]\n")
    node = tree.find(("a", "b", 1, "c"))
    assert (node.value, node.line, node.column, node.length) == (12, 1, 13, 2)
    key = tree.find(("a", "b", 1, "c"), at_key=True)
    assert (key.value, key.column) == ("c", 10)
    assert tree.find(("a", "nothing", "here")).line == 1


def test_aliases_stand_for_their_anchor():
    tree, errors = parse(b"a: &x {p: 1}\nb: *x\nc: [*x, *x]\n")
    assert (tree.to_plain(), errors) == ({"a": {"p": 1}, "b": {"p": 1}, "c": [{"p": 1}, {"p": 1}]}, [])


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert parsed("\ufeff" + SMALL) == parsed(SMALL)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=8)      # what YAML may hold


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-10**9, 10**9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=12))
def test_json_is_read_as_json(value):
    tree, errors = parse(json.dumps(value, ensure_ascii=False).encode())
    assert (tree.to_plain(), errors) == (value, [])


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(data):
    try:
        check_bytes(data, "deployfile.yaml")
    except DeployfileError as error:
        assert str(error).startswith("deployfile.yaml:")


@given(st.lists(st.sampled_from([
    "version: 1\n", "models:\n", "  a: ", "{path: x}\n", "[", "]", "&b ", "*b", "? ", "- ", "\t", "'", "!x ", "<<: ", ": ",
    "targets: {t: {kind: cuda}}\n", "builds: [{models: [a, q]}]\n", "1: 2\n"]), max_size=14))
def test_no_mix_of_yaml_crashes_the_checks(parts):
    try:
        check_bytes("".join(parts).encode(), "deployfile.yaml")
    except DeployfileError as error:
        assert str(error).startswith("deployfile.yaml:")


@pytest.mark.parametrize("text", [
    "[" * 900_000, "- " * 450_000, "? " * 450_000, "".join(f"k{i}: 1\n" for i in range(90_000)), "x" * (MAX_BYTES + 1),
    "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]" for i in range(12)), "v: " + "9" * 900_000,
], ids=["brackets", "dashes", "questions", "keys", "long", "laughs", "digits"])
def test_hostile_files_are_refused_with_a_short_text(text):
    with pytest.raises(DeployfileError) as error:
        check_bytes(text.encode(), "deployfile.yaml")
    assert len(str(error.value)) < 5_000


# --- the cache --------------------------------------------------------------------------------------------------------

def test_a_second_load_needs_neither_yaml_nor_pydantic(write):
    path = write(SMALL)
    load_deployfile(path)
    code = ("import sys; from pathlib import Path; from toolchain.build.load import load_deployfile; "
            f"d = load_deployfile(Path({str(path)!r})); print(d.all_builds()[0].name); "
            "assert not {'yaml', 'pydantic', 'numpy', 'click'} & set(sys.modules), sorted(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("net@x86\n", 0), done.stderr


def test_the_cache_gives_what_parsing_gives(write):
    path = write((ROOT / "deployfile.yaml.example").read_text())
    (path.parent / "recipes/paper").mkdir(parents=True)
    (path.parent / "recipes/paper/models.py").write_text("")
    assert load_deployfile(path) == load_deployfile(path)


def test_a_changed_file_is_read_again(write):
    assert load_deployfile(write(SMALL)).output == "build"
    assert load_deployfile(write(SMALL + "output: out\n")).output == "out"


def test_a_damaged_cache_is_ignored(write):
    path = write(SMALL)
    load_deployfile(path)
    (cache,) = (path.parent / ".tc/cache").iterdir()
    whole = cache.read_bytes()
    head = whole.split(b"\n")[0]
    for damaged in (b"", whole[:100], whole.replace(b"net.onnx", b"bad.onnx"), b"\xff" * 50, head + b"\nnull"):
        cache.write_bytes(damaged)
        assert load_deployfile(path).models["net"].path == "net.onnx"
        assert cache.read_bytes() == whole


def test_no_cache_can_be_written(write):
    path = write(SMALL)
    (path.parent / ".tc").write_text("in the way")
    assert load_deployfile(path).models["net"].path == "net.onnx"


def test_a_file_that_vanished_is_noticed_though_the_cache_is_good(write):
    path = write(SMALL)
    load_deployfile(path)
    (path.parent / "net.onnx").unlink()
    with pytest.raises(DeployfileError, match=r"deployfile.yaml:2:22: models.net.path: no such file or folder: net.onnx"):
        load_deployfile(path)


def test_errors_found_later_are_shown_at_their_place(write):
    path = write(SMALL)
    error = located(path, [(("models", "net", "path"), "the model has no input 'x'", "its inputs are: y")])
    assert str(error) == ("deployfile.yaml:2:22: models.net.path: the model has no input 'x'\n"
                          "2 | models: {net: {path: net.onnx}}\n  |                      ^^^^^^^^\nfix: its inputs are: y")


# --- descriptions -----------------------------------------------------------------------------------------------------

def sections(kind: type[Section] = Deployfile) -> set[type[Section]]:
    """Every section class below `kind`."""
    found = {kind}
    for _, annotation in keys_of(kind):
        inner = strip_optional(annotation)
        for candidate in (inner, *map(strip_optional, getattr(inner, "__args__", ()))):
            if isinstance(candidate, type) and issubclass(candidate, Section):
                found |= sections(candidate)
    return found


def test_every_key_says_what_it_means():
    for kind in sections():
        assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("), kind
        for f in dataclasses.fields(kind):
            assert f.metadata["description"].strip(), (kind, f.name)


def test_the_example_names_every_key():
    text = (ROOT / "deployfile.yaml.example").read_text()
    missing = [f"{kind.__name__}.{name}" for kind in sections() for name, _ in keys_of(kind) if f"{name}:" not in text]
    assert missing == []


def test_the_example_loads():
    assert [b.name for b in load_deployfile(ROOT / "deployfile.yaml.example").all_builds()] == ["dqn@x86"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/deployfile.yaml")), ids=lambda p: p.parent.name)
def test_every_recipe_loads(path):
    assert load_deployfile(path).all_builds()


def test_the_schema_is_draft_07_and_knows_every_section():
    schema = json_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert {kind.__name__ for kind in sections()} - {"Deployfile"} == set(schema["definitions"])
    text = json.dumps(schema)
    assert "$defs" not in text and "prefixItems" not in text and '"required": ["version", "models"]' in text


def test_the_schema_has_no_description_missing():
    def check(section, name):
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}"

    schema = json_schema()
    check(schema, "deployfile")
    for name, definition in schema["definitions"].items():
        check(definition, name)
        assert definition["additionalProperties"] is False
