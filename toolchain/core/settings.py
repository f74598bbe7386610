"""Every environment variable the project reads. A variable changes what is printed or checked, never an artifact's bytes.

    TC_DEBUG=1..4   in the log of a kernel's task: 2 each pass and its time, 3 the schedule too, 4 the generated code too
    TC_DUMP=DIR     write every intermediate form as NN.pass.txt, NN.ext below DIR
    TC_ONLY=GLOB    limit both to kernels of that name
    TC_CHECK=1      interpret after every pass and compare
    TC_STORE=DIR    the content-addressed store (default: $XDG_CACHE_HOME/toolchain or ~/.cache/toolchain)
    TC_CONFIG=DIR   what belongs to the user: host keys of boards that were accepted (default: $XDG_CONFIG_HOME/toolchain or
                    ~/.config/toolchain)
    NO_COLOR        no colour, whatever the terminal
    FORCE_COLOR     colour, whatever the terminal (NO_COLOR wins)
    CI              set by build servers: no animation; GITHUB_ACTIONS: failures become annotations too
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from toolchain.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settings:
    """The environment as this process finds it; what each variable means stands at the top of the file."""

    debug: int
    dump: Path | None
    only: str
    check: bool
    store: Path
    no_color: bool
    config: Path = Path()
    force_color: bool = False
    ci: bool = False
    github: bool = False

    def selects(self, kernel: str) -> bool:
        """Whether debug output for a kernel of that name is wanted."""
        return fnmatch(kernel, self.only)


def _level(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"TC_DEBUG is '{text}'", fix="set it to a number from 0 to 4")
    return int(text)


def settings() -> Settings:
    """Read the environment now (tests change it). Raises UsageError for a value that means nothing."""
    env = os.environ
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    config = Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Settings(
        debug=_level(env.get("TC_DEBUG") or "0"),
        dump=Path(env["TC_DUMP"]).absolute() if env.get("TC_DUMP") else None,
        only=env.get("TC_ONLY") or "*",
        check=env.get("TC_CHECK", "") not in ("", "0"),
        store=Path(env.get("TC_STORE") or cache / "toolchain").absolute(),     # tasks run in folders of their own
        no_color=bool(env.get("NO_COLOR")),
        config=Path(env.get("TC_CONFIG") or config / "toolchain").absolute(),
        force_color=env.get("FORCE_COLOR", "") not in ("", "0"),
        ci=env.get("CI", "") not in ("", "0", "false"),
        github=env.get("GITHUB_ACTIONS") == "true",
    )
