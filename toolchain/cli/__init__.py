"""The command line: arguments in, screen and exit code out. `main` is the entry point of `tc` and `python -m toolchain`.

Nothing heavy is imported before a command needs it: `tc --help` and a build with nothing to do stay fast.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from toolchain.core.errors import DeployfileError, LockfileError, ToolchainError, refused_by_system

# What iproute2's tc understands as its first word. Single-dash options before a command are its too: ours are long.
IPROUTE2_WORDS = ("qdisc", "qd", "class", "filter", "chain", "action", "actions", "monitor", "exec")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; prints every error, and never a traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    gc.set_threshold(100_000, 20, 20)               # what imports allocate stays: collecting it costs a short command 10 %
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):         # a name this terminal cannot show is no reason to fail
        if isinstance(stream, TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")
    if args and is_iproute2(args[0]):
        return _print_error(f"'tc {args[0]}' belongs to iproute2's tc (traffic control); this one deploys networks",
                            "run /usr/sbin/tc; `tc --help` lists what this tc does", 2)
    try:
        code = _run(args)
        sys.stdout.flush()                          # here a full disk can still be told
        return code
    except (DeployfileError, LockfileError) as error:
        print(error, file=sys.stderr)               # begins with file:line:column, as editors and CI expect
        return error.exit_code
    except ToolchainError as error:
        what = f"{error.where}: {error.what}" if error.where else error.what
        return _print_error(what, error.fix, error.exit_code)
    except KeyboardInterrupt:
        return _print_error("interrupted", "", 130)
    except BrokenPipeError:                         # `tc plan | head`: the reader has seen enough
        _drop_output()
        return 1                                    # as click where it meets this: what was left to do is not done
    except OSError as error:
        if (refused := refused_by_system(error, "")) is None:
            return _report_bug(error, args)
        if error.filename is None:                  # standard output may be what is full: what it still holds is lost
            _drop_output()
        return _print_error(str(refused).split("\n")[0], refused.fix, refused.exit_code)
    except Exception as error:
        return _report_bug(error, args)


def _open_closed_streams() -> None:
    """Standard streams that the caller closed (`>&-`) become /dev/null: no file of ours may get their descriptors."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)                        # processes that we start have them, too
    os.close(fd)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")        # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")        # noqa: SIM115


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_iproute2(word: str) -> bool:
    """Whether the first argument was meant for iproute2's tc."""
    return word in IPROUTE2_WORDS or (word.startswith("-") and not word.startswith("--") and word not in ("-h", "-"))


def _run(args: list[str]) -> int:
    import click

    from toolchain.cli.commands import tc

    try:
        return tc.main(args=args, prog_name="tc", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        return _print_error(error.format_message(), f"see `{context.command_path} --help`" if context else "", 2)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None


def _print_error(what: str, fix: str, code: int) -> int:
    from toolchain.build.caret import printable_lines

    sys.stdout.flush()
    print(printable_lines(f"error: {what}"), file=sys.stderr)
    if fix:
        print(printable_lines(f"fix: {fix}"), file=sys.stderr)
    return code


def _report_bug(error: Exception, args: list[str]) -> int:
    """Say that this is our fault, and keep the traceback where it can be sent from."""
    import traceback

    from toolchain.build.caret import printable_lines
    from toolchain.cli.project import write_log
    from toolchain.core.settings import settings

    text = "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    log = write_log("bug", f"tc {' '.join(args)}\n\n{text}")
    sys.stdout.flush()
    print(printable_lines(f"this is a bug in the toolchain: {type(error).__name__}: {error}"), file=sys.stderr)
    if frames:
        print(f"in: {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})", file=sys.stderr)
    print(f"log: {log}" if log else printable_lines(text), file=sys.stderr)
    if settings().debug and log:
        print(printable_lines(text), file=sys.stderr)
    return 1
