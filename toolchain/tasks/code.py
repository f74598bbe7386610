"""The digest of our own code that a step runs: part of its task's key, so that an edited pass or sketch is never answered
from the store. (The steps' version numbers are for what no file of ours says, such as a new meaning of a format.)
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from toolchain.core.digest import digest_bytes, digest_json

ROOT = Path(__file__).parent.parent
SUFFIXES = (".py", ".c", ".h", ".S", ".map")


def code_digest(*parts: str) -> str:
    """Of the packages and modules named, relative to ours ("graph", "tasks/fetch.py"). 30 us a file, once a process."""
    return digest_json([_digest(part) for part in parts])


@cache
def _digest(part: str) -> str:
    path = ROOT / part
    files = [str(path)] if path.is_file() else sorted(_files(str(path)))
    return digest_json([part, *((os.path.relpath(f, path), digest_bytes(_read(f))) for f in files)])


def _files(folder: str) -> list[str]:
    found: list[str] = []
    for entry in os.scandir(folder):
        if entry.is_dir():
            found += _files(entry.path)
        elif entry.name.endswith(SUFFIXES):
            found.append(entry.path)
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
