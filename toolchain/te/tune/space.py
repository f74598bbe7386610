"""A search space: all ways to answer what a program asks. Found out by running it, never written down apart.

    def program(choices):                           Space(program)
        n = choices.one_of("parts", (1, 2, 4), 1)   (parts=1) (parts=2, order=ij) (parts=2, order=ji) (parts=4, ...) ...
        if n > 1: choices.one_of("order", ("ij", "ji"), "ij")
        return Made(...)

A question may depend on earlier answers; the same answers always lead to the same questions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from toolchain.core.errors import CodegenError, ScheduleError
from toolchain.te.tune.choices import Choices, Question

Key = tuple[tuple[str, str], ...]           # questions with their answers, in the order asked
PROBES = 16                     # random descents that a space's size is estimated from
NO_FEATURES = np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a program made. signature: the same for schedules that are the same under two names; features: what a cost model
    sees of it (te.tune.features)."""

    signature: str
    features: np.ndarray = field(default_factory=lambda: NO_FEATURES)


Program = Callable[[Choices], Made]


@dataclass(frozen=True, slots=True)
class Point:
    """One schedule: every question with its answer, in the order asked.

    signature, features: of what the program made. refused: why this point is no schedule; such points are never measured.
    expected: the analytic cost relative to the default's.
    """

    questions: tuple[Question, ...] = field(compare=False)
    signature: str = field(default="", compare=False)
    refused: str = field(default="", compare=False)
    features: np.ndarray = field(default_factory=lambda: NO_FEATURES, compare=False, repr=False)
    key: Key = field(init=False)
    expected: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", tuple((q.name, q.answer) for q in self.questions))
        cost = 1.0
        for q in self.questions:
            cost *= q.expected
        object.__setattr__(self, "expected", cost)

    @property
    def is_default(self) -> bool:
        """Whether every question has the answer that the program proposes."""
        return all(q.answer == q.default for q in self.questions)

    @property
    def answers(self) -> dict[str, str]:
        """As records keep it."""
        return dict(self.key)

    def __str__(self) -> str:
        return " ".join(f"{name}={answer}" for name, answer in self.key) or "(nothing to choose)"


class Space:
    """The points of a program: `program(choices) -> Made`, which raises ScheduleError or CodegenError to refuse one.

    Remembers what it has found out: the program runs once per distinct set of answers it is given.
    """

    def __init__(self, program: Program, default: Mapping[str, str] | None = None) -> None:
        """default: answers of the untuned schedule, where they are not the ones the program proposes."""
        self._program, self._default = program, dict(default or {})
        self._known: dict[Key, Point] = {}
        self._asks: dict[Key, Question] = {}            # the question that follows these answers

    def point(self, answers: Mapping[str, str]) -> Point:
        """The point these answers lead to: what they leave open is answered with defaults, what is not asked is dropped."""
        asked = tuple(answers.items())
        if (known := self._known.get(asked)) is None:
            known = self._known[asked] = self._run(Choices(answers))
        return known

    def _run(self, choices: Choices) -> Point:
        made, refused = Made(""), ""
        try:
            made = self._program(choices)
        except (ScheduleError, CodegenError) as error:
            refused = error.what
        point = Point(tuple(choices.asked.values()), made.signature, refused, made.features)
        for n, question in enumerate(point.questions):
            self._asks.setdefault(point.key[:n], question)
        return self._known.setdefault(point.key, point)

    @property
    def default(self) -> Point:
        return self.point(self._default)

    def all(self) -> Iterator[Point]:
        """Every point once, refused ones too: answers in the order of their options, the last question fastest."""
        def below(prefix: dict[str, str]) -> Iterator[Point]:
            point = self.point(prefix)
            question = next((q for q in point.questions if q.name not in prefix), None)
            if question is None:
                yield point
                return
            for option in question.options:
                yield from below({**prefix, question.name: option})
        yield from below({})

    def sample(self, rng: random.Random) -> Point:
        """Each question, in order, answered by chance. The program runs only where it has not been yet."""
        key: Key = ()
        while (question := self._asks.get(key)) is not None:
            key = (*key, (question.name, rng.choice(question.options)))
        return self._known.get(key) or self._run(_Drawn(dict(key), rng))

    def neighbours(self, point: Point, reach: int = 1) -> list[Point]:
        """Points that differ in one answer, by at most `reach` places among its options; nearest first."""
        found: dict[tuple[tuple[str, str], ...], Point] = {}
        for step in range(1, reach + 1):
            for q in point.questions:
                at = q.options.index(q.answer)
                for other in (at - step, at + step):
                    if 0 <= other < len(q.options):
                        near = self.point({**point.answers, q.name: q.options[other]})
                        found.setdefault(near.key, near)
        found.pop(point.key, None)
        return list(found.values())

    def mutate(self, point: Point, rng: random.Random) -> Point:
        """One answer changed by chance (none where there is nothing to choose)."""
        open_ = [q for q in point.questions if len(q.options) > 1]
        if not open_:
            return point
        q = rng.choice(open_)
        return self.point({**point.answers, q.name: rng.choice([o for o in q.options if o != q.answer])})

    def crossover(self, a: Point, b: Point, rng: random.Random) -> Point:
        """Each answer from one of two parents."""
        mine, yours = a.answers, b.answers
        mixed = {name: rng.choice((mine.get(name, yours.get(name, "")), yours.get(name, mine.get(name, ""))))
                 for name in dict.fromkeys((*mine, *yours))}
        return self.point(mixed)

    def size(self, seed: int = 0) -> int:
        """About how many points there are: exact where questions do not depend on answers, else the mean over random
        descents of the product of options (Knuth, "Estimating the efficiency of backtrack programs", 1975)."""
        rng, total = random.Random(seed), 0
        for _ in range(PROBES):
            product = 1
            for q in self.sample(rng).questions:
                product *= len(q.options)
            total += product
        return round(total / PROBES)


class _Drawn(Choices):
    """Answers by chance what is not answered."""

    def __init__(self, answers: Mapping[str, str], rng: random.Random) -> None:
        super().__init__(answers)
        self._rng = rng

    def answer(self, name: str, options: tuple[str, ...], default: str) -> str:
        return self.answers[name] if name in self.answers else self._rng.choice(options)
