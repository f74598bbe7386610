"""`tc init` and `tc schema`: the beginning of a project, and what editors need to help with its deployfile."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click

from toolchain.build.caret import printable
from toolchain.build.load import NAME, STATE
from toolchain.build.lockfile import lock_path
from toolchain.cli.commands import command
from toolchain.cli.onnx_header import Input, read_inputs
from toolchain.cli.values import OutputFile
from toolchain.core.errors import UsageError
from toolchain.core.suggest import did_you_mean

PACKAGE = Path(__file__).parents[1]
LOCK = lock_path(Path(NAME)).name
RECIPES = ("quickstart", "ocr", "paper", "light", "speech", "vision", "language")
IGNORED = (f"/{STATE}/", "/build/")
EXAMPLE = """  # model:
  #   path: model.onnx
  #   shapes: {input: [1, 3, 224, 224]}
"""


@command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--recipe", metavar="NAME", shell_complete=lambda *given: [r for r in RECIPES if r.startswith(given[-1])],
              help=f"Start from a worked example: {', '.join(RECIPES)}.")
def init_command(folder: Path, recipe: str | None) -> int:
    """Write a first deployfile into FOLDER (here, when left out).

    Every .onnx file found there is declared, with the inputs whose shapes the model leaves open. Nothing is overwritten.

    \b
    Example:
      tc init                        a deployfile for the models in this folder
      tc init ocr --recipe ocr       a copy of the recipe `ocr` in the new folder `ocr`
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / NAME).exists():
        raise UsageError(f"{folder / NAME} is there already", fix="edit it, or remove it first")
    blanks = False
    if recipe is not None:
        copy_recipe(recipe, folder)
    else:
        models = {path.name: read_inputs(path) for path in sorted(folder.glob("*.onnx"))}
        blanks = not models or any(is_open(i) for inputs in models.values() for i in inputs)
        (folder / NAME).write_text(first_deployfile(models), encoding="utf-8")
    ignore(folder / ".gitignore")
    write_schema(folder)
    print(f"wrote {folder / NAME}")
    where = "" if folder == Path() else f" -C {shlex.quote(printable(str(folder)))}"
    print(f"next: {'fill in what it asks for, then ' if blanks else ''}`tc build{where}`")
    return 0


@command("schema")
@click.option("-o", "--output", type=OutputFile(), help="Write it to that file instead.")
def schema_command(output: Path | None) -> int:
    """Print the JSON schema (draft-07) of the deployfile, for editors.

    \b
    Example:
      tc schema -o deployfile.schema.json
    """
    text = schema_text()
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def schema_text() -> str:
    from toolchain.build.schema import json_schema

    return json.dumps(json_schema(), indent=2) + "\n"


def write_schema(folder: Path) -> None:
    """Put the schema where the deployfile's first line points editors to."""
    state = folder / STATE
    state.mkdir(exist_ok=True)
    (state / "deployfile.schema.json").write_text(schema_text(), encoding="utf-8")


def first_deployfile(models: dict[str, tuple[Input, ...]]) -> str:
    """The text of a deployfile for ONNX files (name -> inputs); open dimensions become comments to fill in."""
    lines = [f"# yaml-language-server: $schema={STATE}/deployfile.schema.json", "version: 1", "", "models:"]
    names: set[str] = set()
    for file, inputs in models.items():
        name = free_name(file.removesuffix(".onnx"), names)
        lines += [f"  {name}:", f"    path: {_quoted(file)}", *shape_lines(inputs)]
    if not models:
        lines.append(EXAMPLE.rstrip("\n"))
    lines += ["", "# Left out, this machine is the only target:", "# targets:", "#   x86: {kind: x86}"]
    return "\n".join(lines) + "\n"


def is_open(given: Input) -> bool:
    """Whether the deployfile must say more about an input's shape than the model does."""
    return given.shape is None or any(not isinstance(d, int) or d == 0 for d in given.shape)


def shape_lines(inputs: tuple[Input, ...]) -> list[str]:
    """The lines about shapes of one model: symbolic dimensions under `dims`, unnamed ones under `shapes`; and what stands
    where, since exporters invent names that say nothing."""
    symbols = sorted({d for i in inputs for d in i.shape or () if isinstance(d, str) and d})
    unknown = [i for i in inputs if i.shape is None or any(d in ("", 0) for d in i.shape)]
    lines = []
    if symbols:
        lines += ["    # dims:                     # fill in: the model leaves these open",
                  *(f"    #   {_quoted(s)}: 1" for s in symbols)]
    if unknown:
        lines.append("    # shapes:                   # fill in each ?")
        for i in unknown:
            dims = ", ".join(_dim(d) if d not in ("", 0) else "?" for d in i.shape) if i.shape is not None else "?"
            lines.append(f"    #   {_quoted(i.name)}: [{dims}]")
    shapes = {i.name: ", ".join(map(_dim, i.shape or ())) for i in inputs if i not in unknown}
    return lines + [f"    # input {_quoted(name)}: [{shape}]" for name, shape in shapes.items()]


def _quoted(name: str) -> str:
    """A name as YAML's double-quoted text, in which nothing ends the line: to YAML, U+0085 and U+2028 do, too."""
    def escaped(c: str) -> str:
        return c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) <= 0xffff else f"\\U{ord(c):08x}"

    return "".join(map(escaped, json.dumps(name, ensure_ascii=False)))


def _dim(size: int | str) -> str:
    """In a comment, which no name may end."""
    return printable(str(size))


def free_name(stem: str, taken: set[str]) -> str:
    """A model's name made from a file's, and not yet taken."""
    base = "".join(c if c.isascii() and (c.isalnum() or c in "_.+-") else "_" for c in stem)[:60].lstrip("_.+-") or "model"
    name, n = base, 2
    while name in taken:
        name, n = f"{base}_{n}", n + 1
    taken.add(name)
    return name


def ignore(path: Path) -> None:
    """Add what this project makes to .gitignore, unless it is there."""
    there = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    missing = [line for line in IGNORED if line not in there and line.strip("/") + "/" not in there]
    if missing:
        path.write_text("\n".join([*there, *missing]) + "\n", encoding="utf-8")


def recipe_files() -> list[Path]:
    """The deployfiles of the recipes: inside an installed package, beside it in a checkout."""
    inside = sorted(PACKAGE.glob(f"recipes/*/{NAME}"))
    return inside or sorted(PACKAGE.parent.glob(f"recipes/*/{NAME}"))


def copy_recipe(name: str, folder: Path) -> None:
    """Copy a recipe's files, but not what building it left behind. Raises UsageError: no such recipe, or a file is there."""
    import shutil

    found = {path.parent.name: path.parent for path in recipe_files()}
    if name not in found:
        raise UsageError(f"no recipe '{name}'", fix=did_you_mean(name, found, noun="the recipes are"))
    for path in sorted(found[name].rglob("*")):
        relative = path.relative_to(found[name])
        if path.is_dir() or set(relative.parts) & {STATE, "build", "__pycache__", LOCK}:
            continue
        target = folder / relative
        if target.exists():
            raise UsageError(f"{target} is there already", fix="choose an empty folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.chmod(target, path.stat().st_mode & 0o777)
