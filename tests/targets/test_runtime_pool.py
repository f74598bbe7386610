"""The thread pool under load: many runs, lanes that help out, several modules and callers, fork, sleep; a race detector."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_plans import (
    HOST,
    KERNELS,
    Reference,
    Slot,
    arena,
    call,
    fold,
    load,
    mix,
    own_store,
    plan_of,
    some_inputs,
    turn,
    weights,
    write,
)

from toolchain.targets.llvm.link import RUNTIME
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Plan, Repeat
from toolchain.targets.llvm.table import table_source

__all__ = ["own_store"]

X, Y = Slot("input", 0), Slot("output", 0)


def busy_plan(scheduler: str = "steal") -> Plan:
    """Many small jobs of all shapes, each of which reads what the one before it wrote."""
    step = (
        mix(arena(0), weights(1), arena(1)),
        turn(arena(1), arena(2), arena(3)),
        fold(arena(2), arena(4)),
        mix(arena(4), weights(2), arena(0), chunks=3),
        mix(arena(0), weights(3), arena(0), chunks=64),
    )
    return plan_of(mix(X, weights(0), arena(0)), Repeat(5, step), turn(arena(0), Y, arena(3)), scheduler=scheduler)


def check_many(module: Module, plan: Plan, runs: int, seed: int) -> None:
    for k in range(runs // 50):
        inputs = some_inputs(plan, seed * 1000 + k)
        expected = Reference(plan, inputs).outputs["y0"]
        bound = module.bind(inputs)
        for _ in range(50):
            bound.outputs["y0"][:] = 0
            bound()
            np.testing.assert_array_equal(bound.outputs["y0"], expected)


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_many_runs(tmp_path, scheduler, threads):
    plan = busy_plan(scheduler)
    with load(plan, tmp_path, threads) as module:
        assert module.threads == threads
        check_many(module, plan, 300, seed=threads)


def test_uneven_work_and_few_chunks(tmp_path):
    plan = plan_of(call("uneven", buffers=(X, weights(0), Y)), call("uneven", buffers=(X, weights(0), Y), chunks=2))
    with load(plan, tmp_path, 4) as module:
        check_many(module, plan, 50, seed=0)


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
def test_modules_and_callers_at_once(tmp_path, scheduler):
    """Four Python threads: two share one module, two have their own; all get the right numbers."""
    plan = busy_plan(scheduler)
    write(plan, tmp_path)
    modules = [Module.load(tmp_path, threads) for threads in (2, 3, 1)]
    failures: list[BaseException] = []

    def caller(module: Module, seed: int) -> None:
        try:
            check_many(module, plan, 150, seed)
        except BaseException as error:
            failures.append(error)

    callers = [threading.Thread(target=caller, args=(m, s)) for s, m in enumerate([modules[0], *modules])]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert not failures and not any(t.is_alive() for t in callers)
    for module in modules:
        module.close()


def test_loading_and_closing_leaves_no_thread_and_no_memory(tmp_path):
    plan = busy_plan()
    write(plan, tmp_path)
    inputs = some_inputs(plan)

    def once() -> None:
        with Module.load(tmp_path, 3) as module:
            module.run(inputs)

    once()
    maps, tasks = len(Path("/proc/self/maps").read_text().splitlines()), len(os.listdir("/proc/self/task"))
    for _ in range(30):
        once()
    assert len(os.listdir("/proc/self/task")) == tasks
    assert len(Path("/proc/self/maps").read_text().splitlines()) < maps + 20


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
def test_idle_lanes_sleep(tmp_path, scheduler):
    """Spinning lanes would use two CPU seconds per second of rest."""
    plan = busy_plan(scheduler)
    with load(plan, tmp_path, 3) as module:
        check_many(module, plan, 50, seed=1)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.1


def test_the_caller_sleeps_while_others_finish(tmp_path):
    """No lane burns a CPU for a long operator of another: one lane's work costs one lane's CPU time."""
    work = call("uneven", buffers=(X, weights(0), arena(0)), chunks=1)
    plan = plan_of(Repeat(40, (work,)), mix(arena(0), weights(0), Y))
    cpu = {}
    for threads in (1, 3):
        with load(plan, tmp_path / str(threads), threads) as module:
            bound = module.bind(some_inputs(plan))
            bound()
            before = time.process_time()
            for _ in range(3):
                bound()
            cpu[threads] = time.process_time() - before
    assert cpu[3] < 2 * cpu[1] + 0.05


FORKING = """
import os, sys
import numpy as np
sys.path.insert(0, {tests!r})
from small_plans import Reference, some_inputs
from toolchain.targets.llvm.module import Module
module = Module.load({folder!r}, threads=3)
inputs = some_inputs(module.buckets[0])
expected = Reference(module.buckets[0], inputs).outputs["y0"]
for generation in range(3):                       # a child, its child, its child
    for _ in range(20):
        assert (module.run(inputs)["y0"] == expected).all()
    assert len(os.listdir("/proc/self/task")) == 3
    if (pid := os.fork()) != 0:
        assert (module.run(inputs)["y0"] == expected).all()
        module.close()
        status = os.waitpid(pid, 0)[1]
        os._exit(0 if status == 0 else 1)
