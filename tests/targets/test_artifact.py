"""The artifact: its bytes, its C header used from C and C++, loading it, and refusing what is damaged or wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_plans import (
    HOST,
    N,
    Reference,
    Slot,
    arena,
    fold,
    kernels,
    load,
    mix,
    own_store,
    plan_of,
    some_inputs,
    some_weights,
    weights,
    write,
)

from toolchain.core.errors import CodegenError, DeviceError, ToolchainError, UsageError
from toolchain.targets.llvm import link, table
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.artifact_files import read_artifact
from toolchain.targets.llvm.format import FORMAT, RUNTIME_VERSION, VERSION
from toolchain.targets.llvm.header import c_identifier, header_text
from toolchain.targets.llvm.link import compile_c, run_zig, zig_path
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Copy, Plan, Value

__all__ = ["own_store"]

X, Y = Slot("input", 0), Slot("output", 0)
PLAN = plan_of(mix(X, weights(1), arena(0)), fold(arena(0), Y), Copy(Slot("input", 1), Slot("output", 1), 256))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_equal_inputs_give_equal_folders(tmp_path):
    a, b = (write(PLAN, tmp_path / f) for f in ("a", "some/where/else"))
    assert files(a) == files(b)
    assert list(files(a)) == ["libsmall.so", "manifest.json", "plan.json", "small.h", "weights.bin"]
    assert not [name for name, data in files(a).items() if str(tmp_path).encode() in data]


def test_weights_from_a_file_and_from_memory(tmp_path):
    a = write(PLAN, tmp_path / "a")
    data = tmp_path / "w"
    data.write_bytes(some_weights(PLAN))
    write_artifact(tmp_path / "b", "small", (PLAN,), kernels(), data, HOST)
    write_artifact(tmp_path / "c", "small", (PLAN,), kernels(), memoryview(some_weights(PLAN)), HOST)
    assert files(a) == files(tmp_path / "b") == files(tmp_path / "c")


def test_manifest(tmp_path):
    extra = {"schedules": {"all": ["split i 8"]}, "model_sha256": "12"}
    write_artifact(tmp_path, "small", (PLAN,), kernels(), some_weights(PLAN), HOST, extra)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["buckets"][0]["inputs"][0] == {"name": "x0", "dtype": "uint32", "shape": [64]}
    assert manifest["schedules"] == extra["schedules"] and manifest["target"]["name"] == "host"
    assert manifest["made_from"]["kernels"].keys() == {"all"}
    with pytest.raises(CodegenError, match="its own 'target'"):
        write_artifact(tmp_path, "small", (PLAN,), kernels(), some_weights(PLAN), HOST, {"target": 1})


def test_a_build_that_fails_leaves_no_partial_file(tmp_path):
    with pytest.raises(CodegenError, match="1023 bytes of weights for a plan with 1024"):
        write_artifact(tmp_path, "small", (PLAN,), kernels(), bytes(1023), HOST)
    with pytest.raises(CodegenError, match="undefined"):
        write_artifact(tmp_path, "small", (PLAN,), {}, some_weights(PLAN), HOST)
    assert set(files(tmp_path)) <= {"weights.bin"}


@pytest.mark.parametrize(
    ("name", "identifier"),
    [("resnet-18", "resnet_18"), ("2d", "m_2d"), ("while", "m_while"), ("../../x", "x"), ("", "model"), ("ü*/é", "model"),
     ("a" * 99, "a" * 64), ("tc", "m_tc"), ("__init__", "init")],
)  # fmt: skip
def test_names_become_identifiers(name, identifier):
    assert c_identifier(name) == identifier


def test_hostile_names(tmp_path):
    name = '../../evil"; */ int x; \\\n%s'
    value = Value(name, "uint32", (N,))
    plan = Plan(name, (value,), (replace(value, name=name + "y"),), (Copy(X, Y, 256, name=name),))
    write_artifact(tmp_path / "a", name, (plan,), {}, b"", HOST)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    check_header(tmp_path / "a", c_identifier(name), ["-x", "c", "-std=c99"])
    x = np.arange(N, dtype=np.uint32)
    with Module.load(tmp_path / "a") as module:
        np.testing.assert_array_equal(module.run({name: x})[name + "y"], x)


def check_header(folder: Path, identifier: str, language: list[str]) -> None:
    builtin = ["-nostdinc", "-isystem", str(zig_path().parent / "lib" / "include")]
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    run_zig(["clang", *builtin, *flags, *language, f"{identifier}.h"], folder, what="checking the header")


@pytest.mark.parametrize("language", ["c -std=c99", "c -std=c11", "c++ -std=c++11", "c++ -std=c++20"])
def test_the_header_is_strict_c_and_cpp(tmp_path, language):
    (tmp_path / "small.h").write_text(header_text((PLAN,), "small"))
    check_header(tmp_path, "small", ["-x", *language.split()])


PROGRAM = """
#include "small.h"
/* Needs no C library: shows that the library does not need one either, and builds in milliseconds. */
static long call3(long n, long a, long b, long c) {
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return n;
}
static void leave(int status) { call3(231, status, 0, 0); }
static void expect(int holds, int status) { if (!holds) leave(status); }
static int same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
static uint32_t x[2][64], y[2][64];
static int n_seen;
static void seen(void *user, int64_t op) { n_seen += *(int *)user + (int)op; }

