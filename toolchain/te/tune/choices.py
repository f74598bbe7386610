"""Decisions of a schedule sketch, asked for by name: one code path for the default schedule, a template and the search.

A sketch calls primitives and asks `choices.one_of("tile", options, default)`. Answering every question with its default
gives the untuned schedule; answering from a record replays a tuned one; enumerating the options gives the search space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: options and answers as texts, which is what records keep.

    costs: what an analytic model expects of each option, relative to the best one (1.0); all 1.0 where it has no opinion.
    """

    name: str
    options: tuple[str, ...]
    default: str
    answer: str
    costs: tuple[float, ...]

    @property
    def expected(self) -> float:
        """The expected cost of the answer, relative to that of the default."""
        return self.costs[self.options.index(self.answer)] / self.costs[self.options.index(self.default)]


@dataclass
class Choices:
    """Answers by name (missing ones take the default the analytic policy proposes); remembers every question asked."""

    answers: Mapping[str, str] = field(default_factory=dict)
    asked: dict[str, Question] = field(default_factory=dict)

    def one_of(self, name: str, options: Sequence[T], default: T, costs: Sequence[float] = ()) -> T:
        """The answer to a question. An answer that is no longer an option (the shape changed) falls back to the default.

        Options are known by their text, `str(option)`: no two may share one. Neighbours in `options` are alike: some
        searchers go from one to the next. Asked again under the same name, a question is a bug of the sketch.
        """
        texts = tuple(map(str, options))
        assert len(set(texts)) == len(texts) and name not in self.asked, f"question {name!r}: {texts}"
        answer = self.answer(name, texts, str(default))
        self.asked[name] = Question(name, texts, str(default), answer, tuple(costs) or (1.0,) * len(texts))
        return options[texts.index(answer)]

    def answer(self, name: str, options: tuple[str, ...], default: str) -> str:
        """Which of the options it is."""
        answer = self.answers.get(name, default)
        return answer if answer in options else default
