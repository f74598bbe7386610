"""Models nobody here wrote: a hundred of NNSmith's, compiled and compared. More of them: python -m tests.fuzz.run."""

from __future__ import annotations

import pytest

from .corpus import COUNT, read_corpus
from .run import variants_of
from .stack import Stack

CASES = read_corpus()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TC_STORE", str(tmp_path_factory.mktemp("store")))
        yield Stack(tmp_path_factory.mktemp("artifact"))


@pytest.mark.parametrize("name", CASES)
def test_an_outside_model(stack, name):
    variants = variants_of(int(name.rpartition("-")[2]))
    verdict = stack.check(CASES[name], variants, link=False)
    assert verdict.kind == "passed", f"{verdict.kind} {verdict.detail}\n{[str(v) for v in variants]}"


def test_the_corpus_is_whole():
    assert len(CASES) == COUNT
    assert len({n.op_type for c in CASES.values() for n in c.model.graph.node}) >= 50
