"""The interpreter of plans: every kind of op, in every combination, against a plan interpreter in Python."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_plans import (
    CELL,
    HOST,
    N,
    Reference,
    arena,
    call,
    count,
    fold,
    load,
    mix,
    own_store,
    plan_of,
    some_inputs,
    turn,
    weights,
)

from toolchain.core.errors import UsageError
from toolchain.targets.llvm.artifact import write_artifact
from toolchain.targets.llvm.link import compile_c, run_zig
from toolchain.targets.llvm.module import Module
from toolchain.targets.llvm.plan import Copy, Fail, If, Loop, Op, Plan, Repeat, Slot, Zero, slots_of

__all__ = ["own_store"]  # a fixture for all tests here

CELLS = 16
X, Y = Slot("input", 0), Slot("output", 0)


def check(plan: Plan, folder: Path, threads: int = 1) -> None:
    inputs = some_inputs(plan)
    expected = Reference(plan, inputs).outputs
    with load(plan, folder, threads) as module:
        outputs = module.bind(inputs, {v.name: np.zeros(v.shape, v.dtype) for v in plan.outputs})
        outputs()
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs.outputs[name], array)


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
@pytest.mark.parametrize("threads", [1, 2, 3])
class TestOps:
    def check(self, tmp_path: Path, scheduler: str, threads: int, *ops: Op) -> None:
        check(plan_of(*ops, scheduler=scheduler), tmp_path, threads)

    def test_calls_in_order(self, tmp_path, scheduler, threads):
        self.check(tmp_path, scheduler, threads, mix(X, weights(1), arena(0)), mix(arena(0), weights(2), Y))

    def test_phases_with_a_barrier_between(self, tmp_path, scheduler, threads):
        self.check(tmp_path, scheduler, threads, turn(X, Y, arena(3)))

    def test_private_aligned_scratch(self, tmp_path, scheduler, threads):
        self.check(tmp_path, scheduler, threads, fold(X, Y))

    def test_copy_and_zero(self, tmp_path, scheduler, threads):
        ops = (Copy(X, arena(1), CELL), Zero(Slot("arena", CELL, 8), 100), Copy(Slot("arena", CELL, 4), Y, CELL - 4))
        self.check(tmp_path, scheduler, threads, *ops)

    def test_repeat_forwards_and_backwards(self, tmp_path, scheduler, threads):
        body = (mix(X, weights(0), arena(0)), Copy(Slot("arena", 0), Slot("output", 0, 240), 16))
        self.check(tmp_path, scheduler, threads, Repeat(4, body, (0, CELL, 2 * CELL, 2 * CELL, -32)))

    def test_nested_repeats_add_up(self, tmp_path, scheduler, threads):
        inner = Repeat(3, (Copy(X, Y, 4),), (4, 16))
        self.check(tmp_path, scheduler, threads, Repeat(4, (inner,), (64, 12)))

    @pytest.mark.parametrize("fails", [False, True])
    def test_fail_ends_the_run(self, tmp_path, scheduler, threads, fails):
        """Out of loops, too; and the next run starts anew."""
        branch = If(Slot("arena", 8), (Fail("a frame of 5 is longer than the signal"),), (mix(X, weights(2), arena(1)),))
        ops = (Copy(X, arena(0), 16), Repeat(2, (branch, mix(X, weights(1), arena(2)))), mix(X, weights(3), Y))
        plan = plan_of(*ops, scheduler=scheduler)
        inputs = some_inputs(plan)
        inputs["x0"][2] = fails
        with load(plan, tmp_path, threads) as module:
            outputs = {v.name: np.zeros(v.shape, v.dtype) for v in plan.outputs}
            run = module.bind(inputs, outputs)
            for _ in range(3):
                if not fails:
                    run()
                    np.testing.assert_array_equal(outputs["y0"], Reference(plan, inputs).outputs["y0"])
                    continue
                with pytest.raises(UsageError, match="does not fit their shapes: a frame of 5 is longer than the signal"):
                    run()
                assert not outputs["y0"].any()

    @pytest.mark.parametrize("holds", [False, True])
    def test_if(self, tmp_path, scheduler, threads, holds):
        make = (mix(X, weights(0), arena(0)),) if holds else (Zero(arena(0), CELL),)
        branch = If(Slot("arena", 8), (mix(X, weights(1), Y),), (mix(X, weights(2), Y), fold(Y, Slot("output", 1))))
        after = Copy(X, Slot("output", 0, 128), 64)
        self.check(tmp_path, scheduler, threads, *make, branch, after)

    def test_loop_until_its_condition_fails(self, tmp_path, scheduler, threads):
        start = (Copy(X, arena(0), CELL), count(arena(0), arena(1)))
        loop = Loop(arena(1), 60, (count(arena(0), arena(1)), Copy(arena(0), Y, 4)), (0, 0, 4, 0))
        self.check(tmp_path, scheduler, threads, *start, loop)

    def test_loop_ends_at_its_most(self, tmp_path, scheduler, threads):
        ops = (Copy(X, arena(1), CELL), Loop(arena(1), 3, (Copy(X, Y, 4),), (16, 8)))
        self.check(tmp_path, scheduler, threads, *ops)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of all kinds of op, whose loops move slots by whole buffers and stay inside the memory."""
    cell = st.integers(0, CELLS - 1)

    def op(depth: int) -> Op:
        containers = ["repeat", "if", "loop"] if depth < 3 else []
        kind = draw(st.sampled_from(["mix", "mix", "turn", "fold", "count", "copy", "zero", *containers]))
        at = [arena(draw(cell)) for _ in range(4)]
        distinct = draw(st.lists(cell, min_size=4, max_size=4, unique=True))
        apart = [arena(c) for c in distinct]
        source = draw(st.sampled_from([X, Slot("input", 1), weights(3), apart[0]]))
        match kind:
            case "mix":
                return mix(source, weights(draw(st.integers(0, 3))), apart[1], draw(st.integers(0, 9)))
            case "turn":
                return turn(source, apart[1], apart[2])
            case "fold":
                return fold(source, apart[1])
            case "count":
                return count(apart[0], apart[1])
            case "copy":
                return Copy(source, draw(st.sampled_from([apart[1], Y, Slot("output", 1)])), draw(st.integers(0, CELL)))
            case "zero":
                return Zero(at[0], draw(st.integers(0, CELL)))
            case "if":
                return If(at[0], ops(depth + 1), ops(depth + 1))
            case "loop":
                return Loop(at[0], draw(st.integers(0, 4)), ops(depth + 1))
            case _:
                return repeat(ops(depth + 1))

    def ops(depth: int) -> tuple[Op, ...]:
        return tuple(op(depth) for _ in range(draw(st.integers(0, 3))))

    def repeat(body: tuple[Op, ...]) -> Repeat:
        # one stride for all arena slots, so that buffers apart stay apart; further loops around would leave the arena
        places = [s.at // CELL for s in slots_of(body) if s.segment == "arena"]
        count = draw(st.integers(0, 3))
        room = [k for k in (-2, -1, 0, 1, 2) if all(0 <= p + k * max(0, count - 1) < CELLS for p in places)]
        nested = any(isinstance(o, (Repeat, Loop, If)) for o in body)
        step = 0 if nested else CELL * draw(st.sampled_from(room))
        return Repeat(count, body, tuple(step if s.segment == "arena" else 0 for s in slots_of(body)))

    body = tuple(op(0) for _ in range(draw(st.integers(1, 6))))
    show = (Copy(arena(draw(cell)), Y, CELL), Copy(arena(draw(cell)), Slot("output", 1), CELL))
    return plan_of(*body, *show, scheduler=draw(st.sampled_from(["steal", "spmd"])), cells=CELLS)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=plans(), threads=st.integers(1, 4))
