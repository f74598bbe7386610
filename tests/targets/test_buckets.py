"""Several shape buckets in one library: which one runs, what they share, and the words for shapes that none takes."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import CELL, HOST, Slot, arena, call, kernels, own_store, some_weights, weights
from test_artifact import check_header

from toolchain.core.errors import CodegenError, UsageError
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.buckets import verify_buckets
from toolchain.targets.llvm.header import header_text
from toolchain.targets.llvm.link import compile_c, run_zig
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Copy, Op, Plan, Value

__all__ = ["own_store"]

X, Y, HALO = Slot("input", 0), Slot("output", 0), Slot("arena", 0)


def bucket(rows: int, *ops: Op, arena_bytes: int = 4 * CELL, scheduler: str = "steal") -> Plan:
    """y = 3x + w + i for x of (rows, 8), through the arena."""
    n = rows * 8
    mix = call("mix", buffers=(X, weights(1), arena(1)), extent=n)
    return Plan("net", (Value("x", "uint32", (rows, 8)),), (Value("y", "uint32", (rows, 8)),),
                ops or (mix, Copy(arena(1), Y, 4 * n)), 4 * CELL, arena_bytes, scheduler=scheduler)


def write(folder: Path, *plans: Plan) -> Path:
    write_artifact(folder, "net", plans, kernels(), some_weights(plans[0]), HOST)
    return folder


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint32).reshape(shape) * 2654435761


def mixed(x: np.ndarray) -> np.ndarray:
    w = np.frombuffer(some_weights(bucket(1)), np.uint32)[CELL // 4:][:x.size]
    return (x.reshape(-1) * np.uint32(3) + w + np.arange(x.size, dtype=np.uint32)).reshape(x.shape)


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_shapes_of_the_inputs_choose(tmp_path, scheduler, threads):
    plans = [bucket(rows, scheduler=scheduler, arena_bytes=(2 + rows) * CELL) for rows in (2, 8, 4)]
    with Module.load(write(tmp_path, *plans), threads) as module:
        for rows in (8, 2, 4, 2, 2, 8):
            x = numbers(rows, 8)
            np.testing.assert_array_equal(module.run({"x": x})["y"], mixed(x))
            assert module.buckets[module.bucket_of({"x": x})].inputs[0].shape == (rows, 8)
        assert module.arena().size == 10 * CELL, "one arena, as large as the largest"
        bound = module.bind({"x": (x := numbers(4, 8))})
        module.run({"x": numbers(8, 8)})
        bound()
        np.testing.assert_array_equal(bound.outputs["y"], mixed(x))
        assert [t.name for t in module.profile({"x": x}, 1)] == ["mix", "copy"]
        assert module.benchmark({"x": numbers(2, 8)}, min_time_s=0).repeats >= 5


def test_halos_are_zero_again_after_another_bucket(tmp_path):
    """The arena is shared: what one bucket leaves where another has its halo is cleared when that one runs next."""
    shows_its_halo = replace(bucket(8, Copy(HALO, Y, CELL)), zero=((64, 64), (128, 64)))
    writes_there = bucket(2, Copy(X, HALO, 64), Copy(X, arena(0), 64), Copy(Slot("weights", 0), HALO, CELL), Copy(X, Y, 64))
    folder = write(tmp_path, shows_its_halo, writes_there)
    left = np.frombuffer(some_weights(shows_its_halo), np.uint8)[:CELL].copy()
    with Module.load(folder, 1) as module:
        assert not module.run({"x": numbers(8, 8)})["y"].any(), "fresh memory is zero"
        for _ in range(2):
            module.run({"x": numbers(2, 8)})
            seen = module.run({"x": numbers(8, 8)})["y"].view(np.uint8).reshape(-1)
            assert not seen[64:192].any()
            np.testing.assert_array_equal(np.delete(seen, slice(64, 192)), np.delete(left, slice(64, 192)))
    with Module.load(folder, 1) as module:
        module.run({"x": numbers(8, 8)})
        module.arena()[:] = 7
        assert module.run({"x": numbers(8, 8)})["y"].view(np.uint8)[8:].all(), "nothing is cleared between equal shapes"


def test_the_manifest_and_plan_list_the_buckets(tmp_path):
    write(tmp_path / "a", bucket(2), bucket(8))
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [b["inputs"][0]["shape"] for b in manifest["buckets"]] == [[2, 8], [8, 8]]
    assert [p["outputs"][0]["shape"] for p in json.loads((tmp_path / "a" / "plan.json").read_text())] == [[2, 8], [8, 8]]
    write(tmp_path / "b", bucket(2), bucket(8))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def two_inputs(a: tuple[int, ...], b: tuple[int, ...]) -> Plan:
    x, y = Value("a", "uint32", a), Value("b", "uint32", b)
    return Plan("net", (x, y), (Value("y", "uint32", a),), (Copy(X, Y, x.size_bytes),), 4 * CELL)


FIX = "\nfix: pad or cut the inputs to the shapes of a bucket, or build with one more bucket"
WHERE = ": `buckets` in the deployfile, a list of `shapes` in toolchain.compile"


@pytest.mark.parametrize(("plans", "shapes", "words"), [
    ([bucket(2)], [(3, 8)],
     "input 'x' has shape (3, 8), not (2, 8)\nfix: give it that shape, or build the model for several shapes"),
    ([bucket(2), bucket(8)], [(3, 8)], "input 'x' has shape (3, 8); the shape buckets have (2, 8), (8, 8)" + FIX),
    ([two_inputs((1,), (2, 0)), two_inputs((3,), (2, 0)), two_inputs((3,), (2, 4))], [(5,), (2, 4)],
     "input 'a' has shape (5,); the shape buckets have (1,), (3,)" + FIX),
    ([two_inputs((1,), (2, 0)), two_inputs((3,), (2, 4))], [(1,), (2, 4)],
     "no shape bucket has the inputs 'a' (1,), 'b' (2, 4) together; "
     "there are 'a' (1,), 'b' (2, 0); 'a' (3,), 'b' (2, 4)" + FIX),
    ([bucket(2), bucket(8)], [(16,)], "input 'x' has shape (16,): 1 dimensions, not 2 as (2, 8)"),
])  # fmt: skip
def test_what_a_wrong_shape_is_told(tmp_path, plans, shapes, words):
    with Module.load(write(tmp_path, *plans), 1) as module:
        inputs = {v.name: np.zeros(shape, np.uint32) for v, shape in zip(module.inputs, shapes, strict=True)}
        for use in (module.run, module.bind, module.profile, module.bucket_of):
            with pytest.raises(UsageError) as error:
                use(inputs)
            assert str(error.value) == words + (WHERE if "fix" in words else "")


def test_outputs_of_another_bucket_are_refused(tmp_path):
    with Module.load(write(tmp_path, bucket(2), bucket(8)), 1) as module:
        y = np.zeros((2, 8), np.uint32)
        with pytest.raises(UsageError, match=r"output 'y' has shape \(2, 8\), not \(8, 8\)"):
            module.bind({"x": numbers(8, 8)}, {"y": y})
        module.bind({"x": numbers(2, 8)}, {"y": y})()
        np.testing.assert_array_equal(y, mixed(numbers(2, 8)))


@pytest.mark.parametrize(("other", "words"), [
    (replace(bucket(4), inputs=(Value("z", "uint32", (4, 8)),)), "differ from those of 2x8 in more"),
    (replace(bucket(4), outputs=(Value("y", "int32", (4, 8)),)), "inputs or outputs differ"),
    (replace(bucket(4), outputs=(Value("y", "uint32", (32,)),)), "inputs or outputs differ"),
    (replace(bucket(4), weights_bytes=8 * CELL), "other weights"),
    (bucket(4, scheduler="spmd"), "another scheduler"),
    (bucket(4, Copy(X, Y, 4 * CELL)), "leave input"),
])  # fmt: skip
def test_plans_that_do_not_go_together(other, words):
    with pytest.raises(CodegenError, match=words):
        verify_buckets((bucket(2), other))


def test_two_buckets_of_the_same_shapes():
    with pytest.raises(UsageError, match="two shape buckets have the same input shapes: 4x8"):
        verify_buckets((bucket(2), bucket(4), bucket(4)))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(1, 8), min_size=1, max_size=5, unique=True), wanted=st.integers(0, 9))
def test_the_right_bucket_or_none(rows, wanted, tmp_path_factory):
    with Module.load(write(tmp_path_factory.mktemp("m"), *map(bucket, rows)), 1) as module:
        x = numbers(wanted, 8)
        if wanted in rows:
            assert module.bucket_of({"x": x}) == rows.index(wanted)
            np.testing.assert_array_equal(module.run({"x": x})["y"], mixed(x))
        else:
            with pytest.raises(UsageError, match="shape"):
                module.run({"x": x})


def test_the_header_of_several_buckets(tmp_path, golden):
    text = header_text((bucket(2), bucket(8)), "net")
    (tmp_path / "net.h").write_text(text)
    for language in ("c -std=c99", "c++ -std=c++11"):
        check_header(tmp_path, "net", ["-x", *language.split()])
    golden(text[:text.index("#ifndef")])


PROGRAM = """
#include "net.h"
static long call3(long n, long a, long b, long c) {
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return n;
}
static void expect(int holds, int status) { if (!holds) call3(231, status, 0, 0); }
static int same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }
static uint32_t x[64], y[64];
static const char words[] = "input 'x' has shape (3, 8); the shape buckets have (2, 8), (8, 8)\\n";

