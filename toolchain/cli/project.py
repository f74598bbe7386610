"""Which project a command is about: its deployfile, folder, store, and the task graph it asks for."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from toolchain.build.deployfile import Build, Deployfile
from toolchain.build.load import NAME, STATE, load_deployfile
from toolchain.core.errors import DeployfileError, UsageError
from toolchain.core.settings import settings
from toolchain.core.suggest import did_you_mean
from toolchain.tasks.plan import BuildTasks, Tuned, plan


class Project(NamedTuple):
    """A deployfile and the folder its relative paths start from."""

    file: Path
    folder: Path
    deployfile: Deployfile

    @property
    def output(self) -> Path:
        return self.folder / self.deployfile.output

    @property
    def state(self) -> Path:
        """Run records, logs, caches of this project; can be made again."""
        return self.folder / STATE

    @property
    def names(self) -> tuple[str, ...]:
        """Of builds, models and targets: what commands take for NAMES."""
        builds = (b.name for b in self.deployfile.all_builds())
        return tuple(dict.fromkeys([*builds, *self.deployfile.models, *self.deployfile.targets]))

    def select(self, names: Sequence[str]) -> tuple[Build, ...]:
        """The builds users mean by names of builds, models or targets, or patterns of them; all when there are none.

        Raises UsageError naming the first one that means nothing, with the nearest that does.
        """
        builds = self.deployfile.all_builds()
        for name in names:
            if not any(_means(name, b) for b in builds):
                raise UsageError(f"no build, model or target '{name}'", where=self.file.name,
                                 fix=did_you_mean(name, self.names, noun="there are"))
        return tuple(b for b in builds if not names or any(_means(name, b) for name in names))

    def tasks(self, names: Sequence[str], tuned: Tuned | None = None) -> tuple[BuildTasks, ...]:
        """The tasks of the builds that `names` mean. tuned: schedules and costs in place of those in the user's records."""
        return plan(self.deployfile, self.select(names), self.folder, tuned=tuned)


def _means(name: str, build: Build) -> bool:
    return any(fnmatchcase(known, name) for known in (build.name, build.model, build.target))


def find_deployfile(file: Path | None, folder: Path | None) -> Path:
    """The deployfile to use: `file`, or deployfile.yaml in `folder`, or the nearest one in this folder or above.

    Raises DeployfileError: there is none.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    base = folder or Path()
    if file is not None:
        return base / file
    here = base.absolute()
    candidates = [here] if folder is not None else [here, *here.parents]
    for candidate in candidates:
        if (candidate / NAME).is_file():
            path = candidate / NAME
            return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path
    where = str(folder) if folder is not None else "this folder or any above"
    raise DeployfileError(f"no {NAME} in {where}", fix="`tc init` writes a first one")


def open_project(file: Path | None = None, folder: Path | None = None) -> Project:
    """Load the project a command is about. Raises DeployfileError and UsageError."""
    path = find_deployfile(file, folder)
    return Project(path, path.absolute().parent, load_deployfile(path))


def write_log(stem: str, text: str) -> Path | None:
    """Keep a text in the project's state folder, or else beside the user's store. None: nowhere to write."""
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        state = find_deployfile(None, None).absolute().parent / STATE
    except (DeployfileError, OSError):
        state = settings().store
    for folder in (state / "logs", settings().store / "logs"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            return folder / name
        except OSError:
            continue
    return None
