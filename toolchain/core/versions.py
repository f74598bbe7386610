"""Versions of installed packages, for task keys: read from folder names, for importlib.metadata costs 25 ms to import."""

from __future__ import annotations

import os
import sys
from functools import cache


def installed_version(package: str) -> str:
    """The version of an installed distribution, "" where there is none. The first folder of sys.path that has it wins."""
    wanted = _normalized(package)
    return next((found[wanted] for found in map(_versions_in, sys.path) if wanted in found), "")


@cache
def _versions_in(folder: str) -> dict[str, str]:
    """numpy-2.1.0.dist-info -> {"numpy": "2.1.0"}"""
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return {}
    found = {}
    for name in names:
        if name.endswith(".dist-info"):
            package, _, version = name.removesuffix(".dist-info").partition("-")
            found[_normalized(package)] = version
    return found


def _normalized(name: str) -> str:
    """As in the binary distribution format: runs of -, _ and . become one _, lower case."""
    return "_".join(part for part in name.replace("-", "_").replace(".", "_").lower().split("_") if part)
