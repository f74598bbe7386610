"""What the numbers are that tuning compares: `Unit`. A cost without its unit is no time."""

from __future__ import annotations

from enum import StrEnum


class Unit(StrEnum):
    """As records, reports and the screen have it. Costs of two units are never compared, and teach no model together."""

    MICROSECONDS = "us"
    STATIC_CYCLES = "static cycles"             # counted, where nothing can be timed: `tasks/tuning/static_cost.py`

    @property
    def is_time(self) -> bool:
        return self is Unit.MICROSECONDS

    def show(self, cost: float) -> str:
        """"12.3 us", "1.23 ms"; "1,234 static cycles"."""
        if not self.is_time:
            return f"{cost:,.0f} {self}"
        return f"{cost / 1e3:.2f} ms" if cost >= 1000 else f"{cost:.1f} us"


MICROSECONDS, STATIC_CYCLES = Unit.MICROSECONDS, Unit.STATIC_CYCLES

__all__ = ["MICROSECONDS", "STATIC_CYCLES", "Unit"]
