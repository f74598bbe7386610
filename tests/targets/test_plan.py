"""Plans as data: JSON, order of slots, and what verify_plan refuses; the C text of their tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_plans import HOST, Slot, arena, count, fold, mix, plan_of, turn, weights

from toolchain.core.errors import CodegenError
from toolchain.core.target import Target
from toolchain.targets.llvm.cpu_check import XCR0, required_features
from toolchain.targets.llvm.plan import Call, Copy, If, Loop, Plan, Repeat, Value, Zero, calls, slots_of, verify_plan, walk
from toolchain.targets.llvm.table import c_string, table_source

X, Y = Slot("input", 0), Slot("output", 0)
NESTED = plan_of(
    mix(X, weights(0), arena(0)),
    Repeat(3, (Copy(arena(0), arena(1), 64), If(arena(2), (Zero(arena(3), 8),), (fold(arena(0), Y),))), (4, 8, 0, 0, 0, 0)),
    Loop(arena(0), 7, (count(arena(0), arena(1)),), name="until"),
    turn(arena(1), Y, arena(2)),
)

names = st.text(max_size=8)
slots = st.builds(
    Slot, st.sampled_from(["weights", "arena", "input", "output"]), st.integers(0, 1 << 40), st.integers(0, 1 << 40)
)
sources = st.lists(names, max_size=3).map(tuple)
phases = st.lists(st.tuples(names, st.integers(0, 1 << 40)), max_size=3).map(tuple)
strides = st.lists(st.integers(-(1 << 40), 1 << 40), max_size=3).map(tuple)
leaves = st.one_of(
    st.builds(Call, names, phases, st.lists(slots, max_size=4).map(tuple), names, sources, st.integers(0, 100)),
    st.builds(Copy, slots, slots, st.integers(0, 1 << 40), names, sources),
    st.builds(Zero, slots, st.integers(0, 1 << 40), names, sources),
)
ops = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Repeat, st.integers(0, 100), st.lists(inner, max_size=3).map(tuple), strides, names, sources),
        st.builds(If, slots, st.lists(inner, max_size=2).map(tuple), st.lists(inner, max_size=2).map(tuple), names, sources),
        st.builds(Loop, slots, st.integers(0, 9), st.lists(inner, max_size=3).map(tuple), strides, names, sources),
    ),
    max_leaves=8,
)
tensors = st.lists(
    st.builds(Value, names, st.sampled_from(["float32", "int8"]), st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    max_size=2,
).map(tuple)
plans = st.builds(
    Plan, names, tensors, tensors, st.lists(ops, max_size=4).map(tuple), st.integers(0, 1 << 40), st.integers(0, 1 << 40),
    st.integers(0, 1 << 20), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=2).map(tuple),
    st.sampled_from(["steal", "spmd"]), st.sampled_from([(), ("amx",)]),
)  # fmt: skip


@given(plans)
def test_json_gives_the_same_plan(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.from_json(json.loads(plan.to_text())) == plan


def test_walk_is_preorder_and_slots_line_up_with_it():
    order = ["mix", "repeat", "copy", "if", "zero", "fold", "until", "count", "turn_1+turn_2"]
    assert [op.name for op in walk(NESTED.ops)] == order
    assert slots_of(NESTED.ops[1:2]) == (arena(0), arena(1), arena(2), arena(3), arena(0), Y)
    assert [c.name for c in calls(NESTED)] == ["mix", "fold", "count", "turn_1+turn_2"]


def test_tables(golden):
    target = Target("small", "x86", "x86_64-linux-gnu", features=("+avx2", "+sse4.2", "-avx512f"))
    golden(table_source((replace(NESTED, name="any"),), target, "5a" * 32))


def test_accepts_what_runs():
    verify_plan(NESTED)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(Copy(X, Slot("arena", 4000), 97)), "leave arena"),
        (plan_of(Copy(Slot("weights", -1), Y, 1)), "leave weights"),
        (plan_of(Copy(Slot("input", 2), Y, 1)), "no input number 2"),
        (plan_of(Copy(Slot("output", 0, 200), Y, 57)), "leave output"),
        (plan_of(Copy(Slot("stack", 0), Y, 1)), "segment 'stack'"),
        (plan_of(If(Slot("arena", 4096), ())), "leave arena"),
        (plan_of(Repeat(5, (Copy(X, Y, 4),), (64, 0))), "bytes 0 to 260 leave input"),
        (plan_of(Repeat(2, (Copy(X, Y, 4),), (0, -4))), "bytes -4 to 4 leave output"),
        (plan_of(Repeat(4, (Repeat(4, (Copy(X, Y, 4),), (24, 0)),), (64, 0))), "leave input"),
        (plan_of(Repeat(2, (Copy(X, Y, 4),), (4,))), "1 strides for the 2 slots"),
        (plan_of(Repeat(-1, ())), "negative count"),
        (plan_of(Zero(arena(0), -4)), "negative size"),
        (plan_of(replace(fold(X, Y), chunks=-1)), "negative chunks"),
        (plan_of(scheduler="fair"), "scheduler 'fair'"),
        (replace(plan_of(), permissions=("root",)), "unknown permission 'root'"),
        (replace(plan_of(), zero=((4000, 97),)), "leaves the arena"),
        (replace(plan_of(), inputs=(Value("x", "float32", (1,)), Value("x", "int8", (2,)))), "two inputs of the name 'x'"),
        (replace(plan_of(), outputs=(Value("x", "complex64", (1,)),)), "no storage"),
        (replace(plan_of(), outputs=(Value("x", "float32", (-1,)),)), "no storage"),
    ],
)
def test_refuses(plan, words):
    with pytest.raises(CodegenError, match=words):
        verify_plan(plan)


def test_refuses_loops_too_deep():
    op = Copy(X, Y, 4)
    for _ in range(8):
        op = Repeat(1, (op,))
    verify_plan(plan_of(op))
    with pytest.raises(CodegenError, match="nested more than 8"):
        verify_plan(plan_of(Repeat(1, (op,))))


def test_a_loop_that_never_runs_may_point_anywhere():
    verify_plan(plan_of(Repeat(0, (Copy(X, Y, 4),), (1 << 40, -(1 << 40)))))


@given(st.text())
def test_strings_cannot_break_out_of_c(text):
    literal = c_string(text)
    assert literal[0] == literal[-1] == '"' and '"' not in literal[1:-1] and "\n" not in literal and literal.isascii()


def test_cpu_check_asks_for_the_state_the_system_must_save():
    target = Target("t", "x86", "x86_64-linux-gnu", features=("+avx2", "+avx512f", "+wbnoinvd", "-avx512bw", "+amx-int8"))
    found = {f.name: f for f in required_features(target)}
    assert list(found) == [
        "avx2", "avx512f", "amx-int8", "avx (operating system)", "avx512 (operating system)", "amx (operating system)",
    ]  # fmt: skip
    assert found["amx (operating system)"].leaf == XCR0
    assert not [f for f in required_features(HOST) if f.leaf == XCR0]
