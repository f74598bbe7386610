"""Boards that are not to be used for now: by whom they were set aside, and why. One file of the user's, for all projects."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from toolchain.core.errors import DeviceError
from toolchain.core.settings import settings
from toolchain.remote.board import Board


def quarantine_file() -> Path:
    return settings().config / "quarantine.json"


def _key(board: Board) -> str:
    return f"{board.user}@{board.host}:{board.port}"


def _read() -> dict[str, dict[str, str]]:
    try:
        data = json.loads(quarantine_file().read_text(encoding="utf-8"))
        return dict(data) if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}


def reason(board: Board) -> str:
    """Why it is set aside, and since when; "" where it is not."""
    entry = _read().get(_key(board))
    return f"{entry.get('reason', '')} (since {entry.get('since', '')})" if entry else ""


def set_aside(board: Board, why: str) -> None:
    _write({**_read(), _key(board): {"reason": why, "since": time.strftime("%Y-%m-%d %H:%M")}})


def release(board: Board) -> None:
    _write({key: entry for key, entry in _read().items() if key != _key(board)})


def refuse(board: Board) -> None:
    """Raises DeviceError when it is set aside."""
    if why := reason(board):
        raise DeviceError(f"is in quarantine: {why}", where=board.where, fix=(
            f"look at it with `tc devices doctor {board.name}`, then: tc devices quarantine {board.name} --off"))


def _write(entries: dict[str, dict[str, str]]) -> None:
    file = quarantine_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)