__attribute__((force_align_arg_pointer)) void _start(void) {
    const void *inputs[] = {x[0], x[1]};
    void *outputs[] = {y[0], y[1]};
    small_model *model;
    call3(0, 0, (long)x, sizeof x);                          /* inputs from standard input */
    expect(small_create(&model, "no such file", 1) == SMALL_NO_FILE && !model, 1);
    expect(same(small_status_text(SMALL_NO_FILE), "the weights file cannot be opened"), 2);
    expect(small_create(NULL, "weights.bin", 1) == SMALL_BAD_ARGUMENT, 3);
    expect(small_create(&model, "small.h", 1) == SMALL_NOT_WEIGHTS, 4);
    expect(small_create(&model, "other.bin", 1) == SMALL_OTHER_WEIGHTS, 5);
    expect(small_create_from_memory(&model, (char *)x + 4, 64, 1) == SMALL_BAD_ARGUMENT, 6);
    expect(small_n_inputs() == 2 && small_n_outputs() == 2 && small_n_ops(0) == 3 && !small_n_ops(1), 7);
    expect(same(small_input(1)->name, "x1") && same(small_input(1)->dtype, "uint32") && small_input(1)->rank == 1, 8);
    expect(small_output(0)->shape[0] == 64 && small_output(0)->size_bytes == 256 && !small_output(2) && !small_input(-1), 9);
    expect(!small_missing_feature() && same(small_op_name(0, 2), "copy") && !small_op_name(0, 3), 10);
    expect(small_create(&model, "weights.bin", 2) == SMALL_OK && small_threads(model) == 2, 11);
    expect(small_run(model, inputs, NULL) == SMALL_BAD_ARGUMENT, 12);
    expect(small_run_range(model, 0, inputs, outputs, 0, 4) == SMALL_BAD_ARGUMENT, 13);
    int64_t ns[3] = {0, 0, 0};
    int one = 1;
    small_set_profile(model, ns);
    small_set_after_op(model, seen, &one);
    expect(small_run(model, inputs, outputs) == SMALL_OK && n_seen == 6 && ns[0] + ns[1] + ns[2] > 0, 14);
    size_t arena_bytes;
    expect(((uint32_t *)small_arena(model, &arena_bytes))[0] != 0 && arena_bytes == 4096, 15);
    small_destroy(model);
    small_destroy(NULL);
    call3(1, 1, (long)y, sizeof y);                          /* outputs to standard output */
    leave(0);
}
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program makes x86-64 system calls")
def test_from_a_c_program(tmp_path):
    write(PLAN, tmp_path)
    other = bytearray((tmp_path / "weights.bin").read_bytes())
    other[30] ^= 1
    (tmp_path / "other.bin").write_bytes(other)
    program = compile_c(PROGRAM, HOST, name="main.c", includes={"small.h": (tmp_path / "small.h").read_text()})
    (tmp_path / "main.o").write_bytes(program)
    loader = "/lib64/ld-linux-x86-64.so.2"
    flags = ["-pie", f"--dynamic-linker={loader}", "-rpath", "$ORIGIN"]
    run_zig(["ld.lld", *flags, "main.o", "-L.", "-lsmall", "-o", "main"], tmp_path, what="linking the program")
    inputs = some_inputs(PLAN)
    data = b"".join(inputs.values())
    done = subprocess.run(["./main"], cwd=tmp_path, input=data, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    outputs = np.frombuffer(done.stdout, np.uint32).reshape(2, N)
    expected = Reference(PLAN, inputs).outputs
    np.testing.assert_array_equal(outputs, np.stack([expected["y0"], expected["y1"]]))


def test_save_and_load_again(tmp_path):
    inputs = some_inputs(PLAN)
    with load(PLAN, tmp_path / "a") as module:
        module.save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with Module.load(tmp_path / "b", verify=True) as module:
        assert module.threads == len(os.sched_getaffinity(0))
        np.testing.assert_array_equal(module.run(inputs)["y0"], Reference(PLAN, inputs).outputs["y0"])


@pytest.mark.parametrize("file", ["libsmall.so", "weights.bin", "plan.json", "small.h", "manifest.json"])
def test_cut_off_or_missing_files_are_refused(tmp_path, file):
    path = write(PLAN, tmp_path) / file
    path.write_bytes(path.read_bytes()[:-1] if file != "manifest.json" else path.read_bytes()[:100])
    with pytest.raises(UsageError, match="damaged artifact"):
        Module.load(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="missing"):
        Module.load(tmp_path)


def test_flipped_bits_are_found(tmp_path):
    """In the library at every load; in the weights' header by the library; anywhere when asked to look."""
    write(PLAN, tmp_path)
    random = np.random.default_rng(3)
    for file in ("libsmall.so", "weights.bin", "plan.json", "small.h"):
        path = tmp_path / file
        good = path.read_bytes()
        for at in random.integers(0, len(good), 20).tolist() + [0, 8, 16, 24, 63]:
            bad = bytearray(good)
            bad[at] ^= 1 << int(random.integers(8))
            path.write_bytes(bad)
            with pytest.raises(ToolchainError):
                Module.load(tmp_path, 1, verify=True)
            if file == "libsmall.so" or (file == "weights.bin" and at < 56):
                with pytest.raises(UsageError):
                    Module.load(tmp_path, 1)
        path.write_bytes(good)
    Module.load(tmp_path, 1, verify=True).close()


def test_other_formats_and_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no artifact here"):
        Module.load(tmp_path)
    write(PLAN, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UsageError, match="artifact of format 99; this version reads format 2"):
        Module.load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": {"../x": {}}}))
    with pytest.raises(UsageError, match="damaged"):
        Module.load(tmp_path)


@pytest.mark.parametrize("change", [
    {"identifier": "../small"}, {"files": {"../x": {}}}, {"runtime_version": 1}, {"format": 1}], ids=str)
def test_whoever_runs_an_artifact_reads_it_with_the_same_checks(tmp_path, change):
    """A board and an engine for WebAssembly, too: names stay in the folder, versions are those of this program."""
    write(PLAN, tmp_path)
    assert read_artifact(tmp_path).library == tmp_path / "libsmall.so"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(UsageError, match=r"damaged artifact|this version"):
        read_artifact(tmp_path)


def test_artifacts_of_another_runtime_are_refused(tmp_path, monkeypatch):
    """By the manifest; and by the library itself, which is asked before anything in it is called."""
    write(PLAN, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    words = f"artifact with runtime version 1; this version calls runtime version {RUNTIME_VERSION}"
    for other in ({**manifest, "runtime_version": 1}, {k: v for k, v in manifest.items() if k != "runtime_version"}):
        (tmp_path / "manifest.json").write_text(json.dumps(other))
        with pytest.raises(UsageError, match=words):
            Module.load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(table, "VERSION", "toolchain runtime 0")
        write(PLAN, tmp_path)
    with pytest.raises(UsageError, match="the library is 'toolchain runtime 0'; this version calls 'toolchain runtime "):
        Module.load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(link, "API", tuple(f for f in link.API if f != "threads"))
        write(PLAN, tmp_path)
    with pytest.raises(UsageError, match="the library has no function small_threads"):
        Module.load(tmp_path)


def test_functions_of_this_runtime_version(golden):
    """When this text changes, count up RUNTIME_VERSION in format.py: older programs would call what is no longer there."""
    text = header_text((PLAN,), "m").replace(",\n  ", ",")
    declared = [re.sub(" +", " ", line.split(" /*")[0]) for line in text.splitlines() if re.match(r"\w[^(]*\bm_\w+\(", line)]
    assert len(declared) == len(link.API)
    golden("\n".join([f"{VERSION}, format {FORMAT}", *declared]) + "\n")


def test_a_cpu_without_the_features_gets_a_message(tmp_path):
    """XOP (2011 to 2017) is in no CPU that runs this: its absence must be said, not met as an illegal instruction."""
    if "xop" in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("this CPU has XOP")
    write_artifact(tmp_path, "small", (PLAN,), kernels(), some_weights(PLAN), replace(HOST, features=("+sse3", "+xop")))
    with pytest.raises(DeviceError, match=r"lacks an instruction set extension.*: xop"):
        Module.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x2": np.zeros(N, np.uint32)}, "there is no input 'x2'\nfix: the inputs are: x0, x1"),
        ({"x0": np.zeros(N, np.float32)}, "input 'x0' has dtype float32, not uint32"),
        ({"x0": np.zeros(N, ">u4")}, "input 'x0' has dtype >u4, not uint32"),
        ({"x0": np.zeros((N, 1), np.uint32)}, r"input 'x0' has shape \(64, 1\): 2 dimensions, not 1 as \(64,\)"),
        ({"x0": np.zeros(N - 1, np.uint32)}, r"input 'x0' has shape \(63,\), not \(64,\)\nfix: give it that shape"),
        ({"x0": None}, "input 'x0' is missing"),
    ],
)
def test_wrong_inputs(tmp_path, change, words):
    inputs = {k: v for k, v in {**some_inputs(PLAN), **change}.items() if v is not None}
    with load(PLAN, tmp_path) as module, pytest.raises(UsageError, match=words):
        module.run(inputs)