module.close()                                    # in a child that never ran it: nothing to wait for
os._exit(0)
"""


FORKING_IN_A_RUN = """
import os, sys, threading
import numpy as np
sys.path.insert(0, {tests!r})
from small_plans import Reference, some_inputs
from toolchain.targets.llvm.module import Module
module = Module.load({folder!r}, threads=3)
inputs = some_inputs(module.buckets[0])
expected = Reference(module.buckets[0], inputs).outputs["y0"]
bound, stop = module.bind(inputs), threading.Event()
def run():
    while not stop.is_set():
        bound()
runner = threading.Thread(target=run)
runner.start()
for _ in range(30):                               # forks at any moment of a run in another thread
    if (pid := os.fork()) == 0:
        os._exit(0 if (module.run(inputs)["y0"] == expected).all() else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
runner.join()
os._exit(0)
"""


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
@pytest.mark.parametrize("code", [FORKING, FORKING_IN_A_RUN], ids=["idle", "running"])
def test_after_fork(tmp_path, scheduler, code):
    write(busy_plan(scheduler), tmp_path)
    script = code.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # the only threads are ours
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


STRESS = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct tc_model tc_model;
int tc_create_from_memory(tc_model **, const void *, size_t, int);
int tc_run(tc_model *, const void *const *, void *const *);
void tc_destroy(tc_model *);
static tc_model *shared;
static unsigned x[2][64], expected[64];
static void run_many(tc_model *m, int runs) {
    for (int i = 0; i < runs; i++) {
        unsigned y[2][64];
        const void *in[] = {x[0], x[1]};
        void *out[] = {y[0], y[1]};
        if (tc_run(m, in, out) || memcmp(y[0], expected, sizeof expected)) abort();
    }
}
static void *caller(void *own) {
    tc_model *m = shared;
    run_many(m, 30);
    if (own) {
        for (int threads = 1; threads < 4; threads++) {
            if (tc_create_from_memory(&m, own, WEIGHTS_BYTES, threads)) abort();
            run_many(m, 30);
            tc_destroy(m);
        }
    }
    return NULL;
}
int main(int argc, char **argv) {
    char *weights = aligned_alloc(64, (WEIGHTS_BYTES + 63) / 64 * 64);
    FILE *f = fopen(argv[1], "rb");
    if (fread(weights, 1, WEIGHTS_BYTES, f) != WEIGHTS_BYTES) abort();
    fclose(f);
    for (int i = 0; i < 128; i++) x[0][i] = i * 2654435761u;
    const void *in[] = {x[0], x[1]};
    unsigned unused[64];
    void *out[] = {expected, unused};
    if (tc_create_from_memory(&shared, weights, WEIGHTS_BYTES, 1) || tc_run(shared, in, out)) abort();
    tc_destroy(shared);
    if (tc_create_from_memory(&shared, weights, WEIGHTS_BYTES, 3)) abort();
    pthread_t t[3];
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, caller, i ? weights : NULL);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    tc_destroy(shared);
    puts("done");
    return 0;
}
"""


@pytest.fixture(scope="module")
def race_detector(tmp_path_factory) -> str:
    """A C compiler of this machine that has ThreadSanitizer (zig would need a minute to build its own)."""
    folder = tmp_path_factory.mktemp("tsan")
    (folder / "t.c").write_text("int main(void) { return 0; }")
    for compiler in ("clang", "gcc", "cc"):
        if shutil.which(compiler):
            build = [compiler, "-fsanitize=thread", "t.c", "-o", "t"]
            steps = (build, ["./t"])
            if all(subprocess.run(s, cwd=folder, capture_output=True, check=False).returncode == 0 for s in steps):
                return compiler
    pytest.skip("no C compiler with ThreadSanitizer on this machine")


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
def test_no_data_race(tmp_path, race_detector, scheduler):
    """The same pool on POSIX threads, watched by ThreadSanitizer: two callers of one model, two with models of their own."""
    plan = busy_plan(scheduler)
    write(plan, tmp_path)
    weights_file = tmp_path / "weights.bin"
    digest = weights_file.read_bytes()[24:56].hex()
    sources = {"stress.c": STRESS, "kernels.c": KERNELS, "table.c": table_source((plan,), HOST, digest)}
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    build = [race_detector, "-fsanitize=thread", "-g", "-O1", "-w", "-DTC_HOSTED", "-D_GNU_SOURCE", f"-I{RUNTIME}"]
    build += [f"-DWEIGHTS_BYTES={weights_file.stat().st_size}", "-pthread"]
    build += [*sources, str(RUNTIME / "runtime.c"), "-o", "stress"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=120)
    done = subprocess.run(
        ["./stress", str(weights_file)], cwd=tmp_path, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "done\n", textwrap.shorten(done.stderr, 6000)
