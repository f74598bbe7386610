"""One artifact for several input shapes, end to end: built, verified and measured per bucket, run from Python and C."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_networks import mlp, reader
from test_deploy import ran

import toolchain
from toolchain.cli import main
from toolchain.core.errors import UsageError
from toolchain.targets.llvm.cpu import host_target
from toolchain.targets.llvm.link import compile_c, run_zig

WIDTHS = (16, 32, 64)
MORE = "report: {against: [], time: 100ms, threads: 1}\n"


def declare(folder: Path, widths: tuple[int, ...], more: str = MORE, keys: str = "") -> None:
    onnx.save(reader(), folder / "reader.onnx")
    buckets = ", ".join(f"{{shapes: {{x: [1, 3, 8, {w}]}}}}" for w in widths)
    (folder / "deployfile.yaml").write_text(
        f"version: 1\nmodels:\n  reader: {{path: reader.onnx, buckets: [{buckets}]{keys}}}\n{more}")


def line(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, 8, width)).astype(np.float32)


def expected(x: np.ndarray) -> np.ndarray:
    (y,) = onnx.reference.ReferenceEvaluator(reader()).run(None, {"x": x})
    return y


def test_each_bucket_is_built_verified_measured_and_run(workplace, capfd):
    declare(workplace, WIDTHS)
    assert main(["report", "--json", "r.json"]) == 0
    screen = capfd.readouterr().out
    assert {p.name for p in (workplace / "build").iterdir()} == {"reader@x86"}
    builds = json.loads((workplace / "r.json").read_text())["report"]["builds"]
    names = [f"reader[1x3x8x{w}]@x86" for w in WIDTHS]
    assert [b["build"]["name"] for b in builds] == names and all(f"{n}: agrees with" in screen for n in names)
    assert all(b["verify"]["outputs"][0]["shape"] == [1, w // 2, 6] for b, w in zip(builds, WIDTHS, strict=True))
    assert all(b["measure"]["contenders"][0]["median_us"] > 0 and b["layers"] for b in builds)
    flops = [sum(layer["flops"] for layer in b["layers"]) for b in builds]
    assert flops[1] == pytest.approx(2 * flops[0]) and flops[2] == pytest.approx(4 * flops[0])
    for width in (32, 16, 64, 16):
        np.save("x.npy", line(width))
        assert main(["run", "reader@x86", "--input", "x=x.npy", "-o", "out"]) == 0
        # rtol: two orders of summation in fp32 over a few hundred terms
        np.testing.assert_allclose(np.load("out/y.npy"), expected(line(width)), rtol=1e-4, atol=1e-6)
    capfd.readouterr()
    assert main(["bench", "reader", "--time", "20ms", "--json", "--layers"]) == 0
    assert [json.loads(row)["bucket"] for row in capfd.readouterr().out.splitlines()] == [f"1x3x8x{w}" for w in WIDTHS]


def test_a_shape_outside_the_buckets(workplace, capfd):
    declare(workplace, WIDTHS)
    assert main(["build"]) == 0
    np.save("x.npy", line(20))
    capfd.readouterr()
    assert main(["run", "reader@x86", "--input", "x=x.npy"]) == 2
    words = "input 'x' has shape (1, 3, 8, 20); the shape buckets have (1, 3, 8, 16), (1, 3, 8, 32), (1, 3, 8, 64)"
    assert words in capfd.readouterr().err
    with toolchain.load("build/reader@x86") as module, pytest.raises(UsageError) as error:
        assert module.arena().size == max(plan.arena_bytes for plan in module.buckets), "one for all"
        module.run({"x": line(20)})
    assert error.value.what == words
    assert error.value.fix == ("pad or cut the inputs to the shapes of a bucket, or build with one more bucket: "
                               "`buckets` in the deployfile, a list of `shapes` in toolchain.compile")


def test_another_bucket_compiles_only_what_is_new(own_store, capsys):
    declare(own_store, (16, 32))
    assert main(["build", "--json"]) == 0
    first = ran(capsys)
    assert sum(t.startswith("import:") for t in first) == 2 and first.count("link:reader@x86") == 1
    declare(own_store, (64, 16, 32))                        # in front: the others are known by their shapes
    assert main(["build", "--json"]) == 0
    again = set(ran(capsys))
    new = "reader[1x3x8x64]"
    steps = {f"import:{new}", f"reference:{new}", f"optimize:{new}@x86", "weights:reader@x86", "link:reader@x86"}
    comparisons = {f"compare:reader[1x3x8x{w}]@x86" for w in WIDTHS}         # whose facts are the old ones where they were
    kernels = {t for t in again if t.startswith("kernel:")}
    assert again - kernels == steps | comparisons | {f"verify:{new}@x86"}
    assert kernels and kernels.isdisjoint(first)


def test_equal_inputs_give_equal_bytes(workplace, tmp_path, monkeypatch):
    made = []
    for n in range(2):
        monkeypatch.setenv("TC_STORE", str(tmp_path / f"store{n}"))
        (folder := tmp_path / f"place{n}").mkdir()
        declare(folder, (8, 16))
        assert main(["build", "-C", str(folder)]) == 0
        made.append({p.name: p.read_bytes() for p in (folder / "build/reader@x86").iterdir()})
    assert made[0] == made[1]


def test_checked_run_of_every_bucket_finds_nothing(workplace, monkeypatch):
    """TC_CHECK=1 fills dead memory with NaN and looks at halos after every op: buckets do not spoil each other's."""
    declare(workplace, WIDTHS)
    monkeypatch.setenv("TC_CHECK", "1")
    assert main(["verify"]) == 0


