"""Beam search over partial schedules: questions are answered one after the other, and only the best few beginnings survive.

    ()                                     default for what is open    scored by the model
    (tile=1x6x2) (tile=1x4x3) ...          tile=1x6x2 order=groups unroll=4 ...
    (tile=1x6x2, order=rows) ...           WIDTH survive each question

Source: Adams et al., "Learning to Optimize Halide with Tree Search and Random Programs", SIGGRAPH 2019: a beam over the
decisions of a schedule, a learned model at every level, and random dropout of decisions, so that each pass finds others.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.te.tune.searchers.guided import Guided
from toolchain.te.tune.space import Point

WIDTH = 4
OPTIONS = 8                 # of a question that a beginning is continued with, at most, in one pass
DROPOUT = 0.2               # of the continuations, after the first pass


class Beam(Guided):
    """Each pass walks down the questions once; what any level has completed is ranked in the end."""

    def candidates(self) -> Sequence[Point]:
        beam: list[tuple[dict[str, str], Point]] = [({}, self.space.default)]
        seen: dict[Point, None] = {}
        while True:
            wider = [continued for beginning, point in beam for continued in self._continued(beginning, point)]
            if not wider:
                return self.by_model(seen)
            seen.update(dict.fromkeys(point for _, point in wider))
            possible = [(beginning, point) for beginning, point in wider if not point.refused] or wider
            scores = self.model.scores([point for _, point in possible])
            order = sorted(range(len(possible)), key=lambda n: -float(scores[n]))
            beam = [possible[n] for n in order[:WIDTH]]

    def _continued(self, beginning: dict[str, str], point: Point) -> list[tuple[dict[str, str], Point]]:
        """A beginning with each answer to its first open question; nothing when all are answered."""
        question = next((q for q in point.questions if q.name not in beginning), None)
        if question is None:
            return []
        options = list(question.options)
        if len(options) > OPTIONS:
            options = self.rng.sample(options, OPTIONS)
        if len(self.trials) > 1:
            options = [o for o in options if self.rng.random() >= DROPOUT] or options[:1]
        longer = [{**beginning, question.name: option} for option in options]
        return [(answers, self.space.point(answers)) for answers in longer]
