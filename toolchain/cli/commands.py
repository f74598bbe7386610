"""The table of commands, and what they share: lazy loading, help with exit codes, spell-check, the options of a project."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from toolchain import __version__
from toolchain.core.errors import ToolchainError, UsageError
from toolchain.core.suggest import did_you_mean

# name -> (module of toolchain.cli, one line for `tc --help`, exit codes besides 0, 2 and 130)
COMMANDS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "init": ("start", "Write a first deployfile.", ()),
    "check": ("inspect", "Show which operators of the models are covered, before building.", (1,)),
    "build": ("build", "Make everything the deployfile declares, or the named builds; only what changed.", (1, 3, 5)),
    "plan": ("inspect", "Show what a build would run, and why.", ()),
    "explain": ("inspect", "Say why a task ran last time, or would run now.", ()),
    "show": ("inspect", "Print what a task made: a graph, a schedule, code.", (1,)),
    "graph": ("inspect", "Print the task graph as DOT or Mermaid.", ()),
    "run": ("use", "Run an artifact on given inputs.", (1, 5)),
    "bench": ("use", "Measure an artifact.", (1, 5)),
    "verify": ("use", "Compare artifacts with the reference.", (1, 3, 5)),
    "report": ("use", "Show size, accuracy and speed beside what else could run the models.", (1, 3, 4, 5)),
    "tune": ("tune", "Spend a budget on faster schedules; the next build uses them.", (1,)),
    "devices": ("devices", "List the boards of the deployfile, check them, and accept their keys.", (5,)),
    "export": ("later", "Not yet: write other forms of what was built.", (1,)),
    "doctor": ("doctor", "Show what is installed, and what each missing thing disables.", ()),
    "schema": ("start", "Print the JSON schema of the deployfile.", ()),
    "clean": ("space", "Remove what was built.", ()),
    "gc": ("space", "Bound the size of the store.", (1,)),
}

EXIT_CODES = {
    0: "done", 1: "a task failed", 2: "wrong usage or deployfile", 3: "verification failed", 4: "performance regression",
    5: "a device or the network is unavailable: try again", 130: "interrupted",
}


class Command(click.Command):
    """A command whose help ends with its exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        codes = sorted({0, 2, 130, *COMMANDS[self.name or ""][2]})
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_CODES[code]) for code in codes])


class LazyGroup(click.Group):
    """Imports a command's module when the command is run, and lists the commands from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"toolchain.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, f"{cmd_name}_command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str],
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            fix = did_you_mean(args[0], COMMANDS, noun="the commands are", limit=len(COMMANDS))
            raise UsageError(f"no command '{args[0]}'", fix=fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line, _) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="tc", message="%(prog)s (toolchain) %(version)s")
def tc() -> None:
    """Deploy trained networks: `deployfile.yaml` says what is wanted, `tc build` makes it so.

    \b
    A first project:
      tc init          writes deployfile.yaml for the ONNX files in this folder
      tc build         compiles, links and verifies what it declares
      tc report        shows how good the result is
    """


command = partial(click.command, cls=Command, context_settings=CONTEXT)


def project_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds -C and -f: which project a command is about."""
    file = click.option("-f", "--file", "file", type=click.Path(path_type=Path, dir_okay=False),
                        help="The deployfile.  [default: deployfile.yaml here or in a folder above]")
    folder = click.option("-C", "--project", "folder", type=click.Path(path_type=Path, file_okay=False),
                          help="Work in that folder.")
    return folder(file(function))


def known_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """What a shell offers where a build is meant: builds, models and targets; nothing where there is no sound deployfile."""
    from toolchain.cli.project import open_project  # not for --help

    try:
        project = open_project(ctx.params.get("file"), ctx.params.get("folder"))
    except (ToolchainError, OSError):
        return []
    return [name for name in project.names if name.startswith(incomplete)]
