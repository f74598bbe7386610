"""An artifact's folder, read and checked for whatever runs it: this process, an engine, a board.

Nothing in such a folder is believed before it is checked: names are names of files in it, sizes and digests are as stated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.core.errors import DeviceError, UsageError
from toolchain.core.target import Target
from toolchain.targets.llvm.format import FORMAT, RUNTIME_VERSION, damage, library_file
from toolchain.targets.llvm.plan import Plan, plans_from_json


@dataclass(frozen=True, slots=True)
class ArtifactFiles:
    """What is needed to run it."""

    folder: Path
    manifest: Mapping[str, Any]
    plans: tuple[Plan, ...]

    @property
    def target(self) -> Target:
        return Target.from_json(self.manifest["target"])

    @property
    def library(self) -> Path:
        return self.folder / library_file(self.manifest["identifier"], self.manifest["target"]["kind"])


def read_artifact(folder: Path, machine: str = "", *, contents: bool = False) -> ArtifactFiles:
    """machine: the kind of target that this process is; "": something else will run it. Sizes and the library's digest are
    always checked, with `contents` all digests.

    Raises UsageError: no whole artifact of this version; DeviceError: one for another machine.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            raise UsageError(
                f"artifact of format {manifest['format']}; this version reads format {FORMAT}",
                where=str(folder),
                fix="build it again",
            )
        if (runtime := manifest.get("runtime_version", 1)) != RUNTIME_VERSION:
            raise UsageError(
                f"artifact with runtime version {runtime}; this version calls runtime version {RUNTIME_VERSION}",
                where=str(folder),
                fix="build it again",
            )
        kind = manifest["target"]["kind"]
        if machine not in ("", kind):
            raise DeviceError(f"artifact for {kind}; this machine is {machine}", where=str(folder),
                              fix="run it on such a machine, or build for this one")
        if not re.fullmatch(r"[A-Za-z]\w*", manifest["identifier"], re.ASCII):
            raise ValueError("identifier")
        if any(Path(file).name != file for file in manifest["files"]):
            raise ValueError("files")
        if problem := damage(folder, manifest, contents=contents):
            raise UsageError(f"damaged artifact: {problem}", where=str(folder), fix="build it again")
        plans = plans_from_json(json.loads((folder / "plan.json").read_bytes()))
        if not plans:
            raise ValueError("no plan")
    except FileNotFoundError as error:
        raise UsageError(f"no artifact here: {error.filename} is missing", where=str(folder)) from None
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        what = f"damaged artifact: unreadable manifest or plan ({type(error).__name__}: {error})"
        raise UsageError(what, where=str(folder), fix="build it again") from None
    return ArtifactFiles(folder, manifest, tuple(plans))


__all__ = ["ArtifactFiles", "read_artifact"]
