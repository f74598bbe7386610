"""`tc clean` and `tc gc`: what a project and the store take on disk."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.build.deployfile import DURATION, SIZE
from toolchain.build.gc import clean, gc, verify
from toolchain.build.store import Store
from toolchain.cli.commands import command, project_options
from toolchain.cli.project import find_deployfile
from toolchain.cli.screen import count, size
from toolchain.cli.values import Amount
from toolchain.core.settings import settings


@command("clean")
@project_options
@click.option("--store", "whole_store", is_flag=True, help="Empty the store as well, for all projects.")
def clean_command(file: Path | None, folder: Path | None, whole_store: bool) -> int:
    """Remove what builds put into this project: artifacts (not files of yours beside them), logs and run records.

    The store keeps its artifacts, so the next build only writes them out again.

    \b
    Example:
      tc clean
    """
    project = find_deployfile(file, folder).absolute().parent
    store = Store(settings().store)
    folders = clean(store, project)
    print(f"removed the artifacts of {count(len(folders), 'builds')}, logs and run records below {project}")
    if whole_store:
        swept = gc(store, max_bytes=0, max_age_s=0)
        print(f"emptied the store {store.root}: {size(swept.freed_bytes)}")
    store.close()
    return 0


@command("gc")
@click.option("--max-size", type=Amount(SIZE), help="Forget the longest unused artifacts until the rest fits: 5GB.")
@click.option("--max-age", type=Amount(DURATION), help="Forget artifacts unused for longer: 30d.")
@click.option("--verify", "check", is_flag=True, help="Read every artifact first, and forget damaged ones.")
def gc_command(max_size: float | None, max_age: float | None, check: bool) -> int:
    """Bound the size of the store all projects share. What is forgotten is made again when it is needed.

    \b
    Example:
      tc gc --max-size 5GB --max-age 30d
    """
    store = Store(settings().store)
    if check:
        wrong = verify(store)
        for line in wrong:
            print(f"damaged: {line}")
        print(f"{count(len(wrong), 'artifacts')} damaged: forgotten" if wrong else "all artifacts are as they were made")
    swept = gc(store, max_bytes=None if max_size is None else int(max_size), max_age_s=max_age)
    freed, left = size(swept.freed_bytes), size(swept.left_bytes)
    print(f"forgot {count(swept.traces, 'artifacts')}, freed {freed}; the store holds {left}")
    store.close()
    return 0
