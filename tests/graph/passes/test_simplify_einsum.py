"""einsum_to_matmul: which equations become a matrix product, and that they mean the same."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_graphs import Builder, assert_same, ops

from toolchain.graph.ir import Graph
from toolchain.graph.passes import simplify


def einsum(equation: str, *shapes: tuple[int, ...]) -> Graph:
    b = Builder()
    return b.graph(b.node("Einsum", *(b.input(*s) for s in shapes), equation=equation))


@pytest.mark.parametrize(("equation", "shapes", "left"), [
    ("ij,jk->ik", ((3, 5), (5, 7)), ["MatMul"]),
    ("bij,bjk->bik", ((2, 3, 5), (2, 5, 4)), ["MatMul"]),
    ("bhqd,bhkd->bhqk", ((2, 3, 4, 5), (2, 3, 6, 5)), ["Transpose", "MatMul"]),
    ("ij,kj", ((3, 5), (4, 5)), ["Transpose", "MatMul"]),
    ("...ij,jk->...ik", ((2, 3, 5, 4), (4, 2)), ["Reshape", "MatMul", "Reshape"]),
    ("...ji,...jk->...ik", ((2, 5, 3), (5, 4)), ["Transpose", "Reshape", "MatMul", "Reshape"]),
    ("bnd,dhk->bhnk", ((2, 5, 6), (6, 3, 4)), ["Reshape", "Reshape", "MatMul", "Reshape", "Transpose"]),
])
def test_becomes_a_matrix_product(equation, shapes, left):
    before = einsum(equation, *shapes)
    after = simplify(before)
    assert ops(after) == left
    assert_same(before, after)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("ij->ji", ((3, 5),)), ("ii,ij->ij", ((3, 3), (3, 5))), ("i,j->ij", ((3,), (4,))), ("i,i", ((5,), (5,))),
    ("ij,jk->k", ((3, 5), (5, 7))), ("bi,bi->bi", ((2, 3), (2, 3))), ("ij,jk->ik", ((3, 5), (1, 7))),
    ("a,b,c->abc", ((1,), (1,), (5,))),
    ("aa,ab,bc->ac", ((3, 3), (3, 4), (4, 5))), ("ab,bc,cd->ad", ((2, 3), (3, 4), (1, 5))),
])
def test_left_alone(equation, shapes):
    assert ops(simplify(einsum(equation, *shapes))) == ["Einsum"]


@pytest.mark.parametrize(("equation", "shapes", "left"), [
    ("ab,bc,cd->ad", ((2, 9), (9, 8), (8, 5)), ["MatMul", "MatMul"]),
    ("ni,ij,nj->n", ((6, 8), (8, 7), (6, 7)), ["MatMul", "Einsum"]),
    ("ia,ja,ka->ijk", ((6, 5), (7, 5), (8, 5)), ["Einsum", "Reshape", "MatMul", "Reshape"]),
    ("...ab,bc,...cd->...ad", ((3, 2, 9), (9, 8), (3, 8, 5)), ["Reshape", "MatMul", "Reshape", "MatMul"]),
])
def test_becomes_products_of_two(equation, shapes, left):
    before = einsum(equation, *shapes)
    after = simplify(before)
    assert [op for op in ops(after) if op != "Transpose"] == left
    assert_same(before, after)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_more_operands_keep_the_result(data):
    extent = {c: data.draw(st.integers(1, 4)) for c in "abcdef"}
    some = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)
    terms = [data.draw(some) for _ in range(data.draw(st.integers(3, 4)))]
    result = data.draw(st.lists(st.sampled_from(sorted({c for t in terms for c in t})), max_size=3, unique=True))
    before = einsum(f"{','.join(map(''.join, terms))}->{''.join(result)}", *(tuple(extent[c] for c in t) for t in terms))
    assert_same(before, simplify(before))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), counts=st.tuples(*(st.integers(low, 2) for low in (0, 1, 1, 1))))
def test_keeps_the_result(data, counts):
    names = iter(string.ascii_letters)
    batch, rows, columns, summed = (tuple(next(names) for _ in range(n)) for n in counts)
    extent = {c: data.draw(st.integers(1, 4)) for c in (*batch, *rows, *columns, *summed)}
    left, right, result = (data.draw(st.permutations(t)) for t in (
        (*batch, *rows, *summed), (*batch, *columns, *summed), (*batch, *rows, *columns)))
    shapes = [tuple(extent[c] for c in t) for t in (left, right)]
    before = einsum(f"{''.join(left)},{''.join(right)}->{''.join(result)}", *shapes)
    after = simplify(before)
    assert "MatMul" in ops(after) and "Einsum" not in ops(after)
    assert_same(before, after)
