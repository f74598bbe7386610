"""Commands whose capability is not there yet: their names are taken, and they give a clear answer."""

from __future__ import annotations

from typing import NoReturn

import click

from toolchain.cli.commands import command
from toolchain.core.errors import UsageError


@command("export")
@click.argument("names", nargs=-1)
def export_command(names: tuple[str, ...]) -> NoReturn:
    """Write other forms of what was built: a quantized ONNX file, an accelerator's instruction stream.

    \b
    Example:
      tc export resnet18@x86
    """
    raise not_yet("exporting other forms", "artifacts lie in the output folder; `tc show TASK` prints what a task made")


def not_yet(capability: str, instead: str) -> UsageError:
    return UsageError(f"not yet: {capability}", fix=instead)
