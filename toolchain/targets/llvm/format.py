"""What an artifact's folder must hold for this version to run it: format and runtime numbers, weights header, digests.

Apart from artifact.py, which writes such folders with a compiler and a linker, because loading one should not pay for that.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.core.digest import digest_file

FORMAT = 2             # of the folder: which files there are, and what the manifest and plan.json look like
WEIGHTS_FORMAT = 1     # of weights.bin; TC_FORMAT in runtime/plan.h
# Of the functions a library exports, their arguments and what they do. A change that an older Module.load would not survive
# counts it up; the manifest and <model>_version() both say it.
RUNTIME_VERSION = 4
VERSION = f"toolchain runtime {RUNTIME_VERSION}"
WEIGHTS_FILE = "weights.bin"
WEIGHTS_HEADER_BYTES = 64
_BLOCK_BYTES = 1 << 20


def weights_header(digest: str, size_bytes: int) -> bytes:
    """The first 64 bytes of weights.bin; `weights_header` in runtime/runtime.c."""
    return struct.pack("<8sIIQ32s8x", b"TCWEIGHT", WEIGHTS_FORMAT, WEIGHTS_HEADER_BYTES, size_bytes, bytes.fromhex(digest))


def library_file(identifier: str, kind: str) -> str:
    """The name of the file with an artifact's code, for a kind of target."""
    return f"{identifier}.wasm" if kind == "wasm32" else f"lib{identifier}.so"


def damage(folder: Path, manifest: Mapping[str, Any], *, contents: bool) -> str:
    """What is wrong with an artifact's files, or "": sizes and the library's digest; with `contents` all digests."""
    library = library_file(manifest["identifier"], manifest["target"]["kind"])
    for file, facts in manifest["files"].items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing"
        if (size := path.stat().st_size) != facts["size_bytes"]:
            return f"{file} has {size} bytes, not {facts['size_bytes']}"
        if (contents or file == library) and _digest(path) != facts["sha256"]:
            return f"{file} is not what was built: its SHA-256 differs"
    return ""


def _digest(path: Path) -> str:
    """As the manifest has it: weights without their header, which must be the one that belongs to them."""
    if path.name != WEIGHTS_FILE:
        return digest_file(path)
    with path.open("rb") as file:
        header = file.read(WEIGHTS_HEADER_BYTES)
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    size = path.stat().st_size - WEIGHTS_HEADER_BYTES
    return digest.hexdigest() if header == weights_header(digest.hexdigest(), size) else "wrong header"
