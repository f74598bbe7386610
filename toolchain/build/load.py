"""Reads a deployfile: from the project's JSON cache when its bytes were checked before, else through yaml and pydantic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolchain.build.deployfile import Deployfile, from_json, missing_paths
from toolchain.build.folders import write_atomically
from toolchain.core.digest import digest_bytes
from toolchain.core.errors import DeployfileError

NAME = "deployfile.yaml"
STATE = ".tc"                   # the project's folder for what can be made again
READ_LIMIT_BYTES = 1_000_001    # one more than yaml_tree allows


def load_deployfile(path: Path) -> Deployfile:
    """Read and check `path`. Raises one DeployfileError that shows every wrong place of the file."""
    data = read_bytes(path)
    digest, cache = _digest(data), _cache(path)
    if (deployfile := _read_cache(cache, digest)) is None:
        plain = check_bytes(data, path.name)
        deployfile = from_json(Deployfile, plain)
        _write_cache(cache, digest, plain)
    if missing := missing_paths(deployfile, path.parent):
        raise located(path, [(keys, f"no such file or folder: {file}", "") for keys, file in missing])
    return deployfile


def was_checked(path: Path) -> bool:
    """Whether the deployfile was read before, as it is now: a guess, from the first line of what is remembered."""
    try:
        with _cache(path).open("rb") as file:
            return file.readline(1000).split()[:1] == [_digest(read_bytes(path)).encode()]
    except OSError:
        return False


def read_bytes(path: Path) -> bytes:
    """The file's bytes, never more than READ_LIMIT_BYTES. Raises DeployfileError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES)
    except FileNotFoundError:
        raise DeployfileError("there is no such file", where=str(path), fix="`tc init` writes a first one") from None
    except OSError as error:
        raise DeployfileError(f"it cannot be read: {error.strerror}", where=str(path)) from None


def check_bytes(data: bytes, name: str) -> dict[str, Any]:
    """The checked plain data of a deployfile called `name`. Raises DeployfileError with every error's line and caret."""
    from toolchain.build import caret, schema  # yaml and pydantic: a build with nothing to do must not pay for them

    try:
        return schema.check(data)
    except schema.Problems as error:
        raise DeployfileError(caret.render(error.problems, data.decode("utf-8-sig", "replace"), name)) from None


def located(path: Path, problems: Sequence[tuple[tuple[str | int, ...], str, str]]) -> DeployfileError:
    """The error for (keys, what, fix) found wrong after loading, each shown at its place in the file."""
    from toolchain.build import caret, schema

    data = read_bytes(path)
    found = [schema.locate(data, keys, caret.printable(what), fix=fix) for keys, what, fix in problems]
    return DeployfileError(caret.render(found, data.decode("utf-8-sig", "replace"), path.name))


def _cache(path: Path) -> Path:
    return path.parent / STATE / "cache" / f"{path.name}.json"


def _digest(data: bytes) -> str:
    """Of the file and of the code that checks it: neither may change under a cached result."""
    here = Path(__file__).parent
    code = b"".join((here / f"{name}.py").read_bytes() for name in ("deployfile", "schema", "yaml_tree", "load"))
    return digest_bytes(digest_bytes(code).encode() + data)


def _read_cache(cache: Path, digest: str) -> Deployfile | None:
    """The cached deployfile of that digest. None: not there, of another file, or damaged."""
    try:
        head, body = cache.read_bytes().split(b"\n", 1)
        if head.decode() != f"{digest} {digest_bytes(body)}":
            return None
        return from_json(Deployfile, json.loads(body))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write_cache(cache: Path, digest: str, plain: dict[str, Any]) -> None:
    """Atomically. A folder that cannot be written costs time at the next run, nothing else."""
    body = json.dumps(plain).encode()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, f"{digest} {digest_bytes(body)}\n".encode() + body)
    except OSError:
        pass