def test_data_of_a_bucket_and_recorded_data_that_fits_one(workplace, capfd):
    declare(workplace, (16, 32), keys=", data: {inputs: {x: {file: x.npy}}}")
    np.save("x.npy", line(16))
    assert main(["build"]) != 0
    assert "or give a shape bucket `data` of its own" in capfd.readouterr().err
    text = (workplace / "deployfile.yaml").read_text()
    own = "{shapes: {x: [1, 3, 8, 32]}, data: {inputs: {x: {random: {low: -1}}}}}"
    (workplace / "deployfile.yaml").write_text(text.replace("{shapes: {x: [1, 3, 8, 32]}}", own))
    assert main(["build"]) == 0
    declare(workplace, (16, 32))
    (workplace / "test_data_set_0").mkdir()
    for name, array in (("input_0", line(32)), ("output_0", expected(line(32)))):
        tensor = onnx.numpy_helper.from_array(array)
        (workplace / "test_data_set_0" / f"{name}.pb").write_bytes(tensor.SerializeToString())
    assert main(["report", "--json", "r.json"]) == 0
    builds = json.loads((workplace / "r.json").read_text())["report"]["builds"]
    assert [b["verify"]["data"] for b in builds] == ["random, seed 0", "test_data_set_0"]


def test_two_buckets_of_one_shape(workplace, capfd):
    declare(workplace, (16,))
    text = (workplace / "deployfile.yaml").read_text()
    (workplace / "deployfile.yaml").write_text(text.replace("16]}}]", "16]}}, {dims: {width: 16}}]"))
    assert main(["build"]) != 0
    assert "two shape buckets have the same input shapes: 1x3x8x16" in capfd.readouterr().err


def test_compile_for_several_shapes():
    with toolchain.compile(mlp(), shapes=[{"x": (3, 20)}, {"x": (8, 20)}], threads=2) as module:
        for batch in (8, 3, 8):
            x = np.random.default_rng(batch).standard_normal((batch, 20)).astype(np.float32)
            (want,) = onnx.reference.ReferenceEvaluator(mlp()).run(None, {"x": x})
            np.testing.assert_allclose(module.run({"x": x})["y"], want, rtol=1e-4, atol=1e-6)
        assert module.labels == ("3x20", "8x20")
    with toolchain.compile(mlp(), dims=[{"batch": 1}, {"batch": 2}]) as module:
        assert module.labels == ("1x20", "2x20")
    for wrong in ({"shapes": [{"x": (3, 20)}], "dims": [{}, {}]}, {"shapes": []}):
        with pytest.raises(UsageError, match="shapes and dims are lists of"):
            toolchain.compile(mlp(), **wrong)


PROGRAM = """
#include "reader.h"
static long call3(long n, long a, long b, long c) {
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return n;
}
static void expect(int holds, int status) { if (!holds) call3(231, status, 0, 0); }
static float x[3 * 8 * 64], y[32 * 6];

__attribute__((force_align_arg_pointer)) void _start(void) {
    const int64_t narrow[] = {1, 3, 8, 16}, wide[] = {1, 3, 8, 64}, none[] = {1, 3, 8, 20};
    const int64_t *shapes[] = {wide, narrow, wide}, *wrong[] = {none};
    const void *inputs[] = {x};
    void *outputs[] = {y};
    reader_model *model;
    char text[400];
    expect(reader_create(&model, "weights.bin", 1) == READER_OK, 1);
    for (int n = 0; n < 3; n++) {
        int64_t bucket = reader_find_bucket(&shapes[n]);
        expect(bucket >= 0, 2);
        call3(0, 0, (long)x, reader_bucket_input(bucket, 0)->size_bytes);
        expect(reader_run_shapes(model, &shapes[n], inputs, outputs) == READER_OK, 3);
        call3(1, 1, (long)y, reader_bucket_output(bucket, 0)->size_bytes);
    }
    expect(reader_run_shapes(model, wrong, inputs, outputs) == READER_WRONG_SHAPE, 4);
    call3(1, 2, (long)text, reader_shape_error(wrong, text, sizeof text));
    reader_destroy(model);
    call3(231, 0, 0, 0);
}
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program makes x86-64 system calls")
def test_from_a_c_program(workplace):
    declare(workplace, WIDTHS)
    assert main(["build"]) == 0
    folder, target = workplace / "build/reader@x86", host_target()
    (folder / "main.o").write_bytes(compile_c(PROGRAM, target, name="main.c", includes={
        "reader.h": (folder / "reader.h").read_text()}))
    flags = ["-pie", "--dynamic-linker=/lib64/ld-linux-x86-64.so.2", "-rpath", "$ORIGIN"]
    run_zig(["ld.lld", *flags, "main.o", "-L.", "-lreader", "-o", "main"], folder, what="linking the program")
    inputs = [line(width, seed) for seed, width in enumerate((64, 16, 64))]
    done = subprocess.run(["./main"], cwd=folder, input=b"".join(x.tobytes() for x in inputs), capture_output=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.returncode
    want = np.concatenate([expected(x).reshape(-1) for x in inputs])
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), want, rtol=1e-4, atol=1e-6)
    words = "input 'x' has shape (1, 3, 8, 20); the shape buckets have (1, 3, 8, 16), (1, 3, 8, 32), (1, 3, 8, 64)\nfix: pad"
    assert done.stderr.decode().startswith(words)
