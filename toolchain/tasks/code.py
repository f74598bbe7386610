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
    path = str(ROOT / part)
    files = [path] if os.path.isfile(path) else sorted(_files(path))
    return digest_json([part, *((file[len(path):], _file_digest(file)) for file in files)])


def _files(folder: str) -> list[str]:
    found: list[str] = []
    for entry in os.scandir(folder):
        if entry.name.endswith(SUFFIXES):
            found.append(entry.path)
        elif entry.is_dir() and entry.name != "__pycache__":
            found += _files(entry.path)
    return found


@cache
def _file_digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return digest_bytes(file.read())