def test_any_plan_as_in_python(plan, threads, tmp_path_factory):
    check(plan, tmp_path_factory.mktemp("plan"), threads)


def test_large_copies_are_cut_for_all_lanes(tmp_path):
    size = 1_000_003
    ops = (Copy(Slot("weights", 0), Slot("arena", 5), size), Zero(Slot("arena", 5 + 70_000), 300_001))
    plan = Plan("big", (), (), ops, weights_bytes=size, arena_bytes=size + 64)
    data = np.random.default_rng(0).integers(1, 256, size, np.uint8)
    write_artifact(tmp_path, "big", (plan,), {}, data.tobytes(), HOST)
    with Module.load(tmp_path, threads=3) as module:
        module.run({})
        got = module.arena()
        data[70_000 : 70_000 + 300_001] = 0
        np.testing.assert_array_equal(got[5 : 5 + size], data)
        assert not got[:5].any() and not got[5 + size :].any()


@pytest.mark.parametrize("scheduler", ["steal", "spmd"])
@pytest.mark.parametrize("threads", [1, 3])
def test_hooks_see_each_op_when_it_has_run(tmp_path, scheduler, threads):
    ops = (mix(X, weights(0), arena(0)), Repeat(2, (Copy(arena(0), arena(1), CELL),), (0, CELL)), fold(arena(2), Y))
    plan = plan_of(*ops, scheduler=scheduler)
    inputs = some_inputs(plan)
    with load(plan, tmp_path, threads) as module:
        seen = []
        module.trace(inputs, lambda i, op: seen.append((i, op.name, module.arena().reshape(-1, CELL)[:3].any(1).tolist())))
        assert [(i, name) for i, name, _ in seen] == [(0, "mix"), (2, "copy"), (2, "copy"), (1, "repeat"), (3, "fold")]
        assert [cells for *_, cells in seen[:3]] == [[True, False, False], [True, True, False], [True, True, True]]
        times = module.profile(inputs, repeats=3)
        assert [(t.index, t.name, t.kind) for t in times] == [(0, "mix", "call"), (2, "copy", "copy"), (3, "fold", "call")]
        assert all(t.ns >= 0 for t in times) and any(t.ns > 0 for t in times)
        outputs = {v.name: np.zeros(v.shape, v.dtype) for v in module.outputs}
        loop_us, all_us = (module.profile_range(inputs, outputs, first, 4, 5) for first in (1, 0))
        assert loop_us > 0 < all_us and module.profile_range(inputs, outputs, 4, 4) == 0
        with pytest.raises(UsageError, match="ops 2 to 3 do not begin and end on the outermost level"):
            module.profile_range(inputs, outputs, 2, 3)
        seen.clear()
        module.run(inputs)
        assert seen == []


