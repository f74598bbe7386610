"""Names and folders on disk: safe file names, atomic writes, removal. Light: a no-op build uses it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from toolchain.core.digest import digest_bytes


def safe_name(name: str) -> str:
    """A file name for any text. Text that had to be altered carries a digest, so that different texts stay different."""
    safe = re.sub(r"[^A-Za-z0-9_.@:+=-]", "_", name)[:100].lstrip(".")
    return safe if safe and safe == name else f"{safe}-{digest_bytes(name.encode())[:8]}"


def fresh_name(stem: str) -> str:
    """`stem` with a random ending nobody else has."""
    return f"{stem}-{os.getpid()}-{os.urandom(4).hex()}"


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` under `path`: all of it or nothing, whatever happens."""
    temporary = path.with_name(fresh_name(f".tmp-{path.name}"))
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; links are removed, not followed. Absent, also halfway: fine."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        for entry in list(os.scandir(path)):
            remove_tree(Path(entry.path))
        path.rmdir()
    except FileNotFoundError:
        pass
    except PermissionError:
        if os.access(path, os.W_OK | os.X_OK) or not path.is_dir():
            raise
        path.chmod(0o700)               # a step may leave read-only folders
        remove_tree(path)


def files_below(folder: Path) -> list[str]:
    """Relative names ("a/b.txt") of all that is below `folder` and not itself a folder, in order."""
    found: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in os.scandir(folder / below):
            name = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            else:
                found.append(name)
    return sorted(found)