def test_inputs_without_names(tmp_path):
    with load(PLAN, tmp_path) as module, pytest.raises(UsageError, match=r"inputs are a dict of arrays, not a list\nfix"):
        module.run(list(some_inputs(PLAN).values()))


def test_a_module_says_what_it_computes(tmp_path):
    with load(PLAN, tmp_path) as module:
        assert repr(module) == (f"<Module 'small': x0 uint32[{N}], x1 uint32[{N}] -> y0 uint32[{N}], y1 uint32[{N}], "
                                f"{module.threads} threads>")


def test_any_strides_run_and_only_contiguous_arrays_bind(tmp_path):
    inputs = some_inputs(PLAN)
    strided = {k: np.repeat(v, 2)[::2] for k, v in inputs.items()}
    with load(PLAN, tmp_path) as module:
        np.testing.assert_array_equal(module.run(strided)["y0"], Reference(PLAN, inputs).outputs["y0"])
        with pytest.raises(UsageError, match="not contiguous"):
            module.bind(strided)
        frozen = np.zeros(N, np.uint32)
        frozen.flags.writeable = False
        with pytest.raises(UsageError, match="output 'y0' is not"):
            module.bind(inputs, {"y0": frozen, "y1": np.zeros(N, np.uint32)})


def test_bound_arrays_are_used_in_place(tmp_path):
    inputs = some_inputs(PLAN)
    outputs = {"y0": np.zeros(N, np.uint32), "y1": np.zeros(N, np.uint32)}
    with load(PLAN, tmp_path) as module:
        bound = module.bind(inputs, outputs)
        for seed in (2, 3):
            for name, array in some_inputs(PLAN, seed).items():
                inputs[name][:] = array
            bound()
            np.testing.assert_array_equal(outputs["y0"], Reference(PLAN, inputs).outputs["y0"])


def test_statistics(tmp_path):
    with load(PLAN, tmp_path) as module:
        stats = module.benchmark(some_inputs(PLAN), min_time_s=0, min_repeats=12)
    assert stats.repeats >= 12 and 0 < stats.p10_us <= stats.median_us <= stats.p90_us


def test_a_closed_module_says_so(tmp_path):
    module = load(PLAN, tmp_path)
    bound = module.bind(some_inputs(PLAN))
    module.close()
    module.close()
    for use in (bound, module.arena, lambda: module.run(some_inputs(PLAN))):
        with pytest.raises(UsageError, match="closed"):
            use()