def test_an_exception_of_a_hook_comes_out(tmp_path):
    plan = plan_of(mix(X, weights(0), Y), fold(X, Y))
    with load(plan, tmp_path) as module:
        with pytest.raises(ZeroDivisionError):
            module.trace(some_inputs(plan), lambda i, op: 1 // 0)
        for use in (lambda i, op: module.run(some_inputs(plan)), lambda i, op: module.close()):
            with pytest.raises(UsageError, match="a hook may not"):
                module.trace(some_inputs(plan), use)
        module.run(some_inputs(plan))


def test_a_range_of_ops_runs_on_what_is_in_the_arena(tmp_path):
    repeat = Repeat(2, (Copy(arena(0), arena(1), CELL),), (0, CELL))
    plan = plan_of(mix(X, weights(0), arena(0)), repeat, fold(arena(2), Y))
    inputs = some_inputs(plan)
    with load(plan, tmp_path, 2) as module:
        outputs = {v.name: np.zeros(v.shape, v.dtype) for v in plan.outputs}
        module.run_range(inputs, outputs, 0, 1)
        assert module.arena()[:CELL].any() and not module.arena()[CELL:].any()
        module.run_range(inputs, outputs, 1, 4)
        np.testing.assert_array_equal(outputs["y0"], Reference(plan, inputs).outputs["y0"])
        with pytest.raises(UsageError, match="outermost"):
            module.run_range(inputs, outputs, 0, 2)


def test_results_do_not_depend_on_the_callers_rounding(tmp_path):
    """Flushing denormals to zero is a state of the thread; the caller's must neither leak in nor get lost."""
    library = _fp_control(tmp_path)
    plan = plan_of(call("halve", buffers=(X, Y)))
    tiny = np.full(N, np.finfo(np.float32).tiny, np.float32)
    inputs = {"x0": tiny.view(np.uint32), "x1": tiny.view(np.uint32)}
    for threads in (1, 2):
        with load(plan, tmp_path / "m", threads) as module:
            before = library.exchange(0x9FC0)  # flush to zero, denormals are zero
            try:
                outputs = module.run(inputs)
                kept = library.exchange(before)
            finally:
                library.exchange(before)
            assert kept & 0x8040 == 0x8040
            assert (outputs["y0"].view(np.uint32) == 0x00400000).all()


def _fp_control(folder: Path):
    if not HOST.triple.startswith("x86_64"):
        pytest.skip("knows the x86 control register only")
    source = """
    __attribute__((visibility("default"))) unsigned exchange(unsigned value) {
        unsigned old;
        __asm__ volatile("stmxcsr %0" : "=m"(old));
        __asm__ volatile("ldmxcsr %0" : : "m"(value));
        return old;
    }"""
    (folder / "fp.o").write_bytes(compile_c(source, HOST, name="fp.c", includes={}))
    run_zig(["ld.lld", "-shared", "fp.o", "-o", "fp.so"], folder, what="fp")
    library = ctypes.CDLL(str(folder / "fp.so"))
    library.exchange.restype = ctypes.c_uint
    return library
