"""What `--locked` asks and answers: is everything as in the lock file? Before a build its inputs, after it what came out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from toolchain.build.caret import printable
from toolchain.build.explain import up_to_date
from toolchain.build.lockfile import Difference, Lock, Name, Section, Value, flatten, section_name
from toolchain.build.store import Store
from toolchain.build.task import Task
from toolchain.cli.project import Project
from toolchain.cli.screen import count
from toolchain.core.artifact import Artifact
from toolchain.core.errors import LockfileError, VerificationError
from toolchain.core.settings import settings
from toolchain.targets.presets import PRESETS
from toolchain.tasks import lock as locking
from toolchain.tasks.plan import BuildTasks

MAX_SHOWN = 40              # differences; more do not fit a screen
MAX_FEATURES = 8


# -- before a build -------------------------------------------------------------------------------------------------------


def check_inputs(project: Project, lock: Lock, tasks: Sequence[BuildTasks]) -> tuple[Task, ...]:
    """Compare everything that is known without running a task with the lock file.

    Returns the tasks that must run before the rest can be compared. Raises LockfileError with every difference.
    """
    if not lock.text:
        raise LockfileError(f"there is no {lock.path.name}", fix="`tc build` without --locked writes it; commit it")
    store = Store(settings().store)
    try:
        wanted = {task.name: task for b in tasks for task in locking.makers(b)}
        made = up_to_date(list(wanted.values()), store, project.folder)
        paths = {path for b in tasks for path in locking.source_files(b).values()}
        digests = {path: store.source_digest(path, str(project.folder)) for path in sorted(paths)}
        store.note((), ())                          # what was digested now is known to the build that follows
    finally:
        store.close()
    if found := list(locking.differing_inputs(lock, tasks, project.deployfile, made, digests)):
        raise LockfileError(screen(project, lock, tasks, found))
    return tuple(task for name, task in wanted.items() if name not in made)


def screen(project: Project, lock: Lock, tasks: Sequence[BuildTasks], found: Sequence[Difference]) -> str:
    """Every difference in a line of its own, section by section, each section with what to do about it.

        deployfile.lock:14: models.one.files.model (one.onnx): locked 3fa9c1d2e4b5, present 77ab01c3d2e1
        fix: put back the files that were locked
    """
    files = {(locking.model_name(b), key): os.path.relpath(path, project.folder)
             for b in tasks for key, path in flatten({locking.FILES: locking.source_files(b)}).items()}
    ordered = sorted(found, key=lambda d: lock.line(d.name, d.key) or len(lock.text))
    parts = []
    for _, differences in groupby(ordered[:MAX_SHOWN], key=_group):
        group = list(differences)
        lines = (_line(lock, d, files.get((d.name, d.key), "")) for d in group)
        parts.append("\n".join([*lines, *(f"fix: {fix}" for fix in _fixes(project, lock, group))]))
    more = f", the first {MAX_SHOWN} shown" if len(found) > MAX_SHOWN else ""
    parts.append(f"{count(len(found), 'differences')} from {lock.path.name}{more}: nothing was built\n"
                 "fix: `tc build` without --locked builds and locks what is here")
    return "\n\n".join(parts)


def _group(d: Difference) -> tuple[object, bool]:
    """Differences of equal groups share their fix: those of a section, and all builds."""
    return (d.name[0] if d.name[0] == "builds" else d.name), bool(d.key)


def _line(lock: Lock, d: Difference, file: str = "") -> str:
    what = printable(section_name(d.name))
    if not d.key:
        return f"{lock.where(d.name)}: {what} is not locked"
    locked, present = _features(d) if d.key == "features" else (_shown(d.key, d.locked), _shown(d.key, d.present))
    at = printable(f"{d.key} ({file})" if file else d.key)
    return f"{lock.where(d.name, d.key)}: {what}.{at}: locked {locked}, present {present}"


def _shown(key: str, value: Value | None) -> str:
    """A value in a few words: digests as everywhere by their beginning."""
    if value is None or value == "":
        return "nothing"
    text = printable(str(value))
    if len(text) == 64 and key.split(".")[0] in (locking.FILES, locking.MADE, "code", "artifact", "inputs"):
        return text[:12]
    return text if len(text) <= 100 else f"{text[:100]}..."


def _features(d: Difference) -> tuple[str, str]:
    """Of two lists of CPU features what each has alone."""
    locked, present = (set(v) if isinstance(v, list) else set() for v in (d.locked, d.present))
    sides = []
    for alone in (sorted(locked - present), sorted(present - locked)):
        more = f" and {len(alone) - MAX_FEATURES} more" if len(alone) > MAX_FEATURES else ""
        sides.append(printable(" ".join(alone[:MAX_FEATURES])) + more or "none besides")
    return sides[0], sides[1]


def _fixes(project: Project, lock: Lock, group: Sequence[Difference]) -> Iterator[str]:
    """What to do about the differences of one section, besides locking what is here."""
    name, keys = group[0].name, {d.key.split(".")[0] for d in group}
    names = " ".join(d.name[1] for d in group)
    if keys == {""}:
        yield f"`tc build {names}` locks {'it' if len(group) == 1 else 'them'}"
        return
    if locking.SAID in keys:
        yield f"undo what was changed in {project.file.name}"
    match name[0]:
        case "tools":
            yield from _tool_fixes(group)
        case "models" if locking.FILES in keys:
            yield "put back the files that were locked"
        case "models" if keys == {locking.MADE}:
            yield "make the recipe write the same bytes each time: seeds, no dates, no order of sets"
        case "targets" if project.deployfile.targets[name[1]].cpu == "host" and keys - {locking.SAID, "llvm"}:
            yield _host_fix(project, lock, name, group)
        case "builds":
            yield f"`tc build {names}`: since they were locked, a build of others has locked other tools, models or targets"


def _tool_fixes(group: Sequence[Difference]) -> Iterator[str]:
    locked = {d.key: d.locked for d in group}
    if "toolchain" in locked:
        yield f"install version {locked['toolchain']} of toolchain"
    elif "code" in locked:
        yield "use the state of toolchain's code that was locked: its version is the same"
    if packages := [f"{key}=={version}" for key, version in locked.items() if version and key not in ("code", "toolchain")]:
        yield f"pip install {' '.join(packages)}"


def _host_fix(project: Project, lock: Lock, name: Name, group: Sequence[Difference]) -> str:
    """This machine is another than the locked one: name the CPU, best the level of x86-64 that both have."""
    locked: Section = lock.sections[name]
    present = {**locked, **{d.key: d.present for d in group if d.present is not None}}
    levels = {name: preset.features for name, preset in PRESETS.items() if preset.kind == locked.get("kind")}
    level = locking.common_cpu(locked, present, levels)
    threads = project.deployfile.targets[name[1]].threads or locked.get("cores", 1)
    example = f", such as `{name[1]}: {{kind: {locked.get('kind')}, cpu: {level}, threads: {threads}}}`" if level else ""
    return (f"`cpu: host` is the machine that builds, and this is another one: name a CPU and threads in "
            f"{project.file.name}{example}")


# -- after a build --------------------------------------------------------------------------------------------------------


def differing(
    lock: Lock, tasks: Iterable[BuildTasks], artifacts: Mapping[str, Artifact],
) -> dict[str, tuple[Difference, ...]]:
    """Of these builds those whose artifact is not the locked one, with what differs."""
    found = {b.name: tuple(locking.differing_artifacts(lock, (b,), artifacts)) for b in tasks}
    return {name: differences for name, differences in found.items() if differences}


def not_reproduced(lock: Lock, found: Mapping[str, Sequence[Difference]]) -> VerificationError:
    """The verdict on artifacts that should have been the locked ones."""
    lines = [_line(lock, d) for differences in found.values() for d in differences]
    what = f"{count(len(found), 'artifacts')} not as locked, though made from the same: {printable(', '.join(found))}"
    return VerificationError("\n".join([what, *(f"  {line}" for line in lines)]), where=lock.path.name, fix=(
        "`tc gc --verify`, then again; if it stays, this machine makes other bytes of equal inputs, "
        "which `tc build` without --locked would lock"))
