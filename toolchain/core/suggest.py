"""Spell-check for every name a user can type."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word` whatever its case, or None when none is alike."""
    from difflib import get_close_matches  # only when something is wrong already

    by_lower = {option.lower(): option for option in options}
    found = get_close_matches(word[:64].lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, options: Iterable[str], *, noun: str = "", limit: int = 12) -> str:
    """A fix for an unknown name: "did you mean 'path'?", or the names there are (`noun` says what they are)."""
    names = list(options)
    if (near := closest(word, names)) is not None:
        return f"did you mean '{near}'?"
    if not names:
        return ""
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"{noun or 'choose one of'}: {shown}"
