"""Kinds of values that options take, checked before a command does anything: amounts with units, files to write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from toolchain.build.deployfile import Quantity


class Amount(click.ParamType[float]):
    """An option's value written with a unit, as in the deployfile."""

    def __init__(self, quantity: Quantity) -> None:
        self.quantity, self.name = quantity, quantity.unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else self.quantity.parse(value)
        except ValueError:
            self.fail(f"'{value}' is not a {self.quantity.unit} with its unit, such as {self.quantity.example}", param, ctx)


class OutputFile(click.Path):
    """A file that the command will write: refused now, and not after minutes of measuring, where it cannot be written."""

    name = "file"

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(super().convert(value, param, ctx))
        if not path.parent.is_dir():
            self.fail(f"'{path}' cannot be written: there is no folder '{path.parent}'", param, ctx)
        if not os.access(path.parent, os.W_OK | os.X_OK):           # files are written beside, then renamed
            self.fail(f"'{path}' cannot be written: you may not write to the folder '{path.parent}'", param, ctx)
        return path
