"""Decisions of a schedule sketch, asked for by name: one code path for the default schedule, a template and the search.

A sketch calls primitives and asks `choices.one_of("tile_x", options, default)`. Answering every question with its default
gives the untuned schedule; answering from a record replays a tuned one; enumerating the options gives the search space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Choices:
    """Answers by name (missing ones take the default the analytic policy proposes); remembers every question asked."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    asked: dict[str, tuple[tuple[Any, ...], Any]] = field(default_factory=dict)

    def one_of(self, name: str, options: Sequence[Any], default: Any) -> Any:
        """The answer to a question; an answer that is no longer an option (the shape changed) falls back to the default."""
        answer = self.answers.get(name, default)
        if answer not in options:
            answer = default
        self.asked[name] = (tuple(options), answer)
        return answer