__attribute__((force_align_arg_pointer)) void _start(void) {
    const int64_t two[] = {2, 8}, eight[] = {8, 8}, three[] = {3, 8};
    const int64_t *small[] = {two}, *large[] = {eight}, *none[] = {three};
    const void *inputs[] = {x};
    void *outputs[] = {y};
    net_model *model;
    char text[400], cut[10];
    call3(0, 0, (long)x, sizeof x);                          /* the input from standard input */
    expect(net_find_bucket(small) == 0 && net_find_bucket(large) == 1 && net_find_bucket(none) == -1, 1);
    expect(net_bucket_output(1, 0)->size_bytes == 256 && net_bucket_input(0, 0)->shape[0] == 2, 2);
    expect(net_n_buckets() == 2 && !net_bucket_input(2, 0) && net_input(0)->shape[0] == 2 && net_n_ops(1) == 2, 3);
    expect(net_create(&model, "weights.bin", 2) == NET_OK, 4);
    expect(net_run(model, inputs, outputs) == NET_SHAPES_NEEDED, 5);
    expect(net_run_shapes(model, none, inputs, outputs) == NET_WRONG_SHAPE, 6);
    expect(net_run_shapes(model, NULL, inputs, outputs) == NET_BAD_ARGUMENT, 7);
    expect(net_run_bucket(model, 2, inputs, outputs) == NET_BAD_ARGUMENT && net_run_bucket(model, -1, inputs, outputs), 8);
    expect(same(net_status_text(NET_WRONG_SHAPE), "no shape bucket of the model has these input shapes"), 9);
    size_t length = net_shape_error(none, text, sizeof text);
    expect(length < sizeof text && !text[length] && length == net_shape_error(none, NULL, 0), 10);
    expect(net_shape_error(none, cut, sizeof cut) == length && same(cut, "input 'x'"), 11);
    text[sizeof words - 1] = 0;
    expect(same(text, words) && !net_shape_error(large, text, sizeof text) && !text[0], 12);
    expect(net_run_shapes(model, large, inputs, outputs) == NET_OK, 13);
    call3(1, 1, (long)y, 256);                               /* both outputs to standard output */
    expect(net_run_shapes(model, small, inputs, outputs) == NET_OK, 14);
    call3(1, 1, (long)y, 64);
    net_destroy(model);
    call3(231, 0, 0, 0);
}
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program makes x86-64 system calls")
def test_two_buckets_from_a_c_program(tmp_path):
    write(tmp_path, bucket(2), bucket(8))
    program = compile_c(PROGRAM, HOST, name="main.c", includes={"net.h": (tmp_path / "net.h").read_text()})
    (tmp_path / "main.o").write_bytes(program)
    flags = ["-pie", "--dynamic-linker=/lib64/ld-linux-x86-64.so.2", "-rpath", "$ORIGIN"]
    run_zig(["ld.lld", *flags, "main.o", "-L.", "-lnet", "-o", "main"], tmp_path, what="linking the program")
    x = numbers(8, 8)
    done = subprocess.run(["./main"], cwd=tmp_path, input=x.tobytes(), capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    outputs = np.frombuffer(done.stdout, np.uint32).reshape(-1, 8)
    np.testing.assert_array_equal(outputs, np.concatenate([mixed(x), mixed(x[:2])]))
