"""SHA-256 over bytes, files and plain data. Two equal values digest alike whatever the order of their mappings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True)


def digest_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces. Raises TypeError for anything that is not plain data."""
    return _ENCODER.encode(value)


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value).encode())
